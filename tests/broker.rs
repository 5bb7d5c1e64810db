//! The in-process broker, as a test uses it: starting and stopping, users, what may be seen and what may be broken.

#![cfg(feature = "broker")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use common::{
    limits::{PROMPT, given_time},
    peer::eventually,
    watchdog::{LIMIT, Watchdog},
};
use leveret::{
    BasicProperties, Config, Connection, Consume, Error, ExchangeDeclare, ExchangeKind, Outcome, Publish,
    QueueBind, QueueDeclare, ReplyCode, Requeue, Result,
    broker::{Broker, BrokerConfig, ConfirmMode, Direction, Emulate, Permissions, User},
};

fn open(broker: &Broker) -> (Connection, leveret::Channel) {
    let connection = broker.connect().unwrap();
    let channel = connection.channel().unwrap();
    (connection, channel)
}

/// Many start, serve and stop, also with connections open; nothing of them is left.
#[test]
fn brokers_come_and_go_and_leave_nothing() {
    let _watchdog = Watchdog::new("brokers come and go", LIMIT);
    for round in 0..2000 {
        let broker = Broker::start();
        assert_eq!(broker.address(), None);
        if round % 100 == 0 {
            let (connection, channel) = open(&broker);
            channel.queue_declare("q").unwrap();
            drop(broker);
            let error = connection.wait_closed();
            assert_eq!(error.reply_code(), Some(ReplyCode::ConnectionForced), "{error}");
        }
    }
    let brokers: Vec<Broker> = (0..50).map(|_| Broker::listen("127.0.0.1:0").unwrap()).collect();
    for broker in &brokers {
        let connection = Connection::open(broker.uri().unwrap()).unwrap();
        connection.channel().unwrap().queue_declare("q").unwrap();
        connection.close().unwrap();
    }
    drop(brokers);
}

#[test]
fn only_who_may_comes_in() {
    let broker = BrokerConfig::new()
        .vhost("shop")
        .user(User::new("reader", "r").permissions(Permissions::new("shop").read(["public-*"])))
        .start()
        .unwrap();
    let refused = |config: Config| broker.connect_with(config).unwrap_err();
    assert!(matches!(refused(Config::new().credentials("reader", "x")), Error::AuthenticationFailed(_)));
    assert!(matches!(refused(Config::new().credentials("nobody", "x")), Error::AuthenticationFailed(_)));
    let error = refused(Config::new().credentials("reader", "r"));
    assert!(error.to_string().contains("access to vhost '/' refused for user 'reader'"), "{error}");
    let error = refused(Config::new().vhost("nowhere"));
    assert!(error.to_string().contains("vhost nowhere not found"), "{error}");

    let connection = broker.connect_with(Config::new().credentials("reader", "r").vhost("shop")).unwrap();
    for (text, error) in [
        ("configure access to queue 'q'", connection.channel().unwrap().queue_declare("q").unwrap_err()),
        ("read access to queue 'q'", connection.channel().unwrap().basic_get("q").unwrap_err()),
        ("no queue 'public-1'", connection.channel().unwrap().basic_get("public-1").unwrap_err()),
    ] {
        assert!(error.to_string().contains(text), "{error}");
        assert!(error.is_soft());
    }
    let channel = connection.channel().unwrap();
    channel.basic_publish("", "q", "not allowed").unwrap();
    let error = channel.flow(true).unwrap_err();
    assert!(error.to_string().contains("write access to exchange 'amq.default'"), "{error}");
}

#[test]
fn the_emulated_release_shows() {
    for (emulate, version) in [(Emulate::RabbitMq3, "3.10.8"), (Emulate::RabbitMq4, "4.0.5")] {
        let broker = BrokerConfig::new().emulate(emulate).start().unwrap();
        let connection = broker.connect().unwrap();
        let told = connection.server_properties().get("version").and_then(|value| value.as_str());
        assert_eq!(told, Some(version));
    }
}

