//! A scripted AMQP server: a real socket on a free port of the loopback, and a script on a thread of the test.
//!
//! ```ignore
//! let peer = Peer::run(|peer| {
//!     peer.handshake();
//!     peer.open_channel(1);
//!     peer.expect(1, QUEUE_PURGE);
//!     peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND", 50, 30]);
//!     peer.expect(1, CHANNEL_CLOSE_OK);
//!     peer.close();
//! });
//! let connection = Connection::open(peer.config())?;
//! ```
//!
//! A script that panics fails the test, and so does a panic in one of the library's own threads. Nothing here
//! waits for ever: a client that says nothing for [`PATIENCE`] is a failure.

// Every test program uses a part of it.
#![allow(dead_code, unreachable_pub, unused_imports)]

mod codec;

pub use codec::*;

use std::{
    any::Any,
    ffi::OsStr,
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    panic,
    sync::{Mutex, Once, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use leveret::Config;
use socket2::SockRef;

use super::{
    limits::ample,
    watchdog::{self, Watchdog},
};

/// How long a script waits for the client.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the peer proposes in `connection.tune`.
#[derive(Debug, Clone, Copy)]
pub struct Tune {
    pub channel_max: u16,
    pub frame_max: u32,
    pub heartbeat: u16,
}

impl Default for Tune {
    /// RabbitMQ's values, but without heartbeats: most scripts count frames.
    fn default() -> Tune {
        Tune { channel_max: 2047, frame_max: 131_072, heartbeat: 0 }
    }
}

/// What the client said in its handshake.
#[derive(Debug)]
pub struct Greeting {
    pub start_ok: Arguments,
    pub tune_ok: Arguments,
    pub open: Arguments,
}

/// The test's handle of a running script. [`finish`](Script::finish) gives its result; dropping it checks that
/// it succeeded.
pub struct Script<T> {
    pub port: u16,
    thread: Option<JoinHandle<T>>,
    _watchdog: Watchdog,
}

impl<T> Script<T> {
    /// The way to this peer, without heartbeats unless the test asks for them, and with limits that only catch what
    /// hangs.
    pub fn config(&self) -> Config {
        ample(Config::new()).host("127.0.0.1", self.port).heartbeat(Duration::ZERO)
    }

    /// Waits for the end of the script.
    pub fn finish(mut self) -> T {
        self.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    }

    /// Waits for the end of a script that could not be followed, and ignores what it says.
    pub fn abandon(mut self) {
        let _ = self.join();
    }

    fn join(&mut self) -> Result<T, Box<dyn Any + Send>> {
        let result = self.thread.take().expect("joined once").join();
        assert_no_library_panic();
        result
    }
}

impl<T> Drop for Script<T> {
    fn drop(&mut self) {
        if self.thread.is_none() || thread::panicking() {
            return;
        }
        if let Err(panicked) = self.join() {
            panic::resume_unwind(panicked);
        }
    }
}

static LIBRARY_PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// From now on a panic in one of the library's threads is remembered.
fn watch_library_threads() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let of_library = |name: &str| name.starts_with("leveret-");
            // They also run handlers of the test's.
            let by_test = info.location().is_some_and(|location| location.file().starts_with("tests/"));
            if !by_test && thread::current().name().is_some_and(of_library) {
                let mut panics = LIBRARY_PANICS.lock().unwrap_or_else(PoisonError::into_inner);
                panics.push(info.to_string());
            }
            print(info);
        }));
    });
}

/// No thread of the library has panicked so far.
pub fn assert_no_library_panic() {
    let panics = LIBRARY_PANICS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(panics.is_empty(), "a thread of the library panicked: {panics:?}");
}

/// A method alone, or a message.
#[derive(Debug)]
pub enum Said {
    Method(Method, Arguments),
    Publish { arguments: Arguments, properties: Vec<u8>, body: Vec<u8> },
}

/// The server's side of one connection.
pub struct Peer {
    socket: Option<TcpStream>,
    received: Vec<u8>,
    /// The largest body frame that [`content`](Peer::content) sends.
    pub piece: usize,
}

