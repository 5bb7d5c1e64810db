//! The messages of a queue that wait for a consumer, in the order in which they will be delivered.

use std::{cmp::Reverse, collections::VecDeque, time::Duration};

use super::{
    ChannelId, Emulate, Name, Payload,
    arguments::QueueType,
    message::{Fields, Kept},
};

/// A message in one queue.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Its place: the number of its arrival in this queue.
    pub(super) sequence: u64,
    pub(super) message: Kept,
    /// When it expires, on the virtual clock.
    pub(super) expires: Option<Duration>,
    /// It was delivered before.
    pub(super) redelivered: bool,
    /// How often it came back.
    pub(super) returns: u32,
    /// It has waited in a lazy queue.
    pub(super) lazy: bool,
    /// Its priority counts no more.
    pub(super) is_normal: bool,
    /// Who has it from a quorum queue.
    pub(super) holder: Option<Box<Holder>>,
}

/// Who has a message of a quorum queue that is not settled: a consumer, or somebody who fetched it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Holder {
    pub(super) channel: ChannelId,
    /// Of whoever fetched a message: the delivery tag.
    pub(super) tag: Name,
    pub(super) fetched: bool,
    /// Who has come earlier has a smaller one.
    pub(super) attached: u64,
}

impl Holder {
    pub(super) fn is_consumer(&self, channel: ChannelId, tag: &[u8]) -> bool {
        !self.fetched && self.channel == channel && *self.tag == *tag
    }
}

impl Entry {
    pub(super) fn holder_tag(&self) -> Option<&Name> {
        self.holder.as_ref().map(|holder| &holder.tag)
    }

    /// Consumers by their arrival, then those who fetched by their tags, which are texts.
    pub(super) fn holder_place(&self) -> Option<(u64, Option<&Name>)> {
        let holder = self.holder.as_deref()?;
        Some(if holder.fetched { (u64::MAX, Some(&holder.tag)) } else { (holder.attached, None) })
    }

    /// What a consumer of such a queue gets: quorum queues say how often a message was delivered before, and those of
    /// 3.x say so to whoever fetches it also if it never was.
    pub(super) fn delivered(&self, kind: QueueType, emulate: Emulate) -> Payload {
        let mut payload = self.message.payload();
        let is_fetched = self.holder.as_ref().is_some_and(|holder| holder.fetched);
        let says_zero = is_fetched && emulate == Emulate::RabbitMq3;
        if kind == QueueType::Quorum && (self.returns > 0 || says_zero) {
            let mut fields = Fields::decode(&self.message.properties).unwrap_or_else(|_| Fields::empty());
            let mut headers = fields.headers().unwrap_or_default();
            headers.insert("x-delivery-count", i64::from(self.returns));
            headers.sort();
            fields.set_headers(&headers);
            payload.properties = fields.encode();
        }
        payload
    }
}

/// Messages by priority, and within a priority by their place.
#[derive(Debug)]
pub(super) struct Ready {
    /// One list per priority, the lowest first; each in the order of sequences.
    levels: Vec<VecDeque<Entry>>,
    /// What came back to a quorum queue: it goes out first, in the order in which it came back.
    returned: VecDeque<Entry>,
    /// There are two levels that take turns, and so many messages have gone since it was the lower one's.
    turns: Option<u8>,
    length: usize,
    bytes: usize,
}

/// Of three messages in a row so many come from the upper level, if there are some in both.
const UPPER_TURNS: u8 = 2;

/// Priorities above this one belong to the upper level.
const NORMAL_PRIORITY: u8 = 4;

impl Ready {
    /// `max_priority` 0 is a queue without priorities.
    pub(super) fn new(max_priority: u8) -> Ready {
        let levels = (0..=max_priority).map(|_| VecDeque::new()).collect();
        Ready { levels, returned: VecDeque::new(), turns: None, length: 0, bytes: 0 }
    }

