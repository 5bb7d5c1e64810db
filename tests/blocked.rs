//! A broker that is short of memory: it accepts nothing from publishers for the time being, and says so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    brokers::{Broker, on_each_broker},
    limits::{PROMPT, given_time},
    peer::*,
    proxy::BUFFER,
    watchdog::{LIMIT, Watchdog, test_name},
};
use leveret::{Channel, Config, Connection, Consume, Error, Event, Events, Outcome, Result, Scope};
use socket2::SockRef;

/// For what is to run into its limit.
const SHORT: Duration = Duration::from_millis(100);

const REASON: &str = "low on memory";

fn is_blocked<T: Debug>(result: Result<T>) {
    match result {
        Err(Error::Blocked { reason }) => assert_eq!(&*reason, REASON),
        other => panic!("{other:?}"),
    }
}

fn block(peer: &mut Peer) {
    peer.send(0, BLOCKED, args![REASON]);
}

/// Opens channel 1; channel 2 is opened just after the peer has blocked the connection.
fn open_and_block(peer: &mut Peer, tune: Tune) {
    peer.handshake_with(tune);
    peer.open_channel(1);
    peer.expect(1, CONFIRM_SELECT);
    peer.send(1, CONFIRM_SELECT_OK, &[]);
    peer.expect(2, CHANNEL_OPEN);
    block(peer);
    peer.send(2, CHANNEL_OPEN_OK, args![""]);
}

/// The client's part in it: the connection is blocked when this returns.
fn open(config: Config) -> (Connection, Channel, Channel) {
    let connection = Connection::open(config).unwrap();
    let publishing = connection.channel().unwrap();
    publishing.confirm_select().unwrap();
    assert_eq!(connection.blocked(), None);
    let other = connection.channel().unwrap();
    assert_eq!(connection.blocked().as_deref(), Some(REASON));
    (connection, publishing, other)
}

fn next(events: &mut Events) -> Event {
    events.next_timeout(LIMIT).expect("an event")
}

/// Row 15: publishers wait, and when their time is over they hear of the broker's reason; calls that are answered
/// work, calls that are not fail with the reason as well; acks go on.
#[test]
fn what_takes_too_long_is_explained_by_the_block() {
    given_time(|times| {
        let _watchdog = Watchdog::new(&test_name(), LIMIT);
        let peer = Peer::run(|peer| {
            open_and_block(peer, Tune::default());
            peer.expect(2, QUEUE_DECLARE);
            peer.send(2, QUEUE_DECLARE_OK, args!["q", 0, 0]);
            let tag = peer.start_consumer(2);
            peer.deliver(2, &tag, 1, b"message");
            assert_eq!(peer.expect(2, ACK).number(0), 1);
            for method in [QUEUE_DECLARE, QUEUE_PURGE, FLOW, GET] {
                peer.expect(2, method);
            }
            peer.expect(0, UPDATE_SECRET);
            peer.expect(3, CHANNEL_OPEN);
            peer.until(2, CHANNEL_CLOSE);
            peer.close();
        });
        // Without a limit of its own a call has that of the connection.
        let limit = times * Duration::from_secs(1);
        let config = peer.config().publish_timeout(SHORT).call_timeout(limit).close_timeout(limit);
        let (connection, publishing, other) = open(config);

        let large = vec![0; 100_000];
        assert!(matches!(publishing.try_publish("", "key", "now"), Err(Error::WouldBlock)));
        let started = Instant::now();
        is_blocked(publishing.basic_publish("", "key", "small"));
        is_blocked(publishing.basic_publish("", "key", &large));
        is_blocked(publishing.publish_confirmed("", "key", "confirmed"));
        is_blocked(publishing.deferred().basic_publish("", "key", "deferred"));
        is_blocked(other.basic_publish("", "key", "another channel"));
        assert!(started.elapsed() >= 5 * SHORT, "{:?}", started.elapsed());
        assert_eq!(publishing.unconfirmed(), 0, "nothing was sent");

        assert_eq!(other.queue_declare("q").unwrap().queue, "q");
        let mut consumer = other.basic_consume("q").unwrap();
        consumer.next_timeout(PROMPT).unwrap().unwrap().ack().unwrap();

        let hasty = other.within(SHORT);
        is_blocked(hasty.queue_declare("q"));
        is_blocked(hasty.deferred().queue_purge("q").unwrap().wait());
        is_blocked(hasty.flow(true));
        is_blocked(hasty.basic_get("q"));
        is_blocked(connection.update_secret("secret", "expired"));
        is_blocked(connection.channel());
        is_blocked(other.close());
        connection.close().unwrap();
    });
}

