//! Frames of one channel: opening and closing it, and putting contents together.

use super::{Running, Session, frames};
use crate::broker::{
    failure::{Binary, Failure},
    model::ChannelId,
    served::Turn,
};
use crate::{
    error::{Departure, ReplyCode},
    protocol::{
        spec::{
            BasicDeliver, BasicGetOk, BasicPublish, BasicReturn, ChannelCloseOk, ChannelOpenOk,
            ConnectionCloseOk, ConnectionUpdateSecretOk, Method, MethodBody,
        },
        wire::Malformed,
    },
};

/// The methods that a content follows.
const WITH_CONTENT: [(u16, u16); 4] = [
    (BasicPublish::CLASS, BasicPublish::METHOD),
    (BasicReturn::CLASS, BasicReturn::METHOD),
    (BasicDeliver::CLASS, BasicDeliver::METHOD),
    (BasicGetOk::CLASS, BasicGetOk::METHOD),
];

/// `access.request`, which AMQP 0-9-1 has dropped and clients of older versions still send, and its answer.
const ACCESS_REQUEST: (u16, u16) = (30, 10);
const ACCESS_REQUEST_OK: [u8; 6] = [0, 30, 0, 11, 0, 1];

/// # Errors
/// 501, or none that is said for a method that does not exist.
pub(super) fn decode(payload: &[u8]) -> Result<Method<'_>, Failure> {
    Method::decode(payload).map_err(|malformed| match malformed {
        Malformed::UnknownMethod { .. } => Failure::silent(),
        Malformed::Because(_) => undecodable(payload),
    })
}

pub(super) fn undecodable(payload: &[u8]) -> Failure {
    match frames::method_ids(payload) {
        Some(ids) => {
            let fields = Binary(payload.get(4..).unwrap_or_default());
            Failure::of(ids, ReplyCode::FrameError, format_args!("cannot decode {fields}"))
        }
        None => Failure::frame(frames::METHOD, payload, "unknown_frame"),
    }
}

impl Session<'_> {
    /// A method on channel 0 of an open connection.
    pub(super) fn control(&mut self, turn: &mut Turn<'_>, payload: &[u8]) -> Result<(), Failure> {
        let channel = ChannelId { session: self.presence.id, number: 0 };
        let ids = frames::method_ids(payload)
            .ok_or_else(|| Failure::frame(frames::METHOD, payload, "unknown_frame"))?;
        let method = Method::decode(payload).map_err(|malformed| match malformed {
            Malformed::UnknownMethod { .. } => Failure::silent(),
            Malformed::Because(_) => Failure::internal(),
        })?;
        match method {
            Method::ConnectionClose(_) => {
                self.depart(Departure::ConnectionClosed);
                turn.close_session_with(self.presence.id, &ConnectionCloseOk {});
                Ok(())
            }
            Method::ConnectionUpdateSecret(_) => {
                turn.method(channel, &ConnectionUpdateSecretOk {});
                Ok(())
            }
            _ => Err(Failure::of(
                ids,
                ReplyCode::ChannelError,
                "unexpected method in connection state running",
            )),
        }
    }

    /// # Errors
    /// What ends the connection; what ends the channel only has been dealt with.
    pub(super) fn channel_frame(
        &mut self,
        running: &mut Running,
        turn: &mut Turn<'_>,
        channel: ChannelId,
        kind: u8,
        payload: &[u8],
    ) -> Result<(), Failure> {
        if running.assemblies.is_open(channel.number) {
            let max_size = self.hub.config.max_message_size;
            let complete = running.assemblies.frame(channel.number, kind, payload, max_size)?;
            let Some(complete) = complete else { return Ok(()) };
            let ids = frames::method_ids(&complete.method).unwrap_or_default();
            return match turn.channel(channel).map(|port| port.closing) {
                Some(true) => Ok(()),
                None => Err(not_open(ids)),
                Some(false) => {
                    let done = self.publish(running, turn, channel, complete);
                    self.settle(turn, channel, done, ids)
                }
            };
        }
        let state = turn.channel(channel).map(|port| port.closing);
        if state.is_none() {
            let (open, max) = (turn.open_channels(channel.session), running.channel_max);
            if max != 0 && open >= max.into() {
                return Err(Failure::new(
                    ReplyCode::NotAllowed,
                    format_args!(
                        "number of channels opened ({open}) has reached the negotiated channel_max ({max})"
                    ),
                ));
            }
        }
        if kind != frames::METHOD {
            let text = "expected method frame, got non method frame instead";
            return Err(Failure::new(ReplyCode::UnexpectedFrame, text));
        }
        let ids = frames::method_ids(payload).ok_or_else(|| undecodable(payload))?;
        if ids == ACCESS_REQUEST && state == Some(false) {
            turn.payload(channel, &ACCESS_REQUEST_OK);
            return Ok(());
        }
        let method = decode(payload)?;
        if WITH_CONTENT.contains(&ids) {
            running.assemblies.start(channel.number, payload);
            return Ok(());
        }
        match (state, method) {
            (None, Method::ChannelOpen(_)) => {
                turn.add_channel(channel);
                turn.model().open_channel(channel);
                if let Some(peer) = &self.peer {
                    peer.open_channel(channel.number);
                }
                turn.method(channel, &ChannelOpenOk::default());
                Ok(())
            }
            (None, _) => Err(not_open(ids)),
            (Some(true), Method::ChannelCloseOk(_)) => {
                turn.remove_channel(channel);
                Ok(())
            }
            (Some(true), Method::ChannelClose(_)) => {
                turn.method(channel, &ChannelCloseOk {});
                Ok(())
            }
            (Some(true), _) => Ok(()),
            (Some(false), Method::ChannelClose(_)) => {
                turn.model().close_channel(channel);
                self.end_channel(channel, Departure::ChannelClosed);
                turn.method(channel, &ChannelCloseOk {});
                turn.remove_channel(channel);
                turn.effects();
                Ok(())
            }
            (Some(false), Method::ChannelOpen(_)) => {
                Err(Failure::of(ids, ReplyCode::ChannelError, "second 'channel.open' seen"))
            }
            (Some(false), method) => {
                let done = self.method(running, turn, channel, method, payload);
                self.settle(turn, channel, done, ids)
            }
        }
    }

    /// Blames a refusal on its method, and closes the channel for it unless the connection has to go.
    fn settle(
        &self,
        turn: &mut Turn<'_>,
        channel: ChannelId,
        done: Result<(), Failure>,
        ids: (u16, u16),
    ) -> Result<(), Failure> {
        let Err(failure) = done else { return Ok(()) };
        let failure = Failure { method: if failure.silent { (0, 0) } else { ids }, ..failure };
        if failure.closes_connection() {
            // It gives back what it has before the other channels do.
            turn.model().close_channel(channel);
            return Err(failure);
        }
        self.end_channel(channel, Departure::ChannelFailed);
        turn.fail_channel(channel, &failure);
        Ok(())
    }

    fn end_channel(&self, channel: ChannelId, why: Departure) {
        if let Some(peer) = &self.peer {
            peer.close_channel(channel.number, why);
        }
    }
}

fn not_open(ids: (u16, u16)) -> Failure {
    Failure::of(ids, ReplyCode::ChannelError, "expected 'channel.open'")
}