impl Peer {
    /// Listens, and runs `script` with the first connection that comes.
    pub fn run<T: Send + 'static>(script: impl FnOnce(&mut Peer) -> T + Send + 'static) -> Script<T> {
        watch_library_threads();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its number").port();
        let thread = thread::Builder::new().name("peer".into()).spawn(move || {
            let (socket, _) = listener.accept().expect("a connection");
            drop(listener);
            socket.set_nodelay(true).expect("nodelay");
            let mut peer = Peer { socket: Some(socket), received: Vec::new(), piece: 131_064 };
            script(&mut peer)
        });
        let watchdog = Watchdog::new(&watchdog::test_name(), watchdog::LIMIT);
        Script { port, thread: Some(thread.expect("a thread")), _watchdog: watchdog }
    }

    /// The socket, for options and for scripts that write from a second thread.
    pub fn socket(&self) -> &TcpStream {
        self.socket.as_ref().expect("the script has not closed the socket")
    }

    // --- The usual conversations -------------------------------------------------------------------------

    /// The usual handshake.
    pub fn handshake(&mut self) -> Greeting {
        self.handshake_with(Tune::default())
    }

    /// The usual handshake with these values.
    pub fn handshake_with(&mut self, tune: Tune) -> Greeting {
        self.expect_protocol_header();
        self.raw(&start("PLAIN AMQPLAIN"));
        let start_ok = self.expect(0, START_OK);
        self.send_tune(tune);
        let tune_ok = self.expect(0, TUNE_OK);
        let open = self.expect(0, OPEN);
        self.send(0, OPEN_OK, args![""]);
        Greeting { start_ok, tune_ok, open }
    }

    pub fn send_tune(&mut self, tune: Tune) {
        let Tune { channel_max, frame_max, heartbeat } = tune;
        self.send(0, TUNE, args![u64::from(channel_max), u64::from(frame_max), u64::from(heartbeat)]);
    }

    /// The client opens a channel.
    pub fn open_channel(&mut self, channel: u16) {
        self.expect(channel, CHANNEL_OPEN);
        self.send(channel, CHANNEL_OPEN_OK, args![""]);
    }

    /// The client closes a channel.
    pub fn close_channel(&mut self, channel: u16) {
        self.expect(channel, CHANNEL_CLOSE);
        self.send(channel, CHANNEL_CLOSE_OK, &[]);
    }

    /// The client closes the connection; what comes before that is answered in the usual way, because dropping a
    /// channel or a consumer waits for it.
    pub fn close(&mut self) {
        let close = loop {
            let frame = self.next_frame();
            if (frame.method(), frame.channel) == (Some(CLOSE), 0) {
                break frame.arguments();
            }
            if let Some(answer) = usual_answer(&frame) {
                self.raw(&answer);
            }
        };
        assert_eq!(close.number(0), 200, "{close:?}");
        self.send(0, CLOSE_OK, &[]);
        self.expect_end();
    }

    /// The client gives the connection up with this code; what comes before that is ignored.
    pub fn expect_violation(&mut self, code: u64) {
        let close = self.until(0, CLOSE);
        assert_eq!(close.number(0), code, "{close:?}");
        self.expect_end();
    }

    /// The client sets the default prefetch and consumes.
    pub fn start_consumer(&mut self, channel: u16) -> String {
        self.expect(channel, QOS);
        self.send(channel, QOS_OK, &[]);
        let tag = self.expect(channel, CONSUME).text(2).to_owned();
        self.send(channel, CONSUME_OK, args![&tag]);
        tag
    }

    pub fn deliver(&mut self, channel: u16, consumer_tag: &str, delivery_tag: u64, body: &[u8]) {
        self.content(channel, DELIVER, args![consumer_tag, delivery_tag, 0, "", "key"], body);
    }

    // --- Receiving ---------------------------------------------------------------------------------------

    pub fn expect_protocol_header(&mut self) {
        while self.received.len() < PROTOCOL_HEADER.len() {
            assert!(self.receive(PATIENCE), "the client hung up before its first bytes");
        }
        assert_eq!(self.received.drain(..8).as_slice(), PROTOCOL_HEADER);
    }

    /// The next frame, heartbeats included; `None` when the client has hung up.
    pub fn next_frame_or_end(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = take_frame(&mut self.received) {
                return Some(frame);
            }
            if !self.receive(PATIENCE) {
                return None;
            }
        }
    }

    /// The next frame that is no heartbeat.
    pub fn next_frame(&mut self) -> Frame {
        loop {
            let frame = self.next_frame_or_end().expect("a frame, but the client has hung up");
            if frame.kind != HEARTBEAT {
                return frame;
            }
        }
    }

    /// The next frame is this method; gives its arguments.
    pub fn expect(&mut self, channel: u16, method: Method) -> Arguments {
        let frame = self.next_frame();
        assert_eq!((frame.method(), frame.channel), (Some(method), channel), "{frame:?}");
        frame.arguments()
    }

    /// Ignores what comes until this method.
    pub fn until(&mut self, channel: u16, method: Method) -> Arguments {
        loop {
            let frame = self.next_frame();
            if (frame.method(), frame.channel) == (Some(method), channel) {
                return frame.arguments();
            }
        }
    }

    /// What the client says next on this channel: a method alone, or a message with nothing between its frames.
    pub fn next_said(&mut self, channel: u16) -> Said {
        let frame = self.next_frame();
        let method = frame.method().unwrap_or_else(|| panic!("a method first: {frame:?}"));
        assert_eq!(frame.channel, channel, "{method:?}");
        if method != PUBLISH {
            return Said::Method(method, frame.arguments());
        }
        let header = self.next_frame();
        assert_eq!((header.kind, header.channel), (HEADER, channel), "{:?}", header.method());
        let size = u64::from_be_bytes(header.payload[4..12].try_into().expect("8 bytes"));
        let mut body = Vec::new();
        while (body.len() as u64) < size {
            let piece = self.next_frame();
            assert_eq!((piece.kind, piece.channel), (BODY, channel), "{:?}", piece.method());
            body.extend(piece.payload);
        }
        assert_eq!(body.len() as u64, size, "the announced size");
        Said::Publish { arguments: frame.arguments(), properties: header.payload[12..].to_vec(), body }
    }

    /// The client publishes; gives the method's arguments, the properties and the body.
    pub fn expect_publish(&mut self, channel: u16) -> (Arguments, Vec<u8>, Vec<u8>) {
        match self.next_said(channel) {
            Said::Publish { arguments, properties, body } => (arguments, properties, body),
            Said::Method(method, _) => panic!("{method:?} instead of a message"),
        }
    }

    /// Answers what has come so far as a broker would, and waits for nothing.
    pub fn answer_what_is_here(&mut self) {
        self.socket().set_nonblocking(true).expect("non-blocking");
        let mut chunk = [0; 64 * 1024];
        while let Ok(read @ 1..) = self.socket().read(&mut chunk) {
            self.received.extend(&chunk[..read]);
        }
        self.socket().set_nonblocking(false).expect("blocking");
        while let Some(frame) = take_frame(&mut self.received) {
            if let Some(answer) = usual_answer(&frame) {
                self.raw(&answer);
            }
        }
    }

    /// The client hangs up, and sends nothing before but heartbeats.
    pub fn expect_end(&mut self) {
        while let Some(frame) = self.next_frame_or_end() {
            assert_eq!(frame.kind, HEARTBEAT, "{:?} {frame:?}", frame.method());
        }
    }

    /// Says nothing more, and reads until the client hangs up.
    pub fn silence(&mut self) {
        while self.receive(PATIENCE) {
            self.received.clear();
        }
    }

    /// Reads once; false at the end of the stream.
    pub fn receive(&mut self, patience: Duration) -> bool {
        self.receive_within(patience).unwrap_or_else(|| panic!("the client sent nothing for {patience:?}"))
    }

    /// Reads once; false at the end of the stream, `None` when nothing came.
    pub fn receive_within(&mut self, patience: Duration) -> Option<bool> {
        let mut chunk = [0; 64 * 1024];
        self.socket().set_read_timeout(Some(patience)).expect("a timeout");
        match self.socket().read(&mut chunk) {
            Ok(0) => Some(false),
            Ok(read) => {
                self.received.extend(&chunk[..read]);
                Some(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            // A client that closes while bytes are on their way to it resets the connection.
            Err(_) => Some(false),
        }
    }

    /// The next frame if it has come already.
    pub fn frame_that_is_here(&mut self) -> Option<Frame> {
        take_frame(&mut self.received)
    }

    // --- Sending -----------------------------------------------------------------------------------------

    pub fn send(&mut self, channel: u16, method: Method, arguments: &[Value]) {
        self.raw(&codec::method(channel, method, arguments));
    }

    /// A method with a content without properties.
    pub fn content(&mut self, channel: u16, method: Method, arguments: &[Value], body: &[u8]) {
        let bytes = codec::content(channel, method, arguments, NO_PROPERTIES, body, self.piece);
        self.raw(&bytes);
    }

    pub fn heartbeat(&mut self) {
        self.raw(&frame(HEARTBEAT, 0, &[]));
    }

    /// Sends these bytes. A client that has hung up is noticed when something is expected of it.
    pub fn raw(&mut self, bytes: &[u8]) {
        let _ = self.try_raw(bytes);
    }

    /// Sends these bytes; false when the client does not take them any more.
    pub fn try_raw(&mut self, bytes: &[u8]) -> bool {
        self.socket().set_write_timeout(Some(PATIENCE)).expect("a timeout");
        self.socket().write_all(bytes).is_ok()
    }

    /// Sends these bytes in packets of `length`.
    pub fn sliced(&mut self, bytes: &[u8], length: usize) {
        for slice in bytes.chunks(length) {
            self.raw(slice);
        }
    }

    // --- Ending ------------------------------------------------------------------------------------------

    /// Closes the socket the ordinary way, as a process that ends does: what the client sends later is
    /// answered with a reset.
    pub fn fin(&mut self) {
        // Unread bytes would turn the close into a reset.
        self.socket().set_nonblocking(true).expect("non-blocking");
        let mut chunk = [0; 64 * 1024];
        while matches!(self.socket().read(&mut chunk), Ok(1..)) {}
        self.socket = None;
    }

    /// Resets the connection.
    pub fn rst(&mut self) {
        SockRef::from(self.socket()).set_linger(Some(Duration::ZERO)).expect("linger");
        self.socket = None;
    }

    /// Sends no more, but reads until the client hangs up.
    pub fn half_close(&mut self) {
        let _ = self.socket().shutdown(Shutdown::Write);
        self.silence();
    }
}

/// `connection.start` with these mechanisms.
pub fn start(mechanisms: &str) -> Vec<u8> {
    let properties = table(&[("product", 'S', b"scripted peer"), ("version", 'S', b"0")]);
    codec::method(0, START, args![0, 9, &properties[..], mechanisms, "en_US"])
}

/// The argument of this letter that says nothing.
fn empty(letter: char) -> Value {
    if "sSt".contains(letter) { "".into() } else { 0.into() }
}

/// What a broker answers that has no queue, no message, and nothing against anything.
pub fn usual_answer(frame: &Frame) -> Option<Vec<u8>> {
    let asked = frame.method()?;
    let name = format!("{}-ok", asked.name);
    let answer = match asked {
        // With no-wait.
        CANCEL if frame.arguments().number(1) & 1 == 1 => return None,
        GET => GET_EMPTY,
        _ => *ALL.iter().find(|answer| answer.name == name)?,
    };
    let arguments: Vec<Value> = match asked {
        QUEUE_DECLARE => args![frame.arguments().bytes(1), 0, 0].to_vec(),
        CONSUME => args![frame.arguments().bytes(2)].to_vec(),
        CANCEL => args![frame.arguments().bytes(0)].to_vec(),
        FLOW => args![frame.arguments().number(0)].to_vec(),
        _ => answer.layout.chars().map(empty).collect(),
    };
    Some(codec::method(frame.channel, answer, &arguments))
}

/// The names of the threads of the library that are alive, in this process. The system still shows a thread for a moment
/// when it has ended and was joined; it is marked then.
pub fn library_threads() -> Vec<String> {
    const EXITING: u32 = 4;
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| {
        // NUMBER (NAME) STATE and six fields more, then the flags.
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let flags: u32 = rest.split(' ').nth(6)?.parse().ok()?;
        (name.starts_with("leveret-") && flags & EXITING == 0).then(|| name.to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// The sockets that are open in this process, beside those that it was started with.
pub fn sockets() -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let standard = |name: &OsStr| ["0", "1", "2"].iter().any(|number| name == *number);
    let others = descriptors.filter(|descriptor| !standard(&descriptor.file_name()));
    let targets = others.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

/// No thread and no socket is left, once the tests beside this one have ended as well. What leaks stays, so
/// waiting hides nothing. (Not where all the subjects are in one program: there somebody always has a connection.)
pub fn nothing_is_left() {
    if cfg!(target_os = "linux") && env!("CARGO_CRATE_NAME") != "in_coroutines" {
        let nothing = || library_threads().is_empty() && sockets() == 0;
        eventually_within(watchdog::LIMIT, "threads or sockets are left behind", nothing);
    }
}

/// Waits until `condition` holds: for what happens soon and leaves no event behind.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, condition);
}

fn eventually_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}
