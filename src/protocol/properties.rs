//! The fourteen properties of a message.

use super::{
    value::{FieldTable, FieldValue},
    wire::{Malformed, Reader, ShortStr},
};
use crate::error::Result;

/// Whether a message survives a restart of the broker (in a durable queue).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeliveryMode {
    /// 1: kept in memory; lost when the broker restarts.
    Transient,
    /// 2: written to disk.
    Persistent,
    /// A value that the specification does not name.
    Other(u8),
}

impl DeliveryMode {
    fn octet(self) -> u8 {
        match self {
            DeliveryMode::Transient => 1,
            DeliveryMode::Persistent => 2,
            DeliveryMode::Other(other) => other,
        }
    }
}

/// A type that a property can have.
trait Property: Sized {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed>;
    fn write(&self, name: &str, out: &mut Vec<u8>) -> Result<()>;
    /// For people.
    fn value(&self) -> FieldValue;
}

impl Property for String {
    fn read(reader: &mut Reader<'_>) -> Result<String, Malformed> {
        std::str::from_utf8(reader.short_string()?)
            .map(str::to_owned)
            .map_err(|_| Malformed::Because("a property that is not UTF-8"))
    }
    fn write(&self, name: &str, out: &mut Vec<u8>) -> Result<()> {
        let bytes = ShortStr::new(name, self)?.bytes();
        out.push(bytes.len() as u8);
        out.extend_from_slice(bytes);
        Ok(())
    }
    fn value(&self) -> FieldValue {
        self.as_str().into()
    }
}

impl Property for FieldTable {
    fn read(reader: &mut Reader<'_>) -> Result<FieldTable, Malformed> {
        FieldTable::decode(reader.long_string()?)
    }
    fn write(&self, _: &str, out: &mut Vec<u8>) -> Result<()> {
        self.encode_sized(out)
    }
    fn value(&self) -> FieldValue {
        self.clone().into()
    }
}

impl Property for DeliveryMode {
    fn read(reader: &mut Reader<'_>) -> Result<DeliveryMode, Malformed> {
        Ok(match reader.u8()? {
            1 => DeliveryMode::Transient,
            2 => DeliveryMode::Persistent,
            other => DeliveryMode::Other(other),
        })
    }
    fn write(&self, _: &str, out: &mut Vec<u8>) -> Result<()> {
        out.push(self.octet());
        Ok(())
    }
    fn value(&self) -> FieldValue {
        self.octet().value()
    }
}

impl Property for u8 {
    fn read(reader: &mut Reader<'_>) -> Result<u8, Malformed> {
        reader.u8()
    }
    fn write(&self, _: &str, out: &mut Vec<u8>) -> Result<()> {
        out.push(*self);
        Ok(())
    }
    fn value(&self) -> FieldValue {
        i64::from(*self).into()
    }
}

impl Property for u64 {
    fn read(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
        reader.u64()
    }
    fn write(&self, _: &str, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&self.to_be_bytes());
        Ok(())
    }
    fn value(&self) -> FieldValue {
        FieldValue::Timestamp(*self)
    }
}

