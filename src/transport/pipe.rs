//! Two ends of a byte stream in memory, each a [`Transport`]. Bounded like a socket: a writer waits while the
//! other end does not read.
//!
//! It stands between the library and a [`stream`](super::stream) of the user's, and in tests for a whole network.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use super::{Patience, Transport, WRITE_QUANTUM};
use crate::sync::lock;

/// Makes the two ends; each direction holds at most `capacity` bytes.
pub(crate) fn pipe(capacity: usize) -> (Pipe, Pipe) {
    let (there, back) = (Arc::new(Direction::new(capacity)), Arc::new(Direction::new(capacity)));
    let end = |incoming: &Arc<Direction>, outgoing: &Arc<Direction>| Pipe {
        incoming: incoming.clone(),
        outgoing: outgoing.clone(),
        read_timeout: Mutex::new(None),
    };
    (end(&back, &there), end(&there, &back))
}

/// One end. Dropping it closes the stream.
#[derive(Debug)]
pub(crate) struct Pipe {
    incoming: Arc<Direction>,
    outgoing: Arc<Direction>,
    read_timeout: Mutex<Option<Duration>>,
}

#[derive(Debug)]
struct Direction {
    capacity: usize,
    state: Mutex<Flow>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Flow {
    bytes: VecDeque<u8>,
    closed: bool,
    /// What the reader learns when it has read everything, instead of the end; and the writer, at once.
    failure: Option<Arc<io::Error>>,
}

impl Direction {
    fn new(capacity: usize) -> Direction {
        Direction { capacity, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits until `ready` or the end of `limit`; what `step` returns once it can.
    fn when<T>(
        &self,
        limit: Option<Duration>,
        mut step: impl FnMut(&mut Flow) -> Option<T>,
    ) -> io::Result<T> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut state = lock(&self.state);
        loop {
            if let Some(result) = step(&mut state) {
                drop(state);
                self.changed.notify_all();
                return Ok(result);
            }
            let left = match deadline {
                None => Duration::MAX,
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn close(&self, failure: Option<io::Error>) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.closed = true;
            state.failure = failure.map(Arc::new);
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl Flow {
    fn failure(&self) -> Option<io::Error> {
        self.failure.as_ref().map(|error| io::Error::new(error.kind(), error.clone()))
    }
}

impl Pipe {
    /// Ends what this end sends, after what it has sent.
    pub(super) fn end_sending(&self, failure: Option<io::Error>) {
        self.outgoing.close(failure);
    }

    /// Accepts no more from the other end.
    pub(super) fn end_receiving(&self, failure: io::Error) {
        self.incoming.close(Some(failure));
    }

    /// Somebody has ended what this end sends.
    pub(super) fn has_ended_sending(&self) -> bool {
        lock(&self.outgoing.state).closed
    }
}

impl Transport for Pipe {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = *lock(&self.read_timeout);
        self.incoming.when(limit, |flow| {
            if flow.bytes.is_empty() {
                return flow.closed.then(|| flow.failure().map_or(Ok(0), Err));
            }
            Some(io::Read::read(&mut flow.bytes, buffer))
        })?
    }

    fn write(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
        let limit = match patience {
            Patience::None => Duration::ZERO,
            Patience::Quantum => WRITE_QUANTUM,
        };
        let capacity = self.outgoing.capacity;
        self.outgoing.when(Some(limit), |flow| {
            if flow.closed {
                return Some(Err(flow.failure().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())));
            }
            let mut room = capacity - flow.bytes.len();
            let before = room;
            for part in parts {
                let taken = part.len().min(room);
                flow.bytes.extend(part.get(..taken).unwrap_or_default());
                room -= taken;
            }
            (before > 0).then_some(Ok(before - room))
        })?
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        *lock(&self.read_timeout) = timeout;
        Ok(())
    }

    fn shutdown(&self) {
        self.incoming.close(None);
        self.outgoing.close(None);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::is_timeout;

    #[test]
    fn bytes_arrive_in_order_and_a_full_pipe_refuses_more() {
        let (left, right) = pipe(4);
        let written = left.write(&[IoSlice::new(b"abc"), IoSlice::new(b"def")], Patience::None).unwrap();
        assert_eq!(written, 4);
        assert!(is_timeout(&left.write(&[IoSlice::new(b"x")], Patience::None).unwrap_err()));
        let mut buffer = [0; 8];
        assert_eq!(right.read(&mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"abcd");
    }

    #[test]
    fn the_end_of_one_side_is_seen_by_the_other_after_what_was_sent() {
        let (left, right) = pipe(16);
        left.write(&[IoSlice::new(b"last")], Patience::None).unwrap();
        drop(left);
        let mut buffer = [0; 8];
        assert_eq!(right.read(&mut buffer).unwrap(), 4);
        assert_eq!(right.read(&mut buffer).unwrap(), 0);
        assert!(right.write(&[IoSlice::new(b"x")], Patience::None).is_err());
    }

    #[test]
    fn a_read_ends_at_its_timeout() {
        let (left, _right) = pipe(16);
        left.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert!(is_timeout(&left.read(&mut [0; 1]).unwrap_err()));
    }
}
