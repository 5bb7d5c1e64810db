//! The messages of a stream: a log that is read and not consumed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    ChannelId, Emulate, Name, Payload, Settings,
    arguments::age_in_seconds,
    channel::Unacked,
    consumers::Consumer,
    message::{CLUSTER_ID, DELIVERY_MODE, EXPIRATION, Fields, Kept, Message, sorted},
    values::integer,
    vhost::Vhost,
};
use crate::protocol::value::{FieldTable, FieldValue};

/// A log, and how far each consumer has read.
#[derive(Debug)]
pub(super) struct Stream {
    log: VecDeque<Logged>,
    /// The offset of the oldest message that is kept.
    first: u64,
    bytes: usize,
    max_bytes: Option<u64>,
    max_age: Option<Duration>,
    readers: Vec<Reader>,
}

/// A message of the log.
#[derive(Debug)]
struct Logged {
    at: Duration,
    message: Kept,
    /// What filters look for: `x-stream-filter-value`.
    value: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Reader {
    channel: ChannelId,
    tag: Name,
    next: u64,
    filter: Option<Filter>,
}

/// `x-stream-filter` and `x-stream-match-unfiltered`.
#[derive(Debug)]
struct Filter {
    values: Vec<Vec<u8>>,
    takes_others: bool,
}

impl Filter {
    fn of(arguments: &FieldTable) -> Option<Filter> {
        let text = |value: &FieldValue| match value {
            FieldValue::LongString(text) => Some(text.clone()),
            _ => None,
        };
        let values = match arguments.get("x-stream-filter")? {
            FieldValue::Array(values) => values.iter().filter_map(text).collect(),
            value => vec![text(value)?],
        };
        let others = arguments.get("x-stream-match-unfiltered").and_then(FieldValue::as_bool);
        Some(Filter { values, takes_others: others.unwrap_or(false) })
    }

    fn takes(&self, logged: &Logged) -> bool {
        logged.value.as_ref().map_or(self.takes_others, |value| self.values.contains(value))
    }
}

impl Reader {
    fn is(&self, consumer: &Consumer) -> bool {
        self.channel == consumer.channel && self.tag == consumer.tag
    }

