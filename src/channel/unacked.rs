//! Which tags of a channel's deliveries are still to be settled.

use std::collections::VecDeque;

/// A set of tags. Tags come in ascending order, so it is a short list of words of 64 tags each,
/// lowest first; a word without tags is dropped. Its size follows the number of unsettled deliveries, however
/// long one of them is kept.
#[derive(Debug, Default)]
pub(super) struct Unacked {
    words: VecDeque<Word>,
    count: usize,
}

#[derive(Debug)]
struct Word {
    index: u64,
    tags: u64,
}

impl Unacked {
    pub(super) fn insert(&mut self, tag: u64) {
        let (index, bit) = place(tag);
        let word = match self.words.back_mut() {
            Some(word) if word.index == index => Some(word),
            Some(word) if word.index > index => {
                let at = self.find(index).unwrap_or_else(|at| {
                    self.words.insert(at, Word { index, tags: 0 });
                    at
                });
                self.words.get_mut(at)
            }
            _ => {
                self.words.push_back(Word { index, tags: 0 });
                self.words.back_mut()
            }
        };
        if let Some(word) = word {
            self.count += usize::from(word.tags & bit == 0);
            word.tags |= bit;
        }
    }

    pub(super) fn contains(&self, tag: u64) -> bool {
        let (index, bit) = place(tag);
        self.find(index).is_ok_and(|at| self.words.get(at).is_some_and(|word| word.tags & bit != 0))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Removes a tag; true if it was there.
    pub(super) fn remove(&mut self, tag: u64) -> bool {
        let (index, bit) = place(tag);
        let Ok(at) = self.find(index) else { return false };
        let Some(word) = self.words.get_mut(at) else { return false };
        let found = word.tags & bit != 0;
        self.count -= usize::from(found);
        word.tags &= !bit;
        if word.tags == 0 {
            self.words.remove(at);
        }
        found
    }

    /// Removes all tags up to and including `tag`.
    pub(super) fn remove_up_to(&mut self, tag: u64) {
        self.remove_range(0, tag);
    }

    /// Removes all tags from `first` to `last`, both included.
    pub(super) fn remove_range(&mut self, first: u64, last: u64) {
        let ((first_index, first_bit), (last_index, last_bit)) = (place(first), place(last));
        let start = self.find(first_index).unwrap_or_else(|at| at);
        // Words that are empty now stand side by side: only the first and the last may keep a tag.
        let mut empty = start..start;
        for (at, word) in self.words.iter_mut().enumerate().skip(start) {
            if word.index > last_index {
                break;
            }
            let from = if word.index == first_index { !(first_bit - 1) } else { u64::MAX };
            let to = if word.index == last_index { last_bit | (last_bit - 1) } else { u64::MAX };
            self.count -= (word.tags & from & to).count_ones() as usize;
            word.tags &= !(from & to);
            if word.tags == 0 {
                empty.end = at + 1;
            } else if empty.is_empty() {
                empty = at + 1..at + 1;
            }
        }
        self.words.drain(empty);
    }

    pub(super) fn clear(&mut self) {
        *self = Unacked::default();
    }

    fn find(&self, index: u64) -> Result<usize, usize> {
        // Mostly the oldest are settled first.
        match self.words.front() {
            Some(word) if word.index == index => Ok(0),
            _ => self.words.binary_search_by_key(&index, |word| word.index),
        }
    }
}

fn place(tag: u64) -> (u64, u64) {
    (tag / 64, 1 << (tag % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Compared with an ordinary set, over pseudo-random operations.
    #[test]
    fn behaves_as_a_set() {
        let (mut unacked, mut model) = (Unacked::default(), BTreeSet::new());
        let (mut seed, mut next) = (7u64, 1);
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (choice, tag) = (seed >> 61, (seed >> 20) % (next + 2));
            match choice {
                0..=3 => {
                    unacked.insert(next);
                    model.insert(next);
                    next += 1;
                }
                4..=6 => {
                    unacked.remove(tag);
                    model.remove(&tag);
                }
                _ if tag % 50 == 0 => {
                    unacked.remove_up_to(tag);
                    model.retain(|&known| known > tag);
                }
                _ if tag % 50 == 1 => {
                    let last = tag + (seed >> 40) % 300;
                    unacked.remove_range(tag, last);
                    model.retain(|known| !(tag..=last).contains(known));
                }
                _ => {}
            }
            assert_eq!(unacked.contains(tag), model.contains(&tag));
            assert_eq!((unacked.is_empty(), unacked.count), (model.is_empty(), model.len()));
        }
        assert!(unacked.words.len() <= model.len());
    }

    #[test]
    fn one_old_tag_does_not_make_it_grow() {
        let mut unacked = Unacked::default();
        unacked.insert(1);
        for tag in 2..1_000_000 {
            unacked.insert(tag);
            unacked.remove(tag);
        }
        assert!(unacked.words.len() <= 2);
    }

    #[test]
    fn a_peer_that_counts_backwards_is_no_trouble() {
        let mut unacked = Unacked::default();
        for tag in [u64::MAX, 0, 500, 64, 63] {
            unacked.insert(tag);
            assert!(unacked.contains(tag));
        }
        unacked.remove_up_to(u64::MAX);
        assert!(unacked.is_empty());
    }
}
