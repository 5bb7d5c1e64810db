//! A synchronous, blocking client for AMQP 0-9-1, the protocol of RabbitMQ and LavinMQ. It declares,
//! publishes and consumes in straight lines; every wait has a limit, every failure keeps its first cause, and
//! there is no async runtime.
//!
//! ```no_run
//! use std::time::Duration;
//! use leveret::Connection;
//!
//! fn main() -> Result<(), leveret::Error> {
//!     let connection = Connection::open("amqp://localhost")?;
//!     let channel = connection.channel()?;
//!
//!     channel.queue_declare("hello")?;
//!     channel.basic_publish("", "hello", "Hello World!")?;
//!
//!     let mut consumer = channel.basic_consume("hello")?;
//!     while let Some(delivery) = consumer.next_timeout(Duration::from_secs(5))? {
//!         println!("{}", delivery.text()?);
//!         delivery.ack()?;
//!     }
//!     connection.close()
//! }
//! ```
//!
//! # The main types
//!
//! | type | what it is |
//! |---|---|
//! | [`Connection`] | a connection; opened with a URI or a [`Config`] |
//! | [`Channel`] | a conversation on it: declares, publishes, consumes |
//! | [`QueueDeclare`], [`ExchangeDeclare`], [`Publish`], [`Consume`], … | the arguments of calls; a bare name or body converts into most of them |
//! | [`Consumer`] | an iterator over [`Delivery`]s, which are acked, nacked or rejected; [`select`] waits for several |
//! | [`Handler`], [`Listener`], [`FailurePolicy`] | deliveries handled by a closure or an object, on threads of their own; what becomes of those that fail |
//! | [`Message`] | a text, bytes or a JSON value to publish, with its properties |
//! | [`BasicProperties`], [`FieldTable`] | a message's properties and headers |
//! | [`Confirm`], [`Outcome`] | what became of a published message |
//! | [`Transaction`] | publishes and acks that take effect together |
//! | [`rpc`] | requests and answers |
//! | [`Deferred`], [`Pending`] | calls that are sent now and answered later |
//! | [`Events`] | what happens on a connection, in order |
//! | [`Frame`] | what goes over the wire, for [those who look](Connection::set_frame_tap) |
//! | [`Error`] | everything that can go wrong, sorted by what to do about it |
//!
//! Methods have the protocol's names. A call waits for the broker's answer unless its documentation says
//! **Asynchronous**; an error of an asynchronous call is returned by a later one.
//!
//! # The guide
//!
//! The [guide] explains how the parts work together, page by page: [introduction](guide::introduction), [sync
//! and async](guide::sync_and_async), [connecting](guide::connecting), [channels](guide::channels), [queues
//! and exchanges](guide::queues_and_exchanges), [publishing](guide::publishing),
//! [consuming](guide::consuming), [listeners](guide::listeners), [RPC and topologies](guide::rpc),
//! [transactions](guide::transactions), [errors](guide::errors), [events and blocked
//! connections](guide::events_and_blocked), [taps](guide::taps), [threads and
//! coroutines](guide::threads_and_coroutines), [shutting down](guide::shutdown), [glossary](guide::glossary).
//! For those who know [another client](guide::coming_from) there is a table name by name, and for those in a
//! hurry [how do I …?](guide::questions)
//!
//! # Promises
//!
//! - No call outlives its deadline: connecting, calling, publishing against a stalled broker, closing,
//!   dropping. [Every wait and its limit](guide::connecting#every-wait-and-its-limit). The exceptions wait
//!   for something that may never come, and say so: [`Consumer::next`](Iterator::next), [`select`],
//!   [`Listener::wait`], [`InlineConsumer::wait`], [`Connection::wait_closed`].
//! - Nothing stops silently: a consumer, a confirm or a connection that ends says why.
//! - The first cause is kept: the hundredth call after a failure returns the same error as the first.
//! - Every publish in confirm mode has exactly one [`Outcome`], and a delivery cannot be acked twice, or on a
//!   wrong channel.
//! - Any call is legal in any handler; where it would wait for ever, it is [`Error::WouldDeadlock`].
//! - Memory is bounded on both sides, whatever the peer or the program does.
//! - No byte from the wire can panic, over-allocate, or take down more than it must.
//!
//! # Threads
//!
//! All handles are `Send + Sync + 'static`, and a channel may be shared by any number of threads. The threads of
//! this crate have names:
//!
//! | name | how many | runs code of yours |
//! |---|---|---|
//! | `leveret-reader`, `leveret-writer` | one of each for a connection | [inline handlers](Channel::basic_consume_inline), [filters and taps](guide::taps) |
//! | `leveret-handler` | one for each handler of a [`Listener`] | the handler, and its failure policy |
//! | `leveret-listen` | one for a listener with several handlers, or in coroutines | no |
//! | `leveret-rpc` | one for each [`rpc::Client`] | no |
//! | `leveret-events` | one for each [event listener](Connection::on_event) | the listener |
//! | `leveret-shutdown` | one while a [shutdown](Connection::request_shutdown) is under way that a handler asked for | no |
//! | `leveret-resolve`, `leveret-errands`, `leveret-close` and others | for the moment in which they are needed | no |
//!
//! # Features
//!
//! - `tls` (on by default): `amqps`, by native-tls, the TLS library of the operating system. Without it an
//!   `amqps` URI is an error, and nothing else changes.
//! - `broker` (on by default): the module `broker`, a broker within the process, for tests and examples.
//! - `json`: `Message::json` and `Delivery::json`, by serde_json.
//! - `coroutines`: everything here may be called from coroutines of the crate `may`; a call that waits parks the
//!   coroutine, not its thread.

