//! The incoming half of a connection: when the reader may read, and when it last heard from the peer.
//!
//! Deliveries that nobody has taken yet are counted in bytes. Beyond the limit the reader pauses, so that TCP
//! slows the broker down; it reads on as long as any call waits for an answer, because the answer may stand
//! behind deliveries. A pause of ours is never taken for the peer's silence.

use std::{
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use crate::{
    error::Result,
    sync::{lock, may_wait},
};

/// The flow control of one connection's reader.
#[derive(Debug)]
pub(crate) struct Incoming {
    limit: usize,
    /// Bytes of deliveries that were handed to a consumer's queue and not taken yet.
    held: AtomicUsize,
    /// Calls that wait for an answer.
    calls: AtomicUsize,
    /// The reader sleeps, or is about to: whoever changes something must wake it.
    paused: AtomicBool,
    state: Mutex<State>,
    resume: Condvar,
}

#[derive(Debug)]
struct State {
    last_heard: Instant,
    closed: bool,
}

impl Incoming {
    pub(crate) fn new(limit: usize) -> Incoming {
        Incoming {
            limit,
            held: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            paused: AtomicBool::new(false),
            state: Mutex::new(State { last_heard: Instant::now(), closed: false }),
            resume: Condvar::new(),
        }
    }

    /// The reader thread's: waits until reading is wanted.
    pub(crate) fn wait_until_wanted(&self) {
        if !self.is_too_much() {
            return;
        }
        let mut state = lock(&self.state);
        // From here on whoever changes a counter sees `paused` and takes the lock to wake us.
        self.paused.store(true, Ordering::SeqCst);
        while self.is_too_much() && !state.closed {
            state = self.resume.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        self.paused.store(false, Ordering::SeqCst);
        // Silence is counted from now: before, it was we who did not listen.
        state.last_heard = Instant::now();
    }

    fn is_too_much(&self) -> bool {
        self.held.load(Ordering::SeqCst) > self.limit && self.calls.load(Ordering::SeqCst) == 0
    }

    /// The reader thread's: something came from the peer.
    pub(crate) fn heard(&self) {
        lock(&self.state).last_heard = Instant::now();
    }

    /// When something last came; `now` while the reader is paused.
    pub(crate) fn last_heard(&self, now: Instant) -> Instant {
        if self.paused.load(Ordering::SeqCst) { now } else { lock(&self.state).last_heard }
    }

    /// The reader thread's: it is busy with code of the program, until the result is dropped. Meanwhile it is we who do
    /// not listen.
    pub(crate) fn busy(&self) -> Busy<'_> {
        self.paused.store(true, Ordering::SeqCst);
        Busy(self)
    }

    /// Deliveries of so many bytes were queued for a consumer.
    pub(crate) fn hold(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::SeqCst);
    }

    /// A consumer is done with deliveries of so many bytes.
    pub(crate) fn release(&self, bytes: usize) {
        let before = self.held.fetch_sub(bytes, Ordering::SeqCst);
        if before > self.limit {
            self.wake_reader();
        }
    }

    /// For the beginning of a call that waits: marks that it does, until the result is dropped.
    ///
    /// # Errors
    /// [`Error::WouldDeadlock`](crate::Error::WouldDeadlock) on a thread that must never wait.
    pub(crate) fn awaiting(&self) -> Result<Awaiting<'_>> {
        may_wait()?;
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.wake_reader();
        Ok(Awaiting(self))
    }

    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.resume.notify_all();
    }

    fn wake_reader(&self) {
        if self.paused.load(Ordering::SeqCst) {
            drop(lock(&self.state));
            self.resume.notify_all();
        }
    }
}

/// A call that waits for an answer.
#[derive(Debug)]
pub(crate) struct Awaiting<'a>(&'a Incoming);

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The reader thread is busy with code of the program.
#[derive(Debug)]
pub(crate) struct Busy<'a>(&'a Incoming);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.heard();
        self.0.paused.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Arc, thread};

    /// Row 74: beyond the limit reading pauses, and goes on once enough was taken.
    #[test]
    fn reading_resumes_when_deliveries_are_taken_when_a_call_waits_and_when_closed() {
        for wake in 0..3 {
            let incoming = Arc::new(Incoming::new(100));
            incoming.hold(101);
            let reader = thread::spawn({
                let incoming = incoming.clone();
                move || incoming.wait_until_wanted()
            });
            while !incoming.paused.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            let later = Instant::now() + std::time::Duration::from_secs(1000);
            assert_eq!(incoming.last_heard(later), later, "a pause is not the peer's silence");
            let _awaiting;
            match wake {
                0 => incoming.release(50),
                1 => _awaiting = incoming.awaiting(),
                _ => incoming.close(),
            }
            reader.join().unwrap();
        }
    }

    #[test]
    fn below_the_limit_nothing_waits() {
        let incoming = Incoming::new(100);
        incoming.hold(100);
        incoming.wait_until_wanted();
    }
}
