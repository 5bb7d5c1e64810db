//! Field values and field tables: message headers, arguments, and the properties that peers exchange.

use std::fmt;

use super::wire::{Malformed, Reader, ShortStr};
use crate::error::{Error, Result};

/// How deeply tables and arrays may nest, on the way in and out. No known program nests deeper than 4.
const MAX_DEPTH: usize = 32;

/// A value in a [`FieldTable`].
///
/// Anything that converts into one can be given to [`FieldTable::insert`]: integers, floats, booleans,
/// strings, byte vectors and tables.
///
/// ```
/// use leveret::FieldValue;
/// assert_eq!(FieldValue::from("text").as_str(), Some("text"));
/// assert_eq!(FieldValue::from(5).as_i64(), Some(5));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FieldValue {
    /// Nothing.
    Void,
    /// A truth value.
    Bool(bool),
    /// 8 bits, signed.
    I8(i8),
    /// 8 bits, unsigned.
    U8(u8),
    /// 16 bits, signed.
    I16(i16),
    /// 16 bits, unsigned.
    U16(u16),
    /// 32 bits, signed.
    I32(i32),
    /// 32 bits, unsigned.
    U32(u32),
    /// 64 bits, signed.
    I64(i64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// `value` divided by ten to the power of `scale`.
    Decimal {
        /// The number of decimal places.
        scale: u8,
        /// The unscaled value.
        value: u32,
    },
    /// A long string: usually UTF-8 text, but any bytes can come from the wire.
    LongString(Vec<u8>),
    /// Bytes that are not meant as text.
    Bytes(Vec<u8>),
    /// A list of values.
    Array(Vec<FieldValue>),
    /// Seconds since 1970-01-01 UTC.
    Timestamp(u64),
    /// A nested table.
    Table(FieldTable),
}

impl FieldValue {
    /// The text of a long string that is valid UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            FieldValue::LongString(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The value of any of the integer types, and of a timestamp that fits.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            FieldValue::I8(value) => Some(value.into()),
            FieldValue::U8(value) => Some(value.into()),
            FieldValue::I16(value) => Some(value.into()),
            FieldValue::U16(value) => Some(value.into()),
            FieldValue::I32(value) => Some(value.into()),
            FieldValue::U32(value) => Some(value.into()),
            FieldValue::I64(value) => Some(value),
            FieldValue::Timestamp(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The value of a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let FieldValue::Bool(value) = *self { Some(value) } else { None }
    }

    /// The nested table, if this is one.
    pub fn as_table(&self) -> Option<&FieldTable> {
        if let FieldValue::Table(table) = self { Some(table) } else { None }
    }

    /// One that holds no others.
    fn read_plain(letter: u8, reader: &mut Reader<'_>) -> Result<FieldValue, Malformed> {
        Ok(match letter {
            b't' => FieldValue::Bool(reader.u8()? != 0),
            b'b' => FieldValue::I8(i8::from_be_bytes(reader.array()?)),
            b'B' => FieldValue::U8(reader.u8()?),
            b's' => FieldValue::I16(i16::from_be_bytes(reader.array()?)),
            b'u' => FieldValue::U16(reader.u16()?),
            b'I' => FieldValue::I32(i32::from_be_bytes(reader.array()?)),
            b'i' => FieldValue::U32(reader.u32()?),
            b'l' => FieldValue::I64(i64::from_be_bytes(reader.array()?)),
            b'f' => FieldValue::F32(f32::from_be_bytes(reader.array()?)),
            b'd' => FieldValue::F64(f64::from_be_bytes(reader.array()?)),
            b'D' => FieldValue::Decimal { scale: reader.u8()?, value: reader.u32()? },
            b'S' => FieldValue::LongString(reader.long_string()?.to_vec()),
            b'x' => FieldValue::Bytes(reader.long_string()?.to_vec()),
            b'T' => FieldValue::Timestamp(reader.u64()?),
            b'V' => FieldValue::Void,
            _ => return Err(Malformed::Because("a field value of unknown type")),
        })
    }

