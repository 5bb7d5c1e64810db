//! Contents: a method frame, a header frame and body frames that together are one message.
//!
//! [`Assembly`] puts an incoming content together in one allocation. It never allocates more than what was
//! received, at most doubled: the announced size alone reserves nothing big.

use super::{
    frame::{self, FrameKind},
    properties::BasicProperties,
    spec::{BasicPublish, MethodBody},
    wire::{Malformed, Reader},
};
use crate::error::Result;
use std::ops::Range;

/// The class that every content belongs to: basic.
const BASIC: u16 = 60;

/// What may be reserved for a body before any of it came: one frame of the usual size.
const RESERVE_UNSEEN: usize = 128 * 1024;

/// A decoded content header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContentHeader<'a> {
    pub(crate) body_size: u64,
    /// Flags and fields, not decoded.
    pub(crate) properties: &'a [u8],
}

impl<'a> ContentHeader<'a> {
    pub(crate) fn decode(payload: &'a [u8]) -> Result<ContentHeader<'a>, Malformed> {
        let mut reader = Reader::new(payload);
        let (class, _weight, body_size) = (reader.u16()?, reader.u16()?, reader.u64()?);
        if class != BASIC {
            return Err(Malformed::Because("a content header of a class without content"));
        }
        Ok(ContentHeader { body_size, properties: reader.rest() })
    }
}

/// Appends a content header frame.
pub(crate) fn write_header(
    out: &mut Vec<u8>,
    channel: u16,
    max_frame: usize,
    body_size: usize,
    properties: Option<&BasicProperties>,
) -> Result<()> {
    frame::write(out, FrameKind::Header, channel, max_frame, |out| {
        out.extend_from_slice(&BASIC.to_be_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&(body_size as u64).to_be_bytes());
        match properties {
            Some(properties) => properties.encode(out),
            None => {
                out.extend_from_slice(&[0; 2]);
                Ok(())
            }
        }
    })
}

/// Appends a body as frames of at most `max_frame` bytes; an empty body has none.
pub(crate) fn write_body(out: &mut Vec<u8>, channel: u16, max_frame: usize, body: &[u8]) {
    for piece in body.chunks(max_frame - frame::OVERHEAD) {
        out.extend_from_slice(&frame::header(FrameKind::Body, channel, piece.len() as u32));
        out.extend_from_slice(piece);
        out.extend_from_slice(&frame::TRAILER);
    }
}

/// Appends a publish without properties whose body fits one frame, which most are: in a few appends what the general
/// functions write field by field. A unit test compares the bytes.
#[inline]
pub(crate) fn write_plain(out: &mut Vec<u8>, channel: u16, publish: &BasicPublish<'_>, body: &[u8]) {
    const IDS: [u8; 4] = [0, BasicPublish::CLASS as u8, 0, BasicPublish::METHOD as u8];
    let (exchange, key) = (publish.exchange.bytes(), publish.routing_key.bytes());
    // The ids, a reserved field of two bytes, the names with their lengths, and the flags.
    let method_size = (9 + exchange.len() + key.len()) as u32;
    let [high, low] = channel.to_be_bytes();

    let mut start = [0; frame::HEADER + 7];
    let (frame_header, fields) = start.split_at_mut(frame::HEADER);
    frame_header.copy_from_slice(&frame::header(FrameKind::Method, channel, method_size));
    fields.copy_from_slice(&[IDS[0], IDS[1], IDS[2], IDS[3], 0, 0, exchange.len() as u8]);
    out.extend_from_slice(&start);
    out.extend_from_slice(exchange);
    out.push(key.len() as u8);
    out.extend_from_slice(key);

    let flags = u8::from(publish.mandatory) | u8::from(publish.immediate) << 1;
    let [s0, s1, s2, s3, s4, s5, s6, s7] = (body.len() as u64).to_be_bytes();
    let rest = [
        flags,
        frame::END,
        2,
        high,
        low,
        0,
        0,
        0,
        14,
        0,
        BASIC as u8,
        0,
        0,
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        0,
        0,
        frame::END,
    ];
    out.extend_from_slice(&rest);
    if !body.is_empty() {
        out.extend_from_slice(&frame::header(FrameKind::Body, channel, body.len() as u32));
        out.extend_from_slice(body);
        out.push(frame::END);
    }
}

/// A complete message as it came: method, properties and body, one after the other in `bytes`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    pub(crate) parts: Parts,
}

