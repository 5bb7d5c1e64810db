//! Waiting: the only place that knows how a caller sleeps and is woken.
//!
//! A [`Waiter`] is made by whoever is about to wait, is put where the waker finds it while the lock is still
//! held, and is taken out and woken after the lock was released. Waking is allowed to be spurious: whoever
//! waits looks again. No lock is ever held across [`Waiter::park`].

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, Thread},
    time::Instant,
};

/// Locks, also after a panic of another holder: every critical section of this crate leaves its data whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A caller that sleeps until it is woken or its time is over.
#[derive(Debug, Clone)]
pub(crate) struct Waiter(Thread);

impl Waiter {
    pub(crate) fn current() -> Waiter {
        Waiter(thread::current())
    }

    /// Sleeps until woken (also before: a wake is not lost) or until `deadline`; false when that has passed.
    pub(crate) fn park(deadline: Option<Instant>) -> bool {
        match deadline {
            None => {
                thread::park();
                true
            }
            Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => {
                    thread::park_timeout(left);
                    true
                }
                _ => false,
            },
        }
    }

    /// This waiter stands for the caller.
    pub(crate) fn is_current(&self) -> bool {
        self.0.id() == thread::current().id()
    }

    pub(crate) fn wake(self) {
        self.0.unpark();
    }
}

/// Wakes all, once no lock is held.
pub(crate) fn wake_all(waiters: Vec<Waiter>) {
    waiters.into_iter().for_each(Waiter::wake);
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

    /// Waits for the value; `None` when `deadline` passed without it.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<T> {
        loop {
            let mut state = lock(&self.0);
            match std::mem::replace(&mut *state, State::Empty) {
                State::Full(value) => return Some(value),
                State::Empty | State::Awaited(_) => *state = State::Awaited(Waiter::current()),
            }
            drop(state);
            if !Waiter::park(deadline) {
                return match std::mem::replace(&mut *lock(&self.0), State::Empty) {
                    State::Full(value) => Some(value),
                    State::Empty | State::Awaited(_) => None,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_value_reaches_the_one_who_waits_whoever_comes_first() {
        for round in 0..1000 {
            let shot = OneShot::new();
            let putter = thread::spawn({
                let shot = shot.clone();
                move || shot.put(round)
            });
            assert_eq!(shot.wait(None), Some(round));
            putter.join().unwrap();
        }
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let shot = OneShot::<()>::new();
        assert_eq!(shot.wait(Some(Instant::now() + Duration::from_millis(5))), None);
        assert_eq!(shot.wait(Some(Instant::now())), None);
    }

    #[test]
    fn the_first_value_counts() {
        let shot = OneShot::new();
        shot.put(1);
        shot.put(2);
        assert_eq!(shot.wait(None), Some(1));
    }
}
