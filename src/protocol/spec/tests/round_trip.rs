//! Every method, random tables and random properties: decoded, encoded again, and fed in every way that a
//! network can deliver them. Seeds are fixed, so a failure repeats.

use std::collections::HashSet;
use std::mem::discriminant;

use fastrand::Rng;

use super::random::{self, FIELD_TYPES};
use crate::protocol::content::{self, Assembly, Content};
use crate::protocol::frame::{self, FrameKind};
use crate::protocol::properties::BasicProperties;
use crate::protocol::spec::{Method, method_name};
use crate::protocol::value::FieldTable;
use crate::protocol::wire::{Malformed, Reader};

const MAX_FRAME: usize = 4096;

/// What a decoder does with input that is too short or too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Feeding {
    /// It reads a stream: too short means "more to come", and what follows is left alone.
    Stream,
    /// It reads one value in known bounds: too short and too long are both errors.
    Value,
}

/// Feeds `bytes` whole, cut at every byte, and with other bytes behind. `decode` checks that the value is the
/// right one, and says how many bytes it took, or `None` if it wants more.
fn fed_in_every_way(
    feeding: Feeding,
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<Option<usize>, Malformed>,
) {
    assert_eq!(decode(bytes), Ok(Some(bytes.len())), "fed whole");
    for cut in 0..bytes.len() {
        match (feeding, decode(&bytes[..cut])) {
            (Feeding::Stream, Ok(None)) | (Feeding::Value, Err(_)) => {}
            (_, other) => panic!("cut at {cut} of {}: {other:?}", bytes.len()),
        }
    }
    for behind in [&[0][..], &[0xff], &[1, 0, 0], bytes] {
        let result = decode(&[bytes, behind].concat());
        match feeding {
            Feeding::Stream => assert_eq!(result, Ok(Some(bytes.len())), "followed by {behind:?}"),
            Feeding::Value => assert!(result.is_err(), "followed by {behind:?}: {result:?}"),
        }
    }
}

/// Row 91: whatever the table can say goes to a frame and comes back, byte by byte as the specification wants
/// it; a method that is cut is never decoded, and one with bytes left over is refused.
#[test]
fn every_method_of_the_table_round_trips() {
    let mut rng = Rng::with_seed(1);
    for row in Method::TABLE {
        assert_eq!(method_name(row.ids.0, row.ids.1), row.name);
        for _ in 0..20 {
            let expected = random::method(&mut rng, row);
            let channel = rng.u16(..);
            fed_in_every_way(Feeding::Value, &expected.payload, |payload| {
                let method = Method::decode(payload)?;
                assert_eq!(method.name(), row.name);
                assert_eq!(format!("{method:?}"), expected.printed);
                Ok(Some(payload.len()))
            });

            let mut bytes = Vec::new();
            let method = Method::decode(&expected.payload).unwrap();
            method.write_frame(&mut bytes, channel, MAX_FRAME).unwrap();
            fed_in_every_way(Feeding::Stream, &bytes, |input| {
                let Some((frame, used)) = frame::decode(input, MAX_FRAME)? else { return Ok(None) };
                assert_eq!((frame.kind, frame.channel), (FrameKind::Method, channel));
                assert_eq!(frame.payload, expected.payload, "{}", row.name);
                assert_eq!(Method::decode(frame.payload)?, method);
                Ok(Some(used))
            });
        }
    }
}

/// Rows 90 and 91: tables of every type, nested, round-trip as the specification wants them.
#[test]
fn random_tables_round_trip() {
    let mut rng = Rng::with_seed(2);
    let mut types = HashSet::new();
    for _ in 0..400 {
        let (table, content) = random::table(&mut rng, 4);
        assert_eq!(table.encode().unwrap(), content);
        types.extend(table.iter().map(|(_, value)| discriminant(value)));

        let mut bytes = Vec::new();
        table.encode_sized(&mut bytes).unwrap();
        fed_in_every_way(Feeding::Value, &bytes, |input| {
            let mut reader = Reader::new(input);
            let decoded = FieldTable::decode(reader.long_string()?)?;
            reader.finish()?;
            assert_same(&decoded, &table);
            Ok(Some(input.len()))
        });
    }
    assert_eq!(types.len(), FIELD_TYPES, "every type came at least once");
}

