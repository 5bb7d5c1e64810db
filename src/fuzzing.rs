//! What the fuzz targets do with their input: one function per target of `fuzz/`, public only for them.
//!
//! Each function panics when a decoder breaks its word: when it reads beyond its input or allocates far more
//! than it was given (row 91), or when what it accepted does not encode to the same bytes. `cargo test` runs
//! them over the kept corpus, over every input that ever failed, and over random input.
//!
//! A new target is a function here with its row in [`TARGETS`], a row in `fuzz/Cargo.toml`, and its file in
//! `fuzz/targets/`.

// Public for the fuzz targets, and private for the unit tests.
#![cfg_attr(not(fuzzing), allow(unreachable_pub))]
// Failing loudly is all that this module is for.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[cfg(test)]
mod tests;

use crate::channel::fixture::Fixture;
use crate::connection::config::Config;
use crate::protocol::content::{Assembly, Content, ContentHeader, write_header};
use crate::protocol::frame::{self, Frame, FrameKind};
use crate::protocol::properties::BasicProperties;
use crate::protocol::spec::Method;
use crate::protocol::value::{FieldTable, FieldValue};

/// A target of `fuzz/`: its name there, and its function.
#[cfg(test)]
struct Target {
    name: &'static str,
    run: fn(&[u8]),
}

/// Every target.
#[cfg(test)]
const TARGETS: &[Target] = &[
    #[cfg(feature = "broker")]
    Target { name: "broker", run: broker },
    #[cfg(feature = "broker")]
    Target { name: "direct", run: direct },
    Target { name: "connection", run: connection },
    Target { name: "frame", run: frame },
    Target { name: "properties", run: properties },
    Target { name: "table", run: table },
    Target { name: "uri", run: uri },
];

/// RabbitMQ's default for `frame_max`.
const MAX_FRAME: usize = 128 * 1024;

/// What a decoder may allocate for each byte that it was given. The worst is an array of nothing but `Void`:
/// one byte of input each, a `FieldValue` in memory, and room for as many again because the vector doubles.
const ALLOCATED_PER_BYTE: usize = 2 * size_of::<FieldValue>();

/// What may be allocated besides: a table's first entry makes room for four.
const ALLOCATED_ANYWAY: usize = 4 * size_of::<(String, FieldValue)>();

/// The bytes that a connection receives: frames, with a method, a content header or a body in each.
pub fn frame(bytes: &[u8]) {
    let mut receiving = None;
    let (mut rest, mut received) = (bytes, 0);
    while let Ok(Some((frame, used))) = frame::decode(rest, MAX_FRAME) {
        assert_eq!(used, frame.payload.len() + frame::OVERHEAD);
        assert_eq!(
            frame::decode(&rest[..used], MAX_FRAME),
            Ok(Some((frame, used))),
            "what follows is unread"
        );
        assert_eq!(frame::decode(&rest[..used - 1], MAX_FRAME), Ok(None), "the end octet is waited for");
        received += used;
        match frame.kind {
            FrameKind::Method => method(&rest[..used], frame, &mut receiving),
            FrameKind::Header => header(&rest[..used], frame),
            FrameKind::Body | FrameKind::Heartbeat => {}
        }
        assemble(frame, &mut receiving, received);
        rest = &rest[used..];
    }
}

fn method(bytes: &[u8], frame: Frame<'_>, receiving: &mut Option<Assembly>) {
    let Ok(method) = Method::decode(frame.payload) else { return };
    let mut encoded = Vec::new();
    method.write_frame(&mut encoded, frame.channel, MAX_FRAME).unwrap();
    // Bits that no field uses may be anything in what comes, and are 0 in what goes.
    assert_same_but(bytes, &encoded, |came, goes| goes & !came == 0);
    receiving.get_or_insert_default().start(frame.payload);
}

fn header(bytes: &[u8], frame: Frame<'_>) {
    let Ok(header) = ContentHeader::decode(frame.payload) else { return };
    let Ok(properties) = BasicProperties::decode(header.properties) else { return };
    let mut encoded = Vec::new();
    let size = usize::try_from(header.body_size).unwrap();
    write_header(&mut encoded, frame.channel, MAX_FRAME, size, Some(&properties)).unwrap();
    // The weight, which nobody uses, is two octets behind the frame's header and the class.
    encoded[9..11].copy_from_slice(&bytes[9..11]);
    assert_same_but(bytes, &encoded, is_truth);
}

