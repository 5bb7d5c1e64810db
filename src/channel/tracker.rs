//! Which publishes of a channel the broker has confirmed. Pure: no lock, no clock, no waiting.
//!
//! Publishes are numbered in the order in which they stand on the wire; the broker acks and nacks these numbers
//! one by one or up to one, in any order. Everything here goes by number, never by counting.
//!
//! The broker counts anew when the channel is opened again. Here every publish keeps an *id* of its own, so that
//! nothing of the old channel is ever taken for something of the new one.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{confirm::Outcome, ranges::Ranges};
use crate::{
    connection::state::Confirmation,
    error::{Error, Returned},
};

/// How many failures are kept for `wait_for_confirms` when nobody asks; the others are only counted.
const KEPT_FAILURES: usize = 1000;

/// How many bytes of returned messages are kept with them.
const KEPT_BYTES: usize = 16 * 1024 * 1024;

/// The publishes of one channel.
///
/// An ordinary publish, and an ack in its turn, change a number and nothing else.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    /// The id of the last publish.
    published: u64,
    /// The last id before the broker began to count anew.
    counted_from: u64,
    /// Everything up to this id is settled.
    settled: u64,
    /// What is settled beyond that: not the one that follows.
    settled_beyond: Ranges,
    /// Mandatory publishes that are outstanding, oldest first: only these can be returned.
    mandatory: VecDeque<Mandatory>,
    /// The outstanding publishes about which nobody wants to know in particular.
    unwatched: Ranges,
    /// What became of those that are watched and not outstanding any more. An ack is not kept: what was published and
    /// is neither outstanding nor here was acked.
    outcomes: HashMap<u64, Outcome>,
    failures: Failures,
}

/// How a publish is known: here, and to the broker and the user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) id: u64,
    /// Counted from 1 since the channel was put into confirm mode; 0 for a publish that is not confirmed.
    pub(super) number: u64,
}

/// Hashes of a message: a return does not say which publish it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// Of exchange, routing key and body.
    pub(super) message: u64,
    /// Brokers may change these: RabbitMQ takes a `BCC` header out.
    pub(super) properties: u64,
}

#[derive(Debug)]
struct Mandatory {
    id: u64,
    fingerprint: Fingerprint,
    returned: Option<Arc<Returned>>,
}

/// What went wrong, until everybody was told who wants to know.
///
/// A failure is reported once, but to all reports that were under way when it happened: of two threads that wait
/// for everything to be confirmed, none may believe that it was.
#[derive(Debug, Default)]
struct Failures {
    kept: VecDeque<Failure>,
    /// The place of the next one in the order of all.
    next: u64,
    /// How many were not kept for want of room.
    more: u64,
    /// Everything before this has been reported.
    told: Mark,
    /// Reports under way: what each begins with.
    reports: Vec<Mark>,
}

#[derive(Debug)]
struct Failure {
    place: u64,
    id: u64,
    number: u64,
    outcome: Outcome,
}

/// Where a report begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    place: u64,
    more: u64,
}

impl Failures {
    fn push(&mut self, id: u64, number: u64, outcome: Outcome) {
        let bytes = |outcome: &Outcome| match outcome {
            Outcome::Returned(returned) => returned.body.len(),
            _ => 0,
        };
        let size = bytes(&outcome);
        let kept = if size > 0 { self.kept.iter().map(|failure| bytes(&failure.outcome)).sum() } else { 0 };
        if self.kept.len() < KEPT_FAILURES && (kept == 0 || kept + size <= KEPT_BYTES) {
            self.kept.push_back(Failure { place: self.next, id, number, outcome });
            self.next += 1;
        } else {
            self.more += 1;
        }
    }

    fn begin(&mut self) -> Mark {
        self.reports.push(self.told);
        self.told
    }

