//! What sees the bytes and the frames of a connection while it works.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use common::{brokers::on_each_broker, messages::Stamped, queues::holds};
use leveret::{
    Config, Connection, Consume, Direction, Error, Event, FieldValue, Frame, FrameKind, Publish,
    QueueDeclare, Secret,
};

const SOON: Duration = Duration::from_secs(60);

/// Lines that a tap has seen.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn tap(&self) -> impl Fn(&Frame<'_>) + Send + Sync + 'static {
        let lines = self.0.clone();
        move |frame| lines.lock().unwrap().push(frame.to_string())
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Bytes that a filter has seen, each direction for itself.
#[derive(Clone, Default)]
struct Bytes(Arc<Mutex<[Vec<u8>; 2]>>);

impl Bytes {
    fn filter(&self) -> impl Fn(Direction, &mut [u8]) + Send + Sync + 'static {
        let seen = self.0.clone();
        move |direction, bytes| {
            seen.lock().unwrap()[usize::from(direction == Direction::Incoming)].extend_from_slice(bytes);
        }
    }

    fn contain(&self, direction: Direction, what: &[u8]) -> bool {
        let seen = self.0.lock().unwrap();
        seen[usize::from(direction == Direction::Incoming)].windows(what.len()).any(|window| window == what)
    }
}

/// The first words of lines, with their direction.
fn outline(lines: &[String]) -> Vec<String> {
    lines
        .iter()
        .map(|line| line.split(' ').filter(|word| !word.is_empty()).take(3).collect::<Vec<_>>().join(" "))
        .collect()
}

/// Row 104: set in the configuration, both see everything from the first byte on; the bytes hold the credentials and
/// the frames do not.
#[test]
fn the_handshake_is_seen() {
    on_each_broker(|broker| {
        let (lines, bytes) = (Lines::default(), Bytes::default());
        let user = broker.user("s3cret-word");
        let config = broker.config().frame_tap(lines.tap()).byte_filter(bytes.filter());
        let refused = Connection::open(config.clone().credentials(&user.name, "s3cret-word"));
        assert!(matches!(refused, Err(Error::Refused(_))), "no right to the virtual host: {refused:?}");
        assert!(bytes.contain(Direction::Outgoing, b"s3cret-word"));
        assert!(!lines.take().concat().contains("s3cret-word"));

        let connection = Connection::open(config)?;
        connection.channel()?.close()?;
        connection.close()?;
        assert!(bytes.contain(Direction::Outgoing, b"AMQP\x00\x00\x09\x01"));
        let lines = lines.take();
        assert_eq!(
            outline(&lines),
            [
                "IN ch=0 connection.start",
                "OUT ch=0 connection.start-ok",
                "IN ch=0 connection.tune",
                "OUT ch=0 connection.tune-ok",
                "OUT ch=0 connection.open",
                "IN ch=0 connection.open-ok",
                "OUT ch=1 channel.open",
                "IN ch=1 channel.open-ok",
                "OUT ch=1 channel.close",
                "IN ch=1 channel.close-ok",
                "OUT ch=0 connection.close",
                "IN ch=0 connection.close-ok",
            ]
        );
        assert!(lines[0].contains(r#"product="RabbitMQ""#), "{}", lines[0]);
        assert!(lines[1].contains(r#"mechanism="PLAIN" response=***"#), "{}", lines[1]);
        Ok(())
    });
}

/// Row 104: a new secret is redacted as well.
#[test]
fn a_new_secret_is_not_shown() {
    on_each_broker(|broker| {
        let (connection, lines) = (broker.connect(), Lines::default());
        connection.set_frame_tap(lines.tap());
        connection.update_secret(Secret::from("s3cret-token"), "the old one expires")?;
        let shown = lines.take();
        assert_eq!(
            shown,
            [
                r#"OUT ch=0 connection.update-secret new_secret=*** reason="the old one expires""#,
                "IN  ch=0 connection.update-secret-ok",
            ]
        );
        connection.close()
    });
}

/// Row 104: a filter changes what goes out and what comes in; it is set, replaced and removed while the connection
/// works.
#[test]
fn a_filter_may_change_bytes_and_comes_and_goes() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let queue = channel.queue_declare("q")?.queue;
        let fetch = || -> Result<String, Error> {
            channel.basic_publish("", &queue, "hare leveret")?;
            holds(&channel, &queue, 1);
            let delivery = channel.basic_get(&queue)?.expect("the message");
            delivery.ack()?;
            Ok(delivery.text()?.to_owned())
        };
        let replacing = |direction: Direction, from: &'static [u8], to: &'static [u8]| {
            move |way: Direction, bytes: &mut [u8]| {
                let found = bytes.windows(from.len()).position(|window| window == from);
                if let Some(at) = found.filter(|_| way == direction) {
                    bytes[at..at + to.len()].copy_from_slice(to);
                }
            }
        };
        assert_eq!(fetch()?, "hare leveret");
        connection.set_byte_filter(replacing(Direction::Outgoing, b"hare", b"lynx"));
        assert_eq!(fetch()?, "lynx leveret");
        connection.set_byte_filter(replacing(Direction::Incoming, b"hare", b"bear"));
        assert_eq!(fetch()?, "bear leveret");
        connection.remove_byte_filter();
        assert_eq!(fetch()?, "hare leveret");
        connection.close()
    });
}

/// Row 104: every frame is shown once, in the order of the wire, also the pieces of a large body; what they are
/// shown to be is what was sent.
#[test]
fn every_frame_is_shown_once() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let queue = channel.queue_declare(QueueDeclare::new("").exclusive(true))?.queue;
        let seen = Arc::new(Mutex::new((0, 0, 0, 0)));
        let noted = seen.clone();
        connection.set_frame_tap(move |frame| {
            let (published, sent, delivered, received) = &mut *noted.lock().unwrap();
            match (frame.direction(), frame.kind(), frame.method()) {
                (Direction::Outgoing, FrameKind::Method, Some("basic.publish")) => *published += 1,
                (Direction::Outgoing, FrameKind::Body, None) => *sent += frame.size() - 8,
                (Direction::Incoming, FrameKind::Method, Some("basic.deliver")) => {
                    *delivered += 1;
                    // Tags come in order.
                    let tag = frame.fields().get("delivery_tag").and_then(FieldValue::as_i64);
                    assert_eq!(tag, Some(*delivered));
                }
                (Direction::Incoming, FrameKind::Body, None) => *received += frame.size() - 8,
                _ => {}
            }
        });
        let mut consumer = channel.basic_consume(Consume::new(&queue))?;
        let sizes = [0, 1, 100, 4000, 40_000, 131_064, 131_065, 1_000_000];
        for size in sizes {
            for number in 0..20 {
                channel.basic_publish("", &queue, &Stamped::new(number, size))?;
            }
        }
        let mut total = 0;
        for _ in 0..20 * sizes.len() {
            let delivery = consumer.next_timeout(SOON)?.expect("a delivery");
            Stamped::read(delivery.body()).expect("whole");
            total += delivery.body().len();
            delivery.ack()?;
        }
        let count = 20 * sizes.len();
        assert_eq!(*seen.lock().unwrap(), (count, total, count as i64, total));
        connection.close()
    });
}

