//! Publishing to real brokers: every size and property arrives as it was, and a broker that stops is no
//! reason to fill the memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use common::{
    brokers::{Broker, on_each_broker},
    limits::{PROMPT, given_time},
    messages::Stamped,
    peer::Peer,
    proxy::{self, Direction, Proxy},
    queues::holds,
};
use leveret::{
    BasicProperties, Channel, Config, Connection, Consume, DeliveryMode, Error, FieldTable, FieldValue,
    Publish, Result,
};

/// How much may wait to be written in the tests with a stalled broker.
const OUTGOING: usize = 1 << 20;

/// What the kernel and the proxy hold of what was written, at most.
const ON_THE_WAY: usize = 8 * proxy::BUFFER;

/// A connection through a proxy with little room in it, and a queue `q`.
fn narrow(broker: &Broker, limits: impl FnOnce(Config) -> Config) -> Result<(Proxy, Connection, Channel)> {
    let proxy = broker.proxy();
    let config = broker.config_through(proxy.address).outgoing_buffer(OUTGOING).send_buffer(proxy::BUFFER);
    let connection = Connection::open(limits(config))?;
    let channel = connection.channel()?;
    channel.queue_declare("q")?;
    Ok((proxy, connection, channel))
}

/// Takes exactly these messages from `q`, in order, through a connection of its own; and nothing is left.
fn arrived(broker: &Broker, numbers: impl Iterator<Item = u64>) -> Result<()> {
    let (_connection, channel) = broker.channel();
    let mut consumer = channel.basic_consume(Consume::new("q").no_ack(true))?;
    for number in numbers {
        let delivery = consumer.next_timeout(PROMPT)?.expect("another message");
        assert_eq!(Stamped::read(delivery.body()), Ok(number));
    }
    drop(consumer);
    holds(&channel, "q", 0);
    Ok(())
}

/// Row 51: bodies around every border between frames arrive byte-identical.
#[test]
fn bodies_of_every_size_arrive_as_they_were() {
    on_each_broker(|broker| {
        // RabbitMQ from 4.1 on wants at least 8192.
        for frame_max in [131_072u32, 8192] {
            let connection = Connection::open(broker.config().frame_max(frame_max))?;
            let channel = connection.channel()?;
            channel.queue_declare("q")?;
            let room = frame_max as usize - 8;
            let borders = [room, 2 * room, 16 * room, 17 * room, 32 * room, 32 * 1024, 64 * 1024];
            let around = borders.iter().flat_map(|border| [border - 1, *border, border + 1]);
            let mut consumer = channel.basic_consume("q")?;
            for length in [0, 1, 2, 100].into_iter().chain(around) {
                let body: Vec<u8> = (0..length).map(|index| (index * 7 + index / 251) as u8).collect();
                channel.basic_publish("", "q", &body)?;
                let delivery = consumer.next().unwrap()?;
                assert!(delivery.body() == body, "{length} bytes became {}", delivery.body().len());
                delivery.ack()?;
            }
        }
        Ok(())
    });
}

/// Row 51: and one of 64 MiB, by both ways of getting it.
#[test]
fn a_body_of_64_mebibytes_arrives_as_it_was() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let message = Stamped::new(64, 64 << 20);
        channel.basic_publish("", "q", &message)?;
        let got = channel.basic_get("q")?.expect("published before, in order");
        assert_eq!((got.body().len(), Stamped::read(got.body())), (64 << 20, Ok(64)));
        got.nack(leveret::Requeue::Yes)?;
        let delivery = channel.basic_consume("q")?.next().unwrap()?;
        assert!(delivery.redelivered());
        assert_eq!((delivery.body().len(), Stamped::read(delivery.body())), (64 << 20, Ok(64)));
        assert!(delivery.into_body() == message.as_ref());
        Ok(())
    });
}

