//! Confirms against a scripted peer: the window, `wait_for_confirms`, and where the counting begins.

use std::{
    collections::HashMap,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use leveret::{Channel, Config, Connection, Consume, Error, Outcome, Publish, ReplyCode, Result};

use super::common::{
    limits::given_time,
    peer::*,
    watchdog::{LIMIT, Watchdog, test_name},
};

const SHORT: Duration = Duration::from_millis(50);

/// Opens channel 1 and puts it into confirm mode.
fn confirm_mode(peer: &mut Peer) {
    peer.handshake();
    peer.open_channel(1);
    peer.expect(1, CONFIRM_SELECT);
    peer.send(1, CONFIRM_SELECT_OK, &[]);
}

/// The peer's part in closing everything.
fn end(peer: &mut Peer) {
    peer.until(1, CHANNEL_CLOSE);
    peer.send(1, CHANNEL_CLOSE_OK, &[]);
    peer.close();
}

fn open(config: Config) -> (Connection, Channel) {
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    channel.confirm_select().unwrap();
    (connection, channel)
}

fn ack(peer: &mut Peer, number: u64) {
    peer.send(1, ACK, args![number, 0]);
}

fn return_and_ack(peer: &mut Peer, number: u64, body: &[u8]) {
    peer.content(1, RETURN, args![312, "NO_ROUTE", "", "key"], body);
    ack(peer, number);
}

/// What `wait_for_confirms` lists.
fn listed(result: Result<()>) -> Vec<(u64, Error)> {
    match result {
        Ok(()) => Vec::new(),
        Err(Error::Unconfirmed(unconfirmed)) => unconfirmed.failures.clone(),
        Err(error) => panic!("{error:?}"),
    }
}

fn numbers(result: Result<()>) -> Vec<u64> {
    listed(result).into_iter().map(|(number, _)| number).collect()
}

/// Row 63: with the window full the next publish waits for an ack, and no longer than it may.
#[test]
fn a_full_window_holds_the_next_publish_back() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let acked = AtomicBool::new(false);
    let (tried, go_on) = mpsc::channel();
    let (ack_now, acked_by) = mpsc::channel::<()>();
    let peer = Peer::run(move |peer| {
        confirm_mode(peer);
        for body in [b"1", b"2", b"3"] {
            assert_eq!(peer.expect_publish(1).2, body);
        }
        go_on.recv().unwrap();
        acked_by.recv().unwrap();
        ack(peer, 2);
        assert_eq!(peer.expect_publish(1).2, b"4", "what was refused is not sent");
        peer.send(1, ACK, args![4, 1]);
        end(peer);
    });
    let (connection, channel) = open(peer.config().max_outstanding_confirms(3).publish_timeout(SHORT));
    for body in ["1", "2", "3"] {
        channel.basic_publish("", "key", body).unwrap();
    }
    assert!(matches!(channel.try_publish("", "key", "refused"), Err(Error::WouldBlock)));
    for refused in [
        channel.basic_publish("", "key", "refused"),
        channel.publish_confirmed("", "key", "refused"),
        channel.deferred().basic_publish("", "key", "refused").map(drop),
    ] {
        let Err(Error::Timeout(timeout)) = refused else { panic!("{refused:?}") };
        assert_eq!(
            (timeout.waiting_for, timeout.limit),
            ("room in the window of unconfirmed messages", SHORT)
        );
    }
    assert_eq!(channel.unconfirmed(), 3);
    tried.send(()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            acked.store(true, Ordering::SeqCst);
            ack_now.send(()).unwrap();
        });
        // Each try waits a little; the ack is sent in the middle of one.
        while channel.basic_publish("", "key", "4").is_err() {}
        assert!(acked.load(Ordering::SeqCst), "there was no room before the ack");
    });
    channel.wait_for_confirms(LIMIT).unwrap();
    channel.close().unwrap();
    connection.close().unwrap();
}

