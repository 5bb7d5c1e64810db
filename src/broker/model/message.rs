//! A message as queues hold it: shared, never changed.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    Emulate, Name, Payload, Refusal, arguments::check_expiry, dead_letter::Death, values::type_name,
};
use crate::{
    error::ReplyCode,
    protocol::{
        value::{FieldTable, FieldValue},
        wire::{Malformed, Reader},
    },
};

/// What a message costs besides its bytes, and what every place does where it is held: about as much as is allocated, so
/// that empty messages cannot fill the memory.
const MESSAGE: usize = 320;
const PLACE: usize = 96;

/// The properties that the broker looks at, by their place on the wire.
pub(super) const HEADERS: usize = 2;
pub(super) const DELIVERY_MODE: usize = 3;
const PRIORITY: usize = 4;
pub(super) const REPLY_TO: usize = 6;
pub(super) const EXPIRATION: usize = 7;
const USER_ID: usize = 11;
pub(super) const CLUSTER_ID: usize = 13;

/// A message that was accepted. Its headers are decoded when somebody asks, so that a message costs no more
/// than its bytes.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) exchange: Name,
    /// The one that it was published with, then those of `CC` and of `BCC`.
    pub(super) routing_keys: Vec<Name>,
    /// The keys that came from `BCC`. 4.x remembers them also when a dead letter has got another key.
    pub(super) blind_copies: Vec<Name>,
    /// As they are delivered.
    pub(super) properties: Arc<[u8]>,
    pub(super) body: Arc<[u8]>,
    /// Time to live, in milliseconds.
    pub(super) expiration: Option<u64>,
    pub(super) priority: Option<u8>,
    pub(super) persistent: bool,
    /// Where it was dead-lettered before, the latest first. Only 4.x keeps this beside the header.
    pub(super) deaths: Vec<Death>,
    pub(super) charge: Charge,
}

impl Message {
    /// The decoded headers. `None` also when they cannot be decoded: they are the reader's concern then.
    pub(super) fn headers(&self) -> Option<FieldTable> {
        Fields::decode(&self.properties).ok()?.headers()
    }

    /// What a consumer gets.
    pub(super) fn payload(&self) -> Payload {
        Payload {
            exchange: self.exchange.clone(),
            routing_key: self.routing_keys.first().cloned().unwrap_or_default(),
            properties: self.properties.clone(),
            body: self.body.clone(),
        }
    }
}

/// A message in one of the places where it is held.
#[derive(Debug)]
pub(super) struct Kept(Arc<Message>);

impl From<Arc<Message>> for Kept {
    fn from(message: Arc<Message>) -> Kept {
        message.charge.memory.add(PLACE);
        Kept(message)
    }
}

impl Clone for Kept {
    fn clone(&self) -> Kept {
        self.0.clone().into()
    }
}

impl Deref for Kept {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.0
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.charge.memory.subtract(PLACE);
    }
}

/// What all messages of a virtual host cost.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Arc<AtomicUsize>);

impl Memory {
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// For a message of so many bytes.
    pub(super) fn message(&self, bytes: usize) -> Charge {
        self.charge(MESSAGE + bytes)
    }

    pub(super) fn charge(&self, bytes: usize) -> Charge {
        self.add(bytes);
        Charge { memory: self.clone(), bytes }
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn subtract(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A part of it, for as long as this lives.
#[derive(Debug)]
pub(super) struct Charge {
    memory: Memory,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory.subtract(self.bytes);
    }
}

/// Properties taken apart, each as it stands on the wire, so that one can be replaced without decoding the
/// others.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    raw: [Option<std::borrow::Cow<'a, [u8]>>; 14],
}

impl<'a> Fields<'a> {
    /// No properties at all.
    pub(super) fn empty() -> Fields<'a> {
        Fields { raw: [const { None }; 14] }
    }

