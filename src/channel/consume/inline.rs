//! Inline consumers: handlers on the reader thread, for programs that do next to nothing with a message, very often.

use std::{
    borrow::Cow,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Consume,
    sink::{End, Sink},
};
use crate::{
    channel::{
        Channel, Core,
        acknowledge::{Requeue, Settlement},
        call::Coming,
        delivery::{Delivery, Envelope, Pack, envelope, text},
    },
    connection::{
        batch::{Arrived, Batch, Gathered, Packs},
        outgoing::Urgency,
        state::Recipient,
    },
    error::{Error, HandlerError, HandlerFailure, Result},
    protocol::{properties::BasicProperties, value::FieldTable},
    sync::{Latch, Waiter, lock, waits_never},
};

/// A message in the reader's buffer, as an [`InlineHandler`] gets it.
///
/// It is there for the time of the call only, which the compiler sees to; [`to_owned`](BorrowedDelivery::to_owned)
/// copies it.
///
/// ```compile_fail,E0521
/// # let channel = leveret::Connection::open("amqp://localhost")?.channel()?;
/// use leveret::BorrowedDelivery;
///
/// let (sender, receiver) = std::sync::mpsc::channel();
/// channel.basic_consume_inline("prices", move |delivery: &BorrowedDelivery<'_>| {
///     sender.send(delivery.body())?; // does not compile: it would outlive the call
///     Ok(())
/// })?;
/// # Ok::<(), leveret::Error>(())
/// ```
pub struct BorrowedDelivery<'a> {
    bytes: &'a [u8],
    arrived: &'a Arrived,
    inline: &'a Inline,
    epoch: u32,
}

impl BorrowedDelivery<'_> {
    /// The body.
    pub fn body(&self) -> &[u8] {
        self.arrived.parts.body(self.bytes)
    }

    /// The body as text, whatever its content type says.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is not UTF-8.
    pub fn text(&self) -> Result<&str> {
        text(self.body())
    }

    /// The properties.
    ///
    /// # Errors
    /// [`Error::Malformed`] if they cannot be decoded.
    pub fn properties(&self) -> Result<BasicProperties> {
        Ok(BasicProperties::decode(self.arrived.parts.properties(self.bytes))?)
    }

    /// The headers; empty if there are none.
    ///
    /// # Errors
    /// Those of [`properties`](BorrowedDelivery::properties).
    pub fn headers(&self) -> Result<FieldTable> {
        Ok(self.properties()?.headers.unwrap_or_default())
    }

    /// See [`Delivery::delivery_tag`].
    pub fn delivery_tag(&self) -> u64 {
        self.arrived.delivery_tag
    }

    /// See [`Delivery::redelivered`].
    pub fn redelivered(&self) -> bool {
        self.arrived.redelivered
    }

    /// See [`Delivery::exchange`].
    pub fn exchange(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.envelope().exchange)
    }

    /// See [`Delivery::routing_key`].
    pub fn routing_key(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.envelope().routing_key)
    }

    /// See [`Delivery::routing_key_bytes`].
    pub fn routing_key_bytes(&self) -> &[u8] {
        self.envelope().routing_key
    }

    /// The tag of the consumer.
    pub fn consumer_tag(&self) -> &str {
        &self.inline.tag
    }

    /// A copy that may be kept, and settled later and elsewhere.
    #[must_use]
    pub fn to_owned(&self) -> Delivery {
        let (bytes, parts) = self.arrived.parts.copy_out(self.bytes);
        let Inline { core, no_ack, .. } = self.inline;
        let batch = Arc::new(Batch::of(bytes, Arrived { parts, ..*self.arrived }));
        let pack = Pack { batch, channel: core.clone(), epoch: self.epoch, no_ack: *no_ack };
        Delivery::of(Arc::new(pack), 0)
    }

    /// See [`Delivery::ack`]. **Asynchronous.**
    ///
    /// # Errors
    /// Those of [`Delivery::ack`]; [`Error::WouldDeadlock`] when there is no room in the outgoing buffer.
    pub fn ack(&self) -> Result<()> {
        self.settle(Settlement::Ack { multiple: false })
    }

    /// See [`Delivery::ack_multiple`]; once for many messages it is cheaper than an ack for each. **Asynchronous.**
    ///
    /// # Errors
    /// Those of [`ack`](BorrowedDelivery::ack).
    pub fn ack_multiple(&self) -> Result<()> {
        self.settle(Settlement::Ack { multiple: true })
    }

    /// See [`Delivery::nack`]. **Asynchronous.**
    ///
    /// # Errors
    /// Those of [`ack`](BorrowedDelivery::ack).
    pub fn nack(&self, requeue: Requeue) -> Result<()> {
        self.settle(Settlement::Nack { multiple: false, requeue })
    }

    /// See [`Delivery::nack_multiple`]. **Asynchronous.**
    ///
    /// # Errors
    /// Those of [`ack`](BorrowedDelivery::ack).
    pub fn nack_multiple(&self, requeue: Requeue) -> Result<()> {
        self.settle(Settlement::Nack { multiple: true, requeue })
    }

    /// See [`Delivery::reject`]. **Asynchronous.**
    ///
    /// # Errors
    /// Those of [`ack`](BorrowedDelivery::ack).
    pub fn reject(&self, requeue: Requeue) -> Result<()> {
        self.settle(Settlement::Reject { requeue })
    }

    fn envelope(&self) -> Envelope<'_> {
        envelope(self.arrived.parts.method(self.bytes))
    }

    fn settle(&self, settlement: Settlement) -> Result<()> {
        if self.inline.no_ack {
            return Err(Error::invalid("this delivery came without acknowledgements (no_ack)"));
        }
        self.inline.core.settle(self.delivery_tag(), Some(self.epoch), settlement)
    }
}

