//! Random values, each with its bytes as the specification wants them and not as the codec writes them: the
//! bytes are put together here, from the table's rows and from the list of types, so that a mistake that
//! encoder and decoder share shows.

use fastrand::Rng;

use crate::protocol::content;
use crate::protocol::frame;
use crate::protocol::properties::{BasicProperties, DeliveryMode};
use crate::protocol::spec::Row;
use crate::protocol::value::{FieldTable, FieldValue};

/// A method's payload, and how the method that it decodes to prints itself.
pub(crate) struct RandomMethod {
    pub(crate) payload: Vec<u8>,
    pub(crate) printed: String,
}

/// A random instance of a row of the table.
pub(crate) fn method(rng: &mut Rng, row: &Row) -> RandomMethod {
    let mut payload = [row.ids.0.to_be_bytes(), row.ids.1.to_be_bytes()].concat();
    let mut printed = Vec::new();
    let mut bits_used = 0;
    for (name, kind) in row.fields {
        let value = if *kind == "bit" {
            let bit = rng.bool();
            if bits_used % 8 == 0 {
                payload.push(0);
            }
            *payload.last_mut().unwrap() |= u8::from(bit) << (bits_used % 8);
            bits_used += 1;
            bit.to_string()
        } else {
            bits_used = 0;
            let (bytes, value) = field(rng, kind);
            payload.extend(bytes);
            value
        };
        printed.push(format!("{name}: {value}"));
    }
    let struct_name = camel_case(row.name);
    let fields = if printed.is_empty() { String::new() } else { format!(" {{ {} }}", printed.join(", ")) };
    RandomMethod { payload, printed: format!("{struct_name}({struct_name}{fields})") }
}

fn field(rng: &mut Rng, kind: &str) -> (Vec<u8>, String) {
    match kind {
        "octet" => numbers(rng.u8(..), u8::to_be_bytes),
        "short" => numbers(rng.u16(..), u16::to_be_bytes),
        "long" => numbers(rng.u32(..), u32::to_be_bytes),
        "longlong" => numbers(rng.u64(..), u64::to_be_bytes),
        "shortstr" => {
            let bytes = bytes(rng, 255);
            (short(&bytes), format!("ShortStr({bytes:?})"))
        }
        "longstr" => {
            let bytes = bytes(rng, 400);
            (long(&bytes), format!("LongStr({bytes:?})"))
        }
        "table" => {
            let (_, bytes) = table(rng, 1);
            (long(&bytes), format!("Table({bytes:?})"))
        }
        other => panic!("no field has the type {other}"),
    }
}

fn numbers<T: Copy + ToString, const N: usize>(number: T, bytes: fn(T) -> [u8; N]) -> (Vec<u8>, String) {
    (bytes(number).to_vec(), number.to_string())
}

/// `basic.get-ok` to `BasicGetOk`.
fn camel_case(name: &str) -> String {
    let capitalise = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split(['.', '-']).map(capitalise).collect()
}

/// A table with at most `depth` more levels below it, and its bytes without the leading length.
pub(crate) fn table(rng: &mut Rng, depth: usize) -> (FieldTable, Vec<u8>) {
    let (mut table, mut bytes) = (FieldTable::new(), Vec::new());
    for _ in 0..rng.usize(..6) {
        let name = text(rng);
        if table.get(&name).is_some() {
            continue;
        }
        let (value, value_bytes) = value(rng, depth);
        bytes.extend(short(name.as_bytes()));
        bytes.extend(value_bytes);
        table.insert(name, value);
    }
    (table, bytes)
}

/// How many types a field value has. The first two nest.
pub(crate) const FIELD_TYPES: usize = 17;

fn value(rng: &mut Rng, depth: usize) -> (FieldValue, Vec<u8>) {
    let first = if depth == 0 { 2 } else { 0 };
    let (value, tag, bytes) = match rng.usize(first..FIELD_TYPES) {
        0 => {
            let (table, bytes) = table(rng, depth - 1);
            (FieldValue::Table(table), b'F', long(&bytes))
        }
        1 => {
            let (items, bytes): (Vec<_>, Vec<_>) =
                (0..rng.usize(..5)).map(|_| self::value(rng, depth - 1)).unzip();
            (FieldValue::Array(items), b'A', long(&bytes.concat()))
        }
        2 => (FieldValue::Void, b'V', vec![]),
        3 => {
            let value = rng.bool();
            (FieldValue::Bool(value), b't', vec![u8::from(value)])
        }
        4 => number(rng.i8(..), FieldValue::I8, b'b', i8::to_be_bytes),
        5 => number(rng.u8(..), FieldValue::U8, b'B', u8::to_be_bytes),
        6 => number(rng.i16(..), FieldValue::I16, b's', i16::to_be_bytes),
        7 => number(rng.u16(..), FieldValue::U16, b'u', u16::to_be_bytes),
        8 => number(rng.i32(..), FieldValue::I32, b'I', i32::to_be_bytes),
        9 => number(rng.u32(..), FieldValue::U32, b'i', u32::to_be_bytes),
        10 => number(rng.i64(..), FieldValue::I64, b'l', i64::to_be_bytes),
        11 => number(f32::from_bits(rng.u32(..)), FieldValue::F32, b'f', f32::to_be_bytes),
        12 => number(f64::from_bits(rng.u64(..)), FieldValue::F64, b'd', f64::to_be_bytes),
        13 => number(rng.u64(..), FieldValue::Timestamp, b'T', u64::to_be_bytes),
        14 => {
            let (scale, value) = (rng.u8(..), rng.u32(..));
            let bytes = [&[scale][..], &value.to_be_bytes()].concat();
            (FieldValue::Decimal { scale, value }, b'D', bytes)
        }
        15 => {
            let bytes = bytes(rng, 300);
            (FieldValue::LongString(bytes.clone()), b'S', long(&bytes))
        }
        _ => {
            let bytes = bytes(rng, 300);
            (FieldValue::Bytes(bytes.clone()), b'x', long(&bytes))
        }
    };
    (value, [vec![tag], bytes].concat())
}

