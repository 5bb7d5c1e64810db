//! Where a consumer's deliveries go: into a queue, or straight to an inline handler. And which consumers a channel has.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{inline::Inline, queue::DeliveryQueue};
use crate::{
    channel::{
        Core,
        call::{Coming, Expected},
    },
    connection::{
        batch::Arrived,
        events::Event,
        outgoing::Urgency,
        state::{Accepted, Recipient},
    },
    error::{Error, Result, Scope},
    protocol::{
        frame::write_method,
        spec::{BasicCancel, MethodBody},
        wire::ShortStr,
    },
};

/// What the channel knows of a consumer.
#[derive(Clone)]
pub(in crate::channel) enum Sink {
    Queue(Arc<DeliveryQueue>),
    Inline(Arc<Inline>),
}

/// A consumer is known, and found, by its tag.
impl Borrow<[u8]> for Sink {
    fn borrow(&self) -> &[u8] {
        self.tag().as_bytes()
    }
}

impl PartialEq for Sink {
    fn eq(&self, other: &Sink) -> bool {
        self.tag() == other.tag()
    }
}

impl Eq for Sink {}

impl Hash for Sink {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As its tag's bytes hash.
        self.tag().as_bytes().hash(state);
    }
}

impl Sink {
    fn tag(&self) -> &str {
        match self {
            Sink::Queue(queue) => &queue.tag,
            Sink::Inline(inline) => &inline.tag,
        }
    }

    fn recipient(&self) -> Arc<dyn Recipient> {
        match self {
            Sink::Queue(queue) => queue.clone(),
            Sink::Inline(inline) => inline.clone(),
        }
    }

    fn no_ack(&self) -> bool {
        match self {
            Sink::Queue(queue) => queue.no_ack,
            Sink::Inline(inline) => inline.no_ack,
        }
    }

    fn is(&self, other: &Sink) -> bool {
        match (self, other) {
            (Sink::Queue(this), Sink::Queue(other)) => Arc::ptr_eq(this, other),
            (Sink::Inline(this), Sink::Inline(other)) => Arc::ptr_eq(this, other),
            _ => false,
        }
    }

    fn is_for_handlers(&self) -> bool {
        matches!(self, Sink::Queue(queue) if queue.for_handlers.load(Ordering::SeqCst))
    }

    fn cancel(&self, limit: Duration) -> Result<()> {
        match self {
            Sink::Queue(queue) => queue.cancel(limit),
            Sink::Inline(inline) => inline.cancel(limit),
        }
    }

    fn begin_cancel(&self) -> Result<Coming> {
        match self {
            Sink::Queue(queue) => queue.begin_cancel(Duration::ZERO, Urgency::Writer),
            Sink::Inline(inline) => inline.begin_cancel(Duration::ZERO, Urgency::Writer),
        }
    }

    pub(in crate::channel) fn end(&self, end: End) {
        match self {
            Sink::Queue(queue) => queue.end(end),
            Sink::Inline(inline) => inline.end(end),
        }
    }
}

/// How a consumer ended.
#[derive(Debug)]
pub(in crate::channel) enum End {
    /// By the program; what was delivered is still returned.
    Cancelled,
    /// By the broker; what was delivered is still returned and can be acked.
    CancelledByServer,
    /// With its channel. Queued deliveries that were to be acked come again, so they are dropped (those that the
    /// consumer had taken from the queue are still returned); those of a consumer without acks are the only copies,
    /// and are all returned.
    Lost(Error),
}

impl Core {
    /// Gives a new consumer its place, before the broker is asked: deliveries may overtake the answer.
    ///
    /// # Errors
    /// The tag is in use; the channel is closed.
    pub(in crate::channel) fn add_consumer(&self, sink: Sink) -> Result<()> {
        let mut state = self.lock();
        state.check_open()?;
        // Under the lock under which a shutdown looks for consumers: it finds this one, or this finds the shutdown.
        if self.connection.work.is_refusing() {
            return Err(Error::Closed(Scope::Connection));
        }
        let tag = sink.tag();
        if state.consumers.contains(tag.as_bytes()) {
            return Err(Error::invalid(format!("consumer tag {tag:?} is in use on this channel")));
        }
        state.consumers.insert(sink);
        Ok(())
    }

    /// Asks the broker to send a consumer nothing more, and notes that in `sent`.
    pub(super) fn begin_cancel(
        &self,
        tag: &str,
        sent: &AtomicBool,
        limit: Duration,
        urgency: Urgency,
    ) -> Result<Coming> {
        let consumer_tag = ShortStr::new("the consumer tag", tag)?;
        let expects = Expected::about(BasicCancel::REPLIES, tag);
        let begun = self.begin(limit, BasicCancel::NAME, expects, urgency, &mut |out, channel| {
            let cancel = BasicCancel { consumer_tag, no_wait: false };
            write_method(out, channel, self.connection.outgoing.max_frame(), &cancel)
        });
        sent.fetch_or(begun.is_ok(), Ordering::SeqCst);
        begun
    }

