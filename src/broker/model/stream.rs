//! The messages of a stream: a log that is read and not consumed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    ChannelId, Emulate, Name, Payload,
    arguments::age_in_seconds,
    channel::Unacked,
    consumers::Consumer,
    message::{DELIVERY_MODE, Fields, Kept, Message, sorted},
    values::integer,
    vhost::Vhost,
};
use crate::protocol::value::{FieldTable, FieldValue};

/// A log, and how far each consumer has read.
#[derive(Debug)]
pub(super) struct Stream {
    log: VecDeque<(Duration, Kept)>,
    /// The offset of the oldest message that is kept.
    first: u64,
    bytes: usize,
    max_bytes: Option<u64>,
    max_age: Option<Duration>,
    readers: Vec<Reader>,
}

#[derive(Debug)]
struct Reader {
    channel: ChannelId,
    tag: Name,
    next: u64,
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
        self.log.iter().take(most).map(|(_, message)| (false, message.payload())).collect()
    }

    fn end(&self) -> u64 {
        self.first + self.log.len() as u64
    }

    pub(super) fn append(&mut self, message: Arc<Message>, now: Duration) {
        self.bytes += message.body.len();
        self.log.push_back((now, message.into()));
        while let Some((at, oldest)) = self.log.front() {
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
    pub(super) fn attach(&mut self, consumer: &Consumer, arguments: &FieldTable, now: Duration, epoch: u64) {
        let since = |time: Duration| self.first + self.log.partition_point(|(at, _)| *at < time) as u64;
        let next = match arguments.get("x-stream-offset") {
            Some(FieldValue::Timestamp(seconds)) => since(Duration::from_secs(seconds.saturating_sub(epoch))),
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
        self.readers.push(Reader { channel: consumer.channel, tag: consumer.tag.clone(), next });
    }

    pub(super) fn detach(&mut self, channel: ChannelId, tag: &[u8]) {
        self.readers.retain(|reader| reader.channel != channel || *reader.tag != *tag);
    }

    pub(super) fn detach_channel(&mut self, channel: ChannelId) {
        self.readers.retain(|reader| reader.channel != channel);
    }

    fn has_more(&self, consumer: &Consumer) -> bool {
        let end = self.end();
        self.readers.iter().any(|reader| {
            reader.channel == consumer.channel && reader.tag == consumer.tag && reader.next < end
        })
    }

    /// The next message of a consumer, with its offset.
    fn read(&mut self, consumer: &Consumer) -> Option<(u64, Payload)> {
        let reader = self
            .readers
            .iter_mut()
            .find(|reader| reader.channel == consumer.channel && reader.tag == consumer.tag)?;
        let offset = reader.next.max(self.first);
        let index = usize::try_from(offset - self.first).ok()?;
        let (_, message) = self.log.get(index)?;
        reader.next = offset + 1;
        Some((offset, message.payload()))
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
            let Some((offset, mut payload)) = stream.read(&consumer) else { return };
            let queue_id = queue.id;
            let mut fields = Fields::decode(&payload.properties).unwrap_or_else(|_| Fields::empty());
            let mut headers = fields.headers().unwrap_or_default();
            if emulate == Emulate::RabbitMq3 {
                headers = without_lists(&headers);
            }
            headers.insert("x-stream-offset", FieldValue::I64(i64::try_from(offset).unwrap_or(i64::MAX)));
            fields.set_headers(&sorted(headers));
            if emulate == Emulate::RabbitMq4 && fields.octet(DELIVERY_MODE).is_none() {
                fields.set_octet(DELIVERY_MODE, 1);
            }
            payload.properties = fields.encode();
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

/// A stream of 3.x does not keep what has parts.
fn without_lists(headers: &FieldTable) -> FieldTable {
    let is_simple = |value: &FieldValue| !matches!(value, FieldValue::Array(_) | FieldValue::Table(_));
    let kept = headers.iter().filter(|(_, value)| is_simple(value));
    kept.map(|(name, value)| (name.to_owned(), value.clone())).collect()
}
