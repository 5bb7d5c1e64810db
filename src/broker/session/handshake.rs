//! From the protocol header to the open virtual host, with every way to be refused.

use std::net::IpAddr;

use super::{
    Phase, Running, Session, content::Assemblies, frames, frames::Incoming, max_payload, permissions::Access,
};
use crate::broker::{
    config::User,
    direct::PeerState,
    failure::Failure,
    hub::Hub,
    model::{ChannelId, Emulate},
};
use crate::{
    error::ReplyCode,
    protocol::{
        frame::{MIN_FRAME_MAX, PROTOCOL_HEADER},
        sasl::Secret,
        spec::{
            ConnectionOpen, ConnectionOpenOk, ConnectionStart, ConnectionStartOk, ConnectionTune,
            ConnectionTuneOk, Method, MethodBody,
        },
        value::{FieldTable, FieldValue},
        wire::{LongStr, Reader, Table},
    },
    sync::lock,
};

/// What is waited for.
#[derive(Debug, Default)]
pub(super) enum Handshake {
    #[default]
    Header,
    StartOk,
    TuneOk(User),
    Open(User),
}

/// Why the handshake ends.
enum End {
    /// The client is told.
    Told(Failure),
    /// RabbitMQ hangs up without a word.
    Silent,
}

/// What the client may choose from.
fn mechanisms(hub: &Hub) -> &'static str {
    match (hub.config.emulate, &hub.config.anonymous_user) {
        (Emulate::RabbitMq4, Some(_)) => "ANONYMOUS PLAIN AMQPLAIN",
        _ => "PLAIN AMQPLAIN",
    }
}

fn server_properties(emulate: Emulate) -> FieldTable {
    let capabilities = FieldTable::from([
        ("publisher_confirms", true),
        ("exchange_exchange_bindings", true),
        ("basic.nack", true),
        ("consumer_cancel_notify", true),
        ("connection.blocked", true),
        ("consumer_priorities", true),
        ("authentication_failure_close", true),
        ("per_consumer_qos", true),
        ("direct_reply_to", true),
    ]);
    let mut properties = FieldTable::new();
    properties.insert("capabilities", capabilities);
    properties.insert("cluster_name", "leveret@localhost");
    properties.insert("copyright", "the authors of leveret");
    properties.insert("information", "an in-process broker that behaves as RabbitMQ does");
    properties.insert("platform", concat!("leveret ", env!("CARGO_PKG_VERSION")));
    // Clients decide by these two what they can expect, and it is RabbitMQ's behaviour that they get.
    properties.insert("product", "RabbitMQ");
    properties.insert(
        "version",
        match emulate {
            Emulate::RabbitMq3 => "3.10.8",
            Emulate::RabbitMq4 => "4.0.5",
        },
    );
    properties
}

