//! What a test may do to the connections of the in-process broker: cut, stalled, delayed, and given up for silence.

#![cfg(feature = "broker")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{thread, time::Duration};

use common::watchdog::{LIMIT, Watchdog};
use leveret::{
    BasicProperties, Channel, Config, Connection, Consume, Error, Outcome, Result,
    broker::{Broker, Direction},
};

/// Longer than any test takes.
const HOUR: Duration = Duration::from_secs(3600);

/// A connection, its number, and a channel in confirm mode with the queue `q`.
fn open(broker: &Broker) -> (Connection, u64, Channel) {
    let id = broker.next_connection();
    let connection = broker.connect().unwrap();
    let channel = connection.channel().unwrap();
    channel.queue_declare("q").unwrap();
    channel.confirm_select().unwrap();
    (connection, id, channel)
}

/// The names of the frames in one direction.
fn names(broker: &Broker, direction: Direction) -> Vec<&'static str> {
    let log = broker.frame_log();
    log.iter().filter(|frame| frame.direction == direction).map(|frame| frame.name).collect()
}

#[test]
fn a_publish_can_be_cut_off_at_each_of_its_frames() {
    let _watchdog = Watchdog::new("a publish cut off", LIMIT);
    for (frames, there) in [(1, 0), (2, 0), (3, 0), (4, 1)] {
        let broker = Broker::listen("127.0.0.1:0").unwrap();
        let connection = Connection::open(broker.uri().unwrap()).unwrap();
        let channel = connection.channel().unwrap();
        channel.queue_declare("q").unwrap();
        channel.confirm_select().unwrap();
        broker.keep_frames(100);
        assert!(broker.cut_after(1, Direction::FromClient, frames));
        // Two frames of body.
        let error = channel.publish_confirmed("", "q", &[7; 200_000]).unwrap_err();
        assert!(error.can_retry(), "{error}");
        broker.expect_connections(0, LIMIT).unwrap();
        assert_eq!(broker.queue("/", "q").unwrap().ready, there, "after {frames} frames");
        let expected = ["basic.publish", "header", "body", "body"];
        assert_eq!(names(&broker, Direction::FromClient), expected[..frames as usize]);
        assert!(names(&broker, Direction::ToClient).is_empty());
        assert!(!broker.cut_after(1, Direction::FromClient, 1), "it is over");
    }
}

/// However many come at once: what came before the last frame is answered, and the last one is not.
#[test]
fn of_a_burst_exactly_so_many_frames_are_taken() -> Result<()> {
    let _watchdog = Watchdog::new("a burst cut off", LIMIT);
    let broker = Broker::start();
    let (_connection, id, channel) = open(&broker);
    broker.stall_reads(id, true);
    let mut confirms = Vec::new();
    for _ in 0..10 {
        confirms.push(channel.deferred().basic_publish("", "q", "one of many")?);
    }
    broker.cut_after(id, Direction::FromClient, 5 * 3);
    broker.stall_reads(id, false);
    let acked = confirms.into_iter().map(|mut confirm| confirm.wait_timeout(LIMIT));
    let acked = acked.filter(|outcome| matches!(outcome, Some(Outcome::Acked))).count();
    assert_eq!((acked, broker.queue("/", "q").unwrap().ready), (4, 5));
    Ok(())
}

#[test]
fn a_delivery_can_be_cut_off_at_each_of_its_frames() -> Result<()> {
    let _watchdog = Watchdog::new("a delivery cut off", LIMIT);
    for frames in 1..=5 {
        let broker = Broker::start();
        let (connection, id, channel) = open(&broker);
        channel.publish_confirmed("", "q", "the only one")?;
        broker.keep_frames(100);
        assert!(broker.cut_after(id, Direction::ToClient, frames));
        let consumed = channel.basic_consume("q").and_then(|mut consumer| consumer.next_timeout(LIMIT));
        let delivered = matches!(consumed, Ok(Some(_)));
        assert!(!delivered || frames == 5);
        assert!(connection.wait_closed().can_retry());
        broker.expect_connections(0, LIMIT)?;
        let expected = ["basic.qos-ok", "basic.consume-ok", "basic.deliver", "header", "body"];
        assert_eq!(names(&broker, Direction::ToClient), expected[..frames as usize]);
        // It is there for the next, marked if it had been on its way.
        assert_eq!(broker.peek("/", "q", 1)[0].redelivered, frames > 1);
        let _ = consumed;
    }
    Ok(())
}