#[test]
fn what_is_there_can_be_looked_at() -> Result<()> {
    let broker = Broker::start();
    let (_connection, channel) = open(&broker);
    channel.queue_declare(QueueDeclare::new("q").durable(true))?;
    channel.queue_bind(("q", "amq.topic", "a.*"))?;
    let properties = BasicProperties::new().content_type("text/plain");
    assert!(broker.inject("/", "amq.topic", "a.b", &properties, b"injected")?);
    assert!(!broker.inject("/", "amq.topic", "nowhere", &properties, b"lost")?);
    assert!(broker.inject("/", "no-such-exchange", "", &properties, b"").is_err());
    broker.expect_queue_depth("/", "q", 1, LIMIT)?;
    let peeked = broker.peek("/", "q", 10);
    assert_eq!((peeked.len(), &*peeked[0].body, &*peeked[0].routing_key), (1, &b"injected"[..], "a.b"));
    assert_eq!(peeked[0].properties, properties);

    let mut consumer = channel.basic_consume(Consume::new("q").consumer_tag("tag"))?;
    let delivery = consumer.next_timeout(LIMIT)?.expect("the message");
    let queue = &broker.queues("/")[0];
    assert_eq!((queue.ready, queue.unacked, queue.consumers, queue.durable), (0, 1, 1, true));
    let binding = &broker.bindings("/")[0];
    assert_eq!((&*binding.source, &*binding.destination, binding.to_queue), ("amq.topic", "q", true));
    assert!(broker.exchanges("/").iter().any(|exchange| exchange.kind == "headers"));
    assert!(broker.memory() > 0);
    delivery.ack()?;
    broker.expect_queue_depth("/", "q", 0, LIMIT)?;
    let error = broker.expect_queue_depth("/", "q", 7, Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("0 ready and 0 unacked"), "{error}");

    let known = broker.consumers("/");
    assert_eq!((known.len(), &*known[0].tag), (1, "tag"));
    assert!(broker.cancel_consumer(&known[0]));
    let end = consumer.next().expect("the cause").unwrap_err();
    assert!(matches!(end, Error::CancelledByServer { .. }), "{end}");
    assert!(!broker.cancel_consumer(&known[0]));
    Ok(())
}

#[test]
fn connections_can_be_closed_and_cut() {
    let broker = Broker::start();
    let (first, second) = (broker.connect().unwrap(), broker.connect().unwrap());
    let ids: Vec<u64> = broker.connections().iter().map(|connection| connection.id).collect();
    assert!(broker.close_connection(ids[0], ReplyCode::ResourceError, "for the test"));
    let error = first.wait_closed();
    assert_eq!(error.reply_code(), Some(ReplyCode::ResourceError));
    assert!(error.to_string().contains("for the test"), "{error}");
    assert!(broker.drop_connection(ids[1]));
    assert!(matches!(second.wait_closed(), Error::Io { .. }));
    broker.expect_connections(0, LIMIT).unwrap();
    assert!(!broker.drop_connection(ids[1]));
}

#[test]
fn a_stalled_connection_is_noticed() {
    given_time(|times| {
        let broker = Broker::start();
        let connection =
            broker.connect_with(Config::new().heartbeat(times * Duration::from_secs(1))).unwrap();
        let channel = connection.channel().unwrap();
        let id = broker.connections()[0].id;
        assert!(broker.stall_reads(id, true));
        let error = channel.within(Duration::from_millis(100)).queue_declare("q").unwrap_err();
        assert!(matches!(error, Error::Timeout(_)), "{error}");
        broker.stall_reads(id, false);
        broker.stall_writes(id, true);
        let error = connection.wait_closed_timeout(LIMIT).expect("the client misses heartbeats");
        assert!(matches!(error, Error::Timeout(_)), "{error}");
    });
}