/// Where the three parts of a message lie in a buffer that may hold several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    method: u32,
    /// Shorter than any frame can be: names and numbers only.
    method_size: u16,
    properties: u32,
    properties_end: u32,
    body: u32,
    end: u32,
}

impl Parts {
    /// Nothing at all.
    pub(crate) const NONE: Parts =
        Parts { method: 0, method_size: 0, properties: 0, properties_end: 0, body: 0, end: 0 };

    /// Of three ranges anywhere in a buffer, one behind the other.
    pub(crate) fn apart(method: Range<usize>, properties: Range<usize>, body: Range<usize>) -> Parts {
        Parts {
            method: method.start as u32,
            method_size: u16::try_from(method.len()).unwrap_or(u16::MAX),
            properties: properties.start as u32,
            properties_end: properties.end as u32,
            body: body.start as u32,
            end: body.end as u32,
        }
    }

    pub(crate) fn method(self, bytes: &[u8]) -> &[u8] {
        part(bytes, self.method, self.method.saturating_add(self.method_size.into()))
    }

    pub(crate) fn properties(self, bytes: &[u8]) -> &[u8] {
        part(bytes, self.properties, self.properties_end)
    }

    #[inline]
    pub(crate) fn body(self, bytes: &[u8]) -> &[u8] {
        part(bytes, self.body, self.end)
    }

    /// The same so many bytes further on in a buffer.
    pub(crate) fn moved_up(self, by: usize) -> Parts {
        let moved = |place: u32| place.saturating_add(by as u32);
        Parts {
            method: moved(self.method),
            properties: moved(self.properties),
            properties_end: moved(self.properties_end),
            body: moved(self.body),
            end: moved(self.end),
            ..self
        }
    }

    /// The message alone in a buffer of its own, and where its parts are there.
    pub(crate) fn copy_out(self, bytes: &[u8]) -> (Vec<u8>, Parts) {
        let (method, properties) = (self.method(bytes), self.properties(bytes));
        let message = Message { method, properties, body: self.body(bytes) };
        let mut alone = Vec::new();
        let parts = message.append_to(&mut alone);
        (alone, parts)
    }
}

/// The three parts of a message, wherever they are.
pub(crate) struct Message<'a> {
    pub(crate) method: &'a [u8],
    pub(crate) properties: &'a [u8],
    pub(crate) body: &'a [u8],
}

impl Message<'_> {
    /// Appends the message, and says where its parts are then.
    pub(crate) fn append_to(&self, bytes: &mut Vec<u8>) -> Parts {
        let start = bytes.len();
        let properties = start + self.method.len();
        let body = properties + self.properties.len();
        let end = body + self.body.len();
        bytes.extend_from_slice(self.method);
        bytes.extend_from_slice(self.properties);
        bytes.extend_from_slice(self.body);
        Parts::apart(start..properties, properties..body, body..end)
    }
}

#[inline]
fn part(bytes: &[u8], start: u32, end: u32) -> &[u8] {
    bytes.get(start as usize..end as usize).unwrap_or_default()
}

/// The content that a channel is receiving: method seen, header or body still to come.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    bytes: Vec<u8>,
    parts: Parts,
    /// `None` until the header came.
    body_missing: Option<u64>,
    /// Nobody wants the content: it is followed to its end, and nothing of it is kept.
    unwanted: bool,
}

impl Assembly {
    /// Starts with the payload of the method frame, reusing the buffer of the content before.
    pub(crate) fn start(&mut self, method: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(method);
        self.parts = Parts::apart(0..method.len(), 0..0, 0..0);
        self.body_missing = None;
        self.unwanted = false;
    }