    fn write(&self, out: &mut Vec<u8>, depth: usize) -> Result<()> {
        let mut put = |tag: u8, bytes: &[u8]| {
            out.push(tag);
            out.extend_from_slice(bytes);
        };
        match self {
            FieldValue::Void => put(b'V', &[]),
            FieldValue::Bool(value) => put(b't', &[u8::from(*value)]),
            FieldValue::I8(value) => put(b'b', &value.to_be_bytes()),
            FieldValue::U8(value) => put(b'B', &value.to_be_bytes()),
            FieldValue::I16(value) => put(b's', &value.to_be_bytes()),
            FieldValue::U16(value) => put(b'u', &value.to_be_bytes()),
            FieldValue::I32(value) => put(b'I', &value.to_be_bytes()),
            FieldValue::U32(value) => put(b'i', &value.to_be_bytes()),
            FieldValue::I64(value) => put(b'l', &value.to_be_bytes()),
            FieldValue::F32(value) => put(b'f', &value.to_be_bytes()),
            FieldValue::F64(value) => put(b'd', &value.to_be_bytes()),
            FieldValue::Timestamp(value) => put(b'T', &value.to_be_bytes()),
            FieldValue::Decimal { scale, value } => {
                put(b'D', &[*scale]);
                out.extend_from_slice(&value.to_be_bytes());
            }
            FieldValue::LongString(bytes) => {
                out.push(b'S');
                write_sized(out, |out| out.extend_from_slice(bytes));
            }
            FieldValue::Bytes(bytes) => {
                out.push(b'x');
                write_sized(out, |out| out.extend_from_slice(bytes));
            }
            FieldValue::Array(items) => {
                out.push(b'A');
                let depth = deeper(depth)?;
                write_sized(out, |out| items.iter().try_for_each(|item| item.write(out, depth)))?;
            }
            FieldValue::Table(table) => {
                out.push(b'F');
                let depth = deeper(depth)?;
                write_sized(out, |out| table.write(out, depth))?;
            }
        }
        Ok(())
    }
}

fn deeper(depth: usize) -> Result<usize, Malformed> {
    if depth < MAX_DEPTH { Ok(depth + 1) } else { Err(Malformed::Because("tables nest more than 32 deep")) }
}

/// A table or an array of which not all has been read.
struct Unread<'a> {
    rest: Reader<'a>,
    held: Held,
}

enum Held {
    /// The entries, and the name of the next one.
    Table(Vec<(String, FieldValue)>, String),
    Array(Vec<FieldValue>),
}

impl<'a> Unread<'a> {
    fn table(bytes: &'a [u8]) -> Unread<'a> {
        Unread { rest: Reader::new(bytes), held: Held::Table(Vec::new(), String::new()) }
    }

    fn array(bytes: &'a [u8]) -> Unread<'a> {
        Unread { rest: Reader::new(bytes), held: Held::Array(Vec::new()) }
    }

    /// The next value's type, once its name was read if it has one; `None` at the end.
    fn next_letter(&mut self) -> Result<Option<u8>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        if let Held::Table(_, next) = &mut self.held {
            let name = std::str::from_utf8(self.rest.short_string()?)
                .map_err(|_| Malformed::Because("a field name that is not UTF-8"))?;
            name.clone_into(next);
        }
        self.rest.u8().map(Some)
    }

    fn push(&mut self, value: FieldValue) {
        match &mut self.held {
            Held::Table(entries, name) => entries.push((std::mem::take(name), value)),
            Held::Array(values) => values.push(value),
        }
    }

    fn into_value(self) -> FieldValue {
        match self.held {
            Held::Table(entries, _) => FieldValue::Table(FieldTable(entries)),
            Held::Array(values) => FieldValue::Array(values),
        }
    }

    /// The outermost is one.
    fn into_table(self) -> FieldTable {
        if let Held::Table(entries, _) = self.held { FieldTable(entries) } else { FieldTable::new() }
    }
}

/// Writes a 32-bit length and what `content` writes. A length beyond 32 bits cannot come to the wire: a
/// method or header frame over `frame_max` is refused before.
fn write_sized<T>(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let result = content(out);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    result
}

/// An ordered map from names to [`FieldValue`]s: message headers and arguments.
///
/// ```
/// use leveret::FieldTable;
/// let mut headers = FieldTable::new();
/// headers.insert("x-retries", 3);
/// headers.insert("origin", "shop");
/// assert_eq!(headers.get("x-retries").and_then(|value| value.as_i64()), Some(3));
/// ```
#[derive(Clone, Default, PartialEq)]
pub struct FieldTable(Vec<(String, FieldValue)>);

impl FieldTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> FieldTable {
        FieldTable::default()
    }