/// Row 104: filters and taps that come and go under load lose, double and garble nothing.
#[test]
fn taps_come_and_go_under_load() {
    const EACH: u64 = 3000;
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let queue = channel.queue_declare(QueueDeclare::new("").exclusive(true))?.queue;
        let done = AtomicBool::new(false);
        let calls = Arc::new(AtomicUsize::new(0));
        thread::scope(|scope| {
            for publisher in 0..3u64 {
                let (channel, queue) = (&channel, &queue);
                scope.spawn(move || {
                    for number in 0..EACH {
                        let size = if number % 100 == 0 { 100_000 } else { 50 };
                        let message = Stamped::new(publisher * EACH + number, size);
                        channel.basic_publish("", queue, &message).unwrap();
                    }
                });
            }
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for set in [true, false] {
                        let count = calls.clone();
                        if set {
                            connection.set_byte_filter(move |_, _| _ = count.fetch_add(1, Ordering::Relaxed));
                            connection.set_frame_tap(|frame| _ = frame.method());
                        } else {
                            connection.remove_byte_filter();
                            connection.remove_frame_tap();
                        }
                        thread::sleep(Duration::from_micros(300));
                    }
                }
            });
            let mut seen = vec![false; 3 * EACH as usize];
            let mut consumer = channel.basic_consume(Consume::new(&queue).no_ack(true)).unwrap();
            for _ in 0..seen.len() {
                let delivery = consumer.next_timeout(SOON).unwrap().expect("a delivery");
                let number = Stamped::read(delivery.body()).expect("whole") as usize;
                assert!(!std::mem::replace(&mut seen[number], true), "number {number} came twice");
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(calls.load(Ordering::Relaxed) > 0);
        connection.close()
    });
}

