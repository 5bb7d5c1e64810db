//! Dead letters: what becomes of a message that a queue gives up, and where it must not go.

use std::sync::Arc;

use super::{
    Emulate, Name,
    message::{EXPIRATION, Fields, Memory, Message, sorted},
    ready::Entry,
};
use crate::protocol::value::{FieldTable, FieldValue};

/// Why a queue gave a message up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Rejected,
    Expired,
    MaxLength,
    DeliveryLimit,
}

impl Reason {
    pub(super) fn name(self) -> &'static str {
        match self {
            Reason::Rejected => "rejected",
            Reason::Expired => "expired",
            Reason::MaxLength => "maxlen",
            Reason::DeliveryLimit => "delivery_limit",
        }
    }
}

/// What 4.x remembers of each queue that gave the message up, and why.
#[derive(Debug, Clone)]
pub(super) struct Death {
    queue: Name,
    reason: Reason,
    count: i64,
    /// Seconds since 1970, of the first time.
    time: u64,
    exchange: Name,
    routing_keys: Vec<Name>,
    pub(super) original_expiration: Option<u64>,
}

/// A queue's `x-dead-letter-exchange` and `x-dead-letter-routing-key`.
#[derive(Debug, Clone)]
pub(super) struct DeadLetters {
    pub(super) exchange: Name,
    pub(super) routing_key: Option<Name>,
}

/// The message that is published to the dead-letter exchange. `time` is in seconds since 1970.
pub(super) fn letter(
    entry: &Entry,
    queue: &Name,
    reason: Reason,
    to: &DeadLetters,
    time: u64,
    emulate: Emulate,
    memory: &Memory,
) -> Message {
    let message = &entry.message;
    let mut fields = Fields::decode(&message.properties).unwrap_or_else(|_| Fields::empty());
    let mut headers = fields.headers().unwrap_or_default();
    let mut deaths = message.deaths.clone();
    // What 3.x reads from the disk it has not decoded, and then it does not see the expiration.
    let original = fields.short(EXPIRATION).filter(|_| !entry.lazy).map(<[u8]>::to_vec);
    fields.remove(EXPIRATION);
    match emulate {
        Emulate::RabbitMq3 => {
            headers = note_in_header(headers, message, queue, reason, time, original);
            if to.routing_key.is_some() {
                headers.remove("CC");
            }
        }
        Emulate::RabbitMq4 => {
            note_beside(&mut deaths, message, queue, reason, time);
            if message.deaths.is_empty() {
                set_last(&mut headers, "x-first-death", queue, reason, &message.exchange);
            }
            set_last(&mut headers, "x-last-death", queue, reason, &message.exchange);
            let array = deaths.iter().map(|death| FieldValue::Table(death.table())).collect::<Vec<_>>();
            headers.insert("x-death", array);
            headers = sorted(headers);
        }
    }
    fields.set_headers(&headers);
    let routing_keys = match &to.routing_key {
        Some(key) => vec![key.clone()],
        None => message.routing_keys.clone(),
    };
    let properties = fields.encode();
    let charge = memory.message(properties.len() + message.body.len());
    Message {
        exchange: to.exchange.clone(),
        routing_keys,
        blind_copies: message.blind_copies.clone(),
        properties,
        body: message.body.clone(),
        expiration: None,
        priority: message.priority,
        persistent: message.persistent,
        deaths,
        charge,
    }
}

/// `x-first-death-queue` and its like.
fn set_last(headers: &mut FieldTable, prefix: &str, queue: &Name, reason: Reason, exchange: &Name) {
    headers.insert(format!("{prefix}-reason"), reason.name());
    headers.insert(format!("{prefix}-queue"), text(queue));
    headers.insert(format!("{prefix}-exchange"), text(exchange));
}

fn text(name: &[u8]) -> FieldValue {
    FieldValue::LongString(name.to_vec())
}

fn texts<'a>(keys: impl IntoIterator<Item = &'a Name>) -> FieldValue {
    FieldValue::Array(keys.into_iter().map(|key| text(key)).collect())
}