#[test]
fn the_next_connections_can_be_cut_in_their_handshake() -> Result<()> {
    let _watchdog = Watchdog::new("handshakes cut off", LIMIT);
    let broker = Broker::listen("127.0.0.1:0")?;
    let first = broker.next_connection();
    for frames in 0..6 {
        let direction = if frames < 3 { Direction::FromClient } else { Direction::ToClient };
        assert!(broker.cut_after(first + frames, direction, frames % 3));
    }
    let never = first + 6;
    assert!(broker.cut_after(never, Direction::ToClient, 3));
    assert!(broker.cut_after(never, Direction::ToClient, u64::MAX));
    for _ in 0..6 {
        let error = Connection::open(broker.uri()?).unwrap_err();
        assert!(error.can_retry(), "{error}");
    }
    let connection = Connection::open(broker.uri()?)?;
    connection.channel()?;
    assert_eq!(broker.next_connection(), never + 1);
    assert!(!broker.drop_connection(first), "it is over");
    assert!(!broker.drop_connection(0));
    Ok(())
}

/// What is ordered for a connection survives a restart, so that the client's reconnect finds it.
#[test]
fn a_client_that_comes_back_finds_a_broker_that_does_not_answer() -> Result<()> {
    let _watchdog = Watchdog::new("a broker that does not answer", LIMIT);
    let broker = Broker::listen("127.0.0.1:0")?;
    broker.stall_writes(broker.next_connection(), true);
    broker.restart()?;
    let hasty = Config::try_from(&*broker.uri()?)?.handshake_timeout(Duration::from_millis(100));
    let error = Connection::open(hasty.clone()).unwrap_err();
    assert!(error.to_string().contains("connection.start took longer"), "{error}");
    Connection::open(hasty.handshake_timeout(LIMIT))?.close()
}

#[test]
fn answers_come_later_and_in_their_order() -> Result<()> {
    let _watchdog = Watchdog::new("delayed answers", LIMIT);
    let broker = Broker::start();
    let (_delayed, id, slow) = open(&broker);
    let (_other, _, fast) = open(&broker);
    broker.keep_frames(1000);
    assert!(broker.delay_writes(id, HOUR));
    let mut confirm = slow.deferred().basic_publish("", "q", "one")?;
    let mut declared = slow.deferred().queue_declare("q2")?;
    broker.expect("the queue", LIMIT, |broker| broker.queue("/", "q2"))?;
    fast.publish_confirmed("", "q", "two")?;
    broker.advance(HOUR - Duration::from_secs(60));
    assert!(confirm.try_wait().is_none() && declared.try_wait().is_none());
    // What is sent later does not come first, whatever the delay is by then.
    broker.delay_writes(id, Duration::from_millis(1));
    let mut purged = slow.deferred().queue_purge("q")?;
    broker.expect_queue_depth("/", "q", 0, LIMIT)?;
    assert!(purged.wait_timeout(Duration::from_millis(20)).is_none());
    broker.advance(Duration::from_secs(60));
    assert_eq!(purged.wait()?, 2);
    assert!(confirm.try_wait().is_some() && declared.try_wait().is_some());
    // The delay passes by itself, too, and it can be ended.
    slow.flow(true)?;
    broker.delay_writes(id, HOUR);
    let mut late = slow.deferred().queue_purge("q")?;
    broker.expect("the purge", LIMIT, |broker| {
        let log = broker.frame_log();
        log.iter().filter(|frame| frame.name == "queue.purge-ok").nth(1).cloned()
    })?;
    assert!(late.try_wait().is_none());
    broker.delay_writes(id, Duration::ZERO);
    assert_eq!(late.wait()?, 0);
    slow.flow(true)?;
    Ok(())
}

