//! A user's filter between the codec and whatever carries the bytes, and the slot that it is put into.
//!
//! [`Tapped`] stands around the outermost transport, so with TLS the filter sees plaintext. It is generic over that
//! transport: while nothing was ever set, a read and a write pass through with one relaxed load of a flag, the very
//! slices that were given, and no call through a pointer that would not be there otherwise.
//!
//! What a filter has seen is on its way: bytes that were filtered and that the transport did not take are kept here,
//! go first the next time, and count in [`Transport::backlog`].
//!
//! Invariant: no lock is held while a filter runs.

use std::{
    fmt,
    io::{self, IoSlice},
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{Patience, Transport, write_on};
use crate::{
    error::panic_message,
    sync::{lock, without_waiting},
};

/// Outgoing bytes that are copied for a filter at once.
const FILTER_AT_ONCE: usize = 64 * 1024;

/// Which way bytes or frames go. `Display` writes `OUTGOING` or `INCOMING`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From this program to the broker.
    Outgoing,
    /// From the broker to this program.
    Incoming,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Outgoing => "OUTGOING",
            Direction::Incoming => "INCOMING",
        })
    }
}

/// A function that sees, and may change, the bytes of a connection; see
/// [`Connection::set_byte_filter`](crate::Connection::set_byte_filter).
#[derive(Clone)]
pub struct ByteFilter(Arc<Filter>);

type Filter = dyn Fn(Direction, &mut [u8]) + Send + Sync;

impl ByteFilter {
    /// A filter that calls `filter`.
    pub fn new(filter: impl Fn(Direction, &mut [u8]) + Send + Sync + 'static) -> ByteFilter {
        ByteFilter(Arc::new(filter))
    }
}

impl fmt::Debug for ByteFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByteFilter")
    }
}

/// Holds a function of the user's that can be set, replaced and removed at any time.
pub(crate) struct Slot<F: ?Sized> {
    /// What it holds, for the log.
    name: &'static str,
    /// Something is or was set: worth a look. Only a hint; the rest is under the lock.
    in_use: AtomicBool,
    function: Mutex<Option<Arc<F>>>,
    on_panic: OnceLock<Report>,
}

type Report = Box<dyn Fn(&str) + Send + Sync>;

impl<F: ?Sized> Slot<F> {
    pub(crate) fn new(name: &'static str, function: Option<Arc<F>>) -> Slot<F> {
        let in_use = AtomicBool::new(function.is_some());
        Slot { name, in_use, function: Mutex::new(function), on_panic: OnceLock::new() }
    }

    /// Has `report` called with the message of every panic of a function. The first report stays.
    pub(crate) fn on_panic(&self, report: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.on_panic.set(Box::new(report));
    }

    /// Takes effect with the next call; one that runs meanwhile is not waited for.
    pub(crate) fn set(&self, function: Option<Arc<F>>) {
        let mut held = lock(&self.function);
        if function.is_some() {
            self.in_use.store(true, Ordering::Relaxed);
        }
        let before = std::mem::replace(&mut *held, function);
        drop(held);
        // What belongs to the user ends here, without the lock.
        drop(before);
    }

    #[inline]
    pub(crate) fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    /// The function that is set. Costs one relaxed load when none ever was.
    #[inline]
    pub(crate) fn get(&self) -> Option<Arc<F>> {
        if self.is_in_use() { self.look() } else { None }
    }

    #[cold]
    fn look(&self) -> Option<Arc<F>> {
        lock(&self.function).clone()
    }

    /// Nothing is set, and nobody needs the slow way any more.
    fn retire(&self) {
        let held = lock(&self.function);
        if held.is_none() {
            self.in_use.store(false, Ordering::Relaxed);
        }
    }

    /// Calls a function that [`get`](Slot::get) returned; it cannot wait for what the caller holds up. If it panics it is removed, which is logged and reported,
    /// and this returns false.
    pub(crate) fn call(&self, function: &Arc<F>, call: impl FnOnce(&F)) -> bool {
        let Err(panicked) = panic::catch_unwind(AssertUnwindSafe(|| without_waiting(|| call(function))))
        else {
            return true;
        };
        let mut held = lock(&self.function);
        // Unless another one was set meanwhile.
        let removed = held.take_if(|held| Arc::ptr_eq(held, function));
        drop(held);
        if removed.is_some() {
            let message =
                format!("the {} panicked and was removed: {}", self.name, panic_message(&*panicked));
            log::error!(target: "leveret::tap", "{message}");
            if let Some(report) = self.on_panic.get() {
                report(&message);
            }
        }
        false
    }
}

impl<F: ?Sized> fmt::Debug for Slot<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("in_use", &self.in_use).finish_non_exhaustive()
    }
}

/// Where a connection's [`ByteFilter`] is.
pub(crate) type FilterSlot = Slot<Filter>;

impl FilterSlot {
    pub(crate) fn of(filter: Option<ByteFilter>) -> Arc<FilterSlot> {
        Arc::new(Slot::new("byte filter", filter.map(|filter| filter.0)))
    }