/// Rows 15, 60, 61: confirms that do not come in time.
#[test]
fn late_confirms_are_explained_by_the_block() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, CONFIRM_SELECT);
        peer.send(1, CONFIRM_SELECT_OK, &[]);
        for _ in 0..3 {
            peer.expect_publish(1);
        }
        block(peer);
        peer.send(1, ACK, args![1, 0]);
        peer.close();
    });
    let connection = Connection::open(peer.config().confirm_timeout(SHORT)).unwrap();
    let channel = connection.channel().unwrap();
    channel.confirm_select().unwrap();
    let mut handles =
        ["1", "2", "3"].map(|body| channel.deferred().basic_publish("", "key", body).unwrap()).into_iter();
    let mut first = handles.next().unwrap();
    assert!(matches!(first.wait_timeout(LIMIT), Some(Outcome::Acked)), "it stands behind the block");
    is_blocked(handles.next().unwrap().wait().into_result());
    let Err(Error::Unconfirmed(list)) = channel.wait_for_confirms(SHORT) else { panic!("two are missing") };
    assert_eq!(list.failures.len(), 2);
    list.failures.iter().for_each(|(_, error)| is_blocked::<()>(Err(error.clone())));
    connection.close().unwrap();
}

/// Rows 15, 19: whatever waits for the end of the block goes on when it comes, on every channel.
#[test]
fn the_end_of_the_block_resumes_everything() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        open_and_block(peer, Tune::default());
        // No publish stands before this, however early it was tried.
        peer.expect(2, QUEUE_DECLARE);
        peer.send(2, QUEUE_DECLARE_OK, args!["q", 0, 0]);
        peer.send(0, UNBLOCKED, &[]);
        let mut confirmed = 0;
        let mut bodies = Vec::new();
        for _ in 0..40 {
            let frame = peer.next_frame();
            assert_eq!(frame.method(), Some(PUBLISH), "{frame:?}");
            let header = peer.next_frame();
            let size = u64::from_be_bytes(header.payload[4..12].try_into().unwrap());
            let mut body = Vec::new();
            while (body.len() as u64) < size {
                body.extend(peer.next_frame().payload);
            }
            bodies.push(body);
            if frame.channel == 1 {
                confirmed += 1;
                peer.send(1, ACK, args![confirmed, 0]);
            }
        }
        block(peer);
        peer.send(0, UNBLOCKED, &[]);
        peer.close();
        bodies
    });
    let (connection, publishing, other) = open(peer.config());
    let mut events = connection.events();
    assert!(matches!(next(&mut events), Event::Connected));
    let large = vec![7; 40_000];
    let started = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                started.store(true, Ordering::SeqCst);
                other.basic_publish("", "key", "plain").unwrap();
            });
            scope.spawn(|| publishing.publish_confirmed("", "key", "confirmed").unwrap());
            scope.spawn(|| {
                let handle = publishing.deferred().basic_publish("", "key", "deferred").unwrap();
                assert!(matches!(handle.wait(), Outcome::Acked));
            });
            scope.spawn(|| publishing.basic_publish("", "key", &large).unwrap());
        }
        eventually("the threads do not run", || started.load(Ordering::SeqCst));
        other.queue_declare("q").unwrap();
    });
    publishing.wait_for_confirms(LIMIT).unwrap();
    assert!(matches!(next(&mut events), Event::Unblocked));
    let later = events.by_ref().take_while(|event| !matches!(event, Event::Unblocked));
    let blocked = later.filter(|event| matches!(event, Event::Blocked { reason } if &**reason == REASON));
    assert_eq!(blocked.count(), 1);
    assert_eq!(connection.blocked(), None);
    connection.close().unwrap();
    let mut bodies = peer.finish();
    bodies.sort();
    bodies.dedup();
    let expected: [&[u8]; 4] = [&large, b"confirmed", b"deferred", b"plain"];
    assert_eq!(bodies, expected);
}

/// Rows 13, 15: closing is bounded although the broker reads nothing; everything else is woken at once.
#[test]
fn closing_stays_bounded() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    for dropped in [false, true] {
        let peer = Peer::run(|peer| {
            open_and_block(peer, Tune::default());
            peer.silence();
        });
        let config = peer.config().close_timeout(SHORT).drop_timeout(SHORT);
        let (connection, publishing, other) = open(config);
        let (told, ended) = mpsc::channel();
        let waiting = {
            let (publishing, other) = (publishing.clone(), other.clone());
            [
                thread::spawn({
                    let told = told.clone();
                    move || {
                        told.send(()).unwrap();
                        publishing.basic_publish("", "key", "message")
                    }
                }),
                thread::spawn(move || {
                    told.send(()).unwrap();
                    other.queue_declare("q").map(drop)
                }),
            ]
        };
        (0..2).for_each(|_| ended.recv().unwrap());
        let started = Instant::now();
        if dropped {
            drop(connection);
        } else {
            is_blocked(connection.close());
        }
        assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
        for waiter in waiting {
            let result = waiter.join().unwrap();
            assert!(matches!(result, Err(Error::Closed(Scope::Connection))), "{result:?}");
        }
        assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
        drop((publishing, other));
        peer.finish();
    }
}

