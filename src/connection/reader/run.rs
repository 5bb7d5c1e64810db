//! What one read brings for consumers and publishers is gathered for each of them, and handed over together, so that a
//! message costs the same whether it comes alone or among those for others.
//!
//! The order that is kept: what is for one of them comes in its order; deliveries are handed over before confirms; a
//! delivery can be settled from the moment on in which a later one on its channel can be seen, so that an ack of many
//! covers what it must; and before an inline consumer gets a message everything that came before is handed over.

use std::{mem, ops::Range, sync::Arc};

use crate::{
    connection::{
        batch::{Arrived, Gathered, Packs},
        state::{Accepted, Confirmation, Inbox},
    },
    error::Result,
    protocol::content::Content,
    sync::Waiter,
};

/// After so many deliveries they are handed over and whoever sleeps is woken, also in the middle of what was read.
const WAKE_AFTER: usize = 512;

/// Where many take turns, each has got about so many by then: a batch of few would cost more than what is in it.
const EACH: usize = 64;

/// For so many something is gathered at a time. A read has room for few messages to more of them.
const MOST: usize = 4096;

/// The memory of so many is used again.
const SPARE: usize = 16;

/// What has come for each consumer, and for each channel's publisher, since something else came.
#[derive(Default)]
pub(super) struct Run {
    open: Vec<Open>,
    /// The places in `open`, ordered by what is there.
    ordered: Vec<u32>,
    /// Who got something last.
    current: usize,
    /// The places of those who have deliveries, and confirms, that were not handed over.
    with_deliveries: Vec<usize>,
    with_confirmations: Vec<usize>,
    /// So many deliveries were not handed over.
    gathered: usize,
    packs: Packs,
    spare: Vec<Open>,
    /// Those who have got something, to be woken at the end of the read: a wake-up costs more than what it is for.
    woken: Vec<Waiter>,
    since_woken: usize,
}

/// A consumer, or (with an empty tag, which none has) a channel's publisher.
#[derive(Default)]
struct Open {
    channel: u16,
    consumer_tag: Vec<u8>,
    /// The channel's: it is the same as long as nothing but deliveries and confirms came.
    inbox: Option<Arc<dyn Inbox>>,
    /// See [`Inbox::is_immediate`]; `None` until there is somebody else.
    immediate: Option<bool>,
    gathered: Gathered,
    confirmations: Vec<Confirmation>,
    accepted: Option<Accepted>,
}

impl Open {
    #[inline]
    fn is(&self, channel: u16, consumer_tag: &[u8]) -> bool {
        self.channel == channel && self.consumer_tag == consumer_tag
    }

    fn is_immediate(&mut self) -> bool {
        let Open { consumer_tag, inbox, immediate, .. } = self;
        let ask = || inbox.as_ref().is_some_and(|inbox| inbox.is_immediate(consumer_tag));
        *immediate.get_or_insert_with(ask)
    }
}

impl Run {
    /// The channel is known to be open.
    pub(super) fn is_for(&self, channel: u16) -> bool {
        self.open.get(self.current).is_some_and(|open| open.channel == channel)
    }

    /// What comes from now on is for this consumer, or with an empty tag for its channel's publisher; false if the channel
    /// is closed. `inbox` looks the channel up.
    #[inline]
    pub(super) fn turn_to(
        &mut self,
        channel: u16,
        consumer_tag: &[u8],
        inbox: impl FnOnce() -> Result<Option<Arc<dyn Inbox>>>,
    ) -> Result<bool> {
        if self.open.get(self.current).is_some_and(|open| open.is(channel, consumer_tag)) {
            return Ok(true);
        }
        if self.open.len() >= MOST {
            self.end();
        }
        let place = match self.place_of(channel, consumer_tag) {
            Some(place) => place,
            None => {
                let Some(inbox) = inbox()? else { return Ok(false) };
                self.add(channel, consumer_tag, inbox)
            }
        };
        self.turn_to_place(place);
        Ok(true)
    }

    fn place_of(&self, channel: u16, consumer_tag: &[u8]) -> Option<usize> {
        // Where several take turns, it is mostly the one who came next before.
        let next = self.current + 1;
        [if next < self.open.len() { next } else { 0 }]
            .into_iter()
            .find(|place| self.open.get(*place).is_some_and(|open| open.is(channel, consumer_tag)))
            .or_else(|| {
                self.ordered.get(self.search(channel, consumer_tag).ok()?).map(|place| *place as usize)
            })
    }

