//! A hash for keys that are numbers of our own or 16 bits wide: nobody can choose them so that they collide, and they
//! are looked up for every frame.

use std::hash::{BuildHasher, Hasher};

/// Hashes numbers with one multiplication.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ByNumber;

/// The numbers so far.
#[derive(Debug, Default)]
pub(super) struct NumberHasher(u64);

/// 2^64 divided by the golden ratio: spreads numbers that follow each other.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl BuildHasher for ByNumber {
    type Hasher = NumberHasher;

    fn build_hasher(&self) -> NumberHasher {
        NumberHasher::default()
    }
}

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        // Tables use the highest bits and the lowest.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(SPREAD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::model::{ChannelId, SessionId};
    use std::collections::HashSet;

    #[test]
    fn neighbours_differ_where_tables_look() {
        let hashes: Vec<u64> = (0..64)
            .flat_map(|session| (0..64).map(move |number| ChannelId { session: SessionId(session), number }))
            .map(|channel| ByNumber.hash_one(channel))
            .collect();
        let distinct =
            |part: fn(u64) -> u64| hashes.iter().map(|hash| part(*hash)).collect::<HashSet<_>>().len();
        assert_eq!(distinct(|hash| hash), 4096);
        assert_eq!(distinct(|hash| hash >> 57), 128);
        assert!(distinct(|hash| hash & 0xfff) > 2048, "{}", distinct(|hash| hash & 0xfff));
    }
}
