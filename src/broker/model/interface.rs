//! What goes into a [`Vhost`](super::Vhost) and what comes out of it.

use std::sync::Arc;

use super::name::Name;
use crate::{error::ReplyCode, protocol::value::FieldTable};

/// A connection, for as long as the broker lives: ids are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SessionId(pub(crate) u64);

/// A channel of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ChannelId {
    pub(crate) session: SessionId,
    pub(crate) number: u16,
}

/// Whose behaviour is followed where the releases of RabbitMQ differ visibly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Emulate {
    /// RabbitMQ 3.10.
    RabbitMq3,
    /// RabbitMQ 4.0.
    #[default]
    RabbitMq4,
}

/// What a virtual host has to know from the start.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Its name, for texts.
    pub(crate) name: String,
    pub(crate) emulate: Emulate,
    /// The time at which the virtual clock stood at zero, in seconds since 1970 (for `x-death`).
    pub(crate) epoch: u64,
    /// Makes server-named queues unguessable, and different from those of other brokers.
    pub(crate) seed: u64,
}

/// Arguments of `exchange.declare`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExchangeOptions {
    pub(crate) kind: Name,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) internal: bool,
    pub(crate) arguments: FieldTable,
}

/// Arguments of `queue.declare`.
#[derive(Debug, Clone, Default)]
pub(crate) struct QueueOptions {
    pub(crate) durable: bool,
    pub(crate) exclusive: bool,
    pub(crate) auto_delete: bool,
    pub(crate) arguments: FieldTable,
}

/// What `queue.declare-ok` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueStatus {
    pub(crate) name: Name,
    pub(crate) messages: u32,
    pub(crate) consumers: u32,
}

/// `basic.publish` with its content.
#[derive(Debug, Clone)]
pub(crate) struct Publish<'a> {
    pub(crate) exchange: &'a [u8],
    pub(crate) routing_key: &'a [u8],
    pub(crate) mandatory: bool,
    pub(crate) immediate: bool,
    /// Flags and fields as they came.
    pub(crate) properties: Arc<[u8]>,
    pub(crate) body: Arc<[u8]>,
}

/// Arguments of `basic.consume`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConsumeOptions<'a> {
    /// Empty: the queue declared last on this channel.
    pub(crate) queue: &'a [u8],
    /// Empty: one is made.
    pub(crate) tag: &'a [u8],
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
    pub(crate) arguments: FieldTable,
}

/// What an accepted message looks like to whoever gets it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    pub(crate) exchange: Name,
    pub(crate) routing_key: Name,
    /// Flags and fields, to be sent as they are.
    pub(crate) properties: Arc<[u8]>,
    pub(crate) body: Arc<[u8]>,
}

/// The answer to `basic.get` when there is a message.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) delivery_tag: u64,
    pub(crate) redelivered: bool,
    /// How many are left.
    pub(crate) messages: u32,
    pub(crate) payload: Payload,
}

/// Something to be sent to a client. Effects of one channel have to be sent in their order.
#[derive(Debug, Clone)]
pub(crate) enum Effect {
    /// `basic.deliver`.
    Deliver { channel: ChannelId, consumer_tag: Name, delivery_tag: u64, redelivered: bool, payload: Payload },
    /// `basic.return`.
    Return { channel: ChannelId, code: ReplyCode, payload: Payload },
    /// `basic.ack` or `basic.nack` for the publish with this number on a channel in confirm mode. Never
    /// multiple: whoever sends may gather.
    Confirm { channel: ChannelId, delivery_tag: u64, accepted: bool },
    /// `basic.recover-ok`.
    Recovered { channel: ChannelId },
    /// `tx.commit-ok`.
    Committed { channel: ChannelId },
    /// `basic.cancel`, which is for clients with the capability `consumer_cancel_notify` only.
    Cancel { channel: ChannelId, consumer_tag: Name },
}

impl Effect {
    /// Where it is to be sent.
    pub(super) fn channel(&self) -> ChannelId {
        match self {
            Effect::Deliver { channel, .. }
            | Effect::Return { channel, .. }
            | Effect::Confirm { channel, .. }
            | Effect::Recovered { channel }
            | Effect::Committed { channel }
            | Effect::Cancel { channel, .. } => *channel,
        }
    }
}
