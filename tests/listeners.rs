//! Listeners: handlers on threads of their own, against real brokers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

#[path = "listeners/basics.rs"]
mod basics;
#[path = "listeners/calls.rs"]
mod calls;
#[path = "listeners/failures.rs"]
mod failures;