    pub(crate) fn replace(&self, filter: Option<ByteFilter>) {
        self.set(filter.map(|filter| filter.0));
    }

    /// Has the filter see `bytes`; what one that panics has changed of them is undone.
    fn apply(&self, filter: &Arc<Filter>, direction: Direction, bytes: &mut [u8]) {
        let before = bytes.to_vec();
        if !self.call(filter, |filter| filter(direction, bytes)) {
            bytes.copy_from_slice(&before);
        }
    }
}

/// A transport with a filter before it.
#[derive(Debug)]
pub(crate) struct Tapped<T> {
    inner: T,
    slot: Arc<FilterSlot>,
    leaving: Mutex<Leaving>,
}

/// Bytes that were filtered and are not written yet. Their writer takes them out for the time of the write: there is
/// one at a time.
#[derive(Debug, Default)]
struct Leaving {
    bytes: Vec<u8>,
    written: usize,
}

impl Leaving {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }
}

impl<T: Transport> Tapped<T> {
    pub(crate) fn new(inner: T, slot: Arc<FilterSlot>) -> Tapped<T> {
        Tapped { inner, slot, leaving: Mutex::default() }
    }

    #[cold]
    fn write_filtered(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
        let mut leaving = std::mem::take(&mut *lock(&self.leaving));
        let written = self.write_through(&mut leaving, parts, patience);
        *lock(&self.leaving) = leaving;
        written
    }

    fn write_through(
        &self,
        leaving: &mut Leaving,
        parts: &[IoSlice<'_>],
        patience: Patience,
    ) -> io::Result<usize> {
        self.send(leaving, patience)?;
        let Some(filter) = self.slot.get() else {
            self.slot.retire();
            return self.inner.write(parts, patience);
        };
        leaving.bytes.clear();
        leaving.written = 0;
        for part in parts {
            let room = FILTER_AT_ONCE - leaving.bytes.len();
            leaving.bytes.extend_from_slice(part.get(..room).unwrap_or(part));
        }
        let accepted = leaving.bytes.len();
        if accepted == 0 {
            return self.inner.write(parts, patience);
        }
        self.slot.apply(&filter, Direction::Outgoing, &mut leaving.bytes);
        // What was filtered is accepted: what is not written now goes first the next time, and an error shows itself
        // again then.
        let _ = self.send(leaving, patience);
        Ok(accepted)
    }

    /// Writes what is left, as long as that goes forward.
    fn send(&self, leaving: &mut Leaving, patience: Patience) -> io::Result<()> {
        write_on(&self.inner, &leaving.bytes, &mut leaving.written, patience)
    }

    #[cold]
    fn filter_incoming(&self, bytes: &mut [u8]) {
        if let Some(filter) = self.slot.get() {
            self.slot.apply(&filter, Direction::Incoming, bytes);
        }
    }
}

impl<T: Transport> Transport for Tapped<T> {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        // After the wait: a filter that was set meanwhile sees these bytes.
        if self.slot.is_in_use()
            && let Some(bytes @ [_, ..]) = buffer.get_mut(..read)
        {
            self.filter_incoming(bytes);
        }
        Ok(read)
    }

    fn write(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
        if self.slot.is_in_use() {
            self.write_filtered(parts, patience)
        } else {
            self.inner.write(parts, patience)
        }
    }

