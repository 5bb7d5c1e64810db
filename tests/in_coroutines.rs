//! The core of the integration tests again, every body and every call of theirs in a coroutine (see
//! tests/common/caller.rs).
//!
//! Row 105: the same calls, with the same outcomes, whoever makes them.

// Each subject brings its own `common` along.
#![allow(clippy::duplicate_mod, unreachable_pub)]

#[path = "ack.rs"]
mod ack;
#[path = "channel.rs"]
mod channel;
#[path = "closing.rs"]
mod closing;
#[path = "confirms.rs"]
mod confirms;
#[path = "consume.rs"]
mod consume;
#[path = "deadlines/main.rs"]
mod deadlines;
#[path = "declare.rs"]
mod declare;
#[path = "deferred.rs"]
mod deferred;
#[path = "events.rs"]
mod events;
#[path = "publish.rs"]
mod publish;
#[path = "returns.rs"]
mod returns;
#[path = "select.rs"]
mod select;
#[path = "transactions.rs"]
mod transactions;
