//! A short queue between the thread that takes deliveries and the workers that handle them, threads or coroutines.

use std::{collections::VecDeque, sync::Mutex};

use crate::{
    Delivery,
    hooks::{Waiter, lock},
};

/// Holds no more than `room` deliveries, so that the consumer's own bounds are felt.
#[derive(Debug)]
pub(super) struct Handoff {
    room: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    deliveries: VecDeque<Delivery>,
    closed: bool,
    /// Those who wait for a delivery, and those who wait for room. Who wakes one takes it out.
    takers: VecDeque<Waiter>,
    putters: VecDeque<Waiter>,
}

impl Handoff {
    pub(super) fn new(room: usize) -> Handoff {
        Handoff { room, state: Mutex::default() }
    }

    /// Waits for room and puts a delivery in; gives it back once closed.
    pub(super) fn put(&self, delivery: Delivery) -> Result<(), Delivery> {
        let mut waiter = None;
        loop {
            let mut state = lock(&self.state);
            if state.closed {
                return Err(delivery);
            }
            if state.deliveries.len() < self.room {
                state.deliveries.push_back(delivery);
                let taker = state.takers.pop_front();
                drop(state);
                taker.into_iter().for_each(Waiter::wake);
                return Ok(());
            }
            let waiter = leave(&mut state.putters, &mut waiter);
            drop(state);
            if waiter.park(None).is_err() {
                return Err(delivery);
            }
        }
    }

    /// Waits for a delivery; `None` when it is closed and empty.
    pub(super) fn take(&self) -> Option<Delivery> {
        let mut waiter = None;
        loop {
            let mut state = lock(&self.state);
            if let Some(delivery) = state.deliveries.pop_front() {
                // Woken for nothing, it may still stand there, and whoever wakes it would wake nobody.
                forget(&mut state.takers, waiter.as_ref());
                let putter = state.putters.pop_front();
                drop(state);
                putter.into_iter().for_each(Waiter::wake);
                return Some(delivery);
            }
            if state.closed {
                return None;
            }
            let waiter = leave(&mut state.takers, &mut waiter);
            drop(state);
            waiter.park(None).ok()?;
        }
    }

    /// Takes nothing more in. What is in it can still be taken.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        let takers = std::mem::take(&mut state.takers);
        let putters = std::mem::take(&mut state.putters);
        drop(state);
        takers.into_iter().chain(putters).for_each(Waiter::wake);
    }
}

/// Has the caller's waiter, made the first time, stand in the queue once.
fn leave(queue: &mut VecDeque<Waiter>, waiter: &mut Option<Waiter>) -> Waiter {
    forget(queue, waiter.as_ref());
    let waiter = waiter.get_or_insert_with(Waiter::new);
    queue.push_back(waiter.clone());
    waiter.clone()
}

fn forget(queue: &mut VecDeque<Waiter>, waiter: Option<&Waiter>) {
    if let Some(waiter) = waiter {
        queue.retain(|other| !other.is(waiter));
    }
}
