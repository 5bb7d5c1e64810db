//! The outgoing half of a connection: one bounded buffer of whole frames, and whose turn it is to write.
//!
//! Whatever goes to the peer is appended here under one short lock, so the order of the appends is the order
//! on the wire. Only the holder of the *turn* writes to the transport, and never with the lock held:
//!
//! - a caller that is about to wait for an answer takes the turn, if it is free, and writes (no thread hop);
//! - a lone publish or ack is written by its caller at once; those that follow closely are gathered, and
//!   written by whoever fills the buffer to [`FLUSH_AT`], by the next caller that waits, or by the writer
//!   thread after [`LINGER`](super::writer::LINGER);
//! - a large body is written from the caller's own slice, a few frames a turn, so that others get between; where they
//!   leave it no turn it is copied piece by piece as theirs is;
//! - a coroutine never writes: its stack is small, and it would hold up others. It wakes the writer thread where
//!   another caller writes.
//!
//! A write that cannot proceed is left to the writer thread, which watches the deadlines.
//!
//! Invariant: user code never runs under the lock, and the lock is taken last: after a channel's lock, never
//! before one.

mod gate;
mod large;
mod turn;

pub(crate) use gate::Gate;

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::{tap::Taps, writer::LINGER};
use crate::{
    error::{Error, Result},
    protocol::{
        frame::write_method,
        spec::{ChannelClose, ChannelCloseOk, ChannelFlowOk, ConnectionClose, Encode},
    },
    sync::{Waiter, lock, wake_all},
    transport::Transport,
};
use gate::{BUSY, OWES_FLOW_OK, SHUT, STOPPED};

/// A caller that gathers this much writes it out: larger writes are hardly cheaper per byte.
const FLUSH_AT: usize = 128 * 1024;

/// An emptied buffer larger than this is given back to the allocator.
const KEEP_CAPACITY: usize = 1024 * 1024;

/// Answers that the reader thread owes the peer go beyond the limit by at most this, because the reader must
/// not wait. A peer that provokes more without reading is given up.
const READER_SLACK: usize = 1024 * 1024;

/// What is appended, as far as gates care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A method alone; passes while the channel's flow is stopped.
    Method,
    /// A method with a content.
    Content,
}

/// Who cares when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// The caller calls [`Outgoing::flush`] himself before he waits.
    Caller,
    /// Nobody waits for an answer.
    Stream,
    /// The writer thread shall write it now; the caller must not.
    Writer,
}

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Push {
    /// It is in the buffer. If `flush`, the caller is to call [`Outgoing::flush_stream`] once it holds no
    /// lock.
    Accepted { flush: bool },
    /// There is no room, or the gate lets nothing through now. A waiter that was given is woken when it may
    /// be worth another try.
    Later,
    /// The channel or the connection is closed; its stored error says why.
    Shut,
    /// The deadline passed after a part of a large content had been sent: the connection cannot be used any more.
    HalfSent,
}

/// The phases of the sending side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Our `connection.close` is in the buffer: nothing may follow it.
    Closing,
    /// What is in the buffer is still written, until the deadline; nothing new is accepted.
    Draining(Instant),
    Shut,
}

/// The outgoing half of one connection.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) state: Mutex<State>,
    /// Where the writer thread sleeps.
    pub(super) work: Condvar,
    /// Where the end of the connection waits for the end of a turn.
    turn_ended: Condvar,
    limit: usize,
    /// [`FLUSH_AT`], or the limit if that is less.
    flush_at: usize,
    max_frame: usize,
    /// How long a caller goes on writing at most.
    write_limit: Duration,
    taps: Taps,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// Whole frames that nobody has begun to write.
    buffer: Vec<u8>,
    /// An empty buffer to swap with.
    spare: Vec<u8>,
    /// What a turn could not write; goes first.
    unfinished: Unfinished,
    /// What the transport itself had left to write when somebody last looked; goes before that.
    backlog: usize,
    /// Somebody is writing at this moment, and how much.
    turn: Option<usize>,
    /// An append since the last pause was written at once; further ones are gathered.
    pub(super) streaming: bool,
    /// The writer thread sleeps without a timer for gathered frames.
    pub(super) writer_asleep: bool,
    /// The writer thread shall write without lingering.
    pub(super) urgent: bool,
    /// Somebody wants what is in the buffer to be written, and found that another has the turn.
    wanted: bool,
    /// Since when nothing could be written although there is something.
    pub(super) stalled_since: Option<Instant>,
    pub(super) last_write: Instant,
    /// The broker accepts no contents at the moment, on any channel.
    pub(super) blocked: bool,
    /// A write failed; the writer thread reports it.
    pub(super) failure: Option<Error>,
    /// Callers that wait for room, for a turn or for a gate.
    waiting: Vec<Waiter>,
}

