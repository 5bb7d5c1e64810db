//! Sending to a peer's consumer, and learning what became of it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Peer, PeerState, channel::Subscription};
use crate::{
    Message,
    error::{Departure, Error, Result},
    protocol::value::FieldTable,
    sync::{GivenUp, Latch},
};

/// What became of a message that was sent to a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Settled {
    /// The peer has dealt with it (`basic.ack`).
    Acked,
    /// The peer does not want it (`basic.reject`, `basic.nack`).
    Rejected,
    /// The peer gives it back, to be sent again: to itself or to somebody else.
    Requeued,
    /// The consumer acknowledges nothing (`no_ack`): the message was sent, and that is all that can be known.
    Untracked,
}

/// Comes once.
pub(in crate::broker) type Outcome = Latch<Result<Settled>>;

/// A message that was sent. Dropping it changes nothing: the message is on its way.
#[derive(Debug, Clone)]
pub struct Sent {
    outcome: Arc<Outcome>,
}

impl Sent {
    pub(super) fn new(outcome: Arc<Outcome>) -> Sent {
        Sent { outcome }
    }

    /// Waits until the peer has settled the message.
    ///
    /// # Errors
    /// - [`Error::Timeout`]: it has not, in this time. It may still do so: wait again.
    /// - [`Error::Departed`]: the peer is gone, and whether it has dealt with the message is not known.
    pub fn wait(&self, timeout: Duration) -> Result<Settled> {
        let deadline = Instant::now().checked_add(timeout);
        self.outcome.wait(deadline).unwrap_or_else(|given_up| {
            Err(given_up.forbidden().unwrap_or_else(|| Error::timeout("an acknowledgement", timeout)))
        })
    }

    /// What is known now. **Does not wait.**
    pub fn try_wait(&self) -> Option<Result<Settled>> {
        self.outcome.get()
    }
}

/// A consumer of a peer's, to send to.
///
/// Dropping it cancels the consumer at the peer (`basic.cancel`), so that nobody waits for messages that cannot come. What
/// was sent can still be settled.
pub struct Consumer {
    peer: Arc<PeerState>,
    subscription: Arc<Subscription>,
}

impl Consumer {
    pub(super) fn new(peer: Arc<PeerState>, subscription: Arc<Subscription>) -> Consumer {
        Consumer { peer, subscription }
    }

    /// The name that the peer consumes from.
    pub fn queue(&self) -> String {
        self.subscription.queue.to_string()
    }

    /// Its tag.
    pub fn tag(&self) -> String {
        self.subscription.tag.to_string()
    }

    /// It acknowledges nothing.
    pub fn no_ack(&self) -> bool {
        self.subscription.no_ack
    }

    /// What the peer has asked for beside.
    pub fn arguments(&self) -> &FieldTable {
        &self.subscription.arguments
    }

    /// Whose it is.
    pub fn peer(&self) -> Peer {
        Peer(self.peer.clone())
    }

    /// Sends a message, with the queue's name as its routing key. **Waits** while the peer has as much as its prefetch
    /// allows or does not read, at most [`send_timeout`](super::Serve::send_timeout); not for the ack, which
    /// [`Sent::wait`] does.
    ///
    /// # Errors
    /// - [`Error::Timeout`]: there was no room in time. Nothing was sent.
    /// - [`Error::Departed`]: the consumer has ended, and why.
    /// - [`Error::Invalid`]: the properties cannot be encoded, or are too large for a frame.
    ///
    /// ```
    /// use std::time::Duration;
    /// use leveret::{Message, direct::{Consumer, Serve, Settled}};
    ///
    /// let listener = Serve::new()
    ///     .consumers(|consumer: Consumer| {
    ///         let sent = consumer.send(Message::text("order 7"))?;
    ///         assert_eq!(sent.wait(Duration::from_secs(5))?, Settled::Acked);
    ///         Ok(())
    ///     })
    ///     .start()?;
    /// let connection = listener.connect()?;
    /// let channel = connection.channel()?;
    /// let mut consumer = channel.basic_consume("orders")?;
    /// let delivery = consumer.next().expect("a message")?;
    /// assert_eq!((delivery.text()?, &*delivery.routing_key()), ("order 7", "orders"));
    /// delivery.ack()?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn send(&self, message: impl Into<Message>) -> Result<Sent> {
        self.peer.send(&self.subscription, message.into(), true)
    }

    /// Like [`send`](Consumer::send), but **does not wait**.
    ///
    /// # Errors
    /// As [`send`](Consumer::send), with [`Error::WouldBlock`] in place of the timeout.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<Sent> {
        self.peer.send(&self.subscription, message.into(), false)
    }

    /// Why it has ended; `None` while messages can be sent. **Does not wait.**
    pub fn ended(&self) -> Option<Departure> {
        self.subscription.ended.get()
    }

    /// Waits until it has ended, for example because the peer has cancelled it.
    ///
    /// # Errors
    /// [`Error::Timeout`]: it has not, in this time.
    pub fn wait_ended(&self, timeout: Duration) -> Result<Departure> {
        let deadline = Instant::now().checked_add(timeout);
        self.subscription.ended.wait(deadline).map_err(|given_up: GivenUp| {
            given_up.forbidden().unwrap_or_else(|| Error::timeout("the end of a consumer", timeout))
        })
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.peer.cancel(&self.subscription);
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("peer", &self.peer.id().0)
            .field("queue", &self.subscription.queue)
            .field("tag", &self.subscription.tag)
            .finish_non_exhaustive()
    }
}
