//! A peer that says anything: random methods, contents, tables and bytes, from fixed seeds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{thread, time::Duration};

use common::{limits::PROMPT, peer::*};
use fastrand::Rng;
use leveret::{Channel, Connection, Consume, Error, FieldTable, Requeue};

/// Methods that a broker may send at any time on an open channel.
const ANY_TIME: &[Method] = &[FLOW, CANCEL, ACK, NACK, RETURN, DELIVER, DELIVER, DELIVER];

fn random_bytes(random: &mut Rng, longest: usize) -> Vec<u8> {
    let length = random.usize(..=longest);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// A field value with its type letter.
fn random_value(random: &mut Rng, depth: usize) -> Vec<u8> {
    let letters = b"tbBsuIilLfdDSAFTVxq\xff";
    let letter = letters[random.usize(..letters.len())];
    let mut out = vec![letter];
    let nested = match letter {
        b't' | b'b' | b'B' => return [out, random_bytes_of(random, 1)].concat(),
        b's' | b'u' => return [out, random_bytes_of(random, 2)].concat(),
        b'I' | b'i' | b'f' => return [out, random_bytes_of(random, 4)].concat(),
        b'D' => return [out, random_bytes_of(random, 5)].concat(),
        b'l' | b'L' | b'd' | b'T' => return [out, random_bytes_of(random, 8)].concat(),
        b'S' | b'x' => random_bytes(random, 30),
        b'A' if depth > 0 => (0..random.usize(..4)).flat_map(|_| random_value(random, depth - 1)).collect(),
        b'F' if depth > 0 => random_table(random, depth - 1),
        _ => return out,
    };
    out.extend((nested.len() as u32).to_be_bytes());
    out.extend(nested);
    out
}

fn random_bytes_of(random: &mut Rng, length: usize) -> Vec<u8> {
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

fn random_table(random: &mut Rng, depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..random.usize(..5) {
        let name = random_bytes(random, 10);
        out.push(name.len() as u8);
        out.extend(name);
        out.extend(random_value(random, depth));
    }
    if random.u8(..10) == 0 && !out.is_empty() {
        let place = random.usize(..out.len());
        out[place] = random.u8(..);
    }
    out
}

/// Properties with headers, and sometimes with anything else.
fn random_properties(random: &mut Rng) -> Vec<u8> {
    if random.u8(..5) == 0 {
        return random_bytes(random, 40);
    }
    let table = random_table(random, 4);
    let mut out = vec![0x20, 0x00];
    out.extend((table.len() as u32).to_be_bytes());
    out.extend(table);
    out
}

fn random_argument(random: &mut Rng, letter: char) -> Value {
    match letter {
        't' => Value::Bytes(random_table(random, 3)),
        's' if random.bool() => "tag".into(),
        's' | 'S' => Value::Bytes(random_bytes(random, 20)),
        // Small numbers are more likely to mean something.
        _ if random.bool() => random.u64(..4).into(),
        _ => random.u64(..).into(),
    }
}

/// One or more frames on one channel. One in `evil` is against some rule; none when it is 0.
fn random_frames(random: &mut Rng, evil: u32) -> Vec<u8> {
    let mut one_in = |more: u32| evil != 0 && random.u32(..evil * more) == 0;
    let (any_method, any_channel, no_content, spoiled) = (one_in(1), one_in(2), one_in(4), one_in(4));
    let channel = if any_channel { random.u16(..6) } else { random.u16(1..3) };
    let from: &[Method] = if any_method { ALL } else { ANY_TIME };
    let method = from[random.usize(..from.len())];
    let mut arguments: Vec<Value> =
        method.layout.chars().map(|letter| random_argument(random, letter)).collect();
    if method == DELIVER && random.bool() {
        arguments[0] = "tag".into();
    }
    let has_content = [DELIVER, GET_OK, RETURN].contains(&method);
    let mut out = if has_content && !no_content {
        let body = random_bytes(random, 2000);
        let piece = random.usize(1..2000);
        content(channel, method, &arguments, &random_properties(random), &body, piece)
    } else {
        common::peer::method(channel, method, &arguments)
    };
    if spoiled {
        let place = random.usize(..out.len());
        out[place] = random.u8(..);
    }
    out
}

/// Uses both channels in every way until the connection has ended.
fn use_everything(connection: &Connection, channels: [Channel; 2]) {
    thread::scope(|scope| {
        for channel in channels {
            let second = channel.clone();
            scope.spawn(move || {
                while connection.is_open() {
                    let _ = channel.queue_purge("q");
                    let _ = channel.basic_publish("", "q", &[1; 100]);
                    if let Ok(Some(message)) = channel.basic_get("q") {
                        let _ = (message.properties(), message.nack(Requeue::Yes));
                    }
                    let _ = channel.reopen();
                }
            });
            scope.spawn(move || {
                let consume = Consume::new("q").consumer_tag("tag");
                while connection.is_open() {
                    let Ok(consumer) = second.basic_consume(consume.clone()) else { continue };
                    for delivery in consumer.flatten() {
                        let _ = (delivery.properties(), delivery.ack());
                    }
                }
            });
        }
    });
}

/// Rows 22, 34, 91: valid frames in invalid states, and sometimes invalid ones, on channels that are in use: no
/// panic, no hang, and an end with a reason.
#[test]
fn random_methods_on_channels_in_use() {
    let (mut losses, mut violations) = (0, 0);
    for seed in 0..300 {
        let peer = Peer::run(move |peer| {
            let mut random = Rng::with_seed(seed);
            let evil = [0, 30, 100][random.usize(..3)];
            peer.handshake_with(Tune { frame_max: 4096, ..Tune::default() });
            peer.open_channel(1);
            peer.open_channel(2);
            peer.piece = 4088;
            for _ in 0..random.usize(1..150) {
                peer.answer_what_is_here();
                if !peer.try_raw(&random_frames(&mut random, evil)) {
                    break;
                }
                if random.u8(..20) == 0 {
                    let arguments = args![404, "NOT_FOUND", 50, 10];
                    peer.send(random.u16(1..3), CHANNEL_CLOSE, arguments);
                }
            }
            let frames = random_frames(&mut random, evil);
            peer.raw(&frames[..random.usize(..frames.len())]);
            peer.fin();
        });
        let config = peer.config().prefetch(0).drop_timeout(Duration::ZERO).max_message_size(2000);
        let connection = Connection::open(config).unwrap();
        let open = || connection.channel().unwrap().within(Duration::from_millis(20));
        let channels = [open(), open()];
        use_everything(&connection, channels);
        match connection.wait_closed_timeout(PROMPT) {
            Some(Error::Io { .. }) => losses += 1,
            Some(Error::Protocol(_)) => violations += 1,
            // A random method may be the peer's own close.
            Some(Error::Refused(_)) => {}
            other => panic!("seed {seed}: {other:?}"),
        }
        drop(connection);
        peer.finish();
    }
    assert!(losses > 50 && violations > 50, "{losses} losses, {violations} violations");
    nothing_is_left();
}

/// Rows 90, 91: random headers are decoded or refused, and concern nothing but their message.
#[test]
fn random_headers_are_decoded_or_refused() {
    const MESSAGES: u64 = 3000;
    let peer = Peer::run(|peer| {
        let mut random = Rng::with_seed(1);
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        for tag in 1..=MESSAGES {
            let properties = random_properties(&mut random);
            let arguments = args!["tag", tag, 0, "", "q"];
            peer.raw(&content(1, DELIVER, arguments, &properties, &tag.to_be_bytes(), 8));
        }
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    let consume = Consume::new("q").consumer_tag("tag").no_ack(true);
    let consumer = channel.basic_consume(consume).unwrap();
    let (mut decoded, mut refused) = (0, 0);
    for (tag, delivery) in (1..=MESSAGES).zip(consumer) {
        let delivery = delivery.unwrap();
        assert_eq!((delivery.delivery_tag(), delivery.body()), (tag, &tag.to_be_bytes()[..]));
        match delivery.headers() {
            Ok(headers) => {
                decoded += 1;
                assert!(headers.len() <= 5 || headers == FieldTable::new(), "{headers:?}");
            }
            Err(Error::Malformed(_)) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(decoded > MESSAGES / 10 && refused > MESSAGES / 10, "{decoded} decoded, {refused} refused");
    connection.close().unwrap();
}

/// Rows 10, 22, 91: bytes that are no frames at all, at the handshake and later.
#[test]
fn random_bytes_are_refused() {
    for seed in 0..200 {
        let peer = Peer::run(move |peer| {
            let mut random = Rng::with_seed(seed);
            let in_the_handshake = random.bool();
            match in_the_handshake {
                true => peer.expect_protocol_header(),
                false => drop(peer.handshake()),
            }
            peer.raw(&random_bytes(&mut random, 10_000));
            peer.fin();
            in_the_handshake
        });
        let opened = Connection::open(peer.config());
        let end = match &opened {
            Ok(connection) => connection.wait_closed_timeout(PROMPT).expect("an end"),
            Err(error) => error.clone(),
        };
        assert!(end.is_hard(), "seed {seed}: {end:?}");
        assert_eq!(peer.finish(), opened.is_err(), "seed {seed}: {end:?}");
    }
}