#[derive(Debug, Default)]
struct Unfinished {
    bytes: Vec<u8>,
    sent: usize,
}

impl Unfinished {
    fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }
}

impl State {
    pub(super) fn unsent(&self) -> usize {
        self.unfinished.len() + self.buffer.len() + self.backlog
    }

    pub(super) fn may_take_turn(&self) -> bool {
        self.turn.is_none() && self.failure.is_none() && self.phase != Phase::Shut
    }

    /// What is to be written should be written now: somebody waits for it, or it is much, or the rest of what was begun.
    fn is_due(&self, flush_at: usize) -> bool {
        self.wanted
            || self.urgent
            || self.phase != Phase::Open
            || self.buffer.len() >= flush_at
            || self.unfinished.len() + self.backlog > 0
    }

    /// While a stream goes on: until when it is gathered. Calls are no stream, however many: a writer thread that looks
    /// beside them every now and then costs them a sixth of their time.
    pub(super) fn gathered_until(&self) -> Option<Instant> {
        self.streaming.then(|| self.last_write + LINGER)
    }

    /// What takes up room: also what is being written.
    fn occupied(&self) -> usize {
        self.unsent() + self.turn.unwrap_or(0)
    }

    /// For the writer thread's heartbeats, which need no gate and no room.
    pub(super) fn append(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        encode(&mut self.buffer);
    }

    fn recycle(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() <= KEEP_CAPACITY && bytes.capacity() > self.spare.capacity() {
            bytes.clear();
            self.spare = bytes;
        }
    }
}

