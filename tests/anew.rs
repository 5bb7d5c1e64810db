//! What a channel or a consumer leaves behind holds up nobody who comes after it: a channel that is opened again begins
//! anew, and room that was taken is given back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{sync::mpsc, time::Duration};

use common::{brokers::on_each_broker, limits::PROMPT, peer::*, queues::holds};
use leveret::{Channel, Connection, Consume, Consumer, Qos};

/// A limit that is meant to pass.
const SHORT: Duration = Duration::from_millis(50);

/// Rows 33, 74, 78: the prefetch count belongs to the channel as it was: after `reopen` the default is set again.
#[test]
fn a_channel_that_is_opened_again_has_the_default_prefetch() {
    on_each_broker(|broker| {
        let (_connection, observer) = broker.channel();
        observer.queue_declare("q")?;
        (0..30).try_for_each(|_| observer.basic_publish("", "q", "message"))?;
        holds(&observer, "q", 30);
        let connection = Connection::open(broker.config().prefetch(7))?;
        let channel = connection.channel()?;
        for set in [None, Some(3), None] {
            set.into_iter().try_for_each(|count| channel.basic_qos(Qos::new(count)))?;
            let consumer = channel.basic_consume("q")?;
            holds(&observer, "q", 30 - u32::from(set.unwrap_or(7)));
            channel.close()?;
            drop(consumer);
            holds(&observer, "q", 30);
            channel.reopen()?;
        }
        Ok(())
    });
}

/// Rows 33, 38: a flow that the broker has stopped is that of the channel as it was.
#[test]
fn a_channel_that_is_opened_again_has_its_flow() {
    let (stopped, is_stopped) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake_with(Tune { channel_max: 1, ..Tune::default() });
        peer.open_channel(1);
        peer.send(1, FLOW, args![0]);
        assert_eq!(peer.expect(1, FLOW_OK).number(0), 0);
        stopped.send(()).unwrap();
        peer.close_channel(1);
        peer.open_channel(1);
        assert_eq!(peer.expect_publish(1).2, b"goes");
        peer.close();
    });
    let connection = Connection::open(peer.config().publish_timeout(SHORT)).unwrap();
    let channel = connection.channel().unwrap();
    is_stopped.recv().unwrap();
    assert!(channel.basic_publish("", "q", "waits").is_err());
    channel.close().unwrap();
    channel.reopen().unwrap();
    channel.basic_publish("", "q", "goes").unwrap();
    connection.close().unwrap();
}

/// Rows 33, 63: places in the window that were taken when the channel ended are free again.
#[test]
fn a_channel_that_is_opened_again_has_all_of_its_window() {
    let peer = Peer::run(|peer| {
        peer.handshake_with(Tune { channel_max: 1, ..Tune::default() });
        for ends_by_error in [true, false, false] {
            peer.open_channel(1);
            peer.expect(1, CONFIRM_SELECT);
            peer.send(1, CONFIRM_SELECT_OK, &[]);
            for _ in 0..2 {
                peer.expect_publish(1);
            }
            if ends_by_error {
                peer.expect(1, QUEUE_PURGE);
                peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND", 50, 30]);
                peer.expect(1, CHANNEL_CLOSE_OK);
            } else {
                peer.close_channel(1);
            }
        }
        peer.close();
    });
    let config = peer.config().max_outstanding_confirms(2).publish_timeout(SHORT);
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    for round in 0..3 {
        channel.confirm_select().unwrap();
        for _ in 0..2 {
            channel.basic_publish("", "q", "never confirmed").unwrap();
        }
        assert_eq!(channel.unconfirmed(), 2);
        assert!(channel.basic_publish("", "q", "no room").is_err(), "round {round}");
        match round {
            0 => assert!(channel.queue_purge("q").unwrap_err().is_soft()),
            _ => channel.close().unwrap(),
        }
        assert_eq!(channel.unconfirmed(), 0);
        if round < 2 {
            channel.reopen().unwrap();
        }
    }
    connection.close().unwrap();
}

/// How a consumer ends that has taken nothing of what it was sent.
const ENDS: [fn(&Channel, Consumer); 4] = [
    |_, consumer| drop(consumer),
    |_, mut consumer| {
        consumer.cancel().unwrap();
        drop(consumer);
    },
    |channel, consumer| {
        channel.close().unwrap();
        drop(consumer);
    },
    |channel, mut consumer| {
        channel.close().unwrap();
        // With acks nothing is left but the cause, without them all of it.
        while let Some(Ok(_)) = consumer.next() {}
    },
];

/// Rows 73, 74: the room that messages took up in the connection's buffer is free again when nobody will take them any
/// more, so that reading does not pause for ever.
#[test]
fn a_consumer_that_is_gone_gives_its_room_back() {
    const LIMIT: usize = 100_000;
    for (end, no_ack) in ENDS.iter().flat_map(|end| [(end, false), (end, true)]) {
        let (gone, is_gone) = mpsc::channel();
        let peer = Peer::run(move |peer| {
            peer.handshake();
            peer.open_channel(1);
            peer.open_channel(2);
            for (channel, tag) in [(2, "other"), (1, "gone")] {
                peer.expect(channel, CONSUME);
                peer.send(channel, CONSUME_OK, args![tag]);
            }
            for number in 1..=4 {
                peer.deliver(1, "gone", number, &[7; LIMIT]);
            }
            peer.expect(2, FLOW);
            peer.send(2, FLOW_OK, args![1]);
            // Whatever the client has to say about its end, it is answered.
            loop {
                let frame = peer.next_frame();
                match frame.method() {
                    Some(CANCEL) => peer.send(1, CANCEL_OK, args!["gone"]),
                    Some(CHANNEL_CLOSE) => peer.send(1, CHANNEL_CLOSE_OK, &[]),
                    Some(FLOW) => break,
                    _ => {}
                }
            }
            peer.send(2, FLOW_OK, args![1]);
            is_gone.recv().unwrap();
            // No call waits for an answer now.
            for number in 1..=5 {
                peer.deliver(2, "other", number, &[8; LIMIT / 2]);
            }
            peer.close();
        });
        let connection = Connection::open(peer.config().prefetch(0).incoming_buffer(LIMIT)).unwrap();
        let (channel, second) = (connection.channel().unwrap(), connection.channel().unwrap());
        let consume = |tag: &'static str| Consume::new("q").consumer_tag(tag).no_ack(no_ack);
        let mut other = second.basic_consume(consume("other")).unwrap();
        let consumer = channel.basic_consume(consume("gone")).unwrap();
        // All of it is here.
        second.flow(true).unwrap();
        end(&channel, consumer);
        second.flow(true).unwrap();
        gone.send(()).unwrap();
        for _ in 0..5 {
            let delivery = other.next_timeout(PROMPT).unwrap().expect("reading goes on");
            assert_eq!(delivery.body().len(), LIMIT / 2);
        }
        connection.close().unwrap();
    }
}
