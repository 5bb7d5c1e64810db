//! Messages as they come from the broker.

use std::{borrow::Cow, fmt, sync::Arc};

use super::{
    Core,
    acknowledge::{Requeue, Settlement},
};
use crate::{
    connection::batch::{Arrived, Batch},
    error::{Error, Result},
    protocol::{content::Parts, properties::BasicProperties, spec::Method, value::FieldTable},
};

/// A message from the broker.
///
/// Cheap to clone, and to send to another thread: clones share the bytes, and the message is settled
/// ([`ack`](Delivery::ack), [`nack`](Delivery::nack), [`reject`](Delivery::reject)) through any of them,
/// once. Names and properties are decoded when they are asked for.
///
/// Small messages share a buffer of up to about 16 KiB with their neighbours, and those of 64 KiB and more the buffer of
/// 1 MiB that they were read into; a program that keeps a few for long takes them out with
/// [`into_body`](Delivery::into_body).
#[derive(Clone)]
pub struct Delivery {
    pack: Arc<Pack>,
    /// Which of the deliveries of the batch it is.
    place: usize,
}

/// Messages that came together.
pub(super) struct Pack {
    pub(super) batch: Arc<Batch>,
    pub(super) channel: Arc<Core>,
    pub(super) epoch: u32,
    pub(super) no_ack: bool,
}

/// There is always a delivery at its place.
static NOTHING: Arrived = Arrived { parts: Parts::NONE, delivery_tag: 0, redelivered: false };

/// The names in a delivery, borrowed from its bytes.
#[derive(Default)]
pub(super) struct Envelope<'a> {
    pub(super) consumer_tag: &'a [u8],
    pub(super) exchange: &'a [u8],
    pub(super) routing_key: &'a [u8],
    message_count: Option<u32>,
}

impl Delivery {
    /// The one at this place of the batch.
    pub(super) fn of(pack: Arc<Pack>, place: usize) -> Delivery {
        Delivery { pack, place }
    }

    #[inline]
    fn arrived(&self) -> &Arrived {
        self.pack.batch.deliveries.get(self.place).unwrap_or(&NOTHING)
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        self.arrived().parts.body(self.pack.batch.bytes())
    }