#[test]
fn confirms_can_be_withheld_and_turned_into_nacks() -> Result<()> {
    let broker = Broker::start();
    let (_connection, channel) = open(&broker);
    channel.queue_declare("q")?;
    channel.confirm_select()?;
    broker.set_confirms(ConfirmMode::Nack);
    assert!(matches!(channel.publish_confirmed("", "q", "one").unwrap_err(), Error::Nacked));
    broker.set_confirms(ConfirmMode::Withhold);
    let mut confirm = channel.deferred().basic_publish("", "q", "two")?;
    broker.expect_queue_depth("/", "q", 2, LIMIT)?;
    assert!(confirm.try_wait().is_none());
    broker.set_confirms(ConfirmMode::Send);
    assert!(matches!(confirm.wait_timeout(LIMIT), Some(Outcome::Acked)));
    Ok(())
}

/// TTL, and a queue that expires, without waiting for them.
#[test]
fn the_clock_can_be_moved() -> Result<()> {
    let broker = Broker::start();
    let (connection, channel) = open(&broker);
    channel.queue_declare(QueueDeclare::new("short").message_ttl(Duration::from_secs(3600)))?;
    channel.queue_declare(QueueDeclare::new("idle").expires(Duration::from_secs(7200)))?;
    channel.basic_publish("", "short", "gone soon")?;
    broker.expect_queue_depth("/", "short", 1, LIMIT)?;
    broker.advance(Duration::from_secs(3599));
    assert_eq!(broker.queues("/").len(), 2);
    broker.expect_queue_depth("/", "short", 1, LIMIT)?;
    broker.advance(Duration::from_secs(1));
    broker.expect_queue_depth("/", "short", 0, LIMIT)?;
    broker.advance(Duration::from_secs(3600));
    assert_eq!(broker.queues("/").len(), 1);
    assert!(connection.is_open(), "the client is not to blame");
    Ok(())
}

#[test]
fn what_is_durable_survives_a_restart_and_a_crash() -> Result<()> {
    let broker = Broker::listen("127.0.0.1:0")?;
    for crash in [false, true] {
        let connection = Connection::open(broker.uri()?)?;
        let channel = connection.channel()?;
        channel.queue_declare(QueueDeclare::new("durable").durable(true))?;
        channel.queue_declare("transient")?;
        let persistent = BasicProperties::new().persistent();
        channel.basic_publish("", "durable", Publish::new("kept").properties(&persistent))?;
        channel.basic_publish("", "durable", "lost")?;
        channel.flow(true)?;
        if crash {
            broker.crash();
        } else {
            broker.stop();
        }
        let error = connection.wait_closed();
        assert_eq!(error.reply_code() == Some(ReplyCode::ConnectionForced), !crash, "{error}");
        assert!(Connection::open(broker.uri()?).is_err(), "nobody listens");
        assert!(broker.connect().is_err());
        broker.restart()?;
        let connection = Connection::open(broker.uri()?)?;
        let channel = connection.channel()?;
        assert_eq!(broker.queues("/").len(), 1);
        assert_eq!(channel.queue_purge("durable")?, 1);
    }
    Ok(())
}

#[test]
fn the_memory_alarm_follows_the_messages() -> Result<()> {
    let broker = BrokerConfig::new().memory_limit(1_000_000usize).start()?;
    let (publishing, channel) = open(&broker);
    let (_consuming, other) = open(&broker);
    channel.queue_declare("q")?;
    let seen = AtomicBool::new(false);
    thread::scope(|scope| {
        let publisher = scope.spawn(|| -> Result<()> {
            while !seen.load(Ordering::SeqCst) {
                channel.basic_publish("", "q", &[0; 10_000])?;
            }
            channel.flow(true).map(drop)
        });
        eventually("the alarm is raised", || publishing.blocked().is_some());
        seen.store(true, Ordering::SeqCst);
        assert!(broker.connections()[0].blocked && !broker.connections()[1].blocked);
        // What is already on its way may raise it again; it goes the same way.
        let _consumer = other.basic_consume(Consume::new("q").no_ack(true))?;
        publisher.join().unwrap()?;
        eventually("the alarm is cleared", || publishing.blocked().is_none());
        assert!(!broker.connections()[0].blocked);
        Ok(())
    })
}

