//! What a test may see of a broker, and do to it.

use std::{net::SocketAddr, time::Duration};

use super::{
    Broker, ConfirmMode, Direction, LoggedFrame, Permissions, User, failure::Failure, model::SessionId,
    presence::Presence,
};
use crate::{error::ReplyCode, protocol::value::FieldTable, sync::lock};

/// A connection, as the broker sees it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its number. They are given in the order in which connections come, from 1 on, and never again.
    pub id: u64,
    /// The client's address; `None` within the process.
    pub peer: Option<SocketAddr>,
    /// Who it is; empty until it has said so.
    pub user: String,
    /// The virtual host; `None` until it is open.
    pub vhost: Option<String>,
    /// What the client says of itself.
    pub client_properties: FieldTable,
    /// How many channels are open.
    pub channels: usize,
    /// The memory alarm has stopped it.
    pub blocked: bool,
}

impl ConnectionInfo {
    /// The name that the client has given the connection.
    pub fn name(&self) -> Option<&str> {
        self.client_properties.get("connection_name").and_then(|name| name.as_str())
    }
}

/// Users and virtual hosts.
impl Broker {
    /// Adds a user, or replaces the one of the same name. Connections that are open keep what they were allowed.
    pub fn set_user(&self, user: User) {
        self.hub.set_user(user);
    }

    /// Removes a user; true when there was one. Connections that are open stay.
    pub fn remove_user(&self, name: &str) -> bool {
        self.hub.remove_user(name)
    }

    /// Adds a virtual host; false when it was there. Users need [permissions](super::Permissions) for it.
    pub fn add_vhost(&self, name: &str) -> bool {
        self.hub.add_vhost(name)
    }

    /// The names of all virtual hosts.
    pub fn vhosts(&self) -> Vec<String> {
        self.hub.all_vhosts().iter().map(|served| served.name.clone()).collect()
    }

    /// Sets what a user may do on a virtual host, for connections that are opened from now on; false when there is no
    /// such user.
    pub fn set_permissions(&self, user: &str, permissions: Permissions) -> bool {
        self.hub.set_permissions(user, permissions)
    }

    /// Deletes a virtual host and everything in it, and closes its connections; false when there was none.
    pub fn remove_vhost(&self, name: &str) -> bool {
        self.hub.remove_vhost(name)
    }
}

/// Connections.
impl Broker {
    /// Every connection that is open, or shaking hands.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.hub.sessions().iter().map(|presence| self.info(presence)).collect()
    }

    fn info(&self, presence: &Presence) -> ConnectionInfo {
        let served = presence.served();
        let channels = served.as_ref().map_or(0, |served| {
            let turn = served.turn(&self.hub);
            let channels = turn.open_channels(presence.id);
            turn.finish();
            channels
        });
        let details = lock(&presence.details);
        ConnectionInfo {
            id: presence.id.0,
            peer: presence.peer,
            user: details.user.clone(),
            vhost: served.map(|served| served.name.clone()),
            client_properties: details.client_properties.clone(),
            channels,
            blocked: presence.is_blocked(),
        }
    }

    /// Closes a connection with a code and a text, as an operator does; false when there is none, or it is not open
    /// yet. The text stands behind the code's name: `CONNECTION_FORCED - text`.
    pub fn close_connection(&self, id: u64, code: ReplyCode, text: &str) -> bool {
        let Some(served) = self.hub.session(SessionId(id)).and_then(|presence| presence.served()) else {
            return false;
        };
        let mut turn = served.turn(&self.hub);
        let found = turn.has_session(SessionId(id));
        if found {
            turn.fail_session(SessionId(id), &Failure::new(code, text));
        }
        turn.finish();
        found
    }

    /// Closes all connections to a virtual host with 320; gives their number.
    pub fn close_connections(&self, vhost: &str, text: &str) -> usize {
        let Some(served) = self.hub.vhost(vhost) else { return 0 };
        let turn = served.turn(&self.hub);
        let number = turn.sessions().len();
        turn.finish();
        served.close_sessions(&self.hub, text);
        number
    }
}

