//! Frames: seven bytes of header, the payload, and an end octet.

use super::{
    spec::{BasicAck, Encode, MethodBody},
    wire::{Malformed, Writer},
};
use crate::error::{Error, Result};

/// What a client sends first.
pub(crate) const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";

/// Bytes that a frame adds to its payload.
pub(crate) const OVERHEAD: usize = HEADER + 1;

/// Every peer must take frames of this size, and nobody may negotiate less.
pub(crate) const MIN_FRAME_MAX: u32 = 4096;

/// Bytes before the payload.
pub(super) const HEADER: usize = 7;
/// The octet after it.
pub(super) const END: u8 = 0xCE;

/// The kinds of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A method: a request, an answer or a notice.
    Method,
    /// What follows a method with content: the size of the body, and the properties.
    Header,
    /// A piece of a body.
    Body,
    /// A sign of life.
    Heartbeat,
}

impl FrameKind {
    fn octet(self) -> u8 {
        match self {
            FrameKind::Method => 1,
            FrameKind::Header => 2,
            FrameKind::Body => 3,
            FrameKind::Heartbeat => 8,
        }
    }
}

/// One received frame, borrowed from the receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: FrameKind,
    pub(crate) channel: u16,
    pub(crate) payload: &'a [u8],
}

/// Decodes the frame at the start of `bytes` and says how many bytes it took.
///
/// `None` means that the frame is not complete yet; nothing is consumed then. What can be refused is refused
/// from the header alone, before its payload is waited for.
pub(crate) fn decode(bytes: &[u8], max_frame: usize) -> Result<Option<(Frame<'_>, usize)>, Malformed> {
    let Some((&header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return match bytes.first() {
            Some(&octet) => kind(octet).map(|_| None),
            None => Ok(None),
        };
    };
    let [octet, channel_high, channel_low, size @ ..] = header;
    let kind = kind(octet)?;
    let size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
    if size > max_frame - OVERHEAD {
        return Err(Malformed::Because("a frame larger than negotiated"));
    }
    if kind == FrameKind::Heartbeat && size != 0 {
        return Err(Malformed::Because("a heartbeat with a payload"));
    }
    let Some((payload, [end, ..])) = rest.split_at_checked(size) else {
        return Ok(None);
    };
    if *end != END {
        return Err(Malformed::Because("a frame that does not end with its end octet"));
    }
    let channel = u16::from_be_bytes([channel_high, channel_low]);
    Ok(Some((Frame { kind, channel, payload }, size + OVERHEAD)))
}

fn kind(octet: u8) -> Result<FrameKind, Malformed> {
    match octet {
        1 => Ok(FrameKind::Method),
        2 => Ok(FrameKind::Header),
        3 => Ok(FrameKind::Body),
        8 => Ok(FrameKind::Heartbeat),
        _ => Err(Malformed::Because("a frame of unknown type")),
    }
}

/// Appends one frame whose payload `content` writes.
///
/// # Errors
/// What `content` returns, and [`Error::Invalid`] when the frame would be larger than `max_frame`: the peer
/// would close the connection for it. `out` is as it was before then.
pub(crate) fn write(
    out: &mut Vec<u8>,
    kind: FrameKind,
    channel: u16,
    max_frame: usize,
    content: impl FnOnce(&mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    let start = out.len();
    out.extend_from_slice(&header(kind, channel, 0));
    let written = content(out).and_then(|()| {
        let size = out.len() - start - HEADER;
        if size + OVERHEAD > max_frame {
            return Err(Error::invalid(format!(
                "arguments or headers need a frame of {} bytes; {max_frame} were negotiated",
                size + OVERHEAD
            )));
        }
        if let Some(place) = out.get_mut(start + 3..start + HEADER) {
            place.copy_from_slice(&(size as u32).to_be_bytes());
        }
        out.push(END);
        Ok(())
    });
    if written.is_err() {
        out.truncate(start);
    }
    written
}

/// Appends a method frame.
pub(crate) fn write_method(
    out: &mut Vec<u8>,
    channel: u16,
    max_frame: usize,
    method: &dyn Encode,
) -> Result<()> {
    write(out, FrameKind::Method, channel, max_frame, |out| {
        let (class_id, method_id) = method.ids();
        out.extend_from_slice(&class_id.to_be_bytes());
        out.extend_from_slice(&method_id.to_be_bytes());
        method.write(&mut Writer::new(out));
        Ok(())
    })
}

/// Appends `basic.ack`, `basic.nack` or `basic.reject`, which are a delivery tag and an octet of flags: in one append
/// what [`write_method`] writes field by field. Far below the smallest frame_max. A unit test compares the bytes.
#[inline]
pub(crate) fn write_settlement(out: &mut Vec<u8>, channel: u16, method: u16, delivery_tag: u64, flags: u8) {
    const BASIC: u8 = BasicAck::CLASS as u8;
    let [high, low] = channel.to_be_bytes();
    let [t0, t1, t2, t3, t4, t5, t6, t7] = delivery_tag.to_be_bytes();
    out.extend_from_slice(&[
        1,
        high,
        low,
        0,
        0,
        0,
        13,
        0,
        BASIC,
        0,
        method as u8,
        t0,
        t1,
        t2,
        t3,
        t4,
        t5,
        t6,
        t7,
        flags,
        END,
    ]);
}

/// Appends a heartbeat.
pub(crate) fn write_heartbeat(out: &mut Vec<u8>) {
    out.extend_from_slice(&header(FrameKind::Heartbeat, 0, 0));
    out.push(END);
}

/// The header of a frame whose payload the caller writes itself, followed by [`TRAILER`].
pub(crate) fn header(kind: FrameKind, channel: u16, size: u32) -> [u8; HEADER] {
    let ([channel_high, channel_low], [a, b, c, d]) = (channel.to_be_bytes(), size.to_be_bytes());
    [kind.octet(), channel_high, channel_low, a, b, c, d]
}

/// What ends every frame.
pub(crate) const TRAILER: [u8; 1] = [END];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::spec::{BasicNack, BasicReject, ChannelClose, Method};
    use crate::protocol::wire::ShortStr;

    fn method_frame() -> Vec<u8> {
        let mut out = Vec::new();
        let close = ChannelClose {
            reply_code: 404,
            reply_text: ShortStr::new("text", "no").unwrap(),
            class_id: 50,
            method_id: 20,
        };
        write_method(&mut out, 7, 4096, &close).unwrap();
        out
    }

    #[test]
    fn a_frame_decodes_whole_byte_by_byte_and_with_trailing_bytes() {
        let bytes = method_frame();
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end], 4096), Ok(None), "cut at {end}");
        }
        let mut trailing = bytes.clone();
        trailing.extend_from_slice(b"\x08\0\0");
        for input in [&bytes, &trailing] {
            let (frame, used) = decode(input, 4096).unwrap().unwrap();
            assert_eq!((frame.kind, frame.channel, used), (FrameKind::Method, 7, bytes.len()));
            assert_eq!(Method::decode(frame.payload).unwrap().name(), "channel.close");
        }
    }

    #[test]
    fn bad_types_sizes_and_ends_are_refused_as_early_as_they_show() {
        assert!(decode(b"A", 4096).is_err(), "an unknown type in the first byte");
        assert!(decode(&[1, 0, 0, 0, 0, 0x10, 0], 4096).is_err(), "4096 + 8 > 4096, from the header alone");
        assert!(decode(&[1, 0, 0, 0, 0, 0x0f, 0xf8], 4096).is_ok());
        assert!(decode(&[8, 0, 0, 0, 0, 0, 1], 4096).is_err(), "a heartbeat with a payload");
        let mut bytes = method_frame();
        *bytes.last_mut().unwrap() = 0;
        assert!(decode(&bytes, 4096).is_err());
    }

    #[test]
    fn a_frame_that_is_too_large_is_refused_before_a_byte_is_sent() {
        let mut out = method_frame();
        let before = out.clone();
        let result = write(&mut out, FrameKind::Method, 1, 4096, |out| {
            out.resize(out.len() + 4089, 0);
            Ok(())
        });
        assert!(matches!(result, Err(Error::Invalid(_))));
        assert_eq!(out, before);
    }

    #[test]
    fn heartbeats_and_acks_have_the_published_bytes() {
        let mut out = Vec::new();
        write_heartbeat(&mut out);
        assert_eq!(out, [8, 0, 0, 0, 0, 0, 0, 0xCE]);
        out.clear();
        write_method(&mut out, 1, 4096, &BasicAck { delivery_tag: 5, multiple: true }).unwrap();
        assert_eq!(out, [1, 0, 1, 0, 0, 0, 13, 0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 5, 1, 0xCE]);
    }

    #[test]
    fn settlements_in_one_append_are_those_written_field_by_field() {
        let delivery_tag = 0x0102_0304_0506_0708;
        for (multiple, requeue) in [(false, false), (true, false), (false, true), (true, true)] {
            let (first, second) = (u8::from(multiple), u8::from(requeue));
            let ways: [(u16, u8, &dyn Encode); 3] = [
                (BasicAck::METHOD, first, &BasicAck { delivery_tag, multiple }),
                (BasicNack::METHOD, first | second << 1, &BasicNack { delivery_tag, multiple, requeue }),
                (BasicReject::METHOD, second, &BasicReject { delivery_tag, requeue }),
            ];
            for (method, flags, general) in ways {
                let (mut at_once, mut by_field) = (Vec::new(), Vec::new());
                write_settlement(&mut at_once, 0x1234, method, delivery_tag, flags);
                write_method(&mut by_field, 0x1234, 4096, general).unwrap();
                assert_eq!(at_once, by_field);
            }
        }
    }
}
