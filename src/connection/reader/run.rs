//! What one read brings for one consumer, or for one channel's publisher, is gathered and handed over at once.

use std::{ops::Range, sync::Arc};

use crate::{
    connection::{
        batch::{Arrived, Gathered},
        state::{Confirmation, Inbox},
    },
    protocol::content::Content,
    sync::Waiter,
};

/// After so many deliveries whoever sleeps is woken, also in the middle of what was read.
const WAKE_AFTER: usize = 512;

/// Deliveries in a row to one consumer, or confirms in a row for one channel: only one of both at a time.
#[derive(Default)]
pub(super) struct Run {
    /// The channel and its inbox, as long as nothing but deliveries and confirms came for it in this read.
    target: Option<(u16, Arc<dyn Inbox>)>,
    consumer_tag: Vec<u8>,
    gathered: Gathered,
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

    /// A message that lies whole in the read buffer; see [`Gathered::add`].
    #[inline]
    pub(super) fn whole(
        &mut self,
        buffer: &Arc<Vec<u8>>,
        message: &Range<usize>,
        arrived: impl FnOnce(usize) -> Arrived,
    ) {
        if !self.gathered.fits(message) {
            self.hand_over_deliveries();
        }
        self.gathered.add(buffer, message, arrived);
        if self.gathered.is_full() {
            self.hand_over_deliveries();
        }
    }

    /// A message that was put together from pieces.
    pub(super) fn assembled(&mut self, content: Content, delivery_tag: u64, redelivered: bool) {
        self.hand_over_deliveries();
        self.gathered.put(content, delivery_tag, redelivered);
        self.hand_over_deliveries();
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
        let deliveries = self.gathered.len();
        if deliveries == 0 {
            return;
        }
        if let Some((_, inbox)) = &self.target {
            inbox.deliveries(&self.consumer_tag, &mut self.gathered, &mut self.woken);
        }
        self.gathered.clear();
        self.since_woken += deliveries;
        if self.since_woken >= WAKE_AFTER {
            self.wake();
        }
    }
}
