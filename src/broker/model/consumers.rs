//! The consumers of a queue and whose turn it is.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

use super::{ChannelId, Name, SessionId};

/// A consumer, as its queue knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Consumer {
    pub(super) channel: ChannelId,
    pub(super) tag: Name,
    pub(super) no_ack: bool,
    pub(super) priority: i64,
    /// Who has come earlier has a smaller one.
    pub(super) attached: u64,
    /// It was cancelled, and all that is left is its place in line.
    pub(super) has_left: bool,
}

impl Consumer {
    fn is(&self, channel: ChannelId, tag: &[u8]) -> bool {
        self.channel == channel && *self.tag == *tag
    }
}

/// Whether a consumer can take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Some,
    /// It has as many as it may have.
    None,
    /// Its channel has as many as it may have.
    NoneInChannel,
}

/// Consumers take turns, those of the highest priority first. One that can take no more is set aside until
/// its channel says that it can, and then stands last in line.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    in_line: BTreeMap<Reverse<i64>, VecDeque<Consumer>>,
    aside: Vec<Consumer>,
    /// Channels that were once found to have no room: none of their consumers is looked at until they say that they have.
    suspended: BTreeSet<ChannelId>,
    count: usize,
    /// Only the holder gets messages.
    single_active: Option<Succession>,
    /// The exclusive consumer, or the active one of a queue with a single active consumer.
    holder: Option<(ChannelId, Name)>,
}

/// Who follows on a single active consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Succession {
    /// The next of the highest priority: classic queues.
    Priority,
    /// Who came first: quorum queues of 3.x.
    Arrival,
    /// The next of the highest priority, who does not wait for it, but only until the active consumer has settled
    /// everything: quorum queues of 4.x.
    TakeOver,
}

