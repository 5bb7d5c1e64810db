//! The messages of a queue that wait for a consumer, in the order in which they will be delivered.

use std::{collections::VecDeque, time::Duration};

use super::{
    Payload,
    arguments::QueueType,
    message::{Fields, Kept, sorted},
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
}

impl Entry {
    /// What a consumer of such a queue gets: quorum queues say how often a message was delivered before.
    pub(super) fn delivered(&self, kind: QueueType) -> Payload {
        let mut payload = self.message.payload();
        if kind == QueueType::Quorum && self.returns > 0 {
            let mut fields = Fields::decode(&self.message.properties).unwrap_or_else(|_| Fields::empty());
            let mut headers = fields.headers().unwrap_or_default();
            headers.insert("x-delivery-count", i64::from(self.returns));
            fields.set_headers(&sorted(headers));
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
    length: usize,
    bytes: usize,
}

impl Ready {
    /// `max_priority` 0 is a queue without priorities.
    pub(super) fn new(max_priority: u8) -> Ready {
        let levels = (0..=max_priority).map(|_| VecDeque::new()).collect();
        Ready { levels, returned: VecDeque::new(), length: 0, bytes: 0 }
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
        self.returned.front().or_else(|| self.levels.iter().rev().find_map(VecDeque::front))
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        let entry = self
            .returned
            .pop_front()
            .or_else(|| self.levels.iter_mut().rev().find_map(VecDeque::pop_front))?;
        self.length -= 1;
        self.bytes -= entry.message.body.len();
        Some(entry)
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

    /// A message that came back to a quorum queue.
    pub(super) fn put_first(&mut self, entry: Entry) {
        self.count(&entry);
        self.returned.push_back(entry);
    }

    /// Gives the number of messages that were removed.
    pub(super) fn clear(&mut self) -> usize {
        self.levels.iter_mut().for_each(VecDeque::clear);
        self.returned.clear();
        self.bytes = 0;
        std::mem::take(&mut self.length)
    }

    /// In the order of delivery.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.returned.iter().chain(self.levels.iter().rev().flatten())
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

    /// Priorities above the highest count as the highest.
    fn level(&mut self, entry: &Entry) -> Option<&mut VecDeque<Entry>> {
        let highest = self.levels.len().saturating_sub(1);
        self.levels.get_mut(usize::from(entry.message.priority.unwrap_or(0)).min(highest))
    }
}

#[cfg(test)]
mod tests;
