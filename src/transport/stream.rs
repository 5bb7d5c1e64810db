//! A byte stream of the user's own, made into a [`Transport`].
//!
//! Nobody knows how long a read or a write of it takes, so neither the reader thread nor the writer thread nor any
//! caller ever touches it. Two threads do nothing else: one reads it into a bounded [`pipe`](super::pipe), one
//! writes it from another. Every deadline of the library then holds at the pipe.

use std::{
    fmt,
    io::{self, IoSlice, Read, Write},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use super::{
    Patience, Transport, is_timeout,
    pipe::{Pipe, pipe},
};
use crate::{
    error::Result,
    sync::{OneShot, lock, spawn},
};

/// What may wait in each direction between the library and the stream.
const CAPACITY: usize = 256 * 1024;

/// What is read or written at once.
const CHUNK: usize = 64 * 1024;

/// How soon a stream is tried again that had nothing, or no room.
const PAUSE: Duration = Duration::from_millis(1);

/// How long the last bytes may take before the stream is shut down.
const GRACE: Duration = Duration::from_millis(500);

type Shutdown = Box<dyn FnOnce() + Send>;

/// A byte stream of your own to speak AMQP over: a Unix socket, a proxy's tunnel, the stream of another TLS library.
///
/// For [`Connection::open_stream`](crate::Connection::open_stream). It consists of a half to read, a half to write,
/// and a way to end both.
///
/// **Who calls what.** The halves are used on two threads that exist only for that (`leveret-in` and
/// `leveret-out`); no call of yours, and none of the other threads of the library, ever waits in them. So every
/// limit of [`Config`](crate::Config) holds whatever the stream does: the handshake's, those of calls, publishes and
/// closing, and a peer that takes no more bytes is noticed.
///
/// **What depends on the stream.** When the connection ends, what was accepted is still written, for at most half a
/// second; then `shutdown` is called, on a thread of its own. It must make a read and a write that wait return. Until
/// they do, the two threads and the halves stay; nobody waits for them.
///
/// **Both halves in one object**, as TLS libraries have it: put it behind a mutex, and make the socket below
/// non-blocking, so that no half holds the lock for long. A read or write that ends with
/// [`WouldBlock`](std::io::ErrorKind::WouldBlock) or [`TimedOut`](std::io::ErrorKind::TimedOut) is tried again after
/// a millisecond. See `examples/tls_custom.rs`.
///
/// ```no_run
/// # #[cfg(unix)] {
/// use std::{net::Shutdown, os::unix::net::UnixStream};
/// use leveret::{Config, Connection, Stream};
///
/// let socket = UnixStream::connect("/run/amqp.socket")?;
/// let (reader, writer) = (socket.try_clone()?, socket.try_clone()?);
/// let stream = Stream::new(reader, writer, move || _ = socket.shutdown(Shutdown::Both));
/// let connection = Connection::open_stream(stream, Config::new().credentials("app", "secret"))?;
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Stream {
    reader: Box<dyn Read + Send>,
    writer: Box<dyn Write + Send>,
    shutdown: Shutdown,
}

impl Stream {
    /// A stream from its two halves; `shutdown` ends both, so that a read and a write that wait return.
    pub fn new(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        shutdown: impl FnOnce() + Send + 'static,
    ) -> Stream {
        Stream { reader: Box::new(reader), writer: Box::new(writer), shutdown: Box::new(shutdown) }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

/// The library's side of a [`Stream`]. Dropping it shuts the stream down.
pub(crate) struct Relay {
    pipe: Pipe,
    /// Everything was written, or cannot be.
    written: Arc<OneShot<()>>,
    shutdown: Mutex<Option<Shutdown>>,
}

impl Relay {
    /// Starts the two threads.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub(crate) fn start(stream: Stream) -> Result<Relay> {
        let (ours, theirs) = pipe(CAPACITY);
        let theirs = Arc::new(theirs);
        let relay =
            Relay { pipe: ours, written: OneShot::new(), shutdown: Mutex::new(Some(stream.shutdown)) };
        let pipe = theirs.clone();
        spawn("leveret-in", move || read_all(stream.reader, &pipe))?;
        let done = Written(relay.written.clone());
        spawn("leveret-out", move || {
            let _done = done;
            write_all(stream.writer, &theirs);
        })?;
        Ok(relay)
    }
}

impl Transport for Relay {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pipe.read(buffer)
    }

    fn write(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
        self.pipe.write(parts, patience)
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.pipe.set_read_timeout(timeout)
    }

    fn shutdown(&self) {
        self.pipe.shutdown();
        let Some(shutdown) = lock(&self.shutdown).take() else { return };
        let written = self.written.clone();
        // Without a thread the stream ends when its halves notice that the pipe has.
        let _ = spawn("leveret-end", move || {
            let _ = written.wait(Some(Instant::now() + GRACE));
            shutdown();
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("pipe", &self.pipe).finish_non_exhaustive()
    }
}

/// Says so when the writing thread ends, however it does.
struct Written(Arc<OneShot<()>>);

impl Drop for Written {
    fn drop(&mut self) {
        self.0.put(());
    }
}

/// Ends one direction when its thread does; with an error, unless it was ended in an orderly way before.
struct Ending<'a> {
    pipe: &'a Pipe,
    end: fn(&Pipe, io::Error),
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        (self.end)(self.pipe, io::Error::other("the stream that was supplied has panicked"));
    }
}

fn read_all(mut reader: Box<dyn Read + Send>, pipe: &Pipe) {
    let _ending = Ending { pipe, end: |pipe, error| pipe.end_sending(Some(error)) };
    let mut chunk = vec![0; CHUNK];
    let end = loop {
        match reader.read(&mut chunk) {
            Ok(0) => break None,
            Ok(length) => {
                let Some(bytes) = chunk.get(..length) else {
                    break Some(io::Error::other(
                        "the stream claims to have read more than there was room for",
                    ));
                };
                if !push(pipe, bytes) {
                    break None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) && !pipe.has_ended_sending() => thread::sleep(PAUSE),
            Err(error) => break Some(error),
        }
    };
    pipe.end_sending(end);
}

/// Waits for room as long as it takes; false when the connection has ended.
fn push(pipe: &Pipe, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match pipe.write(&[IoSlice::new(bytes)], Patience::Quantum) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if is_timeout(&error) => {}
            Err(_) => return false,
        }
    }
    true
}

