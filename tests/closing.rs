//! Ends that meet something on its way: closes that cross, closes in the middle of a message, drops without room.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use common::{
    limits::{PROMPT, given_time},
    peer::*,
};
use leveret::{BorrowedDelivery, Connection, Consume, Error, Publish, ReplyCode, Result, Scope};

/// A limit that is meant to pass.
const SHORT: Duration = Duration::from_millis(50);

fn is_timeout<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Timeout(_)))
}

/// Rows 31, 33, 34: our close of a channel crosses the broker's: `close` returns the broker's reason, both sides
/// answer, and the id can be used again at once.
#[test]
fn closes_of_a_channel_cross() {
    for answers_first in [true, false] {
        let peer = Peer::run(move |peer| {
            peer.handshake_with(Tune { channel_max: 1, ..Tune::default() });
            for _ in 0..20 {
                peer.open_channel(1);
                peer.expect(1, CHANNEL_CLOSE);
                peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND - late", 60, 40]);
                if answers_first {
                    peer.send(1, CHANNEL_CLOSE_OK, &[]);
                }
                peer.expect(1, CHANNEL_CLOSE_OK);
                if !answers_first {
                    peer.send(1, CHANNEL_CLOSE_OK, &[]);
                }
            }
            peer.close();
        });
        let connection = Connection::open(peer.config()).unwrap();
        let channel = connection.channel().unwrap();
        for round in 0..20 {
            let late = channel.close().unwrap_err();
            assert_eq!(late.reply_code(), Some(ReplyCode::NotFound), "round {round}: {late}");
            if round < 19 {
                channel.reopen().unwrap();
            }
        }
        connection.close().unwrap();
        peer.finish();
    }
}

/// Row 34: RabbitMQ sometimes ends a channel without answering our close when its own has crossed it. `close` does
/// not wait for that answer, and the id is free; should the answer come after all, the next channel ignores it, once.
#[test]
fn a_close_that_crosses_needs_no_answer() {
    let peer = Peer::run(move |peer| {
        peer.handshake_with(Tune { channel_max: 1, ..Tune::default() });
        peer.open_channel(1);
        peer.expect(1, CHANNEL_CLOSE);
        peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND - late", 60, 40]);
        peer.expect(1, CHANNEL_CLOSE_OK);
        peer.open_channel(1);
        peer.send(1, CHANNEL_CLOSE_OK, &[]);
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, QUEUE_PURGE_OK, args![7]);
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, CHANNEL_CLOSE_OK, &[]);
        peer.expect_violation(503);
    });
    // Far longer than the test may take: nothing waits for an answer that does not come.
    let connection = Connection::open(peer.config().close_timeout(Duration::from_secs(3600))).unwrap();
    let channel = connection.channel().unwrap();
    assert_eq!(channel.close().unwrap_err().reply_code(), Some(ReplyCode::NotFound));
    let channel = connection.channel().unwrap();
    assert_eq!((channel.id(), channel.queue_purge("q").unwrap()), (1, 7));
    let second = channel.queue_purge("q").unwrap_err();
    assert!(matches!(second, Error::Protocol(_)), "{second:?}");
    peer.finish();
}

/// Rows 13, 14: our close of the connection crosses the broker's: it is answered, and `close` succeeds.
#[test]
fn closes_of_the_connection_cross() {
    for answers in [true, false] {
        let peer = Peer::run(move |peer| {
            peer.handshake();
            peer.expect(0, CLOSE);
            peer.send(0, CLOSE, args![320, "CONNECTION_FORCED - bye", 0, 0]);
            if answers {
                peer.send(0, CLOSE_OK, &[]);
            }
            peer.expect(0, CLOSE_OK);
            peer.expect_end();
        });
        let connection = Connection::open(peer.config()).unwrap();
        connection.close().unwrap();
        assert!(connection.wait_closed().is_closed());
        drop(connection);
        peer.finish();
    }
}

/// Row 13: any number of threads may close, one frame is sent, and everybody is told that the program did it.
#[test]
fn many_threads_close_at_once() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(0, CLOSE);
        peer.send(0, CLOSE_OK, &[]);
        peer.expect_end();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    thread::scope(|scope| {
        let closers: Vec<_> = (0..16).map(|_| scope.spawn(|| connection.close())).collect();
        closers.into_iter().for_each(|closer| closer.join().unwrap().unwrap());
    });
    for error in [channel.queue_purge("q").unwrap_err(), connection.channel().unwrap_err()] {
        assert!(matches!(error, Error::Closed(Scope::Connection)), "{error:?}");
    }
    drop((channel, connection));
    peer.finish();
    nothing_is_left();
}

