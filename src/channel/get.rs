//! Fetching one message at a time, and how many may be outstanding.

use std::sync::Arc;

use super::{
    Channel, Core,
    call::{Answer, Expected, unexpected_answer},
    delivery::{Delivery, Pack},
};
use crate::{
    connection::batch::{Arrived, Batch},
    error::Result,
    protocol::{
        spec::{BasicGet, BasicQos, Encode, Method},
        wire::ShortStr,
    },
};

/// Arguments of [`Channel::basic_get`]. A bare queue name converts into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Get<'a> {
    /// The queue.
    pub queue: &'a str,
    /// The message counts as dealt with when it is sent. Default: no; it has to be acked.
    pub no_ack: bool,
}

impl<'a> Get<'a> {
    /// From this queue, with an ack to follow.
    pub fn new(queue: &'a str) -> Get<'a> {
        Get { queue, no_ack: false }
    }

    /// Sets [`no_ack`](Get#structfield.no_ack).
    pub fn no_ack(mut self, no_ack: bool) -> Get<'a> {
        self.no_ack = no_ack;
        self
    }
}

impl<'a> From<&'a str> for Get<'a> {
    fn from(queue: &'a str) -> Get<'a> {
        Get::new(queue)
    }
}

impl<'a> From<&'a String> for Get<'a> {
    fn from(queue: &'a String) -> Get<'a> {
        Get::new(queue)
    }
}

/// Arguments of [`Channel::basic_qos`]. A bare count converts into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Qos {
    /// How many deliveries may be outstanding; 0 is no limit.
    pub prefetch_count: u16,
    /// The same in bytes. RabbitMQ closes the connection for anything but 0 (540). Default: 0.
    pub prefetch_size: u32,
    /// RabbitMQ: the count is for the whole channel instead of for each consumer that is started later; other
    /// brokers: for the whole connection. Default: no.
    pub global: bool,
}

impl Qos {
    /// So many deliveries for each consumer.
    pub fn new(prefetch_count: u16) -> Qos {
        Qos { prefetch_count, prefetch_size: 0, global: false }
    }

    /// Sets [`prefetch_size`](Qos#structfield.prefetch_size).
    pub fn prefetch_size(mut self, bytes: u32) -> Qos {
        self.prefetch_size = bytes;
        self
    }

    /// Sets [`global`](Qos#structfield.global).
    pub fn global(mut self, global: bool) -> Qos {
        self.global = global;
        self
    }
}

impl From<u16> for Qos {
    fn from(prefetch_count: u16) -> Qos {
        Qos::new(prefetch_count)
    }
}

impl Channel {
    /// Fetches one message; `None` when the queue is empty. To get many, [`basic_consume`](Channel::basic_consume)
    /// is cheaper by far.
    ///
    /// A message that comes after the time is over goes back to its queue; with [`no_ack`](Get#structfield.no_ack) it is
    /// lost. RabbitMQ closes the connection when the queue is a stream (540).
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) with 404 for a queue that does not exist; those of every
    /// call: see [`Channel`].
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// # channel.basic_publish("", "orders", "order 7")?;
    /// while let Some(message) = channel.basic_get("orders")? {
    ///     println!("{} ({} left)", message.text()?, message.message_count().unwrap_or(0));
    ///     message.ack()?;
    /// }
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn basic_get<'a>(&self, get: impl Into<Get<'a>>) -> Result<Option<Delivery>> {
        self.get(&get.into())
    }

    fn get(&self, get: &Get<'_>) -> Result<Option<Delivery>> {
        let queue = ShortStr::new("the queue name", get.queue)?;
        let method = BasicGet { queue, no_ack: get.no_ack, ..Default::default() };
        let core = self.core();
        // Taken before: should the channel be opened again meanwhile, the message is at worst not settled.
        let epoch = core.lock().epoch;
        let expects = Expected::message(method.replies(), !get.no_ack);
        let content = match core.call_expecting(expects, self.timeout, &method)?? {
            Answer::Method(_) => return Ok(None),
            Answer::Content(fetched) => fetched.take(),
        };
        let Ok(Method::BasicGetOk(ok)) = Method::decode(content.parts.method(&content.bytes)) else {
            return Err(unexpected_answer());
        };
        let arrived =
            Arrived { parts: content.parts, delivery_tag: ok.delivery_tag, redelivered: ok.redelivered };
        if get.no_ack {
            core.lock().unacked.remove(arrived.delivery_tag);
        }
        let batch = Arc::new(Batch::of(content.bytes, arrived));
        let pack = Pack { batch, channel: core.clone(), epoch, no_ack: get.no_ack };
        Ok(Some(Delivery::of(Arc::new(pack), 0)))
    }

    /// Limits how many deliveries may be outstanding, that is delivered and not settled.
    ///
    /// Without this call, [`prefetch`](crate::Config::prefetch) is set when the first consumer with
    /// acknowledgements is started.
    ///
    /// # Errors
    /// Those of every call: see [`Channel`].
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// channel.basic_qos(1)?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn basic_qos(&self, qos: impl Into<Qos>) -> Result<()> {
        let Qos { prefetch_count, prefetch_size, global } = qos.into();
        self.call(&BasicQos { prefetch_size, prefetch_count, global }, |method| {
            matches!(method, Method::BasicQosOk(_)).then_some(())
        })?;
        self.core().lock().prefetch_is_set = true;
        Ok(())
    }
}

impl Core {
    /// The reader's: a message that somebody fetches is outstanding from now on.
    pub(super) fn got(&self, delivery_tag: u64) {
        self.lock().unacked.insert(delivery_tag);
    }
}
