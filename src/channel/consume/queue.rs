//! What the reader has put in for one consumer, and what the channel knows of its consumers.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
    vec,
};

use crate::{
    channel::{
        Core,
        call::{Coming, Expected},
        delivery::Pack,
    },
    connection::{
        events::Event,
        outgoing::Urgency,
        state::{Arrived, Batch},
    },
    error::{Error, Result, Scope},
    protocol::{
        frame::write_method,
        spec::{BasicCancel, MethodBody},
        wire::ShortStr,
    },
    sync::{Waiter, lock, wake_all},
};

/// What the channel knows of a consumer.
pub(in crate::channel) struct ConsumerEntry {
    queue: Arc<DeliveryQueue>,
}

impl ConsumerEntry {
    pub(in crate::channel) fn end(&self, end: End) {
        self.queue.end(end);
    }
}

/// How a consumer ended.
#[derive(Debug)]
pub(in crate::channel) enum End {
    /// By the program; what was delivered is still returned.
    Cancelled,
    /// By the broker; what was delivered is still returned and can be acked.
    CancelledByServer,
    /// With its channel. Queued deliveries that were to be acked come again, so they are dropped (those that the
    /// consumer had taken from the queue are still returned); those of a consumer without acks are the only copies,
    /// and are all returned.
    Lost(Error),
}

/// What the reader has put in for one consumer and the consumer has not taken yet.
pub(in crate::channel) struct DeliveryQueue {
    pub(super) core: Arc<Core>,
    pub(super) tag: Arc<str>,
    pub(super) no_ack: bool,
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    queued: VecDeque<Queued>,
    ended: bool,
    /// The reason for the end, until it was returned.
    reason: Option<Error>,
    /// The next wait is to end without a delivery.
    interrupted: bool,
    waiting: Vec<Waiter>,
}

/// Deliveries that came together, counted against the connection's buffer until they are all returned.
pub(super) struct Queued {
    pub(super) pack: Arc<Pack>,
    pub(super) deliveries: vec::IntoIter<Arrived>,
    size: usize,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.pack.channel.connection.incoming.release(self.size);
    }
}

/// What [`DeliveryQueue::take`] found.
pub(super) enum Taken {
    Deliveries,
    Nothing,
    /// The end, and its reason the first time.
    End(Option<Error>),
}

impl DeliveryQueue {
    fn put(&self, epoch: u32, batch: Batch) {
        let size = batch.size();
        let pack = Pack { bytes: batch.bytes, channel: self.core.clone(), epoch, no_ack: self.no_ack };
        let queued = Queued { pack: Arc::new(pack), deliveries: batch.deliveries.into_iter(), size };
        self.core.connection.incoming.hold(size);
        let mut state = lock(&self.state);
        if state.ended {
            drop(state);
            return;
        }
        state.queued.push_back(queued);
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        wake_all(waiting);
    }

    /// Moves all that is there to `taken`; leaves the waiter if there is nothing.
    pub(super) fn take(&self, taken: &mut VecDeque<Queued>, waiter: Option<&Waiter>) -> Taken {
        let mut state = lock(&self.state);
        if !state.queued.is_empty() {
            mem::swap(&mut state.queued, taken);
            return Taken::Deliveries;
        }
        if state.ended {
            return Taken::End(state.reason.take());
        }
        state.waiting.extend(waiter.cloned());
        Taken::Nothing
    }

    pub(super) fn forget_waiter(&self, waiter: &Waiter) {
        lock(&self.state).waiting.retain(|other| !other.is(waiter));
    }

    pub(super) fn is_exhausted(&self) -> bool {
        let state = lock(&self.state);
        state.ended && state.queued.is_empty() && state.reason.is_none()
    }

    /// Ends the wait that is under way, or the next one, without a delivery.
    pub(super) fn interrupt(&self) {
        let mut state = lock(&self.state);
        state.interrupted = true;
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        wake_all(waiting);
    }

    /// There was an interruption since the last time.
    pub(super) fn take_interruption(&self) -> bool {
        mem::take(&mut lock(&self.state).interrupted)
    }

