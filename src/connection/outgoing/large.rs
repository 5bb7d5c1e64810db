//! Contents whose body is large: written from the caller's own slice, piece by piece.

use std::time::Instant;

use super::{
    Outgoing, Phase, Push, Unfinished,
    gate::{BUSY, Gate, OWES_FLOW_OK, SHUT, STOPPED},
};
use crate::{
    error::Result,
    protocol::frame::{self, FrameKind},
    sync::{Waiter, lock, wake_all},
    transport::Patience,
};

/// Body frames written in one turn.
const FRAMES_PER_TURN: usize = 16;

/// Slices in one write: header, piece and trailer of each frame; what was gathered before; the content's head.
pub(super) const MAX_PARTS: usize = 3 * FRAMES_PER_TURN + 2;

/// Bytes of body written in one turn, unless a single frame is larger.
const BODY_PER_TURN: usize = 256 * 1024;

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
        begin: impl FnOnce(),
    ) -> Result<Push> {
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
            state.waiting.push(Waiter::current());
            drop(state);
            if !self.pause(deadline) {
                return Ok(Push::Later);
            }
        };
        let mut head_bytes = Vec::new();
        let pushed = head(&mut head_bytes, opened as u16)
            .map(|()| self.push_pieces(gate, opened, &head_bytes, body, deadline, begin));

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
        begin: impl FnOnce(),
    ) -> Push {
        let room = self.max_frame - frame::OVERHEAD;
        let per_turn = (BODY_PER_TURN / room).clamp(1, FRAMES_PER_TURN) * room;
        let mut pieces = body.chunks(per_turn);
        let first = self.push_piece(gate, opened, head, pieces.next().unwrap_or_default(), deadline, begin);
        if !matches!(first, Push::Accepted { .. }) {
            return first;
        }
        for piece in pieces {
            match self.push_piece(gate, opened, &[], piece, deadline, || {}) {
                Push::Accepted { .. } => {}
                Push::Later => return Push::HalfSent,
                other => return other,
            }
        }
        first
    }

    /// Writes one piece, after everything that was appended before. What the transport does not take at once
    /// is kept for the writer thread, so a piece is always accepted as a whole.
    fn push_piece(
        &self,
        gate: &Gate,
        opened: u32,
        head: &[u8],
        piece: &[u8],
        deadline: Option<Instant>,
        begin: impl FnOnce(),
    ) -> Push {
        let mut state = loop {
            let mut state = lock(&self.state);
            // Looked at after the turn is ours: what the reader appended before, such as a close-ok, is
            // written first, and after it nothing of this channel may follow.
            if !gate.is_open_since(opened) || state.phase != Phase::Open {
                return Push::Shut;
            }
            if state.may_take_turn() && state.unfinished.len() == 0 {
                break state;
            }
            state.waiting.push(Waiter::current());
            drop(state);
            if !self.pause(deadline) {
                return Push::Later;
            }
        };
        begin();
        let empty = std::mem::take(&mut state.spare);
        let before = std::mem::replace(&mut state.buffer, empty);
        state.turn = Some(before.len() + piece.len());
        drop(state);

        let room = self.max_frame - frame::OVERHEAD;
        let mut headers = [[0; 7]; FRAMES_PER_TURN];
        let mut parts: [&[u8]; MAX_PARTS] = [&[]; MAX_PARTS];
        for (header, chunk) in headers.iter_mut().zip(piece.chunks(room)) {
            *header = frame::header(FrameKind::Body, opened as u16, chunk.len() as u32);
        }
        let frames = headers.iter().zip(piece.chunks(room));
        let frames = frames.flat_map(|(header, chunk)| [&header[..], chunk, &frame::TRAILER]);
        let mut count = 0;
        for (place, part) in parts.iter_mut().zip([&before[..], head].into_iter().chain(frames)) {
            *place = part;
            count += 1;
        }
        let parts = parts.get(..count).unwrap_or_default();
        let (sent, result) = self.send(parts, Patience::Quantum);

        let mut rest = Vec::new();
        let mut skip = sent;
        for part in parts {
            rest.extend_from_slice(part.get(skip..).unwrap_or_default());
            skip = skip.saturating_sub(part.len());
        }
        let mut state = lock(&self.state);
        state.turn = None;
        self.note(&mut state, sent, result);
        state.unfinished = Unfinished { bytes: rest, sent: 0 };
        state.recycle(before);
        self.end_turn(state);
        Push::Accepted { flush: false }
    }
}