impl Outgoing {
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        limit: usize,
        max_frame: usize,
        write_limit: Duration,
        taps: Taps,
    ) -> Outgoing {
        let state = State {
            phase: Phase::Open,
            buffer: Vec::new(),
            spare: Vec::new(),
            unfinished: Unfinished::default(),
            backlog: 0,
            turn: None,
            streaming: false,
            writer_asleep: true,
            urgent: false,
            wanted: false,
            stalled_since: None,
            last_write: Instant::now(),
            blocked: false,
            failure: None,
            waiting: Vec::new(),
        };
        let (state, flush_at) = (Mutex::new(state), FLUSH_AT.min(limit));
        let (work, turn_ended) = (Condvar::new(), Condvar::new());
        Outgoing { transport, state, work, turn_ended, limit, flush_at, max_frame, write_limit, taps }
    }

    pub(crate) fn max_frame(&self) -> usize {
        self.max_frame
    }

    /// Appends what `encode` writes, if the gate lets it through and there is room.
    ///
    /// # Errors
    /// What `encode` returns; the buffer is as it was before then.
    #[inline]
    pub(crate) fn push(
        &self,
        gate: &Gate,
        kind: Kind,
        urgency: Urgency,
        waiter: Option<Waiter>,
        encode: impl FnOnce(&mut Vec<u8>, u16) -> Result<()>,
    ) -> Result<Push> {
        let mut state = lock(&self.state);
        let bits = gate.bits();
        if bits & SHUT != 0 || state.phase != Phase::Open {
            return Ok(Push::Shut);
        }
        let limit = if urgency == Urgency::Writer { self.limit + READER_SLACK } else { self.limit };
        let stopped = bits & STOPPED != 0 || state.blocked;
        let held = bits & BUSY != 0 || (stopped && kind == Kind::Content);
        if held || state.occupied() >= limit {
            state.waiting.extend(waiter);
            return Ok(Push::Later);
        }
        let before = state.buffer.len();
        if before == 0 && state.streaming && urgency == Urgency::Stream {
            // After a pause the next one is a lone one again.
            state.streaming = state.gathered_until() > Some(Instant::now());
        }
        if let Err(error) = encode(&mut state.buffer, bits as u16) {
            state.buffer.truncate(before);
            return Err(error);
        }
        Ok(Push::Accepted { flush: self.arrange_writing(state, urgency) })
    }

    /// [`push`](Outgoing::push) for methods that do not come by the thousand: compiled once.
    pub(crate) fn push_method(
        &self,
        gate: &Gate,
        urgency: Urgency,
        waiter: Option<Waiter>,
        encode: &mut dyn FnMut(&mut Vec<u8>, u16) -> Result<()>,
    ) -> Result<Push> {
        self.push(gate, Kind::Method, urgency, waiter, encode)
    }

    /// Decides who writes what was appended; true when the caller is to.
    #[inline]
    fn arrange_writing(&self, mut state: MutexGuard<'_, State>, urgency: Urgency) -> bool {
        let wake_writer = match urgency {
            Urgency::Caller => false,
            Urgency::Writer => {
                state.urgent = true;
                true
            }
            // The holder of the turn sees it when he is done.
            Urgency::Stream if state.turn.is_some() => false,
            Urgency::Stream => {
                if !std::mem::replace(&mut state.streaming, true) || state.buffer.len() >= self.flush_at {
                    return true;
                }
                std::mem::replace(&mut state.writer_asleep, false)
            }
        };
        drop(state);
        if wake_writer {
            self.work.notify_one();
        }
        false
    }

    /// Like [`push`](Outgoing::push), and waits for room until `deadline`; [`Push::Later`] means that it has
    /// passed. Writes what is to be written.
    #[inline]
    pub(crate) fn push_within(
        &self,
        gate: &Gate,
        kind: Kind,
        deadline: impl Fn() -> Option<Instant>,
        mut encode: impl FnMut(&mut Vec<u8>, u16) -> Result<()>,
    ) -> Result<Push> {
        let mut pushed = self.push(gate, kind, Urgency::Stream, None, &mut encode)?;
        if pushed == Push::Later {
            let deadline = deadline();
            let mut waiter = None;
            loop {
                if !self.pause(&mut waiter, deadline)? {
                    break;
                }
                pushed = self.push(gate, kind, Urgency::Stream, waiter.clone(), &mut encode)?;
                if pushed != Push::Later {
                    break;
                }
            }
        }
        if pushed == (Push::Accepted { flush: true }) {
            self.flush_stream();
        }
        Ok(pushed)
    }

    /// Waits after [`Push::Later`]; false when the deadline has passed. The first time it makes the waiter and does
    /// not wait: that is left by the next try.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::WouldDeadlock`].
    pub(crate) fn pause(&self, waiter: &mut Option<Waiter>, deadline: Option<Instant>) -> Result<bool> {
        let Some(waiter) = waiter else {
            *waiter = Some(Waiter::new());
            return Ok(true);
        };
        let Err(given_up) = waiter.park(deadline) else { return Ok(true) };
        lock(&self.state).waiting.retain(|other| !other.is(waiter));
        given_up.forbidden().map_or(Ok(false), Err)
    }

    /// A stream goes on, and the writer thread looks after it.
    #[cfg(test)]
    pub(crate) fn is_gathering(&self) -> bool {
        lock(&self.state).gathered_until().is_some()
    }

    /// Appends a channel's close and shuts its gate behind it. [`Push::Later`] while a content is being
    /// sent in pieces: nothing may come between these.
    pub(crate) fn shut(
        &self,
        gate: &Gate,
        urgency: Urgency,
        waiter: Option<Waiter>,
        close: &ChannelClose<'_>,
    ) -> Result<Push> {
        let pushed = self.push_method(gate, urgency, waiter, &mut |out, channel| {
            write_method(out, channel, self.max_frame, close)?;
            gate.set(SHUT);
            Ok(())
        });
        self.wake_waiting();
        pushed
    }

    /// Shuts a channel's gate without a word.
    pub(crate) fn shut_silently(&self, gate: &Gate) {
        gate.set(SHUT);
        self.wake_waiting();
    }

    /// The reader's: shuts a channel's gate and appends the answer to the peer's close, even between the
    /// pieces of a content, which the peer ignores by now. True if a close of ours went out before.
    pub(crate) fn answer_close(&self, gate: &Gate) -> bool {
        let mut state = lock(&self.state);
        let before = gate.set(SHUT);
        if state.phase == Phase::Open {
            self.append(&mut state, before as u16, &ChannelCloseOk {});
        }
        let waiting = std::mem::take(&mut state.waiting);
        self.arrange_writing(state, Urgency::Writer);
        wake_all(waiting);
        before & SHUT != 0
    }

    fn wake_waiting(&self) {
        let waiting = std::mem::take(&mut lock(&self.state).waiting);
        wake_all(waiting);
    }

    /// Stops or resumes contents on a channel, and answers so; a content that is on its way is finished before
    /// the answer. False when the peer asks for ever more answers without reading them.
    pub(crate) fn set_flow(&self, gate: &Gate, active: bool) -> bool {
        let mut state = lock(&self.state);
        if active {
            gate.clear(STOPPED);
        } else {
            gate.set(STOPPED);
        }
        let bits = gate.bits();
        if bits & BUSY != 0 {
            gate.set(OWES_FLOW_OK);
        } else if bits & SHUT == 0 && state.phase == Phase::Open {
            self.append_flow_ok(&mut state, bits);
        }
        let bounded = state.occupied() < self.limit + READER_SLACK;
        let waiting = std::mem::take(&mut state.waiting);
        self.arrange_writing(state, Urgency::Writer);
        wake_all(waiting);
        bounded
    }

    fn append_flow_ok(&self, state: &mut State, bits: u32) {
        self.append(state, bits as u16, &ChannelFlowOk { active: bits & STOPPED == 0 });
    }

    /// For methods far below the smallest frame_max, so that it cannot fail.
    fn append(&self, state: &mut State, channel: u16, method: &dyn Encode) {
        let _ = write_method(&mut state.buffer, channel, self.max_frame, method);
    }

    /// Stops or resumes contents on all channels.
    pub(crate) fn set_blocked(&self, blocked: bool) {
        let mut state = lock(&self.state);
        state.blocked = blocked;
        // A broker that is short of memory does not read; that is no reason to give it up.
        state.stalled_since = None;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        wake_all(waiting);
    }

    /// Appends the connection's close, and refuses everything from now on. [`Push::Later`] while there is no room.
    pub(crate) fn close(&self, waiter: Option<Waiter>, close: &ConnectionClose<'_>) -> Push {
        let mut state = lock(&self.state);
        if state.phase != Phase::Open {
            return Push::Shut;
        }
        if state.occupied() >= self.limit {
            state.waiting.extend(waiter);
            return Push::Later;
        }
        self.append(&mut state, 0, close);
        state.phase = Phase::Closing;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        wake_all(waiting);
        Push::Accepted { flush: true }
    }

    /// Refuses everything from now on, appends what is still to be said, and has the writer thread write what is
    /// left within `grace` and then shut the transport down.
    pub(crate) fn finish(&self, grace: Duration, last: &dyn Encode) {
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::Open | Phase::Closing) {
            self.append(&mut state, 0, last);
            state.phase = Phase::Draining(Instant::now() + grace);
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.work.notify_one();
        wake_all(waiting);
    }

    /// Like [`finish`](Outgoing::finish), without writing anything more.
    pub(crate) fn abort(&self) {
        let mut state = lock(&self.state);
        state.phase = Phase::Shut;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.transport.shutdown();
        self.work.notify_one();
        wake_all(waiting);
    }
}
