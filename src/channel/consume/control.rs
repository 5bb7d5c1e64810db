//! What a dispatcher of this crate needs of a consumer beside its iterator.

use std::{
    fmt,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use super::{Consumer, DeliveryQueue};
use crate::{
    channel::{Channel, Core, Handle},
    connection::{events::Event, work::Job},
    error::{HandlerFailure, Result},
};

/// The hook of the layer above: everything else it does is done with what users have as well.
#[derive(Clone)]
pub(crate) struct Control(Arc<DeliveryQueue>);

impl Consumer {
    pub(crate) fn control(&self) -> Control {
        Control(self.queue.clone())
    }
}

impl Control {
    /// The consumer's wait ends without a delivery, once.
    pub(crate) fn interrupt(&self) {
        self.0.interrupt();
    }

    /// Handlers wait for what this consumer gets, so a shutdown does not cancel it before they are done.
    pub(crate) fn serve_handlers(&self) {
        self.0.for_handlers.store(true, Ordering::SeqCst);
    }

    /// Messages count as dealt with when they are sent.
    pub(crate) fn no_ack(&self) -> bool {
        self.0.no_ack
    }

    pub(crate) fn drop_timeout(&self) -> Duration {
        self.0.core.connection.limits.drop_timeout
    }

    /// Has the connection know of a job that runs handlers.
    ///
    /// # Errors
    /// The connection takes no new work.
    pub(crate) fn register(&self, job: Weak<dyn Job>) -> Result<()> {
        self.0.core.connection.work.register(job)
    }

    /// Tells the log and the connection's events that a handler failed.
    pub(crate) fn report(&self, failure: &Arc<HandlerFailure>) {
        self.0.core.report_failure(failure);
    }

    /// Opens another channel on the same connection.
    ///
    /// # Errors
    /// Those of [`Connection::channel`](crate::Connection::channel).
    pub(crate) fn open_channel(&self) -> Result<Channel> {
        let connection = &self.0.core.connection;
        let core = Arc::new(Core::new(connection.clone()));
        let timeout = connection.limits.call_timeout;
        core.open(timeout)?;
        Ok(Channel { handle: Arc::new(Handle(core)), timeout })
    }
}

impl Core {
    pub(in crate::channel) fn report_failure(&self, failure: &Arc<HandlerFailure>) {
        log::error!(target: "leveret::handler", "{failure}");
        let channel = self.gate.channel();
        self.connection.feeds.emit(|| Event::HandlerFailed { channel, failure: failure.clone() });
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Control").field(&self.0.tag).finish()
    }
}