impl Session<'_> {
    pub(super) fn feed_handshake<'b>(&mut self, handshake: Handshake, bytes: &'b [u8]) -> &'b [u8] {
        if matches!(handshake, Handshake::Header) {
            return self.header(bytes);
        }
        let (payload, used) = match self.next_frame(None, bytes) {
            Incoming::Partial => {
                self.phase = Phase::Handshake(handshake);
                return bytes;
            }
            Incoming::Frame(frame, used) if (frame.kind, frame.channel) == (frames::HEARTBEAT, 0) => {
                self.phase = Phase::Handshake(handshake);
                return bytes.get(used..).unwrap_or_default();
            }
            Incoming::Frame(frame, used) if (frame.kind, frame.channel) == (frames::METHOD, 0) => {
                (frame.payload, used)
            }
            // Before a connection is open RabbitMQ does not explain itself.
            Incoming::Frame(..) | Incoming::Broken(_) => return &[],
        };
        let opening = matches!(handshake, Handshake::Open(_));
        match self.step(handshake, payload) {
            Ok(next) => self.phase = next,
            Err(End::Told(failure)) => self.refuse(&failure),
            Err(End::Silent) if opening => self.refuse(&Failure::internal()),
            Err(End::Silent) => return &[],
        }
        bytes.get(used..).unwrap_or_default()
    }

    /// Anything but the right header is answered with the right one.
    fn header<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let Some((header, rest)) = bytes.split_first_chunk::<8>() else {
            self.phase = Phase::Handshake(Handshake::Header);
            return bytes;
        };
        if *header != PROTOCOL_HEADER {
            self.presence.link.append(|out| out.extend_from_slice(&PROTOCOL_HEADER));
            self.presence.link.flush();
            return &[];
        }
        let properties = server_properties(self.hub.config.emulate).encode().unwrap_or_default();
        self.send(&ConnectionStart {
            version_major: 0,
            version_minor: 9,
            server_properties: Table(&properties),
            mechanisms: LongStr(mechanisms(self.hub).as_bytes()),
            locales: LongStr(b"en_US"),
        });
        self.phase = Phase::Handshake(Handshake::StartOk);
        rest
    }

    fn step(&mut self, handshake: Handshake, payload: &[u8]) -> Result<Phase, End> {
        let ids = frames::method_ids(payload).unwrap_or_default();
        let state = match &handshake {
            Handshake::Header | Handshake::StartOk => "starting",
            Handshake::TuneOk(_) => "tuning",
            Handshake::Open(_) => "opening",
        };
        let method = Method::decode(payload).map_err(|_| End::Silent)?;
        match (handshake, method) {
            (Handshake::StartOk, Method::ConnectionStartOk(start)) => {
                let user = self.authenticate(&start)?;
                self.send(&ConnectionTune {
                    channel_max: self.hub.config.channel_max,
                    frame_max: self.hub.config.frame_max,
                    heartbeat: self.hub.config.heartbeat.as_secs() as u16,
                });
                Ok(Phase::Handshake(Handshake::TuneOk(user)))
            }
            (Handshake::TuneOk(user), Method::ConnectionTuneOk(tune)) => {
                self.tune(&tune).map_err(End::Told)?;
                Ok(Phase::Handshake(Handshake::Open(user)))
            }
            (Handshake::Open(user), Method::ConnectionOpen(open)) => {
                self.open(&user, &open).map(Phase::Running).map_err(End::Told)
            }
            // Only a client that is nearly through is told.
            (Handshake::Open(_), _) => Err(End::Told(Failure::of(
                ids,
                ReplyCode::ChannelError,
                format_args!("unexpected method in connection state {state}"),
            ))),
            _ => Err(End::Silent),
        }
    }

    fn authenticate(&mut self, start: &ConnectionStartOk<'_>) -> Result<User, End> {
        let properties = FieldTable::decode(start.client_properties.0).unwrap_or_default();
        let told = properties
            .get("capabilities")
            .and_then(|value| value.as_table())
            .and_then(|table| table.get("authentication_failure_close"))
            .and_then(FieldValue::as_bool);
        self.presence.set_capabilities(&properties);
        lock(&self.presence.details).client_properties = properties;
        let mechanism = start.mechanism.to_text();
        if !mechanisms(self.hub).split(' ').any(|offered| offered == mechanism) {
            return Err(End::Silent);
        }
        let user = match &*mechanism {
            "ANONYMOUS" => self.hub.config.anonymous_user.as_deref().and_then(|name| self.hub.user(name)),
            _ => {
                let credentials = match &*mechanism {
                    "PLAIN" => plain(start.response.0),
                    _ => amqplain(start.response.0),
                };
                let (name, password) = credentials.ok_or(End::Silent)?;
                let user = std::str::from_utf8(&name).ok().and_then(|name| self.hub.user(name));
                user.filter(|user| user.password.expose().as_bytes() == password.expose().as_bytes())
            }
        };
        let local = self.presence.peer.is_none_or(|peer| is_loopback(peer.ip()));
        match user {
            Some(user) if local || !user.loopback_only => {
                lock(&self.presence.details).user = user.name.clone();
                Ok(user)
            }
            _ if told == Some(true) => Err(End::Told(Failure::new(
                ReplyCode::AccessRefused,
                format_args!(
                    "Login was refused using authentication mechanism {mechanism}. For details see the broker \
                     logfile."
                ),
            ))),
            _ => Err(End::Silent),
        }
    }

    fn tune(&mut self, tune: &ConnectionTuneOk) -> Result<(), Failure> {
        let config = &self.hub.config;
        negotiate("frame_max", tune.frame_max, MIN_FRAME_MAX, config.frame_max)?;
        negotiate("channel_max", tune.channel_max.into(), 1, config.channel_max.into())?;
        self.max_payload = max_payload(tune.frame_max, config.max_message_size);
        // Without a limit bodies still go out in pieces, so that other channels get in between.
        self.presence.set_max_frame(if tune.frame_max == 0 { 1 << 20 } else { tune.frame_max as usize });
        let mut details = lock(&self.presence.details);
        details.channel_max = tune.channel_max;
        details.heartbeat = tune.heartbeat;
        drop(details);
        self.presence.link.wake();
        Ok(())
    }

    fn open(&mut self, user: &User, open: &ConnectionOpen<'_>) -> Result<Running, Failure> {
        const IDS: (u16, u16) = (ConnectionOpen::CLASS, ConnectionOpen::METHOD);
        let name = open.virtual_host.to_text();
        let unknown = || Failure::of(IDS, ReplyCode::NotAllowed, format_args!("vhost {name} not found"));
        let served = self.hub.vhost(&name).ok_or_else(unknown)?;
        let Some(permissions) = user.permissions.iter().find(|permissions| permissions.vhost == name) else {
            return Err(Failure::of(
                IDS,
                ReplyCode::NotAllowed,
                format_args!("access to vhost '{name}' refused for user '{}'", user.name),
            ));
        };
        let access = Access::new(user, permissions, self.hub.config.emulate);
        {
            let mut turn = served.turn(self.hub);
            if turn.is_gone() {
                turn.finish();
                return Err(unknown());
            }
            turn.open_session(self.presence, user);
            lock(&self.presence.details).served = Some(served.clone());
            // Before the client learns that it is open, the program can know.
            if let Some(program) = &self.hub.program {
                let peer = PeerState::new(self.hub, self.presence, &served);
                program.add(&peer);
                self.peer = Some(peer);
            }
            turn.method(ChannelId { session: self.presence.id, number: 0 }, &ConnectionOpenOk::default());
            turn.finish();
        }
        self.hub.opened(self.presence);
        self.deadline = None;
        let channel_max = lock(&self.presence.details).channel_max;
        Ok(Running { served, access, assemblies: Assemblies::default(), channel_max, publishes: false })
    }
}