fn write_all(mut writer: Box<dyn Write + Send>, pipe: &Pipe) {
    let _ending = Ending { pipe, end: Pipe::end_receiving };
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = pipe.read(&mut chunk) {
        if let Err(error) = write(&mut *writer, pipe, chunk.get(..length).unwrap_or_default()) {
            return pipe.end_receiving(error);
        }
    }
}

/// Writes all of it, and flushes.
fn write(writer: &mut dyn Write, pipe: &Pipe, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    let mut end = None;
    loop {
        let step = if rest.is_empty() { writer.flush().map(|()| 0) } else { writer.write(rest) };
        match step {
            Ok(_) if rest.is_empty() => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => {
                let now = Instant::now();
                if pipe.has_ended_sending() && now >= *end.get_or_insert(now + GRACE) {
                    return Err(error);
                }
                thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A half that answers from a script, then waits until it is shut down.
    struct Scripted {
        steps: Vec<io::Result<&'static [u8]>>,
        released: mpsc::Receiver<()>,
    }

    impl Read for Scripted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.steps.is_empty() {
                let _ = self.released.recv();
                return Ok(0);
            }
            let bytes = self.steps.remove(0)?;
            buffer[..bytes.len()].copy_from_slice(bytes);
            Ok(bytes.len())
        }
    }

    fn stream(steps: Vec<io::Result<&'static [u8]>>, writer: impl Write + Send + 'static) -> Stream {
        let (release, released) = mpsc::channel();
        Stream::new(Scripted { steps, released }, writer, move || drop(release))
    }

    fn shutdown_is_called(writer: impl Write + Send + 'static) -> Duration {
        let (called, calls) = mpsc::channel();
        let relay = Relay::start(Stream::new(io::empty(), writer, move || called.send(()).unwrap())).unwrap();
        relay.write(&[IoSlice::new(b"last words")], Patience::None).unwrap();
        let start = Instant::now();
        drop(relay);
        let waited = start.elapsed();
        calls.recv_timeout(Duration::from_secs(10)).unwrap();
        waited
    }

    #[test]
    fn a_read_with_nothing_yet_is_tried_again() {
        let later = || Err(io::ErrorKind::WouldBlock.into());
        let relay = Relay::start(stream(vec![later(), Ok(b"one"), later()], io::sink())).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(relay.read(&mut buffer).unwrap(), 3);
        relay.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert!(is_timeout(&relay.read(&mut buffer).unwrap_err()));
    }

    #[test]
    fn the_error_of_a_half_arrives_behind_what_came_before_it() {
        let broken = Err(io::Error::new(io::ErrorKind::ConnectionReset, "torn"));
        let relay = Relay::start(stream(vec![Ok(b"one"), broken], io::sink())).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(relay.read(&mut buffer).unwrap(), 3);
        let error = relay.read(&mut buffer).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::ConnectionReset, "torn"));
    }

    #[test]
    fn a_half_that_panics_is_an_error() {
        struct Panics;
        impl Read for Panics {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                panic!("on purpose")
            }
        }
        let relay = Relay::start(Stream::new(Panics, io::sink(), || {})).unwrap();
        assert!(relay.read(&mut [0; 1]).unwrap_err().to_string().contains("panicked"));
    }

    /// Writes into a channel, or never returns until the channel's other end is gone.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_write_that_never_returns_holds_nobody_up() {
        let (release, released) = mpsc::channel::<()>();
        let relay = Relay::start(stream(Vec::new(), Stuck(released))).unwrap();
        let block = vec![0; CAPACITY];
        // What the thread has taken, and what fills the pipe.
        let error = loop {
            if let Err(error) = relay.write(&[IoSlice::new(&block)], Patience::Quantum) {
                break error;
            }
        };
        assert!(is_timeout(&error), "{error}");
        drop(relay);
        let (_release, released) = mpsc::channel::<()>();
        assert!(shutdown_is_called(Stuck(released)) < GRACE);
        drop(release);
    }

    #[test]
    fn last_words_are_written_before_the_shutdown() {
        struct Keep(mpsc::Sender<Vec<u8>>);
        impl Write for Keep {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.send(bytes.to_vec()).unwrap();
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (keep, kept) = mpsc::channel();
        shutdown_is_called(Keep(keep));
        assert_eq!(kept.try_recv().unwrap(), b"last words");
    }
}
