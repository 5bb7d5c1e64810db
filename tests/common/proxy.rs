//! A TCP proxy in this process, on a free port, with faults that a test turns on and off.
//!
//! Bytes are counted per direction, over all connections, so a fault can be placed at an exact offset, and a
//! test can wait until so many have passed. The proxy's own buffers are small: a stall is felt at once.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Socket, Type};

/// What one pump holds at most, and about the size of its sockets' buffers.
pub const BUFFER: usize = 64 * 1024;

/// How often a pump that waits for its socket looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(10);

/// How long a test waits for an event here.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToBroker,
    ToClient,
}

/// How connections are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Both sides are closed the ordinary way.
    Fin,
    /// Both sides are reset.
    Reset,
    /// The receiver of this direction gets the end of the stream; the other direction goes on.
    HalfClose,
}

/// The proxy. Dropping it resets its connections.
pub struct Proxy {
    pub address: SocketAddr,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    to_broker: Flow,
    to_client: Flow,
    connections: usize,
    /// Connections made before this count are cut in this way.
    cut: Option<(usize, Cut)>,
    ended: bool,
}

#[derive(Default, Clone, Copy)]
struct Flow {
    passed: u64,
    stalled: bool,
    delay: Duration,
    bytes_per_second: Option<u64>,
    /// At this count of bytes.
    cut: Option<(u64, Cut)>,
}

impl State {
    fn flow(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::ToBroker => &mut self.to_broker,
            Direction::ToClient => &mut self.to_client,
        }
    }
}

impl Proxy {
    /// In front of this address.
    pub fn before(target: SocketAddr) -> Proxy {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        // What is accepted inherits the sizes.
        shrink(&SockRef::from(&socket));
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        socket.listen(128).expect("listening");
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().expect("its number");
        let control = Arc::<Control>::default();
        let for_thread = control.clone();
        spawn("proxy", move || accept(&listener, target, &for_thread));
        Proxy { address, control }
    }

    /// Lets nothing pass any more in this direction; what is sent stays in the buffers.
    pub fn stall(&self, direction: Direction) {
        self.change(|state| state.flow(direction).stalled = true);
    }

    pub fn resume(&self, direction: Direction) {
        self.change(|state| state.flow(direction).stalled = false);
    }

    /// Everything passes so much later.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.change(|state| state.flow(direction).delay = delay);
    }

    pub fn throttle(&self, direction: Direction, bytes_per_second: u64) {
        self.change(|state| state.flow(direction).bytes_per_second = Some(bytes_per_second));
    }

    /// Cuts when exactly so many bytes have passed in this direction in all.
    pub fn cut_at(&self, direction: Direction, bytes: u64, cut: Cut) {
        self.change(|state| state.flow(direction).cut = Some((bytes, cut)));
    }

    /// Cuts the connections that there are, at once.
    pub fn cut(&self, cut: Cut) {
        self.change(|state| state.cut = Some((state.connections, cut)));
    }

    /// How many bytes have passed.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.control.lock().flow(direction).passed
    }

    /// Waits until so many bytes have passed in all.
    pub fn wait_passed(&self, direction: Direction, bytes: u64) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.control.lock();
        while state.flow(direction).passed < bytes {
            assert!(Instant::now() < deadline, "{} bytes of {bytes}", state.flow(direction).passed);
            state = self.control.wait(state, LOOK);
        }
    }

    /// Waits until nothing has passed for a while, and says how much had.
    pub fn wait_quiet(&self, direction: Direction, quiet: Duration) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.control.lock();
        let (mut seen, mut since) = (state.flow(direction).passed, Instant::now());
        while since.elapsed() < quiet {
            assert!(Instant::now() < deadline, "it never stops");
            state = self.control.wait(state, LOOK);
            let passed = state.flow(direction).passed;
            if passed != seen {
                (seen, since) = (passed, Instant::now());
            }
        }
        seen
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.control.lock().connections
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.control.lock());
        self.control.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|state| state.ended = true);
        // The listener is woken by one more connection.
        let _ = TcpStream::connect(self.address);
    }
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, at_most: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, at_most).unwrap_or_else(PoisonError::into_inner).0
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, control: &Arc<Control>) {
    for client in listener.incoming() {
        let client = client.expect("a connection");
        let number = {
            let mut state = control.lock();
            if state.ended {
                return;
            }
            state.connections += 1;
            state.connections
        };
        let Ok(broker) = TcpStream::connect(target) else {
            // The client is hung up on, as by a host where nobody listens.
            continue;
        };
        let (client, broker) = (Arc::new(client), Arc::new(broker));
        for stream in [&client, &broker] {
            stream.set_nodelay(true).expect("nodelay");
            stream.set_read_timeout(Some(LOOK)).expect("a timeout");
            stream.set_write_timeout(Some(LOOK)).expect("a timeout");
        }
        shrink(&SockRef::from(&*broker));
        let ways =
            [(Direction::ToBroker, client.clone(), broker.clone()), (Direction::ToClient, broker, client)];
        for (direction, source, sink) in ways {
            let control = control.clone();
            spawn("proxy-pump", move || Pump { direction, number, source, sink, control }.run());
        }
    }
}

