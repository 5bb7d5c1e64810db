//! Messages that come back: kept, asked for, reported where a channel's scope ends, and attributed to their own
//! publish.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{fmt, sync::Mutex, time::Duration};

use common::{
    brokers::on_each_broker,
    peer::*,
    watchdog::{LIMIT, Watchdog, test_name},
};
use leveret::{BasicProperties, Channel, Connection, Error, Outcome, Publish, ReplyCode, Result};

/// How often a scope is left in a way that could race.
const REPETITIONS: usize = 300;

const PATIENCE: Duration = Duration::from_secs(30);

fn mandatory<'a>(body: &'a (impl AsRef<[u8]> + ?Sized)) -> Publish<'a> {
    Publish::new(body).mandatory(true)
}

/// The body of the message that came back, if that is what went wrong.
fn returned_body<T: fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(Error::Returned(returned)) => String::from_utf8_lossy(&returned.body).into_owned(),
        other => panic!("{other:?}"),
    }
}

/// Row 64: without confirms what came back is kept, in order and whole, and taken once.
#[test]
fn returned_messages_are_kept_until_somebody_asks() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        channel.flow(true)?;
        assert!(channel.returns().is_empty());
        channel.check_returned()?;

        let properties = BasicProperties::new().message_id("7").header("kind", "test");
        let large = vec![b'x'; 300_000];
        channel.basic_publish("amq.topic", "nowhere", mandatory("first").properties(&properties))?;
        channel.basic_publish("", "q", mandatory("arrives"))?;
        channel.basic_publish("", "nowhere", mandatory(&large))?;
        channel.basic_publish("", "nowhere", "not mandatory")?;
        channel.basic_publish("", "nowhere", mandatory(""))?;
        channel.flow(true)?;
        let returns = channel.returns();
        let [first, second, third] = &returns[..] else { panic!("{returns:?}") };
        assert_eq!((first.code, &*first.text), (ReplyCode::NoRoute, "NO_ROUTE"));
        assert_eq!((&*first.exchange, &*first.routing_key), ("amq.topic", "nowhere"));
        assert_eq!((&*first.body, first.properties()?), (&b"first"[..], properties));
        assert_eq!((&*second.exchange, &second.body), ("", &large));
        assert_eq!((third.body.len(), third.properties()?), (0, BasicProperties::new()));
        assert!(channel.returns().is_empty());

        for body in ["one", "two", "three"] {
            channel.basic_publish("", "nowhere", mandatory(body))?;
        }
        channel.flow(true)?;
        assert_eq!(returned_body(channel.check_returned()), "one");
        assert_eq!(returned_body(channel.check_returned()), "two");
        assert_eq!(channel.returns().len(), 1);
        channel.check_returned()?;
        connection.close()
    });
}

/// A logger of the program's own that asks the library something, of this channel.
struct Curious;

static ASKED: Mutex<Option<Channel>> = Mutex::new(None);

impl log::Log for Curious {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let asked = ASKED.lock().unwrap().clone();
        if let Some(channel) = asked.filter(|_| record.target() == "leveret::channel") {
            channel.is_open();
        }
    }
    fn flush(&self) {}
}

/// Rows 64, 102: a program that never asks keeps the newest, and not more than there is room for. What is dropped is
/// logged, under no lock.
#[test]
fn what_nobody_asks_for_is_bounded() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, FLOW);
        for number in 0..1500 {
            peer.content(1, RETURN, args![312, "NO_ROUTE", "", "key"], format!("{number}").as_bytes());
        }
        peer.send(1, FLOW_OK, args![1]);
        peer.expect(1, FLOW);
        for number in 0..40u8 {
            peer.content(1, RETURN, args![312, "NO_ROUTE", "", "key"], &[number; 1024 * 1024]);
        }
        peer.send(1, FLOW_OK, args![1]);
        peer.expect(1, FLOW);
        peer.content(1, RETURN, args![312, "NO_ROUTE", "", "key"], &[0; 20 * 1024 * 1024]);
        peer.send(1, FLOW_OK, args![1]);
        peer.close_channel(1);
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    log::set_logger(&Curious).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    *ASKED.lock().unwrap() = Some(channel.clone());
    channel.flow(true).unwrap();
    let numbers: Vec<String> =
        channel.returns().into_iter().map(|returned| String::from_utf8(returned.body).unwrap()).collect();
    assert_eq!(numbers, (500..1500).map(|number| number.to_string()).collect::<Vec<_>>());
    channel.flow(true).unwrap();
    let firsts: Vec<u8> = channel.returns().into_iter().map(|returned| returned.body[0]).collect();
    assert_eq!(firsts, (24..40).collect::<Vec<_>>(), "16 MiB of them");
    channel.flow(true).unwrap();
    assert_eq!(channel.returns().len(), 1, "one at least, whatever its size");
    *ASKED.lock().unwrap() = None;
    channel.close().unwrap();
    connection.close().unwrap();
}

