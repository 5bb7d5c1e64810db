//! What a listener does with messages and consumers, and the threads that do it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    net::ToSocketAddrs,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle, ThreadId},
    time::{Duration, Instant},
};

use super::{Consumer, Listener, PeerState, Published, inbox::Job};
use crate::{
    broker::{config::BrokerConfig, model::SessionId},
    error::{Departure, Error, HandlerError, Result, panic_message},
    sync::lock,
};

type OnMessage = Box<dyn Fn(&Published) -> Result<(), HandlerError> + Send + Sync>;
type OnConsumer = Box<dyn Fn(Consumer) -> Result<(), HandlerError> + Send + Sync>;

/// How a [`Listener`] is started: what it does, and its limits.
///
/// ```
/// use leveret::direct::{Consumer, Published, Serve};
///
/// let listener = Serve::new()
///     .messages(|message: &Published| {
///         println!("{}", message.text()?);
///         Ok(())
///     })
///     .consumers(|consumer: Consumer| {
///         consumer.send("the only message")?;
///         Ok(())
///     })
///     .listen("127.0.0.1:0")?;
/// # Ok::<(), leveret::Error>(())
/// ```
#[must_use = "nothing is served before `start` or `listen`"]
pub struct Serve {
    config: BrokerConfig,
    messages: Option<OnMessage>,
    consumers: Option<OnConsumer>,
    workers: usize,
    pub(super) send_timeout: Duration,
    drop_timeout: Duration,
}

impl Default for Serve {
    fn default() -> Serve {
        Serve {
            config: BrokerConfig::new(),
            messages: None,
            consumers: None,
            workers: 4,
            send_timeout: Duration::from_secs(30),
            drop_timeout: Duration::from_secs(5),
        }
    }
}

impl Serve {
    /// Neither messages nor consumers are taken yet.
    pub fn new() -> Serve {
        Serve::default()
    }

    /// Handles what peers publish. Without it, publishing is refused (540).
    ///
    /// The message counts as taken when the handler has returned `Ok`: that is when the confirm goes out. After an `Err` or a
    /// panic it is a `basic.nack`, and the reason is logged. A peer without confirms learns of neither.
    ///
    /// The messages of one peer are handled one after the other. Every call is allowed in a handler, also those that
    /// wait; it holds up its peer, and keeps one of the [workers](Serve::workers).
    pub fn messages(
        mut self,
        handler: impl Fn(&Published) -> Result<(), HandlerError> + Send + Sync + 'static,
    ) -> Serve {
        self.messages = Some(Box::new(handler));
        self
    }

    /// Takes the consumers of peers. Without it, consuming is refused (540), except from the queues for answers.
    ///
    /// The handler may send at once, or keep the [`Consumer`] for later and elsewhere. Dropping it cancels the peer's
    /// consumer; so does an `Err` or a panic, and the reason is logged.
    pub fn consumers(
        mut self,
        handler: impl Fn(Consumer) -> Result<(), HandlerError> + Send + Sync + 'static,
    ) -> Serve {
        self.consumers = Some(Box::new(handler));
        self
    }

    /// How many handlers may run at the same time, each for another peer. Default: 4. At least 1.
    pub fn workers(mut self, workers: usize) -> Serve {
        self.workers = workers;
        self
    }

    /// How long [`Consumer::send`] waits for a peer that has as much as its prefetch allows, or does not read. Default:
    /// 30 seconds.
    pub fn send_timeout(mut self, timeout: Duration) -> Serve {
        self.send_timeout = timeout;
        self
    }

    /// How long dropping the [`Listener`] waits for handlers that run. One that takes longer is left behind, with its thread,
    /// and nothing follows it: its confirm does not go out. Default: 5 seconds.
    pub fn drop_timeout(mut self, timeout: Duration) -> Serve {
        self.drop_timeout = timeout;
        self
    }

    /// Users, virtual hosts, TLS, and the limits of connections. What it says about memory and about RabbitMQ's releases
    /// has no meaning here.
    pub fn config(mut self, config: BrokerConfig) -> Serve {
        self.config = config;
        self
    }

