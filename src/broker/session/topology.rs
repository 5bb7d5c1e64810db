//! Exchanges, queues and bindings, as a channel sees them.

use std::borrow::Cow;

use super::{
    Running, Session,
    methods::{arguments, unimplemented},
    permissions::{Access, Kind},
};
use crate::broker::{
    config::Permission,
    failure::Failure,
    model::{ChannelId, ExchangeKind, ExchangeOptions, QueueOptions, QueueStatus},
    served::Turn,
};
use crate::protocol::{
    spec::{
        ExchangeBindOk, ExchangeDeclare, ExchangeDeclareOk, ExchangeDeleteOk, ExchangeUnbindOk, Method,
        QueueBindOk, QueueDeclare, QueueDeclareOk, QueueDeleteOk, QueuePurgeOk, QueueUnbindOk,
    },
    value::FieldTable,
    wire::ShortStr,
};

/// RabbitMQ takes line ends out of names.
fn name<'a>(name: ShortStr<'a>) -> Cow<'a, [u8]> {
    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let bytes = name.bytes();
    if bytes.iter().any(is_end) {
        bytes.iter().copied().filter(|byte| !is_end(byte)).collect()
    } else {
        bytes.into()
    }
}

/// The answer, unless the client does not want one.
macro_rules! answer {
    ($turn:expr, $channel:expr, $request:expr, $answer:expr) => {
        if !$request.no_wait {
            $turn.method($channel, &$answer);
        }
    };
}

impl Session<'_> {
    pub(super) fn topology(
        &mut self,
        running: &Running,
        turn: &mut Turn<'_>,
        channel: ChannelId,
        method: Method<'_>,
        payload: &[u8],
    ) -> Result<(), Failure> {
        let access = &running.access;
        match method {
            Method::QueueDeclare(declare) => {
                let status = declare_queue(access, turn, channel, &declare, payload)?;
                answer!(
                    turn,
                    channel,
                    declare,
                    QueueDeclareOk {
                        queue: ShortStr::from_bytes(&status.name),
                        message_count: status.messages,
                        consumer_count: status.consumers,
                    }
                );
            }
            Method::QueueDelete(delete) => {
                let queue = turn.model().queue_name(channel, &name(delete.queue))?;
                access.check(Permission::Configure, Kind::Queue, &queue)?;
                let message_count =
                    turn.model().delete_queue(channel, &queue, delete.if_unused, delete.if_empty)?;
                answer!(turn, channel, delete, QueueDeleteOk { message_count });
            }
            Method::QueuePurge(purge) => {
                let queue = turn.model().queue_name(channel, purge.queue.bytes())?;
                access.check(Permission::Read, Kind::Queue, &queue)?;
                let message_count = turn.model().purge_queue(channel, &queue)?;
                answer!(turn, channel, purge, QueuePurgeOk { message_count });
            }
            Method::QueueBind(bind) => {
                let arguments = arguments(bind.arguments.0, payload)?;
                let (queue, exchange) = (name(bind.queue), name(bind.exchange));
                let known = turn.model().queue_name(channel, &queue)?;
                binding(access, Kind::Queue, &known, &exchange)?;
                turn.model().bind_queue(channel, &queue, &exchange, bind.routing_key.bytes(), arguments)?;
                answer!(turn, channel, bind, QueueBindOk {});
            }
            Method::QueueUnbind(unbind) => {
                let arguments = arguments(unbind.arguments.0, payload)?;
                let (queue, exchange) = (name(unbind.queue), name(unbind.exchange));
                let known = turn.model().queue_name(channel, &queue)?;
                binding(access, Kind::Queue, &known, &exchange)?;
                let key = unbind.routing_key.bytes();
                turn.model().unbind_queue(channel, &queue, &exchange, key, &arguments)?;
                turn.method(channel, &QueueUnbindOk {});
            }
            Method::ExchangeDeclare(declare) => {
                declare_exchange(access, turn, &declare, payload)?;
                answer!(turn, channel, declare, ExchangeDeclareOk {});
            }
            Method::ExchangeDelete(delete) => {
                let exchange = name(delete.exchange);
                if !exchange.is_empty() && !exchange.starts_with(b"amq.") {
                    access.check(Permission::Configure, Kind::Exchange, &exchange)?;
                }
                turn.model().delete_exchange(&exchange, delete.if_unused)?;
                answer!(turn, channel, delete, ExchangeDeleteOk {});
            }
            Method::ExchangeBind(bind) => {
                let arguments = arguments(bind.arguments.0, payload)?;
                let (destination, source) = (name(bind.destination), name(bind.source));
                binding(access, Kind::Exchange, &destination, &source)?;
                turn.model().bind_exchange(&destination, &source, bind.routing_key.bytes(), arguments)?;
                answer!(turn, channel, bind, ExchangeBindOk {});
            }
            Method::ExchangeUnbind(unbind) => {
                let arguments = arguments(unbind.arguments.0, payload)?;
                let (destination, source) = (name(unbind.destination), name(unbind.source));
                binding(access, Kind::Exchange, &destination, &source)?;
                turn.model().unbind_exchange(
                    &destination,
                    &source,
                    unbind.routing_key.bytes(),
                    &arguments,
                )?;
                answer!(turn, channel, unbind, ExchangeUnbindOk {});
            }
            _ => return Err(unimplemented()),
        }
        Ok(())
    }
}

