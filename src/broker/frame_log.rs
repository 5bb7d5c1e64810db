//! A record of the frames that went over a broker's connections, for tests to look at.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    model::SessionId,
    session::frames::{self as wire, RawFrame},
};
use crate::{protocol::spec, sync::lock};

/// Who sent a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The client.
    FromClient,
    /// The broker.
    ToClient,
}

/// A frame, as [`Broker::frame_log`](super::Broker::frame_log) remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoggedFrame {
    /// The connection's number, as in [`ConnectionInfo::id`](super::ConnectionInfo::id).
    pub connection: u64,
    /// Who sent it.
    pub direction: Direction,
    /// Its channel.
    pub channel: u16,
    /// The method's name, or `header`, `body` or `heartbeat`. A method that AMQP does not have is `?`.
    pub name: &'static str,
    /// The size of its payload in bytes.
    pub size: usize,
}

/// The broker's own frames, each with the place of its end. A protocol header is none.
pub(super) fn frames(bytes: &[u8]) -> impl Iterator<Item = (RawFrame<'_>, usize)> {
    let mut used = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(used..)?;
        let (&[kind, high, low, a, b, c, d], after) = rest.split_first_chunk()?;
        let payload = after.get(..u32::from_be_bytes([a, b, c, d]) as usize)?;
        used += 7 + payload.len() + 1;
        Some((RawFrame { kind, channel: u16::from_be_bytes([high, low]), payload }, used))
    })
}

/// The last frames; none until it is told how many to keep.
#[derive(Debug, Default)]
pub(super) struct FrameLog {
    kept: AtomicUsize,
    frames: Mutex<VecDeque<LoggedFrame>>,
}

impl FrameLog {
    /// Keeps the last `kept` frames from now on.
    pub(super) fn keep(&self, kept: usize) {
        let mut frames = lock(&self.frames);
        self.kept.store(kept, Ordering::SeqCst);
        let surplus = frames.len().saturating_sub(kept);
        frames.drain(..surplus);
        frames.shrink_to_fit();
    }

    pub(super) fn frames(&self) -> Vec<LoggedFrame> {
        lock(&self.frames).iter().cloned().collect()
    }

    pub(super) fn sent(&self, session: SessionId, bytes: &[u8]) {
        if self.kept.load(Ordering::Relaxed) > 0 {
            for (RawFrame { kind, channel, payload }, _) in frames(bytes) {
                self.add(session, Direction::ToClient, kind, channel, payload);
            }
        }
    }

    pub(super) fn received(&self, session: SessionId, kind: u8, channel: u16, payload: &[u8]) {
        if self.kept.load(Ordering::Relaxed) > 0 {
            self.add(session, Direction::FromClient, kind, channel, payload);
        }
    }

    fn add(&self, session: SessionId, direction: Direction, kind: u8, channel: u16, payload: &[u8]) {
        let name = match (kind, payload) {
            (wire::METHOD, &[a, b, c, d, ..]) => {
                let name = spec::method_name(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                if name.is_empty() { "?" } else { name }
            }
            (wire::HEADER, _) => "header",
            (wire::BODY, _) => "body",
            (wire::HEARTBEAT, _) => "heartbeat",
            _ => "?",
        };
        let frame = LoggedFrame { connection: session.0, direction, channel, name, size: payload.len() };
        let mut frames = lock(&self.frames);
        if frames.len() >= self.kept.load(Ordering::SeqCst) {
            frames.pop_front();
        }
        frames.push_back(frame);
    }
}
