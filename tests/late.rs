//! Answers that come too late: they reach nobody, and nobody has to pay for what they bring.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{sync::mpsc, thread, time::Duration};

use common::{limits::given_time, peer::*};
use leveret::{Connection, Consume, Error, Get, Result, Scope};

/// A limit that is meant to pass.
const SHORT: Duration = Duration::from_millis(50);

fn is_timeout<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Timeout(_)))
}

/// Row 37: the late answer to a call that timed out is never given to another, neither on the same thread nor on
/// another one that waits for the same kind of answer. A message that comes too late goes back to its queue.
#[test]
fn a_late_answer_reaches_nobody_else() {
    let (purging, purge) = mpsc::channel();
    let (going_on, goes_on) = mpsc::channel();
    let (answer, may_answer) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, QUEUE_PURGE);
        peer.expect(1, GET);
        peer.expect(1, QUEUE_PURGE);
        purging.send(()).unwrap();
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, QUEUE_PURGE_OK, args![1]);
        peer.content(1, GET_OK, args![1, 0, "", "", 0], b"late");
        peer.send(1, QUEUE_PURGE_OK, args![3]);
        peer.send(1, QUEUE_PURGE_OK, args![4]);
        expect_back(peer, 1);
        peer.expect(1, GET);
        peer.content(1, GET_OK, args![2, 0, "", "", 0], b"in time");
        // Nobody has to settle this one.
        peer.expect(1, GET);
        going_on.send(()).unwrap();
        may_answer.recv().unwrap();
        peer.content(1, GET_OK, args![3, 0, "", "", 0], b"late");
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, QUEUE_PURGE_OK, args![5]);
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    assert!(is_timeout(&channel.within(SHORT).queue_purge("q")));
    assert!(is_timeout(&channel.within(SHORT).basic_get("q")));
    thread::scope(|scope| {
        let third = scope.spawn(|| channel.queue_purge("q"));
        purge.recv().unwrap();
        assert_eq!(channel.queue_purge("q").unwrap(), 4);
        assert_eq!(third.join().unwrap().unwrap(), 3);
    });
    assert_eq!(channel.basic_get("q").unwrap().unwrap().body(), b"in time");
    assert!(is_timeout(&channel.within(SHORT).basic_get(Get::new("q").no_ack(true))));
    goes_on.recv().unwrap();
    answer.send(()).unwrap();
    assert_eq!(channel.queue_purge("q").unwrap(), 5);
    connection.close().unwrap();
}

/// The client gives a message back to its queue.
fn expect_back(peer: &mut Peer, delivery_tag: u64) {
    let nack = peer.expect(1, NACK);
    assert_eq!((nack.number(0), nack.number(1)), (delivery_tag, 0b10), "one, to its queue");
}

/// Rows 15, 37, 71: a consumer whose start timed out is cancelled, also when the broker has blocked the connection, and
/// what comes for it reaches nobody and goes back.
#[test]
fn a_consumer_that_starts_too_late_is_cancelled() {
    for blocked in [false, true] {
        let (back, are_back) = mpsc::channel();
        let peer = Peer::run(move |peer| {
            peer.handshake();
            peer.open_channel(1);
            if blocked {
                peer.send(0, BLOCKED, args!["low on memory"]);
            }
            peer.expect(1, FLOW);
            peer.send(1, FLOW_OK, args![1]);
            peer.expect(1, CONSUME);
            let cancel = peer.expect(1, CANCEL);
            assert_eq!((cancel.text(0), cancel.number(1)), ("late", 0));
            peer.send(1, CONSUME_OK, args!["late"]);
            peer.deliver(1, "late", 1, b"lost");
            peer.deliver(1, "late", 2, b"lost");
            for number in [1, 2] {
                expect_back(peer, number);
            }
            back.send(()).unwrap();
            peer.expect(1, CONSUME);
            peer.send(1, CONSUME_OK, args!["next"]);
            peer.send(1, CANCEL_OK, args!["late"]);
            peer.deliver(1, "next", 3, b"found");
            // The name is free again.
            peer.expect(1, CONSUME);
            peer.send(1, CONSUME_OK, args!["late"]);
            peer.deliver(1, "late", 4, b"in time");
            peer.close();
        });
        let connection = Connection::open(peer.config().prefetch(0)).unwrap();
        let channel = connection.channel().unwrap();
        channel.flow(true).unwrap();
        let consume = Consume::new("q").consumer_tag("late");
        let late = channel.within(SHORT).basic_consume(consume.clone());
        match late {
            Err(Error::Blocked { .. }) if blocked => {}
            Err(Error::Timeout(_)) if !blocked => {}
            other => panic!("{other:?}"),
        }
        are_back.recv().unwrap();
        let mut consumer = channel.basic_consume(consume.clone().consumer_tag("next")).unwrap();
        assert_eq!(consumer.next().unwrap().unwrap().body(), b"found");
        let mut again = channel.basic_consume(consume).unwrap();
        assert_eq!(again.next().unwrap().unwrap().body(), b"in time");
        connection.close().unwrap();
    }
}

