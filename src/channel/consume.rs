//! Consumers: an iterator over what the broker delivers.
//!
//! The reader puts batches into a consumer's [`DeliveryQueue`]; the [`Consumer`] takes all that is there at
//! once, so that most messages cost neither a lock nor a wake-up.

mod control;
mod inline;
mod leaving;
mod queue;
mod sink;

pub(crate) use control::Control;
pub use inline::{BorrowedDelivery, InlineConsumer, InlineHandler};
pub(super) use queue::DeliveryQueue;
pub(super) use sink::{End, Sink};

use std::{
    collections::VecDeque,
    fmt, mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Channel, call::Expected, delivery::Delivery, get::Qos};
use crate::{
    error::{Error, Result},
    protocol::{
        frame::write_method,
        spec::{BasicCancel, BasicConsume, Encode},
        value::{FieldTable, FieldValue},
        wire::{ShortStr, Table},
    },
    sync::{GivenUp, Waiter, may_wait},
};
use leaving::Leaving;
use queue::{Queued, Taken};

/// Arguments of [`Channel::basic_consume`]. A bare queue name converts into it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct Consume<'a> {
    /// The queue.
    pub queue: &'a str,
    /// The consumer's tag, unique on the channel. Default: one is generated.
    pub consumer_tag: Option<&'a str>,
    /// No messages that were published on this connection (RabbitMQ ignores it). Default: no.
    pub no_local: bool,
    /// Messages count as dealt with when they are sent. Default: no; they have to be acked.
    pub no_ack: bool,
    /// No other consumer on this queue. Default: no.
    pub exclusive: bool,
    /// Further arguments.
    pub arguments: FieldTable,
}

impl<'a> Consume<'a> {
    /// From this queue, with acknowledgements.
    pub fn new(queue: &'a str) -> Consume<'a> {
        Consume {
            queue,
            consumer_tag: None,
            no_local: false,
            no_ack: false,
            exclusive: false,
            arguments: FieldTable::new(),
        }
    }

    /// Sets [`consumer_tag`](Consume#structfield.consumer_tag).
    pub fn consumer_tag(mut self, tag: &'a str) -> Consume<'a> {
        self.consumer_tag = Some(tag);
        self
    }

    /// Sets [`no_local`](Consume#structfield.no_local).
    pub fn no_local(mut self, no_local: bool) -> Consume<'a> {
        self.no_local = no_local;
        self
    }

    /// Sets [`no_ack`](Consume#structfield.no_ack).
    pub fn no_ack(mut self, no_ack: bool) -> Consume<'a> {
        self.no_ack = no_ack;
        self
    }

    /// Sets [`exclusive`](Consume#structfield.exclusive).
    pub fn exclusive(mut self, exclusive: bool) -> Consume<'a> {
        self.exclusive = exclusive;
        self
    }

    /// Adds one argument.
    pub fn argument(mut self, name: &str, value: impl Into<FieldValue>) -> Consume<'a> {
        self.arguments.insert(name, value);
        self
    }

    /// Consumers with a higher priority are served first (`x-priority`).
    pub fn priority(self, priority: i32) -> Consume<'a> {
        self.argument("x-priority", priority)
    }

    /// Where to begin in a stream (`x-stream-offset`): a number, or text such as `first`, `last`, `next` or
    /// `1h`. Streams need a prefetch count and acknowledgements.
    pub fn stream_offset(self, offset: impl Into<FieldValue>) -> Consume<'a> {
        self.argument("x-stream-offset", offset)
    }
}

impl<'a> From<&'a str> for Consume<'a> {
    fn from(queue: &'a str) -> Consume<'a> {
        Consume::new(queue)
    }
}

impl<'a> From<&'a String> for Consume<'a> {
    fn from(queue: &'a String) -> Consume<'a> {
        Consume::new(queue)
    }
}

/// The deliveries of one consumer: an iterator that waits for the next one.
///
/// It ends with `None` after [`cancel`](Consumer::cancel). When the broker cancels the consumer, or the channel
/// or connection is lost, the reason is returned once, as an error, and then it ends.
///
/// Dropping it cancels the consumer and waits for the broker's answer, at most
/// [`drop_timeout`](crate::Config::drop_timeout); deliveries that it had not yet returned go back to their
/// queue. Those that it had returned stay to be settled.
///
/// It may be used from another thread than its channel. It does not keep its channel open: when the last handle of
/// the channel is dropped, it ends with [`Error::Closed`].
pub struct Consumer {
    queue: Arc<DeliveryQueue>,
    /// What was taken from the queue and not returned yet.
    taken: VecDeque<Queued>,
    timeout: Duration,
}

