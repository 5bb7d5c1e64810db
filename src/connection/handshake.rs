//! The handshake, from the protocol header to `connection.open-ok`, as one straight line.

use std::{
    io::{self, IoSlice},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    config::Config,
    state::{end_of_stream, refusal},
    tap::Taps,
};
use crate::{
    error::{Error, ReplyCode, Result, Scope, TlsFailure},
    protocol::{
        frame::{self, FrameKind, MIN_FRAME_MAX, PROTOCOL_HEADER, write_method},
        sasl::{self, Wiped},
        spec::{
            ConnectionCloseOk, ConnectionOpen, ConnectionSecureOk, ConnectionStartOk, ConnectionTune,
            ConnectionTuneOk, Encode, Method,
        },
        value::FieldTable,
        wire::{LongStr, ShortStr, Table},
    },
    transport::{Patience, Transport, is_timeout, tap::Direction},
};

/// Before tune, frames may be as large as the protocol's minimum; brokers with long lists of properties
/// exceed it, so that much more is accepted.
const UNTUNED_FRAME_MAX: usize = 128 * 1024;

/// What both sides agreed on.
#[derive(Debug, Clone)]
pub(crate) struct Negotiated {
    /// The highest channel id.
    pub(crate) channel_max: u16,
    /// The largest frame; 0 is no limit.
    pub(crate) frame_max: u32,
    /// Zero is off.
    pub(crate) heartbeat: Duration,
    pub(crate) server_properties: FieldTable,
}

impl Negotiated {
    /// The largest frame that is sent. Without a limit, one that keeps channels from starving each other.
    pub(crate) fn max_frame(&self) -> usize {
        if self.frame_max == 0 { 1024 * 1024 } else { self.frame_max as usize }
    }

    /// The largest frame that is accepted.
    pub(crate) fn max_incoming_frame(&self, max_message_size: u64) -> usize {
        match self.frame_max {
            0 => usize::try_from(max_message_size).unwrap_or(usize::MAX).saturating_add(frame::OVERHEAD),
            limit => limit as usize,
        }
    }
}

/// Shakes hands until `deadline`, which comes from the configuration's `handshake_timeout`. Also returns bytes that
/// came after.
pub(crate) fn shake_hands(
    transport: &dyn Transport,
    config: &Config,
    deadline: Instant,
    taps: &Taps,
) -> Result<(Negotiated, Vec<u8>)> {
    let mut dialog = Dialog::new(transport, deadline, config, taps);
    dialog.send(&PROTOCOL_HEADER)?;

    let (mechanism, server_properties) = dialog.expect("connection.start", |method| match method {
        Method::ConnectionStart(start) => {
            let offered = String::from_utf8_lossy(start.mechanisms.0).into_owned();
            let properties = FieldTable::decode(start.server_properties.0);
            Some(sasl::choose(&offered, &config.auth_mechanisms).map(|mechanism| (mechanism, properties)))
        }
        _ => None,
    })??;
    // Properties that cannot be decoded are no reason not to talk.
    let server_properties = server_properties.unwrap_or_default();

    let client_properties = client_properties(config).encode()?;
    let response = Wiped(mechanism.initial_response(&config.credentials)?);
    dialog.send_method(&ConnectionStartOk {
        client_properties: Table(&client_properties),
        mechanism: ShortStr::new("the mechanism's name", mechanism.name())?,
        response: LongStr(&response.0),
        locale: ShortStr::truncated("en_US"),
    })?;

    let offer = loop {
        let next = dialog.expect("connection.tune", |method| match method {
            Method::ConnectionSecure(secure) => Some(Next::Challenge(secure.challenge.0.to_vec())),
            Method::ConnectionTune(tune) => Some(Next::Tune(tune)),
            _ => None,
        });
        match next.map_err(authentication_error)? {
            Next::Tune(tune) => break tune,
            Next::Challenge(challenge) => {
                let response = Wiped(mechanism.challenge(&config.credentials, &challenge)?);
                dialog.send_method(&ConnectionSecureOk { response: LongStr(&response.0) })?;
            }
        }
    };
    let negotiated = negotiate(&offer, config, server_properties)?;
    let tune_ok = ConnectionTuneOk {
        channel_max: negotiated.channel_max,
        frame_max: negotiated.frame_max,
        heartbeat: negotiated.heartbeat.as_secs() as u16,
    };
    let virtual_host = ShortStr::new("the virtual host", &config.vhost)?;
    // Nothing answers tune-ok, so both go at once.
    let mut both = Vec::new();
    write_method(&mut both, 0, UNTUNED_FRAME_MAX, &tune_ok)?;
    write_method(&mut both, 0, UNTUNED_FRAME_MAX, &ConnectionOpen { virtual_host, ..Default::default() })?;
    dialog.send_frames(&both)?;
    dialog.expect("connection.open-ok", |method| match method {
        Method::ConnectionOpenOk(_) => Some(()),
        _ => None,
    })?;
    transport.set_read_timeout(None).map_err(|error| Error::io("preparing the socket", error))?;
    Ok((negotiated, dialog.received))
}

