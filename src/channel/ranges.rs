//! A set of numbers that mostly follow each other.

use std::collections::BTreeMap;

/// A set of numbers, kept as ranges: its size follows the number of gaps, not that of the members.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// First and last of each; they neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl Ranges {
    /// Inserts all from `first` to `last`, both included.
    pub(super) fn insert(&mut self, mut first: u64, mut last: u64) {
        if first > last {
            return;
        }
        if let Some((&before, &end)) = self.ranges.range(..first).next_back()
            && end.saturating_add(1) >= first
        {
            first = before;
        }
        // What is touched becomes a part of it.
        while let Some((&start, &end)) = self.ranges.range(first..=last.saturating_add(1)).next() {
            self.ranges.remove(&start);
            self.count -= end - start + 1;
            last = last.max(end);
        }
        self.ranges.insert(first, last);
        self.count += last - first + 1;
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.ranges.range(..=number).next_back().is_some_and(|(_, &last)| number <= last)
    }

    pub(super) fn len(&self) -> u64 {
        self.count
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Those from `first` to `last`, both included, that are not in it.
    pub(super) fn missing(&self, first: u64, last: u64) -> impl Iterator<Item = u64> + '_ {
        let from = std::iter::once(first).chain(self.ranges.values().map(|end| end + 1));
        let to = self.ranges.keys().copied().chain(std::iter::once(u64::MAX));
        let gaps = from.zip(to).take_while(move |(from, _)| *from <= last);
        gaps.flat_map(move |(from, to)| from.max(first)..to.min(last + 1))
    }

    /// Removes all up to and including `number`.
    pub(super) fn remove_up_to(&mut self, number: u64) {
        while let Some(entry) = self.ranges.first_entry().filter(|entry| *entry.key() <= number) {
            let (first, last) = entry.remove_entry();
            self.count -= last - first + 1;
            self.insert(number + 1, last);
        }
    }

    /// Removes all up to and including `number`, and those that follow it without a gap; returns the last of these, or
    /// `number`.
    pub(super) fn remove_through(&mut self, mut number: u64) -> u64 {
        self.remove_up_to(number);
        if let Some(entry) = self.ranges.first_entry().filter(|entry| *entry.key() == number + 1) {
            number = *entry.get();
        }
        self.remove_up_to(number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Compares with a set of single numbers after each of many random changes.
    #[test]
    fn it_holds_what_a_set_of_single_numbers_holds() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for _ in 0..60 {
                let (first, length) = (random.u64(1..80), random.u64(0..9));
                match random.u8(0..10) {
                    0..7 => {
                        ranges.insert(first, first + length - 1);
                        set.extend(first..first + length);
                    }
                    7..9 => {
                        let end = (first + 1..).find(|next| !set.contains(next)).unwrap() - 1;
                        assert_eq!(ranges.remove_through(first), end);
                        set.retain(|number| *number > end);
                    }
                    _ => {
                        ranges.remove_up_to(first);
                        set.retain(|number| *number > first);
                    }
                }
                assert_eq!((ranges.len(), ranges.is_empty()), (set.len() as u64, set.is_empty()));
                assert!((0..100).all(|number| ranges.contains(number) == set.contains(&number)));
                let missing: Vec<u64> = (first..=90).filter(|number| !set.contains(number)).collect();
                assert!(ranges.missing(first, 90).eq(missing));
                let ranges: Vec<_> = ranges.ranges.iter().collect();
                assert!(ranges.windows(2).all(|pair| pair[0].1 + 1 < *pair[1].0), "{ranges:?}");
            }
        }
    }

    #[test]
    fn numbers_that_follow_each_other_are_one_range() {
        let mut ranges = Ranges::default();
        (2..=1_000_000).for_each(|number| ranges.insert(number, number));
        assert_eq!((ranges.ranges.len(), ranges.len()), (1, 999_999));
        assert_eq!(ranges.remove_through(1), 1_000_000);
        assert!(ranges.is_empty());
    }
}
