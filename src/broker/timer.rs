//! The one thread that lets time pass: it starts when something has a deadline for the first time.

use std::{
    collections::HashMap,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{hub::Hub, served::Served};
use crate::sync::lock;

/// The next deadline of each virtual host.
#[derive(Debug, Default)]
pub(super) struct Timer {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    deadlines: HashMap<String, Duration>,
    thread: Option<JoinHandle<()>>,
    stopped: bool,
}

impl Timer {
    /// Has the virtual host looked after when the broker's clock shows `deadline`.
    pub(super) fn set(&self, hub: &Hub, served: &Served, deadline: Option<Duration>) {
        let mut state = lock(&self.state);
        let before = state.deadlines.get(&served.name).copied();
        if before == deadline || state.stopped {
            return;
        }
        match deadline {
            None => drop(state.deadlines.remove(&served.name)),
            Some(deadline) => drop(state.deadlines.insert(served.name.clone(), deadline)),
        }
        if deadline.is_some() && state.thread.is_none() {
            let hub = hub.weak();
            let thread = thread::Builder::new().name("leveret-broker-timer".into()).spawn(move || run(&hub));
            // Without a thread things expire when the virtual host is used next.
            state.thread = thread.ok();
        }
        let sooner = deadline.is_some_and(|deadline| before.is_none_or(|before| deadline < before));
        drop(state);
        if sooner {
            self.changed.notify_all();
        }
    }

    /// The clock was moved.
    pub(super) fn wake(&self) {
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    pub(super) fn stop(&self) {
        let thread = {
            let mut state = lock(&self.state);
            state.stopped = true;
            state.thread.take()
        };
        self.changed.notify_all();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Waits for the next deadline and gives those that are due; `None` at the end.
    fn wait(&self, hub: &Hub) -> Option<Vec<String>> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return None;
            }
            let now = hub.clock.now();
            let due: Vec<String> = state
                .deadlines
                .iter()
                .filter(|(_, deadline)| **deadline <= now)
                .map(|(name, _)| name.clone())
                .collect();
            if !due.is_empty() {
                state.deadlines.retain(|name, _| !due.contains(name));
                return Some(due);
            }
            let next = state.deadlines.values().min().map(|deadline| hub.clock.instant(*deadline));
            state = match next.map(|next| next.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => match self.changed.wait_timeout(state, left) {
                    Ok((state, _)) => state,
                    Err(poisoned) => poisoned.into_inner().0,
                },
            };
        }
    }
}

fn run(hub: &Weak<Hub>) {
    loop {
        // The broker stops the timer before it goes, so the hub lives as long as this waits.
        let Some(hub) = hub.upgrade() else { return };
        let Some(due) = hub.timer.wait(&hub) else { return };
        for name in due {
            let served: Option<Arc<Served>> = hub.vhost(&name);
            let Some(served) = served else { continue };
            // The turn itself brings the clock forward. Other virtual hosts have deadlines too, whatever becomes of it.
            if panic::catch_unwind(AssertUnwindSafe(|| served.turn(&hub).finish())).is_err() {
                log::error!(target: "leveret::broker", "the deadlines of virtual host {name} panicked");
            }
        }
    }
}
