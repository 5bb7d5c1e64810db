//! The handle of a running listener.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::running::Running;
use crate::{Error, Result, hooks::Job};

/// Message handlers at work on the deliveries of one consumer.
///
/// It works until it is stopped, until a handler fails and the [`FailurePolicy`](crate::FailurePolicy) is to stop, or
/// until the consumer ends; [`wait`](Listener::wait) says which. It does not keep its channel open: when the last handle
/// of the channel is dropped, it ends with [`Error::Closed`].
///
/// Dropping it stops it and waits for the handlers that run, at most
/// [`drop_timeout`](crate::Config::drop_timeout); one that takes longer runs to its end and nothing follows it. Dropped
/// by one of its own handlers, it does not wait.
///
/// ```
/// # #[cfg(feature = "broker")] {
/// # let broker = leveret::broker::Broker::start();
/// # let connection = broker.connect()?;
/// # let channel = connection.channel()?;
/// # channel.queue_declare("orders")?;
/// use leveret::Delivery;
///
/// let listener = channel.basic_consume("orders")?.listen(|delivery: &Delivery| {
///     println!("{}", delivery.text()?);
///     Ok(())
/// })?;
/// # if false {
/// listener.wait()?; // until the queue is deleted, the connection is lost, or a handler fails
/// # }
/// # }
/// # Ok::<(), leveret::Error>(())
/// ```
#[must_use = "dropping it stops it"]
pub struct Listener {
    pub(super) running: Arc<Running>,
}

impl Listener {
    /// The tag that the consumer has on its channel.
    pub fn consumer_tag(&self) -> &str {
        &self.running.consumer_tag
    }

    /// Begins no further handler; those that run are let finish. **Asynchronous: does not wait**, so a handler may call
    /// it, too.
    ///
    /// Deliveries that no handler has begun go back to their queue. Of a consumer with `no_ack` they are the only copies,
    /// so they are handled first. To have all that was delivered handled in any case, cancel the consumer instead
    /// ([`Channel::basic_cancel`](crate::Channel::basic_cancel)): the listener ends after the last of it.
    pub fn stop(&self) {
        self.running.stop();
    }

    /// Waits until the listener has ended and all its handlers are done. **Waits without a limit**; see
    /// [`wait_timeout`](Listener::wait_timeout).
    ///
    /// # Errors
    /// - [`Error::Handler`]: a handler failed, and the policy is to stop.
    /// - The reason why the consumer ended: [`Error::CancelledByServer`], or what the channel or the connection was lost
    ///   or closed for.
    /// - [`Error::WouldDeadlock`] to one of its own handlers, which would wait for itself.
    ///
    /// `Ok` means that the program stopped it, or cancelled the consumer. All callers get the same.
    pub fn wait(&self) -> Result<()> {
        self.wait_before(None).unwrap_or(Err(Error::WouldDeadlock))
    }

    /// Like [`wait`](Listener::wait), for at most `timeout`; `None` when it is still at work.
    #[must_use = "says whether and why the listener ended"]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<()>> {
        self.wait_before(Instant::now().checked_add(timeout))
    }

    /// The listener has ended. **Does not wait.**
    pub fn has_ended(&self) -> bool {
        self.running.ended.get().is_some()
    }

    fn wait_before(&self, deadline: Option<Instant>) -> Option<Result<()>> {
        if self.running.is_called_by_handler() {
            return Some(Err(Error::WouldDeadlock));
        }
        match self.running.ended.wait(deadline) {
            Ok(ended) => Some(ended),
            Err(why) => why.forbidden().map(Err),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
        let limit = self.running.control.drop_timeout();
        if self.wait_before(Instant::now().checked_add(limit)).is_none() {
            log::warn!(target: "leveret::handler", "dropped after {limit:?}: {}", self.running.describe());
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("consumer_tag", &self.consumer_tag())
            .field("ended", &self.running.ended.get())
            .finish_non_exhaustive()
    }
}
