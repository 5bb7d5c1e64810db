//! Waiting in a coroutine of `may`. What is particular about it:
//!
//! - A cancelled coroutine may not wait any more: every wait ends at once. We are told so ([`ParkError::Canceled`])
//!   instead of being unwound, so that the channel is left as it is after a timeout.
//! - A coroutine that is unwinding must not wait: the count of panics belongs to the thread, which would go on with
//!   other coroutines.
//! - Timeouts have whole milliseconds, and below one never end. A timer of an earlier wait may end a later one.
//! - A [`Blocker`] that is dropped while `may` is still busy with it makes the coroutine yield, and a cancelled one
//!   unwind before that is over. So that of a cancelled one is kept for a while: see [`retire`].
//! - A coroutine whose timeout has passed is resumed on the timer's thread, the only one; all other timeouts wait
//!   until it waits again.

use std::{
    collections::VecDeque,
    io,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub(crate) use may::coroutine::is_coroutine;
use may::{
    coroutine::{Builder, JoinHandle, ParkError, yield_now},
    sync::Blocker,
};

use super::GivenUp;
use crate::error::{Error, Result};

/// The longest timeout that the timer is given; a longer wait just goes on after it.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Where one coroutine sleeps during one wait.
#[derive(Debug, Clone)]
pub(crate) struct Parking(Arc<Blocker>);

impl Parking {
    /// `None` when the caller is a thread.
    pub(super) fn of_caller() -> Option<Parking> {
        is_coroutine().then(|| Parking(Arc::new(Blocker::new(true))))
    }

    /// Sleeps until woken, at most `limit`, which is not zero.
    pub(super) fn park(&self, limit: Option<Duration>) -> Result<(), GivenUp> {
        if thread::panicking() {
            return Err(GivenUp::Cancelled);
        }
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        // It yields first while a wait before is being finished, and a cancelled coroutine unwinds from there.
        let parked = panic::catch_unwind(AssertUnwindSafe(|| self.0.park(limit.map(whole_milliseconds))));
        match parked.unwrap_or(Err(ParkError::Canceled)) {
            Ok(()) => Ok(()),
            Err(ParkError::Canceled) => {
                retire(self.0.clone());
                Err(GivenUp::Cancelled)
            }
            Err(ParkError::Timeout) => {
                // To a worker thread. It unwinds when the coroutine was cancelled, from here and to here.
                panic::catch_unwind(yield_now).map_err(|_| GivenUp::Cancelled)?;
                let passed = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                if passed { Err(GivenUp::TooLate) } else { Ok(()) }
            }
        }
    }

    pub(super) fn is(&self, other: &Parking) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn wake(self) {
        self.0.unpark();
    }
}

/// The blockers of cancelled waits, and since when.
static RETIRED: Mutex<VecDeque<(Instant, Arc<Blocker>)>> = Mutex::new(VecDeque::new());

/// How long `may` may be busy with a blocker that it has let go: for the rest of a function, unless the system takes
/// the processor away from it just there.
const BUSY_AT_MOST: Duration = Duration::from_secs(1);

/// Keeps a blocker for a while, and drops those that were kept long enough.
fn retire(blocker: Arc<Blocker>) {
    let now = Instant::now();
    let mut retired = super::lock(&RETIRED);
    let done = retired.iter().take_while(|(since, _)| now - *since > BUSY_AT_MOST).count();
    let old: Vec<_> = retired.drain(..done).collect();
    retired.push_back((now, blocker));
    drop(retired);
    drop(old);
}

/// Tells one coroutine from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id(u64);

may::coroutine_local! {
    static ID: u64 = {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }
}

impl Id {
    /// `None` when the caller is a thread.
    pub(super) fn of_caller() -> Option<Id> {
        is_coroutine().then(|| ID.with(|id| Id(*id)))
    }
}

/// Starts a coroutine with so many bytes of stack.
///
/// # Errors
/// There is no memory for its stack, or the system allows no more mappings.
pub(crate) fn spawn(stack: usize, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let builder = Builder::new().stack_size(stack / size_of::<usize>());
    // It panics where it finds no memory.
    panic::catch_unwind(AssertUnwindSafe(|| may::go!(builder, work)))
        .unwrap_or_else(|_| Err(io::ErrorKind::OutOfMemory.into()))
        .map_err(|error| Error::io("starting a thread", error))
}

/// Rounded up.
fn whole_milliseconds(limit: Duration) -> Duration {
    let milliseconds = limit.as_nanos().div_ceil(1_000_000);
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(u64::MAX)).min(LONGEST)
}