impl Channel {
    /// Starts a consumer on a queue. Waits until the broker has accepted it.
    ///
    /// On a channel where [`basic_qos`](Channel::basic_qos) was not called,
    /// [`prefetch`](crate::Config::prefetch) is set first (unless the consumer has `no_ack`).
    ///
    /// Messages that nobody takes are held in memory up to
    /// [`incoming_buffer`](crate::Config::incoming_buffer) for the whole connection. Beyond that the
    /// connection is not read any more until some are taken, or until a call waits for its answer.
    ///
    /// # Errors
    /// - [`Error::Invalid`]: the tag is in use on this channel, or a name is too long. Nothing was sent.
    /// - [`Error::Refused`]: 404 for a queue that does not exist, 403 when it is consumed exclusively.
    /// - Those of every call: see [`Channel`].
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// # channel.basic_publish("", "orders", "order 7")?;
    /// use std::time::Duration;
    /// use leveret::Consume;
    ///
    /// let mut consumer = channel.basic_consume(Consume::new("orders").consumer_tag("billing-1"))?;
    /// while let Some(delivery) = consumer.next_timeout(Duration::from_secs(5))? {
    ///     delivery.ack()?;
    /// #     break;
    /// }
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn basic_consume<'a>(&self, consume: impl Into<Consume<'a>>) -> Result<Consumer> {
        let consume = consume.into();
        self.start_consumer(&consume, |tag| {
            let queue = Arc::new(DeliveryQueue::new(self.core().clone(), tag, consume.no_ack));
            self.core().add_consumer(Sink::Queue(queue.clone()))?;
            Ok(Consumer::new(queue, self.timeout))
        })
    }

    /// Starts a consumer, which `add` gives its place on the channel.
    fn start_consumer<C>(&self, consume: &Consume<'_>, add: impl FnOnce(&str) -> Result<C>) -> Result<C> {
        // Before there is anything to be tidied up.
        may_wait()?;
        let generated;
        let tag = match consume.consumer_tag {
            Some(tag) if !tag.is_empty() => tag,
            _ => {
                generated = generated_tag();
                &generated
            }
        };
        let arguments = consume.arguments.encode()?;
        let method = BasicConsume {
            queue: ShortStr::new("the queue name", consume.queue)?,
            consumer_tag: ShortStr::new("the consumer tag", tag)?,
            no_local: consume.no_local,
            no_ack: consume.no_ack,
            exclusive: consume.exclusive,
            arguments: Table(&arguments),
            ..Default::default()
        };
        // What is wrong with it shows before the prefetch count is sent.
        write_method(&mut Vec::new(), 0, self.core().connection.outgoing.max_frame(), &method)?;
        // Known before it is sent: deliveries may overtake the answer.
        let consumer = add(tag)?;
        let core = self.core();
        let expects = Expected::about(method.replies(), tag);
        let started = self
            .set_default_prefetch(consume.no_ack)
            .and_then(|()| core.call_expecting(expects, self.timeout, &method));
        // Nobody will take what comes, and dropping the consumer must not wait any more.
        match started {
            Ok(Ok(_)) => Ok(consumer),
            Ok(Err(error)) => {
                // It was sent, and may still be answered.
                core.abandon_consumer(tag.as_bytes());
                Err(error)
            }
            Err(error) => {
                core.consumer_ended(tag.as_bytes());
                Err(error)
            }
        }
    }

    fn set_default_prefetch(&self, no_ack: bool) -> Result<()> {
        let prefetch = self.core().connection.limits.prefetch;
        if no_ack || prefetch == 0 || self.core().lock().prefetch_is_set {
            return Ok(());
        }
        self.basic_qos(Qos::new(prefetch))
    }

    /// Cancels a consumer by its tag, and waits for the broker's answer. Its iterator returns what was
    /// delivered before, and ends.
    ///
    /// # Errors
    /// Those of every call: see [`Channel`].
    pub fn basic_cancel(&self, consumer_tag: &str) -> Result<()> {
        let method =
            BasicCancel { consumer_tag: ShortStr::new("the consumer tag", consumer_tag)?, no_wait: false };
        self.core().call_about(consumer_tag, self.timeout, &method)
    }
}

