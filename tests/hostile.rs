//! A peer that breaks the rules: the connection ends with a protocol error, and the peer is told the code; or it
//! goes on, where the protocol says so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{limits::PROMPT, peer::*};
use leveret::{BorrowedDelivery, Channel, Connection, Consume, Consumer, Error, ReplyCode, Result};

/// A connection with an open channel and a consumer `tag` on it.
struct Client {
    consumer: Consumer,
    channel: Channel,
    connection: Connection,
}

/// The peer's part of [`Client::open`].
fn set_stage(peer: &mut Peer) {
    peer.handshake();
    peer.open_channel(1);
    peer.expect(1, CONSUME);
    peer.send(1, CONSUME_OK, args!["tag"]);
}

impl Client {
    fn open<T>(peer: &Script<T>) -> Client {
        let config = peer.config().prefetch(0).max_message_size(1 << 20);
        let connection = Connection::open(config).unwrap();
        let channel = connection.channel().unwrap();
        let consumer = channel.basic_consume(Consume::new("q").consumer_tag("tag")).unwrap();
        Client { consumer, channel, connection }
    }

    /// The connection has ended for this violation.
    fn expect_violation(&mut self, name: &str, code: u16) {
        let cause = self.connection.wait_closed_timeout(PROMPT).unwrap_or_else(|| panic!("{name}: no end"));
        assert!(matches!(cause, Error::Protocol(_)), "{name}: {cause:?}");
        assert_eq!(cause.reply_code(), Some(ReplyCode::from(code)), "{name}: {cause}");
        let later = [
            self.channel.queue_purge("q").err(),
            self.connection.channel().err(),
            // What was delivered before may still come.
            self.consumer.find_map(Result::err),
        ];
        for error in later {
            assert_eq!(error.map(|error| error.to_string()), Some(cause.to_string()), "{name}");
        }
        assert!(self.consumer.next().is_none(), "{name}: the cause is told once");
    }
}