    pub(super) fn end(&self, end: End) {
        let mut state = lock(&self.state);
        if mem::replace(&mut state.ended, true) {
            return;
        }
        let mut dropped = VecDeque::new();
        state.reason = match end {
            End::Cancelled => None,
            End::CancelledByServer => Some(Error::CancelledByServer { consumer_tag: self.tag.clone() }),
            End::Lost(cause) => {
                if !self.no_ack {
                    dropped = mem::take(&mut state.queued);
                }
                Some(cause)
            }
        };
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        drop(dropped);
        wake_all(waiting);
    }

    pub(super) fn cancel(&self, timeout: Duration) -> Result<()> {
        let consumer_tag = ShortStr::new("the consumer tag", &self.tag)?;
        self.core.call_about(&self.tag, timeout, &BasicCancel { consumer_tag, no_wait: false })
    }

    pub(super) fn begin_cancel(&self, timeout: Duration) -> Result<Coming> {
        let method =
            BasicCancel { consumer_tag: ShortStr::new("the consumer tag", &self.tag)?, no_wait: false };
        let expects = Expected::about(BasicCancel::REPLIES, &self.tag);
        self.core.begin(timeout, BasicCancel::NAME, expects, Urgency::Caller, |out, channel| {
            write_method(out, channel, self.core.connection.outgoing.max_frame(), &method)
        })
    }
}

impl Core {
    pub(in crate::channel) fn add_consumer(
        self: &Arc<Core>,
        tag: &str,
        no_ack: bool,
    ) -> Result<Arc<DeliveryQueue>> {
        let queue = Arc::new(DeliveryQueue {
            core: self.clone(),
            tag: tag.into(),
            no_ack,
            state: Mutex::new(QueueState::default()),
        });
        let mut state = self.lock();
        state.check_open()?;
        // Under the lock under which a shutdown looks for consumers: it finds this one, or this finds the shutdown.
        if self.connection.work.is_refusing() {
            return Err(Error::Closed(Scope::Connection));
        }
        if state.consumers.contains_key(tag.as_bytes()) {
            return Err(Error::invalid(format!("consumer tag {tag:?} is in use on this channel")));
        }
        state.consumers.insert(tag.as_bytes().into(), ConsumerEntry { queue: queue.clone() });
        Ok(queue)
    }

    /// Cancels every consumer, and waits for the broker's answers, for at most `limit` altogether.
    pub(in crate::channel) fn cancel_consumers(&self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        let queues: Vec<_> = self.lock().consumers.values().map(|entry| entry.queue.clone()).collect();
        for queue in queues {
            let left = limit.saturating_sub(started.elapsed());
            match queue.cancel(left) {
                // It may have been cancelled meanwhile.
                Err(_) if !self.has_consumer(&queue) => {}
                result => result?,
            }
        }
        Ok(())
    }

    pub(super) fn has_consumer(&self, queue: &Arc<DeliveryQueue>) -> bool {
        let state = self.lock();
        state.consumers.get(queue.tag.as_bytes()).is_some_and(|entry| Arc::ptr_eq(&entry.queue, queue))
    }

    /// The reader's: deliveries for a consumer. Those for a tag that is unknown, or not known any more, are
    /// ignored; the broker gets them back when the channel is closed.
    pub(in crate::channel) fn delivered(&self, consumer_tag: &[u8], batch: Batch) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(entry) = state.consumers.get(consumer_tag) else { return };
        let queue = entry.queue.clone();
        if !queue.no_ack {
            for arrived in &batch.deliveries {
                state.unacked.insert(arrived.delivery_tag);
            }
        }
        let epoch = state.epoch;
        drop(guard);
        queue.put(epoch, batch);
    }

    /// The reader's: the broker has confirmed that a consumer is cancelled.
    pub(in crate::channel) fn consumer_ended(&self, consumer_tag: &[u8]) {
        self.remove_consumer(consumer_tag, End::Cancelled);
    }

    /// The reader's: the broker has cancelled a consumer.
    pub(in crate::channel) fn consumer_cancelled(&self, consumer_tag: &[u8]) {
        self.remove_consumer(consumer_tag, End::CancelledByServer);
        let consumer_tag = || String::from_utf8_lossy(consumer_tag).into();
        let channel = self.gate.channel();
        self.connection.feeds.emit(|| Event::ConsumerCancelled { channel, consumer_tag: consumer_tag() });
    }

    fn remove_consumer(&self, consumer_tag: &[u8], end: End) {
        let entry = self.lock().consumers.remove(consumer_tag);
        if let Some(entry) = entry {
            entry.end(end);
        }
    }
}
