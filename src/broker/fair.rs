//! A lock that everybody gets: who has waited for long is handed it, whoever else is quicker.
//!
//! As long as nobody waits for long, it goes to the first who asks, because a thread that has to be woken for every turn
//! costs more than most turns do.

use std::{
    collections::VecDeque,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::sync::lock;

/// After so long a wait nobody else may come first.
const PATIENCE: Duration = Duration::from_micros(500);

/// A value that one thread at a time has.
#[derive(Debug, Default)]
pub(super) struct Fair<T> {
    gate: Mutex<Gate>,
    /// How many are in the gate's line, to be asked often.
    waiting: AtomicUsize,
    /// Free whenever the gate is, or about to be.
    value: Mutex<T>,
}

#[derive(Debug, Default)]
struct Gate {
    held: bool,
    line: VecDeque<Place>,
}

/// One who waits.
#[derive(Debug)]
struct Place {
    since: Instant,
    turn: Arc<Condvar>,
    /// It was woken, and has not looked yet.
    woken: bool,
}

/// The value, until this is dropped.
#[derive(Debug)]
pub(super) struct Held<'a, T> {
    // Given up before the gate is opened: fields are dropped in their order.
    value: MutexGuard<'a, T>,
    _gate: Opens<'a, T>,
}

#[derive(Debug)]
struct Opens<'a, T>(&'a Fair<T>);

impl<T> Fair<T> {
    pub(super) fn new(value: T) -> Fair<T> {
        Fair { gate: Mutex::default(), waiting: AtomicUsize::new(0), value: Mutex::new(value) }
    }

    pub(super) fn lock(&self) -> Held<'_, T> {
        let gate = lock(&self.gate);
        if gate.held {
            self.wait(gate)
        } else {
            take(gate)
        }
        Held { value: lock(&self.value), _gate: Opens(self) }
    }

    /// Somebody waits for it. It may have changed when this returns.
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn wait(&self, mut gate: MutexGuard<'_, Gate>) {
        let turn = Arc::new(Condvar::new());
        gate.line.push_back(Place { since: Instant::now(), turn: turn.clone(), woken: false });
        self.waiting.store(gate.line.len(), Ordering::Relaxed);
        loop {
            gate = turn.wait(gate).unwrap_or_else(PoisonError::into_inner);
            // Whoever is not in line any more was handed it.
            let Some(at) = gate.line.iter().position(|place| Arc::ptr_eq(&place.turn, &turn)) else { return };
            if !gate.held {
                gate.line.remove(at);
                self.waiting.store(gate.line.len(), Ordering::Relaxed);
                return take(gate);
            }
            if let Some(place) = gate.line.get_mut(at) {
                place.woken = false;
            }
        }
    }
}

fn take(mut gate: MutexGuard<'_, Gate>) {
    gate.held = true;
}

impl<T> Drop for Opens<'_, T> {
    fn drop(&mut self) {
        let mut gate = lock(&self.0.gate);
        let Some(first) = gate.line.front_mut() else {
            gate.held = false;
            return;
        };
        let (turn, woken) = (first.turn.clone(), std::mem::replace(&mut first.woken, true));
        if first.since.elapsed() >= PATIENCE {
            // It stays held: by the first in line.
            gate.line.pop_front();
            self.0.waiting.store(gate.line.len(), Ordering::Relaxed);
        } else {
            gate.held = false;
            if woken {
                return;
            }
        }
        drop(gate);
        turn.notify_one();
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    /// Waits until so many are in line.
    fn wait_for_line<T>(fair: &Fair<T>, length: usize) {
        while lock(&fair.gate).line.len() < length {
            thread::yield_now();
        }
    }

    #[test]
    fn one_at_a_time_has_it() {
        let fair = Fair::new(0u64);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        let mut held = fair.lock();
                        let before = *held;
                        if before.is_multiple_of(64) {
                            thread::yield_now();
                        }
                        *held = before + 1;
                    }
                });
            }
        });
        assert_eq!(*fair.lock(), 40_000);
        assert!(!fair.is_awaited() && !lock(&fair.gate).held);
    }

    /// Whoever gives it up and takes it again at once comes after those who have waited for long.
    #[test]
    fn who_has_waited_long_comes_first_and_in_order() {
        let fair = Fair::new(Vec::new());
        thread::scope(|scope| {
            let held = fair.lock();
            for number in 0..3 {
                let fair = &fair;
                scope.spawn(move || fair.lock().push(number));
                wait_for_line(fair, number + 1);
            }
            assert!(fair.is_awaited());
            for place in &mut lock(&fair.gate).line {
                place.since = place.since.checked_sub(PATIENCE).unwrap();
            }
            drop(held);
            fair.lock().push(9);
        });
        assert_eq!(*fair.lock(), [0, 1, 2, 9]);
    }

    /// Whoever was handed it waits no more, and is not waited for.
    #[test]
    fn nobody_is_in_line_after_the_last() {
        let fair = Fair::new(());
        thread::scope(|scope| {
            let held = fair.lock();
            scope.spawn(|| drop(fair.lock()));
            wait_for_line(&fair, 1);
            for place in &mut lock(&fair.gate).line {
                place.since = place.since.checked_sub(PATIENCE).unwrap();
            }
            drop(held);
        });
        assert!(!fair.is_awaited());
    }

    /// A holder that panics does not keep it.
    #[test]
    fn a_panic_gives_it_up() {
        let fair = Arc::new(Fair::new(1));
        let (started, has_started) = mpsc::channel();
        let panicking = thread::spawn({
            let fair = fair.clone();
            move || {
                let _held = fair.lock();
                started.send(()).unwrap();
                wait_for_line(&fair, 1);
                panic!("on purpose");
            }
        });
        has_started.recv().unwrap();
        assert_eq!(*fair.lock(), 1);
        assert!(panicking.join().is_err());
    }
}