    /// The body, taken out of the buffer that it shares with other messages.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        self.body().to_vec()
    }

    /// The body as text, whatever its content type says.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is not UTF-8; [`body`](Delivery::body) has the bytes, and the delivery can be
    /// rejected.
    pub fn text(&self) -> Result<&str> {
        text(self.body())
    }

    /// The properties.
    ///
    /// # Errors
    /// [`Error::Malformed`] if they cannot be decoded. The body, and the tag to reject the message with, are
    /// not affected.
    pub fn properties(&self) -> Result<BasicProperties> {
        Ok(BasicProperties::decode(self.arrived().parts.properties(self.pack.batch.bytes()))?)
    }

    /// The headers; empty if there are none.
    ///
    /// # Errors
    /// Those of [`properties`](Delivery::properties).
    pub fn headers(&self) -> Result<FieldTable> {
        Ok(self.properties()?.headers.unwrap_or_default())
    }

    /// The number that the broker gave this delivery, counted from 1 on each channel.
    pub fn delivery_tag(&self) -> u64 {
        self.arrived().delivery_tag
    }

    /// The message was delivered before and not acknowledged, to this or another consumer.
    pub fn redelivered(&self) -> bool {
        self.arrived().redelivered
    }

    /// The exchange that the message was published to; empty for the default exchange. Bytes that are not
    /// UTF-8 are replaced.
    pub fn exchange(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.envelope().exchange)
    }

    /// The routing key that it was published with. Bytes that are not UTF-8 are replaced.
    pub fn routing_key(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.envelope().routing_key)
    }

    /// The routing key's bytes, which need not be UTF-8.
    pub fn routing_key_bytes(&self) -> &[u8] {
        self.envelope().routing_key
    }

    /// The tag of the consumer that it was delivered to; empty for the result of
    /// [`basic_get`](crate::Channel::basic_get).
    pub fn consumer_tag(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.envelope().consumer_tag)
    }

    /// How many messages were left in the queue; only known for the result of
    /// [`basic_get`](crate::Channel::basic_get).
    pub fn message_count(&self) -> Option<u32> {
        self.envelope().message_count
    }

    fn envelope(&self) -> Envelope<'_> {
        envelope(self.arrived().parts.method(self.pack.batch.bytes()))
    }

    /// Tells the broker that the message is dealt with. **Asynchronous: does not wait for the broker**, only
    /// for room in the outgoing buffer, at most [`call_timeout`](crate::Config::call_timeout).
    ///
    /// # Errors
    /// - [`Error::Settled`]: it was settled before, or its channel has been opened again since. Nothing was
    ///   sent.
    /// - [`Error::Invalid`]: it came without acknowledgements (`no_ack`).
    /// - The reason why the channel or the connection is closed.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// # channel.basic_publish("", "orders", "order 7")?;
    /// for delivery in channel.basic_consume("orders")? {
    ///     let delivery = delivery?;
    ///     println!("{}", delivery.text()?);
    ///     delivery.ack()?;
    /// #     break;
    /// }
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn ack(&self) -> Result<()> {
        self.settle(Settlement::Ack { multiple: false })
    }

    /// Like [`ack`](Delivery::ack), for this delivery and all before it on the channel that are not settled.
    ///
    /// # Errors
    /// Those of [`ack`](Delivery::ack).
    pub fn ack_multiple(&self) -> Result<()> {
        self.settle(Settlement::Ack { multiple: true })
    }

    /// Tells the broker that the message could not be dealt with: it is delivered again, or dropped or
    /// dead-lettered by the queue. **Asynchronous**, like [`ack`](Delivery::ack).
    ///
    /// # Errors
    /// Those of [`ack`](Delivery::ack).
    pub fn nack(&self, requeue: Requeue) -> Result<()> {
        self.settle(Settlement::Nack { multiple: false, requeue })
    }

    /// Like [`nack`](Delivery::nack), for this delivery and all before it on the channel that are not
    /// settled.
    ///
    /// # Errors
    /// Those of [`ack`](Delivery::ack).
    pub fn nack_multiple(&self, requeue: Requeue) -> Result<()> {
        self.settle(Settlement::Nack { multiple: true, requeue })
    }

    /// The specification's own form of [`nack`](Delivery::nack), which every broker knows. **Asynchronous**.
    ///
    /// # Errors
    /// Those of [`ack`](Delivery::ack).
    pub fn reject(&self, requeue: Requeue) -> Result<()> {
        self.settle(Settlement::Reject { requeue })
    }

    fn settle(&self, settlement: Settlement) -> Result<()> {
        if self.pack.no_ack {
            return Err(Error::invalid("this delivery came without acknowledgements (no_ack)"));
        }
        self.pack.channel.settle(self.delivery_tag(), Some(self.pack.epoch), settlement)
    }
}

/// The names that a delivery's method says.
pub(super) fn envelope(method: &[u8]) -> Envelope<'_> {
    match Method::decode(method) {
        Ok(Method::BasicDeliver(deliver)) => Envelope {
            consumer_tag: deliver.consumer_tag.bytes(),
            exchange: deliver.exchange.bytes(),
            routing_key: deliver.routing_key.bytes(),
            message_count: None,
        },
        Ok(Method::BasicGetOk(ok)) => Envelope {
            exchange: ok.exchange.bytes(),
            routing_key: ok.routing_key.bytes(),
            message_count: Some(ok.message_count),
            ..Envelope::default()
        },
        // The reader decoded it before.
        _ => Envelope::default(),
    }
}

/// A body as text.
///
/// # Errors
/// [`Error::Malformed`] if it is not UTF-8.
pub(super) fn text(body: &[u8]) -> Result<&str> {
    std::str::from_utf8(body)
        .map_err(|error| Error::malformed(format!("the body is not UTF-8 text: {error}")))
}

impl AsRef<[u8]> for Delivery {
    fn as_ref(&self) -> &[u8] {
        self.body()
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("delivery_tag", &self.delivery_tag())
            .field("exchange", &self.exchange())
            .field("routing_key", &self.routing_key())
            .field("redelivered", &self.redelivered())
            .field("body_bytes", &self.body().len())
            .finish_non_exhaustive()
    }
}
