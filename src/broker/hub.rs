//! What all sessions of a broker share: users, virtual hosts, the list of sessions, the clock and the alarm.
//!
//! Locks, in their order: a virtual host's, then a session's gate, then its link. Those of the hub's own lists are
//! taken alone, or before any of these; never after.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use super::{
    clock::Clock,
    config::{BrokerConfig, Permissions, User},
    direct::Program,
    frame_log::FrameLog,
    model::{SessionId, Settings, Vhost},
    presence::Presence,
    served::Served,
    session,
    tamper::{Confirms, Prepared},
    timer::Timer,
};
use crate::{
    error::{Error, Result},
    sync::lock,
    transport::Transport,
};

/// Enough for what sessions do, and little for thousands of them. Only what is used costs memory.
const STACK: usize = 512 * 1024;

/// How long clients may take to answer when the broker says that it stops.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long sessions may take to notice that they were cut. They wait for nothing that is not cut with them, so this is for
/// a machine that is very busy.
const LAST: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Hub {
    pub(super) config: BrokerConfig,
    pub(super) clock: Arc<Clock>,
    pub(super) timer: Timer,
    pub(super) log: Arc<FrameLog>,
    pub(super) confirms: Confirms,
    users: Mutex<Vec<User>>,
    vhosts: Mutex<BTreeMap<String, Arc<Served>>>,
    sessions: Mutex<Sessions>,
    ended: Condvar,
    /// What all messages cost.
    memory: AtomicUsize,
    /// A test wants the alarm.
    forced: AtomicBool,
    alarm: AtomicBool,
    /// What peers talk to in place of queues, if it is a direct listener's.
    pub(super) program: Option<Arc<Program>>,
    /// Makes names unguessable.
    seed: u64,
    myself: Weak<Hub>,
}

#[derive(Debug, Default)]
struct Sessions {
    open: BTreeMap<SessionId, (Arc<Presence>, Option<JoinHandle<()>>)>,
    /// Threads that have ended, or are about to.
    finished: Vec<JoinHandle<()>>,
    /// The number of the youngest.
    last: u64,
    /// What is to be done to those that come.
    prepared: Prepared,
    stopped: bool,
}

impl Hub {
    pub(super) fn new(config: BrokerConfig) -> Arc<Hub> {
        Hub::with_program(config, None)
    }

    /// Of a listener without queues.
    pub(super) fn direct(config: BrokerConfig, program: Arc<Program>) -> Arc<Hub> {
        Hub::with_program(config, Some(program))
    }

    fn with_program(config: BrokerConfig, program: Option<Arc<Program>>) -> Arc<Hub> {
        let hub = Arc::new_cyclic(|myself| Hub {
            users: Mutex::new(config.users.clone()),
            clock: Arc::new(Clock::new()),
            timer: Timer::default(),
            log: Arc::default(),
            confirms: Confirms::default(),
            vhosts: Mutex::default(),
            sessions: Mutex::default(),
            ended: Condvar::new(),
            memory: AtomicUsize::new(0),
            forced: AtomicBool::new(false),
            alarm: AtomicBool::new(false),
            program,
            seed: random(),
            myself: myself.clone(),
            config,
        });
        for name in &hub.config.vhosts {
            hub.add_vhost(name);
        }
        hub
    }

    pub(super) fn weak(&self) -> Weak<Hub> {
        self.myself.clone()
    }

