//! The graceful end of a connection.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Connection,
    state::{Inbox, Shared},
};
use crate::{
    error::{Error, Result, Scope, Unfinished},
    sync::{may_wait, spawn},
};

/// What is asked of every channel, one step after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// No more deliveries. Iterators return what was delivered before, and end.
    CancelConsumers,
    /// The outcome of everything that was published.
    AwaitConfirms,
    /// Close, and tell the late error.
    Close,
}

impl Connection {
    /// Ends the connection in order. **Waits** at most `timeout`:
    ///
    /// 1. Nothing new is begun: starting a consumer or a listener fails with [`Error::Closed`] from now on.
    /// 2. Consumers are cancelled. Iterators return what was delivered before, and end; listeners give back what
    ///    their handlers have not begun with.
    /// 3. Handlers that run may finish, and may publish and call until then. If this is called from a handler, that
    ///    one is not waited for; see [`request_shutdown`](Connection::request_shutdown).
    /// 4. Acks and publishes are written, and confirms waited for.
    /// 5. The channels are closed, which tells the errors of what was asynchronous; then the connection.
    ///
    /// Iterators are not waited for: what they have not settled by step 5 goes back to its queue.
    ///
    /// When the time is over the socket is closed at once, whatever is left.
    ///
    /// # Errors
    /// - [`Error::Unfinished`]: what was still at work when the time was over, what was not confirmed, and what
    ///   channels were closed with. If it was not done in time, later calls and
    ///   [`wait_closed`](Connection::wait_closed) return the same.
    /// - [`Error::Timeout`]: everything was done, but the broker did not answer the close of the connection.
    /// - The reason why the connection was lost, if it was lost before, or is meanwhile.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # connection.channel()?.queue_declare("orders")?;
    /// use std::time::Duration;
    /// use leveret::Delivery;
    ///
    /// let channel = connection.channel()?;
    /// let listener = channel.basic_consume("orders")?.listen(|delivery: &Delivery| {
    ///     println!("{}", delivery.text()?);
    ///     Ok(())
    /// })?;
    /// // … when it is time to stop:
    /// connection.shutdown(Duration::from_secs(30))?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        self.handle.shared.shutdown(timeout)
    }

    /// Starts a [`shutdown`](Connection::shutdown) on a thread of its own. **Does not wait**: for handlers, which
    /// are waited for like all others and have their message acked. What remains unfinished is logged.
    ///
    /// The main thread learns of the end by [`wait_closed`](Connection::wait_closed).
    ///
    /// # Errors
    /// [`Error::Io`] if the thread cannot be started.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// # channel.basic_publish("", "orders", "stop")?;
    /// use std::time::Duration;
    /// use leveret::Delivery;
    ///
    /// let channel = connection.channel()?;
    /// let closing = connection.clone();
    /// let listener = channel.basic_consume("orders")?.listen(move |delivery: &Delivery| {
    ///     if delivery.body() == b"stop" {
    ///         closing.request_shutdown(Duration::from_secs(30))?;
    ///     }
    ///     Ok(())
    /// })?;
    /// assert!(connection.wait_closed().is_closed());
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn request_shutdown(&self, timeout: Duration) -> Result<()> {
        let connection = self.clone();
        // From this moment on, also if the thread starts late.
        self.handle.shared.work.stop();
        let run = move || {
            if let Err(error) = connection.shutdown(timeout) {
                log::warn!(target: "leveret::connection", "{error}");
            }
        };
        spawn("leveret-shutdown", run).map(drop)
    }
}

impl Shared {
    fn shutdown(&self, timeout: Duration) -> Result<()> {
        may_wait()?;
        let started = Instant::now();
        let deadline = started.checked_add(timeout);
        let left = || timeout.saturating_sub(started.elapsed());
        self.work.stop();
        let mut unfinished = Unfinished::default();
        // Also those that are closed meanwhile: with an error that nobody may have seen.
        let mut channels = self.inboxes();
        let mut ask = |channels: &[(u16, Arc<dyn Inbox>)], step| {
            for (channel, inbox) in channels {
                if let Err(error) = inbox.clone().wind_down(step, left()) {
                    unfinished.add(*channel, error);
                }
            }
        };
        ask(&channels, Step::CancelConsumers);
        let at_work = self.work.wait_idle(deadline);
        let known = |inbox: &Arc<dyn Inbox>, channels: &[(u16, Arc<dyn Inbox>)]| {
            channels.iter().any(|(_, other)| Arc::ptr_eq(inbox, other))
        };
        let opened =
            self.inboxes().into_iter().filter(|(_, inbox)| !known(inbox, &channels)).collect::<Vec<_>>();
        channels.extend(opened);
        ask(&channels, Step::AwaitConfirms);
        if !left().is_zero() {
            ask(&channels, Step::Close);
        }
        unfinished.at_work = at_work;
        if let Some(cause) = self.cause().filter(|cause| !cause.is_closed()) {
            return Err(cause);
        }
        unfinished.timed_out = left().is_zero() || !unfinished.at_work.is_empty();
        if unfinished.timed_out {
            let error = Error::Unfinished(Arc::new(unfinished));
            self.fail(error.clone());
            return Err(error);
        }
        match self.close(left()) {
            Ok(()) if unfinished.errors.is_empty() => Ok(()),
            Ok(()) => Err(Error::Unfinished(Arc::new(unfinished))),
            // What the channels have said is not lost for it.
            Err(late @ (Error::Timeout(_) | Error::Blocked { .. })) if !unfinished.errors.is_empty() => {
                unfinished.timed_out = true;
                unfinished.errors.push((0, late));
                Err(Error::Unfinished(Arc::new(unfinished)))
            }
            Err(cause) => Err(cause),
        }
    }
}

impl Unfinished {
    /// Keeps what a channel says, unless it has said so before, or is just closed.
    fn add(&mut self, channel: u16, error: Error) {
        let known = self.errors.iter().any(|(other, said)| *other == channel && is_same(said, &error));
        if !known && !matches!(error, Error::Closed(Scope::Channel | Scope::Connection)) {
            self.errors.push((channel, error));
        }
    }
}

fn is_same(this: &Error, other: &Error) -> bool {
    this.to_string() == other.to_string()
}