    /// Starts a listener that only this process can reach, by [`Listener::connect`].
    ///
    /// # Errors
    /// [`Error::Invalid`] names the setting that is wrong; [`Error::Io`]: a thread cannot be started.
    pub fn start(self) -> Result<Listener> {
        Listener::start(self, &[])
    }

    /// Starts a listener on TCP, or on TLS if the [`config`](Serve::config) has an identity; port 0 takes any that is
    /// free.
    ///
    /// # Errors
    /// As [`start`](Serve::start), and [`Error::Io`] when the address cannot be listened on.
    pub fn listen(self, address: impl ToSocketAddrs) -> Result<Listener> {
        let addresses: Vec<_> =
            address.to_socket_addrs().map_err(|error| Error::io("listening", error))?.collect();
        if addresses.is_empty() {
            return Err(Error::invalid("there is no address to listen on"));
        }
        Listener::start(self, &addresses)
    }

    pub(super) fn into_program(self) -> Result<(BrokerConfig, Arc<Program>)> {
        self.config.validate()?;
        if self.workers == 0 {
            return Err(Error::invalid("a listener needs at least one worker"));
        }
        let workers = self.workers;
        let (config, program) = self.without_workers();
        for _ in 0..workers {
            let worker = thread::Builder::new().name("leveret-direct".into()).spawn({
                let program = program.clone();
                move || program.work()
            });
            match worker {
                Ok(worker) => lock(&program.work).workers.push(worker),
                Err(error) => {
                    program.stop();
                    return Err(Error::io("starting a thread", error));
                }
            }
        }
        Ok((config, program))
    }

    /// Nobody calls the handlers but [`Program::work_off`].
    pub(in crate::broker) fn without_workers(self) -> (BrokerConfig, Arc<Program>) {
        let program = Program {
            messages: self.messages,
            consumers: self.consumers,
            send_timeout: self.send_timeout,
            drop_timeout: self.drop_timeout,
            peers: Mutex::default(),
            left: Condvar::new(),
            work: Mutex::default(),
            changed: Condvar::new(),
            ended: Condvar::new(),
        };
        (self.config, Arc::new(program))
    }
}

impl fmt::Debug for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("config", &self.config)
            .field("workers", &self.workers)
            .field("send_timeout", &self.send_timeout)
            .field("drop_timeout", &self.drop_timeout)
            .finish_non_exhaustive()
    }
}

/// What stands in the place of queues: the program's handlers, and who is connected.
///
/// Its locks are taken alone, or after a virtual host's.
pub(in crate::broker) struct Program {
    messages: Option<OnMessage>,
    consumers: Option<OnConsumer>,
    pub(super) send_timeout: Duration,
    drop_timeout: Duration,
    peers: Mutex<BTreeMap<SessionId, Arc<PeerState>>>,
    left: Condvar,
    work: Mutex<Work>,
    changed: Condvar,
    /// A worker has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Work {
    /// Peers with something in their inboxes; none of them twice.
    waiting: VecDeque<Arc<PeerState>>,
    workers: Vec<JoinHandle<()>>,
    /// The workers that have ended, or are about to.
    ended: Vec<ThreadId>,
    stopped: bool,
}

impl Program {
    pub(in crate::broker) fn takes_messages(&self) -> bool {
        self.messages.is_some()
    }

    pub(in crate::broker) fn takes_consumers(&self) -> bool {
        self.consumers.is_some()
    }

    pub(in crate::broker) fn add(&self, peer: &Arc<PeerState>) {
        lock(&self.peers).insert(peer.id(), peer.clone());
    }

    pub(in crate::broker) fn remove(&self, id: SessionId) {
        lock(&self.peers).remove(&id);
        self.left.notify_all();
    }