fn join(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

fn deliver() -> Vec<u8> {
    method(1, DELIVER, args!["tag", 1, 0, "", "q"])
}

/// A method frame whose payload was changed.
fn spoiled(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let end = bytes.len() - 1;
    let mut payload = bytes.drain(7..end).collect();
    change(&mut payload);
    frame(METHOD, bytes[2].into(), &payload)
}

fn header_of_class_queue() -> Vec<u8> {
    let mut payload = vec![0, 50, 0, 0];
    payload.extend([0; 10]);
    frame(HEADER, 1, &payload)
}

/// What a peer may send to an idle client, and the code that it gets for it.
fn violations() -> Vec<(&'static str, Vec<u8>, u16)> {
    let mut heartbeat_with_payload = frame(HEARTBEAT, 0, b"x");
    let mut unknown_type = deliver();
    unknown_type[0] = 4;
    let mut no_end = deliver();
    *no_end.last_mut().unwrap() = 0;
    heartbeat_with_payload.extend([0; 8]);
    vec![
        // Frames.
        ("a frame of unknown type", unknown_type, 501),
        ("a frame without its end octet", no_end, 501),
        ("a frame over the limit", vec![BODY, 0, 1, 0, 2, 0, 0], 501),
        ("a frame of 4 GiB", vec![METHOD, 0, 1, 0xff, 0xff, 0xff, 0xff], 501),
        ("a heartbeat with a payload", heartbeat_with_payload, 501),
        ("a heartbeat on a channel", frame(HEARTBEAT, 1, &[]), 501),
        // Methods that cannot be decoded.
        ("an empty method", frame(METHOD, 1, &[]), 501),
        ("half a method id", frame(METHOD, 1, &[0, 60, 0]), 501),
        ("a method with a byte too much", spoiled(method(1, FLOW, args![1]), |payload| payload.push(0)), 501),
        (
            "a method with a byte too few",
            spoiled(method(1, FLOW, args![1]), |payload| payload.truncate(4)),
            501,
        ),
        (
            "a short string longer than its frame",
            spoiled(method(1, QUEUE_DECLARE_OK, args!["q", 0, 0]), |payload| payload[4] = 255),
            501,
        ),
        (
            "a delivery that cannot be decoded",
            join(&[spoiled(deliver(), |payload| payload[4] = 255), header(1, 0, NO_PROPERTIES)]),
            501,
        ),
        ("an unknown class", frame(METHOD, 1, &[0, 99, 0, 10]), 503),
        ("an unknown method", frame(METHOD, 1, &[0, 60, 0, 99]), 503),
        ("an unknown class on channel 0", frame(METHOD, 0, &[0, 99, 0, 10]), 503),
        // Channels.
        ("a method on a channel that was never opened", method(9, FLOW, args![1]), 504),
        ("a delivery on a channel that was never opened", method(9, DELIVER, args!["", 1, 0, "", ""]), 504),
        ("a header on a channel that was never opened", header(9, 0, NO_PROPERTIES), 505),
        ("a close of a channel that was never opened", method(9, CHANNEL_CLOSE, args![404, "", 0, 0]), 504),
        ("a channel's method on channel 0", method(0, FLOW, args![1]), 503),
        ("a delivery on channel 0", method(0, DELIVER, args!["tag", 1, 0, "", "q"]), 503),
        ("a header on channel 0", header(0, 0, NO_PROPERTIES), 505),
        ("a body on channel 0", frame(BODY, 0, b"x"), 505),
        ("a connection's method on a channel", method(1, CLOSE, args![320, "", 0, 0]), 503),
        // Contents.
        ("a header without a method", header(1, 1, NO_PROPERTIES), 505),
        ("a body without a method", frame(BODY, 1, b"x"), 505),
        ("a body without a header", join(&[deliver(), frame(BODY, 1, b"x")]), 505),
        ("a second method", join(&[deliver(), deliver()]), 505),
        ("a close within a content", join(&[deliver(), method(1, CHANNEL_CLOSE, args![404, "", 0, 0])]), 505),
        (
            "a second header",
            join(&[deliver(), header(1, 2, NO_PROPERTIES), header(1, 2, NO_PROPERTIES)]),
            505,
        ),
        (
            "more body than announced",
            join(&[deliver(), header(1, 2, NO_PROPERTIES), frame(BODY, 1, b"xyz")]),
            505,
        ),
        (
            "a body after an empty one",
            join(&[deliver(), header(1, 0, NO_PROPERTIES), frame(BODY, 1, b"x")]),
            505,
        ),
        ("a header of another class", join(&[deliver(), header_of_class_queue()]), 505),
        ("half a header", join(&[deliver(), frame(HEADER, 1, &[0, 60, 0, 0, 0, 0, 0])]), 505),
        ("a body of 2^63 bytes", join(&[deliver(), header(1, 1 << 63, NO_PROPERTIES)]), 505),
        ("a body over the client's limit", join(&[deliver(), header(1, (1 << 20) + 1, NO_PROPERTIES)]), 505),
        // Answers that nobody asked for.
        ("connection.close-ok", method(0, CLOSE_OK, &[]), 503),
        ("connection.update-secret-ok", method(0, UPDATE_SECRET_OK, &[]), 503),
        ("channel.close-ok", method(1, CHANNEL_CLOSE_OK, &[]), 503),
        ("channel.open-ok", method(1, CHANNEL_OPEN_OK, args![""]), 503),
        ("channel.flow-ok", method(1, FLOW_OK, args![1]), 503),
        ("queue.declare-ok", method(1, QUEUE_DECLARE_OK, args!["q", 0, 0]), 503),
        ("basic.consume-ok", method(1, CONSUME_OK, args!["tag"]), 503),
        ("basic.cancel-ok", method(1, CANCEL_OK, args!["tag"]), 503),
        ("basic.recover-ok", method(1, RECOVER_OK, &[]), 503),
        ("basic.get-empty", method(1, GET_EMPTY, args![""]), 503),
        ("basic.get-ok", content(1, GET_OK, args![1, 0, "", "", 0], NO_PROPERTIES, b"body", 10), 503),
        ("tx.commit-ok", method(1, TX_COMMIT_OK, &[]), 503),
        // The handshake, again; and what only clients send.
        ("connection.start", start("PLAIN"), 503),
        ("connection.secure", method(0, SECURE, args!["?"]), 503),
        ("connection.tune", method(0, TUNE, args![0, 0, 0]), 503),
        ("connection.open-ok", method(0, OPEN_OK, args![""]), 503),
        ("channel.open", method(1, CHANNEL_OPEN, args![""]), 503),
        ("queue.purge", method(1, QUEUE_PURGE, args![0, "q", 0]), 503),
        ("basic.publish", method(1, PUBLISH, args![0, "", "q", 0]), 503),
        ("basic.reject", method(1, REJECT, args![1, 0]), 503),
    ]
}

/// Rows 22, 91: a frame that is wrong in itself or comes at the wrong time ends the connection, everybody learns
/// the one cause, and the peer is told its code.
#[test]
fn a_violation_ends_the_connection_and_the_peer_is_told_the_code() {
    for (name, bytes, code) in violations() {
        for slice in [usize::MAX, 1] {
            let bytes = bytes.clone();
            let peer = Peer::run(move |peer| {
                set_stage(peer);
                peer.sliced(&bytes, slice.min(bytes.len()));
                peer.expect_violation(code.into());
            });
            let mut client = Client::open(&peer);
            client.expect_violation(name, code);
            drop(client);
            peer.finish();
        }
    }
    nothing_is_left();
}

/// Row 11: what counts is the size that both sides have agreed on: a byte more is refused.
#[test]
fn a_frame_over_the_negotiated_size_is_refused() {
    for (frame_max, tuned) in [(4096, 131_072), (0, 8192), (65_536, 65_536)] {
        let agreed: usize = if frame_max == 0 { tuned } else { frame_max.min(tuned) };
        let peer = Peer::run(move |peer| {
            peer.handshake_with(Tune { frame_max: tuned as u32, ..Tune::default() });
            peer.open_channel(1);
            peer.expect(1, CONSUME);
            peer.send(1, CONSUME_OK, args!["tag"]);
            peer.piece = agreed - 8;
            peer.deliver(1, "tag", 1, &vec![7; 3 * agreed]);
            assert_eq!(peer.expect(1, ACK).number(0), 1);
            peer.piece = agreed - 7;
            peer.deliver(1, "tag", 2, &vec![7; 3 * agreed]);
            peer.expect_violation(501);
        });
        let connection = Connection::open(peer.config().prefetch(0).frame_max(frame_max as u32)).unwrap();
        assert_eq!(connection.frame_max() as usize, agreed);
        let channel = connection.channel().unwrap();
        let mut consumer = channel.basic_consume(Consume::new("q").consumer_tag("tag")).unwrap();
        let delivery = consumer.next().unwrap().unwrap();
        assert_eq!(delivery.body().len(), 3 * agreed);
        delivery.ack().unwrap();
        let cause = consumer.next().unwrap().unwrap_err();
        assert_eq!(cause.reply_code(), Some(ReplyCode::FrameError), "{cause}");
        peer.finish();
    }
}

/// Row 35: an answer to another call than the one that waits is never taken for it.
#[test]
fn the_answer_of_another_call_is_a_violation() {
    let answers = [
        method(1, QUEUE_DELETE_OK, args![0]),
        method(1, QUEUE_DECLARE_OK, args!["q", 0, 0]),
        method(1, GET_EMPTY, args![""]),
        content(1, GET_OK, args![1, 0, "", "", 0], NO_PROPERTIES, b"body", 10),
        method(1, CHANNEL_OPEN_OK, args![""]),
    ];
    for answer in answers {
        let peer = Peer::run(move |peer| {
            set_stage(peer);
            peer.expect(1, QUEUE_PURGE);
            peer.raw(&answer);
            peer.expect_violation(503);
        });
        let mut client = Client::open(&peer);
        let error = client.channel.queue_purge("q").unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::CommandInvalid), "{error}");
        client.expect_violation("another call's answer", 503);
    }
}

