//! Requests and answers: a [`Client`] that calls and a [`Server`] that answers.
//!
//! ```text
//!             request (reply_to, correlation_id)
//!   Client ───────────────► queue of the service ───────────────► Server
//!      ▲                                                            │
//!      └───────────────── queue of the client ◄─────────────────────┘
//!             answer (correlation_id)
//! ```
//!
//! ```
//! # #[cfg(feature = "broker")] {
//! # let broker = leveret::broker::Broker::start();
//! # let connection = broker.connect()?;
//! use std::time::Duration;
//! use leveret::{Delivery, rpc};
//!
//! connection.with_channel(|channel| channel.queue_declare("uppercase"))?;
//!
//! let server = rpc::Server::serve(&connection, "uppercase", |request: &Delivery| {
//!     Ok(request.text()?.to_uppercase())
//! })?;
//!
//! let client = rpc::Client::open(&connection, "uppercase")?;
//! let answer = client.call("hello", Duration::from_secs(5))?;
//! assert_eq!(answer.text()?, "HELLO");
//! # }
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! It is the convention that every client of RabbitMQ knows: a request names the queue for the answer in `reply_to`
//! and has a `correlation_id`, which the answer repeats. So either side may be a program in another language.
//!
//! A request that was sent may be worked on, whatever its caller learns: after an error the caller does not know. And
//! it may be worked on twice: if the server is lost between the work and the ack, another one gets the request. Make
//! the work repeatable.

mod client;
mod server;

pub use client::{Client, Replies, Service};
pub use server::{Serve, Server};

/// The header of an answer that says that there is none: the server could not handle the request, and why. A
/// [`Client`] makes [`Error::Remote`](crate::Error::Remote) of it.
pub const ERROR_HEADER: &str = "x-rpc-error";