    /// The quorum queue of 4.x, where messages of a high priority get two of three turns.
    pub(super) fn with_turns() -> Ready {
        Ready { turns: Some(0), ..Ready::new(1) }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Of bodies.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The message that goes out next.
    pub(super) fn head(&self) -> Option<&Entry> {
        self.returned.front().or_else(|| self.levels.get(self.next_level()?)?.front())
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        let entry = match self.returned.pop_front() {
            Some(entry) => entry,
            None => {
                let level = self.next_level()?;
                if let Some(turn) = &mut self.turns {
                    *turn = if *turn == UPPER_TURNS { 0 } else { *turn + 1 };
                }
                self.levels.get_mut(level)?.pop_front()?
            }
        };
        self.length -= 1;
        self.bytes -= entry.message.body.len();
        Some(entry)
    }

    /// The level whose turn it is. The lower one leaves its turn to an older message of the upper one.
    fn next_level(&self) -> Option<usize> {
        let upper = self.levels.iter().rposition(|level| !level.is_empty())?;
        if self.turns != Some(UPPER_TURNS) {
            return Some(upper);
        }
        let lower = self.levels.iter().position(|level| !level.is_empty())?;
        let came = |level: usize| self.levels.get(level)?.front().map(|entry| entry.sequence);
        Some(if came(lower) < came(upper) { lower } else { upper })
    }

    /// A new message: the last of its priority.
    pub(super) fn push(&mut self, entry: Entry) {
        self.count(&entry);
        if let Some(level) = self.level(&entry) {
            level.push_back(entry);
        }
    }

    /// Messages that were out and take their old places again.
    pub(super) fn put_back(&mut self, mut entries: Vec<Entry>) {
        entries.sort_by_key(|entry| entry.sequence);
        for entry in entries.into_iter().rev() {
            self.count(&entry);
            let Some(level) = self.level(&entry) else { continue };
            // They nearly always belong before everything else.
            if level.front().is_none_or(|front| entry.sequence < front.sequence) {
                level.push_front(entry);
            } else {
                let place = level.partition_point(|other| other.sequence < entry.sequence);
                level.insert(place, entry);
            }
        }
    }

    /// The message that was pushed last, if it is still there.
    pub(super) fn pushed(&mut self, sequence: u64) -> Option<&mut Entry> {
        let last = self.levels.iter_mut().filter_map(VecDeque::back_mut);
        last.into_iter().find(|entry| entry.sequence == sequence)
    }

    /// A message that came back to a quorum queue.
    pub(super) fn put_first(&mut self, entry: Entry) {
        self.count(&entry);
        self.returned.push_back(entry);
    }

    /// Gives the number of messages that were removed.
    pub(super) fn clear(&mut self) -> usize {
        self.levels.iter_mut().for_each(VecDeque::clear);
        self.returned.clear();
        self.turns = self.turns.map(|_| 0);
        self.bytes = 0;
        std::mem::take(&mut self.length)
    }

    /// In the order of delivery; where levels take turns, level by level.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.returned.iter().chain(self.levels.iter().rev().flatten())
    }

    /// Puts messages that were out in the order in which they are given up together: the highest priority first.
    pub(super) fn sort_by_level(&self, entries: &mut [Entry]) {
        if self.turns.is_none() {
            entries.sort_by_key(|entry| Reverse(self.level_of(entry)));
        }
    }

    /// Keeps what `keep` says.
    pub(super) fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        for list in self.levels.iter_mut().chain([&mut self.returned]) {
            list.retain(&keep);
        }
        self.length = self.iter().count();
        self.bytes = self.iter().map(|entry| entry.message.body.len()).sum();
    }

    fn count(&mut self, entry: &Entry) {
        self.length += 1;
        self.bytes += entry.message.body.len();
    }

    fn level(&mut self, entry: &Entry) -> Option<&mut VecDeque<Entry>> {
        let level = self.level_of(entry);
        self.levels.get_mut(level)
    }

    /// Priorities above the highest count as the highest.
    fn level_of(&self, entry: &Entry) -> usize {
        let priority = entry.message.priority.unwrap_or(0);
        let highest = self.levels.len().saturating_sub(1);
        let level = match self.turns {
            Some(_) => usize::from(priority > NORMAL_PRIORITY && !entry.is_normal),
            None => priority.into(),
        };
        level.min(highest)
    }
}

#[cfg(test)]
mod tests;
