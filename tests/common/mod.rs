//! Support of the integration tests.

#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod brokers;
pub mod caller;
pub mod calls;
pub mod direct;
pub mod limits;
pub mod messages;
pub mod peer;
pub mod proxy;
pub mod queues;
pub mod watchdog;
