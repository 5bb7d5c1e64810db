//! Methods of a peer that talks to the program: there are no queues behind it.

use std::sync::Arc;

use super::{
    Running, Session,
    methods::{arguments, unimplemented},
    permissions::Kind,
};
use crate::broker::{
    config::Permission,
    direct::{Message, PeerState, Program, Settled, Wanted},
    failure::Failure,
    model::{ChannelId, Payload, Publish, Refusal},
    served::Turn,
};
use crate::{
    error::Departure,
    protocol::{
        spec::{
            BasicCancelOk, BasicConsume, BasicConsumeOk, BasicQosOk, BasicRecoverOk, ChannelFlowOk,
            ConfirmSelectOk, ExchangeDeclareOk, ExchangeDeleteOk, Method, QueueDeclareOk, QueueDeleteOk,
            QueuePurgeOk,
        },
        wire::ShortStr,
    },
};

/// Where answers go: queues that the listener has named, and RabbitMQ's pseudo-queue.
const NAMED: &[u8] = b"amq.gen-";
const REPLY_TO: &[u8] = b"amq.rabbitmq.reply-to";

fn impossible(what: &str) -> Refusal {
    Refusal::not_implemented(format_args!("{what}: there are no queues, you talk to the program directly"))
}

impl Session<'_> {
    pub(super) fn direct_method(
        &self,
        (peer, program): (&Arc<PeerState>, &Program),
        running: &Running,
        turn: &mut Turn<'_>,
        channel: ChannelId,
        method: Method<'_>,
        payload: &[u8],
    ) -> Result<(), Failure> {
        let number = channel.number;
        match method {
            Method::BasicAck(ack) => {
                peer.settle(number, ack.delivery_tag, ack.multiple, Settled::Acked)?;
            }
            Method::BasicNack(nack) => {
                peer.settle(number, nack.delivery_tag, nack.multiple, given_back(nack.requeue))?;
            }
            Method::BasicReject(reject) => {
                peer.settle(number, reject.delivery_tag, false, given_back(reject.requeue))?;
            }
            Method::BasicRecover(recover) => {
                recover_all(peer, number, recover.requeue)?;
                turn.method(channel, &BasicRecoverOk {});
            }
            Method::BasicRecoverAsync(recover) => recover_all(peer, number, recover.requeue)?,
            Method::BasicConsume(consume) => {
                direct_consume((peer, program), running, turn, channel, &consume, payload)?;
            }
            Method::BasicCancel(cancel) => {
                peer.unsubscribe(number, cancel.consumer_tag.bytes(), Departure::Cancelled);
                if !cancel.no_wait {
                    turn.method(channel, &BasicCancelOk { consumer_tag: cancel.consumer_tag });
                }
            }
            Method::BasicQos(qos) => {
                if qos.prefetch_size != 0 {
                    let text = format!("prefetch_size!=0 ({})", qos.prefetch_size);
                    return Err(Refusal::not_implemented(text).into());
                }
                peer.qos(number, qos.prefetch_count, qos.global);
                turn.method(channel, &BasicQosOk {});
            }
            Method::ChannelFlow(flow) => {
                if !flow.active {
                    return Err(Refusal::not_implemented("active=false").into());
                }
                turn.method(channel, &ChannelFlowOk { active: true });
            }
            Method::ConfirmSelect(select) => {
                peer.select_confirms(number);
                if !select.nowait {
                    turn.method(channel, &ConfirmSelectOk {});
                }
            }
            method => direct_topology(peer, running, turn, channel, method)?,
        }
        Ok(())
    }

    pub(super) fn direct_publish(
        &self,
        (peer, program): (&Arc<PeerState>, &Program),
        channel: ChannelId,
        publish: Publish<'_>,
    ) -> Result<(), Failure> {
        if publish.immediate {
            return Err(Refusal::not_implemented("immediate=true").into());
        }
        if !program.takes_messages() {
            return Err(Refusal::not_implemented("this listener takes no messages").into());
        }
        let payload = Payload {
            exchange: publish.exchange.into(),
            routing_key: publish.routing_key.into(),
            properties: publish.properties,
            body: publish.body,
        };
        peer.publish(program, channel.number, Message { payload, mandatory: publish.mandatory });
        Ok(())
    }
}

