//! A virtual host and a client that talks to it in short words.

use std::{sync::Arc, time::Duration};

use crate::{
    broker::model::*,
    protocol::{
        properties::BasicProperties,
        value::{FieldTable, FieldValue},
    },
};

/// One virtual host, one session, and its channel 1; others can be opened.
pub(super) struct Client {
    pub(super) vhost: Vhost,
    pub(super) channel: ChannelId,
}

/// A delivery in short: tag of the consumer, delivery tag, redelivered, body.
pub(super) type Delivered = (String, u64, bool, String);

pub(super) fn client() -> Client {
    client_of(Emulate::RabbitMq4)
}

pub(super) fn client_of(emulate: Emulate) -> Client {
    let settings = Settings { name: "/".into(), emulate, epoch: 1_000_000, seed: 1 };
    let mut vhost = Vhost::new(settings);
    vhost.open_session(SessionId(1), "guest", false);
    vhost.open_session(SessionId(2), "guest", false);
    let channel = ChannelId { session: SessionId(1), number: 1 };
    vhost.open_channel(channel);
    Client { vhost, channel }
}

pub(super) fn table<const LENGTH: usize>(entries: [(&str, FieldValue); LENGTH]) -> FieldTable {
    entries.into_iter().collect()
}

pub(super) fn properties(properties: &BasicProperties) -> Arc<[u8]> {
    let mut out = Vec::new();
    properties.encode(&mut out).unwrap();
    out.into()
}

impl Client {
    pub(super) fn open(&mut self, session: u64, number: u16) -> ChannelId {
        let channel = ChannelId { session: SessionId(session), number };
        self.vhost.open_channel(channel);
        channel
    }

    pub(super) fn queue(&mut self, name: &str, arguments: FieldTable) {
        let durable = arguments.get("x-queue-type").is_some();
        let options = QueueOptions { arguments, durable, ..QueueOptions::default() };
        self.vhost.declare_queue(self.channel, name.as_bytes(), &options).unwrap();
    }

    pub(super) fn exchange(&mut self, name: &str, kind: &str, arguments: FieldTable) {
        let options = ExchangeOptions { kind: kind.into(), arguments, ..ExchangeOptions::default() };
        self.vhost.declare_exchange(name.as_bytes(), &options).unwrap();
    }

    pub(super) fn bind(&mut self, queue: &str, exchange: &str, key: &str) {
        let (queue, exchange, key) = (queue.as_bytes(), exchange.as_bytes(), key.as_bytes());
        self.vhost.bind_queue(self.channel, queue, exchange, key, FieldTable::new()).unwrap();
    }

    /// Publishes to the default exchange.
    pub(super) fn send(&mut self, queue: &str, body: &str) {
        self.publish("", queue, body, &BasicProperties::new()).unwrap();
    }

    pub(super) fn publish(
        &mut self,
        exchange: &str,
        key: &str,
        body: &str,
        with: &BasicProperties,
    ) -> Result<(), Refusal> {
        self.vhost.publish(
            self.channel,
            Publish {
                exchange: exchange.as_bytes(),
                routing_key: key.as_bytes(),
                mandatory: false,
                immediate: false,
                properties: properties(with),
                body: body.as_bytes().into(),
            },
        )
    }

    pub(super) fn get(&mut self, queue: &str) -> Option<Got> {
        self.vhost.get(self.channel, queue.as_bytes(), true).unwrap()
    }

    /// The bodies of everything that is ready.
    pub(super) fn bodies(&self, queue: &str) -> Vec<String> {
        let peeked = self.vhost.peek(queue.as_bytes(), usize::MAX);
        peeked.iter().map(|(_, payload)| String::from_utf8_lossy(&payload.body).into_owned()).collect()
    }

    pub(super) fn consume(&mut self, channel: ChannelId, queue: &str, tag: &str) {
        self.consume_with(channel, queue, tag, FieldTable::new());
    }

    pub(super) fn consume_with(&mut self, channel: ChannelId, queue: &str, tag: &str, arguments: FieldTable) {
        let (queue, tag) = (queue.as_bytes(), tag.as_bytes());
        self.vhost
            .consume(channel, ConsumeOptions { queue, tag, arguments, ..ConsumeOptions::default() })
            .unwrap();
    }

    pub(super) fn deliveries(&mut self) -> Vec<Delivered> {
        let effects = self.vhost.take_effects().into_iter();
        effects
            .filter_map(|effect| match effect {
                Effect::Deliver { consumer_tag, delivery_tag, redelivered, payload, .. } => {
                    let body = String::from_utf8_lossy(&payload.body).into_owned();
                    Some((consumer_tag.to_string(), delivery_tag, redelivered, body))
                }
                _ => None,
            })
            .collect()
    }

    /// Who got what, in order.
    pub(super) fn handed_out(&mut self) -> Vec<String> {
        self.deliveries().into_iter().map(|(tag, _, _, body)| format!("{tag}:{body}")).collect()
    }

    pub(super) fn pass(&mut self, milliseconds: u64) {
        let now = self.vhost.now + Duration::from_millis(milliseconds);
        self.vhost.tick(now);
    }

    pub(super) fn headers(&mut self, queue: &str) -> FieldTable {
        let got = self.get(queue).expect("a message");
        BasicProperties::decode(&got.payload.properties).unwrap().headers.unwrap_or_default()
    }
}

/// The text of a refusal.
pub(super) fn text<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
    result.unwrap_err().text
}