impl AsRef<[u8]> for BorrowedDelivery<'_> {
    fn as_ref(&self) -> &[u8] {
        self.body()
    }
}

impl fmt::Debug for BorrowedDelivery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BorrowedDelivery")
            .field("delivery_tag", &self.delivery_tag())
            .field("exchange", &self.exchange())
            .field("routing_key", &self.routing_key())
            .field("redelivered", &self.redelivered())
            .field("body_bytes", &self.body().len())
            .finish_non_exhaustive()
    }
}

/// Handles messages on the connection's reader thread: a closure, a function, or any object with a state of its own. See
/// [`Channel::basic_consume_inline`].
pub trait InlineHandler: Send + 'static {
    /// Handles one message, without waiting for anything. It has to settle the message itself, unless the consumer has
    /// `no_ack`.
    ///
    /// # Errors
    /// Why it could not. The consumer ends with it, as with a panic.
    fn handle(&mut self, delivery: &BorrowedDelivery<'_>) -> Result<(), HandlerError>;
}

impl<F> InlineHandler for F
where
    F: FnMut(&BorrowedDelivery<'_>) -> Result<(), HandlerError> + Send + 'static,
{
    fn handle(&mut self, delivery: &BorrowedDelivery<'_>) -> Result<(), HandlerError> {
        self(delivery)
    }
}

impl Channel {
    /// Starts a consumer whose messages are handled *inline*: on the connection's reader thread, in the reader's own
    /// buffer. Waits until the broker has accepted it.
    ///
    /// It is the fastest way: no queue, no other thread, nothing allocated. And it is the most delicate: while the
    /// handler runs, nothing else is read on the whole connection, no answer and no confirm. So it must be quick; what
    /// takes time belongs into a [`Listener`](crate::Listener).
    ///
    /// - It settles its messages itself; returning `Ok` acks nothing.
    /// - It may ack, nack, reject, publish and begin [deferred](Channel::deferred) calls. These fail with
    ///   [`Error::WouldDeadlock`] when they would have to wait: for room in the outgoing buffer, or because another thread
    ///   is in the middle of a large message on the same channel. So publish on another channel than the consumer's.
    /// - Every call that waits, on whatever handle, fails with [`Error::WouldDeadlock`] before anything is sent. (An
    ///   [`Events`](crate::Events) iterator returns `None` instead.) What is closed when it is dropped (a channel, a
    ///   consumer, a transaction, a connection) is closed by another thread, later.
    /// - If it returns an error or panics, the consumer ends, with [`Error::Handler`]: the message goes back to its queue,
    ///   if it was not settled, and so do those behind it. The failure is reported to the log and to
    ///   [events](crate::Event::HandlerFailed). The connection lives on.
    ///
    /// # Errors
    /// Those of [`basic_consume`](Channel::basic_consume).
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("prices")?;
    /// use leveret::{BorrowedDelivery, Consume};
    ///
    /// let mut bytes = 0;
    /// let consumer = channel.basic_consume_inline(
    ///     Consume::new("prices").no_ack(true),
    ///     move |delivery: &BorrowedDelivery<'_>| {
    ///         bytes += delivery.body().len();
    ///         Ok(())
    ///     },
    /// )?;
    /// # if false {
    /// consumer.wait()?;
    /// # }
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn basic_consume_inline<'a>(
        &self,
        consume: impl Into<Consume<'a>>,
        handler: impl InlineHandler,
    ) -> Result<InlineConsumer> {
        let (consume, handler) = (consume.into(), Box::new(handler));
        self.start_consumer(&consume, |tag| {
            let inline = Arc::new(Inline {
                core: self.core().clone(),
                tag: tag.into(),
                no_ack: consume.no_ack,
                handler: Mutex::new(Slot::Here(handler)),
                cancel_sent: AtomicBool::new(false),
                ended: Latch::default(),
            });
            self.core().add_consumer(Sink::Inline(inline.clone()))?;
            Ok(InlineConsumer { inline, timeout: self.timeout })
        })
    }
}