/// Row 52: all fourteen properties, and headers of every type.
#[test]
fn all_properties_and_headers_arrive_as_they_were() {
    let mut table = FieldTable::new();
    table.insert("inner", FieldValue::Array(vec!["text".into(), FieldValue::Void, FieldValue::I64(-1)]));
    let mut headers = [
        ("void", FieldValue::Void),
        ("bool", FieldValue::Bool(true)),
        ("i8", FieldValue::I8(-8)),
        ("u8", FieldValue::U8(200)),
        ("i16", FieldValue::I16(-1600)),
        ("u16", FieldValue::U16(60_000)),
        ("i32", FieldValue::I32(i32::MIN)),
        ("u32", FieldValue::U32(u32::MAX)),
        ("i64", FieldValue::I64(i64::MIN)),
        ("f32", FieldValue::F32(1.5)),
        ("f64", FieldValue::F64(-0.1)),
        ("decimal", FieldValue::Decimal { scale: 2, value: 314 }),
        ("text", FieldValue::from("grüße")),
        ("not text", FieldValue::LongString(vec![0xFF, 0x00, 0xFE])),
        ("bytes", FieldValue::Bytes(vec![0, 1, 2])),
        ("array", FieldValue::Array(vec![])),
        ("timestamp", FieldValue::Timestamp(1_700_000_000)),
        ("table", FieldValue::Table(table)),
    ];
    let mut all = BasicProperties::new()
        .content_type("text/plain")
        .content_encoding("identity")
        .persistent()
        .priority(9)
        .correlation_id("correlation")
        .reply_to("reply")
        .expiration("60000")
        .message_id("message")
        .timestamp(1_700_000_000u64)
        .type_("type")
        .user_id("guest")
        .app_id("app")
        .cluster_id("cluster");
    // RabbitMQ 4 sorts them.
    headers.sort_by_key(|(name, _)| *name);
    for (name, value) in headers {
        all = all.header(name, value);
    }
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let none = BasicProperties::new();
        for properties in [&all, &none, &none.clone().delivery_mode(DeliveryMode::Transient)] {
            channel.basic_publish("", "q", Publish::new("body").properties(properties))?;
            let got = channel.basic_get("q")?.unwrap();
            // Nothing is missing, and nothing was added.
            assert_eq!(got.properties()?, *properties);
            assert_eq!(got.headers()?, properties.headers.clone().unwrap_or_default());
            assert_eq!((got.text()?, &*got.exchange(), &*got.routing_key()), ("body", "", "q"));
        }
        channel.basic_publish("", "q", "without any")?;
        assert_eq!(channel.basic_get("q")?.unwrap().properties()?, none);

        let immediate = channel.basic_publish("", "q", Publish::new("now").immediate(true)).unwrap_err();
        assert!(matches!(immediate, Error::Invalid(_)), "{immediate:?}");
        channel.flow(true).map(drop)
    });
}

/// Row 52: `immediate` is sent when it was allowed, and refused otherwise, before anything is sent.
#[test]
fn immediate_is_sent_when_it_was_allowed() {
    for allowed in [false, true] {
        let peer = Peer::run(move |peer| {
            peer.handshake();
            peer.open_channel(1);
            if allowed {
                assert_eq!(peer.expect_publish(1).0.number(3), 0b10, "immediate, and not mandatory");
                assert_eq!(peer.expect_publish(1).0.number(3), 0b11);
            }
            assert_eq!(peer.expect_publish(1).0.number(3), 0);
            peer.close();
        });
        let connection = Connection::open(peer.config().allow_immediate(allowed)).unwrap();
        let channel = connection.channel().unwrap();
        for mandatory in [false, true] {
            let message = Publish::new("now").immediate(true).mandatory(mandatory);
            match channel.basic_publish("", "q", message) {
                Ok(()) => assert!(allowed),
                Err(Error::Invalid(text)) => assert!(!allowed && text.contains("allow_immediate"), "{text}"),
                Err(other) => panic!("{other:?}"),
            }
        }
        channel.basic_publish("", "q", "whenever").unwrap();
        connection.close().unwrap();
    }
}