/// A consumer without limits whose deliveries are delayed: the broker stays small, and everything arrives.
#[test]
fn a_delayed_connection_does_not_grow_the_broker() -> Result<()> {
    const MESSAGES: usize = 400;
    let _watchdog = Watchdog::new("delayed deliveries", LIMIT);
    let broker = Broker::start();
    let (_connection, id, channel) = open(&broker);
    for _ in 0..MESSAGES {
        broker.inject("/", "", "q", &BasicProperties::new(), &[0; 10_000])?;
    }
    broker.delay_writes(id, HOUR);
    thread::scope(|scope| {
        let consuming = scope.spawn(|| {
            let mut consumer = channel.within(LIMIT).basic_consume(Consume::new("q").no_ack(true))?;
            for _ in 0..MESSAGES {
                assert!(consumer.next_timeout(LIMIT)?.is_some());
            }
            Ok(())
        });
        broker.expect_consumers("/", "q", 1, LIMIT)?;
        let left = broker.queue("/", "q").unwrap().ready;
        assert!(left > MESSAGES / 2, "{left} of {MESSAGES} wait in the queue");
        while !consuming.is_finished() {
            broker.advance(HOUR);
            thread::yield_now();
        }
        broker.delay_writes(id, Duration::ZERO);
        consuming.join().unwrap()
    })
}

#[test]
fn a_delayed_client_hears_heartbeats_in_time() -> Result<()> {
    let _watchdog = Watchdog::new("delayed heartbeats", LIMIT);
    let broker = Broker::start();
    let connection = broker.connect_with(Config::new().heartbeat(HOUR))?;
    let channel = connection.channel()?;
    broker.delay_writes(1, 2 * HOUR);
    broker.keep_frames(100);
    let mut declared = channel.deferred().queue_declare("q")?;
    broker.expect("the queue", LIMIT, |broker| broker.queue("/", "q"))?;
    broker.advance(HOUR / 2);
    broker.expect("a heartbeat", LIMIT, |broker| {
        names(broker, Direction::ToClient).contains(&"heartbeat").then_some(())
    })?;
    assert!(declared.try_wait().is_none());
    assert!(connection.is_open());
    broker.delay_writes(1, Duration::ZERO);
    connection.close()
}

#[test]
fn who_is_not_heard_is_given_up_by_the_moved_clock() -> Result<()> {
    let _watchdog = Watchdog::new("heartbeats by the moved clock", LIMIT);
    let broker = Broker::start();
    let config = || Config::new().heartbeat(Duration::from_secs(60));
    let well = broker.connect_with(config())?;
    let (lost, id) = (broker.connect_with(config())?, 2);
    let channel = lost.channel()?;
    channel.queue_declare("q")?;
    let mut consumer = channel.basic_consume("q")?;
    broker.inject("/", "", "q", &BasicProperties::new(), b"not acked")?;
    assert!(consumer.next_timeout(LIMIT)?.is_some());
    broker.stall_reads(id, true);
    broker.advance(Duration::from_secs(119));
    assert_eq!(broker.connections().len(), 2);
    broker.advance(Duration::from_secs(1));
    // It is gone at once, and the message is there for others.
    assert_eq!(broker.connections().len(), 1);
    assert_eq!(broker.queue("/", "q").unwrap().ready, 1);
    assert!(matches!(lost.wait_closed(), Error::Io { .. }));
    // Who only does not know how late it is, stays.
    for _ in 0..100 {
        broker.advance(HOUR);
    }
    well.channel()?.queue_declare("q")?;
    assert!(well.is_open());
    Ok(())
}

/// Without heartbeats nobody is given up.
#[test]
fn who_has_no_heartbeats_is_never_given_up() -> Result<()> {
    let broker = Broker::start();
    let connection = broker.connect_with(Config::new().heartbeat(Duration::ZERO))?;
    broker.stall_reads(1, true);
    broker.advance(1000 * HOUR);
    broker.stall_reads(1, false);
    connection.channel()?;
    Ok(())
}