fn shrink(socket: &SockRef<'_>) {
    socket.set_recv_buffer_size(BUFFER).expect("a buffer size");
    socket.set_send_buffer_size(BUFFER).expect("a buffer size");
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name(name.into()).spawn(run).expect("a thread");
}

/// Moves the bytes of one connection in one direction.
struct Pump {
    direction: Direction,
    number: usize,
    source: Arc<TcpStream>,
    sink: Arc<TcpStream>,
    control: Arc<Control>,
}

impl Pump {
    fn run(&self) {
        let mut buffer = vec![0; BUFFER];
        // Ends when the connection is cut, or when both sides have hung up.
        while let Some(allowed) = self.allowance() {
            match (&*self.source).read(&mut buffer[..allowed.min(BUFFER)]) {
                Ok(0) => {
                    let _ = self.sink.shutdown(Shutdown::Write);
                    return;
                }
                Ok(read) => {
                    if self.hold(read).is_none() || self.forward(&buffer[..read]).is_none() {
                        return;
                    }
                }
                Err(error) if is_timeout(&error) => {}
                Err(_) => {
                    self.close(Cut::Reset);
                    return;
                }
            }
        }
    }

    /// Waits while there is a stall, and says how many bytes may be read; `None` when the connection is cut.
    fn allowance(&self) -> Option<usize> {
        let mut state = self.control.lock();
        loop {
            let flow = *state.flow(self.direction);
            let cut = state.cut.filter(|(last, _)| self.number <= *last).map(|(_, cut)| cut);
            let due = flow.cut.filter(|(at, _)| flow.passed >= *at).map(|(_, cut)| cut);
            let ended = state.ended.then_some(Cut::Reset);
            if let Some(cut) = ended.or(cut).or(due) {
                if due.is_some() {
                    // Once; a half close concerns no other connection, any other cut also the other pump.
                    state.flow(self.direction).cut = None;
                    if cut != Cut::HalfClose {
                        state.cut = Some((state.connections, cut));
                    }
                    self.control.changed.notify_all();
                }
                drop(state);
                self.close(cut);
                return None;
            }
            if !flow.stalled {
                let before_cut = flow.cut.map_or(u64::MAX, |(at, _)| at - flow.passed);
                return Some(usize::try_from(before_cut).unwrap_or(usize::MAX));
            }
            state = self.control.wait(state, LOOK);
        }
    }

    /// Delays and throttles what was read.
    fn hold(&self, read: usize) -> Option<()> {
        let start = Instant::now();
        loop {
            self.allowance()?;
            let mut state = self.control.lock();
            let flow = *state.flow(self.direction);
            let pace = flow.bytes_per_second.map_or(0.0, |pace| read as f64 / pace as f64);
            let due = start + flow.delay + Duration::from_secs_f64(pace);
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(());
            }
            drop(self.control.wait(state, left.min(LOOK)));
        }
    }

    fn forward(&self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let allowed = self.allowance()?.min(bytes.len());
            match (&*self.sink).write(&bytes[..allowed]) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.control.lock().flow(self.direction).passed += written as u64;
                    self.control.changed.notify_all();
                }
                Err(error) if is_timeout(&error) => {}
                Err(_) => {
                    self.close(Cut::Reset);
                    return None;
                }
            }
        }
        Some(())
    }

    fn close(&self, cut: Cut) {
        match cut {
            Cut::HalfClose => drop(self.sink.shutdown(Shutdown::Write)),
            Cut::Fin => {
                for stream in [&self.source, &self.sink] {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
            Cut::Reset => {
                for stream in [&self.source, &self.sink] {
                    // Sent when the other pump is gone too; that one is woken without a word to the peer.
                    let _ = SockRef::from(&**stream).set_linger(Some(Duration::ZERO));
                    let _ = stream.shutdown(Shutdown::Read);
                }
            }
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
