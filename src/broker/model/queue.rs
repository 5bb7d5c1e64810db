//! A queue: its properties, its messages and its consumers.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{
    ChannelId, Emulate, Name, QueueOptions, SessionId,
    arguments::QueueType,
    consumers::{Consumers, Succession},
    dead_letter::DeadLetters,
    message::Message,
    ready::{Entry, Holder, Ready},
    stream::Stream,
    values::integer,
};
use crate::{
    broker::by_number::ByNumber,
    protocol::value::{FieldTable, FieldValue},
};

/// What happens to a message that is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overflow {
    DropHead,
    RejectPublish,
    RejectPublishDlx,
}

/// How often a quorum queue of 4.x delivers a message again when nobody says.
const DELIVERY_LIMIT: u32 = 20;

/// A queue.
#[derive(Debug)]
pub(super) struct Queue {
    /// Tells it from later queues of the same name.
    pub(super) id: u64,
    pub(super) kind: QueueType,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    /// The session that has it to itself.
    pub(super) owner: Option<SessionId>,
    pub(super) arguments: FieldTable,
    pub(super) time_to_live: Option<u64>,
    pub(super) expires: Option<u64>,
    pub(super) max_length: Option<u64>,
    pub(super) max_bytes: Option<u64>,
    pub(super) overflow: Overflow,
    /// The channels that have published to a quorum queue that refuses when it is full, and whether it refuses what they
    /// publish.
    pub(super) publishers: HashMap<ChannelId, bool>,
    /// They were told last that the queue is full.
    refuses: bool,
    pub(super) dead_letters: Option<DeadLetters>,
    pub(super) delivery_limit: Option<u32>,
    pub(super) single_active: bool,
    pub(super) lazy: bool,
    pub(super) ready: Ready,
    /// Delivered, and not yet settled.
    pub(super) unacked: HashMap<u64, Entry, ByNumber>,
    pub(super) consumers: Consumers,
    pub(super) had_consumers: bool,
    /// When it was used last, for `expires`.
    pub(super) used: Duration,
    /// When it will be looked at.
    pub(super) scheduled: Option<Duration>,
    /// When the head expires, as it was when expired messages were last removed.
    pub(super) head_expires: Option<Duration>,
    /// The messages of a stream, which has no others.
    pub(super) stream: Option<Stream>,
    next_sequence: u64,
}

impl Queue {
    pub(super) fn new(
        id: u64,
        options: &QueueOptions,
        owner: Option<SessionId>,
        now: Duration,
        emulate: Emulate,
    ) -> Queue {
        let arguments = options.arguments.clone();
        let number =
            |name: &str| arguments.get(name).and_then(integer).and_then(|number| u64::try_from(number).ok());
        let text = |name: &str| match arguments.get(name) {
            Some(FieldValue::LongString(text)) => Some(Name::from(&**text)),
            _ => None,
        };
        let kind = QueueType::of(&arguments);
        let overflow = match text("x-overflow").as_deref() {
            Some(b"reject-publish") => Overflow::RejectPublish,
            Some(b"reject-publish-dlx") if kind == QueueType::Classic => Overflow::RejectPublishDlx,
            _ => Overflow::DropHead,
        };
        let has_limit = arguments.get("x-delivery-limit").is_some();
        let limit = arguments.get("x-delivery-limit").and_then(integer);
        let delivery_limit = match (kind, limit) {
            // To 3.x what is no number is more than any.
            (QueueType::Quorum, None) if has_limit && emulate == Emulate::RabbitMq3 => Some(u32::MAX),
            // Below zero is none in 4.x, and to 3.x it is less than any number.
            (QueueType::Quorum, Some(..0)) if emulate == Emulate::RabbitMq3 => Some(0),
            (QueueType::Quorum, Some(limit)) => u32::try_from(limit).ok(),
            (QueueType::Quorum, None) if emulate == Emulate::RabbitMq4 => Some(DELIVERY_LIMIT),
            _ => None,
        };
        let max_priority = number("x-max-priority").and_then(|number| u8::try_from(number).ok()).unwrap_or(0);
        let single_active =
            arguments.get("x-single-active-consumer").and_then(FieldValue::as_bool).unwrap_or(false);
        Queue {
            id,
            kind,
            durable: options.durable && !options.exclusive,
            auto_delete: options.auto_delete,
            owner,
            time_to_live: number("x-message-ttl"),
            expires: number("x-expires"),
            max_length: number("x-max-length"),
            max_bytes: number("x-max-length-bytes"),
            overflow,
            publishers: HashMap::new(),
            refuses: false,
            dead_letters: text("x-dead-letter-exchange")
                .map(|exchange| DeadLetters { exchange, routing_key: text("x-dead-letter-routing-key") }),
            delivery_limit,
            single_active,
            lazy: text("x-queue-mode").as_deref() == Some(b"lazy"),
            ready: match (kind, emulate) {
                (QueueType::Quorum, Emulate::RabbitMq4) => Ready::with_turns(),
                _ => Ready::new(max_priority),
            },
            unacked: HashMap::default(),
            consumers: Consumers::new(single_active.then_some(match (kind, emulate) {
                (QueueType::Quorum, Emulate::RabbitMq3) => Succession::Arrival,
                (QueueType::Quorum, Emulate::RabbitMq4) => Succession::TakeOver,
                _ => Succession::Priority,
            })),
            had_consumers: false,
            used: now,
            scheduled: None,
            head_expires: None,
            stream: (kind == QueueType::Stream).then(|| Stream::new(&arguments)),
            next_sequence: 0,
            arguments,
        }
    }