fn declare_queue(
    access: &Access,
    turn: &mut Turn<'_>,
    channel: ChannelId,
    declare: &QueueDeclare<'_>,
    payload: &[u8],
) -> Result<QueueStatus, Failure> {
    let asked = name(declare.queue);
    if declare.passive {
        return Ok(turn.model().check_queue(channel, &asked)?);
    }
    let arguments = arguments(declare.arguments.0, payload)?;
    // Which name is made up makes no difference to most patterns, but to those for `amq.gen-*`.
    let permitted: &[u8] = if asked.is_empty() { b"amq.gen-" } else { &asked };
    access.check(Permission::Configure, Kind::Queue, permitted)?;
    if !turn.model().has_queue(&asked) {
        others(access, &arguments, "x-dead-letter-exchange", Kind::Queue, permitted)?;
    }
    let options = QueueOptions {
        durable: declare.durable,
        exclusive: declare.exclusive,
        auto_delete: declare.auto_delete,
        arguments,
    };
    Ok(turn.model().declare_queue(channel, &asked, &options)?)
}

fn declare_exchange(
    access: &Access,
    turn: &mut Turn<'_>,
    declare: &ExchangeDeclare<'_>,
    payload: &[u8],
) -> Result<(), Failure> {
    let exchange = name(declare.exchange);
    if declare.passive {
        return Ok(turn.model().check_exchange(&exchange)?);
    }
    let arguments = arguments(declare.arguments.0, payload)?;
    // What nobody may do is refused as that.
    if !exchange.is_empty() && ExchangeKind::from_name(declare.type_.bytes()).is_some() {
        access.check(Permission::Configure, Kind::Exchange, &exchange)?;
        if !turn.model().has_exchange(&exchange) {
            others(access, &arguments, "alternate-exchange", Kind::Exchange, &exchange)?;
        }
    }
    let options = ExchangeOptions {
        kind: declare.type_.bytes().into(),
        durable: declare.durable,
        auto_delete: declare.auto_delete,
        internal: declare.internal,
        arguments,
    };
    Ok(turn.model().declare_exchange(&exchange, &options)?)
}

/// Who binds writes to one end and reads from the other. That nobody binds the default exchange comes in between.
fn binding(access: &Access, kind: Kind, destination: &[u8], source: &[u8]) -> Result<(), Failure> {
    access.check(Permission::Write, kind, destination)?;
    let with_default = source.is_empty() || (kind == Kind::Exchange && destination.is_empty());
    if !with_default {
        access.check(Permission::Read, Kind::Exchange, source)?;
    }
    Ok(())
}

/// Who makes something that names another exchange for its messages must be allowed to send them there.
fn others(
    access: &Access,
    arguments: &FieldTable,
    key: &str,
    kind: Kind,
    name: &[u8],
) -> Result<(), Failure> {
    if let Some(exchange) = arguments.get(key).and_then(|value| value.as_str()) {
        access.check(Permission::Read, kind, name)?;
        access.check(Permission::Write, Kind::Exchange, exchange.as_bytes())?;
    }
    Ok(())
}
