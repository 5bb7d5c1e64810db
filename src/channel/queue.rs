//! Queues: declare, bind, unbind, purge and delete.

use std::time::Duration;

use super::Channel;
use crate::{
    error::{Error, Result},
    protocol::{
        spec::{self, Method},
        value::{FieldTable, FieldValue},
        wire::{ShortStr, Table},
    },
};

/// What a queue is made of (`x-queue-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueueType<'a> {
    /// On one node.
    Classic,
    /// Replicated; always durable.
    Quorum,
    /// An append-only log that is read without being emptied; always durable.
    Stream,
    /// Of a plugin or of another broker.
    Other(&'a str),
}

impl QueueType<'_> {
    fn as_str(&self) -> &str {
        match self {
            QueueType::Classic => "classic",
            QueueType::Quorum => "quorum",
            QueueType::Stream => "stream",
            QueueType::Other(name) => name,
        }
    }
}

/// What a full queue does (`x-overflow`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overflow<'a> {
    /// Drops or dead-letters its oldest message.
    DropHead,
    /// Refuses new ones.
    RejectPublish,
    /// Refuses new ones, and dead-letters them.
    RejectPublishDlx,
    /// Of another broker.
    Other(&'a str),
}

impl Overflow<'_> {
    fn as_str(&self) -> &str {
        match self {
            Overflow::DropHead => "drop-head",
            Overflow::RejectPublish => "reject-publish",
            Overflow::RejectPublishDlx => "reject-publish-dlx",
            Overflow::Other(name) => name,
        }
    }
}

/// Arguments of [`Channel::queue_declare`]. A bare name converts into it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct QueueDeclare<'a> {
    /// The name. Empty: the broker makes one up and returns it.
    pub queue: &'a str,
    /// It survives a restart of the broker. Default: no.
    pub durable: bool,
    /// It belongs to this connection alone and is deleted with it. Default: no.
    pub exclusive: bool,
    /// It is deleted when its last consumer ends. Default: no.
    pub auto_delete: bool,
    /// Further arguments.
    pub arguments: FieldTable,
}

impl<'a> QueueDeclare<'a> {
    /// A transient queue, shared by all connections.
    pub fn new(queue: &'a str) -> QueueDeclare<'a> {
        QueueDeclare {
            queue,
            durable: false,
            exclusive: false,
            auto_delete: false,
            arguments: FieldTable::new(),
        }
    }

    /// Sets [`durable`](QueueDeclare#structfield.durable).
    pub fn durable(mut self, durable: bool) -> QueueDeclare<'a> {
        self.durable = durable;
        self
    }