/// What a closure fails with in [`leaving_a_scope_reports_the_first_of_three`].
#[derive(Debug)]
enum Mine {
    Own,
    Amqp(Error),
}

impl From<Error> for Mine {
    fn from(error: Error) -> Mine {
        Mine::Amqp(error)
    }
}

fn publish_unroutable(channel: &Channel) -> Result<()> {
    channel.basic_publish("", "nowhere", mandatory("unroutable"))
}

fn publish_to_missing_exchange(channel: &Channel) -> Result<()> {
    channel.basic_publish("missing", "key", "lost")
}

/// Row 31: the closure's own error, then what the channel was closed for, then what came back.
#[test]
fn leaving_a_scope_reports_the_first_of_three() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let all_three = connection.with_channel(|channel| -> Result<(), Mine> {
            publish_unroutable(channel)?;
            publish_to_missing_exchange(channel)?;
            Err(Mine::Own)
        });
        assert!(matches!(all_three, Err(Mine::Own)), "{all_three:?}");

        for before_leaving in [false, true] {
            let last_two = connection.with_channel(|channel| -> Result<(), Mine> {
                publish_unroutable(channel)?;
                publish_to_missing_exchange(channel)?;
                if before_leaving {
                    assert_eq!(channel.flow(true).unwrap_err().reply_code(), Some(ReplyCode::NotFound));
                }
                Ok(())
            });
            let Err(Mine::Amqp(error)) = last_two else { panic!("{last_two:?}") };
            assert_eq!(error.reply_code(), Some(ReplyCode::NotFound), "{error:?}");
        }

        let last = connection.with_channel(publish_unroutable);
        assert_eq!(returned_body(last), "unroutable");

        let claimed = connection.with_channel(|channel| {
            publish_unroutable(channel)?;
            channel.flow(true)?;
            Ok::<_, Error>(channel.returns().len())
        });
        assert_eq!(claimed?, 1);
        let nothing =
            connection.with_channel(|channel| channel.basic_publish("", "nowhere", "may be dropped"));
        nothing?;
        connection.close()
    });
}

/// Rows 31, 64: in confirm mode what came back is reported as well, unless its handle has told it.
#[test]
fn leaving_a_scope_in_confirm_mode_reports_what_came_back() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let unclaimed = connection.with_channel(|channel| {
            channel.confirm_select()?;
            publish_unroutable(channel)
        });
        assert_eq!(returned_body(unclaimed), "unroutable");
        let dropped = connection.with_channel(|channel| {
            channel.confirm_select()?;
            channel.deferred().basic_publish("", "nowhere", mandatory("dropped")).map(drop)
        });
        assert_eq!(returned_body(dropped), "dropped");
        let told = connection.with_channel(|channel| {
            channel.confirm_select()?;
            let handle = channel.deferred().basic_publish("", "nowhere", mandatory("told"))?;
            let waited = channel.publish_confirmed("", "nowhere", mandatory("told at once"));
            assert_eq!(returned_body(waited), "told at once");
            Ok::<_, Error>(handle.wait())
        });
        assert!(matches!(told?, Outcome::Returned(_)));
        connection.close()
    });
}