/// Rows 53, 63: there is one limit for all that a publish has to wait for: a place in the window, and then the flow.
#[test]
fn a_publish_has_one_limit_for_all_its_waits() {
    given_time(|times| {
        let limit = times * Duration::from_millis(200);
        let (stopped, is_stopped) = mpsc::channel();
        let (begun, has_begun) = mpsc::channel();
        let peer = Peer::run(move |peer| {
            confirm_mode(peer);
            peer.expect_publish(1);
            peer.send(1, FLOW, args![0]);
            peer.expect(1, FLOW_OK);
            stopped.send(()).unwrap();
            has_begun.recv().unwrap();
            // The times are what this is about: a place after three quarters of the limit, the flow after five.
            thread::sleep(limit * 3 / 4);
            ack(peer, 1);
            thread::sleep(limit / 2);
            peer.send(1, FLOW, args![1]);
            end(peer);
        });
        let (connection, channel) = open(peer.config().max_outstanding_confirms(1).publish_timeout(limit));
        channel.basic_publish("", "q", "first").unwrap();
        is_stopped.recv().unwrap();
        begun.send(()).unwrap();
        let published = channel.basic_publish("", "q", "second");
        assert!(matches!(published, Err(Error::Timeout(_))), "{published:?}");
        channel.close().unwrap();
        connection.close().unwrap();
    });
}

/// Rows 63, 74: the ack that makes room stands behind deliveries that nobody takes; it is read all the same.
#[test]
fn a_publisher_that_waits_for_an_ack_keeps_the_reader_reading() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        confirm_mode(peer);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        peer.deliver(1, "tag", 1, &[b'x'; 200_000]);
        peer.expect(1, FLOW);
        peer.send(1, FLOW_OK, args![1]);
        for _ in 0..2 {
            peer.expect_publish(1);
        }
        ack(peer, 1);
        peer.expect_publish(1);
        peer.send(1, ACK, args![3, 1]);
        peer.expect(1, CANCEL);
        peer.send(1, CANCEL_OK, args!["tag"]);
        end(peer);
    });
    let config = peer.config().max_outstanding_confirms(2).incoming_buffer(100_000);
    let (connection, channel) = open(config);
    let consumer = channel.basic_consume(Consume::new("queue").consumer_tag("tag").no_ack(true)).unwrap();
    // Whatever stands before its answer has been read: from now on the reader pauses.
    channel.flow(true).unwrap();
    for body in ["1", "2", "3"] {
        channel.basic_publish("", "key", body).unwrap();
    }
    channel.wait_for_confirms(LIMIT).unwrap();
    drop(consumer);
    channel.close().unwrap();
    connection.close().unwrap();
}

/// Row 61: Ok only if everything was acked, and otherwise what was not; each once, except what is still to come.
#[test]
fn wait_for_confirms_lists_what_was_not_acked() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let (all_listed, ack_the_rest) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        confirm_mode(peer);
        let bodies: Vec<_> = (0..8).map(|_| peer.expect_publish(1).2).collect();
        peer.send(1, NACK, args![2, 0]);
        return_and_ack(peer, 3, &bodies[2]);
        ack(peer, 1);
        for number in 5..=8 {
            peer.send(1, NACK, args![number, 0]);
        }
        ack_the_rest.recv().unwrap();
        ack(peer, 4);
        end(peer);
    });
    let (connection, channel) = open(peer.config());
    for body in ["1", "2"] {
        channel.basic_publish("", "key", body).unwrap();
    }
    channel.basic_publish("", "key", Publish::new("3").mandatory(true)).unwrap();
    channel.basic_publish("", "key", "4").unwrap();
    let asked = channel.deferred().basic_publish("", "key", "5").unwrap();
    drop(channel.deferred().basic_publish("", "key", "6").unwrap());
    let mut kept = channel.deferred().basic_publish("", "key", "7").unwrap();
    let refused = channel.publish_confirmed("", "key", "8");
    assert!(matches!(refused, Err(Error::Nacked)), "{refused:?}");
    assert!(matches!(asked.wait(), Outcome::Nacked));

    let list = listed(channel.wait_for_confirms(SHORT));
    assert_eq!(list.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [2, 3, 6, 7, 4]);
    assert!(matches!(&list[0].1, Error::Nacked));
    let Error::Returned(returned) = &list[1].1 else { panic!("{list:?}") };
    assert_eq!((&*returned.body, returned.code), (&b"3"[..], ReplyCode::NoRoute));
    let Error::Timeout(timeout) = &list[4].1 else { panic!("{list:?}") };
    assert_eq!((timeout.waiting_for, timeout.limit), ("waiting for confirms", SHORT));
    assert!(matches!(kept.try_wait(), Some(Outcome::Nacked)), "its handle says the same");
    assert_eq!(numbers(channel.wait_for_confirms(Duration::ZERO)), [4], "what was late may still come");
    assert_eq!(channel.unconfirmed(), 1);

    all_listed.send(()).unwrap();
    channel.wait_for_confirms(LIMIT).unwrap();
    channel.check_returned().unwrap();
    channel.close().unwrap();
    connection.close().unwrap();
}

