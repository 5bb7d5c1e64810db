//! The broker's time: that of the system, and what a test has added to it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Time since the broker was started. It never goes back.
#[derive(Debug)]
pub(super) struct Clock {
    started: Instant,
    /// Nanoseconds that were added: up to 584 years.
    added: AtomicU64,
}

impl Clock {
    pub(super) fn new() -> Clock {
        Clock { started: Instant::now(), added: AtomicU64::new(0) }
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed() + Duration::from_nanos(self.added.load(Ordering::SeqCst))
    }

    /// When the system's clock will show what `now` returns then.
    pub(super) fn instant(&self, time: Duration) -> Instant {
        let left = time.saturating_sub(self.now());
        // Beyond what an `Instant` can hold nobody waits anyway.
        Instant::now().checked_add(left).unwrap_or_else(|| Instant::now() + Duration::from_secs(1 << 30))
    }

    pub(super) fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        let _ = self
            .added
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |added| Some(added.saturating_add(by)));
    }
}
