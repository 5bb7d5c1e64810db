//! Whose turn it is to write: what was gathered goes to the transport, never with the lock held.

use std::{
    hint::black_box,
    io::{self, IoSlice},
    sync::MutexGuard,
    time::{Duration, Instant},
};

use super::{Outgoing, Phase, State, Unfinished};
use crate::{
    error::Error,
    sync::{is_coroutine, lock, waits_never, wake_all},
    transport::{Patience, is_timeout, stint::Stint, tap::Direction},
};

/// A caller that waits after it has gathered this much is likely to go on with more of it.
const STREAM: usize = 4 * 1024;

/// How often the holder of a turn goes on for others that appended meanwhile, before he leaves it to the
/// writer thread and returns to his own business.
const ROUNDS: usize = 4;

/// How long the end of the connection waits for somebody who is writing: longer than a write that makes no progress.
const TURN_PATIENCE: Duration = Duration::from_millis(500);

impl Outgoing {
    /// For a caller that is about to wait: writes what was gathered. The stream, if there was one, pauses, unless it was
    /// much: whoever waits for room in a window goes on at once when there is some, and then gathers again.
    pub(crate) fn flush(&self) {
        let mut state = lock(&self.state);
        state.streaming &= state.unsent() >= STREAM;
        self.write_gathered(state, Patience::None);
    }

    /// For a caller whose append was [`Push::Accepted`] with `flush`: writes what was gathered; the stream may
    /// go on. The peer's pace becomes the caller's: that keeps the buffer small, and in the cache.
    pub(crate) fn flush_stream(&self) {
        let patience = if waits_never() { Patience::None } else { Patience::Quantum };
        self.write_gathered(lock(&self.state), patience);
    }

    /// The same for a caller who must not wait.
    pub(crate) fn flush_stream_now(&self) {
        self.write_gathered(lock(&self.state), Patience::None);
    }

    fn write_gathered(&self, mut state: MutexGuard<'_, State>, patience: Patience) {
        if state.unsent() == 0 || !state.may_take_turn() {
            // The holder of the turn sees it when he is done.
            state.wanted = state.unsent() > 0;
            return;
        }
        if is_coroutine() {
            state.urgent = true;
            drop(state);
            self.work.notify_one();
        } else {
            self.write_out(state, patience, self.write_limit);
        }
    }

    /// Writes with the turn, which must be free, until nothing is left that is due or nothing more can be written. What
    /// others append meanwhile, and nobody waits for, is gathered on. If the peer takes little at a time, it ends after
    /// `limit`.
    pub(in crate::connection) fn write_out<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        patience: Patience,
        limit: Duration,
    ) {
        let mut stint = Stint::of(limit);
        for round in 0..ROUNDS {
            if state.unsent() == 0 || !state.may_take_turn() || (round > 0 && !state.is_due(self.flush_at)) {
                break;
            }
            let mut batch = std::mem::take(&mut state.unfinished);
            let is_new = batch.len() == 0;
            if is_new {
                let empty = std::mem::take(&mut state.spare);
                batch = Unfinished { bytes: std::mem::replace(&mut state.buffer, empty), sent: 0 };
                state.wanted = false;
            }
            state.turn = Some(batch.len());
            drop(state);
            if is_new {
                self.taps.show(Direction::Outgoing, &batch.bytes, self.max_frame);
            }
            let (sent, result) = self.send(&mut [IoSlice::new(batch.rest())], patience, &mut stint);
            batch.sent += sent;
            state = lock(&self.state);
            state.turn = None;
            let blocked = self.note(&mut state, sent, result);
            if batch.len() == 0 {
                state.recycle(batch.bytes);
            } else {
                state.unfinished = batch;
            }
            if blocked {
                break;
            }
        }
        self.end_turn(state);
    }

    /// Sends all of `parts`, or what can be sent; first what the transport still has.
    pub(super) fn send(
        &self,
        parts: &mut [IoSlice<'_>],
        patience: Patience,
        stint: &mut Stint,
    ) -> (usize, io::Result<()>) {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut rest = parts;
        // There may be nothing but what the transport has.
        IoSlice::advance_slices(&mut rest, 0);
        let mut sent = 0;
        while sent < total || self.transport.backlog() > 0 {
            match self.transport.write(rest, patience) {
                Ok(0) if sent < total => return (sent, Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    sent += written;
                    IoSlice::advance_slices(&mut rest, written);
                    if sent < total && stint.is_over() {
                        return (sent, Err(io::ErrorKind::WouldBlock.into()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (sent, Err(error)),
            }
        }
        (sent, Ok(()))
    }

    /// Notes the outcome of a write; true when no more can be written now.
    pub(super) fn note(&self, state: &mut State, sent: usize, result: io::Result<()>) -> bool {
        let backlog = self.transport.backlog();
        if sent > 0 || backlog < state.backlog {
            state.last_write = Instant::now();
            state.stalled_since = None;
        }
        state.backlog = backlog;
        match result {
            Ok(()) => false,
            Err(error) => {
                if is_timeout(&error) {
                    state.stalled_since.get_or_insert_with(Instant::now);
                } else {
                    state.failure.get_or_insert(Error::io("writing", error));
                }
                true
            }
        }
    }

    /// The reader's: reading has made the transport want to write something, which the writer thread does.
    pub(crate) fn write_backlog(&self) {
        let mut state = lock(&self.state);
        // The holder of the turn sees it when he is done.
        if state.turn.is_none() {
            state.backlog = self.transport.backlog();
            state.urgent = true;
            self.work.notify_one();
        }
    }

    /// Gives the turn up: wakes those who wait for it, and the writer thread if something is left to do.
    pub(super) fn end_turn(&self, mut state: MutexGuard<'_, State>) {
        let ending = !matches!(state.phase, Phase::Open | Phase::Closing);
        let left = state.failure.is_some() || ending || (state.unsent() > 0 && state.is_due(self.flush_at));
        state.urgent |= left;
        // What is fresh is written after a while.
        let fresh = !left && state.unsent() > 0 && std::mem::replace(&mut state.writer_asleep, false);
        let waiting = if state.occupied() < self.limit || state.failure.is_some() {
            std::mem::take(&mut state.waiting)
        } else {
            Vec::new()
        };
        let ends = state.phase != Phase::Open;
        drop(state);
        if left || fresh {
            self.work.notify_one();
        }
        if ends {
            self.turn_ended.notify_all();
        }
        wake_all(waiting);
    }

    /// Waits until nobody is writing, at most [`TURN_PATIENCE`]: whoever writes has perhaps sent everything, and has not
    /// noted it yet.
    pub(in crate::connection) fn wait_for_the_turn(&self) {
        let busy = |state: &mut State| state.turn.is_some();
        drop(self.turn_ended.wait_timeout_while(lock(&self.state), TURN_PATIENCE, busy));
    }

    /// Something that was accepted has not reached the socket.
    pub(in crate::connection) fn has_unsent(&self) -> bool {
        lock(&self.state).occupied() > 0
    }

    /// Overwrites what the buffers still hold of what was written: a secret was among it.
    pub(in crate::connection) fn wipe_what_was_written(&self) {
        let mut state = lock(&self.state);
        let State { buffer, spare, .. } = &mut *state;
        for bytes in [buffer, spare] {
            let unsent = bytes.len();
            bytes.resize(bytes.capacity(), 0);
            // Without a reader the compiler may leave the writes out.
            black_box(&bytes);
            bytes.truncate(unsent);
        }
    }
}