    pub(super) fn decode(properties: &'a [u8]) -> Result<Fields<'a>, Malformed> {
        let mut reader = Reader::new(properties);
        let flags = reader.u16()?;
        let mut raw = [const { None }; 14];
        for (place, value) in raw.iter_mut().enumerate() {
            if flags & 1 << (15 - place) == 0 {
                continue;
            }
            let start = reader.rest();
            match place {
                HEADERS => drop(reader.long_string()?),
                DELIVERY_MODE | PRIORITY => drop(reader.u8()?),
                9 => drop(reader.u64()?),
                _ => drop(reader.short_string()?),
            }
            let length = start.len() - reader.rest().len();
            *value = start.get(..length).map(std::borrow::Cow::Borrowed);
        }
        reader.finish().map(|()| Fields { raw })
    }

    pub(super) fn encode(&self) -> Arc<[u8]> {
        let flags =
            self.raw.iter().enumerate().filter(|(_, value)| value.is_some()).map(|(at, _)| 1 << (15 - at));
        let mut out = flags.sum::<u16>().to_be_bytes().to_vec();
        self.raw.iter().flatten().for_each(|value| out.extend_from_slice(value));
        out.into()
    }

    fn raw(&self, place: usize) -> Option<&[u8]> {
        self.raw.get(place)?.as_deref()
    }

    pub(super) fn octet(&self, place: usize) -> Option<u8> {
        self.raw(place)?.first().copied()
    }

    pub(super) fn short(&self, place: usize) -> Option<&[u8]> {
        self.raw(place)?.get(1..)
    }

    pub(super) fn headers(&self) -> Option<FieldTable> {
        FieldTable::decode(self.raw(HEADERS)?.get(4..)?).ok()
    }

    pub(super) fn remove(&mut self, place: usize) {
        if let Some(value) = self.raw.get_mut(place) {
            *value = None;
        }
    }

    pub(super) fn set_octet(&mut self, place: usize, value: u8) {
        self.set(place, vec![value]);
    }

    pub(super) fn set_short(&mut self, place: usize, text: &[u8]) {
        let mut bytes = vec![u8::try_from(text.len()).unwrap_or(u8::MAX)];
        bytes.extend_from_slice(text.get(..255).unwrap_or(text));
        self.set(place, bytes);
    }

    /// Headers that were decoded can be encoded again; should that fail, they stay as they are.
    pub(super) fn set_headers(&mut self, headers: &FieldTable) {
        let mut bytes = Vec::new();
        if headers.encode_sized(&mut bytes).is_ok() {
            self.set(HEADERS, bytes);
        }
    }

    fn set(&mut self, place: usize, bytes: Vec<u8>) {
        if let Some(value) = self.raw.get_mut(place) {
            *value = Some(std::borrow::Cow::Owned(bytes));
        }
    }
}

/// What a publish has to say about itself besides its message.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) message: Message,
    pub(super) mandatory: bool,
}

/// Checks a publish and makes a message of it. `user` is who publishes, `reply_to` what
/// `amq.rabbitmq.reply-to` stands for on that channel.
pub(super) fn accept(
    publish: super::Publish<'_>,
    user: &str,
    may_impersonate: bool,
    reply_to: Option<&Name>,
    emulate: Emulate,
    memory: &Memory,
) -> Result<Accepted, Refusal> {
    let mut fields = Fields::decode(&publish.properties)
        .map_err(|malformed| Refusal::new(ReplyCode::InternalError, malformed))?;
    let mut changed = false;
    if fields.short(REPLY_TO) == Some(b"amq.rabbitmq.reply-to") {
        let reply_to = reply_to.ok_or_else(|| Refusal::precondition("fast reply consumer does not exist"))?;
        fields.set_short(REPLY_TO, reply_to);
        changed = true;
    }
    let check_user = |fields: &Fields<'_>| check_user(fields.short(USER_ID), user, may_impersonate);
    if emulate == Emulate::RabbitMq3 {
        check_user(&fields)?;
    }
    let expiration = fields.short(EXPIRATION).map(parse_expiration).transpose()?;
    if let Some(milliseconds) = expiration.filter(|_| emulate != Emulate::RabbitMq3) {
        // Delivered as the number that it is.
        let text = milliseconds.to_string();
        if fields.short(EXPIRATION) != Some(text.as_bytes()) {
            fields.set_short(EXPIRATION, text.as_bytes());
            changed = true;
        }
    }
    let mut routing_keys = vec![Name::from(publish.routing_key)];
    let mut blind_copies = Vec::new();
    if let Some(headers) = fields.headers() {
        let copies = copies(&headers, "CC")?;
        blind_copies = self::copies(&headers, "BCC")?;
        routing_keys.extend(copies.iter().chain(&blind_copies).cloned());
        if let Some(headers) = delivered_headers(&headers, emulate) {
            fields.set_headers(&headers);
            changed = true;
        }
    }
    match (emulate, fields.octet(DELIVERY_MODE)) {
        (Emulate::RabbitMq3, Some(mode)) if !matches!(mode, 1 | 2) => {
            let text = format!("invalid message: {{delivery_mode_unknown,{mode}}}");
            return Err(Refusal::precondition(text));
        }
        (Emulate::RabbitMq3, _) => {}
        (Emulate::RabbitMq4, _) => check_user(&fields)?,
    }
    let persistent = fields.octet(DELIVERY_MODE) == Some(2);
    let priority = fields.octet(PRIORITY);
    let properties = if changed { fields.encode() } else { publish.properties.clone() };
    let bytes = properties.len() + publish.body.len() + publish.routing_key.len();
    Ok(Accepted {
        message: Message {
            exchange: publish.exchange.into(),
            routing_keys,
            blind_copies,
            properties,
            body: publish.body,
            expiration,
            priority,
            persistent,
            deaths: Vec::new(),
            charge: memory.message(bytes),
        },
        mandatory: publish.mandatory,
    })
}