fn given_back(requeue: bool) -> Settled {
    if requeue { Settled::Requeued } else { Settled::Rejected }
}

fn recover_all(peer: &PeerState, number: u16, requeue: bool) -> Result<(), Refusal> {
    if !requeue {
        return Err(Refusal::not_implemented("requeue=false"));
    }
    peer.settle(number, 0, true, Settled::Requeued)
}

fn direct_consume(
    (peer, program): (&Arc<PeerState>, &Program),
    running: &Running,
    turn: &mut Turn<'_>,
    channel: ChannelId,
    consume: &BasicConsume<'_>,
    payload: &[u8],
) -> Result<(), Failure> {
    let arguments = arguments(consume.arguments.0, payload)?;
    let queue = peer.queue_name(channel.number, consume.queue.bytes())?;
    running.access.check(Permission::Read, Kind::Queue, &queue)?;
    let for_answers = queue.starts_with(NAMED) || *queue == *REPLY_TO;
    if !for_answers && !program.takes_consumers() {
        return Err(Refusal::not_implemented("this listener has nothing to consume").into());
    }
    let wanted = Wanted { queue, tag: consume.consumer_tag.bytes(), no_ack: consume.no_ack, arguments };
    let subscription = peer.subscribe(channel.number, wanted)?;
    if !consume.no_wait {
        turn.method(channel, &BasicConsumeOk { consumer_tag: ShortStr::from_bytes(&subscription.tag) });
    }
    if !for_answers {
        peer.hand_over(program, subscription);
    }
    Ok(())
}

/// Declarations have an answer, so that ordinary programs work; nothing is remembered but the last queue's name.
fn direct_topology(
    peer: &PeerState,
    running: &Running,
    turn: &mut Turn<'_>,
    channel: ChannelId,
    method: Method<'_>,
) -> Result<(), Failure> {
    let access = &running.access;
    match method {
        Method::QueueDeclare(declare) => {
            if !declare.passive && !declare.queue.bytes().is_empty() {
                access.check(Permission::Configure, Kind::Queue, declare.queue.bytes())?;
            }
            let (queue, consumer_count) = peer.declare_queue(channel.number, declare.queue.bytes());
            if !declare.no_wait {
                let queue = ShortStr::from_bytes(&queue);
                turn.method(channel, &QueueDeclareOk { queue, message_count: 0, consumer_count });
            }
        }
        Method::QueueDelete(delete) => {
            let queue = peer.queue_name(channel.number, delete.queue.bytes())?;
            access.check(Permission::Configure, Kind::Queue, &queue)?;
            if !delete.no_wait {
                turn.method(channel, &QueueDeleteOk { message_count: 0 });
            }
            for subscription in peer.consumers_of(&queue) {
                peer.cancel_in(turn, &subscription);
            }
        }
        Method::QueuePurge(purge) => {
            if !purge.no_wait {
                turn.method(channel, &QueuePurgeOk { message_count: 0 });
            }
        }
        Method::ExchangeDeclare(declare) => {
            if !declare.no_wait {
                turn.method(channel, &ExchangeDeclareOk {});
            }
        }
        Method::ExchangeDelete(delete) => {
            if !delete.no_wait {
                turn.method(channel, &ExchangeDeleteOk {});
            }
        }
        Method::QueueBind(_) | Method::QueueUnbind(_) => return Err(impossible("bindings of queues").into()),
        Method::ExchangeBind(_) | Method::ExchangeUnbind(_) => {
            return Err(impossible("bindings of exchanges").into());
        }
        Method::BasicGet(_) => return Err(impossible("basic.get").into()),
        Method::TxSelect(_) | Method::TxCommit(_) | Method::TxRollback(_) => {
            return Err(impossible("transactions").into());
        }
        _ => return Err(unimplemented()),
    }
    Ok(())
}