    fn end(&mut self, mark: Mark, and_forget: bool) -> (Vec<(u64, Outcome)>, u64) {
        if let Some(place) = self.reports.iter().position(|other| *other == mark) {
            self.reports.swap_remove(place);
        }
        let failures = self.kept.iter().filter(|failure| failure.place >= mark.place);
        let failures = failures.map(|failure| (failure.number, failure.outcome.clone())).collect();
        if and_forget {
            self.told = Mark { place: self.next, more: self.more };
        }
        let wanted = self.reports.iter().map(|report| report.place).min().unwrap_or(self.told.place);
        self.kept.retain(|failure| failure.place >= wanted);
        (failures, self.more - mark.more)
    }
}

impl Tracker {
    /// All ids up to this one are given to publishes.
    pub(super) fn published_up_to(&mut self, id: u64) {
        self.published = self.published.max(id);
    }

    /// What is special about a publish: it is mandatory, or is not watched. Somebody has an eye on the
    /// [`outcome`](Tracker::outcome) of every other one, and will [`forget`](Tracker::forget) it.
    pub(super) fn note(&mut self, id: u64, fingerprint: Option<Fingerprint>, watched: bool) {
        self.published_up_to(id);
        if let Some(fingerprint) = fingerprint {
            self.mandatory.push_back(Mandatory { id, fingerprint, returned: None });
        }
        if !watched {
            self.unwatched.insert(id, id);
        }
    }

    fn number(&self, id: u64) -> u64 {
        id - self.counted_from
    }

    /// The id of the last publish.
    pub(super) fn published(&self) -> u64 {
        self.published
    }

    pub(super) fn outstanding(&self) -> u64 {
        self.published - self.settled - self.settled_beyond.len()
    }

    pub(super) fn is_outstanding(&self, id: u64) -> bool {
        self.settled < id && !self.settled_beyond.contains(id)
    }

    /// Something up to `id` is outstanding.
    pub(super) fn is_waiting_for(&self, id: u64) -> bool {
        self.settled < id
    }

    /// Everything up to this id is settled.
    pub(super) fn settled_up_to(&self) -> u64 {
        self.settled
    }

    /// The broker has settled some publishes. Numbers that are not outstanding are ignored.
    pub(super) fn settle(&mut self, confirmation: Confirmation) {
        let Confirmation { first, last, multiple, acked } = confirmation;
        let id = |number| self.counted_from.saturating_add(number);
        let (first, last) = match (multiple, last) {
            (true, 0) => (0, u64::MAX),
            (true, last) => (0, id(last)),
            (false, last) => (id(first), id(last)),
        };
        let (first, last) = (first.max(self.settled + 1), last.min(self.published));
        if acked && self.mandatory.is_empty() {
            self.mark_settled(first, last);
        } else {
            self.resolve_all(first, last, &if acked { Outcome::Acked } else { Outcome::Nacked });
        }
    }

    fn mark_settled(&mut self, first: u64, last: u64) {
        if first > self.settled + 1 {
            self.settled_beyond.insert(first, last);
        } else if last > self.settled {
            self.settled = self.settled_beyond.remove_through(last);
            self.unwatched.remove_up_to(self.settled);
        }
    }

    /// What became of a publish that is watched; `None` while it is outstanding. Whoever asks is told, and may ask again
    /// until it is forgotten.
    pub(super) fn outcome(&mut self, id: u64) -> Option<Outcome> {
        if self.is_outstanding(id) {
            return None;
        }
        let Some(outcome) = self.outcomes.get(&id) else { return Some(Outcome::Acked) };
        self.failures.kept.retain(|failure| failure.id != id);
        Some(outcome.clone())
    }

    /// Nobody will ask for the outcome of this publish any more.
    pub(super) fn forget(&mut self, id: u64) {
        if self.is_outstanding(id) {
            self.unwatched.insert(id, id);
        }
        self.outcomes.remove(&id);
    }

    /// Some publishes that are watched have an outcome that is not an ack.
    pub(super) fn has_outcomes(&self) -> bool {
        !self.outcomes.is_empty()
    }