/// Rows 14, 22: an operator closes the connection under consumers, calls and publishers: all learn code and text,
/// and the broker gets its answer.
#[test]
fn a_forced_close_reaches_everybody() {
    let (waiting, all_wait) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        for channel in 1..=3 {
            peer.open_channel(channel);
        }
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        peer.until(2, QUEUE_PURGE);
        peer.send(3, FLOW, args![0]);
        peer.until(3, FLOW_OK);
        all_wait.recv().unwrap();
        peer.send(0, CLOSE, args![320, "CONNECTION_FORCED - by the operator", 0, 0]);
        peer.expect(0, CLOSE_OK);
        peer.expect_end();
    });
    let connection = Connection::open(peer.config().prefetch(0)).unwrap();
    let channels: Vec<_> = (0..3).map(|_| connection.channel().unwrap()).collect();
    let mut consumer = channels[0].basic_consume(Consume::new("q").consumer_tag("tag")).unwrap();
    let (errors, told) = mpsc::channel::<(&str, Error)>();
    thread::scope(|scope| {
        let (connection, channels) = (&connection, &channels);
        let tell = |name, error| errors.send((name, error)).unwrap();
        scope.spawn(move || tell("next", consumer.next().unwrap().unwrap_err()));
        scope.spawn(move || tell("wait_closed", connection.wait_closed()));
        scope.spawn(move || tell("call", channels[1].queue_purge("q").unwrap_err()));
        scope.spawn(move || {
            // The flow of this channel stops soon; then it waits.
            while channels[2].try_publish("", "q", "x").is_ok() {}
            waiting.send(()).unwrap();
            tell("publish", channels[2].basic_publish("", "q", "x").unwrap_err());
        });
        for _ in 0..4 {
            let (name, error) = told.recv_timeout(PROMPT).expect("everybody is told");
            let Error::Refused(refusal) = &error else { panic!("{name}: {error:?}") };
            assert_eq!((refusal.scope, refusal.code), (Scope::Connection, ReplyCode::ConnectionForced));
            assert_eq!(refusal.text, "CONNECTION_FORCED - by the operator", "{name}");
        }
    });
    assert_eq!(connection.close().unwrap_err().reply_code(), Some(ReplyCode::ConnectionForced));
}

/// Row 73: a consumer that is dropped gives back everything that it has not returned, also what came after the
/// last time that it looked.
#[test]
fn a_dropped_consumer_gives_back_all_that_it_holds() {
    let (looked, has_looked) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        for tag in 1..=3 {
            peer.deliver(1, "tag", tag, b"x");
        }
        // Behind them, so that they have all come.
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, QUEUE_PURGE_OK, args![0]);
        has_looked.recv().unwrap();
        for tag in 4..=5 {
            peer.deliver(1, "tag", tag, b"x");
        }
        peer.expect(1, CANCEL);
        peer.deliver(1, "tag", 6, b"x");
        peer.send(1, CANCEL_OK, args!["tag"]);
        let mut back: Vec<u64> = (0..5).map(|_| peer.expect(1, NACK).number(0)).collect();
        back.sort_unstable();
        assert_eq!(back, [2, 3, 4, 5, 6]);
        assert_eq!(peer.expect(1, ACK).number(0), 1);
        peer.close();
    });
    let connection = Connection::open(peer.config().prefetch(0)).unwrap();
    let channel = connection.channel().unwrap();
    let mut consumer = channel.basic_consume(Consume::new("q").consumer_tag("tag")).unwrap();
    channel.queue_purge("q").unwrap();
    let first = consumer.next().unwrap().unwrap();
    looked.send(()).unwrap();
    drop(consumer);
    first.ack().unwrap();
    connection.close().unwrap();
}

