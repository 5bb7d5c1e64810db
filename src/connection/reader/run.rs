//! What one read brings for one consumer, or for one channel's publisher, is gathered and handed over at once.

use std::{collections::VecDeque, mem, sync::Arc};

use crate::{
    connection::state::{Arrived, Batch, Confirmation, Inbox},
    sync::Waiter,
};

/// A pack is handed over when it has grown to this size, so that a program which keeps one small message
/// keeps at most so much memory alive with it.
const PACK_SIZE: usize = 16 * 1024;

/// Packs that were handed over are remembered, so that their memory is used again when their messages are gone. As
/// many as one read may fill.
const REMEMBERED: usize = 32;

/// After so many deliveries whoever sleeps is woken, also in the middle of what was read.
const WAKE_AFTER: usize = 512;

/// Deliveries in a row to one consumer, or confirms in a row for one channel: only one of both at a time.
#[derive(Default)]
pub(super) struct Run {
    /// The channel and its inbox, as long as nothing but deliveries and confirms came for it in this read.
    target: Option<(u16, Arc<dyn Inbox>)>,
    consumer_tag: Vec<u8>,
    batch: Batch,
    lent: VecDeque<Arc<Batch>>,
    confirmations: Vec<Confirmation>,
    /// Those who have got something, to be woken at the end of the read: a wake-up costs more than what it is for.
    woken: Vec<Waiter>,
    since_woken: usize,
}

impl Run {
    pub(super) fn is_for(&self, channel: u16) -> bool {
        self.target.as_ref().is_some_and(|(target, _)| *target == channel)
    }

    /// What comes from now on is for this channel.
    pub(super) fn turn_to(&mut self, channel: u16, inbox: Arc<dyn Inbox>) {
        self.end();
        self.target = Some((channel, inbox));
        self.consumer_tag.clear();
    }

    /// What was gathered is handed over, and the channel is to be looked up again: it may be closed by then.
    pub(super) fn end(&mut self) -> Option<Arc<dyn Inbox>> {
        self.hand_over_deliveries();
        self.hand_over_confirmations();
        self.target.take().map(|(_, inbox)| inbox)
    }

    /// The end of a read.
    pub(super) fn wake(&mut self) {
        self.woken.drain(..).for_each(Waiter::wake);
        self.since_woken = 0;
    }

    pub(super) fn confirmed(&mut self, next: Confirmation) {
        self.hand_over_deliveries();
        if !self.confirmations.last_mut().is_some_and(|last| last.extend(next)) {
            self.confirmations.push(next);
        }
    }

    /// What comes from now on is for this consumer.
    pub(super) fn deliver_to(&mut self, consumer_tag: &[u8]) {
        self.hand_over_confirmations();
        if self.consumer_tag != consumer_tag {
            self.hand_over_deliveries();
            self.consumer_tag.clear();
            self.consumer_tag.extend_from_slice(consumer_tag);
        }
    }

    /// A small message, which `append` adds to a pack of them.
    pub(super) fn small(&mut self, append: impl FnOnce(&mut Vec<u8>) -> Arrived) {
        if self.batch.shares().is_some() {
            self.hand_over_deliveries();
        }
        let pack = self.batch.pack();
        let arrived = append(pack);
        let is_full = pack.len() >= PACK_SIZE;
        self.batch.deliveries.push(arrived);
        if is_full {
            self.hand_over_deliveries();
        }
    }

    /// A large message in a buffer of its own.
    pub(super) fn large(&mut self, bytes: Vec<u8>, arrived: Arrived) {
        self.hand_over_deliveries();
        *self.batch.pack() = bytes;
        self.batch.deliveries.push(arrived);
        self.hand_over_deliveries();
    }

    /// A large message that stays in the read buffer.
    pub(super) fn shared(&mut self, buffer: &Arc<Vec<u8>>, arrived: Arrived) {
        if !self.batch.shares().is_some_and(|shared| Arc::ptr_eq(shared, buffer)) {
            self.hand_over_deliveries();
            self.batch.share(buffer.clone());
        }
        self.batch.deliveries.push(arrived);
    }

    fn hand_over_confirmations(&mut self) {
        if self.confirmations.is_empty() {
            return;
        }
        if let Some((_, inbox)) = &self.target {
            inbox.confirmations(&self.confirmations, &mut self.woken);
        }
        self.confirmations.clear();
    }

    fn hand_over_deliveries(&mut self) {
        if self.batch.deliveries.is_empty() {
            return;
        }
        let Some((_, inbox)) = &self.target else { return self.batch.clear() };
        let (bytes, deliveries) = (self.batch.pack().len().min(PACK_SIZE), self.batch.deliveries.len());
        let free = self.lent.iter_mut().position(|lent| Arc::get_mut(lent).is_some());
        let mut batch = free.and_then(|free| self.lent.remove(free)).unwrap_or_default();
        if let Some(batch) = Arc::get_mut(&mut batch) {
            batch.clear();
            mem::swap(batch, &mut self.batch);
        }
        inbox.deliveries(&self.consumer_tag, &batch, &mut self.woken);
        if batch.is_pack() {
            if self.lent.len() == REMEMBERED {
                self.lent.pop_front();
            }
            self.lent.push_back(batch);
        }
        // The next batch of a stream will be about as large as this one.
        self.batch.pack().reserve(bytes);
        self.batch.deliveries.reserve(deliveries);
        self.since_woken += deliveries;
        if self.since_woken >= WAKE_AFTER {
            self.wake();
        }
    }
}
