//! A short queue between the thread that takes deliveries and the workers that handle them.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, PoisonError},
};

use crate::{Delivery, hooks::lock};

/// Holds no more than `room` deliveries, so that the consumer's own bounds are felt.
#[derive(Debug)]
pub(super) struct Handoff {
    room: usize,
    state: Mutex<State>,
    came: Condvar,
    went: Condvar,
}

#[derive(Debug, Default)]
struct State {
    deliveries: VecDeque<Delivery>,
    closed: bool,
}

impl Handoff {
    pub(super) fn new(room: usize) -> Handoff {
        Handoff { room, state: Mutex::default(), came: Condvar::new(), went: Condvar::new() }
    }

    /// Waits for room and puts a delivery in; gives it back once closed.
    pub(super) fn put(&self, delivery: Delivery) -> Result<(), Delivery> {
        let mut state = lock(&self.state);
        while state.deliveries.len() >= self.room && !state.closed {
            state = self.went.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return Err(delivery);
        }
        state.deliveries.push_back(delivery);
        drop(state);
        self.came.notify_one();
        Ok(())
    }

    /// Waits for a delivery; `None` when it is closed and empty.
    pub(super) fn take(&self) -> Option<Delivery> {
        let mut state = lock(&self.state);
        loop {
            if let Some(delivery) = state.deliveries.pop_front() {
                drop(state);
                self.went.notify_one();
                return Some(delivery);
            }
            if state.closed {
                return None;
            }
            state = self.came.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes nothing more in. What is in it can still be taken.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.came.notify_all();
        self.went.notify_all();
    }
}