    /// Sets [`exclusive`](QueueDeclare#structfield.exclusive).
    pub fn exclusive(mut self, exclusive: bool) -> QueueDeclare<'a> {
        self.exclusive = exclusive;
        self
    }

    /// Sets [`auto_delete`](QueueDeclare#structfield.auto_delete).
    pub fn auto_delete(mut self, auto_delete: bool) -> QueueDeclare<'a> {
        self.auto_delete = auto_delete;
        self
    }

    /// Adds one argument.
    pub fn argument(mut self, name: &str, value: impl Into<FieldValue>) -> QueueDeclare<'a> {
        self.arguments.insert(name, value);
        self
    }

    /// What it is made of (`x-queue-type`). Default: what the virtual host says, usually classic.
    pub fn queue_type(self, queue_type: QueueType<'_>) -> QueueDeclare<'a> {
        self.argument("x-queue-type", queue_type.as_str())
    }

    /// A durable quorum queue.
    pub fn quorum(self) -> QueueDeclare<'a> {
        self.durable(true).queue_type(QueueType::Quorum)
    }

    /// A durable stream.
    pub fn stream(self) -> QueueDeclare<'a> {
        self.durable(true).queue_type(QueueType::Stream)
    }

    /// Messages are dropped or dead-lettered after this time (`x-message-ttl`, whole milliseconds).
    pub fn message_ttl(self, ttl: Duration) -> QueueDeclare<'a> {
        self.argument("x-message-ttl", milliseconds(ttl))
    }

    /// The queue is deleted when it was not used for this time (`x-expires`, whole milliseconds).
    pub fn expires(self, after: Duration) -> QueueDeclare<'a> {
        self.argument("x-expires", milliseconds(after))
    }

    /// It holds at most so many messages (`x-max-length`).
    pub fn max_length(self, messages: u32) -> QueueDeclare<'a> {
        self.argument("x-max-length", i64::from(messages))
    }

    /// Its bodies take at most so many bytes (`x-max-length-bytes`).
    pub fn max_length_bytes(self, bytes: u64) -> QueueDeclare<'a> {
        self.argument("x-max-length-bytes", i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    /// What it does when it is full (`x-overflow`).
    pub fn overflow(self, overflow: Overflow<'_>) -> QueueDeclare<'a> {
        self.argument("x-overflow", overflow.as_str())
    }

    /// Where messages go that are rejected, expire, or are pushed out (`x-dead-letter-exchange`).
    pub fn dead_letter_exchange(self, exchange: &str) -> QueueDeclare<'a> {
        self.argument("x-dead-letter-exchange", exchange)
    }

    /// The routing key that they get on the way (`x-dead-letter-routing-key`). Default: their own.
    pub fn dead_letter_routing_key(self, routing_key: &str) -> QueueDeclare<'a> {
        self.argument("x-dead-letter-routing-key", routing_key)
    }

    /// Messages are sorted by priority, up to this one (`x-max-priority`).
    pub fn max_priority(self, priority: u8) -> QueueDeclare<'a> {
        self.argument("x-max-priority", i32::from(priority))
    }

    /// One consumer at a time gets messages, the others stand by (`x-single-active-consumer`).
    pub fn single_active_consumer(self) -> QueueDeclare<'a> {
        self.argument("x-single-active-consumer", true)
    }

    /// Messages are kept on disk as far as possible (`x-queue-mode: lazy`; RabbitMQ before 3.12).
    pub fn lazy(self) -> QueueDeclare<'a> {
        self.argument("x-queue-mode", "lazy")
    }

    /// A quorum queue drops or dead-letters a message that was redelivered more often (`x-delivery-limit`).
    pub fn delivery_limit(self, deliveries: u32) -> QueueDeclare<'a> {
        self.argument("x-delivery-limit", i64::from(deliveries))
    }

    pub(super) fn method<'m>(&'m self, arguments: &'m [u8], no_wait: bool) -> Result<spec::QueueDeclare<'m>> {
        if no_wait && self.queue.is_empty() {
            return Err(Error::invalid(
                "a queue whose name the broker makes up has to be declared with an answer",
            ));
        }
        Ok(spec::QueueDeclare {
            queue: queue_name(self.queue)?,
            durable: self.durable,
            exclusive: self.exclusive,
            auto_delete: self.auto_delete,
            no_wait,
            arguments: Table(arguments),
            ..Default::default()
        })
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn queue_name(name: &str) -> Result<ShortStr<'_>> {
    ShortStr::new("the queue name", name)
}

impl<'a> From<&'a str> for QueueDeclare<'a> {
    fn from(queue: &'a str) -> QueueDeclare<'a> {
        QueueDeclare::new(queue)
    }
}

impl<'a> From<&'a String> for QueueDeclare<'a> {
    fn from(queue: &'a String) -> QueueDeclare<'a> {
        QueueDeclare::new(queue)
    }
}

/// What the broker says of a queue that was declared.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueDeclareOk {
    /// The name; the one that the broker made up, if an empty one was asked for.
    pub queue: String,
    /// Messages ready to be delivered.
    pub message_count: u32,
    /// Consumers that are active.
    pub consumer_count: u32,
}

impl QueueDeclareOk {
    pub(super) fn from_method(method: Method<'_>) -> Option<QueueDeclareOk> {
        match method {
            Method::QueueDeclareOk(ok) => Some(QueueDeclareOk {
                queue: ok.queue.to_text(),
                message_count: ok.message_count,
                consumer_count: ok.consumer_count,
            }),
            _ => None,
        }
    }
}