/// Rows 37, 73: what comes for a consumer that was dropped, and whose cancel the broker has not answered in time, goes
/// back as well.
#[test]
fn what_comes_for_a_dropped_consumer_goes_back() {
    let (sent, is_sent) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["slow"]);
        peer.deliver(1, "slow", 1, b"queued");
        sent.send(()).unwrap();
        peer.expect(1, CANCEL);
        expect_back(peer, 1);
        peer.deliver(1, "slow", 2, b"crossed");
        expect_back(peer, 2);
        sent.send(()).unwrap();
        peer.send(1, CANCEL_OK, args!["slow"]);
        peer.close();
    });
    let connection = Connection::open(peer.config().prefetch(0).drop_timeout(SHORT)).unwrap();
    let channel = connection.channel().unwrap();
    let consumer = channel.basic_consume(Consume::new("q").consumer_tag("slow")).unwrap();
    is_sent.recv().unwrap();
    drop(consumer);
    is_sent.recv().unwrap();
    drop(channel);
    connection.close().unwrap();
}

/// Rows 34, 37: a channel that the broker opens too late is closed again, its id is free after that and not
/// before, and the connection goes on.
#[test]
fn a_channel_that_opens_too_late_gives_its_id_back() {
    given_time(|times| {
        let (closed, close_seen) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let peer = Peer::run(move |peer| {
            peer.handshake_with(Tune { channel_max: 1, ..Tune::default() });
            peer.expect(1, CHANNEL_OPEN);
            peer.expect(1, CHANNEL_CLOSE);
            closed.send(()).unwrap();
            may_go_on.recv().unwrap();
            peer.send(1, CHANNEL_OPEN_OK, args![""]);
            peer.send(1, CHANNEL_CLOSE_OK, &[]);
            peer.open_channel(1);
            peer.close();
        });
        let connection = Connection::open(peer.config().call_timeout(times * SHORT)).unwrap();
        let late = connection.channel();
        assert!(is_timeout(&late), "{late:?}");
        close_seen.recv().unwrap();
        assert!(matches!(connection.channel(), Err(Error::ChannelsExhausted { max: 1 })));
        go_on.send(()).unwrap();
        let mut channel = connection.channel();
        eventually("the id is free", || {
            if channel.is_err() {
                channel = connection.channel();
            }
            channel.is_ok()
        });
        assert_eq!(channel.unwrap().id(), 1);
        connection.close().unwrap();
    });
}

/// Rows 34, 37: a channel whose close was not answered in time is closed; answers that were on their way are
/// ignored, its id is free once the close is answered.
#[test]
fn late_answers_on_a_closed_channel_are_ignored() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, QUEUE_PURGE);
        peer.expect(1, CHANNEL_CLOSE);
        peer.expect(2, CHANNEL_OPEN);
        peer.send(1, QUEUE_PURGE_OK, args![1]);
        peer.content(1, GET_OK, args![1, 0, "", "", 0], b"late");
        peer.deliver(1, "tag", 2, b"late");
        peer.send(1, FLOW, args![0]);
        peer.send(1, CANCEL, args!["tag", 0]);
        peer.send(1, CHANNEL_CLOSE_OK, &[]);
        peer.send(2, CHANNEL_OPEN_OK, args![""]);
        peer.open_channel(1);
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, QUEUE_PURGE_OK, args![7]);
        peer.close();
    });
    let connection = Connection::open(peer.config().close_timeout(SHORT)).unwrap();
    let channel = connection.channel().unwrap();
    assert!(is_timeout(&channel.within(SHORT).queue_purge("q")));
    assert!(is_timeout(&channel.close()));
    assert!(matches!(channel.queue_purge("q"), Err(Error::Closed(Scope::Channel))));
    let other = connection.channel().unwrap();
    assert_eq!(other.id(), 2);
    channel.reopen().unwrap();
    assert_eq!((channel.id(), channel.queue_purge("q").unwrap()), (1, 7));
    peer_closes(&connection);
}

/// Closes although the limit for it is short: the peer answers at once.
fn peer_closes(connection: &Connection) {
    let _ = connection.close();
    assert!(connection.wait_closed().is_closed());
}
