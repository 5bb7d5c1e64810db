//! What a test may see of a broker, and do to it.

use std::{net::SocketAddr, sync::atomic::Ordering, time::Duration};

use super::{
    Broker, ConfirmMode, LoggedFrame, Permissions, User, failure::Failure, model::SessionId,
    presence::Presence,
};
use crate::{error::ReplyCode, protocol::value::FieldTable, sync::lock};

/// A connection, as the broker sees it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its number; no other connection of this broker ever has the same.
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

    /// Drops a connection without a word; false when there is none.
    pub fn drop_connection(&self, id: u64) -> bool {
        self.with_session(id, Presence::cut)
    }

    /// Stops reading from a connection, or goes on. What the client sends piles up in the network, and then in the
    /// client. False when there is no such connection.
    pub fn stall_reads(&self, id: u64, stalled: bool) -> bool {
        self.with_session(id, |presence| presence.hold_reading(stalled))
    }

    /// Stops writing to a connection, heartbeats included, or goes on. False when there is no such connection.
    pub fn stall_writes(&self, id: u64, stalled: bool) -> bool {
        self.with_session(id, |presence| presence.link.hold(stalled))
    }

    fn with_session(&self, id: u64, act: impl FnOnce(&Presence)) -> bool {
        let session = self.hub.session(SessionId(id));
        if let Some(presence) = &session {
            act(presence);
        }
        session.is_some()
    }
}

/// The broker as a whole.
impl Broker {
    /// Raises the memory alarm whatever the memory is, or lets the memory decide again. Connections that publish are
    /// not read from while it lasts; clients that understand it are told with `connection.blocked`.
    pub fn block(&self, blocked: bool) {
        self.hub.force_alarm(blocked);
    }

    /// The bytes of all messages in all queues.
    pub fn memory(&self) -> usize {
        self.hub.memory()
    }

    /// Moves the broker's clock forward: what expires by then has expired when this returns, and heartbeats that are
    /// due are sent. A client is never given up for silence that only the moved clock shows.
    pub fn advance(&self, by: Duration) {
        self.hub.clock.advance(by);
        for presence in self.hub.sessions() {
            presence.forgive.store(true, Ordering::SeqCst);
            presence.link.wake();
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