    /// Keeps nothing of the content from here on.
    pub(crate) fn discard(&mut self) {
        self.unwanted = true;
    }

    /// Takes the header frame's payload; true when the body is empty and the message therefore complete.
    ///
    /// # Errors
    /// A second header, one that cannot be decoded, and a body over `max_size` bytes.
    pub(crate) fn header(&mut self, payload: &[u8], max_size: u64) -> Result<bool, Malformed> {
        if self.body_missing.is_some() {
            return Err(Malformed::Because("a second header where a body was expected"));
        }
        let header = ContentHeader::decode(payload)?;
        let properties_end = self.bytes.len() + header.properties.len();
        let end = (properties_end as u64).saturating_add(header.body_size);
        // The parts are counted with 32 bits, whatever the limit is.
        if header.body_size > max_size || end > u32::MAX.into() {
            return Err(Malformed::Because("a message larger than this client accepts"));
        }
        self.bytes.extend_from_slice(header.properties);
        self.parts.properties = self.parts.method_size.into();
        self.parts.properties_end = properties_end as u32;
        self.parts.body = properties_end as u32;
        self.parts.end = end as u32;
        self.body_missing = Some(header.body_size);
        Ok(header.body_size == 0)
    }

    /// Takes a body frame's payload; true when the message is complete.
    pub(crate) fn body(&mut self, payload: &[u8]) -> Result<bool, Malformed> {
        let Some(missing) = self.body_missing else {
            return Err(Malformed::Because("a body where a header was expected"));
        };
        let missing = missing
            .checked_sub(payload.len() as u64)
            .ok_or(Malformed::Because("more body than the header announced"))?;
        self.body_missing = Some(missing);
        if self.unwanted {
            return Ok(missing == 0);
        }
        if self.bytes.capacity() - self.bytes.len() < payload.len() {
            let seen = self.bytes.len() + payload.len();
            let unseen = usize::try_from(missing).unwrap_or(usize::MAX).min(seen.max(RESERVE_UNSEEN));
            self.bytes.reserve_exact(payload.len() + unseen);
        }
        self.bytes.extend_from_slice(payload);
        Ok(missing == 0)
    }

    pub(crate) fn method(&self) -> &[u8] {
        self.parts.method(&self.bytes)
    }

    /// The size of the message with all its parts, as far as it is announced.
    pub(crate) fn size(&self) -> usize {
        self.parts.end as usize
    }