/// Arguments of [`Channel::queue_bind`]. A triple of queue, exchange and routing key converts into it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct QueueBind<'a> {
    /// The queue.
    pub queue: &'a str,
    /// The exchange.
    pub exchange: &'a str,
    /// The routing key, or pattern.
    pub routing_key: &'a str,
    /// Arguments, for example those of a headers exchange.
    pub arguments: FieldTable,
}

/// Arguments of [`Channel::queue_unbind`]: those of the binding.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct QueueUnbind<'a> {
    /// The queue.
    pub queue: &'a str,
    /// The exchange.
    pub exchange: &'a str,
    /// The routing key, or pattern.
    pub routing_key: &'a str,
    /// The arguments that it was bound with.
    pub arguments: FieldTable,
}

macro_rules! queue_binding {
    ($name:ident $(, $no_wait:ident)?) => {
        impl<'a> $name<'a> {
            /// Messages of `exchange` with `routing_key` to `queue`.
            pub fn new(queue: &'a str, exchange: &'a str, routing_key: &'a str) -> $name<'a> {
                $name { queue, exchange, routing_key, arguments: FieldTable::new() }
            }

            /// Adds one argument.
            pub fn argument(mut self, name: &str, value: impl Into<FieldValue>) -> $name<'a> {
                self.arguments.insert(name, value);
                self
            }

            pub(super) fn method<'m>(&'m self, arguments: &'m [u8] $(, $no_wait: bool)?) -> Result<spec::$name<'m>> {
                Ok(spec::$name {
                    queue: queue_name(self.queue)?,
                    exchange: ShortStr::new("the exchange name", self.exchange)?,
                    routing_key: ShortStr::new("the routing key", self.routing_key)?,
                    $($no_wait,)?
                    arguments: Table(arguments),
                    ..Default::default()
                })
            }
        }

        impl<'a> From<(&'a str, &'a str, &'a str)> for $name<'a> {
            fn from((queue, exchange, routing_key): (&'a str, &'a str, &'a str)) -> $name<'a> {
                $name::new(queue, exchange, routing_key)
            }
        }
    };
}
queue_binding!(QueueBind, no_wait);
queue_binding!(QueueUnbind);

/// Arguments of [`Channel::queue_purge`]. A bare name converts into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct QueuePurge<'a> {
    /// The name.
    pub queue: &'a str,
}

impl<'a> QueuePurge<'a> {
    /// This queue.
    pub fn new(queue: &'a str) -> QueuePurge<'a> {
        QueuePurge { queue }
    }

    pub(super) fn method(&self, no_wait: bool) -> Result<spec::QueuePurge<'a>> {
        Ok(spec::QueuePurge { queue: queue_name(self.queue)?, no_wait, ..Default::default() })
    }
}

impl<'a> From<&'a str> for QueuePurge<'a> {
    fn from(queue: &'a str) -> QueuePurge<'a> {
        QueuePurge::new(queue)
    }
}

impl<'a> From<&'a String> for QueuePurge<'a> {
    fn from(queue: &'a String) -> QueuePurge<'a> {
        QueuePurge::new(queue)
    }
}

/// Arguments of [`Channel::queue_delete`]. A bare name converts into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct QueueDelete<'a> {
    /// The name.
    pub queue: &'a str,
    /// Only if it has no consumers; otherwise 406. Default: no.
    pub if_unused: bool,
    /// Only if it has no messages; otherwise 406. Default: no.
    pub if_empty: bool,
}

impl<'a> QueueDelete<'a> {
    /// In any state.
    pub fn new(queue: &'a str) -> QueueDelete<'a> {
        QueueDelete { queue, if_unused: false, if_empty: false }
    }

    /// Sets [`if_unused`](QueueDelete#structfield.if_unused).
    pub fn if_unused(mut self, if_unused: bool) -> QueueDelete<'a> {
        self.if_unused = if_unused;
        self
    }

    /// Sets [`if_empty`](QueueDelete#structfield.if_empty).
    pub fn if_empty(mut self, if_empty: bool) -> QueueDelete<'a> {
        self.if_empty = if_empty;
        self
    }

    pub(super) fn method(&self, no_wait: bool) -> Result<spec::QueueDelete<'a>> {
        Ok(spec::QueueDelete {
            queue: queue_name(self.queue)?,
            if_unused: self.if_unused,
            if_empty: self.if_empty,
            no_wait,
            ..Default::default()
        })
    }
}

