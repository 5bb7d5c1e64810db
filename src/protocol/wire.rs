//! The elementary types of the wire: integers, bits, short and long strings, and undecoded tables.
//!
//! [`Reader`] walks over received bytes and refuses to go beyond their end; [`Writer`] appends to a buffer
//! and cannot fail, because a [`ShortStr`] or a [`Table`] that does not fit cannot be made in the first place.

use super::value::{FieldTable, FieldValue};
use crate::error::{Error, Result};

/// Bytes that are not what the protocol says they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("{0}")]
    Because(&'static str),
    #[error("unknown method {class}.{method}")]
    UnknownMethod { class: u16, method: u16 },
}

impl From<Malformed> for Error {
    /// For a part of one message; a method that cannot be decoded is reported with `Error::protocol`.
    fn from(malformed: Malformed) -> Error {
        Error::malformed(malformed.to_string())
    }
}

/// A cursor over received bytes.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// The octet that the bits read last came from, and how many of its bits are used.
    bits: u8,
    bits_used: u8,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, bits: 0, bits_used: 0 }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Whatever is left over after a complete value is an error, not padding.
    pub(crate) fn finish(&self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(Malformed::Because("bytes left over after the last field")) }
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) =
            self.rest.split_at_checked(length).ok_or(Malformed::Because("a field ends beyond its frame"))?;
        self.rest = rest;
        self.bits_used = 0;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) =
            self.rest.split_first_chunk().ok_or(Malformed::Because("a field ends beyond its frame"))?;
        self.rest = rest;
        self.bits_used = 0;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[octet]| octet)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// Consecutive bits share an octet, least significant first.
    pub(crate) fn bit(&mut self) -> Result<bool, Malformed> {
        if self.bits_used == 0 || self.bits_used == 8 {
            self.bits = self.u8()?;
        }
        let bit = self.bits >> self.bits_used & 1 == 1;
        self.bits_used += 1;
        Ok(bit)
    }

    pub(crate) fn short_string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u8()?;
        self.take(length.into())
    }

    pub(crate) fn long_string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }
}

/// Appends fields to a buffer.
#[derive(Debug)]
pub(crate) struct Writer<'b> {
    out: &'b mut Vec<u8>,
    bits_used: u8,
}

