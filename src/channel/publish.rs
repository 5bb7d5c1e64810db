//! Publishing.

use std::{
    cell::{Cell, OnceCell},
    time::{Duration, Instant},
};

use super::{
    Channel, Core,
    confirm::Place,
    tracker::{Fingerprint, Numbered},
};
use crate::{
    connection::outgoing::{Kind, Push, Urgency},
    error::{Error, Result, Timeout},
    protocol::{
        content::{write_body, write_header, write_plain},
        frame::{self, write_method},
        properties::BasicProperties,
        spec::BasicPublish,
        wire::ShortStr,
    },
    sync::{on_a_thread, waits_never},
};

/// Bodies from this size on are written from the caller's slice instead of being copied into the outgoing
/// buffer. Below, a copy is cheaper than a system call for a single message.
const LARGE: usize = 32 * 1024;

/// What a publisher waits for, as an error calls it.
const PUBLISHING: &str = "publishing";

/// A message to publish. A bare body converts into it: anything that is bytes or text.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct Publish<'a> {
    /// The body.
    pub body: &'a [u8],
    /// The properties. Default: none.
    pub properties: Option<&'a BasicProperties>,
    /// A message that matches no queue comes back ([`Channel::returns`]) instead of being dropped. Default: no.
    pub mandatory: bool,
    /// A message that finds no consumer waiting comes back. RabbitMQ closes the connection for it (540), so it is
    /// refused unless [`allow_immediate`](crate::Config::allow_immediate) is set. Default: no.
    pub immediate: bool,
}

impl<'a> Publish<'a> {
    /// A message without properties.
    pub fn new<B: AsRef<[u8]> + ?Sized>(body: &'a B) -> Publish<'a> {
        Publish { body: body.as_ref(), properties: None, mandatory: false, immediate: false }
    }

    /// Sets [`properties`](Publish#structfield.properties).
    pub fn properties(mut self, properties: &'a BasicProperties) -> Publish<'a> {
        self.properties = Some(properties);
        self
    }

    /// Sets [`mandatory`](Publish#structfield.mandatory).
    pub fn mandatory(mut self, mandatory: bool) -> Publish<'a> {
        self.mandatory = mandatory;
        self
    }

    /// Sets [`immediate`](Publish#structfield.immediate).
    pub fn immediate(mut self, immediate: bool) -> Publish<'a> {
        self.immediate = immediate;
        self
    }
}

impl<'a, B: AsRef<[u8]> + ?Sized> From<&'a B> for Publish<'a> {
    fn from(body: &'a B) -> Publish<'a> {
        Publish::new(body)
    }
}

/// What is known to fit the wire.
pub(super) struct Checked<'a> {
    method: BasicPublish<'a>,
    message: Publish<'a>,
}

impl Channel {
    /// Publishes a message. **Asynchronous: does not wait for the broker.** Returns once the message is in the
    /// outgoing buffer or in the socket; waits for room there at most
    /// [`publish_timeout`](crate::Config::publish_timeout).
    ///
    /// An error that the broker sends back (404 for a missing exchange) is returned by a later call, or by
    /// [`close`](Channel::close). What was accepted is sent before the channel or connection is closed.
    ///
    /// # Errors
    /// - [`Error::Invalid`]: a name is over 255 bytes, or the headers do not fit a frame. Nothing was sent and
    ///   the channel stays usable.
    /// - [`Error::Timeout`]: there was no room in time; nothing was sent. If the message is larger than a
    ///   frame and a part of it had been sent, the connection is lost as well: half a message cannot be
    ///   taken back.
    /// - The reason why the channel or the connection is closed.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// # channel.exchange_declare(leveret::ExchangeDeclare::new("shop", leveret::ExchangeKind::Topic))?;
    /// use leveret::{BasicProperties, Publish};
    ///
    /// channel.basic_publish("", "orders", "a text, or bytes")?;
    ///
    /// let properties = BasicProperties::new().persistent().content_type("text/plain");
    /// channel.basic_publish("shop", "eu.new", Publish::new("order 7").properties(&properties))?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn basic_publish<'a>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Publish<'a>>,
    ) -> Result<()> {
        self.core().publish(&Checked::new(exchange, routing_key, message.into())?, false).map(drop)
    }

    /// Like [`basic_publish`](Channel::basic_publish), but **never waits**: when there is no room in the
    /// outgoing buffer nothing is sent.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when there is no room, and those of [`basic_publish`](Channel::basic_publish)
    /// except for the timeout.
    pub fn try_publish<'a>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Publish<'a>>,
    ) -> Result<()> {
        self.core().try_publish(&Checked::new(exchange, routing_key, message.into())?)
    }
}

