//! Messages, as a channel sees them: publishing, consuming, acknowledging, and the modes of a channel.

use super::{Running, Session, channel::undecodable, content::Complete, permissions::Kind};
use crate::broker::{
    config::Permission,
    failure::Failure,
    model::{ChannelId, ConsumeOptions, Publish, Refusal},
    served::Turn,
};
use crate::{
    error::ReplyCode,
    protocol::{
        spec::{
            BasicCancelOk, BasicConsume, BasicConsumeOk, BasicGet, BasicGetEmpty, BasicGetOk, BasicPublish,
            BasicQosOk, ChannelFlowOk, ConfirmSelectOk, Method, MethodBody, TxRollbackOk, TxSelectOk,
        },
        value::FieldTable,
        wire::{Reader, ShortStr},
    },
};

/// The arguments of a method, decoded.
pub(super) fn arguments(table: &[u8], payload: &[u8]) -> Result<FieldTable, Failure> {
    FieldTable::decode(table).map_err(|_| undecodable(payload))
}

impl Session<'_> {
    /// A method that is complete in itself, on an open channel. What it causes for others is sent after its answer.
    pub(super) fn method(
        &mut self,
        running: &mut Running,
        turn: &mut Turn<'_>,
        channel: ChannelId,
        method: Method<'_>,
        payload: &[u8],
    ) -> Result<(), Failure> {
        if let (Some(peer), Some(program)) = (&self.peer, &self.hub.program) {
            return self.direct_method((peer, program), running, turn, channel, method, payload);
        }
        match method {
            Method::BasicAck(ack) => turn.model().ack(channel, ack.delivery_tag, ack.multiple)?,
            Method::BasicNack(nack) => {
                turn.model().nack(channel, nack.delivery_tag, nack.multiple, nack.requeue)?;
            }
            Method::BasicReject(reject) => {
                turn.model().nack(channel, reject.delivery_tag, false, reject.requeue)?;
            }
            Method::BasicConsume(consume) => self.consume(running, turn, channel, &consume, payload)?,
            Method::BasicCancel(cancel) => {
                turn.model().cancel(channel, cancel.consumer_tag.bytes())?;
                if !cancel.no_wait {
                    turn.method(channel, &BasicCancelOk { consumer_tag: cancel.consumer_tag });
                }
            }
            Method::BasicGet(get) => self.get(running, turn, channel, &get)?,
            Method::BasicQos(qos) => {
                turn.model().qos(channel, qos.prefetch_size, qos.prefetch_count, qos.global)?;
                turn.method(channel, &BasicQosOk {});
            }
            Method::BasicRecover(recover) => turn.model().recover(channel, recover.requeue)?,
            Method::BasicRecoverAsync(recover) => turn.model().recover_async(channel, recover.requeue)?,
            Method::ChannelFlow(flow) => {
                turn.model().flow(channel, flow.active)?;
                turn.method(channel, &ChannelFlowOk { active: flow.active });
            }
            // Nothing of ours asks for it.
            Method::ConfirmSelect(select) => {
                turn.model().select_confirms(channel)?;
                if !select.nowait {
                    turn.method(channel, &ConfirmSelectOk {});
                }
            }
            Method::TxSelect(_) => {
                turn.model().select_transactions(channel)?;
                turn.method(channel, &TxSelectOk {});
            }
            Method::TxCommit(_) => {
                let committed = turn.model().commit(channel);
                // Also what precedes a refusal.
                turn.effects();
                committed?;
            }
            Method::TxRollback(_) => {
                turn.model().rollback(channel)?;
                turn.method(channel, &TxRollbackOk {});
            }
            method => self.topology(running, turn, channel, method, payload)?,
        }
        turn.effects();
        Ok(())
    }

    pub(super) fn publish(
        &mut self,
        running: &mut Running,
        turn: &mut Turn<'_>,
        channel: ChannelId,
        complete: Complete,
    ) -> Result<(), Failure> {
        let fields = complete.method.get(4..).unwrap_or_default();
        let ids = super::frames::method_ids(&complete.method);
        if ids != Some((BasicPublish::CLASS, BasicPublish::METHOD)) {
            return Err(unimplemented());
        }
        let publish =
            BasicPublish::read(&mut Reader::new(fields)).map_err(|_| undecodable(&complete.method))?;
        if !running.publishes {
            running.publishes = true;
            self.presence.publishes();
        }
        if !publish.immediate
            && let Some(size) = complete.too_large
        {
            let max = self.hub.config.max_message_size;
            let text = format!("message size {size} is larger than configured max size {max}");
            return Err(Refusal::precondition(text).into());
        }
        if !publish.immediate {
            running.access.check(Permission::Write, Kind::Exchange, publish.exchange.bytes())?;
        }
        let publish = Publish {
            exchange: publish.exchange.bytes(),
            routing_key: publish.routing_key.bytes(),
            mandatory: publish.mandatory,
            immediate: publish.immediate,
            properties: complete.properties,
            body: complete.body,
        };
        if let (Some(peer), Some(program)) = (&self.peer, &self.hub.program) {
            return self.direct_publish((peer, program), channel, publish);
        }
        turn.model().publish(channel, publish)?;
        turn.effects();
        Ok(())
    }

    fn consume(
        &mut self,
        running: &Running,
        turn: &mut Turn<'_>,
        channel: ChannelId,
        consume: &BasicConsume<'_>,
        payload: &[u8],
    ) -> Result<(), Failure> {
        let arguments = arguments(consume.arguments.0, payload)?;
        let queue = turn.model().queue_name(channel, consume.queue.bytes())?;
        // Everybody may wait for replies.
        if *queue != *b"amq.rabbitmq.reply-to" {
            running.access.check(Permission::Read, Kind::Queue, &queue)?;
        }
        let tag = turn.model().consume(
            channel,
            ConsumeOptions {
                queue: &queue,
                tag: consume.consumer_tag.bytes(),
                no_ack: consume.no_ack,
                exclusive: consume.exclusive,
                arguments,
            },
        )?;
        if !consume.no_wait {
            turn.method(channel, &BasicConsumeOk { consumer_tag: ShortStr::from_bytes(&tag) });
        }
        Ok(())
    }

    fn get(
        &mut self,
        running: &Running,
        turn: &mut Turn<'_>,
        channel: ChannelId,
        get: &BasicGet<'_>,
    ) -> Result<(), Failure> {
        let queue = turn.model().queue_name(channel, get.queue.bytes())?;
        running.access.check(Permission::Read, Kind::Queue, &queue)?;
        match turn.model().get(channel, &queue, get.no_ack)? {
            None => turn.method(channel, &BasicGetEmpty::default()),
            Some(got) => turn.content(
                channel,
                &BasicGetOk {
                    delivery_tag: got.delivery_tag,
                    redelivered: got.redelivered,
                    exchange: ShortStr::from_bytes(&got.payload.exchange),
                    routing_key: ShortStr::from_bytes(&got.payload.routing_key),
                    message_count: got.messages,
                },
                &got.payload,
            ),
        }
        Ok(())
    }
}

/// A method that only brokers send, or that belongs to channel 0.
pub(super) fn unimplemented() -> Failure {
    Failure::new(ReplyCode::CommandInvalid, "unimplemented method")
}
