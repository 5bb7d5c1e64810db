//! What becomes of a message that a handler could not deal with.

use std::fmt;

use crate::{Delivery, HandlerFailure};

/// What becomes of a message whose handler returned an error or panicked.
///
/// Whatever it says, the failure is reported before: to the log (target `leveret::handler`), as
/// [`Event::HandlerFailed`](crate::Event::HandlerFailed), and to
/// [`Listen::on_exception`](crate::Listen::on_exception). A message that the handler had settled itself stays settled
/// that way.
///
/// On a consumer with `no_ack` the broker has forgotten the message already: `Requeue`, `Reject` and `AckAndDrop` do
/// nothing more than report there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FailurePolicy {
    /// The listener ends with [`Error::Handler`](crate::Error::Handler). The message is not acked; it goes back to its
    /// queue, once the consumer is cancelled, so that this listener does not get it again.
    #[default]
    Stop,
    /// It goes back to its queue and is tried again, at most `max` times; after `max + 1` failures it is treated as by
    /// [`Reject`](FailurePolicy::Reject).
    ///
    /// A quorum queue counts itself (`x-delivery-count`), across all consumers and whatever a message came back for.
    /// Other queues do not count: there the listener does, in memory, for the messages that it has sent back itself and
    /// that come back to itself; identical messages are counted together, and of more than 10,000 the oldest are
    /// forgotten and begin again at 0. Other consumers of the same queue, and the same program after a restart, count
    /// for themselves.
    Requeue {
        /// How often it goes back. 0 is the same as `Reject`.
        max: u32,
    },
    /// It is refused (`basic.reject` without requeue): dropped, or dead-lettered if the queue says so.
    Reject,
    /// A copy is published to this destination, and the message is acked once the broker has confirmed the copy. If the
    /// connection is lost in between there are two of them: never none.
    ///
    /// The copy goes out on a channel of its own, `mandatory` and with a confirm. It has the body and the properties of
    /// the message without those that would send it elsewhere or have it refused (the headers `CC` and `BCC`, `user_id`,
    /// `expiration`), and these headers:
    ///
    /// | header | |
    /// |---|---|
    /// | `message-failed` | what the handler said, at most 1 KiB |
    /// | `x-original-exchange`, `x-original-routing-key` | where the message had been published to |
    /// | `x-original-expiration`, `x-original-user-id` | those properties, if it had them |
    ///
    /// If the broker does not take the copy (it matches no queue, or is nacked, or no confirm comes in time), the
    /// message is not acked: the listener stops as with [`Stop`](FailurePolicy::Stop), and its error also says what
    /// became of the copy ([`HandlerFailure::not_forwarded`]).
    DeadLetter(Destination),
    /// It is acked, and gone.
    AckAndDrop,
}

/// Where copies of failed messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Destination {
    /// The exchange; empty for the default exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
}

impl Destination {
    /// To an exchange with a routing key.
    #[must_use]
    pub fn new(exchange: impl Into<String>, routing_key: impl Into<String>) -> Destination {
        Destination { exchange: exchange.into(), routing_key: routing_key.into() }
    }

    /// To a queue, by way of the default exchange. The queue must exist when the first message fails.
    #[must_use]
    pub fn queue(name: impl Into<String>) -> Destination {
        Destination::new("", name)
    }
}

/// A message that its handler could not deal with, as [`Listen::on_exception`](crate::Listen::on_exception) and
/// [`Listen::on_failure_with`](crate::Listen::on_failure_with) get it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Failed<'a> {
    /// The message.
    pub delivery: &'a Delivery,
    /// Why.
    pub failure: &'a HandlerFailure,
    /// The how-manieth failure of this message this is, counted from 1 as [`FailurePolicy::Requeue`] says.
    pub attempt: u32,
}

/// Decides what becomes of a failed message.
pub(super) type Decide = Box<dyn Fn(&Failed<'_>) -> FailurePolicy + Send + Sync>;

/// How a listener decides.
pub(super) enum Policy {
    Always(FailurePolicy),
    ByMessage(Decide),
}

impl Policy {
    pub(super) fn decide(&self, failed: &Failed<'_>) -> FailurePolicy {
        match self {
            Policy::Always(policy) => policy.clone(),
            Policy::ByMessage(decide) => decide(failed),
        }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Always(policy) => policy.fmt(f),
            Policy::ByMessage(_) => f.write_str("by message"),
        }
    }
}