/// Rows 31, 32: no race: what comes back, and an error that comes back, is always there when the scope is left.
#[test]
fn leaving_a_scope_never_misses_anything() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        for round in 0..REPETITIONS {
            let back = connection.with_channel(publish_unroutable);
            assert_eq!(returned_body(back), "unroutable", "round {round}");
            let refused = connection.with_channel(publish_to_missing_exchange).unwrap_err();
            assert_eq!(refused.reply_code(), Some(ReplyCode::NotFound), "round {round}: {refused:?}");
            let both = connection.with_channel(|channel| {
                publish_unroutable(channel)?;
                publish_to_missing_exchange(channel)
            });
            assert_eq!(both.unwrap_err().reply_code(), Some(ReplyCode::NotFound), "round {round}");
        }
        connection.close()
    });
}

/// Row 62: pipelined publishes, some of which come back: each return has its own publish.
#[test]
fn returns_belong_to_their_own_publish() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.confirm_select()?;
        channel.queue_declare("q")?;
        let properties = BasicProperties::new().header("b", 1).header("a", 2).header("c", 3);
        let publish = |number: usize, body: &str| {
            let key = if number.is_multiple_of(3) { "nowhere" } else { "q" };
            channel.deferred().basic_publish("", key, mandatory(body).properties(&properties))
        };
        let mut handles = Vec::new();
        for number in 0..300 {
            // Those of a group have the same body.
            let body = format!("{}", number / 30);
            handles.push((number, body.clone(), publish(number, &body)?));
        }
        for (number, body, handle) in handles {
            match handle.wait() {
                Outcome::Acked if number % 3 != 0 => {}
                Outcome::Returned(returned) if number % 3 == 0 => {
                    assert_eq!((&*returned.routing_key, &*returned.body), ("nowhere", body.as_bytes()));
                }
                other => panic!("number {number}: {other:?}"),
            }
        }
        assert!(channel.returns().is_empty());
        channel.wait_for_confirms(PATIENCE)?;
        connection.close()
    });
}

/// Row 62: of identical messages the oldest that may have come back has; one that was settled before, or that
/// differs in anything, has not.
#[test]
fn among_identical_messages_the_order_decides() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let come_back = |peer: &mut Peer, key: &str, body: &str| {
        peer.content(1, RETURN, args![312, "NO_ROUTE", "", key], body.as_bytes());
    };
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, CONFIRM_SELECT);
        peer.send(1, CONFIRM_SELECT_OK, &[]);
        for _ in 0..8 {
            peer.expect_publish(1);
        }
        peer.send(1, ACK, args![1, 0]);
        come_back(peer, "key", "same");
        come_back(peer, "key", "same");
        come_back(peer, "other", "same");
        peer.send(1, NACK, args![3, 0]);
        come_back(peer, "key", "different");
        // Nobody published this.
        come_back(peer, "key", "unknown");
        peer.send(1, ACK, args![8, 1]);
        peer.close_channel(1);
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    channel.confirm_select().unwrap();
    let publish =
        |key: &str, message: Publish<'_>| channel.deferred().basic_publish("", key, message).unwrap();
    let handles = [
        publish("key", mandatory("same")),
        publish("key", mandatory("same")),
        publish("key", Publish::new("same")),
        publish("key", mandatory("same")),
        publish("other", mandatory("same")),
        publish("key", mandatory("different")),
        publish("key", Publish::new("different")),
        publish("key", mandatory("same")),
    ];
    let outcomes = handles.map(|handle| match handle.wait() {
        Outcome::Acked => "acked".to_owned(),
        Outcome::Nacked => "nacked".to_owned(),
        Outcome::Returned(returned) => {
            format!("{} {}", returned.routing_key, String::from_utf8_lossy(&returned.body))
        }
        Outcome::Unknown(error) => panic!("{error:?}"),
    });
    let expected =
        ["acked", "key same", "nacked", "key same", "other same", "key different", "acked", "acked"];
    assert_eq!(outcomes, expected);
    let left: Vec<Vec<u8>> = channel.returns().into_iter().map(|returned| returned.body).collect();
    assert_eq!(left, [b"unknown"]);
    channel.close().unwrap();
    connection.close().unwrap();
}