/// Row 53: `try_publish` takes what there is room for, never waits, and goes on when there is room again.
#[test]
fn try_publish_stops_when_the_broker_stops() {
    on_each_broker(|broker| {
        let (proxy, _connection, channel) = narrow(broker, |config| config)?;
        proxy.stall(Direction::ToBroker);
        let started = Instant::now();
        let (mut accepted, mut bytes, mut refused) = (0, 0, 0);
        while refused < 100 {
            let message = Stamped::new(accepted, 500 + accepted as usize % 5000);
            match channel.try_publish("", "q", &message) {
                Ok(()) => {
                    accepted += 1;
                    bytes += message.as_ref().len();
                    assert!(bytes < OUTGOING + ON_THE_WAY, "{bytes} bytes were accepted");
                }
                Err(Error::WouldBlock) => refused += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        // The frames around the bodies take room too.
        assert!(bytes > OUTGOING * 3 / 4, "{bytes} bytes were accepted");
        assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());

        proxy.resume(Direction::ToBroker);
        channel.flow(true)?;
        channel.try_publish("", "q", &Stamped::new(accepted, 100))?;
        channel.flow(true)?;
        arrived(broker, 0..=accepted)
    });
}

/// Row 53: a publisher waits for room until its deadline; nothing of what was refused is sent, the connection
/// stays, and everything goes on when the broker does.
#[test]
fn a_publisher_waits_until_its_deadline_and_can_go_on() {
    given_time(|times| {
        let limit = times * Duration::from_millis(300);
        on_each_broker(|broker| {
            let (proxy, connection, channel) = narrow(broker, |config| config.publish_timeout(limit))?;
            let mut number = 0;
            for round in 0..2 {
                proxy.stall(Direction::ToBroker);
                let before = number;
                let (refused, waited) = loop {
                    let message = Stamped::new(number, 1000);
                    let started = Instant::now();
                    match channel.basic_publish("", "q", &message) {
                        Ok(()) => number += 1,
                        Err(error) => break (error, started.elapsed()),
                    }
                    let bytes = (number - before) as usize * 1000;
                    assert!(bytes < OUTGOING + ON_THE_WAY, "{bytes} bytes were accepted");
                };
                let Error::Timeout(timeout) = refused else { panic!("{refused:?}") };
                assert_eq!((timeout.waiting_for, timeout.limit), ("publishing", limit), "round {round}");
                assert!(waited >= limit, "{waited:?}");
                assert!(refused.can_retry() && !refused.is_hard());

                // A large one, of which nothing was sent.
                let large = Stamped::new(u64::MAX, 500_000);
                let refused = channel.basic_publish("", "q", &large).unwrap_err();
                assert!(matches!(refused, Error::Timeout(timeout) if timeout.waiting_for == "publishing"));

                proxy.resume(Direction::ToBroker);
                channel.flow(true)?;
                for length in [10, 300_000, 10] {
                    channel.basic_publish("", "q", &Stamped::new(number, length))?;
                    number += 1;
                }
            }
            assert!(connection.is_open());
            channel.flow(true)?;
            arrived(broker, 0..number)
        });
    });
}

/// Row 53: of a large message half may be sent when the time is over; then the connection is lost, and says
/// why.
#[test]
fn half_a_message_that_is_stuck_costs_the_connection() {
    let limit = Duration::from_millis(300);
    on_each_broker(|broker| {
        let (proxy, connection, channel) = narrow(broker, |config| config.publish_timeout(limit))?;
        proxy.stall(Direction::ToBroker);
        let errors = [
            channel.basic_publish("", "q", &vec![0; 8 << 20]).unwrap_err(),
            channel.flow(true).unwrap_err(),
            connection.channel().unwrap_err(),
            connection.wait_closed(),
        ];
        for error in errors {
            let Error::Timeout(timeout) = error else { panic!("{error:?}") };
            assert_eq!((timeout.waiting_for, timeout.limit), ("sending the rest of a message", limit));
            assert!(error.is_hard());
        }
        Ok(())
    });
}

/// Row 50: what was accepted is sent before a channel or a connection is closed, or dropped, in its order.
#[test]
fn closing_and_dropping_send_what_was_accepted() {
    const MESSAGES: u64 = 300;
    on_each_broker(|broker| {
        for way in 0..4 {
            let (proxy, connection, channel) = narrow(broker, |config| config)?;
            proxy.throttle(Direction::ToBroker, 8 << 20);
            for number in 0..MESSAGES {
                let length = if number % 50 == 49 { 150_000 } else { 20 * number as usize };
                channel.basic_publish("", "q", &Stamped::new(number, length))?;
            }
            match way {
                0 => channel.close()?,
                1 => drop(channel),
                2 => connection.close()?,
                _ => drop(connection),
            }
            arrived(broker, 0..MESSAGES)?;
        }
        Ok(())
    });
}