/// Messages that come on one connection and go on another, with hardly any in between: the count of their bytes never
/// falls below nothing, which would end a session or raise the alarm.
#[test]
fn what_comes_and_goes_at_once_is_counted_right() -> Result<()> {
    const MESSAGES: usize = 100_000;
    let _watchdog = Watchdog::new("what comes and goes", LIMIT);
    let broker = Broker::start();
    let ((publishing, out), (_consuming, channel)) = (open(&broker), open(&broker));
    channel.queue_declare("q")?;
    let mut consumer = channel.basic_consume("q")?;
    let publisher = thread::spawn(move || -> Result<()> {
        for number in 0..MESSAGES {
            // Now and then one that is large, so that the consumer catches up.
            out.basic_publish("", "q", &vec![7; if number % 50 == 0 { 50_000 } else { 100 }])?;
        }
        out.close()
    });
    for _ in 0..MESSAGES {
        consumer.next().unwrap()?.ack()?;
    }
    publisher.join().unwrap()?;
    assert_eq!(publishing.blocked(), None);
    channel.flow(true)?;
    assert_eq!(broker.memory(), 0);
    Ok(())
}

/// A consumer without acks and without a limit that is not read from: the broker keeps the messages in the queue.
#[test]
fn a_slow_reader_does_not_grow_the_broker() -> Result<()> {
    const MESSAGES: usize = 400;
    let broker = Broker::start();
    let (connection, channel) = open(&broker);
    channel.queue_declare("q")?;
    let properties = BasicProperties::new();
    for _ in 0..MESSAGES {
        broker.inject("/", "", "q", &properties, &[0; 10_000])?;
    }
    let id = broker.connections()[0].id;
    broker.stall_writes(id, true);
    thread::scope(|scope| -> Result<()> {
        let consuming = scope.spawn(|| channel.basic_consume(Consume::new("q").no_ack(true)));
        broker.expect_consumers("/", "q", 1, LIMIT)?;
        let left = broker.queues("/")[0].ready;
        assert!(left > MESSAGES / 2, "{left} of {MESSAGES} wait in the queue");
        broker.stall_writes(id, false);
        let mut consumer = consuming.join().unwrap()?;
        for _ in 0..MESSAGES {
            assert!(consumer.next_timeout(LIMIT)?.is_some());
        }
        Ok(())
    })?;
    connection.close()
}

/// Before tune a client may not send more than the protocol's smallest frame; it is not told why.
#[test]
fn a_client_with_too_many_properties_is_hung_up_on() -> Result<()> {
    let _watchdog = Watchdog::new("too many properties", LIMIT);
    let broker = Broker::listen("127.0.0.1:0")?;
    let mut stream = TcpStream::connect(broker.address().unwrap()).unwrap();
    stream.write_all(b"AMQP\0\0\x09\x01").unwrap();
    // The payload of `connection.start`, and then nothing but its end.
    let mut header = [0; 7];
    stream.read_exact(&mut header).unwrap();
    let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
    stream.read_exact(&mut vec![0; size as usize + 1]).unwrap();
    // The size alone is too much.
    stream.write_all(&[1, 0, 0, 0, 0, 0x10, 1]).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!(broker.connect().is_ok());
    Ok(())
}