    /// Takes the complete message out.
    pub(crate) fn finish(&mut self) -> Content {
        Content { bytes: std::mem::take(&mut self.bytes), parts: self.parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(size: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let properties = BasicProperties::new().content_type("t");
        write_header(&mut out, 1, 4096, size as usize, Some(&properties)).unwrap();
        frame::decode(&out, 4096).unwrap().unwrap().0.payload.to_vec()
    }

    #[test]
    fn a_content_is_put_together_from_any_number_of_frames() {
        let body: Vec<u8> = (0..=255).collect();
        for piece in [1, 7, 255, 256, 300] {
            let mut assembly = Assembly::default();
            assembly.start(b"method");
            assert_eq!(assembly.header(&header(256), 1000), Ok(false));
            let complete: Vec<bool> = body.chunks(piece).map(|piece| assembly.body(piece).unwrap()).collect();
            assert!(complete.last() == Some(&true) && !complete[..complete.len() - 1].contains(&true));
            let Content { bytes, parts } = assembly.finish();
            assert_eq!(parts.method(&bytes), b"method");
            assert_eq!(parts.body(&bytes), body);
            let properties = BasicProperties::decode(parts.properties(&bytes)).unwrap();
            assert_eq!(properties.content_type.as_deref(), Some("t"));
        }
    }

    #[test]
    fn an_empty_body_is_complete_with_its_header() {
        let mut assembly = Assembly::default();
        assembly.start(b"m");
        assert_eq!(assembly.header(&header(0), 1000), Ok(true));
        assert!(assembly.body(b"x").is_err(), "body overrun");
    }

    #[test]
    fn an_unwanted_content_is_followed_and_not_kept() {
        let mut assembly = Assembly::default();
        assembly.start(b"m");
        assembly.discard();
        assert_eq!(assembly.header(&header(1000), 1000), Ok(false));
        assert_eq!(assembly.body(&[1; 999]), Ok(false));
        assert_eq!(assembly.body(&[1; 1]), Ok(true));
        assert!(assembly.bytes.capacity() < 100);
        assert!(assembly.body(b"x").is_err(), "body overrun");
    }

    #[test]
    fn what_comes_out_of_order_is_refused() {
        let mut assembly = Assembly::default();
        assembly.start(b"m");
        assert!(assembly.body(b"x").is_err());
        assert_eq!(assembly.header(&header(2), 1000), Ok(false));
        assert!(assembly.header(&header(2), 1000).is_err());
        assert!(assembly.body(b"xyz").is_err(), "body overrun");
    }

    /// Row 91: an announced size reserves nothing by itself, and is limited.
    #[test]
    fn the_announced_size_reserves_nothing_big() {
        let mut assembly = Assembly::default();
        assembly.start(b"m");
        assert_eq!(assembly.header(&header(1 << 30), 1 << 31), Ok(false));
        // More than the room that happens to be left behind the header.
        assembly.body(&[0; 1000]).unwrap();
        assert!(assembly.bytes.capacity() <= 2 * RESERVE_UNSEEN);
        assembly.start(b"m");
        assert!(assembly.header(&header(1 << 30), 1 << 20).is_err());
    }

    /// Row 91: the places of a message's parts are 32 bits wide; what they cannot count is refused, even
    /// without a limit.
    #[test]
    fn a_message_over_4_gib_is_refused() {
        for size in [u32::MAX as u64, u32::MAX as u64 + 1, usize::MAX as u64] {
            let mut assembly = Assembly::default();
            assembly.start(b"m");
            assert!(assembly.header(&header(size), u64::MAX).is_err(), "{size}");
        }
        let mut assembly = Assembly::default();
        assembly.start(b"m");
        assert_eq!(assembly.header(&header(u64::from(u32::MAX) - 100), u64::MAX), Ok(false));
    }

    #[test]
    fn a_plain_publish_is_what_the_general_functions_write() {
        let name = |text| super::super::wire::ShortStr::new("a name", text).unwrap();
        for (exchange, key, body) in [("", "", &b""[..]), ("e", "key", b"x"), ("exchange", "", &[7; 1000])] {
            for flags in 0..4 {
                let (mandatory, immediate) = (flags & 1 == 1, flags & 2 == 2);
                let (exchange, routing_key) = (name(exchange), name(key));
                let publish =
                    BasicPublish { exchange, routing_key, mandatory, immediate, ..Default::default() };
                let (mut plain, mut general) = (Vec::new(), Vec::new());
                write_plain(&mut plain, 0x1234, &publish, body);
                frame::write_method(&mut general, 0x1234, 4096, &publish).unwrap();
                write_header(&mut general, 0x1234, 4096, body.len(), None).unwrap();
                write_body(&mut general, 0x1234, 4096, body);
                assert_eq!(plain, general);
            }
        }
    }

    #[test]
    fn a_body_is_split_at_the_frame_size() {
        for (size, frames) in
            [(0, 0), (1, 1), (4087, 1), (4088, 1), (4089, 2), (2 * 4088, 2), (2 * 4088 + 1, 3)]
        {
            let mut out = Vec::new();
            write_body(&mut out, 3, 4096, &vec![9; size]);
            let (mut count, mut rest) = (0, &out[..]);
            while let Some((frame, used)) = frame::decode(rest, 4096).unwrap() {
                assert_eq!((frame.kind, frame.channel), (FrameKind::Body, 3));
                (count, rest) = (count + 1, &rest[used..]);
            }
            assert_eq!((count, rest.len(), out.len()), (frames, 0, size + frames * frame::OVERHEAD));
        }
    }
}