/// `bit name: type`, from the highest flag bit down: the order of the wire.
macro_rules! properties {
    ($($(#[doc = $doc:literal])+ $bit:literal $name:ident: $type:ty,)+) => {
        /// The properties of a message. All are optional; the broker itself looks only at a few
        /// (`delivery_mode`, `priority`, `expiration`, `user_id`, and the headers `CC` and `BCC`).
        ///
        /// Nothing is ever added to what you set.
        ///
        /// ```
        /// use leveret::BasicProperties;
        /// let properties = BasicProperties::new().content_type("text/plain").persistent().priority(3);
        /// assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
        /// ```
        #[derive(Debug, Clone, Default, PartialEq)]
        #[non_exhaustive]
        pub struct BasicProperties { $($(#[doc = $doc])+ pub $name: Option<$type>,)+ }

        impl BasicProperties {
            $(#[doc = concat!("Sets [`", stringify!($name), "`](BasicProperties#structfield.", stringify!($name), ").")]
            #[must_use]
            pub fn $name(mut self, $name: impl Into<$type>) -> BasicProperties {
                self.$name = Some($name.into());
                self
            })+

            /// Decodes flags and fields as they stand in a content header.
            pub(crate) fn decode(bytes: &[u8]) -> Result<BasicProperties, Malformed> {
                let mut reader = Reader::new(bytes);
                let mut properties = BasicProperties::default();
                let flags = reader.u16()?;
                if flags & 0b11 != 0 {
                    return Err(Malformed::Because("property flags that basic does not have"));
                }
                $(if flags & 1 << $bit != 0 {
                    properties.$name = Some(Property::read(&mut reader)?);
                })+
                reader.finish().map(|()| properties)
            }

            /// Appends flags and fields.
            ///
            /// # Errors
            /// [`Error::Invalid`](crate::Error::Invalid) for a text over 255 bytes and for headers that
            /// cannot be encoded; what was appended by then is the caller's to remove.
            pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
                let mut flags = 0u16;
                $(if self.$name.is_some() { flags |= 1 << $bit; })+
                out.extend_from_slice(&flags.to_be_bytes());
                if flags != 0 {
                    $(if let Some(value) = &self.$name { value.write(stringify!($name), out)?; })+
                }
                Ok(())
            }

            /// Those that are set, with their names, for people.
            pub(crate) fn fields(&self) -> FieldTable {
                let mut fields = FieldTable::new();
                $(if let Some(value) = &self.$name { fields.insert(stringify!($name), value.value()); })+
                fields
            }

            /// Flag bit, name and type of every property.
            #[cfg(test)]
            pub(crate) const FIELDS: &[(u32, &str, &str)] =
                &[$(($bit, stringify!($name), stringify!($type))),+];
        }
    };
}

properties! {
    /// MIME type of the body, such as `application/json`.
    15 content_type: String,
    /// MIME encoding of the body, such as `gzip`.
    14 content_encoding: String,
    /// Headers: names and values of the application's own.
    13 headers: FieldTable,
    /// Whether the message survives a restart of the broker.
    12 delivery_mode: DeliveryMode,
    /// Priority from 0 to 9 (or up to the queue's `x-max-priority`).
    11 priority: u8,
    /// Which request this is the answer to.
    10 correlation_id: String,
    /// The queue that answers go to.
    9 reply_to: String,
    /// Time to live in milliseconds, written as text.
    8 expiration: String,
    /// An identifier of the application's own.
    7 message_id: String,
    /// Seconds since 1970-01-01 UTC.
    6 timestamp: u64,
    /// The kind of message, in the application's own terms.
    5 type_: String,
    /// The user that publishes; the broker checks that it is the connection's.
    4 user_id: String,
    /// The application that publishes.
    3 app_id: String,
    /// A leftover of older versions of the protocol.
    2 cluster_id: String,
}

impl BasicProperties {
    /// No properties.
    #[must_use]
    pub fn new() -> BasicProperties {
        BasicProperties::default()
    }

    /// Sets `delivery_mode` to [`DeliveryMode::Persistent`].
    #[must_use]
    pub fn persistent(self) -> BasicProperties {
        self.delivery_mode(DeliveryMode::Persistent)
    }

    /// Sets one header, keeping the others.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<FieldValue>) -> BasicProperties {
        self.headers.get_or_insert_default().insert(name, value);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_set() -> BasicProperties {
        BasicProperties::new()
            .content_type("text/plain")
            .content_encoding("identity")
            .header("x", 1)
            .persistent()
            .priority(9)
            .correlation_id("c")
            .reply_to("r")
            .expiration("60000")
            .message_id("m")
            .timestamp(1_700_000_000u64)
            .type_("t")
            .user_id("u")
            .app_id("a")
            .cluster_id("old")
    }

    /// Row 52: all 14 properties are typed and separate from the headers.
    #[test]
    fn all_fourteen_round_trip_together_and_none_at_all() {
        assert_eq!(BasicProperties::FIELDS.len(), 14);
        for properties in [all_set(), BasicProperties::new()] {
            let mut bytes = Vec::new();
            properties.encode(&mut bytes).unwrap();
            assert_eq!(BasicProperties::decode(&bytes).unwrap(), properties);
            for end in 0..bytes.len() {
                assert!(BasicProperties::decode(&bytes[..end]).is_err(), "cut at {end}");
            }
            bytes.push(0);
            assert!(BasicProperties::decode(&bytes).is_err(), "a trailing byte");
        }
    }

    #[test]
    fn a_text_over_255_bytes_is_refused() {
        let error = BasicProperties::new().reply_to("r".repeat(256)).encode(&mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "reply_to is 256 bytes long; AMQP allows 255");
    }

    /// A delivery mode outside the specification survives.
    #[test]
    fn unknown_delivery_modes_survive() {
        let decoded = BasicProperties::decode(&[0x10, 0, 7]).unwrap();
        assert_eq!(decoded.delivery_mode, Some(DeliveryMode::Other(7)));
    }
}