impl<'b> Writer<'b> {
    pub(crate) fn new(out: &'b mut Vec<u8>) -> Writer<'b> {
        Writer { out, bits_used: 0 }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.bits_used = 0;
    }

    pub(crate) fn bit(&mut self, bit: bool) {
        match self.out.last_mut() {
            Some(octet) if (1..8).contains(&self.bits_used) => *octet |= u8::from(bit) << self.bits_used,
            _ => {
                self.out.push(bit.into());
                self.bits_used = 0;
            }
        }
        self.bits_used += 1;
    }
}

/// A type that a method's field can have.
pub(crate) trait Field<'a>: Sized {
    /// The type's name in the specification.
    #[cfg(test)]
    const KIND: &'static str;
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed>;
    fn write(&self, writer: &mut Writer<'_>);
    /// For people.
    fn value(&self) -> FieldValue;
}

macro_rules! integer_field {
    ($($kind:literal $integer:ident),+) => { $(
        impl<'a> Field<'a> for $integer {
            #[cfg(test)]
            const KIND: &'static str = $kind;
            fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> { reader.$integer() }
            fn write(&self, writer: &mut Writer<'_>) { writer.bytes(&self.to_be_bytes()); }
            fn value(&self) -> FieldValue { FieldValue::I64(i64::try_from(*self).unwrap_or(i64::MAX)) }
        }
    )+ };
}
integer_field!("octet" u8, "short" u16, "long" u32, "longlong" u64);

impl<'a> Field<'a> for bool {
    #[cfg(test)]
    const KIND: &'static str = "bit";
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        reader.bit()
    }
    fn write(&self, writer: &mut Writer<'_>) {
        writer.bit(*self);
    }
    fn value(&self) -> FieldValue {
        FieldValue::Bool(*self)
    }
}

/// At most 255 bytes, usually UTF-8 (but a broker does not insist).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ShortStr<'a>(&'a [u8]);

impl<'a> ShortStr<'a> {
    /// # Errors
    /// [`Error::Invalid`] for more than 255 bytes; `what` names the string in the message.
    #[inline]
    pub(crate) fn new(what: &str, text: &'a str) -> Result<ShortStr<'a>> {
        if text.len() > 255 {
            return Err(too_long(what, text.len()));
        }
        Ok(ShortStr(text.as_bytes()))
    }

    /// Cuts a text that is only meant for people, such as the reason in a close.
    pub(crate) fn truncated(text: &'a str) -> ShortStr<'a> {
        let end = (0..=text.len().min(255)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        ShortStr(text.as_bytes().get(..end).unwrap_or_default())
    }

    /// A name that came as a short string, and goes as one again.
    #[cfg(feature = "broker")]
    pub(crate) fn from_bytes(bytes: &'a [u8]) -> ShortStr<'a> {
        ShortStr(bytes.get(..255).unwrap_or(bytes))
    }

    pub(crate) fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// For people: what is not UTF-8 is replaced.
    pub(crate) fn to_text(self) -> String {
        String::from_utf8_lossy(self.0).into_owned()
    }
}

#[cold]
fn too_long(what: &str, length: usize) -> Error {
    Error::invalid(format!("{what} is {length} bytes long; AMQP allows 255"))
}

impl<'a> Field<'a> for ShortStr<'a> {
    #[cfg(test)]
    const KIND: &'static str = "shortstr";
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        reader.short_string().map(ShortStr)
    }
    fn write(&self, writer: &mut Writer<'_>) {
        let length = u8::try_from(self.0.len()).unwrap_or(u8::MAX);
        writer.bytes(&[length]);
        writer.bytes(self.0);
    }
    fn value(&self) -> FieldValue {
        FieldValue::LongString(self.0.to_vec())
    }
}

/// At most 4 GiB of arbitrary bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LongStr<'a>(pub(crate) &'a [u8]);

impl<'a> Field<'a> for LongStr<'a> {
    #[cfg(test)]
    const KIND: &'static str = "longstr";
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        reader.long_string().map(LongStr)
    }
    fn write(&self, writer: &mut Writer<'_>) {
        writer.bytes(&u32::try_from(self.0.len()).unwrap_or(u32::MAX).to_be_bytes());
        writer.bytes(self.0);
    }
    fn value(&self) -> FieldValue {
        FieldValue::LongString(self.0.to_vec())
    }
}

/// A field table as it stands on the wire, without its length: decoded only when somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Table<'a>(pub(crate) &'a [u8]);

impl<'a> Field<'a> for Table<'a> {
    #[cfg(test)]
    const KIND: &'static str = "table";
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        reader.long_string().map(Table)
    }
    fn write(&self, writer: &mut Writer<'_>) {
        LongStr(self.0).write(writer);
    }
    fn value(&self) -> FieldValue {
        // One that cannot be decoded is shown as it is.
        FieldTable::decode(self.0).map_or_else(|_| FieldValue::Bytes(self.0.to_vec()), FieldValue::Table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_share_octets_until_another_field_comes() {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        for bit in [true, false, true] {
            writer.bit(bit);
        }
        7u8.write(&mut writer);
        for _ in 0..9 {
            writer.bit(true);
        }
        assert_eq!(out, [0b101, 7, 0xff, 1]);

        let mut reader = Reader::new(&out);
        assert_eq!([reader.bit(), reader.bit(), reader.bit()], [Ok(true), Ok(false), Ok(true)]);
        assert_eq!(reader.u8(), Ok(7));
        assert!((0..9).all(|_| reader.bit() == Ok(true)));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn lengths_beyond_the_end_are_refused_and_consume_nothing_past_it() {
        assert!(Reader::new(&[5, b'a']).short_string().is_err());
        assert!(Reader::new(&[0xff, 0xff, 0xff, 0xff, b'a']).long_string().is_err());
        assert!(Reader::new(&[0, 0, 0]).u32().is_err());
        assert!(Reader::new(&[]).bit().is_err());
    }

    #[test]
    fn a_short_string_of_256_bytes_cannot_be_made() {
        let text = "é".repeat(128);
        let error = ShortStr::new("the queue name", &text).unwrap_err();
        assert_eq!(error.to_string(), "the queue name is 256 bytes long; AMQP allows 255");
        assert_eq!(ShortStr::truncated(&text).bytes().len(), 254);
        assert!(ShortStr::new("x", &text[..254]).is_ok());
    }
}