    /// True when it was not there before.
    pub(super) fn add_vhost(&self, name: &str) -> bool {
        let mut vhosts = lock(&self.vhosts);
        if vhosts.contains_key(name) {
            return false;
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let model = Vhost::new(Settings {
            name: name.into(),
            emulate: self.config.emulate,
            epoch: since.saturating_sub(self.clock.now()).as_secs(),
            seed: self.seed ^ random(),
        });
        vhosts.insert(name.into(), Arc::new(Served::new(name.into(), model)));
        true
    }

    /// Deletes a virtual host with everything in it; its connections are closed. True when it was there.
    pub(super) fn remove_vhost(&self, name: &str) -> bool {
        let Some(served) = lock(&self.vhosts).remove(name) else { return false };
        served.close_sessions(self, &format!("vhost '{name}' is deleted"));
        let mut turn = served.turn(self);
        turn.model().restart();
        turn.set_gone();
        turn.finish();
        self.timer.set(self, &served, None);
        true
    }

    pub(super) fn vhost(&self, name: &str) -> Option<Arc<Served>> {
        lock(&self.vhosts).get(name).cloned()
    }

    pub(super) fn all_vhosts(&self) -> Vec<Arc<Served>> {
        lock(&self.vhosts).values().cloned().collect()
    }

    pub(super) fn set_user(&self, user: User) {
        let mut users = lock(&self.users);
        users.retain(|known| known.name != user.name);
        users.push(user);
    }

    pub(super) fn set_permissions(&self, user: &str, permissions: Permissions) -> bool {
        let mut users = lock(&self.users);
        let Some(user) = users.iter_mut().find(|known| known.name == user) else { return false };
        user.permissions.retain(|known| known.vhost != permissions.vhost);
        user.permissions.push(permissions);
        true
    }

    pub(super) fn remove_user(&self, name: &str) -> bool {
        let mut users = lock(&self.users);
        let before = users.len();
        users.retain(|known| known.name != name);
        users.len() < before
    }

    pub(super) fn user(&self, name: &str) -> Option<User> {
        lock(&self.users).iter().find(|user| user.name == name).cloned()
    }

    /// Takes a virtual host's new size into the sum. Called under its lock, so that it never gives back what it has not
    /// taken yet.
    pub(super) fn count_memory(&self, before: usize, now: usize) {
        if now > before {
            self.memory.fetch_add(now - before, Ordering::SeqCst);
        } else {
            self.memory.fetch_sub(before - now, Ordering::SeqCst);
        }
    }

    /// Raises or clears the alarm, if the sum calls for it. Called without a lock.
    pub(super) fn watch_memory(&self) {
        let (sum, limit) = (self.memory(), self.config.memory_limit);
        if sum > limit && !self.is_alarmed() || sum <= limit - limit / 10 && self.is_alarmed() {
            self.update_alarm();
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.memory.load(Ordering::SeqCst)
    }

    /// Raises the alarm whatever the memory is, or no longer.
    pub(super) fn force_alarm(&self, forced: bool) {
        self.forced.store(forced, Ordering::SeqCst);
        self.update_alarm();
    }

    pub(super) fn is_alarmed(&self) -> bool {
        self.alarm.load(Ordering::SeqCst)
    }

    /// Decided under the lock of the sessions, so that the last decision is what everyone has heard.
    fn update_alarm(&self) {
        let sessions = lock(&self.sessions);
        let limit = self.config.memory_limit;
        let enough = if self.is_alarmed() { limit - limit / 10 } else { limit };
        let alarm = self.forced.load(Ordering::SeqCst) || self.memory() > enough;
        self.alarm.store(alarm, Ordering::SeqCst);
        for (presence, _) in sessions.open.values() {
            presence.set_alarm(alarm);
        }
    }

    /// The handshake of a session is over: from now on alarms reach it.
    pub(super) fn opened(&self, presence: &Presence) {
        let _sessions = lock(&self.sessions);
        presence.opened(self.is_alarmed());
    }

    /// Starts a session on a transport.
    ///
    /// # Errors
    /// The broker is stopped, has too many connections, or the system has no thread for it.
    pub(super) fn start(&self, transport: Arc<dyn Transport>, peer: Option<SocketAddr>) -> Result<()> {
        self.reap();
        let stopped = || Error::io("connecting to the broker", io::ErrorKind::ConnectionRefused.into());
        let presence = {
            let mut sessions = lock(&self.sessions);
            if sessions.stopped || sessions.open.len() >= self.config.max_connections {
                transport.shutdown();
                return Err(stopped());
            }
            sessions.last += 1;
            let id = SessionId(sessions.last);
            let presence = Arc::new(Presence::new(self, id, transport, peer));
            sessions.prepared.apply(&presence);
            sessions.open.insert(id, (presence.clone(), None));
            presence
        };
        let id = presence.id;
        let run = {
            let (hub, presence) = (self.weak(), presence.clone());
            move || {
                if let Some(hub) = hub.upgrade() {
                    session::run(&hub, &presence);
                }
            }
        };
        match spawn("leveret-session", run) {
            Ok(thread) => {
                let mut sessions = lock(&self.sessions);
                match sessions.open.get_mut(&id) {
                    Some((_, place)) => *place = Some(thread),
                    None => sessions.finished.push(thread),
                }
                Ok(())
            }
            Err(error) => {
                presence.cut();
                self.finished(id);
                Err(error)
            }
        }
    }

    /// A session's thread is about to end.
    pub(super) fn finished(&self, id: SessionId) {
        let mut sessions = lock(&self.sessions);
        if let Some((_, Some(thread))) = sessions.open.remove(&id) {
            sessions.finished.push(thread);
        }
        drop(sessions);
        self.ended.notify_all();
    }

    /// Waits for the threads that have ended.
    fn reap(&self) {
        let finished = std::mem::take(&mut lock(&self.sessions).finished);
        for thread in finished {
            let _ = thread.join();
        }
    }

    pub(super) fn sessions(&self) -> Vec<Arc<Presence>> {
        lock(&self.sessions).open.values().map(|(presence, _)| presence.clone()).collect()
    }

    /// The number of the connection that comes next.
    pub(super) fn next_session(&self) -> SessionId {
        SessionId(lock(&self.sessions).last + 1)
    }

    /// Does something to a session, or has it done as soon as it is there; false when it is over.
    pub(super) fn tamper(&self, id: SessionId, act: impl FnOnce(&Presence) + Send + 'static) -> bool {
        let mut sessions = lock(&self.sessions);
        let open = sessions.open.get(&id).map(|(presence, _)| presence.clone());
        if open.is_none() && id.0 > sessions.last {
            sessions.prepared.add(id, Box::new(act));
            return true;
        }
        drop(sessions);
        if let Some(presence) = &open {
            act(presence);
        }
        open.is_some()
    }

    pub(super) fn session(&self, id: SessionId) -> Option<Arc<Presence>> {
        lock(&self.sessions).open.get(&id).map(|(presence, _)| presence.clone())
    }

    /// Cuts a session without a word, and gives its thread a moment to end.
    pub(super) fn give_up(&self, presence: &Presence) {
        presence.cut();
        self.wait_ended(FAREWELL, |sessions| !sessions.open.contains_key(&presence.id));
    }

    /// Waits for sessions to end; false when the time was over.
    fn wait_ended(&self, limit: Duration, done: impl Fn(&Sessions) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut sessions = lock(&self.sessions);
        while !done(&sessions) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            sessions = match self.ended.wait_timeout(sessions, left) {
                Ok((sessions, _)) => sessions,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }

    /// Closes all connections with 320, and waits until their threads have ended.
    pub(super) fn stop_sessions(&self) {
        lock(&self.sessions).stopped = true;
        for served in self.all_vhosts() {
            served.close_sessions(self, "broker forced connection closure with reason 'shutdown'");
        }
        self.wait_ended(FAREWELL, |sessions| sessions.open.is_empty());
        self.cut_sessions();
    }

    /// Cuts all connections without a word, and waits until their threads have ended.
    pub(super) fn cut_sessions(&self) {
        for presence in self.sessions() {
            presence.cut();
        }
        if !self.wait_ended(LAST, |sessions| sessions.open.is_empty()) {
            log::error!(target: "leveret::broker", "sessions that were cut are still at work: they are left behind");
        }
        self.reap();
    }

    /// Forgets what a restart loses.
    pub(super) fn restart(&self) {
        for served in self.all_vhosts() {
            let mut turn = served.turn(self);
            turn.model().restart();
            turn.finish();
        }
    }

    /// Accepts or refuses sessions from now on.
    pub(super) fn set_stopped(&self, stopped: bool) {
        lock(&self.sessions).stopped = stopped;
    }

    pub(super) fn is_stopped(&self) -> bool {
        lock(&self.sessions).stopped
    }
}

/// Starts a thread of the broker.
pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.into()).stack_size(STACK).spawn(run);
    thread.map_err(|error| Error::io("starting a thread", error))
}

/// A number that differs from run to run and from broker to broker: the keys of a hash map are random.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
