//! Lists for tests, messages to look at and to put in, and waiting for what should be there.
//!
//! A virtual host that does not exist has nothing in it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Broker,
    model::{ChannelId, Destination, Publish, SessionId},
};
use crate::{
    error::{Error, Result},
    protocol::{properties::BasicProperties, value::FieldTable},
};

/// How often a test that waits looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// An exchange.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ExchangeInfo {
    /// Its name; empty for the default exchange.
    pub name: String,
    /// Its type, such as `topic`.
    pub kind: String,
    /// It survives a restart.
    pub durable: bool,
    /// It goes when nothing is bound to it any more.
    pub auto_delete: bool,
    /// Nothing can be published to it.
    pub internal: bool,
    /// The arguments it was declared with.
    pub arguments: FieldTable,
}

/// A queue.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QueueInfo {
    /// Its name.
    pub name: String,
    /// It survives a restart.
    pub durable: bool,
    /// It goes with its last consumer.
    pub auto_delete: bool,
    /// It belongs to one connection.
    pub exclusive: bool,
    /// The arguments it was declared with.
    pub arguments: FieldTable,
    /// Messages that wait for a consumer.
    pub ready: usize,
    /// Messages that were delivered and are not settled.
    pub unacked: usize,
    /// The number of consumers.
    pub consumers: usize,
}

/// A binding, other than those that every queue has to the default exchange.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BindingInfo {
    /// The exchange that messages come from.
    pub source: String,
    /// The queue, or the exchange, that they go to.
    pub destination: String,
    /// The destination is a queue.
    pub to_queue: bool,
    /// The routing key.
    pub routing_key: String,
    /// The arguments.
    pub arguments: FieldTable,
}

/// A consumer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ConsumerInfo {
    /// Its queue.
    pub queue: String,
    /// The number of its connection, as in [`ConnectionInfo::id`](super::ConnectionInfo::id).
    pub connection: u64,
    /// Its channel.
    pub channel: u16,
    /// Its tag.
    pub tag: String,
    /// Its messages need no acks.
    pub no_ack: bool,
    /// Its priority; 0 if it has none.
    pub priority: i64,
    /// It gets messages: false for those that wait behind a single active consumer.
    pub active: bool,
}

/// A message that waits in a queue.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PeekedMessage {
    /// The exchange that it was published to.
    pub exchange: String,
    /// The routing key that it was published with.
    pub routing_key: String,
    /// It was delivered before.
    pub redelivered: bool,
    /// Its properties.
    pub properties: BasicProperties,
    /// Its body.
    pub body: Vec<u8>,
}

/// What is on a virtual host.
impl Broker {
    /// The exchanges, in the order of their names.
    pub fn exchanges(&self, vhost: &str) -> Vec<ExchangeInfo> {
        self.look(vhost, |model| {
            let view = |exchange: super::model::ExchangeView| ExchangeInfo {
                name: exchange.name.to_string(),
                kind: exchange.kind.into(),
                durable: exchange.durable,
                auto_delete: exchange.auto_delete,
                internal: exchange.internal,
                arguments: exchange.arguments,
            };
            model.list_exchanges().into_iter().map(view).collect()
        })
        .unwrap_or_default()
    }

    /// The queues, in the order of their names.
    pub fn queues(&self, vhost: &str) -> Vec<QueueInfo> {
        self.look(vhost, |model| {
            let view = |queue: super::model::QueueView| QueueInfo {
                name: queue.name.to_string(),
                durable: queue.durable,
                auto_delete: queue.auto_delete,
                exclusive: queue.exclusive,
                arguments: queue.arguments,
                ready: queue.ready,
                unacked: queue.unacked,
                consumers: queue.consumers,
            };
            model.list_queues().into_iter().map(view).collect()
        })
        .unwrap_or_default()
    }

    /// A queue; `None` when it is not there.
    pub fn queue(&self, vhost: &str, name: &str) -> Option<QueueInfo> {
        self.queues(vhost).into_iter().find(|queue| queue.name == name)
    }

    /// The bindings, by source.
    pub fn bindings(&self, vhost: &str) -> Vec<BindingInfo> {
        self.look(vhost, |model| {
            let view = |binding: super::model::BindingView| {
                let (destination, to_queue) = match &binding.destination {
                    Destination::Queue(name) => (name.to_string(), true),
                    Destination::Exchange(name) => (name.to_string(), false),
                };
                BindingInfo {
                    source: binding.source.to_string(),
                    destination,
                    to_queue,
                    routing_key: binding.routing_key.to_string(),
                    arguments: binding.arguments,
                }
            };
            model.list_bindings().into_iter().map(view).collect()
        })
        .unwrap_or_default()
    }

    /// The consumers, by queue.
    pub fn consumers(&self, vhost: &str) -> Vec<ConsumerInfo> {
        self.look(vhost, |model| {
            let view = |consumer: super::model::ConsumerView| ConsumerInfo {
                queue: consumer.queue.to_string(),
                connection: consumer.channel.session.0,
                channel: consumer.channel.number,
                tag: consumer.tag.to_string(),
                no_ack: consumer.no_ack,
                priority: consumer.priority,
                active: consumer.active,
            };
            model.list_consumers().into_iter().map(view).collect()
        })
        .unwrap_or_default()
    }

    /// The first messages that wait in a queue, at most `most`. They stay there.
    pub fn peek(&self, vhost: &str, queue: &str, most: usize) -> Vec<PeekedMessage> {
        self.look(vhost, |model| {
            let view = |(redelivered, payload): (bool, super::model::Payload)| PeekedMessage {
                exchange: payload.exchange.to_string(),
                routing_key: payload.routing_key.to_string(),
                redelivered,
                properties: BasicProperties::decode(&payload.properties).unwrap_or_default(),
                body: payload.body.to_vec(),
            };
            model.peek(queue.as_bytes(), most).into_iter().map(view).collect()
        })
        .unwrap_or_default()
    }