/// Rows 34, 71, 72: what is unusual but allowed, or concerns something that has just ended, is no reason to end
/// the connection.
#[test]
fn what_the_protocol_allows_is_tolerated() {
    let frames = join(&[
        frame(HEARTBEAT, 0, &[]),
        content(1, DELIVER, args!["no such consumer", 7, 0, "", "q"], NO_PROPERTIES, b"lost", 2),
        method(1, CANCEL, args!["no such consumer", 1]),
        content(1, RETURN, args![312, "NO_ROUTE", "", "q"], NO_PROPERTIES, b"back", 3),
        method(1, ACK, args![1, 0]),
        method(1, NACK, args![99, 1]),
        method(0, UNBLOCKED, &[]),
        method(0, BLOCKED, args!["low on memory"]),
        method(0, UNBLOCKED, &[]),
        // Weights other than 0, and body frames without a byte.
        method(1, DELIVER, args!["tag", 1, 0, "", "q"]),
        frame(HEADER, 1, &[0, 60, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]),
        frame(BODY, 1, b""),
        frame(BODY, 1, b"o"),
        frame(BODY, 1, b""),
        frame(BODY, 1, b"k"),
    ]);
    for slice in [usize::MAX, 1, 3] {
        let frames = frames.clone();
        let peer = Peer::run(move |peer| {
            set_stage(peer);
            peer.sliced(&frames, slice.min(frames.len()));
            peer.expect(1, QUEUE_PURGE);
            peer.send(1, QUEUE_PURGE_OK, args![5]);
            peer.expect(1, CANCEL);
            peer.send(1, CANCEL_OK, args!["tag"]);
            peer.close_channel(1);
            peer.close();
        });
        let mut client = Client::open(&peer);
        assert_eq!(client.consumer.next().unwrap().unwrap().body(), b"ok");
        assert_eq!(client.channel.queue_purge("q").unwrap(), 5);
        client.consumer.cancel().unwrap();
        client.channel.close().unwrap();
        client.connection.close().unwrap();
    }
}