/// Rows 33, 35, 36: the broker closes a channel while a message of many frames is on its way: nothing of the
/// channel follows our close-ok, also when it is opened again at once, and the other channels go on.
#[test]
fn a_close_ends_a_large_message() {
    let (told, stage) = mpsc::channel::<()>();
    let peer = Peer::run(move |peer| {
        peer.handshake_with(Tune { frame_max: 4096, ..Tune::default() });
        peer.open_channel(1);
        peer.open_channel(2);
        peer.expect(1, PUBLISH);
        peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND - no exchange", 60, 40]);
        // Nothing is read until the client knows.
        stage.recv().unwrap();
        let mut frame = peer.next_frame();
        while frame.method() != Some(CHANNEL_CLOSE_OK) {
            assert_eq!(frame.channel, 1);
            assert!(frame.kind == HEADER || frame.kind == BODY, "{:?}", frame.method());
            frame = peer.next_frame();
        }
        peer.open_channel(1);
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, QUEUE_PURGE_OK, args![0]);
        peer.expect(2, QUEUE_PURGE);
        peer.send(2, QUEUE_PURGE_OK, args![0]);
        assert_eq!(peer.expect_publish(1).2, vec![2; 100_000]);
        peer.close();
    });
    let connection = Connection::open(peer.config().send_buffer(16 * 1024)).unwrap();
    let channel = connection.channel().unwrap();
    let other = connection.channel().unwrap();
    thread::scope(|scope| {
        let publisher = scope.spawn(|| channel.basic_publish("no exchange", "k", &vec![1; 8 << 20]));
        // Known while the publisher may still be writing.
        eventually("the channel is closed", || !channel.is_open());
        let reopened = scope.spawn(|| channel.reopen());
        told.send(()).unwrap();
        reopened.join().unwrap().unwrap();
        let cut = publisher.join().unwrap().unwrap_err();
        // Its cause may have gone with the old channel.
        assert!(cut.is_closed() || cut.reply_code() == Some(ReplyCode::NotFound), "{cut:?}");
    });
    channel.queue_purge("q").unwrap();
    other.queue_purge("q").unwrap();
    channel.basic_publish("", "k", &vec![2; 100_000]).unwrap();
    connection.close().unwrap();
}

/// Rows 33, 50: the close comes before the large message was begun, or right after it was complete.
#[test]
fn a_close_before_or_after_a_large_message() {
    for after in [false, true] {
        let (struck, closed) = mpsc::channel();
        let peer = Peer::run(move |peer| {
            peer.handshake_with(Tune { frame_max: 4096, ..Tune::default() });
            peer.open_channel(1);
            if after {
                peer.expect_publish(1);
            }
            peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND - no exchange", 60, 40]);
            peer.expect(1, CHANNEL_CLOSE_OK);
            struck.send(()).unwrap();
            peer.close();
        });
        let connection = Connection::open(peer.config()).unwrap();
        let channel = connection.channel().unwrap();
        let body = vec![1; 1 << 20];
        if after {
            channel.basic_publish("no exchange", "k", &body).unwrap();
        }
        closed.recv().unwrap();
        for message in [Publish::new(&body), Publish::new("small")] {
            let error = channel.basic_publish("no exchange", "k", message).unwrap_err();
            assert_eq!(error.reply_code(), Some(ReplyCode::NotFound));
        }
        connection.close().unwrap();
        peer.finish();
    }
}

/// Row 30: a scope that ends by a panic closes its channel as well, in time.
#[test]
fn a_panic_closes_the_channel() {
    given_time(|times| {
        let peer = Peer::run(|peer| {
            peer.handshake();
            peer.open_channel(1);
            peer.close_channel(1);
            peer.open_channel(1);
            peer.expect(1, CHANNEL_CLOSE);
            peer.until(0, CLOSE);
            peer.send(0, CLOSE_OK, &[]);
            peer.expect_end();
        });
        let connection = Connection::open(peer.config().drop_timeout(times * SHORT)).unwrap();
        for _answered in [true, false] {
            let started = Instant::now();
            let result = thread::scope(|scope| {
                let panicking = || -> Result<()> {
                    let _channel = connection.channel()?;
                    panic!("on purpose")
                };
                scope.spawn(panicking).join()
            });
            assert!(result.is_err() && started.elapsed() < PROMPT);
        }
        connection.close().unwrap();
    });
}