/// Rows 15, 21: a broker that has blocked the connection may leave what is sent unread for longer than a dead peer
/// might; as long as it sends heartbeats the connection lives.
#[test]
fn a_block_is_not_taken_for_death() {
    given_time(|times| {
        let _watchdog = Watchdog::new(&test_name(), LIMIT);
        let (full, is_full) = mpsc::channel();
        let peer = Peer::run(move |peer| {
            open_and_block(peer, Tune { heartbeat: times as u16, ..Tune::default() });
            is_full.recv().unwrap();
            // Four intervals and more; two are the limit for a peer that is not blocked.
            for _ in 0..18 {
                peer.heartbeat();
                thread::sleep(times * Duration::from_millis(250));
            }
            peer.send(0, UNBLOCKED, &[]);
            let (mut declares, mut last) = (0, Vec::new());
            while last.is_empty() {
                let frame = peer.next_frame();
                match frame.method() {
                    Some(QUEUE_DECLARE) => declares += 1,
                    Some(PUBLISH) => last = peer.next_frame().payload,
                    other => panic!("{other:?}"),
                }
            }
            peer.close();
            declares
        });
        let config = peer.config().heartbeat(times * Duration::from_secs(1)).outgoing_buffer(64 * 1024);
        let (connection, publishing, other) = open(config);
        let mut declared = 0;
        let hasty = other.within(SHORT);
        let name = "q".repeat(255);
        let stuck = loop {
            match hasty.no_wait().queue_declare(&*name) {
                Ok(()) => declared += 1,
                Err(error) => break error,
            }
        };
        is_blocked::<()>(Err(stuck));
        full.send(()).unwrap();
        publishing.basic_publish("", "key", "when it is over").unwrap();
        assert!(connection.is_open());
        connection.close().unwrap();
        assert_eq!(peer.finish(), declared);
    });
}

/// Rows 15, 74: the end of the block stands behind deliveries that nobody takes; who waits for it gets it.
#[test]
fn a_publisher_that_waits_keeps_the_reader_reading() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    for size in [10, 50_000] {
        let peer = Peer::run(move |peer| {
            open_and_block(peer, Tune::default());
            peer.expect(2, CONSUME);
            peer.send(2, CONSUME_OK, args!["tag"]);
            peer.deliver(2, "tag", 1, &[b'x'; 200_000]);
            peer.expect(2, FLOW);
            peer.send(2, FLOW_OK, args![1]);
            // The client has read that answer, and pauses.
            peer.expect(2, QUEUE_DECLARE);
            peer.send(0, UNBLOCKED, &[]);
            peer.expect_publish(1);
            peer.close();
        });
        let config = peer.config().incoming_buffer(100_000);
        let (connection, publishing, other) = open(config);
        let consumer = other.basic_consume(Consume::new("q").consumer_tag("tag").no_ack(true)).unwrap();
        other.flow(true).unwrap();
        other.no_wait().queue_declare("q").unwrap();
        publishing.basic_publish("", "key", &vec![0; size]).unwrap();
        connection.close().unwrap();
        drop(consumer);
    }
}

/// Rows 53, 74, 81: a broker that reads only when it is read from; who waits for room to ack has it read.
#[test]
fn an_ack_that_waits_for_room_keeps_the_reader_reading() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        // More than all buffers in between hold.
        SockRef::from(peer.socket()).set_send_buffer_size(BUFFER).unwrap();
        for number in 1..=48 {
            peer.deliver(1, "tag", number, &[b'x'; 1024 * 1024]);
        }
        assert_eq!(peer.until(1, ACK).number(0), 1);
        peer.close();
    });
    let config =
        peer.config().prefetch(0).incoming_buffer(100_000).outgoing_buffer(4096).receive_buffer(BUFFER);
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    let mut consumer = channel.basic_consume(Consume::new("q").consumer_tag("tag")).unwrap();
    let first = consumer.next().unwrap().unwrap();
    let mut refused = 0;
    while refused < 50 {
        match channel.try_publish("", "q", &[7; 20_000]) {
            Ok(()) => refused = 0,
            Err(Error::WouldBlock) => {
                refused += 1;
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    first.ack().unwrap();
    drop(consumer);
    connection.close().unwrap();
}

/// A memory alarm on the whole node, for as long as this value lives.
struct Alarm<'b>(&'b Broker);

impl Alarm<'_> {
    fn raise(broker: &Broker) -> Alarm<'_> {
        let alarm = Alarm(broker);
        broker.set_alarm(true);
        alarm
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.set_alarm(false);
    }
}