/// Row 71: a broker may deliver before it has answered `basic.consume`; nothing of that is lost.
#[test]
fn deliveries_may_overtake_the_answer_to_consume() {
    for inline in [false, true] {
        let peer = Peer::run(|peer| {
            peer.handshake();
            peer.open_channel(1);
            let tag = peer.expect(1, CONSUME).text(2).to_owned();
            peer.deliver(1, &tag, 1, b"early");
            peer.deliver(1, &tag, 2, &[7; 100_000]);
            peer.send(1, CONSUME_OK, args![&tag]);
            peer.deliver(1, &tag, 3, b"in time");
            for number in 1..=3 {
                assert_eq!(peer.expect(1, ACK).number(0), number);
            }
            peer.close();
        });
        let connection = Connection::open(peer.config().prefetch(0)).unwrap();
        let channel = connection.channel().unwrap();
        if inline {
            let (told, lengths) = std::sync::mpsc::channel();
            let _consumer = channel
                .basic_consume_inline("q", move |delivery: &BorrowedDelivery<'_>| {
                    delivery.ack()?;
                    told.send(delivery.body().len())?;
                    Ok(())
                })
                .unwrap();
            let lengths: Vec<_> = lengths.iter().take(3).collect();
            assert_eq!(lengths, [5, 100_000, 7]);
            connection.close().unwrap();
        } else {
            let mut consumer = channel.basic_consume("q").unwrap();
            for length in [5, 100_000, 7] {
                let delivery = consumer.next().unwrap().unwrap();
                assert_eq!(delivery.body().len(), length);
                delivery.ack().unwrap();
            }
            connection.close().unwrap();
        }
    }
}