    /// Messages that wait for a consumer.
    pub(super) fn messages(&self) -> usize {
        self.stream.as_ref().map_or(self.ready.len(), Stream::len)
    }

    /// Consumers. In a quorum queue those who still have a message count, even if they only fetched it, and those who
    /// wait behind a single active consumer do not.
    pub(super) fn consumer_count(&self) -> usize {
        let consumers = self.consumers.len();
        if self.kind != QueueType::Quorum {
            return consumers;
        }
        let holders: HashSet<_> = self.unacked.values().filter_map(|entry| entry.holder.as_deref()).collect();
        let is_gone =
            |holder: &&&Holder| holder.fetched || !self.consumers.is_there(holder.channel, &holder.tag);
        let gone = holders.iter().filter(is_gone).count();
        gone + if self.single_active { consumers.min(1) } else { consumers }
    }

    /// What a consumer of a quorum queue has to settle.
    pub(super) fn held_by(&self, channel: ChannelId, tag: &[u8]) -> impl Iterator<Item = &Holder> {
        let holders = self.unacked.values().filter_map(|entry| entry.holder.as_deref());
        holders.filter(move |holder| holder.is_consumer(channel, tag))
    }

    /// Who has left a quorum queue and has nothing to settle loses the place in line as soon as it is the first.
    pub(super) fn forget_who_left(&mut self) {
        let Queue { consumers, unacked, .. } = self;
        consumers.forget_first(|consumer| {
            let mut holders = unacked.values().filter_map(|entry| entry.holder.as_deref());
            holders.any(|holder| holder.is_consumer(consumer.channel, &consumer.tag))
        });
    }

    pub(super) fn entry(&mut self, message: Arc<Message>, now: Duration) -> Entry {
        let milliseconds = match (self.time_to_live, message.expiration) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Entry {
            sequence: self.next_sequence(),
            message: message.into(),
            expires: milliseconds.map(|time| now.saturating_add(Duration::from_millis(time))),
            redelivered: false,
            returns: 0,
            lazy: false,
            is_normal: false,
            holder: None,
        }
    }

    /// The place of what comes last.
    pub(super) fn next_sequence(&mut self) -> u64 {
        self.next_sequence += 1;
        self.next_sequence
    }

    /// Whether there are more messages than there may be.
    pub(super) fn is_over_limit(&self) -> bool {
        self.exceeds(self.ready.len() as u64, self.ready.bytes() as u64)
    }

    /// A quorum queue notices only after the fact that it has too many. Then it refuses, until a fifth of what it may
    /// hold is free, whatever those publish who have published before.
    pub(super) fn watch_limit(&mut self) {
        let is_low = |max: Option<u64>, count: usize| max.is_none_or(|max| count as u64 <= max * 4 / 5);
        if self.is_over_limit() {
            self.refuses = true;
            self.publishers.values_mut().for_each(|refused| *refused = true);
        } else if self.refuses
            && is_low(self.max_length, self.ready.len())
            && is_low(self.max_bytes, self.ready.bytes())
        {
            self.refuses = false;
            self.publishers.values_mut().for_each(|refused| *refused = false);
        }
    }

    /// Whether one more would be too many.
    pub(super) fn would_overflow(&self, message: &Message) -> bool {
        self.exceeds(self.ready.len() as u64 + 1, (self.ready.bytes() + message.body.len()) as u64)
    }

    fn exceeds(&self, length: u64, bytes: u64) -> bool {
        self.max_length.is_some_and(|max| length > max) || self.max_bytes.is_some_and(|max| bytes > max)
    }

    /// The message at the head, if its time is over.
    pub(super) fn pop_expired(&mut self, now: Duration) -> Option<Entry> {
        let expired = self.ready.head()?.expires.is_some_and(|expires| expires <= now);
        if expired { self.ready.pop() } else { None }
    }

    /// When the queue itself expires, unless it is used before.
    pub(super) fn expires_at(&self) -> Option<Duration> {
        let expires = self.expires.filter(|_| self.consumers.is_empty())?;
        Some(self.used.saturating_add(Duration::from_millis(expires)))
    }

    /// When something is due here.
    pub(super) fn deadline(&self) -> Option<Duration> {
        [self.head_expires, self.expires_at()].into_iter().flatten().min()
    }
}
