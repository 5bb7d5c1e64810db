//! How long one caller, or the writer thread, goes on writing.

use std::time::{Duration, Instant};

/// How long somebody goes on writing to a peer that takes little at a time; what is left is the writer thread's.
pub(super) struct Stint {
    limit: Duration,
    /// Known once a write was not taken at once.
    end: Option<Instant>,
}

impl Stint {
    pub(super) fn of(limit: Duration) -> Stint {
        Stint { limit, end: None }
    }

    pub(super) fn is_over(&mut self) -> bool {
        let now = Instant::now();
        now >= *self.end.get_or_insert(now + self.limit)
    }
}