/// Properties that cannot be decoded: the flags and what follows.
fn poison() -> Vec<(&'static str, Vec<u8>)> {
    let headers = |table: &[u8]| {
        let mut bytes = vec![0x20, 0x00];
        bytes.extend((table.len() as u32).to_be_bytes());
        bytes.extend(table);
        bytes
    };
    let mut deep = Vec::new();
    for _ in 0..10_000 {
        let mut outer = b"\x01aF".to_vec();
        outer.extend((deep.len() as u32).to_be_bytes());
        outer.extend(&deep);
        deep = outer;
        if deep.len() > 60_000 {
            break;
        }
    }
    vec![
        ("flags without fields", vec![0xff, 0xfe]),
        ("flags without an end", vec![0x00, 0x01]),
        ("no flags at all", vec![]),
        ("one byte of flags", vec![0x80]),
        ("a table longer than the frame", vec![0x20, 0x00, 0xff, 0xff, 0xff, 0xff]),
        ("a table with an unknown type", headers(b"\x01a?1234")),
        ("a table that is cut", headers(b"\x05ab")),
        ("a string of 4 GiB in a table", headers(b"\x01aS\xff\xff\xff\xff")),
        ("an array of 4 GiB in a table", headers(b"\x01aA\xff\xff\xff\xff")),
        ("tables in tables", headers(&deep)),
        ("bytes behind the last field", vec![0x00, 0x00, 1, 2, 3]),
    ]
}

/// Rows 90, 92: properties that cannot be decoded are an error of that message alone; its body and its tag stay
/// usable, and nothing else is affected.
#[test]
fn poison_headers_concern_one_message_only() {
    for (name, properties) in poison() {
        let peer = Peer::run(move |peer| {
            set_stage(peer);
            let delivery = content(1, DELIVER, args!["tag", 1, 0, "x", "k"], &properties, b"body", 3);
            peer.raw(&delivery);
            assert_eq!(peer.expect(1, ACK).number(0), 1);
            peer.expect(1, GET);
            peer.raw(&content(1, GET_OK, args![2, 1, "x", "k", 0], &properties, b"more", 10));
            assert_eq!(peer.expect(1, REJECT).number(0), 2);
            peer.expect(1, QUEUE_PURGE);
            peer.send(1, QUEUE_PURGE_OK, args![0]);
            peer.close();
        });
        let mut client = Client::open(&peer);
        let delivery = client.consumer.next().unwrap().unwrap();
        assert!(matches!(delivery.properties(), Err(Error::Malformed(_))), "{name}");
        assert!(matches!(delivery.headers(), Err(Error::Malformed(_))), "{name}");
        assert_eq!(
            (delivery.body(), &*delivery.exchange(), &*delivery.routing_key()),
            (&b"body"[..], "x", "k")
        );
        delivery.ack().unwrap();
        let got = client.channel.basic_get("q").unwrap().unwrap();
        assert!(got.properties().is_err() && got.redelivered(), "{name}");
        assert_eq!(got.body(), b"more");
        got.reject(leveret::Requeue::No).unwrap();
        client.channel.queue_purge("q").unwrap();
        client.connection.close().unwrap();
        peer.finish();
    }
}

/// Row 22: whatever was going on, a peer that stops at any byte is noticed, and everybody is told.
#[test]
fn a_peer_may_stop_at_any_byte() {
    let frames = join(&[
        content(1, DELIVER, args!["tag", 1, 0, "", "q"], NO_PROPERTIES, b"in pieces", 4),
        method(1, FLOW, args![0]),
        method(1, FLOW, args![1]),
        content(1, RETURN, args![312, "NO_ROUTE", "", "q"], NO_PROPERTIES, b"back", 3),
        method(1, QUEUE_PURGE_OK, args![3]),
        method(1, CANCEL, args!["tag", 1]),
        method(0, BLOCKED, args!["low on memory"]),
        method(1, CHANNEL_CLOSE, args![404, "NOT_FOUND", 50, 10]),
    ]);
    for offset in 0..frames.len() {
        for end in [Peer::fin, Peer::rst] {
            let part = frames[..offset].to_vec();
            let peer = Peer::run(move |peer| {
                set_stage(peer);
                peer.expect(1, QUEUE_PURGE);
                peer.raw(&part);
                end(peer);
            });
            let mut client = Client::open(&peer);
            let purged = client.channel.queue_purge("q");
            let cause = client.connection.wait_closed_timeout(PROMPT).expect("the end is noticed");
            assert!(matches!(cause, Error::Io { .. }), "cut at {offset}: {cause:?}");
            if let Err(error) = purged {
                assert_eq!(error.to_string(), cause.to_string());
            }
            while client.consumer.next().is_some() {}
            drop(client);
            peer.finish();
        }
    }
    nothing_is_left();
}
