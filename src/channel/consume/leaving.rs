//! The end of a consumer's handle: the broker is told, and what was not returned goes back.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    queue::{DeliveryQueue, Queued},
    sink::{End, Sink},
};
use crate::{
    channel::{
        acknowledge::{Requeue, Settlement},
        call::Coming,
    },
    connection::outgoing::Urgency,
    error::{Error, Result},
    sync::GivenUp,
};

/// A consumer that was dropped. A coroutine that may not wait any more leaves off where it is, and somebody else goes
/// on from there.
pub(super) struct Leaving {
    pub(super) queue: Arc<DeliveryQueue>,
    pub(super) taken: VecDeque<Queued>,
    /// The cancel was sent.
    pub(super) cancelling: Option<Coming>,
}

impl Leaving {
    pub(super) fn leave(&mut self) -> Result<(), GivenUp> {
        let core = self.queue.core.clone();
        let limit = core.connection.limits.drop_timeout;
        let deadline = Instant::now() + limit;
        if !self.queue.has_ended()
            && core.has_consumer(&Sink::Queue(self.queue.clone()))
            && let Err(error) = self.cancel(limit)
        {
            if let Error::Cancelled | Error::WouldDeadlock = error {
                return Err(GivenUp::Cancelled);
            }
            log::debug!(target: "leveret::channel", "cancelling {} on drop: {error}", self.queue.tag);
        }
        // Nobody comes back for it. So it may go beyond the limit; and what is not cancelled is given nothing back, which
        // would come again and again.
        if !self.queue.was_cancel_sent()
            && core.has_consumer(&Sink::Queue(self.queue.clone()))
            && self.queue.begin_cancel(Duration::ZERO, Urgency::Writer).is_err()
        {
            self.queue.end(End::Cancelled);
            return Ok(());
        }
        self.queue.end(End::Cancelled);
        let mut queued = VecDeque::new();
        self.queue.take(&mut queued, None);
        self.taken.append(&mut queued);
        while let Some(queued) = self.taken.front() {
            for arrived in queued.rest().iter().filter(|_| !queued.pack.no_ack) {
                let back = Settlement::Nack { multiple: false, requeue: Requeue::Yes };
                let left = deadline.saturating_duration_since(Instant::now());
                match core.settle_within(left, arrived.delivery_tag, Some(queued.pack.epoch), back) {
                    Ok(()) | Err(Error::Settled { .. }) => {}
                    Err(Error::Cancelled | Error::WouldDeadlock) => return Err(GivenUp::Cancelled),
                    // The channel is closed, and with it they have gone back already; or it takes nothing at all.
                    Err(_) => return Ok(()),
                }
            }
            self.taken.pop_front();
        }
        Ok(())
    }

    fn cancel(&mut self, limit: Duration) -> Result<()> {
        let queue = &self.queue;
        let deadline = Instant::now().checked_add(limit);
        let _awaiting = queue.core.connection.incoming.awaiting()?;
        let coming = match &self.cancelling {
            Some(coming) => coming,
            None => self.cancelling.insert(queue.begin_cancel(limit, Urgency::Caller)?),
        };
        queue.core.wait_cancelled(coming, limit, deadline)
    }
}
