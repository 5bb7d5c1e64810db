//! A session as everybody else sees it: who it is, its link, and whether it may be read from.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{clock::Clock, hub::Hub, link::Link, model::SessionId, served::Served, silence::Silence};
use crate::{
    protocol::{
        frame,
        spec::{ConnectionBlocked, ConnectionUnblocked},
        value::{FieldTable, FieldValue},
        wire::ShortStr,
    },
    sync::lock,
    transport::Transport,
};

/// The reason that RabbitMQ gives.
const LOW_ON_MEMORY: &str = "low on memory";

/// What a session's threads share with the rest of the broker.
#[derive(Debug)]
pub(super) struct Presence {
    pub(super) id: SessionId,
    pub(super) link: Link,
    /// The other end of the socket; `None` for a connection within the process.
    pub(super) peer: Option<SocketAddr>,
    pub(super) details: Mutex<Details>,
    max_frame: AtomicUsize,
    takes_cancels: AtomicBool,
    gate: Mutex<Gate>,
    /// The gate is shut, or the session has ended: to be asked often.
    stopped: AtomicBool,
    changed: Condvar,
    /// How often something was heard from the client.
    heard: AtomicU64,
    silence: Mutex<Silence>,
    /// A test has the connection cut after so many more frames from the client; none at [`u64::MAX`].
    frames_left: AtomicU64,
}

/// What the handshake has told.
#[derive(Debug, Default)]
pub(super) struct Details {
    pub(super) user: String,
    /// Set once the virtual host is open.
    pub(super) served: Option<Arc<Served>>,
    pub(super) client_properties: FieldTable,
    pub(super) channel_max: u16,
    pub(super) heartbeat: u16,
}

/// Whether the session is read from.
#[derive(Debug, Default)]
struct Gate {
    /// A test has stopped reading.
    held: bool,
    /// It has published, so an alarm concerns it.
    publishes: bool,
    /// The client understands `connection.blocked`.
    takes_blocked: bool,
    alarm: bool,
    /// `connection.blocked` was sent.
    told: bool,
    /// The connection is open: it may be told.
    open: bool,
    ended: bool,
}

impl Gate {
    fn is_shut(&self) -> bool {
        !self.ended && (self.held || (self.alarm && self.publishes))
    }
}

impl Presence {
    pub(super) fn new(
        hub: &Hub,
        id: SessionId,
        transport: Arc<dyn Transport>,
        peer: Option<SocketAddr>,
    ) -> Presence {
        Presence {
            id,
            link: Link::new(transport, id, &hub.clock, &hub.log),
            peer,
            details: Mutex::default(),
            max_frame: AtomicUsize::new(frame::MIN_FRAME_MAX as usize),
            takes_cancels: AtomicBool::new(false),
            gate: Mutex::default(),
            stopped: AtomicBool::new(false),
            changed: Condvar::new(),
            heard: AtomicU64::new(0),
            silence: Mutex::new(Silence::new(hub.clock.now(), Instant::now())),
            frames_left: AtomicU64::new(u64::MAX),
        }
    }

    /// The largest frame that is sent to the client.
    pub(super) fn max_frame(&self) -> usize {
        self.max_frame.load(Ordering::Relaxed)
    }

    pub(super) fn set_max_frame(&self, size: usize) {
        self.max_frame.store(size, Ordering::Relaxed);
    }

    /// The client wants to know when the broker cancels a consumer.
    pub(super) fn takes_cancels(&self) -> bool {
        self.takes_cancels.load(Ordering::Relaxed)
    }

    pub(super) fn set_capabilities(&self, client_properties: &FieldTable) {
        let capabilities = client_properties.get("capabilities").and_then(|value| value.as_table());
        let has = |name: &str| {
            capabilities.and_then(|table| table.get(name)).and_then(FieldValue::as_bool) == Some(true)
        };
        self.takes_cancels.store(has("consumer_cancel_notify"), Ordering::Relaxed);
        lock(&self.gate).takes_blocked = has("connection.blocked");
    }

    /// The handshake is over.
    pub(super) fn opened(&self, alarm: bool) {
        let mut gate = lock(&self.gate);
        gate.open = true;
        gate.alarm = alarm;
    }

    /// The client publishes. During an alarm this is what blocks the connection.
    pub(super) fn publishes(&self) {
        self.change(|gate| gate.publishes = true);
    }