    /// Waits until nobody is connected; false when the time was over.
    pub(super) fn wait_left(&self, deadline: Instant) -> bool {
        let mut peers = lock(&self.peers);
        while !peers.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            peers = match self.left.wait_timeout(peers, left) {
                Ok((peers, _)) => peers,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }

    pub(in crate::broker) fn peers(&self) -> Vec<Arc<PeerState>> {
        lock(&self.peers).values().cloned().collect()
    }

    /// A peer that did not read has taken enough to be sent more.
    pub(in crate::broker) fn resumed(&self, id: SessionId) {
        let peer = lock(&self.peers).get(&id).cloned();
        if let Some(peer) = peer {
            peer.wake_senders();
        }
    }

    /// Has a worker look into the peer's inbox.
    pub(super) fn schedule(&self, peer: Arc<PeerState>) {
        let mut work = lock(&self.work);
        if !work.stopped {
            work.waiting.push_back(peer);
        }
        drop(work);
        self.changed.notify_one();
    }

    /// Lets the handlers that run finish, and starts none any more. Nobody waits for a peer any longer.
    pub(super) fn stop(&self) {
        let workers = {
            let mut work = lock(&self.work);
            work.stopped = true;
            work.waiting.clear();
            std::mem::take(&mut work.workers)
        };
        self.changed.notify_all();
        for peer in self.peers() {
            peer.end(Departure::Ended);
        }
        let deadline = Instant::now().checked_add(self.drop_timeout);
        for worker in workers {
            let id = worker.thread().id();
            // A handler that stops its own listener goes on after it.
            if id == thread::current().id() {
                continue;
            }
            if self.wait_ended(id, deadline) {
                let _ = worker.join();
            } else {
                log::warn!(target: "leveret::direct", "a handler is still at work: it is left behind");
            }
        }
    }

    /// Waits for the end of a worker; false when the time was over.
    fn wait_ended(&self, worker: ThreadId, deadline: Option<Instant>) -> bool {
        let mut work = lock(&self.work);
        while !work.ended.contains(&worker) {
            let left = deadline.map_or(Duration::MAX, |it| it.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            work = match self.ended.wait_timeout(work, left) {
                Ok((work, _)) => work,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }

    fn work(&self) {
        let _ended = Ended(self);
        while let Some(peer) = self.next() {
            self.serve(peer);
        }
    }

    /// Does what waits for a worker, on the calling thread.
    #[cfg(any(test, fuzzing))]
    pub(in crate::broker) fn work_off(&self) {
        while let Some(peer) = self.waiting() {
            self.serve(peer);
        }
    }

    #[cfg(any(test, fuzzing))]
    fn waiting(&self) -> Option<Arc<PeerState>> {
        lock(&self.work).waiting.pop_front()
    }

    fn serve(&self, peer: Arc<PeerState>) {
        if let Some(job) = peer.take_job() {
            self.handle(&peer, job);
        }
        if peer.goes_on() {
            self.schedule(peer);
        }
    }

    fn next(&self) -> Option<Arc<PeerState>> {
        let mut work = lock(&self.work);
        loop {
            if work.stopped {
                return None;
            }
            if let Some(peer) = work.waiting.pop_front() {
                return Some(peer);
            }
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn handle(&self, peer: &Arc<PeerState>, job: Job) {
        match job {
            Job::Message { message, place, number } => {
                let handled = match &self.messages {
                    Some(handler) => run(|| handler(&Published::new(message, peer.clone(), place.channel))),
                    None => false,
                };
                if let Some(number) = number {
                    peer.confirm(place, number, handled);
                }
            }
            Job::Consumer(subscription) => {
                let consumer = Consumer::new(peer.clone(), subscription);
                if let Some(handler) = &self.consumers {
                    // What the handler has not kept is dropped, which cancels it.
                    run(|| handler(consumer));
                }
            }
        }
    }
}

/// The end of a worker, whatever has ended it.
struct Ended<'a>(&'a Program);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        lock(&self.0.work).ended.push(thread::current().id());
        self.0.ended.notify_all();
    }
}

/// True when the handler has returned `Ok`.
fn run(handler: impl FnOnce() -> Result<(), HandlerError>) -> bool {
    match panic::catch_unwind(AssertUnwindSafe(handler)) {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => log::warn!(target: "leveret::direct", "a handler failed: {error}"),
        Err(panicked) => {
            log::error!(target: "leveret::direct", "a handler panicked: {}", panic_message(&*panicked));
        }
    }
    false
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").finish_non_exhaustive()
    }
}