enum Next {
    Challenge(Vec<u8>),
    Tune(ConnectionTune),
}

/// The smaller of both sides, where 0 means no limit.
fn negotiate(offer: &ConnectionTune, config: &Config, server_properties: FieldTable) -> Result<Negotiated> {
    fn smaller<T: Ord + Default>(ours: T, theirs: T) -> T {
        if ours == T::default() || theirs == T::default() { ours.max(theirs) } else { ours.min(theirs) }
    }
    if offer.frame_max != 0 && offer.frame_max < MIN_FRAME_MAX {
        return Err(Error::protocol(
            ReplyCode::NotAllowed,
            format!(
                "the broker offers frame_max {}; the protocol's minimum is {MIN_FRAME_MAX}",
                offer.frame_max
            ),
        ));
    }
    let channel_max = smaller(config.channel_max, offer.channel_max);
    let heartbeat = smaller(config.heartbeat.as_secs(), offer.heartbeat.into());
    Ok(Negotiated {
        channel_max: if channel_max == 0 { u16::MAX } else { channel_max },
        frame_max: smaller(config.frame_max, offer.frame_max),
        // Off means off: whoever asks for 0 does not want heartbeats, whatever the broker suggests.
        heartbeat: if config.heartbeat.is_zero() { Duration::ZERO } else { Duration::from_secs(heartbeat) },
        server_properties,
    })
}