    /// Publishes a message that comes from no connection; true when a queue has taken it.
    ///
    /// # Errors
    /// [`Error::Invalid`]: there is no such virtual host or exchange, or the properties cannot be encoded.
    pub fn inject(
        &self,
        vhost: &str,
        exchange: &str,
        routing_key: &str,
        properties: &BasicProperties,
        body: &[u8],
    ) -> Result<bool> {
        let mut encoded = Vec::new();
        properties.encode(&mut encoded)?;
        let publish = Publish {
            exchange: exchange.as_bytes(),
            routing_key: routing_key.as_bytes(),
            mandatory: false,
            immediate: false,
            properties: encoded.into(),
            body: body.into(),
        };
        match self.look(vhost, |model| model.inject(publish)) {
            None => Err(Error::invalid(format!("there is no virtual host {vhost:?}"))),
            Some(Err(refusal)) => Err(Error::invalid(refusal.text)),
            Some(Ok(taken)) => Ok(taken),
        }
    }

    /// Cancels a consumer as if its queue had gone: the client gets `basic.cancel`. False when there is none.
    pub fn cancel_consumer(&self, consumer: &ConsumerInfo) -> bool {
        let channel = ChannelId { session: SessionId(consumer.connection), number: consumer.channel };
        self.hub.all_vhosts().iter().any(|served| {
            let mut turn = served.turn(&self.hub);
            let found = turn.model().cancel_by_server(channel, consumer.tag.as_bytes());
            turn.finish();
            found
        })
    }

    /// Waits until a queue holds exactly `messages`, those that are delivered and not settled included; at most for
    /// `timeout`.
    ///
    /// # Errors
    /// [`Error::Invalid`] says what was there instead at the end.
    ///
    /// ```
    /// use std::time::Duration;
    /// use leveret::broker::Broker;
    ///
    /// let broker = Broker::start();
    /// let connection = broker.connect()?;
    /// let channel = connection.channel()?;
    /// channel.queue_declare("q")?;
    /// channel.basic_publish("", "q", "one")?;
    /// broker.expect_queue_depth("/", "q", 1, Duration::from_secs(5))?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn expect_queue_depth(
        &self,
        vhost: &str,
        queue: &str,
        messages: usize,
        timeout: Duration,
    ) -> Result<()> {
        let what = format!("{messages} messages in queue {queue:?}");
        self.wait_for(&what, timeout, || match self.queue(vhost, queue) {
            Some(found) if found.ready + found.unacked == messages => Ok(()),
            Some(found) => Err(format!("{} ready and {} unacked", found.ready, found.unacked)),
            None => Err(format!("no such queue on {vhost:?}")),
        })
    }

    /// Waits until a queue has exactly so many consumers; at most for `timeout`.
    ///
    /// # Errors
    /// [`Error::Invalid`] says what was there instead at the end.
    pub fn expect_consumers(
        &self,
        vhost: &str,
        queue: &str,
        consumers: usize,
        timeout: Duration,
    ) -> Result<()> {
        let what = format!("{consumers} consumers of queue {queue:?}");
        self.wait_for(&what, timeout, || match self.queue(vhost, queue) {
            Some(found) if found.consumers == consumers => Ok(()),
            Some(found) => Err(format!("{} consumers", found.consumers)),
            None => Err(format!("no such queue on {vhost:?}")),
        })
    }

    /// Waits until exactly so many connections are open; at most for `timeout`.
    ///
    /// # Errors
    /// [`Error::Invalid`] says what was there instead at the end.
    pub fn expect_connections(&self, connections: usize, timeout: Duration) -> Result<()> {
        self.wait_for(&format!("{connections} connections"), timeout, || {
            let open = self.hub.sessions().iter().filter(|presence| presence.served().is_some()).count();
            if open == connections { Ok(()) } else { Err(format!("{open} connections")) }
        })
    }

    /// Waits until `look` sees what is expected, which is what this returns; at most for `timeout`. `what` is for the
    /// error.
    ///
    /// # Errors
    /// [`Error::Invalid`]: it was never seen.
    ///
    /// ```
    /// use std::time::Duration;
    /// use leveret::{Config, broker::Broker};
    ///
    /// let broker = Broker::start();
    /// let connection = broker.connect_with(Config::new().connection_name("billing"))?;
    /// let billing = broker.expect("billing to connect", Duration::from_secs(5), |broker| {
    ///     broker.connections().into_iter().find(|connection| connection.name() == Some("billing"))
    /// })?;
    /// broker.drop_connection(billing.id);
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn expect<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut look: impl FnMut(&Broker) -> Option<T>,
    ) -> Result<T> {
        self.wait_for(what, timeout, || look(self).ok_or_else(|| "no signs of it".into()))
    }

    fn wait_for<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut look: impl FnMut() -> std::result::Result<T, String>,
    ) -> Result<T> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let seen = match look() {
                Ok(found) => return Ok(found),
                Err(seen) => seen,
            };
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Error::invalid(format!(
                    "expected {what} within {timeout:?}, but there were {seen}"
                )));
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }

    fn look<T>(&self, vhost: &str, look: impl FnOnce(&mut super::model::Vhost) -> T) -> Option<T> {
        let served: Arc<super::served::Served> = self.hub.vhost(vhost)?;
        let mut turn = served.turn(&self.hub);
        let seen = look(turn.model());
        turn.finish();
        Some(seen)
    }
}