/// Rows 13, 15, 19, 61: an alarm is raised and cleared while publishers, consumers, acks, calls and a close are in
/// flight. Nothing is lost and nothing hangs. The only test here that uses a broker: the alarm is for all of it.
#[test]
fn a_memory_alarm_on_a_real_broker() {
    const PUBLISHERS: usize = 3;
    on_each_broker(|broker| {
        let (consuming, consumer_channel) = broker.channel();
        consumer_channel.queue_declare("q")?;
        consumer_channel.queue_declare("other")?;
        let mut consumer = consumer_channel.basic_consume("q")?;
        let publishing = Connection::open(broker.config().publish_timeout(LIMIT).confirm_timeout(LIMIT))?;
        let blocks = blocks(&publishing);
        let hasty = broker.config().publish_timeout(SHORT).close_timeout(SHORT * 5);
        let closing = Connection::open(hasty)?;
        let closing_channel = closing.channel()?;
        closing_channel.basic_publish("", "other", "message")?;
        closing_channel.flow(true)?;

        let stop = AtomicBool::new(false);
        let (mut consumed, calls) = (0, AtomicUsize::new(0));
        let published = thread::scope(|scope| {
            // Deliveries, acks and calls go on all the time, on a connection that does not publish.
            let consuming_thread = scope.spawn(|| -> Result<()> {
                while !stop.load(Ordering::SeqCst) {
                    if let Some(delivery) = consumer.next_timeout(SHORT)? {
                        delivery.ack()?;
                        consumed += 1;
                    }
                    consumer_channel.queue_declare_passive("other")?;
                    calls.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            });
            let publishers: Vec<_> = (0..PUBLISHERS)
                .map(|_| {
                    let (stop, publishing) = (&stop, &publishing);
                    scope.spawn(move || -> Result<usize> {
                        let channel = publishing.channel()?;
                        channel.confirm_select()?;
                        let mut count = 0;
                        while !stop.load(Ordering::SeqCst) {
                            channel.publish_confirmed("", "q", "message")?;
                            count += 1;
                        }
                        channel.wait_for_confirms(LIMIT)?;
                        channel.close()?;
                        Ok(count)
                    })
                })
                .collect();
            let stopped = StopOnDrop(&stop);
            let alarm = Alarm::raise(broker);
            assert_eq!(blocks.recv_timeout(LIMIT / 2).unwrap().as_deref(), Some(REASON));
            assert_eq!(publishing.blocked().as_deref(), Some(REASON));

            // The broker blocks a connection when it publishes: this one may get one message through.
            let refused = loop {
                if let Err(error) = closing_channel.basic_publish("", "other", "blocked") {
                    break error;
                }
            };
            is_blocked::<()>(Err(refused));
            is_blocked(closing_channel.within(SHORT).queue_declare_passive("q"));
            let started = Instant::now();
            is_blocked(closing.close());
            assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());

            let before = calls.load(Ordering::SeqCst);
            eventually("calls stand still", || calls.load(Ordering::SeqCst) > before + 10);
            assert_eq!(consuming.blocked(), None);

            drop(alarm);
            assert_eq!(blocks.recv_timeout(LIMIT / 2).unwrap(), None);
            assert_eq!(publishing.blocked(), None);
            drop(stopped);
            consuming_thread.join().unwrap()?;
            publishers.into_iter().map(|publisher| publisher.join().unwrap()).sum::<Result<usize>>()
        })?;
        assert!(published > 0);
        publishing.close()?;
        // What was confirmed arrives, once.
        while consumed < published {
            consumer.next_timeout(PROMPT)?.expect("a message that was confirmed").ack()?;
            consumed += 1;
        }
        consumer_channel.flow(true)?;
        assert!(consumer.try_next()?.is_none(), "more than was published");
        consuming.close()
    });
}

/// The reasons of blocks, and `None` for each that ends. A feed that is not read all the time would lose them among
/// the confirms.
fn blocks(connection: &Connection) -> mpsc::Receiver<Option<Arc<str>>> {
    let (told, blocks) = mpsc::channel();
    connection
        .on_event(move |event| match event {
            Event::Blocked { reason } => told.send(Some(reason.clone())).unwrap(),
            Event::Unblocked => told.send(None).unwrap(),
            _ => {}
        })
        .unwrap();
    blocks
}

/// Ends the publishers also when the test fails: the scope waits for them.
struct StopOnDrop<'s>(&'s AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