    /// The broker has returned a message: that of the oldest outstanding publish with this fingerprint which
    /// was not returned yet, or else of one that differs only in the properties. Gives it back when there is none.
    pub(super) fn returned(
        &mut self,
        fingerprint: Fingerprint,
        returned: Arc<Returned>,
    ) -> Option<Arc<Returned>> {
        let mut similar = None;
        for (place, mandatory) in self.mandatory.iter().enumerate() {
            if mandatory.returned.is_some() || mandatory.fingerprint.message != fingerprint.message {
                continue;
            }
            similar = similar.or(Some(place));
            if mandatory.fingerprint == fingerprint {
                similar = Some(place);
                break;
            }
        }
        match similar.and_then(|place| self.mandatory.get_mut(place)) {
            Some(mandatory) => {
                mandatory.returned = Some(returned);
                None
            }
            None => Some(returned),
        }
    }

    /// The channel is gone: nothing more will be heard of what is outstanding.
    pub(super) fn lose(&mut self, cause: &Error) {
        self.resolve_all(self.settled + 1, self.published, &Outcome::Unknown(cause.clone()));
    }

    /// The broker counts anew, on a newly opened channel. Failures that nobody was told stay.
    pub(super) fn restart(&mut self) {
        self.counted_from = self.published;
    }

    /// A report begins, to end with [`end_report`](Tracker::end_report).
    pub(super) fn begin_report(&mut self) -> Mark {
        self.failures.begin()
    }

    /// The failures that nobody was told when this report began, by number, and how many there were beyond those
    /// that are kept. Without `and_forget` later reports have them as well.
    pub(super) fn end_report(&mut self, mark: Mark, and_forget: bool) -> (Vec<(u64, Outcome)>, u64) {
        self.failures.end(mark, and_forget)
    }

    /// Takes the first failure that is a return.
    pub(super) fn take_returned(&mut self) -> Option<Arc<Returned>> {
        let kept = &mut self.failures.kept;
        let place = kept.iter().position(|failure| matches!(failure.outcome, Outcome::Returned(_)))?;
        match kept.remove(place)?.outcome {
            Outcome::Returned(returned) => Some(returned),
            _ => None,
        }
    }