    /// Sets `name`, and returns the value that it had before.
    ///
    /// Names over 255 bytes are refused by the call that would send the table.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<FieldValue>) -> Option<FieldValue> {
        self.insert_owned(name.into(), value.into())
    }

    fn insert_owned(&mut self, name: String, value: FieldValue) -> Option<FieldValue> {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => Some(std::mem::replace(old, value)),
            None => {
                self.0.push((name, value));
                None
            }
        }
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&FieldValue> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Takes `name` out of the table.
    pub fn remove(&mut self, name: &str) -> Option<FieldValue> {
        let place = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(place).1)
    }

    /// Names and values, in the order of the wire.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &FieldValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Puts the entries in the order of their names. What comes from the wire can have several with one name: they keep
    /// their order.
    #[cfg(feature = "broker")]
    pub(crate) fn sort(&mut self) {
        self.0.sort_by(|(one, _), (other, _)| one.cmp(other));
    }

    /// Leaves the entries for which `stays` is true, in their order.
    #[cfg(feature = "broker")]
    pub(crate) fn retain(&mut self, stays: impl Fn(&str, &FieldValue) -> bool) {
        self.0.retain(|(name, value)| stays(name, value));
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Decodes a table from its bytes without the leading length. Not by recursion: whoever looks at a message may have
    /// a small stack, and how deep it is is the sender's choice.
    pub(crate) fn decode(bytes: &[u8]) -> Result<FieldTable, Malformed> {
        let mut current = Unread::table(bytes);
        let mut around = Vec::new();
        loop {
            match current.next_letter()? {
                Some(letter @ (b'F' | b'A')) => {
                    let bytes = current.rest.long_string()?;
                    deeper(around.len())?;
                    let inner = if letter == b'A' { Unread::array(bytes) } else { Unread::table(bytes) };
                    around.push(std::mem::replace(&mut current, inner));
                }
                Some(letter) => {
                    let value = FieldValue::read_plain(letter, &mut current.rest)?;
                    current.push(value);
                }
                None => {
                    let Some(outer) = around.pop() else { return Ok(current.into_table()) };
                    let inner = std::mem::replace(&mut current, outer);
                    current.push(inner.into_value());
                }
            }
        }
    }

    /// The table's bytes without the leading length.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name over 255 bytes and for nesting deeper than 32.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.write(&mut out, 0)?;
        Ok(out)
    }

    /// Appends the table with its leading length.
    pub(crate) fn encode_sized(&self, out: &mut Vec<u8>) -> Result<()> {
        write_sized(out, |out| self.write(out, 0))
    }

    /// How many entries have been allocated.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    fn write(&self, out: &mut Vec<u8>, depth: usize) -> Result<()> {
        for (name, value) in &self.0 {
            let name = ShortStr::new("the field name", name)?.bytes();
            out.push(name.len() as u8);
            out.extend_from_slice(name);
            value.write(out, depth).map_err(|error| match error {
                Error::Malformed(reason) => Error::Invalid(reason),
                other => other,
            })?;
        }
        Ok(())
    }
}

impl fmt::Debug for FieldTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<N: Into<String>, V: Into<FieldValue>> FromIterator<(N, V)> for FieldTable {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(entries: I) -> FieldTable {
        let mut table = FieldTable::new();
        table.extend(entries);
        table
    }
}

impl<N: Into<String>, V: Into<FieldValue>> Extend<(N, V)> for FieldTable {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, entries: I) {
        for (name, value) in entries {
            self.insert(name, value);
        }
    }
}

impl<N: Into<String>, V: Into<FieldValue>, const LENGTH: usize> From<[(N, V); LENGTH]> for FieldTable {
    fn from(entries: [(N, V); LENGTH]) -> FieldTable {
        entries.into_iter().collect()
    }
}

