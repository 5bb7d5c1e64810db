//! Waiting: the only place that knows how a caller sleeps and is woken, and whether it is a thread or a
//! coroutine.
//!
//! A [`Waiter`] is made by whoever is about to wait, is put where the waker finds it while the lock is still
//! held, and is taken out and woken after the lock was released. Waking is allowed to be spurious: whoever
//! waits looks again. No lock is ever held across [`Waiter::park`], and no thread-local either: a coroutine goes
//! on on another thread.

#[cfg(feature = "coroutines")]
mod coroutine;

mod latch;
mod reader;

pub(crate) use latch::Latch;
pub(crate) use reader::{may_wait, never_wait_here, waits_never, without_waiting};

use std::{
    collections::VecDeque,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle, Thread, ThreadId},
    time::Instant,
};

use crate::error::{Error, Result};

/// Locks, also after a panic of another holder: every critical section of this crate leaves its data whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    #[cfg(test)]
    counted::LOCKS.set(counted::LOCKS.get() + 1);
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this thread has done so far, for tests of how often it may.
#[cfg(test)]
pub(crate) mod counted {
    use std::cell::Cell;

    thread_local! {
        pub(crate) static LOCKS: Cell<usize> = const { Cell::new(0) };
        pub(crate) static WAKES: Cell<usize> = const { Cell::new(0) };
    }
}

/// Why a wait was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// The deadline has passed.
    TooLate,
    /// The coroutine that waits was cancelled, or is unwinding: it must not wait any more.
    Cancelled,
    /// This thread must never wait.
    WouldDeadlock,
}

impl GivenUp {
    /// The error of a wait that was not allowed; `None` when only its time was over.
    pub(crate) fn forbidden(self) -> Option<Error> {
        match self {
            GivenUp::TooLate => None,
            GivenUp::Cancelled => Some(Error::Cancelled),
            GivenUp::WouldDeadlock => Some(Error::WouldDeadlock),
        }
    }
}

/// A caller that sleeps until it is woken or its time is over.
#[derive(Debug, Clone)]
pub(crate) enum Waiter {
    Thread(Thread),
    #[cfg(feature = "coroutines")]
    Coroutine(coroutine::Parking),
}

impl Waiter {
    /// For one wait of the caller.
    pub(crate) fn new() -> Waiter {
        #[cfg(feature = "coroutines")]
        if let Some(parking) = coroutine::Parking::of_caller() {
            return Waiter::Coroutine(parking);
        }
        Waiter::Thread(thread::current())
    }

    /// Sleeps until woken (also before: a wake is not lost) or until `deadline`. Only for the caller that made it.
    pub(crate) fn park(&self, deadline: Option<Instant>) -> Result<(), GivenUp> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(GivenUp::TooLate);
        }
        if waits_never() {
            return Err(GivenUp::WouldDeadlock);
        }
        match (self, left) {
            (Waiter::Thread(_), None) => thread::park(),
            (Waiter::Thread(_), Some(left)) => thread::park_timeout(left),
            #[cfg(feature = "coroutines")]
            (Waiter::Coroutine(parking), left) => return parking.park(left),
        }
        Ok(())
    }

    /// Both stand for the same wait, or the same thread. Who a caller is, is the business of [`Caller`].
    pub(crate) fn is(&self, other: &Waiter) -> bool {
        match (self, other) {
            (Waiter::Thread(this), Waiter::Thread(other)) => this.id() == other.id(),
            #[cfg(feature = "coroutines")]
            (Waiter::Coroutine(this), Waiter::Coroutine(other)) => this.is(other),
            #[cfg(feature = "coroutines")]
            _ => false,
        }
    }

    pub(crate) fn wake(self) {
        #[cfg(test)]
        counted::WAKES.set(counted::WAKES.get() + 1);
        match self {
            Waiter::Thread(thread) => thread.unpark(),
            #[cfg(feature = "coroutines")]
            Waiter::Coroutine(parking) => parking.wake(),
        }
    }
}

/// Who makes a call: a thread, or a coroutine wherever it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    Thread(ThreadId),
    #[cfg(feature = "coroutines")]
    Coroutine(coroutine::Id),
}

impl Caller {
    pub(crate) fn current() -> Caller {
        #[cfg(feature = "coroutines")]
        if let Some(id) = coroutine::Id::of_caller() {
            return Caller::Coroutine(id);
        }
        Caller::Thread(thread::current().id())
    }
}

/// Wakes all, once no lock is held.
pub(crate) fn wake_all(waiters: Vec<Waiter>) {
    waiters.into_iter().for_each(Waiter::wake);
}

/// The caller is a coroutine: its stack is small, and its thread is not its own. It must neither write to a socket
/// nor do anything else that is deep or blocks the thread.
#[cfg(feature = "coroutines")]
pub(crate) use coroutine::{is_coroutine, spawn as spawn_coroutine};

/// See the other one.
#[cfg(not(feature = "coroutines"))]
pub(crate) const fn is_coroutine() -> bool {
    false
}

/// Starts a thread.
///
/// # Errors
/// The system has none.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    spawn_boxed(name, Box::new(run))
}

/// Boxed: what starts a thread is much code, and would be there for each closure.
fn spawn_boxed(name: &str, run: Box<dyn FnOnce() + Send>) -> Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(run).map_err(|error| Error::io("starting a thread", error))
}