    /// The numbers that are outstanding up to the one with the id `last`.
    pub(super) fn outstanding_up_to(&self, last: u64) -> impl Iterator<Item = u64> + '_ {
        self.settled_beyond.missing(self.settled + 1, last).map(|id| self.number(id))
    }

    /// Settles what is outstanding from `first` to `last`.
    fn resolve_all(&mut self, first: u64, last: u64, outcome: &Outcome) {
        let settled_beyond = std::mem::take(&mut self.settled_beyond);
        for id in settled_beyond.missing(first, last) {
            self.resolve(id, outcome.clone());
        }
        self.settled_beyond = settled_beyond;
        self.mark_settled(first, last);
    }

    fn resolve(&mut self, id: u64, outcome: Outcome) {
        // A return that arrived decides, whatever came after it.
        let returned = self.take_mandatory(id).and_then(|mandatory| mandatory.returned);
        let outcome = returned.map_or(outcome, Outcome::Returned);
        if matches!(outcome, Outcome::Acked) {
            return;
        }
        self.failures.push(id, self.number(id), outcome.clone());
        if !self.unwatched.contains(id) {
            self.outcomes.insert(id, outcome);
        }
    }

    fn take_mandatory(&mut self, id: u64) -> Option<Mandatory> {
        // Sorted by id.
        let place = self.mandatory.binary_search_by_key(&id, |mandatory| mandatory.id).ok()?;
        self.mandatory.remove(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned() -> Arc<Returned> {
        Arc::new(Returned::default())
    }

    fn print(message: u64) -> Fingerprint {
        Fingerprint { message, properties: 0 }
    }

    fn publish(tracker: &mut Tracker, fingerprint: Option<Fingerprint>, watched: bool) -> u64 {
        let id = tracker.published() + 1;
        tracker.note(id, fingerprint, watched);
        id
    }

    fn watch(tracker: &mut Tracker, fingerprint: Option<Fingerprint>) -> u64 {
        publish(tracker, fingerprint, true)
    }

    fn settle(tracker: &mut Tracker, number: u64, multiple: bool, acked: bool) {
        tracker.settle(Confirmation { first: number, last: number, multiple, acked });
    }

    fn outcomes(tracker: &mut Tracker, ids: &[u64]) -> Vec<Option<Outcome>> {
        let mut ask = |id| {
            let outcome = tracker.outcome(id);
            if outcome.is_some() {
                tracker.forget(id);
            }
            outcome
        };
        ids.iter().map(|id| ask(*id)).collect()
    }

    fn report(tracker: &mut Tracker) -> (Vec<(u64, Outcome)>, u64) {
        let mark = tracker.begin_report();
        tracker.end_report(mark, true)
    }

    /// Row 63: of returned messages that nobody asks for only some bytes are kept; the rest is counted.
    #[test]
    fn few_bytes_of_returned_messages_are_kept() {
        let mut tracker = Tracker::default();
        for number in 1..=10 {
            publish(&mut tracker, Some(print(number)), false);
            let body = vec![0; KEPT_BYTES / 4];
            tracker.returned(print(number), Arc::new(Returned { body, ..Returned::default() }));
            settle(&mut tracker, number, false, true);
        }
        let (failures, more) = report(&mut tracker);
        assert_eq!((failures.len(), more), (4, 6));
        // One at least, whatever its size.
        publish(&mut tracker, Some(print(11)), false);
        let body = vec![0; 2 * KEPT_BYTES];
        tracker.returned(print(11), Arc::new(Returned { body, ..Returned::default() }));
        settle(&mut tracker, 11, false, true);
        assert_eq!(report(&mut tracker).0.len(), 1);
    }

    /// Row 62: single, multiple, out of order, multiple then single; attributed by tag.
    #[test]
    fn acks_are_attributed_by_number_in_any_order() {
        let mut tracker = Tracker::default();
        let handles: Vec<_> = (0..6).map(|_| watch(&mut tracker, None)).collect();
        settle(&mut tracker, 4, false, false);
        settle(&mut tracker, 3, true, true);
        settle(&mut tracker, 2, false, false);
        settle(&mut tracker, 99, false, true);
        let seen = outcomes(&mut tracker, &handles);
        assert!(matches!(
            &seen[..],
            [
                Some(Outcome::Acked),
                Some(Outcome::Acked),
                Some(Outcome::Acked),
                Some(Outcome::Nacked),
                None,
                None
            ]
        ));
        assert_eq!(tracker.outstanding(), 2);
        assert!(tracker.is_waiting_for(5) && !tracker.is_waiting_for(4));
        settle(&mut tracker, 0, true, true);
        assert_eq!(tracker.outstanding(), 0);
    }

    /// Row 62: a return belongs to its own publish.
    #[test]
    fn a_return_belongs_to_the_oldest_publish_of_the_same_message() {
        let mut tracker = Tracker::default();
        let handles: Vec<_> =
            [Some(7), None, Some(8), Some(7)].map(|message| watch(&mut tracker, message.map(print))).into();
        assert!(tracker.returned(print(8), returned()).is_none());
        assert!(tracker.returned(print(7), returned()).is_none());
        assert!(tracker.returned(print(9), returned()).is_some(), "of a message that was not published");
        settle(&mut tracker, 4, true, true);
        let seen = outcomes(&mut tracker, &handles);
        assert!(matches!(
            &seen[..],
            [
                Some(Outcome::Returned(_)),
                Some(Outcome::Acked),
                Some(Outcome::Returned(_)),
                Some(Outcome::Acked)
            ]
        ));
        assert!(tracker.mandatory.is_empty() && tracker.unwatched.is_empty() && tracker.outcomes.is_empty());
    }

    /// Row 62: properties decide only between messages that are the same otherwise.
    #[test]
    fn a_return_whose_properties_were_changed_finds_its_publish() {
        let mut tracker = Tracker::default();
        let of = |message, properties| Fingerprint { message, properties };
        let handles: Vec<_> =
            [of(7, 1), of(7, 2), of(8, 3)].map(|fingerprint| watch(&mut tracker, Some(fingerprint))).into();
        assert!(tracker.returned(of(7, 2), returned()).is_none());
        assert!(tracker.returned(of(8, 99), returned()).is_none());
        assert!(tracker.returned(of(8, 3), returned()).is_some(), "it has come back already");
        settle(&mut tracker, 3, true, true);
        let seen = outcomes(&mut tracker, &handles);
        assert!(matches!(
            &seen[..],
            [Some(Outcome::Acked), Some(Outcome::Returned(_)), Some(Outcome::Returned(_))]
        ));
    }

    /// Row 61: what was lost is listed, also after the channel was opened again.
    #[test]
    fn what_is_lost_is_a_failure_until_somebody_is_told() {
        let mut tracker = Tracker::default();
        for id in 1..=2 {
            assert_eq!(publish(&mut tracker, None, false), id);
        }
        settle(&mut tracker, 1, false, true);
        tracker.lose(&Error::WouldBlock);
        tracker.restart();
        assert_eq!(publish(&mut tracker, None, false), 3);
        let (failures, more) = report(&mut tracker);
        assert!(matches!(&failures[..], [(2, Outcome::Unknown(Error::WouldBlock))]) && more == 0);
        assert!(report(&mut tracker).0.is_empty());
        settle(&mut tracker, 1, true, false);
        assert!(matches!(&report(&mut tracker).0[..], [(1, Outcome::Nacked)]));
    }

    /// Row 61: whoever was waiting when something failed hears of it, and nobody hears of it later.
    #[test]
    fn a_failure_is_reported_to_all_who_were_waiting() {
        let mut tracker = Tracker::default();
        let (first, second) = (tracker.begin_report(), tracker.begin_report());
        let id = watch(&mut tracker, None);
        publish(&mut tracker, None, false);
        settle(&mut tracker, 2, true, false);
        assert_eq!(tracker.end_report(first, true).0.len(), 2);
        let third = tracker.begin_report();
        assert!(matches!(tracker.outcome(id), Some(Outcome::Nacked)));
        assert!(matches!(&tracker.end_report(second, true).0[..], [(2, Outcome::Nacked)]));
        assert!(tracker.end_report(third, true).0.is_empty());
        assert!(tracker.failures.kept.is_empty() && tracker.failures.reports.is_empty());
    }

    /// Row 63: that nobody asks for a publish is known until that publish itself is settled.
    #[test]
    fn the_outcome_of_an_unwatched_publish_is_not_kept() {
        let mut tracker = Tracker::default();
        for _ in 1..=3 {
            publish(&mut tracker, None, false);
        }
        settle(&mut tracker, 1, false, true);
        settle(&mut tracker, 3, true, false);
        assert!(tracker.outcomes.is_empty() && tracker.unwatched.is_empty());
        assert_eq!(report(&mut tracker).0.len(), 2);
    }

    /// Row 63: memory stays flat, whatever is dropped and whatever fails.
    #[test]
    fn nothing_grows_with_the_number_of_publishes() {
        let mut tracker = Tracker::default();
        for number in 1..=100_000 {
            let id = watch(&mut tracker, Some(print(1)));
            tracker.forget(id);
            if number % 100 == 0 {
                settle(&mut tracker, number, true, true);
            }
        }
        assert!(tracker.unwatched.is_empty() && tracker.outcomes.is_empty() && tracker.mandatory.is_empty());
        for _ in 0..10_000 {
            let number = publish(&mut tracker, None, false);
            settle(&mut tracker, number, false, false);
        }
        let (failures, more) = report(&mut tracker);
        assert_eq!((failures.len(), more), (KEPT_FAILURES, 10_000 - KEPT_FAILURES as u64));
    }
}
