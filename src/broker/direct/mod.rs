//! Peers that talk to this program directly, without a broker between them.
//!
//! A [`Listener`] is the other end of ordinary clients' connections, in any language: it accepts them, gives what they
//! publish to a handler of the program's, and lets the program send to their consumers. There are no exchanges, no
//! queues and no store: a name is just a text that both sides know.
//!
//! ```
//! use std::sync::mpsc;
//! use leveret::direct::{Published, Serve};
//!
//! let (sender, received) = mpsc::channel();
//! let listener = Serve::new()
//!     .messages(move |message: &Published| {
//!         sender.send(message.text()?.to_owned())?;
//!         Ok(())
//!     })
//!     .start()?;
//!
//! let connection = listener.connect()?; // or, with `listen`, any client that connects to `listener.uri()`
//! let channel = connection.channel()?;
//! channel.confirm_select()?;
//! channel.publish_confirmed("", "examples", "Hello World!")?; // the handler has returned `Ok`
//! assert_eq!(received.recv().unwrap(), "Hello World!");
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! What ordinary clients do, and what becomes of it:
//!
//! | the client | the listener |
//! |---|---|
//! | publishes | the [handler](Serve::messages) is called; the confirm, if the client wants one, goes out after it: `basic.ack` for `Ok`, `basic.nack` for `Err` or a panic |
//! | consumes | the [handler](Serve::consumers) gets a [`Consumer`] to send with, within the client's prefetch |
//! | consumes from a queue that the listener has named, or from `amq.rabbitmq.reply-to` | nobody is told: it is an address for [answers](Published::reply) |
//! | acks, nacks, rejects, recovers | whoever sent the message [learns it](Sent::wait) |
//! | declares, deletes or purges | is answered, and nothing is remembered. Deleting a queue cancels the client's own consumers on it |
//! | binds, gets, or wants transactions | 540, `NOT_IMPLEMENTED`: that needs queues |
//!
//! Handlers run on a few threads of the listener's (`leveret-direct`), the messages of one peer one after the other in
//! their order. A peer that publishes faster than its messages are handled is not read from for a while; one
//! that does not read is not sent to.

mod channel;
mod consumer;
mod inbox;
mod listener;
mod peer;
mod published;
mod serve;

pub(super) use channel::Wanted;
pub use consumer::{Consumer, Sent, Settled};
pub(super) use inbox::Message;
pub use listener::Listener;
pub use peer::Peer;
pub(super) use peer::PeerState;
pub use published::Published;
pub(super) use serve::Program;
pub use serve::Serve;