macro_rules! from {
    ($($type:ty => $variant:ident),+) => { $(
        impl From<$type> for FieldValue {
            fn from(value: $type) -> FieldValue { FieldValue::$variant(value.into()) }
        }
    )+ };
}
from!(bool => Bool, i8 => I8, u8 => U8, i16 => I16, u16 => U16, i32 => I32, u32 => U32, i64 => I64,
      f32 => F32, f64 => F64, &str => LongString, String => LongString, Vec<u8> => Bytes,
      Vec<FieldValue> => Array, FieldTable => Table);

#[cfg(test)]
mod tests {
    use super::*;

    fn every_type() -> FieldTable {
        let mut table = FieldTable::new();
        table.insert("void", FieldValue::Void);
        table.insert("bool", true);
        table.insert("i8", -1i8);
        table.insert("u8", 200u8);
        table.insert("i16", -300i16);
        table.insert("u16", 60_000u16);
        table.insert("i32", -70_000);
        table.insert("u32", 4_000_000_000u32);
        table.insert("i64", i64::MIN);
        table.insert("f32", 0.5f32);
        table.insert("f64", -2.25f64);
        table.insert("decimal", FieldValue::Decimal { scale: 2, value: 314 });
        table.insert("text", "häschen");
        table.insert("not text", FieldValue::LongString(vec![0xff, 0xfe]));
        table.insert("bytes", vec![0u8, 255]);
        table.insert("time", FieldValue::Timestamp(1_700_000_000));
        table.insert("array", vec![FieldValue::from(1), FieldValue::from("two"), FieldValue::Array(vec![])]);
        table.insert("table", FieldTable::from([("inner", 1)]));
        table
    }

    /// Row 90: every RabbitMQ field type decodes and encodes.
    #[test]
    fn every_field_type_round_trips() {
        let table = every_type();
        assert_eq!(FieldTable::decode(&table.encode().unwrap()).unwrap(), table);
    }

    #[test]
    fn every_cut_of_a_table_is_an_error_or_a_shorter_table() {
        let bytes = every_type().encode().unwrap();
        for end in 0..bytes.len() {
            if let Ok(table) = FieldTable::decode(&bytes[..end]) {
                assert!(table.len() < every_type().len());
            }
        }
    }

    /// Row 90: an unknown tag is an error of that table, and nothing else.
    #[test]
    fn an_unknown_type_is_an_error() {
        assert_eq!(
            FieldTable::decode(b"\x01aZ").unwrap_err(),
            Malformed::Because("a field value of unknown type")
        );
    }

    /// Rows 43 and 90: depth is limited both ways.
    #[test]
    fn deep_nesting_is_refused_in_both_directions() {
        let nest = |levels: usize| {
            (0..levels)
                .fold(FieldTable::new(), |inner, _| FieldTable::from([("t", FieldValue::Table(inner))]))
        };
        let bytes = nest(MAX_DEPTH).encode().unwrap();
        assert!(FieldTable::decode(&bytes).is_ok());
        assert!(matches!(nest(MAX_DEPTH + 1).encode(), Err(Error::Invalid(_))));

        let mut bytes = Vec::new();
        for _ in 0..100_000 {
            let mut outer = b"\x01aF".to_vec();
            outer.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
            if bytes.len() > 2000 {
                break;
            }
            outer.extend_from_slice(&bytes);
            bytes = outer;
        }
        assert!(FieldTable::decode(&bytes).is_err());
    }

    #[test]
    fn a_name_over_255_bytes_is_refused() {
        let table = FieldTable::from([("n".repeat(256), 1)]);
        assert!(matches!(table.encode(), Err(Error::Invalid(_))));
    }

    #[test]
    fn inserting_twice_replaces() {
        let mut table = FieldTable::from([("a", 1), ("b", 2)]);
        assert_eq!(table.insert("a", "x"), Some(FieldValue::I32(1)));
        assert_eq!(table.len(), 2);
        assert_eq!(table.remove("a").unwrap().as_str(), Some("x"));
        assert_eq!(format!("{table:?}"), "{\"b\": I32(2)}");
    }
}