/// Zero from the client is no limit, which is more than any.
fn negotiate(field: &str, value: u32, min: u32, max: u32) -> Result<(), Failure> {
    let (which, bound, limit) = match value {
        1.. if value < min => ("lower", "minimum", min),
        _ if max != 0 && (value == 0 || value > max) => ("higher", "maximum", max),
        _ => return Ok(()),
    };
    let detail = if field == "channel_max" && value == 0 { " (no limit)" } else { "" };
    Err(Failure::of(
        (ConnectionTune::CLASS, ConnectionTune::METHOD),
        ReplyCode::NotAllowed,
        format_args!(
            "negotiated {field} = {value}{detail} is {which} than the {bound} allowed value ({limit})"
        ),
    ))
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// `\0user\0password`.
fn plain(response: &[u8]) -> Option<(Vec<u8>, Secret)> {
    let mut parts = response.split(|byte| *byte == 0);
    let (before, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    if !before.is_empty() || parts.next().is_some() {
        return None;
    }
    secret(user, password)
}

/// A table without its length.
fn amqplain(response: &[u8]) -> Option<(Vec<u8>, Secret)> {
    let mut reader = Reader::new(response);
    let (mut user, mut password) = (None, None);
    while !reader.is_empty() {
        let name = reader.short_string().ok()?;
        let b'S' = reader.u8().ok()? else { return None };
        let value = reader.long_string().ok()?;
        match name {
            b"LOGIN" => user = Some(value),
            b"PASSWORD" => password = Some(value),
            _ => {}
        }
    }
    secret(user?, password?)
}

fn secret(user: &[u8], password: &[u8]) -> Option<(Vec<u8>, Secret)> {
    Some((user.to_vec(), Secret::from(std::str::from_utf8(password).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_taken_apart() {
        let (user, password) = plain(b"\0guest\0gue:st").unwrap();
        assert_eq!((&*user, password.expose()), (&b"guest"[..], "gue:st"));
        assert!(plain(b"guest\0guest").is_none());
        assert!(plain(b"\0guest").is_none());
        assert!(plain(b"\0a\0b\0c").is_none());
        let (user, password) = amqplain(b"\x05LOGINS\0\0\0\x01a\x08PASSWORDS\0\0\0\x01b").unwrap();
        assert_eq!((&*user, password.expose()), (&b"a"[..], "b"));
        assert!(amqplain(b"\x05LOGINS\0\0\0\x01a").is_none());
        assert!(amqplain(b"\x05LOGINS\0\0\0\xffa").is_none());
    }

    #[test]
    fn the_client_may_not_ask_for_more_than_it_was_offered() {
        let text = |result: Result<(), Failure>| result.unwrap_err().text();
        assert_eq!(
            text(negotiate("frame_max", 4095, 4096, 131_072)),
            "NOT_ALLOWED - negotiated frame_max = 4095 is lower than the minimum allowed value (4096)"
        );
        assert_eq!(
            text(negotiate("channel_max", 0, 1, 2047)),
            "NOT_ALLOWED - negotiated channel_max = 0 (no limit) is higher than the maximum allowed value (2047)"
        );
        assert!(negotiate("frame_max", 0, 4096, 0).is_ok());
        assert!(negotiate("frame_max", 4096, 4096, 131_072).is_ok());
    }
}