/// Does `work`, which may be deep and may block its thread: at once for a thread; for a coroutine on a thread made
/// for it, and the coroutine waits. Whether or not it waits to the end, the work is done to the end, and then a
/// result that nobody takes is dropped there. A panic is the caller's.
///
/// # Errors
/// No thread could be started; the work was not done.
pub(crate) fn on_a_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Result<T, GivenUp>> {
    if !is_coroutine() {
        return Ok(Ok(work()));
    }
    let done = OneShot::new();
    let doing = done.clone();
    spawn(name, move || doing.put(panic::catch_unwind(AssertUnwindSafe(work))))?;
    Ok(done.wait(None).map(|done| done.unwrap_or_else(|panicked| panic::resume_unwind(panicked))))
}

/// Things to be seen through that take a wait, left behind by coroutines that may not wait any more: a close, a
/// cancel, a rollback. They are done in order on one thread, which is there only as long as there is something to
/// do.
#[derive(Default)]
pub(crate) struct Errands(Arc<Mutex<ErrandsState>>);

#[derive(Default)]
struct ErrandsState {
    left: VecDeque<Box<dyn FnOnce() + Send>>,
    /// The thread is there, and looks again before it ends.
    running: bool,
}

impl Errands {
    /// Leaves `work`, which must have a limit. **Does not wait.**
    pub(crate) fn leave(&self, work: impl FnOnce() + Send + 'static) {
        self.leave_boxed(Box::new(work));
    }

    fn leave_boxed(&self, work: Box<dyn FnOnce() + Send>) {
        let mut state = lock(&self.0);
        state.left.push_back(work);
        if std::mem::replace(&mut state.running, true) {
            return;
        }
        drop(state);
        let errands = self.0.clone();
        let run = move || {
            while let Some(work) = next_errand(&errands) {
                work();
            }
        };
        if let Err(error) = spawn("leveret-errands", run) {
            // The next one to leave something tries again.
            lock(&self.0).running = false;
            log::error!(target: "leveret::connection", "{error}");
        }
    }
}

fn next_errand(errands: &Mutex<ErrandsState>) -> Option<Box<dyn FnOnce() + Send>> {
    let mut state = lock(errands);
    let work = state.left.pop_front();
    state.running = work.is_some();
    work
}

impl fmt::Debug for Errands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Errands").finish_non_exhaustive()
    }
}

/// A value that one side puts in once and another waits for.
#[derive(Debug)]
pub(crate) struct OneShot<T>(Mutex<State<T>>);

#[derive(Debug)]
enum State<T> {
    Empty,
    Awaited(Waiter),
    Full(T),
}

impl<T> OneShot<T> {
    pub(crate) fn new() -> Arc<OneShot<T>> {
        Arc::new(OneShot(Mutex::new(State::Empty)))
    }

    /// Puts the value in and wakes the one that waits for it. A second value is dropped: the first counts.
    pub(crate) fn put(&self, value: T) {
        let mut state = lock(&self.0);
        if matches!(*state, State::Full(_)) {
            return;
        }
        let before = std::mem::replace(&mut *state, State::Full(value));
        drop(state);
        if let State::Awaited(waiter) = before {
            waiter.wake();
        }
    }

    /// The value if it is there. **Does not wait.**
    pub(crate) fn take(&self) -> Option<T> {
        match std::mem::replace(&mut *lock(&self.0), State::Empty) {
            State::Full(value) => Some(value),
            State::Empty | State::Awaited(_) => None,
        }
    }

    /// The value if it is there; if not, `waiter` is woken when it comes.
    pub(crate) fn poll(&self, waiter: &Waiter) -> Option<T> {
        let mut state = lock(&self.0);
        match std::mem::replace(&mut *state, State::Empty) {
            State::Full(value) => Some(value),
            State::Empty | State::Awaited(_) => {
                *state = State::Awaited(waiter.clone());
                None
            }
        }
    }

    /// Waits for the value until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<T, GivenUp> {
        let waiter = Waiter::new();
        loop {
            if let Some(value) = self.poll(&waiter) {
                return Ok(value);
            }
            if let Err(given_up) = waiter.park(deadline) {
                return self.take().ok_or(given_up);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, time::Duration};

    #[test]
    fn a_value_reaches_the_one_who_waits_whoever_comes_first() {
        for round in 0..1000 {
            let shot = OneShot::new();
            let putter = thread::spawn({
                let shot = shot.clone();
                move || shot.put(round)
            });
            assert_eq!(shot.wait(None), Ok(round));
            putter.join().unwrap();
        }
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let shot = OneShot::<()>::new();
        assert_eq!(shot.wait(Some(Instant::now() + Duration::from_millis(5))), Err(GivenUp::TooLate));
        assert_eq!(shot.wait(Some(Instant::now())), Err(GivenUp::TooLate));
    }

    #[test]
    fn the_first_value_counts() {
        let shot = OneShot::new();
        shot.put(1);
        shot.put(2);
        assert_eq!(shot.wait(None), Ok(1));
    }

    #[test]
    fn errands_are_done_in_order_and_more_may_come_at_any_time() {
        let errands = Errands::default();
        let (done, all) = mpsc::channel();
        for number in 0..1000 {
            let done = done.clone();
            errands.leave(move || done.send(number).unwrap());
        }
        drop(done);
        assert!(all.iter().eq(0..1000));
    }
}
