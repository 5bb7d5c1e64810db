//! A transport that misbehaves on purpose, for tests: it slices, stalls and cuts.

use std::{
    io::{self, IoSlice},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use super::{Patience, Transport};

/// What goes wrong, and after how many bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// At most so many bytes a read or a write.
    pub(crate) slice: usize,
    /// After so many bytes read, the stream ends.
    pub(crate) cut_reading_after: usize,
    /// After so many bytes written, nothing more is accepted.
    pub(crate) stall_writing_after: usize,
    /// After so many bytes written, the rest is accepted byte by byte, each after [`DRIBBLE`], from those who wait.
    pub(crate) dribble_after: usize,
}

/// How long one byte of those that dribble takes.
const DRIBBLE: Duration = Duration::from_millis(1);

impl Default for Faults {
    fn default() -> Faults {
        Faults {
            slice: usize::MAX,
            cut_reading_after: usize::MAX,
            stall_writing_after: usize::MAX,
            dribble_after: usize::MAX,
        }
    }
}

/// A transport with [`Faults`].
#[derive(Debug)]
pub(crate) struct Faulty<T> {
    inner: T,
    faults: Faults,
    read: AtomicUsize,
    written: AtomicUsize,
}

impl<T: Transport> Faulty<T> {
    pub(crate) fn new(inner: T, faults: Faults) -> Faulty<T> {
        Faulty { inner, faults, read: AtomicUsize::new(0), written: AtomicUsize::new(0) }
    }
}

impl<T: Transport> Transport for Faulty<T> {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.faults.cut_reading_after - self.read.load(Ordering::Relaxed);
        let length = buffer.len().min(self.faults.slice).min(left);
        if length == 0 {
            self.inner.shutdown();
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..length])?;
        self.read.fetch_add(read, Ordering::Relaxed);
        Ok(read)
    }

    fn write(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
        let left = self.faults.stall_writing_after - self.written.load(Ordering::Relaxed);
        let part = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
        let mut length = part.len().min(self.faults.slice).min(left);
        let at_once = self.faults.dribble_after.saturating_sub(self.written.load(Ordering::Relaxed));
        if at_once == 0 && patience == Patience::None {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if at_once == 0 {
            std::thread::sleep(DRIBBLE);
        }
        length = length.min(at_once.max(1));
        if length == 0 {
            if patience == Patience::Quantum {
                std::thread::park_timeout(super::WRITE_QUANTUM);
            }
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = self.inner.write(&[IoSlice::new(&part[..length])], patience)?;
        self.written.fetch_add(written, Ordering::Relaxed);
        Ok(written)
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.inner.set_read_timeout(timeout)
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }
}