fn check_user(claimed: Option<&[u8]>, user: &str, may_impersonate: bool) -> Result<(), Refusal> {
    match claimed {
        Some(claimed) if claimed != user.as_bytes() && !may_impersonate => {
            let claimed = String::from_utf8_lossy(claimed);
            Err(Refusal::precondition(format!(
                "user_id property set to '{claimed}' but authenticated user was '{user}'"
            )))
        }
        _ => Ok(()),
    }
}

/// Milliseconds in decimal digits.
fn parse_expiration(text: &[u8]) -> Result<u64, Refusal> {
    let refuse = |problem: String| {
        let text = String::from_utf8_lossy(text);
        Err(Refusal::precondition(format!("invalid expiration '{text}': {problem}")))
    };
    let sign = usize::from(matches!(text.first(), Some(b'-' | b'+')));
    let digits = text.get(sign..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return refuse("no_integer".into());
    }
    let (number, rest) = text.split_at_checked(sign + digits).unwrap_or((text, &[]));
    if !rest.is_empty() {
        return refuse(format!("{{leftover_string,\"{}\"}}", String::from_utf8_lossy(rest)));
    }
    let number = str::from_utf8(number).unwrap_or_default();
    match number.trim_start_matches('+').parse::<i64>() {
        Ok(milliseconds) => match check_expiry(milliseconds) {
            Ok(()) => Ok(milliseconds.unsigned_abs()),
            Err(problem) => refuse(problem),
        },
        Err(_) if number.starts_with('-') => refuse(format!("{{value_negative,{number}}}")),
        Err(_) => refuse(format!("{{value_too_large,{}}}", number.trim_start_matches(['+', '0']))),
    }
}

/// The routing keys in a header.
fn copies(headers: &FieldTable, name: &str) -> Result<Vec<Name>, Refusal> {
    match headers.get(name) {
        None => Ok(Vec::new()),
        Some(FieldValue::Array(items)) => Ok(items
            .iter()
            .filter_map(|item| match item {
                FieldValue::LongString(key) => Some(Name::from(&**key)),
                _ => None,
            })
            .collect()),
        Some(other) => Err(Refusal::precondition(format!(
            "invalid message: {{unacceptable_type_in_header,\"{name}\",{}}}",
            type_name(other)
        ))),
    }
}

/// What consumers see of the headers, if it is anything else than what was sent: nobody sees `BCC`, and 4.x
/// delivers headers in the order of their names.
fn delivered_headers(headers: &FieldTable, emulate: Emulate) -> Option<FieldTable> {
    let names = || headers.iter().map(|(name, _)| name);
    let has_blind = names().any(|name| name == "BCC");
    let is_sorted = emulate == Emulate::RabbitMq3 || names().is_sorted_by(|one, other| one < other);
    if !has_blind && is_sorted {
        return None;
    }
    let mut delivered = headers.clone();
    delivered.remove("BCC");
    Some(if emulate == Emulate::RabbitMq3 { delivered } else { sorted(delivered) })
}

/// The same table in the order of its names. Of several entries with one name the first counts.
pub(super) fn sorted(mut table: FieldTable) -> FieldTable {
    table.sort();
    let mut entries: Vec<_> = table.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
    entries.dedup_by(|later, first| later.0 == first.0);
    entries.into_iter().collect()
}