/// A consumer whose messages are handled on the reader thread; see [`Channel::basic_consume_inline`].
///
/// Dropping it cancels it and waits for the broker's answer, at most [`drop_timeout`](crate::Config::drop_timeout); the
/// handler is dropped then. It does not keep its channel open.
#[must_use = "dropping it cancels the consumer"]
pub struct InlineConsumer {
    inline: Arc<Inline>,
    timeout: Duration,
}

impl InlineConsumer {
    /// The tag that the consumer has on its channel.
    pub fn consumer_tag(&self) -> &str {
        &self.inline.tag
    }

    /// Stops the consumer and waits for the broker's answer; by then everything that was delivered has been handled.
    ///
    /// # Errors
    /// Those of every call: see [`Channel`].
    pub fn cancel(&self) -> Result<()> {
        self.inline.cancel(self.timeout)
    }

    /// Waits until the consumer has ended; `Ok` if the program cancelled it. **Waits without a limit**; see
    /// [`wait_timeout`](InlineConsumer::wait_timeout).
    ///
    /// # Errors
    /// - [`Error::Handler`]: the handler failed.
    /// - [`Error::CancelledByServer`], or what the channel or the connection was lost or closed for.
    /// - [`Error::WouldDeadlock`] to an inline handler.
    pub fn wait(&self) -> Result<()> {
        match self.inline.ended.wait(None) {
            Ok(ended) => ended,
            Err(why) => Err(why.forbidden().unwrap_or(Error::WouldDeadlock)),
        }
    }

    /// Like [`wait`](InlineConsumer::wait), for at most `timeout`; `None` when it has not ended.
    #[must_use = "says whether and why the consumer ended"]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<()>> {
        match self.inline.ended.wait(Instant::now().checked_add(timeout)) {
            Ok(ended) => Some(ended),
            Err(why) => why.forbidden().map(Err),
        }
    }

    /// The consumer has ended. **Does not wait.**
    pub fn has_ended(&self) -> bool {
        self.inline.ended.get().is_some()
    }
}

impl Drop for InlineConsumer {
    fn drop(&mut self) {
        let (inline, limit) = (self.inline.clone(), self.inline.core.connection.limits.drop_timeout);
        let leave = move || {
            if let Err(error) = inline.cancel(limit) {
                if let Error::Cancelled = error {
                    return Some(inline);
                }
                log::debug!(target: "leveret::channel", "cancelling {} on drop: {error}", inline.tag);
                // Nobody comes back for it. So it may go beyond the limit.
                if !inline.cancel_sent.load(Ordering::SeqCst) {
                    let _ = inline.begin_cancel(Duration::ZERO, Urgency::Writer);
                }
            }
            // Also without an answer, the handler is not called any more.
            inline.end(End::Cancelled);
            None
        };
        let errands = &self.inline.core.connection.errands;
        if waits_never() {
            errands.leave(move || drop(leave()));
        } else if let Some(inline) = leave() {
            // A coroutine that may not wait any more.
            errands.leave(move || {
                let _ = inline.cancel(limit);
                inline.end(End::Cancelled);
            });
        }
    }
}

impl fmt::Debug for InlineConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InlineConsumer").field("consumer_tag", &self.consumer_tag()).finish_non_exhaustive()
    }
}

/// A whole batch at once, so that the handler itself is called without indirection.
trait Batches: Send {
    /// Handles the messages of a batch, counting those that were dealt with.
    fn handle(
        &mut self,
        inline: &Inline,
        epoch: u32,
        batch: &Batch,
        dealt_with: &mut usize,
    ) -> Result<(), HandlerError>;
}

impl<H: InlineHandler> Batches for H {
    fn handle(
        &mut self,
        inline: &Inline,
        epoch: u32,
        batch: &Batch,
        dealt_with: &mut usize,
    ) -> Result<(), HandlerError> {
        for arrived in &batch.deliveries {
            InlineHandler::handle(self, &BorrowedDelivery { bytes: batch.bytes(), arrived, inline, epoch })?;
            *dealt_with += 1;
        }
        Ok(())
    }
}