impl<'a> Checked<'a> {
    #[inline]
    pub(super) fn new(exchange: &'a str, routing_key: &'a str, message: Publish<'a>) -> Result<Checked<'a>> {
        let exchange = ShortStr::new("the exchange name", exchange)?;
        let routing_key = ShortStr::new("the routing key", routing_key)?;
        let Publish { mandatory, immediate, .. } = message;
        let method = BasicPublish { exchange, routing_key, mandatory, immediate, ..Default::default() };
        Ok(Checked { method, message })
    }

    pub(super) fn is_mandatory(&self) -> bool {
        self.method.mandatory || self.method.immediate
    }

    /// Of exchange, routing key, properties and body, as they would come back.
    pub(super) fn fingerprint(&self) -> Result<Fingerprint> {
        let mut properties = Vec::new();
        self.message.properties.unwrap_or(&BasicProperties::new()).encode(&mut properties)?;
        let BasicPublish { exchange, routing_key, .. } = self.method;
        Ok(Fingerprint::of(exchange.bytes(), routing_key.bytes(), &properties, self.message.body))
    }

    #[inline]
    fn write_head(&self, out: &mut Vec<u8>, channel: u16, max_frame: usize) -> Result<()> {
        write_method(out, channel, max_frame, &self.method)?;
        write_header(out, channel, max_frame, self.message.body.len(), self.message.properties)
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>, channel: u16, max_frame: usize) -> Result<()> {
        if self.message.properties.is_none() && self.message.body.len() + frame::OVERHEAD <= max_frame {
            write_plain(out, channel, &self.method, self.message.body);
            return Ok(());
        }
        self.write_head(out, channel, max_frame)?;
        write_body(out, channel, max_frame, self.message.body);
        Ok(())
    }
}

impl Core {
    /// Publishes, and returns the number of the publish in confirm mode.
    pub(super) fn publish(&self, message: &Checked<'_>, watched: bool) -> Result<Numbered> {
        self.check_immediate(message)?;
        let limit = self.connection.limits.publish_timeout;
        // One for all that it may have to wait for: from the first wait on.
        let until = OnceCell::new();
        let deadline = || *until.get_or_init(|| Instant::now().checked_add(limit));
        let mut place = self.place(message, watched, deadline)?;
        if message.message.body.len() >= LARGE && !waits_never() {
            return self.publish_large(message, &mut place, limit, deadline());
        }
        // Looked at when it has to wait. What ends the wait may stand behind deliveries that fill our buffer:
        // meanwhile they are read.
        let awaiting = Cell::new(None);
        let deadline = || {
            awaiting.set(self.connection.incoming.awaiting().ok());
            deadline()
        };
        let outgoing = &self.connection.outgoing;
        let mut numbered = Numbered::default();
        let pushed = outgoing.push_within(&self.gate, Kind::Content, deadline, |out, channel| {
            message.write(out, channel, outgoing.max_frame())?;
            numbered = self.confirms.number(&mut place);
            Ok(())
        })?;
        self.outcome(pushed, PUBLISHING, limit).map(|()| numbered)
    }

    fn publish_large(
        &self,
        message: &Checked<'_>,
        place: &mut Option<Place<'_>>,
        limit: Duration,
        deadline: Option<Instant>,
    ) -> Result<Numbered> {
        let outgoing = &self.connection.outgoing;
        let mut numbered = Numbered::default();
        // As above.
        let _awaiting = self.connection.incoming.awaiting()?;
        let pushed = outgoing.push_large(
            &self.gate,
            message.message.body,
            deadline,
            |out, channel| message.write_head(out, channel, outgoing.max_frame()),
            &mut || numbered = self.confirms.number(place),
        )?;
        if pushed == Push::HalfSent {
            let error = Error::timeout(Timeout::HALF_SENT, limit);
            // Deep, in places.
            let (connection, cause) = (self.connection.clone(), error.clone());
            let _ = on_a_thread("leveret-close", move || connection.fail(cause));
            return Err(error);
        }
        self.outcome(pushed, PUBLISHING, limit).map(|()| numbered)
    }

    fn try_publish(&self, message: &Checked<'_>) -> Result<()> {
        self.check_immediate(message)?;
        let outgoing = &self.connection.outgoing;
        let now = || Some(Instant::now());
        let mut place = match self.place(message, false, now) {
            Err(Error::Timeout(_) | Error::Blocked { .. }) => return Err(Error::WouldBlock),
            place => place?,
        };
        let pushed = outgoing.push(&self.gate, Kind::Content, Urgency::Stream, None, |out, channel| {
            message.write(out, channel, outgoing.max_frame())?;
            self.confirms.number(&mut place);
            Ok(())
        })?;
        match pushed {
            Push::Accepted { flush } => {
                if flush {
                    outgoing.flush_stream_now();
                }
                Ok(())
            }
            Push::Later | Push::HalfSent => Err(Error::WouldBlock),
            Push::Shut => Err(self.why_shut()),
        }
    }

    fn check_immediate(&self, message: &Checked<'_>) -> Result<()> {
        if message.method.immediate && !self.connection.limits.allow_immediate {
            return Err(Error::invalid(
                "immediate: RabbitMQ closes the connection for it (540); set allow_immediate for other brokers",
            ));
        }
        Ok(())
    }
}