/// Row 60: an outcome that does not come in time is not known, and is told as such once; it may still come to a handle
/// that is not given up.
#[test]
fn an_outcome_that_does_not_come_in_time_is_unknown() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let (given_up, is_given_up) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        confirm_mode(peer);
        for _ in 0..3 {
            peer.expect_publish(1);
        }
        is_given_up.recv().unwrap();
        peer.send(1, ACK, args![3, 1]);
        end(peer);
    });
    let (connection, channel) = open(peer.config().confirm_timeout(SHORT));
    let mut patient = channel.deferred().basic_publish("", "key", "1").unwrap();
    let handle = channel.deferred().basic_publish("", "key", "2").unwrap();
    assert!(patient.wait_timeout(SHORT).is_none());
    for unknown in [handle.wait().into_result(), channel.publish_confirmed("", "key", "3")] {
        let Err(Error::Timeout(timeout)) = unknown else { panic!("{unknown:?}") };
        assert_eq!((timeout.waiting_for, timeout.limit), ("waiting for a confirm", SHORT));
    }
    assert_eq!(channel.unconfirmed(), 3);
    given_up.send(()).unwrap();
    assert!(matches!(patient.wait_timeout(LIMIT), Some(Outcome::Acked)));
    channel.wait_for_confirms(LIMIT).unwrap();
    channel.close().unwrap();
    connection.close().unwrap();
}

/// Rows 14, 61: after a loss what was outstanding is listed, however often one asks: never is everything said to
/// be confirmed. A new beginning on the same channel starts from there, once.
#[test]
fn after_a_loss_nothing_is_said_to_be_confirmed() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    for lost_with in ["channel", "connection", "socket"] {
        let peer = Peer::run(move |peer| {
            confirm_mode(peer);
            for _ in 0..3 {
                peer.expect_publish(1);
            }
            ack(peer, 2);
            match lost_with {
                "channel" => {
                    peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND", 60, 40]);
                    peer.expect(1, CHANNEL_CLOSE_OK);
                    peer.open_channel(1);
                    assert_eq!(peer.expect_publish(1).2, b"unconfirmed");
                    peer.expect(1, CONFIRM_SELECT);
                    peer.send(1, CONFIRM_SELECT_OK, &[]);
                    peer.expect_publish(1);
                    // Numbers of the old channel mean nothing here.
                    ack(peer, 3);
                    peer.expect_publish(1);
                    peer.send(1, NACK, args![1, 0]);
                    ack(peer, 2);
                    end(peer);
                }
                "connection" => {
                    peer.send(0, CLOSE, args![320, "CONNECTION_FORCED", 0, 0]);
                    peer.expect(0, CLOSE_OK);
                    peer.expect_end();
                }
                _ => peer.fin(),
            }
        });
        let (connection, channel) = open(peer.config());
        channel.basic_publish("", "key", "1").unwrap();
        let handle = channel.deferred().basic_publish("", "key", "2").unwrap();
        channel.basic_publish("", "key", "3").unwrap();
        assert!(matches!(handle.wait(), Outcome::Acked));
        for _ in 0..3 {
            let list = listed(channel.wait_for_confirms(LIMIT));
            assert_eq!(list.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 3]);
            for (_, error) in list {
                match lost_with {
                    "channel" => assert_eq!(error.reply_code(), Some(ReplyCode::NotFound)),
                    "connection" => assert_eq!(error.reply_code(), Some(ReplyCode::ConnectionForced)),
                    _ => assert!(matches!(error, Error::Io { .. }), "{error:?}"),
                }
            }
        }
        let again = channel.publish_confirmed("", "key", "again").unwrap_err();
        assert!(again.is_soft() || again.is_hard(), "the cause, and not that the mode is wrong: {again:?}");
        if lost_with == "channel" {
            assert_eq!(again.reply_code(), Some(ReplyCode::NotFound));
            channel.reopen().unwrap();
            assert_eq!(numbers(channel.wait_for_confirms(LIMIT)), [1, 3]);
            channel.basic_publish("", "key", "unconfirmed").unwrap();
            let refused = channel.publish_confirmed("", "key", "refused");
            assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
            channel.confirm_select().unwrap();
            let first = channel.deferred().basic_publish("", "key", "first").unwrap();
            assert_eq!(first.sequence_number(), 1);
            assert_eq!(channel.unconfirmed(), 1);
            channel.publish_confirmed("", "key", "second").unwrap();
            assert!(matches!(first.wait(), Outcome::Nacked));
            assert_eq!(numbers(channel.wait_for_confirms(LIMIT)), [1, 3]);
            channel.wait_for_confirms(LIMIT).unwrap();
            channel.close().unwrap();
            connection.close().unwrap();
        }
    }
}