/// What this client says of itself, with every capability that it implements and no other.
fn client_properties(config: &Config) -> FieldTable {
    let capabilities = FieldTable::from([
        ("authentication_failure_close", true),
        ("basic.nack", true),
        ("connection.blocked", true),
        ("consumer_cancel_notify", true),
        ("exchange_exchange_bindings", true),
        ("per_consumer_qos", true),
        ("publisher_confirms", true),
    ]);
    let mut properties = FieldTable::from([
        ("product", "leveret"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("platform", concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"), " or later")),
    ]);
    properties.insert("capabilities", capabilities);
    if let Some(name) = &config.connection_name {
        properties.insert("connection_name", name.as_str());
    }
    properties
}

/// A refusal while authenticating has an error of its own.
fn authentication_error(error: Error) -> Error {
    match error {
        Error::Refused(refusal) if refusal.code == ReplyCode::AccessRefused => {
            Error::AuthenticationFailed(refusal.text.as_str().into())
        }
        Error::Io { source, .. } => Error::Io {
            during: "authenticating (a broker that hangs up here has usually refused the credentials)",
            source,
        },
        other => other,
    }
}

/// The two sides' turns, and the one deadline for all of them.
struct Dialog<'a> {
    transport: &'a dyn Transport,
    taps: &'a Taps,
    received: Vec<u8>,
    deadline: Instant,
    limit: Duration,
    /// Why writing failed. The broker's own words about it, which may still be there, are better.
    lost: Option<Error>,
    /// The peer has said something.
    heard: bool,
    over_tls: bool,
}

impl<'a> Dialog<'a> {
    fn new(transport: &'a dyn Transport, deadline: Instant, config: &Config, taps: &'a Taps) -> Dialog<'a> {
        let limit = config.handshake_timeout;
        let over_tls = config.tls.is_some();
        Dialog { transport, taps, received: Vec::new(), deadline, limit, lost: None, heard: false, over_tls }
    }

    /// The time that is left; an error naming what was waited for when there is none.
    fn left(&self, waiting_for: &'static str) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Error::timeout(waiting_for, self.limit)) } else { Ok(left) }
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        while self.lost.is_none() && (!bytes.is_empty() || self.transport.backlog() > 0) {
            self.left("sending the handshake")?;
            match self.transport.write(&[IoSlice::new(bytes)], Patience::Quantum) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.lost = Some(self.broken(error)),
            }
        }
        Ok(())
    }

    fn send_method(&mut self, method: &dyn Encode) -> Result<()> {
        // It may hold a password, and is not to move while it is written.
        let mut out = Wiped(Vec::with_capacity(UNTUNED_FRAME_MAX));
        write_method(&mut out.0, 0, UNTUNED_FRAME_MAX, method)?;
        self.send_frames(&out.0)
    }

    fn send_frames(&mut self, frames: &[u8]) -> Result<()> {
        self.taps.show(Direction::Outgoing, frames, UNTUNED_FRAME_MAX);
        self.send(frames)
    }

    /// Waits for a method that `wanted` accepts. A close of the broker becomes the error that it stands for.
    fn expect<T>(
        &mut self,
        waiting_for: &'static str,
        wanted: impl Fn(Method<'_>) -> Option<T>,
    ) -> Result<T> {
        let (answer, used) = loop {
            if let Some((frame, used)) = self.complete_frame()? {
                let shown = self.received.get(..used).unwrap_or_default();
                self.taps.show(Direction::Incoming, shown, UNTUNED_FRAME_MAX);
                match frame.kind {
                    FrameKind::Heartbeat => {
                        self.received.drain(..used);
                        continue;
                    }
                    FrameKind::Method if frame.channel == 0 => {
                        let method = Method::decode(frame.payload).map_err(|malformed| {
                            Error::protocol(ReplyCode::FrameError, malformed.to_string())
                        })?;
                        break (answer(method, waiting_for, wanted), used);
                    }
                    _ => {
                        return Err(Error::protocol(
                            ReplyCode::UnexpectedFrame,
                            format!("a frame of another kind or channel instead of {waiting_for}"),
                        ));
                    }
                }
            }
            self.receive(waiting_for)?;
        };
        self.received.drain(..used);
        if let Err(Error::Refused(_)) = &answer {
            // The broker waits for it before it hangs up; whether it arrives makes no difference to us.
            let _ = self.send_method(&ConnectionCloseOk {});
        }
        answer
    }

    fn complete_frame(&self) -> Result<Option<(frame::Frame<'_>, usize)>> {
        if let Some((b"AMQP", rest)) = self.received.split_first_chunk() {
            let offered = *rest.first_chunk().unwrap_or(&[0; 4]);
            return if rest.len() < 4 { Ok(None) } else { Err(Error::ProtocolVersion { offered }) };
        }
        if b"AMQP".starts_with(&self.received) {
            return Ok(None);
        }
        frame::decode(&self.received, UNTUNED_FRAME_MAX).map_err(|malformed| {
            Error::protocol(ReplyCode::FrameError, format!("{malformed}{}", hint(&self.received)))
        })
    }

    fn receive(&mut self, waiting_for: &'static str) -> Result<()> {
        let left = self.left(waiting_for)?;
        let read = self.transport.set_read_timeout(Some(left)).and_then(|()| {
            let mut chunk = [0; 4096];
            let length = self.transport.read(&mut chunk)?;
            Ok((chunk, length))
        });
        match read {
            Ok((_, 0)) => Err(self.lost.take().unwrap_or_else(|| end_of_stream(self.during()))),
            Ok((chunk, length)) => {
                self.heard = true;
                self.received.extend_from_slice(chunk.get(..length).unwrap_or_default());
                Ok(())
            }
            Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => match self.broken(error) {
                told @ Error::Tls(_) => Err(told),
                other => Err(self.lost.take().unwrap_or(other)),
            },
        }
    }

    /// For errors. A server of TLS that is spoken to in plain AMQP hangs up without a word.
    fn during(&self) -> &'static str {
        if self.heard || self.over_tls {
            "shaking hands"
        } else {
            "shaking hands (without a word from the peer: is this a port for amqps?)"
        }
    }

    /// A peer that misses our certificate may say so only after TLS's own handshake.
    fn broken(&self, error: io::Error) -> Error {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsFailure>()) {
            Some(failure) if !self.heard => Error::Tls(Arc::new(failure.clone())),
            _ => Error::io(self.during(), error),
        }
    }
}