/// Connections that go wrong. Each of these takes the number of a connection, also of one that is [still to
/// come](Broker::next_connection), and is false when that connection is over.
impl Broker {
    /// The number that the next connection will have; the one after it has the next number. What is done to them now
    /// happens as soon as they come, before their first byte is read: so a test decides what a client finds
    /// when it connects again. A client counts as soon as it has reached the port, whatever becomes of it then.
    ///
    /// ```
    /// use leveret::{Connection, broker::{Broker, Direction}};
    ///
    /// let broker = Broker::listen("127.0.0.1:0")?;
    /// let first = broker.next_connection();
    /// broker.drop_connection(first); // connected, and gone
    /// broker.cut_after(first + 1, Direction::FromClient, 2); // gone while it opens the virtual host
    /// assert!(Connection::open(broker.uri()?).is_err());
    /// assert!(Connection::open(broker.uri()?).is_err());
    /// assert!(Connection::open(broker.uri()?).is_ok());
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn next_connection(&self) -> u64 {
        self.hub.next_session().0
    }

    /// Drops a connection without a word.
    pub fn drop_connection(&self, id: u64) -> bool {
        self.hub.tamper(SessionId(id), Presence::cut)
    }

    /// Drops a connection without a word after so many more frames have come from the client, or gone to it: exactly
    /// so many, and be it in the middle of a message.
    ///
    /// The last frame from the client takes effect and is not answered; what came before it is. So a published message
    /// of three frames (method, header, body) is lost after two, and after three it is in its queues while its confirm is lost. What
    /// follows the last frame to the client is not sent; what the client sends until it notices may still take
    /// effect.
    ///
    /// Heartbeats are not counted. A handshake has three frames in each direction: `start-ok`, `tune-ok`, `open`, and
    /// `start`, `tune`, `open-ok`. Each direction has a count of its own; zero drops the connection at once, and
    /// [`u64::MAX`] takes the order back.
    ///
    /// ```
    /// use std::time::Duration;
    /// use leveret::broker::{Broker, Direction};
    ///
    /// let broker = Broker::start();
    /// let connection = broker.connect()?;
    /// let channel = connection.channel()?;
    /// channel.queue_declare("orders")?;
    /// channel.confirm_select()?;
    ///
    /// let id = broker.connections()[0].id;
    /// broker.cut_after(id, Direction::FromClient, 3);
    /// assert!(channel.publish_confirmed("", "orders", "order 1").is_err()); // nobody knows what became of it
    /// broker.expect_queue_depth("/", "orders", 1, Duration::from_secs(5))?; // but it is there
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn cut_after(&self, id: u64, direction: Direction, frames: u64) -> bool {
        self.hub.tamper(SessionId(id), move |presence| match (frames, direction) {
            (0, _) => presence.cut(),
            (_, Direction::FromClient) => presence.cut_after_received(frames),
            (_, Direction::ToClient) => presence.link.end_after((frames < u64::MAX).then_some(frames)),
        })
    }

    /// Stops reading from a connection, or goes on. What the client sends piles up in the network, and then in the
    /// client. The broker does not hear it, and gives it up after two intervals of heartbeats.
    pub fn stall_reads(&self, id: u64, stalled: bool) -> bool {
        self.hub.tamper(SessionId(id), move |presence| presence.hold_reading(stalled))
    }

    /// Stops writing to a connection, heartbeats included, or goes on.
    pub fn stall_writes(&self, id: u64, stalled: bool) -> bool {
        self.hub.tamper(SessionId(id), move |presence| presence.link.hold(stalled))
    }