/// Row 104: a filter or a tap that panics is removed and reported; the connection goes on, and what the panicking
/// call had changed is undone.
#[test]
fn a_panic_removes_the_tap_and_not_the_connection() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let queue = channel.queue_declare("q")?.queue;
        let mut events = connection.events();
        let mut failed = || loop {
            match events.next_timeout(SOON).expect("an event") {
                Event::TapFailed { message } => break message.to_string(),
                _ => continue,
            }
        };
        for direction in [Direction::Outgoing, Direction::Incoming] {
            connection.set_byte_filter(move |way, bytes| {
                if way == direction {
                    bytes.fill(0);
                    panic!("no good: {way}");
                }
            });
            channel.basic_publish("", &queue, "whole")?;
            holds(&channel, &queue, 1);
            assert_eq!(failed(), format!("the byte filter panicked and was removed: no good: {direction}"));
            let delivery = channel.basic_get(&queue)?.expect("the message");
            assert_eq!(delivery.body(), b"whole");
            delivery.ack()?;
        }
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        connection.set_frame_tap(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            panic!("no good either");
        });
        channel.flow(true)?;
        assert_eq!(failed(), "the frame tap panicked and was removed: no good either");
        channel.flow(true)?;
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        // Another one can be set.
        let lines = Lines::default();
        connection.set_frame_tap(lines.tap());
        channel.flow(true)?;
        assert_eq!(lines.take(), ["OUT ch=1 channel.flow active", "IN  ch=1 channel.flow-ok active"]);
        connection.close()
    });
}

/// Rows 76, 104: a call that waits is an error in a tap and a filter, whichever thread runs it, and one that does not is
/// done; the connection goes on.
#[test]
fn a_call_in_a_tap_does_not_wait() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let (results, outcomes) = std::sync::mpsc::channel();
        let calls = {
            let (channel, connection) = (channel.clone(), connection.clone());
            Arc::new(move |direction: Direction| {
                let would_wait = [
                    channel.queue_declare("never").map(drop),
                    channel.flow(true).map(drop),
                    channel.basic_get("q").map(drop),
                    connection.channel().map(drop),
                    connection.close(),
                ];
                let published = channel.basic_publish("", "q", "from a tap");
                results.send((direction, would_wait, published)).unwrap();
            })
        };
        // Once for each direction, or what is published in it would never end.
        let once = |calls: Arc<dyn Fn(Direction) + Send + Sync>| {
            let done = [AtomicBool::new(false), AtomicBool::new(false)];
            move |direction: Direction| {
                let mine = &done[usize::from(direction == Direction::Incoming)];
                if !mine.swap(true, Ordering::SeqCst) {
                    calls(direction);
                }
            }
        };
        let (in_filter, in_tap) = (once(calls.clone()), once(calls));
        connection.set_byte_filter(move |direction, _| in_filter(direction));
        connection.set_frame_tap(move |frame| in_tap(frame.direction()));
        channel.queue_declare("q")?;
        for _ in 0..4 {
            let (direction, would_wait, published) = outcomes.recv_timeout(SOON).expect("called");
            for error in would_wait.into_iter().map(Result::unwrap_err) {
                assert!(matches!(error, Error::WouldDeadlock), "{direction}: {error}");
            }
            published?;
        }
        holds(&channel, "q", 4);
        connection.close()
    });
}

/// Row 104: a tap that owns its connection does not keep it alive beyond its close.
#[test]
fn a_closed_connection_drops_its_taps() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let (token, owned) = (Arc::new(()), connection.clone());
        let (for_filter, for_tap) = (token.clone(), token.clone());
        connection.set_byte_filter(move |_, _| _ = (&for_filter, &owned));
        connection.set_frame_tap(move |_| _ = &for_tap);
        assert_eq!(Arc::strong_count(&token), 3);
        connection.close()?;
        assert_eq!(Arc::strong_count(&token), 1);
        Ok(())
    });
}

/// Row 104: a message that comes back is shown both ways.
#[test]
fn a_returned_message_is_shown() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let lines = Lines::default();
        connection.set_frame_tap(lines.tap());
        channel.basic_publish("", "no such queue", Publish::new("back").mandatory(true))?;
        channel.flow(true)?;
        connection.remove_frame_tap();
        // The message may come back before the flow is sent.
        let (sent, received): (Vec<_>, Vec<_>) =
            lines.take().into_iter().partition(|line| line.starts_with("OUT"));
        assert_eq!(
            sent,
            [
                r#"OUT ch=1 basic.publish exchange="" routing_key="no such queue" mandatory"#,
                "OUT ch=1 header body_size=4",
                "OUT ch=1 body 4 bytes",
                "OUT ch=1 channel.flow active",
            ]
        );
        assert_eq!(
            received,
            [
                r#"IN  ch=1 basic.return reply_code=312 reply_text="NO_ROUTE" exchange="" routing_key="no such queue""#,
                "IN  ch=1 header body_size=4",
                "IN  ch=1 body 4 bytes",
                "IN  ch=1 channel.flow-ok active",
            ]
        );
        connection.close()
    });
}

/// A configuration can be used again, and shown, with its taps.
#[test]
fn a_configuration_with_taps_can_be_printed() {
    let config = Config::new().frame_tap(|_| {}).byte_filter(|_, _| {});
    assert!(format!("{:?}", config.clone()).contains("frame_tap: Some(FrameTap)"));
    assert_eq!(config.to_uri(), Config::new().to_uri());
}