    pub(super) fn set_alarm(&self, alarm: bool) {
        self.change(|gate| gate.alarm = alarm);
    }

    /// Stops reading from the client, or goes on.
    pub(super) fn hold_reading(&self, held: bool) {
        self.change(|gate| gate.held = held);
    }

    /// What was read is not to be looked at before [`wait_for_reading`](Presence::wait_for_reading) allows it. Takes no lock.
    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// An alarm has stopped the client.
    pub(super) fn is_blocked(&self) -> bool {
        let gate = lock(&self.gate);
        gate.alarm && gate.publishes
    }

    fn change(&self, change: impl FnOnce(&mut Gate)) {
        let mut gate = lock(&self.gate);
        change(&mut gate);
        let blocked = gate.alarm && gate.publishes && gate.open && gate.takes_blocked;
        let news = blocked != gate.told;
        gate.told = blocked;
        self.stopped.store(gate.ended || gate.is_shut(), Ordering::SeqCst);
        if news {
            // Under the gate's lock, so that the two cannot overtake each other.
            self.link.append(|out| {
                let _ = match blocked {
                    true => {
                        let reason = ShortStr::truncated(LOW_ON_MEMORY);
                        frame::write_method(out, 0, usize::MAX, &ConnectionBlocked { reason })
                    }
                    false => frame::write_method(out, 0, usize::MAX, &ConnectionUnblocked {}),
                };
            });
        }
        drop(gate);
        self.changed.notify_all();
        if news {
            // What the client took meanwhile is noticed when the next turn ends.
            self.link.flush();
        }
    }

    /// Waits until the session may be read from; false when it has ended.
    pub(super) fn wait_for_reading(&self) -> bool {
        let mut gate = lock(&self.gate);
        while gate.is_shut() {
            gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        !gate.ended
    }

    /// Ends the session now: its threads return.
    pub(super) fn cut(&self) {
        self.link.cut();
        self.change(|gate| gate.ended = true);
    }

    /// Cuts the session after so many more frames from the client, heartbeats not counted; [`u64::MAX`] takes it back.
    pub(super) fn cut_after_received(&self, frames: u64) {
        self.frames_left.store(frames, Ordering::SeqCst);
    }

    /// Every frame that was to be taken from the client has been.
    pub(super) fn took_last(&self) -> bool {
        self.frames_left.load(Ordering::Relaxed) == 0
    }

    /// Counts a frame from the client; true when it is the last that is taken.
    pub(super) fn take_frame(&self) -> bool {
        let counted = self.frames_left.load(Ordering::Relaxed) != u64::MAX;
        counted && self.frames_left.fetch_sub(1, Ordering::SeqCst) == 1
    }

    /// What has been put into the link is the last that goes out, and nothing more is read.
    pub(super) fn finish(&self) {
        self.link.finish();
        self.change(|gate| gate.ended = true);
    }

    /// Something came from the client.
    pub(super) fn hear(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// The interval of heartbeats; `None` without them.
    pub(super) fn heartbeat(&self) -> Option<Duration> {
        let seconds = lock(&self.details).heartbeat;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    /// Notes whether something was heard or sent since this was called last.
    pub(super) fn look(&self, clock: &Clock) {
        // Then the broker does not read from it for reasons of its own.
        let excused = self.is_blocked() || self.link.is_full();
        let heard = self.heard.load(Ordering::Relaxed);
        lock(&self.silence).look(heard, excused, self.link.bytes_sent(), clock.now(), Instant::now());
    }

    /// How much longer the client may be silent.
    pub(super) fn patience(&self, clock: &Clock, interval: Duration) -> Duration {
        let unheard = lock(&self.gate).held;
        lock(&self.silence).patience(interval, unheard, clock.now(), Instant::now())
    }

    /// How long it is until a heartbeat is due.
    pub(super) fn until_beat(&self, clock: &Clock, interval: Duration) -> Duration {
        lock(&self.silence).until_beat(interval, clock.now())
    }

    /// Sends a heartbeat.
    pub(super) fn beat(&self, clock: &Clock) {
        lock(&self.silence).beat(clock.now());
        self.link.append_heartbeat();
        self.link.flush();
    }

    /// The virtual host, once it is open.
    pub(super) fn served(&self) -> Option<Arc<Served>> {
        lock(&self.details).served.clone()
    }
}
