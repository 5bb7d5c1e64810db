//! The broker as a pure model: exchanges, queues, and the channels of a virtual host.
//!
//! [`Vhost`] is called with what clients ask for and answers, or refuses, at once. Whatever has to be sent to
//! anyone besides the answer gathers as [`Effect`]s, to be taken with [`Vhost::take_effects`].
//!
//! The caller
//! - holds one lock around a virtual host, and sends nothing while it holds it for long;
//! - calls [`Vhost::tick`] with the virtual time before anything else that may depend on it, and again when
//!   [`Vhost::next_deadline`] has come;
//! - sends the answer of an operation *before* the effects that are taken after it, so that `consume-ok`
//!   precedes deliveries. The exceptions are `basic.recover` and `tx.commit`, whose answers are effects;
//! - after a [`Refusal`] closes the channel ([`Vhost::close_channel`]) or the session, by its scope.
//!
//! Invariant: no I/O, no threads, no locks, no clock; time is an argument.

mod arguments;
mod channel;
mod consumers;
mod dead_letter;
mod dispatch;
mod exchange;
mod exchanges;
mod headers;
mod inspect;
mod interface;
mod message;
mod name;
mod publish;
mod queue;
mod queues;
mod ready;
mod refusal;
mod reply_to;
mod settle;
mod stream;
mod topic;
mod values;
mod vhost;

pub(crate) use exchange::{Destination, Kind as ExchangeKind};
pub(crate) use inspect::*;
pub use interface::Emulate;
pub(crate) use interface::*;
pub(crate) use name::Name;
pub(crate) use refusal::Refusal;
pub(crate) use vhost::Vhost;

#[cfg(test)]
mod tests;