/// What the channel knows of an inline consumer.
pub(in crate::channel) struct Inline {
    core: Arc<Core>,
    pub(super) tag: Arc<str>,
    pub(super) no_ack: bool,
    /// Taken out by the reader while it runs, so that no lock is held meanwhile.
    handler: Mutex<Slot>,
    /// The broker was asked to send no more.
    cancel_sent: AtomicBool,
    ended: Latch<Result<()>>,
}

enum Slot {
    Here(Box<dyn Batches>),
    /// It runs.
    Out,
    /// It is never called again.
    Ended,
}

impl Recipient for Inline {
    fn deliver(&self, epoch: u32, gathered: &mut Gathered, _: &mut Packs, woken: &mut Vec<Waiter>) {
        // Nobody's wake-up has to wait for a handler.
        woken.drain(..).for_each(Waiter::wake);
        self.handle(epoch, gathered.batch());
    }
}

impl Inline {
    /// The reader's: handles what has come.
    fn handle(&self, epoch: u32, batch: &Batch) {
        let mut slot = lock(&self.handler);
        let mut handler = match std::mem::replace(&mut *slot, Slot::Out) {
            Slot::Here(handler) => handler,
            other => {
                *slot = other;
                drop(slot);
                return self.give_back(epoch, &batch.deliveries);
            }
        };
        drop(slot);
        let busy = self.core.connection.incoming.busy();
        let mut dealt_with = 0;
        let handled =
            panic::catch_unwind(AssertUnwindSafe(|| handler.handle(self, epoch, batch, &mut dealt_with)));
        drop(busy);
        let failure = match handled {
            Ok(Ok(())) => return self.put_back(handler),
            Ok(Err(error)) => HandlerFailure::error(&self.tag, tag_of(batch, dealt_with), error),
            Err(panic) => HandlerFailure::panic(&self.tag, tag_of(batch, dealt_with), &*panic),
        };
        self.fail(Arc::new(failure));
        self.give_back(epoch, batch.deliveries.get(dealt_with..).unwrap_or_default());
        self.retire(Some(handler));
    }

    fn put_back(&self, handler: Box<dyn Batches>) {
        let mut slot = lock(&self.handler);
        if let Slot::Out = *slot {
            *slot = Slot::Here(handler);
            return;
        }
        drop(slot);
        self.retire(Some(handler));
    }

    /// The handler has failed: the broker is asked to cancel the consumer, which keeps its place until it has, so that
    /// what still comes can be given back.
    fn fail(&self, failure: Arc<HandlerFailure>) {
        self.core.report_failure(&failure);
        if let Err(error) = self.begin_cancel(Duration::ZERO, Urgency::Writer) {
            log::warn!(target: "leveret::channel", "cannot cancel {}: {error}", self.tag);
        }
        // Before the handler is dropped, whatever that does.
        self.ended.put(Err(Error::Handler(failure)));
    }

    /// What no handler has dealt with goes back, unless it is settled.
    fn give_back(&self, epoch: u32, deliveries: &[Arrived]) {
        if !self.no_ack && !deliveries.is_empty() {
            self.core.give_back_late(&self.tag, &self.cancel_sent, epoch, deliveries);
        }
    }

    pub(super) fn end(&self, end: End) {
        self.retire(None);
        self.ended.put(match end {
            End::Cancelled => Ok(()),
            End::CancelledByServer => Err(Error::CancelledByServer { consumer_tag: self.tag.clone() }),
            End::Lost(cause) => Err(cause),
        });
    }

    /// Drops the handler, which is code of the program, under no lock.
    fn retire(&self, taken_out: Option<Box<dyn Batches>>) {
        let slot = std::mem::replace(&mut *lock(&self.handler), Slot::Ended);
        if panic::catch_unwind(AssertUnwindSafe(|| drop((taken_out, slot)))).is_err() {
            log::error!(target: "leveret::handler", "dropping the handler of {:?} panicked", self.tag);
        }
    }

    pub(super) fn cancel(self: &Arc<Inline>, limit: Duration) -> Result<()> {
        // After a failure it has been asked for already.
        if self.ended.get().is_some() || !self.core.has_consumer(&Sink::Inline(self.clone())) {
            return Ok(());
        }
        let core = &self.core;
        let deadline = Instant::now().checked_add(limit);
        let _awaiting = core.connection.incoming.awaiting()?;
        let coming = self.begin_cancel(limit, Urgency::Caller)?;
        core.wait_cancelled(&coming, limit, deadline)
    }

    pub(super) fn begin_cancel(&self, limit: Duration, urgency: Urgency) -> Result<Coming> {
        self.core.begin_cancel(&self.tag, &self.cancel_sent, limit, urgency)
    }
}

fn tag_of(batch: &Batch, place: usize) -> u64 {
    batch.deliveries.get(place).map_or(0, |arrived| arrived.delivery_tag)
}