/// Gives a frame to the content that is being received, until that is complete or spoilt.
fn assemble(frame: Frame<'_>, receiving: &mut Option<Assembly>, received: usize) {
    let Some(mut assembly) = receiving.take() else { return };
    let result = match frame.kind {
        FrameKind::Header => assembly.header(frame.payload, u64::MAX),
        FrameKind::Body => assembly.body(frame.payload),
        FrameKind::Method | FrameKind::Heartbeat => Ok(false),
    };
    if result == Ok(false) {
        *receiving = Some(assembly);
    } else if result == Ok(true) {
        let content = assembly.finish();
        assert_eq!(three_parts(&content).concat(), content.bytes);
        let allocated = content.bytes.capacity();
        assert!(allocated <= 2 * received + MAX_FRAME, "{allocated} for {received}");
    }
}

fn three_parts(content: &Content) -> [&[u8]; 3] {
    let Content { bytes, parts } = content;
    [parts.method(bytes), parts.properties(bytes), parts.body(bytes)]
}

/// What a peer sends after the handshake: frames in any state. The first octet says how the bytes are cut.
pub fn connection(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let piece = if cut == 0 { bytes.len() } else { cut.into() };
    Fixture::new().feed(bytes, piece);
}

/// What a client sends to the in-process broker. The first octet says how the bytes are cut, and its highest bit that
/// the handshake is a part of them.
#[cfg(feature = "broker")]
pub fn broker(bytes: &[u8]) {
    session(bytes, crate::broker::session::fixture::feed);
}

/// What a peer sends to a direct listener; the first octet as for [`broker`].
#[cfg(feature = "broker")]
pub fn direct(bytes: &[u8]) {
    session(bytes, crate::broker::session::fixture::feed_direct);
}

#[cfg(feature = "broker")]
fn session(bytes: &[u8], feed: fn(&[u8], usize, bool)) {
    let Some((&first, bytes)) = bytes.split_first() else { return };
    let cut = usize::from(first & 0x7f);
    feed(bytes, if cut == 0 { bytes.len() } else { cut }, first & 0x80 == 0);
}

/// A connection URI.
pub fn uri(bytes: &[u8]) {
    let Ok(config) = String::from_utf8_lossy(bytes).parse::<Config>() else { return };
    let formatted = config.to_uri();
    let again = formatted.parse::<Config>().unwrap();
    assert_eq!(formatted, again.to_uri());
    assert_eq!(format!("{config:?}"), format!("{again:?}"));
}

/// A field table without its length.
pub fn table(bytes: &[u8]) {
    let Ok(table) = FieldTable::decode(bytes) else { return };
    let allocated = allocated(&table);
    assert!(allocated <= ALLOCATED_PER_BYTE * bytes.len() + ALLOCATED_ANYWAY, "{allocated}");
    let encoded = table.encode().unwrap();
    assert_same_but(bytes, &encoded, is_truth);
    assert_same(&FieldTable::decode(&encoded).unwrap(), &table);
}

/// The properties of a content header: flags and fields.
pub fn properties(bytes: &[u8]) {
    let Ok(properties) = BasicProperties::decode(bytes) else { return };
    let mut encoded = Vec::new();
    properties.encode(&mut encoded).unwrap();
    assert_same_but(bytes, &encoded, is_truth);
    assert_same(&BasicProperties::decode(&encoded).unwrap(), &properties);
}

/// Every octet but 0 is true in what comes; 1 is in what goes.
fn is_truth(came: u8, goes: u8) -> bool {
    came > 1 && goes == 1
}

/// The same bytes, except where an octet that came may go as another one.
fn assert_same_but(came: &[u8], goes: &[u8], may_differ: impl Fn(u8, u8) -> bool) {
    assert_eq!(came.len(), goes.len(), "{came:?} was accepted, but is {goes:?} when encoded");
    for (place, (&came, &goes)) in came.iter().zip(goes).enumerate() {
        assert!(came == goes || may_differ(came, goes), "octet {place}: {came:#x} became {goes:#x}");
    }
}

/// Equal, and "not a number" equal to itself.
fn assert_same<T: PartialEq + std::fmt::Debug>(left: &T, right: &T) {
    if left != right {
        assert_eq!(format!("{left:?}"), format!("{right:?}"));
    }
}

/// The bytes that a table holds on the heap.
fn allocated(table: &FieldTable) -> usize {
    let entries = table.iter().map(|(name, value)| name.len() + allocated_by_value(value)).sum::<usize>();
    table.capacity() * size_of::<(String, FieldValue)>() + entries
}

fn allocated_by_value(value: &FieldValue) -> usize {
    match value {
        FieldValue::LongString(bytes) | FieldValue::Bytes(bytes) => bytes.capacity(),
        FieldValue::Array(items) => {
            items.capacity() * size_of::<FieldValue>() + items.iter().map(allocated_by_value).sum::<usize>()
        }
        FieldValue::Table(table) => allocated(table),
        _ => 0,
    }
}