    /// Has everything that is sent to a client go out later by so much of the broker's time: answers, confirms,
    /// deliveries, in their order. It passes by itself, or is [moved](Broker::advance). Zero ends it: what was held back
    /// goes out at once.
    ///
    /// Other connections are not slowed down. Heartbeats go out in time, because this broker is slow and not dead
    /// ([`stall_writes`](Broker::stall_writes) is for that). More than half a megabyte is not held back: until some of it
    /// has gone, nothing more is delivered to the client, and nothing more is read from it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use leveret::broker::Broker;
    ///
    /// let broker = Broker::start();
    /// let connection = broker.connect()?;
    /// let channel = connection.channel()?;
    /// broker.delay_writes(broker.connections()[0].id, Duration::from_secs(60));
    ///
    /// let mut declared = channel.deferred().queue_declare("orders")?;
    /// broker.expect("the queue", Duration::from_secs(5), |broker| broker.queue("/", "orders"))?;
    /// assert!(declared.try_wait().is_none()); // it is there, and its answer is not
    /// broker.advance(Duration::from_secs(60));
    /// assert_eq!(declared.wait()?.queue, "orders");
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[doc(alias = "delay_replies")]
    pub fn delay_writes(&self, id: u64, by: Duration) -> bool {
        self.hub.tamper(SessionId(id), move |presence| presence.link.delay(by))
    }
}

/// The broker as a whole.
impl Broker {
    /// Raises the memory alarm whatever the memory is, or lets the memory decide again. Connections that publish are
    /// not read from while it lasts; clients that understand it are told with `connection.blocked`.
    pub fn block(&self, blocked: bool) {
        self.hub.force_alarm(blocked);
    }

    /// What all messages cost: their bytes, once, and what it takes to keep them, about 300 bytes for each and 100 for every
    /// queue that it is in. This is what [`memory_limit`](super::BrokerConfig::memory_limit) limits.
    pub fn memory(&self) -> usize {
        self.hub.memory()
    }

    /// Moves the broker's clock forward: what expires by then has expired when this returns, and what is due to be sent,
    /// heartbeats among it, is sent.
    ///
    /// Heartbeats: as in RabbitMQ, a client that has been silent for two intervals is given up. A client that is well does not
    /// know of the moved clock and goes on sending once an interval of real time, so it is lost only
    /// when an interval has *really* passed in silence. A client that the broker [does not read
    /// from](Broker::stall_reads) cannot be heard at all: it is given up as soon as the moved clock says so, and is gone when
    /// this returns.
    ///
    /// ```
    /// use std::time::Duration;
    /// use leveret::{Config, broker::Broker};
    ///
    /// let broker = Broker::start();
    /// let _well = broker.connect_with(Config::new().heartbeat(Duration::from_secs(10)))?;
    /// let unheard = broker.next_connection();
    /// let lost = broker.connect_with(Config::new().heartbeat(Duration::from_secs(10)))?;
    /// broker.stall_reads(unheard, true);
    /// broker.advance(Duration::from_secs(20));
    /// assert!(lost.wait_closed().can_retry());
    /// assert_eq!(broker.connections().len(), 1);
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn advance(&self, by: Duration) {
        let (clock, sessions) = (&self.hub.clock, self.hub.sessions());
        // What has come until now has not come afterwards.
        for presence in &sessions {
            presence.look(clock);
        }
        clock.advance(by);
        for presence in &sessions {
            presence.link.wake();
            let interval = presence.heartbeat();
            if interval.is_some_and(|interval| presence.patience(clock, interval).is_zero()) {
                self.hub.give_up(presence);
            }
        }
        for served in self.hub.all_vhosts() {
            served.turn(&self.hub).finish();
        }
        self.hub.timer.wake();
    }

    /// What becomes of publisher confirms from now on. Changing it from [`ConfirmMode::Withhold`] sends what was held
    /// back.
    pub fn set_confirms(&self, mode: ConfirmMode) {
        let withheld = self.hub.confirms.set(mode);
        for served in self.hub.all_vhosts() {
            let mut turn = served.turn(&self.hub);
            for (channel, tag, accepted) in &withheld {
                if turn.has_session(channel.session) {
                    turn.confirm(*channel, *tag, *accepted);
                }
            }
            turn.finish();
        }
    }

    /// Remembers the last `frames` frames of all connections from now on; zero stops it and forgets them.
    pub fn keep_frames(&self, frames: usize) {
        self.hub.log.keep(frames);
    }

    /// The frames that were remembered, the oldest first.
    pub fn frame_log(&self) -> Vec<LoggedFrame> {
        self.hub.log.frames()
    }
}