#[test]
fn frames_can_be_read_afterwards() -> Result<()> {
    let broker = Broker::start();
    broker.keep_frames(6);
    let (connection, channel) = open(&broker);
    channel.queue_declare("q")?;
    channel.basic_publish("", "q", "body")?;
    channel.flow(true)?;
    let frames = broker.frame_log();
    let seen: Vec<_> =
        frames.iter().map(|frame| (frame.direction == Direction::FromClient, frame.name)).collect();
    let expected = [
        (false, "queue.declare-ok"),
        (true, "basic.publish"),
        (true, "header"),
        (true, "body"),
        (true, "channel.flow"),
        (false, "channel.flow-ok"),
    ];
    assert_eq!(seen, expected);
    assert_eq!((frames[3].size, frames[3].channel, frames[3].connection), (4, 1, broker.connections()[0].id));
    broker.keep_frames(0);
    assert!(broker.frame_log().is_empty());
    connection.close()
}

/// What docs/broker.md says is not there is refused in words.
#[test]
fn what_is_not_there_is_refused() -> Result<()> {
    for emulate in [Emulate::RabbitMq4, Emulate::RabbitMq3] {
        let broker = BrokerConfig::new().emulate(emulate).start()?;
        for kind in ["x-delayed-message", "x-consistent-hash", "x-local-random"] {
            let (_connection, channel) = open(&broker);
            let declare = leveret::ExchangeDeclare::new("x", leveret::ExchangeKind::Other(kind));
            let error = channel.exchange_declare(declare).unwrap_err();
            assert!(error.to_string().contains(&format!("unknown exchange type '{kind}'")), "{error}");
        }
    }
    Ok(())
}

/// As in RabbitMQ 3.10, a message that was rejected once may go round for ever between queues that keep nothing. The
/// broker serves everybody all the same.
#[test]
fn a_dead_letter_that_goes_round_for_ever_holds_up_nobody() -> Result<()> {
    let _watchdog = Watchdog::new("a dead letter that goes round", LIMIT);
    let broker = BrokerConfig::new().emulate(Emulate::RabbitMq3).start()?;
    let ((_connection, channel), (_other, serving)) = (open(&broker), open(&broker));
    let keeps_nothing =
        |name: &'static str, to| QueueDeclare::new(name).message_ttl(Duration::ZERO).dead_letter_exchange(to);
    channel.exchange_declare(ExchangeDeclare::new("there", ExchangeKind::Topic))?;
    channel.queue_declare(keeps_nothing("back", ""))?;
    channel.queue_bind(QueueBind::new("back", "there", "q"))?;
    channel.queue_declare(keeps_nothing("q", "there"))?;
    let mut consumer = channel.basic_consume("q")?;
    channel.basic_publish("", "q", "round")?;
    consumer.next().unwrap()?.reject(Requeue::No)?;
    let again = consumer.next().unwrap()?;
    assert!(again.headers()?.get("x-death").is_some());
    channel.close()?;
    for _ in 0..500 {
        serving.queue_declare("another")?;
    }
    assert_ne!(broker.memory(), 0, "it still goes round");
    Ok(())
}

/// RabbitMQ may lose it to a consumer of the same connection that does not ack; so it is no sequence that is compared.
#[test]
fn what_a_connection_gives_back_at_its_end_is_not_lost() -> Result<()> {
    let _watchdog = Watchdog::new("a connection ends", LIMIT);
    let broker = Broker::start();
    let (observing, observer) = open(&broker);
    observer.queue_declare("q")?;
    observer.basic_publish("", "q", "kept")?;
    broker.expect_queue_depth("/", "q", 1, PROMPT)?;
    let id = broker.next_connection();
    let (ending, channel) = open(&broker);
    let held = channel.basic_get("q")?;
    assert!(held.is_some());
    let other = ending.channel()?;
    let _consumer = other.basic_consume(Consume::new("q").no_ack(true))?;
    broker.drop_connection(id);
    broker.expect_consumers("/", "q", 0, PROMPT)?;
    let message = broker.expect("the message", PROMPT, |broker| broker.peek("/", "q", 1).pop())?;
    assert_eq!(message.body, b"kept");
    observing.close()
}