/// Rows 13, 50: a close under which accepted messages are lost says so, and so does every later call.
#[test]
fn a_close_that_loses_accepted_messages_says_why() {
    given_time(|times| {
        let (ended, has_ended) = mpsc::channel();
        let peer = Peer::run(move |peer| {
            peer.handshake_with(Tune { heartbeat: times as u16, ..Tune::default() });
            peer.open_channel(1);
            // Reads nothing more, and is alive.
            while has_ended.recv_timeout(Duration::from_millis(200)).is_err() {
                peer.heartbeat();
            }
        });
        let config =
            peer.config().heartbeat(times * Duration::from_secs(1)).outgoing_buffer(65536).send_buffer(65536);
        let connection = Connection::open(config).unwrap();
        let channel = connection.channel().unwrap();
        while channel.try_publish("", "q", &[7; 4096]).is_ok() {}

        let error = connection.close().unwrap_err();
        assert!(
            matches!(&error, Error::Timeout(timeout) if timeout.waiting_for == "writing to the peer"),
            "{error}"
        );
        for _ in 0..3 {
            assert_eq!(connection.close().unwrap_err().to_string(), error.to_string());
            assert_eq!(connection.channel().unwrap_err().to_string(), error.to_string());
        }
        ended.send(()).unwrap();
        peer.finish();
    });
}

/// Rows 34, 53: a channel's close that finds no room in time is sent all the same, so that its id is free in the end.
#[test]
fn a_close_without_room_is_sent_later() {
    let (closed, is_closed) = mpsc::channel::<()>();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.open_channel(2);
        is_closed.recv().unwrap();
        peer.until(2, CHANNEL_CLOSE);
        peer.send(2, CHANNEL_CLOSE_OK, &[]);
        while peer.next_frame().method() != Some(CHANNEL_OPEN) {}
        peer.send(2, CHANNEL_OPEN_OK, args![""]);
        peer.close();
    });
    let config = peer.config().outgoing_buffer(4096).close_timeout(SHORT).publish_timeout(SHORT);
    let connection = Connection::open(config).unwrap();
    let (channel, other) = (connection.channel().unwrap(), connection.channel().unwrap());
    while channel.basic_publish("", "q", &[7; 20_000]).is_ok() {}
    let late = other.close();
    assert!(is_timeout(&late), "{late:?}");
    closed.send(()).unwrap();
    let mut reopened = other.reopen();
    eventually("the id is free", || {
        if reopened.is_err() {
            reopened = other.reopen();
        }
        reopened.is_ok()
    });
    assert_eq!(other.id(), 2);
    drop((channel, other));
    // How long what is still in the buffers takes is not what this is about.
    let _ = connection.close();
    peer.abandon();
}

/// Rows 65, 73: the same for what is dropped: consumers are cancelled, what they had not returned goes back, and a
/// transaction is rolled back before anything that follows on its channel.
#[test]
fn what_is_dropped_without_room_is_seen_through_later() {
    let (dropped, are_dropped) = mpsc::channel::<()>();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        for channel in 1..=4 {
            peer.open_channel(channel);
        }
        let queued = peer.start_consumer(2);
        peer.deliver(2, &queued, 1, b"first");
        peer.deliver(2, &queued, 2, b"second");
        let inline = peer.start_consumer(3);
        peer.expect(4, TX_SELECT);
        peer.send(4, TX_SELECT_OK, &[]);
        are_dropped.recv().unwrap();
        assert_eq!(peer.until(2, CANCEL).text(0), queued);
        assert_eq!(peer.until(2, NACK).number(0), 2);
        assert_eq!(peer.until(3, CANCEL).text(0), inline);
        let next = loop {
            let frame = peer.next_frame();
            if frame.channel == 4 && frame.method().is_some() {
                break frame.method();
            }
        };
        assert_eq!(next, Some(TX_ROLLBACK));
        // What crosses the cancel goes back as well.
        peer.deliver(3, &inline, 1, b"late");
        assert_eq!(peer.until(3, NACK).number(0), 1);
    });
    let config = peer.config().outgoing_buffer(4096).publish_timeout(SHORT).drop_timeout(SHORT);
    let connection = Connection::open(config).unwrap();
    let [filled, queued, inline, transacted] = [(); 4].map(|()| connection.channel().unwrap());
    let mut consumer = queued.basic_consume("q").unwrap();
    assert_eq!(consumer.next().unwrap().unwrap().body(), b"first");
    let handler = |_: &BorrowedDelivery<'_>| Ok(());
    let inline_consumer = inline.basic_consume_inline("q", handler).unwrap();
    let transaction = transacted.transaction().unwrap();

    while filled.basic_publish("", "q", &[7; 20_000]).is_ok() {}
    drop(consumer);
    drop(inline_consumer);
    drop(transaction);
    let _ = transacted.basic_publish("", "q", "another story");
    dropped.send(()).unwrap();
    peer.finish();
}