// On docs.rs each item says which feature it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "broker")]
pub mod broker;
#[cfg(feature = "broker")]
pub use broker::direct;
mod channel;
mod connection;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(all(test, not(fuzzing)))]
mod fuzzing;
#[cfg(any(doc, doctest))]
pub mod guide;
/// What `patterns` uses beside the public API: these, and `Confirm::poll` and `Confirm::expecting`.
mod hooks {
    #[cfg(feature = "coroutines")]
    pub(crate) use crate::sync::spawn_coroutine;
    pub(crate) use crate::{
        channel::Control,
        connection::work::Job,
        sync::{Caller, Latch, OneShot, Waiter, lock, may_wait, spawn},
    };
}
mod patterns;
mod protocol;
/// The snippets of the README are compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
mod sync;
mod transport;

pub use channel::{
    Ack, BorrowedDelivery, Channel, Confirm, Consume, Consumer, Deferred, Delivery, ExchangeBind,
    ExchangeDeclare, ExchangeDelete, ExchangeKind, ExchangeUnbind, Get, InlineConsumer, InlineHandler,
    Message, Nack, NoWait, Outcome, Overflow, Pending, Publish, Qos, QueueBind, QueueDeclare, QueueDeclareOk,
    QueueDelete, QueuePurge, QueueType, QueueUnbind, Reject, Requeue, Transaction, select, select_timeout,
};
pub use connection::{
    Connection,
    config::{Address, Config},
    events::{Event, Events},
    tap::{Frame, FrameTap},
    tls_options::{ServerName, TlsOptions},
};
pub use error::{
    Attempt, ConnectFailure, Departure, Error, HandlerError, HandlerFailure, Refusal, ReplyCode, Result,
    Returned, Scope, Timeout, TlsFailure, TlsProblem, Unconfirmed, Unfinished, Violation,
};
pub use patterns::{
    handler::Handler,
    listen::Listen,
    listener::Listener,
    policy::{Destination, Failed, FailurePolicy},
    rpc,
};
pub use protocol::{
    frame::FrameKind,
    properties::{BasicProperties, DeliveryMode},
    sasl::{Credentials, Mechanism, SaslMechanism, Secret},
    value::{FieldTable, FieldValue},
};
pub use transport::{
    stream::Stream,
    tap::{ByteFilter, Direction},
};

/// The TLS library, for building a connector of your own ([`TlsOptions::connector`]).
#[cfg(feature = "tls")]
pub use native_tls;
