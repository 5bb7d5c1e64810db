//! `channel.flow` and `connection.blocked` from the broker: who waits, how long, and what passes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{sync::mpsc, thread, time::Duration};

use common::peer::*;
use leveret::{Connection, Consume, Error};

/// A limit that is meant to pass.
const SHORT: Duration = Duration::from_millis(50);

/// Larger than what is copied into the outgoing buffer.
static LARGE: [u8; 100_000] = [7; 100_000];

/// Rows 38, 53: while the broker has stopped a channel's flow, publishing on it waits for its time and no longer,
/// `try_publish` gives the message back, and everything else passes.
#[test]
fn a_stopped_flow_holds_up_publishes_of_its_channel_only() {
    let (stopped, flow_is_stopped) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.open_channel(2);
        peer.send(1, FLOW, args![0]);
        assert_eq!(peer.expect(1, FLOW_OK).number(0), 0);
        stopped.send(()).unwrap();
        assert_eq!(peer.expect_publish(2).2, b"other channel");
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, QUEUE_PURGE_OK, args![0]);
        peer.expect(1, FLOW);
        peer.send(1, FLOW_OK, args![1]);
        peer.close_channel(1);
        peer.close();
    });
    let connection = Connection::open(peer.config().publish_timeout(SHORT)).unwrap();
    let (channel, other) = (connection.channel().unwrap(), connection.channel().unwrap());
    flow_is_stopped.recv().unwrap();
    assert!(matches!(channel.try_publish("", "q", "x"), Err(Error::WouldBlock)));
    for body in [&b"small"[..], &LARGE] {
        let error = channel.basic_publish("", "q", body).unwrap_err();
        assert!(matches!(error, Error::Timeout(timeout) if timeout.waiting_for == "publishing"), "{error:?}");
        assert!(!error.is_hard());
    }
    other.basic_publish("", "q", "other channel").unwrap();
    channel.queue_purge("q").unwrap();
    assert!(channel.flow(true).unwrap());
    channel.close().unwrap();
    connection.close().unwrap();
}

/// Rows 35, 38: publishes that wait go on when the flow does. Nothing is published between the two answers, and
/// neither of them comes between the frames of a message.
#[test]
fn waiting_publishes_go_on_with_the_flow() {
    const EACH: usize = 30;
    let (counted, all_counted) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake_with(Tune { frame_max: 4096, ..Tune::default() });
        peer.open_channel(1);
        let mut published = 0;
        while published < 2 * EACH {
            peer.send(1, FLOW, args![0]);
            // What was on its way is finished before the answer.
            loop {
                match peer.next_said(1) {
                    Said::Publish { body, .. } => {
                        assert!(body == b"small" || body == LARGE);
                        published += 1;
                    }
                    Said::Method(FLOW_OK, stopped) => break assert_eq!(stopped.number(0), 0),
                    other => panic!("{other:?}"),
                }
            }
            peer.send(1, FLOW, args![1]);
            assert_eq!(peer.expect(1, FLOW_OK).number(0), 1);
            if published < 2 * EACH {
                assert!([&b"small"[..], &LARGE].contains(&&peer.expect_publish(1).2[..]));
                published += 1;
            }
        }
        counted.send(()).unwrap();
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    thread::scope(|scope| {
        for body in [&b"small"[..], &LARGE] {
            let channel = &channel;
            scope.spawn(move || (0..EACH).for_each(|_| channel.basic_publish("", "q", body).unwrap()));
        }
    });
    all_counted.recv().unwrap();
    connection.close().unwrap();
}

/// Rows 35, 38: the broker stops the flow while a large message is on its way: the message is finished, then the
/// broker gets its answer, and the next message waits.
#[test]
fn a_stop_within_a_large_message() {
    let (told, client_knows) = mpsc::channel::<()>();
    let peer = Peer::run(move |peer| {
        peer.handshake_with(Tune { frame_max: 4096, ..Tune::default() });
        peer.open_channel(1);
        peer.open_channel(2);
        peer.expect(2, CONSUME);
        peer.send(2, CONSUME_OK, args!["tag"]);
        peer.expect(1, PUBLISH);
        // The client cannot finish it while nothing is read; it sees the delivery after the stop.
        peer.send(1, FLOW, args![0]);
        peer.deliver(2, "tag", 1, b"behind the stop");
        client_knows.recv().unwrap();
        let mut frame = peer.next_frame();
        let mut size = 0;
        while frame.method().is_none() {
            size += if frame.kind == BODY { frame.payload.len() } else { 0 };
            frame = peer.next_frame();
        }
        assert_eq!((frame.method(), size), (Some(FLOW_OK), 1 << 20));
        peer.send(1, FLOW, args![1]);
        peer.expect(1, FLOW_OK);
        assert_eq!(peer.expect_publish(1).2, b"next");
        peer.close();
    });
    let connection = Connection::open(peer.config().send_buffer(16 * 1024).prefetch(0)).unwrap();
    let (channel, other) = (connection.channel().unwrap(), connection.channel().unwrap());
    let mut consumer = other.basic_consume(Consume::new("q").consumer_tag("tag")).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            channel.basic_publish("", "q", &vec![1; 1 << 20]).unwrap();
            channel.basic_publish("", "q", "next").unwrap();
        });
        assert_eq!(consumer.next().unwrap().unwrap().body(), b"behind the stop");
        told.send(()).unwrap();
    });
    connection.close().unwrap();
}

/// Row 15: a blocked connection holds up publishers for their time, says why, and is closed in bounded time.
#[test]
fn a_blocked_connection_says_so() {
    let (blocked, is_blocked) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.send(0, BLOCKED, args!["low on disk"]);
        peer.send(1, FLOW, args![1]);
        peer.expect(1, FLOW_OK);
        blocked.send(()).unwrap();
        // Nothing that blocked is answered, not even the close.
        peer.expect(1, QUEUE_PURGE);
        peer.silence();
    });
    let config = peer.config().publish_timeout(SHORT).close_timeout(SHORT);
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    is_blocked.recv().unwrap();
    assert_eq!(connection.blocked().as_deref(), Some("low on disk"));
    assert!(matches!(channel.try_publish("", "q", "x"), Err(Error::WouldBlock)));
    let errors = [
        channel.basic_publish("", "q", "x").unwrap_err(),
        channel.basic_publish("", "q", &LARGE).unwrap_err(),
        channel.within(SHORT).queue_purge("q").unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, Error::Blocked { reason } if **reason == *"low on disk"), "{error:?}");
    }
    assert!(connection.is_open());
    assert!(connection.close().is_err());
}