    fn search(&self, channel: u16, consumer_tag: &[u8]) -> Result<usize, usize> {
        self.ordered.binary_search_by(|place| {
            let open = self.open.get(*place as usize);
            open.map(|open| (open.channel, &open.consumer_tag[..])).cmp(&Some((channel, consumer_tag)))
        })
    }

    fn add(&mut self, channel: u16, consumer_tag: &[u8], inbox: Arc<dyn Inbox>) -> usize {
        let place = self.open.len();
        if let Err(at) = self.search(channel, consumer_tag) {
            self.ordered.insert(at, place as u32);
        }
        let mut open = self.spare.pop().unwrap_or_default();
        open.channel = channel;
        open.consumer_tag.extend_from_slice(consumer_tag);
        open.inbox = Some(inbox);
        self.open.push(open);
        place
    }

    fn turn_to_place(&mut self, place: usize) {
        if self.open.len() > 1 {
            let immediate = |open: Option<&mut Open>| open.is_some_and(Open::is_immediate);
            if immediate(self.open.get_mut(self.current)) || immediate(self.open.get_mut(place)) {
                self.hand_over();
            }
        }
        self.current = place;
        if let Some(open) = self.open.get_mut(place) {
            open.gathered.interrupt();
        }
    }

    /// Everything is handed over, and the channels are to be looked up again: they may be closed by then.
    pub(super) fn end(&mut self) {
        if self.open.is_empty() {
            return;
        }
        self.hand_over();
        let room = SPARE.saturating_sub(self.spare.len());
        for mut open in self.open.drain(..).take(room) {
            open.consumer_tag.clear();
            open.inbox = None;
            open.immediate = None;
            self.spare.push(open);
        }
        self.ordered.clear();
        self.current = 0;
        for places in [&mut self.with_deliveries, &mut self.with_confirmations] {
            places.shrink_to(MOST / 16);
        }
        self.open.shrink_to(MOST / 16);
    }

    /// The end of a read.
    pub(super) fn wake(&mut self) {
        self.woken.drain(..).for_each(Waiter::wake);
        self.since_woken = 0;
    }

    pub(super) fn confirmed(&mut self, next: Confirmation) {
        let Some(open) = self.open.get_mut(self.current) else { return };
        if open.confirmations.is_empty() {
            self.with_confirmations.push(self.current);
        }
        if !open.confirmations.last_mut().is_some_and(|last| last.extend(next)) {
            open.confirmations.push(next);
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
        if self.open.get(self.current).is_some_and(|open| !open.gathered.fits(message)) {
            self.hand_over();
        }
        let Some(open) = self.open.get_mut(self.current) else { return };
        if open.gathered.deliveries().is_empty() {
            self.with_deliveries.push(self.current);
        }
        open.gathered.add(buffer, message, arrived);
        self.gathered += 1;
        if open.gathered.is_full() || self.gathered >= WAKE_AFTER.max(EACH * self.with_deliveries.len()) {
            self.hand_over();
        }
    }

    /// A message that was put together from pieces.
    pub(super) fn assembled(&mut self, content: Content, delivery_tag: u64, redelivered: bool) {
        self.hand_over();
        let Some(open) = self.open.get_mut(self.current) else { return };
        open.gathered.put(content, delivery_tag, redelivered);
        self.with_deliveries.push(self.current);
        self.gathered += 1;
        self.hand_over();
    }

    fn hand_over(&mut self) {
        let Run { open, with_deliveries, with_confirmations, packs, woken, .. } = self;
        // All before any: see the head of this file.
        for place in with_deliveries.iter() {
            let Some(open) = open.get_mut(*place) else { continue };
            let Open { inbox, consumer_tag, gathered, .. } = open;
            open.accepted =
                inbox.as_ref().and_then(|inbox| inbox.accept(consumer_tag, gathered.deliveries()));
        }
        for place in with_deliveries.drain(..) {
            let Some(open) = open.get_mut(place) else { continue };
            if let Some(Accepted { recipient, epoch }) = open.accepted.take() {
                recipient.deliver(epoch, &mut open.gathered, packs, woken);
            }
            open.gathered.clear();
        }
        for place in with_confirmations.drain(..) {
            let Some(Open { inbox, confirmations, .. }) = open.get_mut(place) else { continue };
            if let Some(inbox) = inbox {
                inbox.confirmations(confirmations, woken);
            }
            confirmations.clear();
        }
        self.since_woken += mem::take(&mut self.gathered);
        if self.since_woken >= WAKE_AFTER {
            self.wake();
        }
    }
}

#[cfg(test)]
mod tests;
