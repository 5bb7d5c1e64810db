//! What is on its way to one client: a buffer, whose turn it is to write it, and how far it may grow.
//!
//! Whoever has put something in writes it as far as the transport takes it without waiting ([`Link::flush`]). What is
//! left is the link's writer thread's, which waits for the client. So a client that reads costs no thread
//! switch, and one that does not read holds up nobody.
//!
//! Appending happens under the hub's lock, writing never does. The lock of a link is taken after the hub's.

use std::{
    collections::VecDeque,
    io::IoSlice,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    clock::Clock,
    frame_log::{FrameLog, frames},
    model::SessionId,
    session::frames::HEARTBEAT,
};
use crate::{
    protocol::frame,
    sync::{is_coroutine, lock},
    transport::{Patience, Transport, is_timeout},
};

/// Above this, nothing more is delivered on the connection and nothing more is read from it, until the client has
/// taken half. One message more may stand in it: a large one has to go out some time.
pub(super) const FULL: usize = 512 * 1024;

/// How long the client may take to answer `connection.close`, and to hang up after its own was answered.
pub(super) const CLOSING: Duration = Duration::from_secs(5);

/// One connection's way out.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) transport: Arc<dyn Transport>,
    session: SessionId,
    clock: Arc<Clock>,
    log: Arc<FrameLog>,
    state: Mutex<Outgoing>,
    changed: Condvar,
    /// More than [`FULL`] was in the buffer, and the client has not taken half of it yet.
    full: AtomicBool,
    /// Bytes sent so far, for the lists of connections.
    sent: AtomicU64,
}

#[derive(Debug)]
struct Outgoing {
    pending: Vec<u8>,
    /// What is being written; whoever writes holds it.
    sending: Vec<u8>,
    /// How much of it is still to be written.
    unwritten: usize,
    /// Somebody is writing.
    busy: bool,
    /// The connection is being closed: when it ends at the latest.
    last: Option<Instant>,
    /// The transport took no more: the writer thread's turn.
    stalled: bool,
    /// A test has stopped writing.
    held: bool,
    /// A test has frames go out later by so much of the broker's time.
    delay: Duration,
    /// Those that are not due, in their order, and when they are.
    late: VecDeque<(Duration, Vec<u8>)>,
    /// Their bytes.
    late_bytes: usize,
    /// A test has the connection cut after so many more frames.
    frames_left: Option<u64>,
    /// The writer thread is to look at its clock again.
    woken: bool,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// What is in the buffer is the last.
    Finishing,
    Closed,
}

/// What the writer thread is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Something waits for the client.
    Write,
    /// The time was over.
    Look,
    /// The link is closed.
    End,
}

impl Link {
    pub(super) fn new(
        transport: Arc<dyn Transport>,
        session: SessionId,
        clock: &Arc<Clock>,
        log: &Arc<FrameLog>,
    ) -> Link {
        Link {
            transport,
            session,
            clock: clock.clone(),
            log: log.clone(),
            state: Mutex::new(Outgoing {
                pending: Vec::new(),
                sending: Vec::new(),
                unwritten: 0,
                busy: false,
                last: None,
                stalled: false,
                held: false,
                delay: Duration::ZERO,
                late: VecDeque::new(),
                late_bytes: 0,
                frames_left: None,
                woken: false,
                end: End::Open,
            }),
            changed: Condvar::new(),
            full: AtomicBool::new(false),
            sent: AtomicU64::new(0),
        }
    }

