//! How often a message was tried, where its queue does not count.
//!
//! A message has no identity of its own, so it is known by all that it says. Identical messages cannot be told apart,
//! and need not be: each one that goes back leaves a count, and each one that comes back takes one.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Mutex,
};

use crate::{Delivery, FieldValue, hooks::lock};

/// How many counts are kept.
const KEPT: usize = 10_000;

/// The header in which a quorum queue counts.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// Headers that a queue changes when a message comes again.
const CHANGING: [&str; 2] = [DELIVERY_COUNT, "x-acquired-count"];

/// The counts of the messages that went back to their queue.
#[derive(Debug, Default)]
pub(super) struct Tries(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// For each message that is known: when it went back, and its count; oldest first.
    counts: HashMap<u64, VecDeque<(u64, u32)>>,
    /// What went back and when, oldest first; also what has come again since, until its turn to be forgotten.
    left: VecDeque<(u64, u64)>,
    kept: usize,
    next: u64,
}

impl Tries {
    /// A message has come: how often it went back before, as far as it is known here.
    pub(super) fn come(&self, delivery: &Delivery) -> u32 {
        if !delivery.redelivered() || lock(&self.0).kept == 0 {
            return 0;
        }
        let known_by = fingerprint(delivery);
        lock(&self.0).take(known_by).unwrap_or(0)
    }

    /// A message goes back, for the `count`th time.
    pub(super) fn goes_back(&self, delivery: &Delivery, count: u32) {
        let known_by = fingerprint(delivery);
        lock(&self.0).leave(known_by, count);
    }
}

impl State {
    fn take(&mut self, known_by: u64) -> Option<u32> {
        let counts = self.counts.get_mut(&known_by)?;
        let (_, count) = counts.pop_front()?;
        if counts.is_empty() {
            self.counts.remove(&known_by);
        }
        self.kept -= 1;
        Some(count)
    }

    fn leave(&mut self, known_by: u64, count: u32) {
        self.counts.entry(known_by).or_default().push_back((self.next, count));
        self.left.push_back((self.next, known_by));
        self.next += 1;
        self.kept += 1;
        while self.left.len() > 2 * KEPT || self.kept > KEPT {
            let Some((when, known_by)) = self.left.pop_front() else { break };
            let oldest = self.counts.get(&known_by).and_then(VecDeque::front);
            if oldest.is_some_and(|(oldest, _)| *oldest == when) {
                self.take(known_by);
            }
        }
    }
}

/// How often a quorum queue says that it has delivered the message before.
pub(super) fn counted_by_queue(delivery: &Delivery) -> Option<u32> {
    let headers = delivery.headers().ok()?;
    let count = headers.get(DELIVERY_COUNT).and_then(FieldValue::as_i64)?;
    Some(u32::try_from(count).unwrap_or(u32::MAX))
}

fn fingerprint(delivery: &Delivery) -> u64 {
    let mut hasher = DefaultHasher::new();
    delivery.exchange().hash(&mut hasher);
    delivery.routing_key_bytes().hash(&mut hasher);
    if let Ok(mut properties) = delivery.properties() {
        if let Some(headers) = &mut properties.headers {
            CHANGING.iter().for_each(|name| drop(headers.remove(name)));
        }
        format!("{properties:?}").hash(&mut hasher);
    }
    delivery.body().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_that_goes_back_leaves_a_count_and_each_that_comes_takes_one() {
        let mut state = State::default();
        state.leave(1, 1);
        state.leave(2, 5);
        state.leave(1, 3);
        assert_eq!((state.take(1), state.take(1), state.take(1)), (Some(1), Some(3), None));
        assert_eq!((state.take(2), state.take(2), state.kept), (Some(5), None, 0));
    }

    #[test]
    fn only_so_many_are_kept_and_the_oldest_go_first() {
        let mut state = State::default();
        for number in 0..KEPT as u64 + 10 {
            state.leave(number, 1);
        }
        assert_eq!(state.kept, KEPT);
        assert_eq!((state.take(9), state.take(10)), (None, Some(1)));
        // One poison message for ever leaves nothing behind.
        let mut state = State::default();
        for count in 1..100_000 {
            state.leave(7, count);
            assert_eq!(state.take(7), Some(count));
        }
        assert!(state.left.len() <= 2 * KEPT && state.counts.is_empty());
    }
}
