//! Frames as they come from a client, which may be anything. What is wrong is said in RabbitMQ's words.

use crate::broker::failure::Failure;

pub(in crate::broker) const METHOD: u8 = 1;
pub(in crate::broker) const HEADER: u8 = 2;
pub(in crate::broker) const BODY: u8 = 3;
pub(in crate::broker) const HEARTBEAT: u8 = 8;

const END: u8 = 0xCE;

/// A complete frame of any type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::broker) struct RawFrame<'a> {
    pub(in crate::broker) kind: u8,
    pub(in crate::broker) channel: u16,
    pub(in crate::broker) payload: &'a [u8],
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming<'a> {
    /// Not all of it is there.
    Partial,
    /// A frame, and how many bytes it took.
    Frame(RawFrame<'a>, usize),
    /// Nothing that follows can be understood.
    Broken(Failure),
}

/// The frame at the start of `bytes`. What is too large is refused from its header alone.
pub(super) fn next(bytes: &[u8], max_payload: usize) -> Incoming<'_> {
    let Some((&[kind, high, low, a, b, c, d], rest)) = bytes.split_first_chunk() else {
        return Incoming::Partial;
    };
    let size = u32::from_be_bytes([a, b, c, d]) as usize;
    if size > max_payload {
        let problem = format_args!("{{frame_too_large,{size},{}}}", max_payload.saturating_sub(8));
        return Incoming::Broken(Failure::frame(kind, &[], problem));
    }
    match rest.split_at_checked(size) {
        Some((payload, [END, ..])) => {
            let channel = u16::from_be_bytes([high, low]);
            Incoming::Frame(RawFrame { kind, channel, payload }, size + 8)
        }
        Some((payload, [end, ..])) => Incoming::Broken(Failure::frame(
            kind,
            payload,
            format_args!("{{invalid_frame_end_marker,{end}}}"),
        )),
        _ => Incoming::Partial,
    }
}

/// Class and method id at the start of a method frame's payload.
pub(super) fn method_ids(payload: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = payload.first_chunk()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_may_come_in_pieces() {
        let bytes = [1, 0, 7, 0, 0, 0, 2, 9, 8, END, 1];
        for end in 0..10 {
            assert_eq!(next(&bytes[..end], 4096), Incoming::Partial, "{end}");
        }
        let frame = RawFrame { kind: 1, channel: 7, payload: &[9, 8] };
        assert_eq!(next(&bytes, 4096), Incoming::Frame(frame, 10));
    }

    #[test]
    fn what_is_wrong_is_said_as_by_rabbitmq() {
        let Incoming::Broken(failure) = next(&[1, 0, 0, 0, 2, 0, 1], 131_072) else { panic!() };
        assert_eq!(
            failure.text(),
            "FRAME_ERROR - type 1, all octets = <<>>: {frame_too_large,131073,131064}"
        );
        let Incoming::Broken(failure) = next(&[1, 0, 0, 0, 0, 0, 1, 65, 1], 131_072) else { panic!() };
        assert_eq!(
            failure.text(),
            "FRAME_ERROR - type 1, all octets = <<\"A\">>: {invalid_frame_end_marker,1}"
        );
    }
}
