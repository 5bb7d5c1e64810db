//! Gates: whether a channel may send at the moment.

use std::sync::atomic::{AtomicU32, Ordering};

/// Nothing may follow: the channel is closed, or was never opened.
pub(super) const SHUT: u32 = 1 << 16;
/// A content goes out in pieces, and nothing else of this channel may come between them.
pub(super) const BUSY: u32 = 1 << 17;
/// The peer has stopped the channel's flow: contents wait.
pub(super) const STOPPED: u32 = 1 << 18;
/// A `channel.flow-ok` is due when the content that is going out is complete.
pub(super) const OWES_FLOW_OK: u32 = 1 << 19;
/// From this bit on: how often the gate was opened, for a content that is cut off by a close and must not go on
/// when the channel is opened again meanwhile.
const GENERATION: u32 = 1 << 20;

/// Whether a channel may send, and its id. Read under the lock of [`Outgoing`](super::Outgoing), so that what a
/// channel sends ends exactly where its close stands on the wire.
#[derive(Debug)]
pub(crate) struct Gate(AtomicU32);

impl Gate {
    pub(crate) fn shut() -> Gate {
        Gate(AtomicU32::new(SHUT))
    }

    pub(crate) fn opened(channel: u16) -> Gate {
        Gate(AtomicU32::new(channel.into()))
    }

    /// Opens it for a newly opened channel.
    pub(crate) fn open(&self, channel: u16) {
        let next = generation(self.bits()).wrapping_add(GENERATION);
        self.0.store(next | u32::from(channel), Ordering::SeqCst);
    }

    /// It was not shut since it had these bits.
    pub(super) fn is_open_since(&self, bits: u32) -> bool {
        let now = self.bits();
        now & SHUT == 0 && generation(now) == generation(bits)
    }

    /// It was not opened since it had these bits.
    pub(super) fn is_same_since(&self, bits: u32) -> bool {
        generation(self.bits()) == generation(bits)
    }

    pub(crate) fn channel(&self) -> u16 {
        self.bits() as u16
    }

    /// The channel in the lower half, and above it the flags and the generation.
    pub(super) fn bits(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Sets a flag, and returns the bits before.
    pub(super) fn set(&self, flag: u32) -> u32 {
        self.0.fetch_or(flag, Ordering::SeqCst)
    }

    pub(super) fn clear(&self, flags: u32) {
        self.0.fetch_and(!flags, Ordering::SeqCst);
    }
}

fn generation(bits: u32) -> u32 {
    bits & !(GENERATION - 1)
}