fn answer<T>(
    method: Method<'_>,
    waiting_for: &'static str,
    wanted: impl Fn(Method<'_>) -> Option<T>,
) -> Result<T> {
    if let Method::ConnectionClose(close) = method {
        return Err(refusal(Scope::Connection, &close.into()));
    }
    wanted(method).ok_or_else(|| {
        Error::protocol(ReplyCode::CommandInvalid, format!("{} instead of {waiting_for}", method.name()))
    })
}

/// What a peer that does not speak AMQP may be.
fn hint(received: &[u8]) -> &'static str {
    match received {
        [0x15 | 0x16, 0x03, ..] => " (it speaks TLS: is this the port for amqps?)",
        [b'H', b'T', b'T', b'P', ..] => " (it speaks HTTP)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(channel_max: u16, frame_max: u32, heartbeat: u16) -> ConnectionTune {
        ConnectionTune { channel_max, frame_max, heartbeat }
    }

    /// Row 11: the smaller of both sides, 0 = no limit.
    #[test]
    fn the_smaller_of_both_sides_counts() {
        let config = Config::new().channel_max(100).frame_max(8192).heartbeat(Duration::from_secs(20));
        let negotiate = |offer, config: &Config| negotiate(&offer, config, FieldTable::new()).unwrap();

        let both = negotiate(offer(50, 131_072, 10), &config);
        assert_eq!((both.channel_max, both.frame_max, both.heartbeat.as_secs()), (50, 8192, 10));
        let theirs_unlimited = negotiate(offer(0, 0, 0), &config);
        assert_eq!((theirs_unlimited.channel_max, theirs_unlimited.frame_max), (100, 8192));
        assert_eq!(theirs_unlimited.heartbeat.as_secs(), 20);
        let unlimited = config.channel_max(0).frame_max(0).heartbeat(Duration::ZERO);
        let nobody = negotiate(offer(0, 0, 60), &unlimited);
        assert_eq!((nobody.channel_max, nobody.frame_max, nobody.heartbeat.as_secs()), (u16::MAX, 0, 0));
    }

    /// Row 11: server values below the protocol minimum are refused.
    #[test]
    fn a_frame_max_below_the_minimum_is_refused() {
        let error = negotiate(&offer(0, 4095, 0), &Config::new(), FieldTable::new()).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NotAllowed));
    }

    /// Row 12: every capability that is implemented, and no other.
    #[test]
    fn the_client_says_who_it_is() {
        let properties = client_properties(&Config::new().connection_name("billing"));
        assert_eq!(properties.get("product").and_then(|value| value.as_str()), Some("leveret"));
        assert_eq!(properties.get("connection_name").and_then(|value| value.as_str()), Some("billing"));
        let capabilities = properties.get("capabilities").and_then(|value| value.as_table()).unwrap();
        assert!(capabilities.iter().all(|(_, value)| value.as_bool() == Some(true)));
        assert_eq!(capabilities.len(), 7);
    }
}