    /// The reader's: what still comes for a consumer that is gone goes back, once the broker was asked to send no more: else
    /// it would come again and again.
    pub(super) fn give_back_late(&self, tag: &str, sent: &AtomicBool, epoch: u32, deliveries: &[Arrived]) {
        if self.lock().epoch != epoch {
            return;
        }
        if !sent.load(Ordering::SeqCst)
            && let Err(error) = self.begin_cancel(tag, sent, Duration::ZERO, Urgency::Writer)
        {
            return log::debug!(target: "leveret::channel", "cannot cancel {tag}: {error}");
        }
        self.give_back(epoch, deliveries.iter().map(|arrived| arrived.delivery_tag));
    }

    /// Waits for the answer to a cancel that was sent.
    pub(super) fn wait_cancelled(
        &self,
        coming: &Coming,
        limit: Duration,
        deadline: Option<Instant>,
    ) -> Result<()> {
        self.connection.outgoing.flush();
        let answer = coming.wait(deadline);
        answer.unwrap_or_else(|why| Err(self.given_up(why, BasicCancel::NAME, limit))).map(drop)
    }

    /// Cancels every consumer but those that handlers need to the end, and waits for the broker's answers, for at most `limit` altogether.
    pub(in crate::channel) fn cancel_consumers(&self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        let sinks: Vec<Sink> = self.lock().consumers.iter().cloned().collect();
        for sink in sinks.into_iter().filter(|sink| !sink.is_for_handlers()) {
            let left = limit.saturating_sub(started.elapsed());
            match sink.cancel(left) {
                // It may have been cancelled meanwhile.
                Err(_) if !self.has_consumer(&sink) => {}
                result => result?,
            }
        }
        Ok(())
    }

    pub(super) fn has_consumer(&self, sink: &Sink) -> bool {
        self.lock().consumers.get(sink.tag().as_bytes()).is_some_and(|other| other.is(sink))
    }

    /// The reader's: deliveries for a consumer. Those for a tag that is unknown, or not known any
    /// more, are ignored; the broker gets them back when the channel is closed.
    pub(in crate::channel) fn accept_deliveries(
        &self,
        consumer_tag: &[u8],
        arrived: &[Arrived],
    ) -> Option<Accepted> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let sink = state.consumers.get(consumer_tag)?;
        if !sink.no_ack() {
            for arrived in arrived {
                state.unacked.insert(arrived.delivery_tag);
            }
        }
        Some(Accepted { recipient: sink.recipient(), epoch: state.epoch })
    }

    /// The reader's: this consumer is an inline one.
    pub(in crate::channel) fn has_inline_consumer(&self, consumer_tag: &[u8]) -> bool {
        matches!(self.lock().consumers.get(consumer_tag), Some(Sink::Inline(_)))
    }

    /// The reader's: the broker has confirmed that a consumer is cancelled.
    pub(in crate::channel) fn consumer_ended(&self, consumer_tag: &[u8]) {
        self.remove_consumer(consumer_tag, End::Cancelled);
    }

    /// Nobody waits any more for this consumer, which the broker may still start: it is cancelled, and keeps its place
    /// until the broker has answered that, so that what comes until then goes back. **Does not wait.**
    pub(in crate::channel) fn abandon_consumer(&self, consumer_tag: &[u8]) {
        let sink = self.lock().consumers.get(consumer_tag).cloned();
        let Some(sink) = sink else { return };
        // Without room for it, the first delivery tries again.
        if let Err(error) = sink.begin_cancel() {
            log::debug!(target: "leveret::channel", "cannot cancel {}: {error}", sink.tag());
        }
        sink.end(End::Cancelled);
    }

    /// The reader's: the broker has cancelled a consumer.
    pub(in crate::channel) fn consumer_cancelled(&self, consumer_tag: &[u8]) {
        self.remove_consumer(consumer_tag, End::CancelledByServer);
        let consumer_tag = || String::from_utf8_lossy(consumer_tag).into();
        let channel = self.gate.channel();
        self.connection.feeds.emit(|| Event::ConsumerCancelled { channel, consumer_tag: consumer_tag() });
    }

    fn remove_consumer(&self, consumer_tag: &[u8], end: End) {
        let entry = self.lock().consumers.take(consumer_tag);
        if let Some(entry) = entry {
            entry.end(end);
        }
    }
}