    /// Adds frames. What is added to a link that has ended is dropped.
    pub(super) fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = lock(&self.state);
        if state.end != End::Open {
            return;
        }
        let start = state.pending.len();
        write(&mut state.pending);
        if state.frames_left.is_some() {
            state.count_down(start);
        }
        self.log.sent(self.session, state.pending.get(start..).unwrap_or_default());
        if !state.delay.is_zero() {
            state.put_off(start, self.clock.now());
            // The writer thread waits for it.
            self.changed.notify_all();
        }
        if state.waiting() > FULL {
            self.full.store(true, Ordering::SeqCst);
        }
    }

    /// Adds a heartbeat. It says that the broker lives, so it overtakes what is delayed.
    pub(super) fn append_heartbeat(&self) {
        let mut state = lock(&self.state);
        if state.end == End::Open {
            let start = state.pending.len();
            frame::write_heartbeat(&mut state.pending);
            self.log.sent(self.session, state.pending.get(start..).unwrap_or_default());
        }
    }

    /// Nothing more is to be delivered on this connection for now.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    pub(super) fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Writes what the transport takes without waiting; for a coroutine, whose stack is small, the writer thread does it.
    /// True when the link was full and is no longer.
    pub(super) fn flush(&self) -> bool {
        let mut state = lock(&self.state);
        if state.stalled || state.held {
            return false;
        }
        if is_coroutine() {
            state.stalled = true;
            drop(state);
            self.changed.notify_all();
            return false;
        }
        self.write(state, Patience::None)
    }

    /// Writes for the writer thread, which may wait for the client for a moment. True as for [`flush`](Link::flush).
    pub(super) fn push(&self) -> bool {
        self.write(lock(&self.state), Patience::Quantum)
    }

    fn write<'s>(&'s self, mut state: MutexGuard<'s, Outgoing>, patience: Patience) -> bool {
        if state.busy || state.end == End::Closed {
            return false;
        }
        state.busy = true;
        loop {
            if state.unwritten == 0 {
                let Outgoing { pending, sending, unwritten, .. } = &mut *state;
                sending.clear();
                std::mem::swap(pending, sending);
                *unwritten = sending.len();
            }
            if state.sending.is_empty() && self.transport.backlog() == 0 || state.held {
                state.stalled = false;
                break;
            }
            let bytes = std::mem::take(&mut state.sending);
            let written = bytes.len().saturating_sub(state.unwritten);
            drop(state);
            let rest = bytes.get(written..).unwrap_or_default();
            let result = self.transport.write(&[IoSlice::new(rest)], patience);
            state = lock(&self.state);
            if state.end == End::Closed {
                break;
            }
            state.sending = bytes;
            match result {
                Ok(more) => {
                    state.unwritten = state.unwritten.saturating_sub(more);
                    self.sent.fetch_add(more as u64, Ordering::Relaxed);
                    if patience == Patience::Quantum && self.drained(&state) {
                        // Let the hub know early; the rest follows.
                        state.stalled = true;
                        break;
                    }
                }
                Err(error) if is_timeout(&error) || error.kind() == std::io::ErrorKind::Interrupted => {
                    state.stalled = true;
                    break;
                }
                Err(_) => {
                    self.end(&mut state);
                    break;
                }
            }
        }
        state.busy = false;
        if state.end == End::Finishing && state.waiting() == 0 {
            self.end(&mut state);
        }
        let resumed = self.drained(&state) && self.full.swap(false, Ordering::SeqCst);
        if state.sending.is_empty() && state.pending.is_empty() {
            state.give_back();
        }
        drop(state);
        self.changed.notify_all();
        resumed
    }

    fn drained(&self, state: &Outgoing) -> bool {
        self.is_full() && state.waiting() <= FULL / 2
    }

    fn end(&self, state: &mut Outgoing) {
        state.end = End::Closed;
        state.pending = Vec::new();
        state.sending = Vec::new();
        state.unwritten = 0;
        state.late = VecDeque::new();
        state.late_bytes = 0;
        self.full.store(false, Ordering::SeqCst);
        self.transport.shutdown();
    }

    /// Waits until there is something for the writer thread to do, at most until `deadline`.
    pub(super) fn wait_turn(&self, deadline: Option<Instant>) -> Turn {
        let mut state = lock(&self.state);
        loop {
            if state.end == End::Closed {
                return Turn::End;
            }
            if state.last.is_some_and(|last| last <= Instant::now()) {
                self.end(&mut state);
                self.changed.notify_all();
                return Turn::End;
            }
            if state.release(&self.clock) {
                state.stalled = true;
            }
            if state.stalled && !state.busy && !state.held {
                return Turn::Write;
            }
            let due = state.late.front().map(|(due, _)| self.clock.instant(*due));
            let next = [deadline, due, state.last].into_iter().flatten().min();
            let left = next.map(|next| next.saturating_duration_since(Instant::now()));
            if std::mem::take(&mut state.woken) || left.is_some_and(|left| left.is_zero()) {
                return Turn::Look;
            }
            state = wait(&self.changed, state, left);
        }
    }

    /// Waits until the client has taken enough for more to be read from it, or is to answer to a close; true when the link is
    /// still open.
    pub(super) fn wait_for_room(&self) -> bool {
        let mut state = lock(&self.state);
        while state.end != End::Closed && state.last.is_none() && self.is_full() {
            state = wait(&self.changed, state, None);
        }
        state.end != End::Closed
    }

    /// Has the writer thread look at its clock again.
    pub(super) fn wake(&self) {
        lock(&self.state).woken = true;
        self.changed.notify_all();
    }

    /// The connection is being closed: it ends when the client has answered, or has had time to.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.last = state.last.or_else(|| Instant::now().checked_add(CLOSING));
        drop(state);
        self.changed.notify_all();
    }

    /// What is in the buffer is the last that goes out; then the transport is shut down.
    pub(super) fn finish(&self) {
        let mut state = lock(&self.state);
        match state.end {
            End::Open if state.waiting() == 0 && !state.busy => self.end(&mut state),
            End::Open => state.end = End::Finishing,
            End::Finishing | End::Closed => {}
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Shuts the transport down at once; what was not written is lost.
    pub(super) fn cut(&self) {
        self.end(&mut lock(&self.state));
        self.changed.notify_all();
    }

    /// Holds back what is to be written, or lets it go on.
    pub(super) fn hold(&self, held: bool) {
        let mut state = lock(&self.state);
        state.held = held;
        if !held && state.waiting() > 0 {
            state.stalled = true;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Has frames go out later by so much, and never before those that wait; zero lets these go at once.
    pub(super) fn delay(&self, by: Duration) {
        let mut state = lock(&self.state);
        state.delay = by;
        if by.is_zero() {
            for (due, _) in &mut state.late {
                *due = Duration::ZERO;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the link after so many more frames, heartbeats not counted; `None` takes it back.
    pub(super) fn end_after(&self, frames: Option<u64>) {
        lock(&self.state).frames_left = frames;
    }
}

impl Outgoing {
    fn waiting(&self) -> usize {
        self.pending.len() + self.unwritten + self.late_bytes
    }

    /// Counts the frames that were added from `start` on; those after the last are dropped.
    fn count_down(&mut self, start: usize) {
        let Some(left) = &mut self.frames_left else { return };
        let added = frames(self.pending.get(start..).unwrap_or_default());
        let last = added.filter(|(frame, _)| frame.kind != HEARTBEAT).find(|_| {
            *left = left.saturating_sub(1);
            *left == 0
        });
        if let Some((_, end)) = last {
            self.pending.truncate(start + end);
            self.end = End::Finishing;
        }
    }

    /// Holds what was added from `start` on back, in its order.
    fn put_off(&mut self, start: usize, now: Duration) {
        let bytes = self.pending.split_off(start);
        self.late_bytes += bytes.len();
        self.late.push_back((now + self.delay, bytes));
    }

    /// Lets go what is due; true when there was something. Only the writer thread does it: it is the one to notice
    /// that the link is no longer full.
    fn release(&mut self, clock: &Clock) -> bool {
        if self.late.is_empty() {
            return false;
        }
        let (before, now) = (self.late.len(), clock.now());
        while self.late.front().is_some_and(|(due, _)| *due <= now)
            && let Some((_, bytes)) = self.late.pop_front()
        {
            self.late_bytes -= bytes.len();
            self.pending.extend_from_slice(&bytes);
        }
        self.late.len() < before
    }

    /// An idle connection keeps little memory.
    fn give_back(&mut self) {
        const KEPT: usize = 16 * 1024;
        for buffer in [&mut self.pending, &mut self.sending] {
            if buffer.capacity() > KEPT {
                buffer.shrink_to(KEPT);
            }
        }
    }
}

fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>, limit: Option<Duration>) -> MutexGuard<'a, T> {
    match limit {
        None => condition.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner),
        Some(limit) => match condition.wait_timeout(guard, limit) {
            Ok((guard, _)) => guard,
            Err(poisoned) => poisoned.into_inner().0,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::OnceLock};

    use super::*;

    /// Takes little at a time, and has more added to the link meanwhile.
    #[derive(Debug, Default)]
    struct Sipping {
        link: OnceLock<std::sync::Weak<Link>>,
        taken: Mutex<Vec<u8>>,
    }

    impl Transport for Sipping {
        fn read(&self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }

        fn write(&self, parts: &[IoSlice<'_>], _: Patience) -> io::Result<usize> {
            let first = parts.first().map(|part| part.get(..3).unwrap_or(part)).unwrap_or_default();
            let mut taken = lock(&self.taken);
            taken.extend_from_slice(first);
            if taken.len() < 20 {
                let link = self.link.get().and_then(std::sync::Weak::upgrade);
                link.unwrap().append(|out| out.extend_from_slice(b"more"));
            }
            Ok(first.len())
        }

        fn set_read_timeout(&self, _: Option<Duration>) -> io::Result<()> {
            Ok(())
        }

        fn shutdown(&self) {}
    }

    #[test]
    fn what_is_added_while_a_part_was_written_follows() {
        let transport = Arc::new(Sipping::default());
        let (clock, log) = (Arc::new(Clock::new()), Arc::default());
        let link = Arc::new(Link::new(transport.clone(), SessionId(1), &clock, &log));
        transport.link.set(Arc::downgrade(&link)).unwrap();
        link.append(|out| out.extend_from_slice(b"0123456789"));
        link.flush();
        let taken = lock(&transport.taken);
        assert!(taken.starts_with(b"0123456789moremore"), "{taken:?}");
        assert!(taken.len() > 20 && taken[10..].chunks(4).all(|chunk| chunk == b"more"));
    }
}