    /// Goes past what its filter does not take, in a log that begins at the offset `first`.
    fn pass_over(&mut self, log: &VecDeque<Logged>, first: u64) {
        let Some(filter) = &self.filter else { return };
        let mut next = self.next.max(first);
        let logged = |offset: u64| log.get(usize::try_from(offset - first).ok()?);
        while logged(next).is_some_and(|logged| !filter.takes(logged)) {
            next += 1;
        }
        self.next = next;
    }
}

impl Stream {
    pub(super) fn new(arguments: &FieldTable) -> Stream {
        let age = arguments.get("x-max-age").and_then(FieldValue::as_str).and_then(age_in_seconds);
        Stream {
            log: VecDeque::new(),
            first: 0,
            bytes: 0,
            max_bytes: arguments
                .get("x-max-length-bytes")
                .and_then(integer)
                .and_then(|bytes| u64::try_from(bytes).ok()),
            max_age: age.map(Duration::from_secs),
            readers: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.log.len()
    }

    /// The oldest messages.
    pub(super) fn peek(&self, most: usize) -> Vec<(bool, Payload)> {
        self.log.iter().take(most).map(|logged| (false, logged.message.payload())).collect()
    }

    fn end(&self) -> u64 {
        self.first + self.log.len() as u64
    }

    pub(super) fn append(&mut self, message: Arc<Message>, now: Duration) {
        self.bytes += message.body.len();
        let value = match message.headers().and_then(|mut headers| headers.remove("x-stream-filter-value")) {
            Some(FieldValue::LongString(value)) => Some(value),
            _ => None,
        };
        self.log.push_back(Logged { at: now, message: message.into(), value });
        while let Some(Logged { at, message: oldest, .. }) = self.log.front() {
            let is_old = self.max_age.is_some_and(|age| at.saturating_add(age) <= now);
            let is_surplus = self.max_bytes.is_some_and(|max| self.bytes as u64 > max) && self.log.len() > 1;
            if !is_old && !is_surplus {
                return;
            }
            self.bytes -= oldest.body.len();
            self.log.pop_front();
            self.first += 1;
        }
    }

    /// A consumer begins where `x-stream-offset` says; with what comes next if it says nothing. `epoch` is
    /// when the clock stood at zero, in seconds since 1970.
    pub(super) fn attach(
        &mut self,
        consumer: &Consumer,
        arguments: &FieldTable,
        now: Duration,
        Settings { epoch, emulate, .. }: &Settings,
    ) {
        let since = |time: Duration| self.first + self.log.partition_point(|logged| logged.at < time) as u64;
        let next = match arguments.get("x-stream-offset") {
            Some(FieldValue::Timestamp(seconds)) => {
                since(Duration::from_secs(seconds.saturating_sub(*epoch)))
            }
            Some(value) => match (value.as_str(), integer(value)) {
                (Some("first"), _) => self.first,
                (Some("last"), _) => self.end().saturating_sub(1),
                (Some(age), _) => match age_in_seconds(age) {
                    Some(seconds) => since(now.saturating_sub(Duration::from_secs(seconds))),
                    None => self.end(),
                },
                (_, Some(offset)) => u64::try_from(offset).unwrap_or(0),
                _ => self.end(),
            },
            None => self.end(),
        };
        let filter = Filter::of(arguments).filter(|_| *emulate != Emulate::RabbitMq3);
        self.readers.push(Reader { channel: consumer.channel, tag: consumer.tag.clone(), next, filter });
    }

    pub(super) fn detach(&mut self, channel: ChannelId, tag: &[u8]) {
        self.readers.retain(|reader| reader.channel != channel || *reader.tag != *tag);
    }

    pub(super) fn detach_channel(&mut self, channel: ChannelId) {
        self.readers.retain(|reader| reader.channel != channel);
    }

    /// Whether a consumer has not read everything that is for it.
    fn has_more(&mut self, consumer: &Consumer) -> bool {
        let end = self.end();
        let Some(reader) = self.readers.iter_mut().find(|reader| reader.is(consumer)) else { return false };
        reader.pass_over(&self.log, self.first);
        reader.next < end
    }

    /// The next message of a consumer, with its offset.
    fn read(&mut self, consumer: &Consumer, emulate: Emulate) -> Option<(u64, Payload)> {
        let reader = self.readers.iter_mut().find(|reader| reader.is(consumer))?;
        let offset = reader.next.max(self.first);
        let Logged { message, .. } = self.log.get(usize::try_from(offset - self.first).ok()?)?;
        reader.next = offset + 1;
        let properties = read_back(message, offset, emulate);
        Some((offset, Payload { properties, ..message.payload() }))
    }
}

impl Vhost {
    /// Hands out messages to every consumer that has not read everything and can take more.
    pub(super) fn run_stream(&mut self, name: &Name) {
        let emulate = self.emulate();
        loop {
            let Vhost { queues, channels, sessions, .. } = self;
            let Some(queue) = queues.get_mut(name) else { return };
            let Some(stream) = &mut queue.stream else { return };
            let can = |consumer: &&Consumer| {
                let session = sessions.get(&consumer.channel.session);
                let own =
                    channels.get(&consumer.channel).and_then(|channel| channel.consumers.get(&consumer.tag));
                session.is_none_or(|session| session.writable) && own.is_some_and(|own| !own.is_full())
            };
            let with_more = queue.consumers.iter().filter(can).filter(|consumer| stream.has_more(consumer));
            // A channel of RabbitMQ goes through its tags from the last to the first.
            let next = with_more.max_by(|one, other| one.tag.cmp(&other.tag));
            let Some(consumer) = next.cloned() else { return };
            let Some((offset, payload)) = stream.read(&consumer, emulate) else { return };
            let queue_id = queue.id;
            let unacked = Unacked {
                queue: name.clone(),
                queue_id,
                sequence: offset,
                consumer: Some(consumer.tag.clone()),
            };
            self.deliver_to(consumer, unacked, false, payload);
        }
    }
}

/// The properties of a message that was kept in a stream. RabbitMQ keeps them as AMQP 1.0 knows them.
fn read_back(message: &Message, offset: u64, emulate: Emulate) -> Arc<[u8]> {
    let mut fields = Fields::decode(&message.properties).unwrap_or_else(|_| Fields::empty());
    let mut headers = fields.headers().unwrap_or_default();
    fields.remove(CLUSTER_ID);
    let is_simple = |value: &FieldValue| !matches!(value, FieldValue::Array(_) | FieldValue::Table(_));
    let offset = FieldValue::I64(i64::try_from(offset).unwrap_or(i64::MAX));
    match emulate {
        Emulate::RabbitMq3 => {
            headers.retain(|_, value| is_simple(value));
            headers.insert("x-stream-offset", offset);
            headers.sort();
        }
        Emulate::RabbitMq4 => {
            let has_died = !message.deaths.is_empty();
            headers.retain(|name, value| match name {
                "CC" => true,
                "x-death" => has_died,
                "x-exchange" | "x-routing-key" | "x-opt-deaths" => false,
                _ if name.starts_with("x-") => !name.starts_with("x-basic-"),
                _ => is_simple(value),
            });
            headers = headers.iter().map(|(name, value)| (name.to_owned(), as_text(value))).collect();
            headers.insert("x-stream-offset", offset);
            headers = sorted(headers);
            fields.set_octet(DELIVERY_MODE, if message.persistent { 2 } else { 1 });
            // A dead letter has what it was published with again; there is room for 32 bits.
            let original = message.deaths.iter().find_map(|death| death.original_expiration);
            if let Some(milliseconds) = message.expiration.or(original) {
                fields.set_short(EXPIRATION, (milliseconds as u32).to_string().as_bytes());
            }
        }
    }
    fields.set_headers(&headers);
    fields.encode()
}

/// Bytes come back as a text.
fn as_text(value: &FieldValue) -> FieldValue {
    match value {
        FieldValue::Bytes(bytes) => FieldValue::LongString(bytes.clone()),
        FieldValue::Array(items) => FieldValue::Array(items.iter().map(as_text).collect()),
        FieldValue::Table(table) => {
            FieldValue::Table(table.iter().map(|(name, value)| (name.to_owned(), as_text(value))).collect())
        }
        other => other.clone(),
    }
}
