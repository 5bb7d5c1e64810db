//! How long one goes on writing to a peer that takes little at a time.

use std::time::{Duration, Instant};

/// How long somebody goes on writing while a little is taken; what is left is for the next time, or for somebody else.
pub(crate) struct Stint {
    limit: Duration,
    /// Known once a write was not taken at once.
    end: Option<Instant>,
}

impl Stint {
    pub(crate) fn of(limit: Duration) -> Stint {
        Stint { limit, end: None }
    }

    pub(crate) fn is_over(&mut self) -> bool {
        let now = Instant::now();
        now >= *self.end.get_or_insert(now + self.limit)
    }
}