impl<'a> From<&'a str> for QueueDelete<'a> {
    fn from(queue: &'a str) -> QueueDelete<'a> {
        QueueDelete::new(queue)
    }
}

impl<'a> From<&'a String> for QueueDelete<'a> {
    fn from(queue: &'a String) -> QueueDelete<'a> {
        QueueDelete::new(queue)
    }
}

impl Channel {
    /// Makes sure that a queue exists, and says what it holds.
    ///
    /// # Errors
    /// [`Error::Refused`]: 406 when it exists with other arguments, 405 when it is exclusive to another
    /// connection, 403 for names that begin with `amq.`. Those of every call: see [`Channel`].
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// use leveret::QueueDeclare;
    ///
    /// channel.queue_declare("simple")?;
    /// channel.queue_declare(QueueDeclare::new("orders").quorum().delivery_limit(5))?;
    /// let reply_queue = channel.queue_declare(QueueDeclare::new("").exclusive(true))?.queue;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn queue_declare<'a>(&self, declare: impl Into<QueueDeclare<'a>>) -> Result<QueueDeclareOk> {
        let declare = declare.into();
        let arguments = declare.arguments.encode()?;
        self.call(&declare.method(&arguments, false)?, QueueDeclareOk::from_method)
    }

    /// Says what a queue holds, whatever its arguments.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 when it does not exist; the channel is closed then. Those of every call:
    /// see [`Channel`].
    pub fn queue_declare_passive(&self, queue: &str) -> Result<QueueDeclareOk> {
        let method = spec::QueueDeclare { queue: queue_name(queue)?, passive: true, ..Default::default() };
        self.call(&method, QueueDeclareOk::from_method)
    }

    /// Has messages of an exchange routed to a queue.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 when the queue or the exchange does not exist. Those of every call: see
    /// [`Channel`].
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// # channel.exchange_declare(leveret::ExchangeDeclare::new("shop", leveret::ExchangeKind::Topic))?;
    /// use leveret::QueueBind;
    /// channel.queue_bind(QueueBind::new("orders", "shop", "eu.*"))?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn queue_bind<'a>(&self, bind: impl Into<QueueBind<'a>>) -> Result<()> {
        let bind = bind.into();
        let arguments = bind.arguments.encode()?;
        self.call(&bind.method(&arguments, false)?, |method| {
            matches!(method, Method::QueueBindOk(_)).then_some(())
        })
    }

    /// Removes a binding. RabbitMQ does not mind if there is none.
    ///
    /// # Errors
    /// Those of every call: see [`Channel`].
    pub fn queue_unbind<'a>(&self, unbind: impl Into<QueueUnbind<'a>>) -> Result<()> {
        let unbind = unbind.into();
        let arguments = unbind.arguments.encode()?;
        self.call(&unbind.method(&arguments)?, |method| {
            matches!(method, Method::QueueUnbindOk(_)).then_some(())
        })
    }

    /// Deletes the messages that are ready in a queue, and returns how many there were.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 when the queue does not exist. Those of every call: see [`Channel`].
    pub fn queue_purge<'a>(&self, purge: impl Into<QueuePurge<'a>>) -> Result<u32> {
        self.call(&purge.into().method(false)?, |method| match method {
            Method::QueuePurgeOk(ok) => Some(ok.message_count),
            _ => None,
        })
    }

    /// Deletes a queue, and returns how many messages it had. RabbitMQ does not mind if there is none.
    ///
    /// # Errors
    /// [`Error::Refused`]: 406 with `if_unused` or `if_empty` when it is not. Those of every call: see
    /// [`Channel`].
    pub fn queue_delete<'a>(&self, delete: impl Into<QueueDelete<'a>>) -> Result<u32> {
        self.call(&delete.into().method(false)?, |method| match method {
            Method::QueueDeleteOk(ok) => Some(ok.message_count),
            _ => None,
        })
    }
}
