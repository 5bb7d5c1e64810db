//! Ways to work that are built on what every program has: listeners, which run message handlers.
//!
//! Invariant: uses the public API and the few hooks that `lib.rs` lists, and nothing else (checked by
//! `tests/layers.rs`).

#[cfg(feature = "coroutines")]
mod coroutines;
mod forward;
pub(crate) mod handler;
mod handoff;
pub(crate) mod listen;
pub(crate) mod listener;
pub(crate) mod policy;
pub mod rpc;
mod running;
mod tries;
