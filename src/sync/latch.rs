//! How something ended: a value that comes once, and that any number of callers may wait for.

use std::{sync::Mutex, time::Instant};

use super::{GivenUp, Waiter, lock, wake_all};

/// A value that is put in once and stays.
#[derive(Debug)]
pub(crate) struct Latch<T>(Mutex<State<T>>);

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    waiting: Vec<Waiter>,
}

impl<T> Default for Latch<T> {
    fn default() -> Latch<T> {
        Latch(Mutex::new(State { value: None, waiting: Vec::new() }))
    }
}

impl<T: Clone> Latch<T> {
    /// Puts the value in and wakes all that wait; false if there was one already: the first counts.
    pub(crate) fn put(&self, value: T) -> bool {
        let mut state = lock(&self.0);
        if state.value.is_some() {
            return false;
        }
        state.value = Some(value);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        wake_all(waiting);
        true
    }

    pub(crate) fn get(&self) -> Option<T> {
        lock(&self.0).value.clone()
    }

    /// Waits for the value until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<T, GivenUp> {
        let waiter = Waiter::new();
        loop {
            let mut state = lock(&self.0);
            if let Some(value) = &state.value {
                return Ok(value.clone());
            }
            state.waiting.push(waiter.clone());
            drop(state);
            if let Err(why) = waiter.park(deadline) {
                let mut state = lock(&self.0);
                state.waiting.retain(|other| !other.is(&waiter));
                return state.value.clone().ok_or(why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Arc, thread, time::Duration};

    #[test]
    fn everybody_who_waits_gets_the_first_value() {
        let latch = Arc::new(Latch::default());
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let latch = latch.clone();
                thread::spawn(move || latch.wait(None))
            })
            .collect();
        assert_eq!(latch.wait(Some(Instant::now() + Duration::from_millis(5))), Err(GivenUp::TooLate));
        assert!(latch.put(1) && !latch.put(2));
        assert!(waiting.into_iter().all(|waiting| waiting.join().unwrap() == Ok(1)));
        assert_eq!(latch.get(), Some(1));
    }
}
