//! Channel ids: which are free, and who has the others. Time is an argument.

use std::time::{Duration, Instant};

/// How long an id is kept back for the answer to a close that has crossed the peer's own.
///
/// Whoever has sent a close and a close-ok has nothing more to say, but the peer's close-ok may still be on its
/// way, and must not be taken for an answer to the next channel with this id: it would hide that one's late error.
/// RabbitMQ answers within milliseconds unless its machine stands still for a while or, hardly ever, when it ends the
/// channel first, never. So this is as long as a whole close may usually take; only a connection that has no other id
/// waits for it.
const KEPT_BACK: Duration = Duration::from_secs(5);

/// The channel ids of one connection, from 1 on. `I` is what a frame on a channel is given to.
pub(super) struct Slots<I> {
    slots: Vec<Slot<I>>,
    max: u16,
}

struct Slot<I> {
    /// `None`: the id was used once; frames that come late for it are ignored.
    inbox: Option<I>,
    /// A close-ok is still to come, and until when the id is kept back for it.
    crossed: Option<Instant>,
}

/// What [`Slots::take`] found.
#[derive(Debug, PartialEq)]
pub(crate) enum Free {
    Id(u16),
    /// No id is free before then, unless the peer answers or a channel is closed.
    Later(Instant),
    /// All are in use.
    None,
}

/// What a channel id in a received frame means.
#[derive(Debug, PartialEq)]
pub(crate) enum Addressee<I> {
    Channel(I),
    /// A channel that was closed.
    Nobody,
    /// A channel that this client never opened.
    Unknown,
}

impl<I: Clone> Slots<I> {
    pub(super) fn new(max: u16) -> Slots<I> {
        Slots { slots: Vec::new(), max }
    }

    /// Gives `inbox` the lowest id that is free.
    pub(super) fn take(&mut self, inbox: I, now: Instant) -> Free {
        let kept_back = |slot: &Slot<I>| slot.crossed.filter(|until| *until > now);
        let free = self.slots.iter().position(|slot| slot.inbox.is_none() && kept_back(slot).is_none());
        let index = match free {
            Some(index) => index,
            None if self.slots.len() < self.max.into() => {
                self.slots.push(Slot { inbox: None, crossed: None });
                self.slots.len() - 1
            }
            None => {
                let closed = self.slots.iter().filter(|slot| slot.inbox.is_none());
                return closed.filter_map(kept_back).min().map_or(Free::None, Free::Later);
            }
        };
        if let Some(slot) = self.slots.get_mut(index) {
            slot.inbox = Some(inbox);
        }
        Free::Id(index as u16 + 1)
    }

    /// The id is free: both sides have closed the channel. Returns the inbox, to be dropped without a lock.
    pub(super) fn release(&mut self, channel: u16) -> Option<I> {
        self.slot(channel)?.inbox.take()
    }

    /// The same after our close and the peer's have crossed: ours is still to be answered.
    pub(super) fn release_crossed(&mut self, channel: u16, now: Instant) -> Option<I> {
        let slot = self.slot(channel)?;
        slot.crossed = Some(now + KEPT_BACK);
        slot.inbox.take()
    }

    /// A close-ok came that the channel which has the id now, if any, has not asked for. True if it answers the
    /// close of an earlier one.
    pub(super) fn stray_close_ok(&mut self, channel: u16) -> bool {
        self.slot(channel).is_some_and(|slot| slot.crossed.take().is_some())
    }

    pub(super) fn addressee(&self, channel: u16) -> Addressee<I> {
        match self.slots.get(usize::from(channel).wrapping_sub(1)) {
            Some(slot) => slot.inbox.clone().map_or(Addressee::Nobody, Addressee::Channel),
            None => Addressee::Unknown,
        }
    }

    /// Everybody.
    pub(super) fn inboxes(&self) -> Vec<(u16, I)> {
        (1..).zip(&self.slots).filter_map(|(id, slot)| Some((id, slot.inbox.clone()?))).collect()
    }

    /// Everybody, for the end of the connection. No id means anything any more.
    pub(super) fn clear(&mut self) -> Vec<I> {
        std::mem::take(&mut self.slots).into_iter().filter_map(|slot| slot.inbox).collect()
    }

    fn slot(&mut self, channel: u16) -> Option<&mut Slot<I>> {
        self.slots.get_mut(usize::from(channel).wrapping_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_id_is_given() {
        let now = Instant::now();
        let mut slots = Slots::new(2);
        assert_eq!(slots.addressee(1), Addressee::Unknown);
        assert_eq!([slots.take('a', now), slots.take('b', now)], [Free::Id(1), Free::Id(2)]);
        assert_eq!(slots.take('c', now), Free::None);
        assert_eq!(slots.addressee(1), Addressee::Channel('a'));
        assert_eq!(slots.release(1), Some('a'));
        assert_eq!(slots.addressee(1), Addressee::Nobody);
        assert_eq!(slots.take('d', now), Free::Id(1));
        assert_eq!(slots.clear(), ['d', 'b']);
    }

    #[test]
    fn an_id_is_kept_back_until_the_answer_or_for_a_while() {
        let now = Instant::now();
        let mut slots = Slots::new(2);
        slots.take('a', now);
        slots.take('b', now);
        assert_eq!(slots.release_crossed(1, now), Some('a'));
        assert_eq!(slots.addressee(1), Addressee::Nobody);
        assert_eq!(slots.take('c', now), Free::Later(now + KEPT_BACK));
        // Another id is free first.
        slots.release(2);
        assert_eq!(slots.take('c', now), Free::Id(2));
        // The answer comes.
        assert!(slots.stray_close_ok(1));
        assert!(!slots.stray_close_ok(1));
        assert_eq!(slots.take('d', now), Free::Id(1));
        // It does not come, or only to the next channel with this id.
        slots.release_crossed(2, now);
        assert_eq!(slots.take('e', now + KEPT_BACK), Free::Id(2));
        assert!(slots.stray_close_ok(2));
        assert!(!slots.stray_close_ok(2));
    }
}