/// Rows 52, 90 and 91: any set of properties round-trips as the specification wants it.
#[test]
fn random_properties_round_trip() {
    let mut rng = Rng::with_seed(3);
    for _ in 0..400 {
        let (properties, expected) = random::properties(&mut rng);
        let mut bytes = Vec::new();
        properties.encode(&mut bytes).unwrap();
        assert_eq!(bytes, expected);
        fed_in_every_way(Feeding::Value, &bytes, |input| {
            assert_same(&BasicProperties::decode(input)?, &properties);
            Ok(Some(input.len()))
        });
    }
}

/// Rows 52 and 91: contents of every size come back from their frames, whatever the frames' size.
#[test]
fn random_contents_round_trip() {
    let mut rng = Rng::with_seed(4);
    let mut assembly = Assembly::default();
    for _ in 0..200 {
        let (properties, properties_bytes) = random::properties(&mut rng);
        let body = random::bytes(&mut rng, 20_000);
        let max_frame = rng.usize(MAX_FRAME..=2 * MAX_FRAME);
        let mut frames = Vec::new();
        let written = content::write_header(&mut frames, 9, max_frame, body.len(), Some(&properties));
        if properties_bytes.len() + 12 + frame::OVERHEAD > max_frame {
            assert!(written.is_err() && frames.is_empty(), "refused before a byte is sent");
            continue;
        }
        written.unwrap();
        content::write_body(&mut frames, 9, max_frame, &body);

        assembly.start(b"the method");
        let (mut rest, mut complete) = (&frames[..], false);
        while let Some((frame, used)) = frame::decode(rest, max_frame).unwrap() {
            assert!(!complete && frame.channel == 9);
            complete = match frame.kind {
                FrameKind::Header => assembly.header(frame.payload, 20_000).unwrap(),
                FrameKind::Body => assembly.body(frame.payload).unwrap(),
                other => panic!("{other:?} in a content"),
            };
            rest = &rest[used..];
        }
        assert!(complete && rest.is_empty());
        let Content { bytes, parts } = assembly.finish();
        assert_eq!(parts.method(&bytes), b"the method");
        assert_eq!(parts.properties(&bytes), properties_bytes);
        assert_eq!(parts.body(&bytes), body);
    }
}

/// Rows 90 and 92: nothing on the way of a message looks into its properties, so that bad ones are an error
/// only for whoever asks for them; method, tag and body are there. The same holds for a method's tables.
#[test]
fn bad_properties_and_tables_concern_only_who_reads_them() {
    let bad_table = b"\x01aZ";
    let bad_headers = [b"\x20\0\0\0\0\x03", &bad_table[..]].concat();
    for properties in [&b""[..], b"\xff", b"\0\x01", b"\x80\0\x05", &bad_headers] {
        let mut assembly = Assembly::default();
        assembly.start(b"the method");
        let header = [b"\0\x3c\0\0\0\0\0\0\0\0\0\x04", properties].concat();
        assert_eq!(assembly.header(&header, 100), Ok(false));
        assert_eq!(assembly.body(b"body"), Ok(true));
        let Content { bytes, parts } = assembly.finish();
        assert_eq!((parts.method(&bytes), parts.body(&bytes)), (&b"the method"[..], &b"body"[..]));
        assert!(BasicProperties::decode(parts.properties(&bytes)).is_err());
    }

    let start = [b"\0\x0a\0\x0a\0\x09\0\0\0\x03", &bad_table[..], b"\0\0\0\x05PLAIN\0\0\0\0"].concat();
    let Ok(Method::ConnectionStart(start)) = Method::decode(&start) else { panic!("it is connection.start") };
    assert_eq!(start.mechanisms.0, b"PLAIN");
    assert!(FieldTable::decode(start.server_properties.0).is_err());
}

/// Equal, and "not a number" equal to itself.
fn assert_same<T: PartialEq + std::fmt::Debug>(left: &T, right: &T) {
    if left != right {
        assert_eq!(format!("{left:?}"), format!("{right:?}"));
    }
}
