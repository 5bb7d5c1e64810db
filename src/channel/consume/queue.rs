//! What the reader has put in for one consumer and the consumer has not taken yet.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::sink::End;
use crate::{
    channel::{
        Core,
        call::Coming,
        delivery::{Delivery, Pack},
    },
    connection::{
        batch::{Arrived, Gathered, Packs},
        outgoing::Urgency,
        state::Recipient,
    },
    error::{Error, Result},
    sync::{Waiter, lock},
};

/// What the reader has put in for one consumer and the consumer has not taken yet.
pub(in crate::channel) struct DeliveryQueue {
    pub(super) core: Arc<Core>,
    pub(super) tag: Box<str>,
    pub(super) no_ack: bool,
    /// Handlers wait for what comes here: a shutdown leaves it to the close of its channel.
    pub(super) for_handlers: AtomicBool,
    /// The broker was asked to send no more.
    cancel_sent: AtomicBool,
    /// A coroutine that was cancelled has been told so.
    pub(super) told_cancelled: AtomicBool,
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    queued: VecDeque<Queued>,
    ended: bool,
    /// The reason for the end, until it was returned.
    reason: Option<Box<Error>>,
    /// The next wait is to end without a delivery.
    interrupted: bool,
    /// The one that waits: a consumer has one owner.
    waiting: Option<Waiter>,
}

/// Deliveries that came together, counted against the connection's buffer until they are all returned.
pub(super) struct Queued {
    pub(super) pack: Arc<Pack>,
    /// Which of its deliveries is the next.
    next: usize,
    size: usize,
}

impl Queued {
    #[inline]
    pub(super) fn next(&mut self) -> Option<Delivery> {
        let place = self.next;
        if place >= self.pack.batch.deliveries.len() {
            return None;
        }
        self.next += 1;
        Some(Delivery::of(self.pack.clone(), place))
    }

    /// The deliveries that were not returned.
    pub(super) fn rest(&self) -> &[Arrived] {
        self.pack.batch.deliveries.get(self.next..).unwrap_or_default()
    }
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

impl Recipient for DeliveryQueue {
    fn deliver(&self, epoch: u32, gathered: &mut Gathered, packs: &mut Packs, woken: &mut Vec<Waiter>) {
        let batch = gathered.keep(packs);
        let size = batch.size();
        let pack = Pack { batch, channel: self.core.clone(), epoch, no_ack: self.no_ack };
        let queued = Queued { pack: Arc::new(pack), next: 0, size };
        self.core.connection.incoming.hold(size);
        let mut state = lock(&self.state);
        if state.ended {
            drop(state);
            if !self.no_ack {
                let deliveries = &queued.pack.batch.deliveries;
                self.core.give_back_late(&self.tag, &self.cancel_sent, epoch, deliveries);
            }
            return;
        }
        state.queued.push_back(queued);
        woken.extend(state.waiting.take());
    }
}

impl DeliveryQueue {
    pub(in crate::channel) fn new(core: Arc<Core>, tag: &str, no_ack: bool) -> DeliveryQueue {
        DeliveryQueue {
            core,
            tag: tag.into(),
            no_ack,
            for_handlers: AtomicBool::new(false),
            cancel_sent: AtomicBool::new(false),
            told_cancelled: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// Moves all that is there to `taken`; leaves the waiter if there is nothing.
    pub(super) fn take(&self, taken: &mut VecDeque<Queued>, waiter: Option<&Waiter>) -> Taken {
        let mut state = lock(&self.state);
        if !state.queued.is_empty() {
            mem::swap(&mut state.queued, taken);
            return Taken::Deliveries;
        }
        if state.ended {
            return Taken::End(state.reason.take().map(|reason| *reason));
        }
        if let Some(waiter) = waiter {
            state.waiting = Some(waiter.clone());
        }
        Taken::Nothing
    }

    pub(super) fn forget_waiter(&self, waiter: &Waiter) {
        lock(&self.state).waiting.take_if(|other| other.is(waiter));
    }

    pub(super) fn is_exhausted(&self) -> bool {
        let state = lock(&self.state);
        state.ended && state.queued.is_empty() && state.reason.is_none()
    }

    /// Ends the wait that is under way, or the next one, without a delivery.
    pub(super) fn interrupt(&self) {
        let mut state = lock(&self.state);
        state.interrupted = true;
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
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
            End::CancelledByServer => {
                Some(Box::new(Error::CancelledByServer { consumer_tag: (*self.tag).into() }))
            }
            End::Lost(cause) => {
                if !self.no_ack {
                    dropped = mem::take(&mut state.queued);
                }
                Some(Box::new(cause))
            }
        };
        let waiting = state.waiting.take();
        drop(state);
        drop(dropped);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// Nobody takes anything any more.
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.state).ended
    }

    pub(super) fn cancel(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(timeout);
        let _awaiting = self.core.connection.incoming.awaiting()?;
        let coming = self.begin_cancel(timeout, Urgency::Caller)?;
        self.core.wait_cancelled(&coming, timeout, deadline)
    }

    pub(super) fn begin_cancel(&self, timeout: Duration, urgency: Urgency) -> Result<Coming> {
        self.core.begin_cancel(&self.tag, &self.cancel_sent, timeout, urgency)
    }

    pub(super) fn was_cancel_sent(&self) -> bool {
        self.cancel_sent.load(Ordering::SeqCst)
    }
}