/// Unique in this process, which is more than the channel needs; short, because it stands in every delivery.
fn generated_tag() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("ctag-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Consumer {
    pub(super) fn new(queue: Arc<DeliveryQueue>, timeout: Duration) -> Consumer {
        Consumer { queue, taken: VecDeque::new(), timeout }
    }

    /// The tag that the consumer has on its channel.
    pub fn consumer_tag(&self) -> &str {
        &self.queue.tag
    }

    /// The next delivery if one is here. **Does not wait.**
    ///
    /// # Errors
    /// The reason why the consumer ended, once.
    pub fn try_next(&mut self) -> Result<Option<Delivery>> {
        self.take_next(None)
    }

    /// Waits at most `timeout` for the next delivery; `None` when none came, and when the consumer has ended
    /// (see [`has_ended`](Consumer::has_ended)).
    ///
    /// # Errors
    /// The reason why the consumer ended, once.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Delivery>> {
        self.next_before(Instant::now().checked_add(timeout))
    }

    /// Nothing will come any more: everything was returned, and the reason for the end as well.
    pub fn has_ended(&self) -> bool {
        self.taken.iter().all(|queued| queued.rest().is_empty()) && self.queue.is_exhausted()
    }

    /// Stops the consumer and waits for the broker's answer. What was delivered before is still returned by
    /// the iterator, which then ends.
    ///
    /// # Errors
    /// Those of every call: see [`Channel`].
    pub fn cancel(&mut self) -> Result<()> {
        if self.queue.core.has_consumer(&Sink::Queue(self.queue.clone())) {
            self.queue.cancel(self.timeout)
        } else {
            Ok(())
        }
    }

    #[inline]
    fn next_before(&mut self, deadline: Option<Instant>) -> Result<Option<Delivery>> {
        match self.next_taken() {
            Some(delivery) => Ok(Some(delivery)),
            None => self.wait_before(deadline),
        }
    }

    fn wait_before(&mut self, deadline: Option<Instant>) -> Result<Option<Delivery>> {
        loop {
            if let Some(delivery) = self.take_next(None)? {
                return Ok(Some(delivery));
            }
            // About to wait: what this program has gathered goes out first.
            self.flush();
            let waiter = Waiter::new();
            if let Some(delivery) = self.take_next(Some(waiter.clone()))? {
                return Ok(Some(delivery));
            }
            if self.queue.is_exhausted() || self.queue.take_interruption() {
                self.forget_waiter(&waiter);
                return Ok(None);
            }
            if let Err(given_up) = waiter.park(deadline) {
                self.forget_waiter(&waiter);
                return self.given_up(given_up);
            }
        }
    }

    /// What a wait that was given up returns. A coroutine that was cancelled is told once, so that a loop over the
    /// deliveries ends even if it goes on after errors.
    pub(super) fn given_up(&mut self, why: GivenUp) -> Result<Option<Delivery>> {
        match why {
            GivenUp::Cancelled if !self.queue.told_cancelled.swap(true, Ordering::SeqCst) => {
                Err(Error::Cancelled)
            }
            GivenUp::WouldDeadlock => Err(Error::WouldDeadlock),
            GivenUp::Cancelled | GivenUp::TooLate => Ok(None),
        }
    }

    /// The next delivery if one is here, or else the reason for the end, once; leaves the waiter if there is
    /// nothing.
    pub(super) fn take_next(&mut self, waiter: Option<Waiter>) -> Result<Option<Delivery>> {
        loop {
            if let Some(delivery) = self.next_taken() {
                return Ok(Some(delivery));
            }
            match self.queue.take(&mut self.taken, waiter.as_ref()) {
                Taken::Deliveries => {}
                Taken::End(reason) => return reason.map_or(Ok(None), Err),
                Taken::Nothing => return Ok(None),
            }
        }
    }

    /// The next delivery that was taken from the queue.
    #[inline]
    fn next_taken(&mut self) -> Option<Delivery> {
        while let Some(queued) = self.taken.front_mut() {
            if let Some(delivery) = queued.next() {
                return Some(delivery);
            }
            self.taken.pop_front();
        }
        None
    }

    pub(super) fn flush(&self) {
        self.queue.core.connection.outgoing.flush();
    }

    pub(super) fn forget_waiter(&self, waiter: &Waiter) {
        self.queue.forget_waiter(waiter);
    }
}

impl Iterator for Consumer {
    type Item = Result<Delivery>;

    /// **Waits without a limit** for the next delivery; see [`next_timeout`](Consumer::next_timeout).
    #[inline]
    fn next(&mut self) -> Option<Result<Delivery>> {
        self.next_before(None).transpose()
    }
}

impl std::iter::FusedIterator for Consumer {}

impl Drop for Consumer {
    fn drop(&mut self) {
        let queue = self.queue.clone();
        let mut leaving = Leaving { queue, taken: mem::take(&mut self.taken), cancelling: None };
        if let Err(GivenUp::Cancelled) = leaving.leave() {
            let errands = &self.queue.core.connection.errands;
            errands.leave(move || {
                let _ = leaving.leave();
            });
        }
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("consumer_tag", &self.consumer_tag()).finish_non_exhaustive()
    }
}
