//! Contents whose body is large: written from the caller's own slice, piece by piece.

use std::{io::IoSlice, sync::MutexGuard, time::Instant};

use super::{
    Outgoing, Phase, Push, State, Unfinished,
    gate::{BUSY, Gate, OWES_FLOW_OK, SHUT, STOPPED},
};
use crate::{
    error::{Error, Result},
    protocol::{
        content::write_body,
        frame::{self, FrameKind},
    },
    sync::{is_coroutine, lock, wake_all},
    transport::{Patience, stint::Stint, tap::Direction},
};

/// Method and header of most contents.
const USUAL_HEAD: usize = 256;

/// Body frames written in one turn.
const FRAMES_PER_TURN: usize = 16;

/// Slices in one write: header, piece and trailer of each frame; what was gathered before; the content's head.
const MAX_PARTS: usize = 3 * FRAMES_PER_TURN + 2;

/// Bytes of body written in one turn, unless a single frame is larger.
const BODY_PER_TURN: usize = 256 * 1024;

/// How a content waits for its turns.
struct Waiting {
    deadline: Option<Instant>,
    /// It has waited for one, which others had again by then.
    in_vain: bool,
}

impl Outgoing {
    /// Writes a content whose body is large from the caller's own slice, its method and header being what `head`
    /// writes. Other frames of the same channel wait meanwhile; other channels' get between. `begin` is called,
    /// under the lock, when the content takes its place on the wire.
    ///
    /// [`Push::Later`] means that the deadline passed before a byte of it was accepted.
    ///
    /// # Errors
    /// What `head` returns; nothing was sent then.
    pub(crate) fn push_large(
        &self,
        gate: &Gate,
        body: &[u8],
        deadline: Option<Instant>,
        head: impl FnOnce(&mut Vec<u8>, u16) -> Result<()>,
        begin: &mut dyn FnMut(),
    ) -> Result<Push> {
        let mut waiter = None;
        let opened = loop {
            let mut state = lock(&self.state);
            let bits = gate.bits();
            if bits & SHUT != 0 || state.phase != Phase::Open {
                return Ok(Push::Shut);
            }
            let held = bits & (BUSY | STOPPED) != 0 || state.blocked;
            if !held && state.occupied() < self.limit {
                gate.set(BUSY);
                break bits;
            }
            state.waiting.extend(waiter.clone());
            drop(state);
            if !self.pause(&mut waiter, deadline)? {
                return Ok(Push::Later);
            }
        };
        let mut head_bytes = Vec::with_capacity(USUAL_HEAD);
        let pushed = head(&mut head_bytes, opened as u16).and_then(|()| {
            if is_coroutine() {
                self.append_pieces(gate, opened, &head_bytes, body, deadline, begin)
            } else {
                self.push_pieces(gate, opened, &head_bytes, body, deadline, begin)
            }
        });

        let mut state = lock(&self.state);
        if !gate.is_same_since(opened) {
            // Cut off, and the flags are those of the channel that was opened in its place.
            return pushed;
        }
        let bits = gate.bits();
        gate.clear(BUSY | OWES_FLOW_OK);
        if bits & OWES_FLOW_OK != 0 && bits & SHUT == 0 && state.phase == Phase::Open {
            self.append_flow_ok(&mut state, bits);
            state.urgent = true;
            self.work.notify_one();
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        wake_all(waiting);
        pushed
    }

    fn push_pieces(
        &self,
        gate: &Gate,
        opened: u32,
        head: &[u8],
        body: &[u8],
        deadline: Option<Instant>,
        begin: &mut dyn FnMut(),
    ) -> Result<Push> {
        let mut pieces = body.chunks(self.body_per_turn());
        let first = pieces.next().unwrap_or_default();
        let mut waiting = Waiting { deadline, in_vain: false };
        let first = self.push_piece(gate, opened, head, first, &mut waiting, begin)?;
        if !matches!(first, Push::Accepted { .. }) {
            return Ok(first);
        }
        for piece in pieces {
            match self.push_piece(gate, opened, &[], piece, &mut waiting, &mut || {})? {
                Push::Accepted { .. } => {}
                Push::Later => return Ok(Push::HalfSent),
                other => return Ok(other),
            }
        }
        Ok(first)
    }

    fn body_per_turn(&self) -> usize {
        let room = self.max_frame - frame::OVERHEAD;
        (BODY_PER_TURN / room).clamp(1, FRAMES_PER_TURN) * room
    }

    /// For a coroutine, which must not write: copies the pieces into the buffer, each when the one before is on its
    /// way, and has the writer thread write them. When the coroutine is cancelled after the first, the rest goes in
    /// at once: half a message cannot be taken back.
    fn append_pieces(
        &self,
        gate: &Gate,
        opened: u32,
        mut head: &[u8],
        body: &[u8],
        deadline: Option<Instant>,
        begin: &mut dyn FnMut(),
    ) -> Result<Push> {
        let mut begin = Some(begin);
        let mut waiter = None;
        let mut may_wait = true;
        let mut waited = false;
        for piece in body.chunks(self.body_per_turn()) {
            let state = loop {
                let mut state = lock(&self.state);
                if !gate.is_open_since(opened) || state.phase != Phase::Open {
                    return Ok(Push::Shut);
                }
                // Others may fill more than that again before this one comes to look.
                let room = if waited { self.limit } else { self.limit.min(2 * BODY_PER_TURN) };
                if !may_wait || state.occupied() < room {
                    break state;
                }
                waited |= waiter.is_some();
                state.waiting.extend(waiter.clone());
                drop(state);
                match self.pause(&mut waiter, deadline) {
                    Ok(true) => {}
                    Ok(false) if begin.is_some() => return Ok(Push::Later),
                    Ok(false) => return Ok(Push::HalfSent),
                    Err(Error::Cancelled) if begin.is_none() => may_wait = false,
                    Err(error) => return Err(error),
                }
            };
            if let Some(begin) = begin.take() {
                begin();
            }
            self.append_piece(state, opened, std::mem::take(&mut head), piece);
        }
        Ok(Push::Accepted { flush: false })
    }

    /// Copies one piece into the buffer, for the writer thread.
    fn append_piece(&self, mut state: MutexGuard<'_, State>, opened: u32, head: &[u8], piece: &[u8]) {
        state.buffer.extend_from_slice(head);
        write_body(&mut state.buffer, opened as u16, self.max_frame, piece);
        state.urgent = true;
        drop(state);
        self.work.notify_one();
    }

    /// Writes one piece, after everything that was appended before. What the transport does not take at once
    /// is kept for the writer thread, so a piece is always accepted as a whole.
    ///
    /// Others who publish as fast as they can may have the turn among them whenever this one comes to look. So once it has
    /// waited for the turn, and others have gathered something again, it does as they do: a copy goes into the buffer.
    fn push_piece(
        &self,
        gate: &Gate,
        opened: u32,
        head: &[u8],
        piece: &[u8],
        waiting: &mut Waiting,
        begin: &mut dyn FnMut(),
    ) -> Result<Push> {
        let mut waiter = None;
        let mut state = loop {
            let mut state = lock(&self.state);
            // Looked at after the turn is ours: what the reader appended before, such as a close-ok, is
            // written first, and after it nothing of this channel may follow.
            if !gate.is_open_since(opened) || state.phase != Phase::Open {
                return Ok(Push::Shut);
            }
            if state.may_take_turn() && state.unfinished.len() == 0 {
                break state;
            }
            if waiting.in_vain && !state.buffer.is_empty() && state.occupied() < self.limit {
                begin();
                self.append_piece(state, opened, head, piece);
                return Ok(Push::Accepted { flush: false });
            }
            waiting.in_vain |= waiter.is_some();
            state.waiting.extend(waiter.clone());
            drop(state);
            if !self.pause(&mut waiter, waiting.deadline)? {
                return Ok(Push::Later);
            }
        };
        begin();
        let empty = std::mem::take(&mut state.spare);
        let before = std::mem::replace(&mut state.buffer, empty);
        state.wanted = false;
        state.turn = Some(before.len() + piece.len());
        drop(state);
        self.taps.show(Direction::Outgoing, &before, self.max_frame);
        self.taps.show(Direction::Outgoing, head, self.max_frame);

        let room = self.max_frame - frame::OVERHEAD;
        self.taps.show_body(opened as u16, piece.chunks(room));
        let mut headers = [[0; 7]; FRAMES_PER_TURN];
        let mut parts = [IoSlice::new(&[]); MAX_PARTS];
        for (header, chunk) in headers.iter_mut().zip(piece.chunks(room)) {
            *header = frame::header(FrameKind::Body, opened as u16, chunk.len() as u32);
        }
        let frames = headers.iter().zip(piece.chunks(room));
        let frames = frames.flat_map(|(header, chunk)| [&header[..], chunk, &frame::TRAILER]);
        let all = [&before[..], head].into_iter().chain(frames).filter(|part| !part.is_empty());
        let mut count = 0;
        for (place, part) in parts.iter_mut().zip(all) {
            *place = IoSlice::new(part);
            count += 1;
        }
        // Sending uses its slices up.
        let mut sending = parts;
        let mut stint = Stint::of(self.write_limit);
        let (sent, result) =
            self.send(sending.get_mut(..count).unwrap_or_default(), Patience::Quantum, &mut stint);

        let mut rest = Vec::new();
        let mut skip = sent;
        for part in parts.iter().take(count) {
            rest.extend_from_slice(part.get(skip..).unwrap_or_default());
            skip = skip.saturating_sub(part.len());
        }
        let mut state = lock(&self.state);
        state.turn = None;
        self.note(&mut state, sent, result);
        state.unfinished = Unfinished { bytes: rest, sent: 0 };
        state.recycle(before);
        self.end_turn(state);
        Ok(Push::Accepted { flush: false })
    }
}
