//! Publisher confirms: exactly one outcome per publish, whatever the broker does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub)]

mod common;
#[path = "confirms/model.rs"]
mod model;
#[path = "confirms/outcomes.rs"]
mod outcomes;
#[path = "confirms/rabbitmq.rs"]
mod rabbitmq;
#[path = "confirms/scripted.rs"]
mod scripted;