fn number<T: Copy, const N: usize>(
    number: T,
    variant: fn(T) -> FieldValue,
    tag: u8,
    bytes: fn(T) -> [u8; N],
) -> (FieldValue, u8, Vec<u8>) {
    (variant(number), tag, bytes(number).to_vec())
}

/// Properties, each set or not, and their bytes: flags and fields.
pub(crate) fn properties(rng: &mut Rng) -> (BasicProperties, Vec<u8>) {
    let (mut properties, mut flags, mut bytes) = (BasicProperties::new(), 0u16, Vec::new());
    // One time in eight all are set, one time in eight none is.
    let all = rng.u8(..8);
    for (bit, name, kind) in BasicProperties::FIELDS {
        if all == 1 || (all != 0 && rng.bool()) {
            continue;
        }
        flags |= 1 << bit;
        properties = match *kind {
            "String" => {
                let text = text(rng);
                bytes.extend(short(text.as_bytes()));
                set_text(properties, name, text)
            }
            "FieldTable" => {
                let (table, table_bytes) = table(rng, 2);
                bytes.extend(long(&table_bytes));
                properties.headers(table)
            }
            "DeliveryMode" => {
                let octet = rng.u8(..4);
                bytes.push(octet);
                properties.delivery_mode(match octet {
                    1 => DeliveryMode::Transient,
                    2 => DeliveryMode::Persistent,
                    other => DeliveryMode::Other(other),
                })
            }
            "u8" => {
                let octet = rng.u8(..);
                bytes.push(octet);
                properties.priority(octet)
            }
            "u64" => {
                let seconds = rng.u64(..);
                bytes.extend(seconds.to_be_bytes());
                properties.timestamp(seconds)
            }
            other => panic!("no property has the type {other}"),
        };
    }
    (properties, [flags.to_be_bytes().to_vec(), bytes].concat())
}

fn set_text(properties: BasicProperties, name: &str, text: String) -> BasicProperties {
    match name {
        "content_type" => properties.content_type(text),
        "content_encoding" => properties.content_encoding(text),
        "correlation_id" => properties.correlation_id(text),
        "reply_to" => properties.reply_to(text),
        "expiration" => properties.expiration(text),
        "message_id" => properties.message_id(text),
        "type_" => properties.type_(text),
        "user_id" => properties.user_id(text),
        "app_id" => properties.app_id(text),
        "cluster_id" => properties.cluster_id(text),
        other => panic!("there is no property {other}"),
    }
}

/// A content header frame and the body frames behind it, for frames of at most `max_frame` bytes.
pub(crate) fn content(rng: &mut Rng, channel: u16, max_frame: usize) -> Vec<u8> {
    let body = bytes(rng, 1000);
    let mut out = Vec::new();
    let (properties, _) = properties(rng);
    content::write_header(&mut out, channel, max_frame, body.len(), Some(&properties)).unwrap();
    let pieces = rng.usize(frame::OVERHEAD + 1..max_frame);
    content::write_body(&mut out, channel, pieces, &body);
    out
}

/// Up to `limit` bytes, short ones preferred, with none and the limit itself among them.
pub(crate) fn bytes(rng: &mut Rng, limit: usize) -> Vec<u8> {
    let length = match rng.u8(..8) {
        0 => 0,
        1 => limit,
        2 => rng.usize(..=limit),
        _ => rng.usize(..=limit.min(12)),
    };
    (0..length).map(|_| rng.u8(..)).collect()
}

/// Text of at most 255 bytes, with characters of one to four bytes.
fn text(rng: &mut Rng) -> String {
    let length = bytes(rng, 255).len();
    let mut text: String = (0..length).map(|_| rng.char(..)).collect();
    while text.len() > 255 {
        text.pop();
    }
    text
}

fn short(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// A copy of `bytes` with a few random changes: bits and octets changed, pieces cut out, doubled or inserted.
pub(crate) fn mutated(rng: &mut Rng, bytes: &[u8]) -> Vec<u8> {
    let mut mutated = bytes.to_vec();
    for _ in 0..rng.usize(1..4) {
        let place = rng.usize(..=mutated.len());
        let end = (place + rng.usize(..9)).min(mutated.len());
        match (rng.u8(..6), mutated.get_mut(place)) {
            (0, Some(octet)) => *octet ^= 1 << rng.u8(..8),
            (1, Some(octet)) => *octet = rng.u8(..),
            (2, Some(octet)) => *octet = rng.choice([0, 1, 0x7f, 0x80, 0xce, 0xff]).unwrap(),
            (3, _) => drop(mutated.drain(place..end)),
            (4, _) => {
                let piece = mutated[place..end].to_vec();
                mutated.splice(place..place, piece);
            }
            _ => {
                let piece: Vec<u8> = (0..rng.usize(..5)).map(|_| rng.u8(..)).collect();
                mutated.splice(place..place, piece);
            }
        }
    }
    mutated
}
