//! What there is: for tests that want to look inside.

use super::{ChannelId, Name, Payload, exchange::Destination, queue::Queue, ready::Entry, vhost::Vhost};
use crate::protocol::value::FieldTable;

/// An exchange.
#[derive(Debug, Clone)]
pub(crate) struct ExchangeView {
    pub(crate) name: Name,
    pub(crate) kind: &'static str,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) internal: bool,
    pub(crate) arguments: FieldTable,
}

/// A queue.
#[derive(Debug, Clone)]
pub(crate) struct QueueView {
    pub(crate) name: Name,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) exclusive: bool,
    pub(crate) arguments: FieldTable,
    /// Messages that wait for a consumer.
    pub(crate) ready: usize,
    /// Messages that were delivered and not settled.
    pub(crate) unacked: usize,
    pub(crate) consumers: usize,
}

/// A binding, other than those of the default exchange.
#[derive(Debug, Clone)]
pub(crate) struct BindingView {
    pub(crate) source: Name,
    pub(crate) destination: Destination,
    pub(crate) routing_key: Name,
    pub(crate) arguments: FieldTable,
}

/// A consumer.
#[derive(Debug, Clone)]
pub(crate) struct ConsumerView {
    pub(crate) queue: Name,
    pub(crate) channel: ChannelId,
    pub(crate) tag: Name,
    pub(crate) no_ack: bool,
    pub(crate) priority: i64,
    /// Gets messages: false for those that wait behind a single active consumer.
    pub(crate) active: bool,
}

/// Everything is listed in the order of names.
impl Vhost {
    pub(crate) fn list_exchanges(&self) -> Vec<ExchangeView> {
        let view = |(name, exchange): (&Name, &super::exchange::Exchange)| ExchangeView {
            name: name.clone(),
            kind: exchange.kind.name(),
            durable: exchange.durable,
            auto_delete: exchange.auto_delete,
            internal: exchange.internal,
            arguments: exchange.arguments.clone(),
        };
        self.exchanges.iter().map(view).collect()
    }

    pub(crate) fn list_queues(&self) -> Vec<QueueView> {
        let view = |(name, queue): (&Name, &Queue)| QueueView {
            name: name.clone(),
            durable: queue.durable,
            auto_delete: queue.auto_delete,
            exclusive: queue.owner.is_some(),
            arguments: queue.arguments.clone(),
            ready: queue.messages(),
            unacked: queue.unacked.len(),
            consumers: queue.consumers.len(),
        };
        let mut queues: Vec<_> = self.queues.iter().map(view).collect();
        queues.sort_by(|one, other| one.name.cmp(&other.name));
        queues
    }

    pub(crate) fn list_bindings(&self) -> Vec<BindingView> {
        let of_exchange = |(source, exchange): (&Name, &super::exchange::Exchange)| {
            let view =
                |(destination, routing_key, arguments): (&Destination, &Name, &FieldTable)| BindingView {
                    source: source.clone(),
                    destination: destination.clone(),
                    routing_key: routing_key.clone(),
                    arguments: arguments.clone(),
                };
            exchange.bindings().map(view).collect::<Vec<_>>()
        };
        self.exchanges.iter().flat_map(of_exchange).collect()
    }

    pub(crate) fn list_consumers(&self) -> Vec<ConsumerView> {
        let of_queue = |(name, queue): (&Name, &Queue)| {
            let view = |consumer: &super::consumers::Consumer| ConsumerView {
                queue: name.clone(),
                channel: consumer.channel,
                tag: consumer.tag.clone(),
                no_ack: consumer.no_ack,
                priority: consumer.priority,
                active: queue.consumers.is_active(consumer.channel, &consumer.tag),
            };
            queue.consumers.iter().map(view).collect::<Vec<_>>()
        };
        let mut consumers: Vec<_> = self.queues.iter().flat_map(of_queue).collect();
        consumers.sort_by(|one, other| (&one.queue, &one.tag).cmp(&(&other.queue, &other.tag)));
        consumers
    }

    /// The first messages that wait in a queue, in the order of their delivery, with whether they were delivered
    /// before. They stay where they are.
    pub(crate) fn peek(&self, queue: &[u8], most: usize) -> Vec<(bool, Payload)> {
        let Some(queue) = self.queues.get(queue) else { return Vec::new() };
        if let Some(stream) = &queue.stream {
            return stream.peek(most);
        }
        let shown = |entry: &Entry| (entry.redelivered, entry.delivered(queue.kind, self.emulate()));
        queue.ready.iter().take(most).map(shown).collect()
    }
}
