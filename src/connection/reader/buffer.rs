//! The buffer that is read into. Large messages are not copied out of it but share it: then reading goes on in
//! another one, and this one is used again when nobody has any of its messages any more.

use std::{collections::VecDeque, sync::Arc};

/// The size of a read buffer; it grows only for a frame that does not fit.
const READ_BUFFER: usize = 512 * 1024;

/// Buffers that are remembered while others have them. More may be out; those are forgotten.
const REMEMBERED: usize = 3;

/// A buffer of which the first bytes have been received and not used.
pub(super) struct ReadBuffer {
    bytes: Arc<Vec<u8>>,
    filled: usize,
    lent: VecDeque<Arc<Vec<u8>>>,
}

impl ReadBuffer {
    /// With what the handshake has left over.
    pub(super) fn new(received: &[u8]) -> ReadBuffer {
        let mut buffer = ReadBuffer { bytes: Arc::default(), filled: 0, lent: VecDeque::new() };
        buffer.replace(received);
        buffer
    }

    /// What was received and not used, at the start of the buffer.
    pub(super) fn received(&self) -> (&Arc<Vec<u8>>, usize) {
        (&self.bytes, self.filled)
    }

    /// Makes room: what was used goes. A buffer that somebody shares is left to him.
    pub(super) fn used(&mut self, used: usize) {
        let rest = used.min(self.filled)..self.filled;
        let Some(bytes) = Arc::get_mut(&mut self.bytes) else {
            let shared = self.bytes.clone();
            self.replace(shared.get(rest).unwrap_or_default());
            if self.lent.len() == REMEMBERED {
                self.lent.pop_front();
            }
            self.lent.push_back(shared);
            return;
        };
        self.filled = rest.len();
        bytes.copy_within(rest, 0);
        if self.filled == bytes.len() {
            // A frame that does not fit; decode has accepted its size. Growing by doubling never gets ahead
            // of what was received.
            bytes.resize(2 * self.filled, 0);
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.used(self.filled);
    }

    /// Where the next bytes belong. Nobody shares the buffer after [`used`](ReadBuffer::used).
    pub(super) fn space(&mut self) -> &mut [u8] {
        Arc::get_mut(&mut self.bytes).and_then(|bytes| bytes.get_mut(self.filled..)).unwrap_or_default()
    }

    /// So many bytes were put there.
    pub(super) fn add(&mut self, received: usize) {
        self.filled += received;
    }

    /// Goes on in another buffer, with a copy of `rest`.
    fn replace(&mut self, rest: &[u8]) {
        let size = READ_BUFFER.max(2 * rest.len());
        let free = self.lent.iter_mut().position(|lent| lent.len() == size && Arc::get_mut(lent).is_some());
        // Fresh zeros from the system: what is never received is never there.
        let mut next =
            free.and_then(|free| self.lent.remove(free)).unwrap_or_else(|| Arc::new(vec![0; size]));
        if let Some(start) = Arc::get_mut(&mut next).and_then(|bytes| bytes.get_mut(..rest.len())) {
            start.copy_from_slice(rest);
        }
        self.bytes = next;
        self.filled = rest.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(buffer: &mut ReadBuffer, bytes: &[u8]) {
        buffer.space()[..bytes.len()].copy_from_slice(bytes);
        buffer.add(bytes.len());
    }

    fn received(buffer: &ReadBuffer) -> &[u8] {
        let (bytes, filled) = buffer.received();
        &bytes[..filled]
    }

    #[test]
    fn what_was_not_used_stays() {
        let mut buffer = ReadBuffer::new(b"before ");
        receive(&mut buffer, b"and after");
        assert_eq!(received(&buffer), b"before and after");
        buffer.used(7);
        assert_eq!(received(&buffer), b"and after");
        buffer.clear();
        assert_eq!(received(&buffer), b"");
    }

    #[test]
    fn a_buffer_that_is_shared_is_not_written_to_and_is_used_again_later() {
        let mut buffer = ReadBuffer::new(b"");
        receive(&mut buffer, b"large rest");
        let shared = buffer.received().0.clone();
        let address = shared.as_ptr();
        buffer.used(6);
        assert_eq!(received(&buffer), b"rest");
        receive(&mut buffer, &[b'x'; 20]);
        assert_eq!(&shared[..10], b"large rest");
        drop(shared);
        let shared = buffer.received().0.clone();
        buffer.used(0);
        assert_eq!(buffer.received().0.as_ptr(), address);
        assert_eq!(&received(&buffer)[..5], b"restx");
        drop(shared);
    }

    #[test]
    fn buffers_that_others_keep_are_forgotten() {
        let mut buffer = ReadBuffer::new(b"");
        let kept: Vec<_> = (0..10)
            .map(|_| {
                let shared = buffer.received().0.clone();
                buffer.used(0);
                shared
            })
            .collect();
        assert_eq!(kept.iter().filter(|kept| Arc::strong_count(kept) > 1).count(), REMEMBERED);
    }

    #[test]
    fn a_frame_that_does_not_fit_makes_it_grow() {
        let mut buffer = ReadBuffer::new(b"");
        for _ in 0..3 {
            let all = buffer.space().len();
            buffer.add(all);
            buffer.used(0);
        }
        assert_eq!(received(&buffer).len(), 4 * READ_BUFFER);
        let shared = buffer.received().0.clone();
        buffer.used(0);
        assert_eq!((received(&buffer).len(), buffer.space().len()), (4 * READ_BUFFER, 4 * READ_BUFFER));
        drop(shared);
    }
}
