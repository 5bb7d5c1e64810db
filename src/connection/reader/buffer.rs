//! The buffer that is read into. Large messages are not copied out of it but share it: then reading goes on in
//! another one, and this one is used again when nobody has any of its messages any more.

use std::{mem, ops::Range, sync::Arc, thread};

/// The size of a read buffer at first, so that a connection which hardly reads costs little.
const FIRST: usize = 16 * 1024;

/// The size up to which it grows when as much as it holds comes at once: the more is read at once, the fewer switches of
/// threads and notices to the sender there are. Beyond that it grows only for a frame that does not fit.
pub(super) const READ_BUFFER: usize = 1024 * 1024;

/// Whether more could be read at once to any purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Growth {
    Useful,
    /// What comes is a message that is larger than any read, and copied frame by frame.
    Useless,
}

/// A buffer of which the first bytes have been received and not used.
pub(super) struct ReadBuffer {
    bytes: Arc<Vec<u8>>,
    filled: usize,
    /// The one before, if others had it when it was full. More may be out; those are forgotten.
    lent: Arc<Vec<u8>>,
}

impl ReadBuffer {
    /// With what the handshake has left over.
    pub(super) fn new(received: &[u8]) -> ReadBuffer {
        let bytes = Arc::new(zeros(FIRST.max(2 * received.len()), received));
        ReadBuffer { bytes, filled: received.len(), lent: Arc::default() }
    }

    /// What was received and not used, at the start of the buffer.
    pub(super) fn received(&self) -> (&Arc<Vec<u8>>, usize) {
        (&self.bytes, self.filled)
    }

    /// Makes room: what was used goes. A buffer that somebody shares is left to him. `Growth` says whether more room would
    /// be of use.
    pub(super) fn used(&mut self, used: usize, growth: Growth) {
        let rest = used.min(self.filled)..self.filled;
        let Some(bytes) = Arc::get_mut(&mut self.bytes) else { return self.replace(rest) };
        let was_full = self.filled == bytes.len() && self.filled < READ_BUFFER && growth == Growth::Useful;
        self.filled = rest.len();
        bytes.copy_within(rest, 0);
        if was_full || self.filled == bytes.len() {
            // More may be there; or a frame does not fit, whose size decode has accepted. Growing by doubling never gets
            // ahead of what was received.
            bytes.resize(2 * bytes.len(), 0);
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.used(self.filled, Growth::Useless);
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
    fn replace(&mut self, rest: Range<usize>) {
        let size = READ_BUFFER.max(2 * rest.len());
        let is_back = |lent: &mut Arc<Vec<u8>>| lent.len() == size && Arc::get_mut(lent).is_some();
        if self.lent.len() == size && !is_back(&mut self.lent) {
            // Whoever reads its messages may wait for this very processor, and is faster than memory that is not in the cache.
            thread::yield_now();
        }
        self.filled = rest.len();
        let rest = self.bytes.get(rest).unwrap_or_default();
        if is_back(&mut self.lent)
            && let Some(start) = Arc::get_mut(&mut self.lent).and_then(|bytes| bytes.get_mut(..rest.len()))
        {
            start.copy_from_slice(rest);
        } else {
            self.lent = Arc::new(zeros(size, rest));
        }
        mem::swap(&mut self.bytes, &mut self.lent);
    }
}

/// So many bytes, which begin with `start`. Fresh zeros come from the system: what is never received is never there.
fn zeros(size: usize, start: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    if let Some(place) = bytes.get_mut(..start.len()) {
        place.copy_from_slice(start);
    }
    bytes
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
        buffer.used(7, Growth::Useful);
        assert_eq!(received(&buffer), b"and after");
        buffer.clear();
        assert_eq!(received(&buffer), b"");
    }

    /// Row 91: what hardly reads has a small buffer; what comes in large pieces makes it grow, up to a limit.
    #[test]
    fn it_grows_while_it_is_filled_by_what_comes() {
        let mut buffer = ReadBuffer::new(b"");
        for (received, growth) in [(FIRST - 1, Growth::Useful), (FIRST, Growth::Useless)] {
            buffer.add(received);
            buffer.used(received, growth);
            assert_eq!(buffer.space().len(), FIRST);
        }
        for _ in 0..20 {
            let all = buffer.space().len();
            buffer.add(all);
            buffer.used(all, Growth::Useful);
        }
        assert_eq!(buffer.space().len(), READ_BUFFER);
    }

    #[test]
    fn a_buffer_that_is_shared_is_not_written_to_and_is_used_again_later() {
        let mut buffer = ReadBuffer::new(b"");
        let small = buffer.received().0.clone();
        buffer.used(0, Growth::Useful);
        drop(small);
        receive(&mut buffer, b"large rest");
        let shared = buffer.received().0.clone();
        let address = shared.as_ptr();
        buffer.used(6, Growth::Useful);
        assert_eq!(received(&buffer), b"rest");
        receive(&mut buffer, &[b'x'; 20]);
        assert_eq!(&shared[..10], b"large rest");
        drop(shared);
        let shared = buffer.received().0.clone();
        buffer.used(0, Growth::Useful);
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
                buffer.used(0, Growth::Useful);
                shared
            })
            .collect();
        assert_eq!(kept.iter().filter(|kept| Arc::strong_count(kept) > 1).count(), 1);
    }

    #[test]
    fn a_frame_that_does_not_fit_makes_it_grow() {
        let mut buffer = ReadBuffer::new(b"");
        while received(&buffer).len() < 4 * READ_BUFFER {
            let all = buffer.space().len();
            buffer.add(all);
            buffer.used(0, Growth::Useful);
        }
        assert_eq!(buffer.space().len(), 4 * READ_BUFFER);
        let shared = buffer.received().0.clone();
        buffer.used(0, Growth::Useful);
        assert_eq!((received(&buffer).len(), buffer.space().len()), (4 * READ_BUFFER, 4 * READ_BUFFER));
        drop(shared);
    }
}