/// As 3.x does it: the header is all there is.
fn note_in_header(
    mut headers: FieldTable,
    message: &Message,
    queue: &Name,
    reason: Reason,
    time: u64,
    original_expiration: Option<Vec<u8>>,
) -> FieldTable {
    let mut keys = vec![text(message.routing_keys.first().map_or(&[][..], |key| key))];
    if let Some(FieldValue::Array(copies)) = headers.get("CC") {
        keys.extend(copies.iter().filter(|copy| matches!(copy, FieldValue::LongString(_))).cloned());
    }
    let mut entry = FieldTable::new();
    entry.insert("count", 1i64);
    entry.insert("reason", reason.name());
    entry.insert("queue", text(queue));
    entry.insert("time", FieldValue::Timestamp(time));
    entry.insert("exchange", text(&message.exchange));
    entry.insert("routing-keys", FieldValue::Array(keys));
    if let Some(expiration) = original_expiration {
        entry.insert("original-expiration", FieldValue::LongString(expiration));
    }
    let deaths = match headers.remove("x-death") {
        None => {
            set_last(&mut headers, "x-first-death", queue, reason, &message.exchange);
            vec![FieldValue::Table(entry)]
        }
        Some(FieldValue::Array(known)) => {
            let mut known = grouped(known);
            if let Some(place) = known.iter().position(|death| is_death_of(death, queue, reason)) {
                let mut death = known.remove(place);
                if let FieldValue::Table(table) = &mut death {
                    let count = table.get("count").and_then(FieldValue::as_i64).unwrap_or(0);
                    table.insert("count", count.saturating_add(1));
                    entry = table.clone();
                }
            }
            known.insert(0, FieldValue::Table(sorted(entry)));
            known
        }
        Some(_) => vec![FieldValue::Table(entry)],
    };
    headers.insert("x-death", deaths);
    headers.sort();
    headers
}

fn is_death_of(death: &FieldValue, queue: &[u8], reason: Reason) -> bool {
    death.as_table().is_some_and(|table| {
        table.get("queue") == Some(&text(queue)) && table.get("reason") == Some(&reason.name().into())
    })
}

/// Entries of the same queue and reason become one, with their number as its count if it had none. RabbitMQ turns
/// the order of several entries round.
fn grouped(deaths: Vec<FieldValue>) -> Vec<FieldValue> {
    let mut groups: Vec<(FieldTable, i64)> = Vec::new();
    for death in deaths {
        let FieldValue::Table(table) = death else { continue };
        let same = |known: &FieldTable| {
            known.get("queue") == table.get("queue") && known.get("reason") == table.get("reason")
        };
        match groups.iter_mut().find(|(known, _)| same(known)) {
            Some((_, times)) => *times += 1,
            None => groups.push((table, 1)),
        }
    }
    let counted = groups.into_iter().map(|(mut table, times)| {
        if table.get("count").is_none() {
            table.insert("count", times);
        }
        FieldValue::Table(table)
    });
    counted.rev().collect()
}

/// As 4.x does it: what a client puts into the header counts for nothing.
fn note_beside(deaths: &mut Vec<Death>, message: &Message, queue: &Name, reason: Reason, time: u64) {
    let known = deaths.iter().position(|death| death.queue == *queue && death.reason == reason);
    let death = match known {
        Some(place) => {
            let mut death = deaths.remove(place);
            death.count = death.count.saturating_add(1);
            death
        }
        None => Death {
            queue: queue.clone(),
            reason,
            count: 1,
            time,
            exchange: message.exchange.clone(),
            routing_keys: open_keys(message),
            original_expiration: message.expiration,
        },
    };
    deaths.insert(0, death);
}

/// The keys of a message that its death may show: each of `BCC` takes one away, the first that is like it.
fn open_keys(message: &Message) -> Vec<Name> {
    let mut keys = message.routing_keys.clone();
    for blind in &message.blind_copies {
        if let Some(place) = keys.iter().position(|key| key == blind) {
            keys.remove(place);
        }
    }
    keys
}

impl Death {
    fn table(&self) -> FieldTable {
        let mut table = FieldTable::new();
        if let Some(expiration) = self.original_expiration {
            table.insert("original-expiration", expiration.to_string());
        }
        table.insert("count", self.count);
        table.insert("reason", self.reason.name());
        table.insert("queue", text(&self.queue));
        table.insert("time", FieldValue::Timestamp(self.time));
        table.insert("exchange", text(&self.exchange));
        table.insert("routing-keys", texts(&self.routing_keys));
        table
    }
}

/// Whether a letter would come back to `queue` without anybody having rejected it on the way round.
pub(super) fn is_cycle(letter: &Message, queue: &[u8], emulate: Emulate) -> bool {
    match emulate {
        Emulate::RabbitMq4 => {
            let back = letter.deaths.iter().position(|death| *death.queue == *queue);
            back.is_some_and(|back| {
                letter.deaths.iter().take(back + 1).all(|death| death.reason != Reason::Rejected)
            })
        }
        Emulate::RabbitMq3 => {
            let headers = letter.headers();
            let Some(FieldValue::Array(deaths)) = headers.as_ref().and_then(|headers| headers.get("x-death"))
            else {
                return false;
            };
            let of_queue = |death: &FieldValue| {
                death.as_table().is_some_and(|table| table.get("queue") == Some(&text(queue)))
            };
            let rejected = |death: &FieldValue| {
                death.as_table().is_none_or(|table| table.get("reason") == Some(&"rejected".into()))
            };
            let back = deaths.iter().position(of_queue);
            back.is_some_and(|back| !deaths.iter().take(back + 1).any(rejected))
        }
    }
}

/// A dead letter on its way.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) message: Arc<Message>,
    pub(super) reason: Reason,
}