    fn backlog(&self) -> usize {
        let kept = if self.slot.is_in_use() { lock(&self.leaving).rest().len() } else { 0 };
        self.inner.backlog() + kept
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.inner.set_read_timeout(timeout)
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::transport::{
        fault::{Faults, Faulty},
        pipe::{Pipe, pipe},
    };

    /// Notes where the slices that it is given lie.
    #[derive(Debug, Default)]
    struct Recorder {
        written: Mutex<Vec<(usize, usize)>>,
        read_into: AtomicUsize,
    }

    impl Transport for Recorder {
        fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
            self.read_into.store(buffer.as_ptr().addr(), Ordering::Relaxed);
            Ok(buffer.len())
        }

        fn write(&self, parts: &[IoSlice<'_>], _: Patience) -> io::Result<usize> {
            lock(&self.written).extend(parts.iter().map(|part| (part.as_ptr().addr(), part.len())));
            Ok(parts.iter().map(|part| part.len()).sum())
        }

        fn set_read_timeout(&self, _: Option<Duration>) -> io::Result<()> {
            Ok(())
        }

        fn shutdown(&self) {}
    }

    /// Row 104: without a filter, also after one was removed, nothing is copied: the transport gets the slices of the
    /// caller, one write for one write.
    #[test]
    fn without_a_filter_the_same_slices_pass_through() {
        let tapped = Tapped::new(Recorder::default(), FilterSlot::of(None));
        let pieces = [b"one".to_vec(), b"two".to_vec()];
        let parts = [IoSlice::new(&pieces[0]), IoSlice::new(&pieces[1])];
        let places: Vec<_> = pieces.iter().map(|piece| (piece.as_ptr().addr(), piece.len())).collect();
        for round in 0..2 {
            assert_eq!(tapped.write(&parts, Patience::None).unwrap(), 6);
            assert_eq!(std::mem::take(&mut *lock(&tapped.inner.written)), places, "round {round}");
            let mut buffer = [0; 10];
            let place = buffer.as_ptr().addr();
            tapped.read(&mut buffer).unwrap();
            assert_eq!(tapped.inner.read_into.load(Ordering::Relaxed), place);
            assert_eq!(tapped.backlog(), 0);
            assert!(!tapped.slot.is_in_use(), "nothing but the flag was looked at");

            tapped.slot.replace(Some(ByteFilter::new(|_, _| {})));
            tapped.write(&parts, Patience::None).unwrap();
            assert_ne!(std::mem::take(&mut *lock(&tapped.inner.written)), places, "a copy is filtered");
            tapped.slot.replace(None);
            // The first write without one goes back to the short way.
            tapped.write(&parts, Patience::None).unwrap();
            lock(&tapped.inner.written).clear();
        }
    }

    /// What arrives at the other end when all of `bytes` is written, however little is taken at once.
    fn write_all(tapped: &Tapped<Faulty<Pipe>>, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() || tapped.backlog() > 0 {
            let written = tapped.write(&[IoSlice::new(rest)], Patience::None).unwrap();
            rest = &rest[written..];
        }
    }

    fn sliced(slot: Arc<FilterSlot>) -> (Tapped<Faulty<Pipe>>, Pipe) {
        let (end, other) = pipe(1 << 20);
        let faults = Faults { slice: 7, ..Faults::default() };
        (Tapped::new(Faulty::new(end, faults), slot), other)
    }

    fn read(pipe: &Pipe, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            filled += pipe.read(&mut bytes[filled..]).unwrap();
        }
        bytes
    }

    /// Row 104: every byte is seen once, in order, and goes out as the filter left it.
    #[test]
    fn every_byte_is_filtered_once() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        let slot = FilterSlot::of(Some(ByteFilter::new(move |direction, bytes| {
            assert_eq!(direction, Direction::Outgoing);
            lock(&noted).extend_from_slice(bytes);
            bytes.iter_mut().for_each(|byte| *byte ^= 0xFF);
        })));
        let (tapped, other) = sliced(slot);
        let bytes: Vec<u8> =
            (0..200_000u32).map(|number| number.to_be_bytes()[number as usize % 4]).collect();
        write_all(&tapped, &bytes);
        assert!(*lock(&seen) == bytes);
        let arrived = read(&other, bytes.len());
        assert!(arrived.iter().zip(&bytes).all(|(arrived, byte)| *arrived == byte ^ 0xFF));
    }

    /// Row 104: what was filtered and could not be written is not lost when the filter goes, and not filtered again.
    #[test]
    fn what_was_filtered_goes_out_first_after_the_filter_was_removed() {
        let slot = FilterSlot::of(Some(ByteFilter::new(|_, bytes| bytes.make_ascii_uppercase())));
        let (end, other) = pipe(4);
        let tapped = Tapped::new(end, slot.clone());
        assert_eq!(tapped.write(&[IoSlice::new(b"abcdef")], Patience::None).unwrap(), 6);
        assert_eq!(tapped.backlog(), 2);
        slot.replace(None);
        assert!(tapped.write(&[IoSlice::new(b"ghi")], Patience::None).is_err());
        assert_eq!(read(&other, 4), b"ABCD");
        assert_eq!(tapped.write(&[IoSlice::new(b"gh")], Patience::None).unwrap(), 2);
        assert_eq!((tapped.backlog(), slot.is_in_use()), (0, false));
        assert_eq!(read(&other, 4), b"EFgh");
    }

    /// Row 104: a panic undoes what that call has changed, removes the filter, and is reported once.
    #[test]
    fn a_filter_that_panics_is_removed() {
        for direction in [Direction::Outgoing, Direction::Incoming] {
            let slot = FilterSlot::of(Some(ByteFilter::new(|_, bytes| {
                bytes.fill(0);
                panic!("no good");
            })));
            let reports = Arc::new(Mutex::new(Vec::new()));
            let noted = reports.clone();
            slot.on_panic(move |report| lock(&noted).push(report.to_owned()));
            let (tapped, other) = sliced(slot);
            for _ in 0..2 {
                match direction {
                    Direction::Outgoing => {
                        write_all(&tapped, b"hello");
                        assert_eq!(read(&other, 5), b"hello");
                    }
                    Direction::Incoming => {
                        other.write(&[IoSlice::new(b"hello")], Patience::None).unwrap();
                        let mut buffer = [0; 5];
                        assert_eq!(tapped.read(&mut buffer).unwrap(), 5);
                        assert_eq!(&buffer, b"hello");
                    }
                }
            }
            assert_eq!(*lock(&reports), ["the byte filter panicked and was removed: no good"]);
        }
    }
}