impl Consumers {
    pub(super) fn new(single_active: Option<Succession>) -> Consumers {
        Consumers { single_active, ..Consumers::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn is_there(&self, channel: ChannelId, tag: &[u8]) -> bool {
        self.iter().any(|consumer| consumer.is(channel, tag))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Consumer> {
        self.in_line.values().flatten().filter(|consumer| !consumer.has_left).chain(&self.aside)
    }

    /// Whether a consumer that is exclusive, or not, may be added.
    pub(super) fn may_add(&self, exclusive: bool) -> bool {
        if self.single_active.is_some() {
            return !exclusive;
        }
        self.holder.is_none() && !(exclusive && self.count > 0)
    }

    pub(super) fn add(&mut self, consumer: Consumer, exclusive: bool) {
        if exclusive || (self.single_active.is_some() && self.holder.is_none()) {
            self.holder = Some((consumer.channel, consumer.tag.clone()));
        }
        self.count += 1;
        self.line_up(consumer);
    }

    /// Adds a consumer of a quorum queue. One that comes back has its place in line again, if it keeps it; without a place
    /// whoever is full gets none.
    pub(super) fn add_to_quorum(&mut self, consumer: Consumer, keeps_place: bool, is_full: bool) {
        if self.single_active.is_some() {
            return self.add(consumer, false);
        }
        self.count += 1;
        let mut places = self.in_line.values_mut().flatten();
        match places.find(|other| other.has_left && other.is(consumer.channel, &consumer.tag)) {
            Some(place) if keeps_place => *place = consumer,
            _ => {
                self.forget(|other| other.is(consumer.channel, &consumer.tag));
                if is_full { self.aside.push(consumer) } else { self.line_up(consumer) }
            }
        }
    }

    /// A consumer of a quorum queue was cancelled. Its place in line stays until it would be its turn.
    pub(super) fn leave(&mut self, channel: ChannelId, tag: &[u8]) {
        if self.single_active.is_some() {
            self.remove(channel, tag);
            return;
        }
        self.aside.retain(|consumer| !consumer.is(channel, tag));
        let places = self.in_line.values_mut().flatten();
        places.filter(|consumer| consumer.is(channel, tag)).for_each(|consumer| consumer.has_left = true);
        self.count = self.iter().count();
    }

    /// A session ends: nobody will take what its consumers still get.
    pub(super) fn expect_acks(&mut self, session: SessionId) {
        let all = self.in_line.values_mut().flatten().chain(&mut self.aside);
        all.filter(|consumer| consumer.channel.session == session)
            .for_each(|consumer| consumer.no_ack = false);
    }

    /// Those at the head of the line who have left and have nothing to settle any more lose their places.
    pub(super) fn forget_first(&mut self, has_something: impl Fn(&Consumer) -> bool) {
        while let Some(mut line) = self.in_line.first_entry() {
            match line.get().front() {
                None => drop(line.remove()),
                Some(first) if first.has_left && !has_something(first) => drop(line.get_mut().pop_front()),
                Some(_) => return,
            }
        }
    }

    /// Somebody fetches a message, and stands in line for that as a consumer without a priority: those before who have left
    /// lose their places.
    pub(super) fn pass_over(&mut self) {
        self.forget(|consumer| consumer.priority >= 0);
    }

    fn forget(&mut self, whom: impl Fn(&Consumer) -> bool) {
        let stays = |consumer: &Consumer| !(consumer.has_left && whom(consumer));
        self.in_line.values_mut().for_each(|line| line.retain(stays));
    }

    /// Says whether there was such a consumer.
    pub(super) fn remove(&mut self, channel: ChannelId, tag: &[u8]) -> bool {
        let before = self.count;
        self.retain(|consumer| !consumer.is(channel, tag));
        self.count < before
    }

    /// Says whether the channel had a consumer here.
    pub(super) fn remove_channel(&mut self, channel: ChannelId) -> bool {
        let before = self.count;
        self.retain(|consumer| consumer.channel != channel);
        self.count < before
    }

    /// The consumer of the next message, if there is one with room for it.
    pub(super) fn next(&mut self, room: impl Fn(&Consumer) -> Room) -> Option<Consumer> {
        if self.single_active.is_some() {
            let (channel, tag) = self.holder.clone()?;
            if self.takes_over() && self.successor().is_some() {
                return None;
            }
            let holder = self.in_line.values().flatten().find(|consumer| consumer.is(channel, &tag))?.clone();
            if self.can(&holder, &room) {
                return Some(holder);
            }
            self.set_aside(&holder);
            return None;
        }
        loop {
            let mut line = self.in_line.first_entry()?;
            let Some(consumer) = line.get_mut().pop_front() else {
                line.remove();
                continue;
            };
            if consumer.has_left {
                continue;
            }
            if self.can(&consumer, &room) {
                self.line_up(consumer.clone());
                return Some(consumer);
            }
            self.aside.push(consumer);
        }
    }

    fn can(&mut self, consumer: &Consumer, room: &impl Fn(&Consumer) -> Room) -> bool {
        if self.suspended.contains(&consumer.channel) {
            return false;
        }
        let found = room(consumer);
        if found == Room::NoneInChannel {
            self.suspended.insert(consumer.channel);
        }
        found == Room::Some
    }

    /// A channel has room again. Says whether it was known to have none.
    pub(super) fn end_suspension(&mut self, channel: ChannelId) -> bool {
        self.suspended.remove(&channel)
    }

    /// Those of a channel that were set aside and `can` take messages again stand in line again. Says whether
    /// there were any.
    pub(super) fn resume(&mut self, channel: ChannelId, can: impl Fn(&Consumer) -> bool) -> bool {
        let ready = |consumer: &Consumer| consumer.channel == channel && can(consumer);
        let (back, aside): (Vec<_>, Vec<_>) = std::mem::take(&mut self.aside).into_iter().partition(ready);
        self.aside = aside;
        let any = !back.is_empty();
        back.into_iter().for_each(|consumer| self.line_up(consumer));
        any
    }

    /// Everybody goes.
    pub(super) fn clear(&mut self) -> Vec<Consumer> {
        let all = self.iter().cloned().collect();
        *self = Consumers::new(self.single_active);
        all
    }

    /// Whether this consumer would get a message now, as far as the queue is concerned.
    pub(super) fn is_active(&self, channel: ChannelId, tag: &[u8]) -> bool {
        self.single_active.is_none()
            || self.holder.as_ref().is_some_and(|(holder, name)| *holder == channel && **name == *tag)
    }

    pub(super) fn takes_over(&self) -> bool {
        self.single_active == Some(Succession::TakeOver)
    }

    /// Lets a consumer of higher priority follow, unless the active one has something to settle.
    pub(super) fn hand_over(&mut self, is_idle: impl Fn(&Consumer) -> bool) {
        let Some(next) = self.successor().cloned() else { return };
        let Some((channel, tag)) = self.holder.take() else { return };
        let Some(active) = self.iter().find(|consumer| consumer.is(channel, &tag)).cloned() else { return };
        if !is_idle(&active) {
            self.holder = Some((channel, tag));
            return;
        }
        // It waits with the others, as the last of its priority.
        self.in_line.values_mut().for_each(|line| line.retain(|other| *other != active));
        self.aside.retain(|other| *other != active);
        self.line_up(active);
        self.holder = Some((next.channel, next.tag));
    }

    /// Who has a higher priority than the active consumer.
    fn successor(&self) -> Option<&Consumer> {
        let (channel, tag) = self.holder.as_ref()?;
        let active = self.iter().find(|consumer| consumer.is(*channel, tag))?;
        self.in_line.values().flatten().next().filter(|first| first.priority > active.priority)
    }

    fn place(&self, consumer: &Consumer) -> Reverse<i64> {
        let by_arrival = self.single_active == Some(Succession::Arrival);
        Reverse(if by_arrival { 0 } else { consumer.priority })
    }

    fn line_up(&mut self, consumer: Consumer) {
        self.in_line.entry(self.place(&consumer)).or_default().push_back(consumer);
    }

    /// Takes a consumer out of the line until [`resume`](Consumers::resume).
    pub(super) fn set_aside(&mut self, consumer: &Consumer) {
        self.in_line.values_mut().for_each(|line| line.retain(|other| other != consumer));
        self.aside.push(consumer.clone());
    }

    fn retain(&mut self, keep: impl Fn(&Consumer) -> bool) {
        self.in_line.values_mut().for_each(|line| line.retain(&keep));
        self.in_line.retain(|_, line| !line.is_empty());
        self.aside.retain(&keep);
        self.count = self.iter().count();
        let mut suspended = std::mem::take(&mut self.suspended);
        suspended.retain(|channel| self.iter().any(|consumer| consumer.channel == *channel));
        self.suspended = suspended;
        let holder_stays = self
            .holder
            .as_ref()
            .is_some_and(|(channel, tag)| self.iter().any(|consumer| consumer.is(*channel, tag)));
        if !holder_stays {
            let next = self.single_active.and_then(|_| self.iter().next());
            self.holder = next.map(|consumer| (consumer.channel, consumer.tag.clone()));
        }
    }
}