/// Row 60: a channel that never was in confirm mode cannot say anything about confirms.
#[test]
fn without_confirm_mode_confirms_are_refused_before_anything_is_sent() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, CHANNEL_CLOSE);
        peer.send(1, CHANNEL_CLOSE_OK, &[]);
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    for refused in [
        channel.publish_confirmed("", "key", "message"),
        channel.deferred().basic_publish("", "key", "message").map(drop),
        channel.wait_for_confirms(Duration::ZERO),
    ] {
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    }
    assert_eq!(channel.unconfirmed(), 0);
    channel.close().unwrap();
    connection.close().unwrap();
}

/// Rows 43, 53: a mandatory message that cannot be encoded is not taken for a lack of room.
#[test]
fn try_publish_says_what_is_wrong_with_a_message() {
    let peer = Peer::run(|peer| {
        confirm_mode(peer);
        end(peer);
    });
    let (connection, channel) = open(peer.config());
    let properties = leveret::BasicProperties::new().content_type("x".repeat(300));
    let message = Publish::new("message").properties(&properties).mandatory(true);
    let refused = channel.try_publish("", "key", message);
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    channel.close().unwrap();
    connection.close().unwrap();
}

/// Rows 35, 60: the mode is chosen by several threads at once while others publish. What the broker counts is
/// what stands behind the first confirm.select on the wire, and the handles have the same numbers.
#[test]
fn counting_begins_where_confirm_select_stands_on_the_wire() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    for _ in 0..30 {
        let peer = Peer::run(|peer| {
            peer.handshake();
            peer.open_channel(1);
            let (mut counted, mut selects) = (None, 0);
            let mut numbers = HashMap::new();
            loop {
                let frame = peer.next_frame();
                match frame.method() {
                    Some(CONFIRM_SELECT) => {
                        counted = counted.or(Some(0));
                        selects += 1;
                        peer.send(1, CONFIRM_SELECT_OK, &[]);
                    }
                    Some(CHANNEL_CLOSE) => break,
                    _ => {}
                }
                if frame.kind == BODY {
                    counted = counted.map(|counted| counted + 1);
                    if let Some(number) = counted {
                        numbers.insert(frame.payload, number);
                        ack(peer, number);
                    }
                }
            }
            peer.send(1, CHANNEL_CLOSE_OK, &[]);
            peer.close();
            assert!(selects >= 1);
            numbers
        });
        let connection = Connection::open(peer.config()).unwrap();
        let channel = connection.channel().unwrap();
        let publisher = |thread: u8| {
            let mut handles = Vec::new();
            let mut number: u8 = 0;
            while handles.len() < 10 {
                let body = vec![thread, number];
                match channel.deferred().basic_publish("", "key", &body) {
                    Ok(handle) => {
                        handles.push((body, handle.sequence_number()));
                        assert!(matches!(handle.wait(), Outcome::Acked));
                    }
                    Err(Error::Invalid(_)) => channel.basic_publish("", "key", &body).unwrap(),
                    Err(error) => panic!("{error:?}"),
                }
                number = number.wrapping_add(1);
            }
            handles
        };
        let handles: Vec<(Vec<u8>, u64)> = thread::scope(|scope| {
            let publisher = &publisher;
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || publisher(thread))).collect();
            for _ in 0..4 {
                scope.spawn(|| channel.confirm_select().unwrap());
            }
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        // A second time makes no difference.
        channel.confirm_select().unwrap();
        channel.wait_for_confirms(LIMIT).unwrap();
        channel.close().unwrap();
        connection.close().unwrap();
        let numbers = peer.finish();
        for (body, number) in handles {
            assert_eq!(numbers.get(&body), Some(&number));
        }
    }
}
