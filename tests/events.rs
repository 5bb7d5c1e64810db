//! Events: the feed, the listeners, and a new secret on an open connection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    panic,
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver},
    },
    thread,
    time::Duration,
};

use common::{
    brokers::on_each_broker,
    peer::*,
    watchdog::{LIMIT, Watchdog, test_name},
};
use leveret::{Channel, Config, Connection, Error, Event, Events, Publish, ReplyCode, Result, Scope};

/// For what is to run into its limit.
const SHORT: Duration = Duration::from_millis(50);

/// How many events a feed keeps.
const FEED_LENGTH: usize = 1000;

fn next(events: &mut Events) -> Event {
    events.next_timeout(LIMIT).expect("an event")
}

/// A listener that passes everything on.
fn listen(connection: &Connection) -> Receiver<Event> {
    let (heard, events) = mpsc::channel();
    connection.on_event(move |event| heard.send(event.clone()).unwrap()).unwrap();
    events
}

/// A channel in confirm mode.
fn open(config: Config) -> (Connection, Channel) {
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    channel.confirm_select().unwrap();
    (connection, channel)
}

fn confirm_mode(peer: &mut Peer) {
    peer.handshake();
    peer.open_channel(1);
    peer.expect(1, CONFIRM_SELECT);
    peer.send(1, CONFIRM_SELECT_OK, &[]);
}

/// What an event is, in short.
fn name(event: &Event) -> String {
    match event {
        Event::Connected => "connected".into(),
        Event::Blocked { reason } => format!("blocked {reason}"),
        Event::Unblocked => "unblocked".into(),
        Event::ChannelClosed { channel, cause } => {
            format!("channel {channel} {}", cause.reply_code().map_or(0, u16::from))
        }
        Event::ConsumerCancelled { channel, consumer_tag } => format!("cancelled {channel} {consumer_tag}"),
        Event::Returned { channel, returned } => {
            format!("returned {channel} {}", String::from_utf8_lossy(&returned.body))
        }
        Event::Confirmed { channel, sequence_number, multiple, acked } => {
            format!("confirmed {channel} {sequence_number} {multiple} {acked}")
        }
        Event::ListenerFailed { message } => format!("listener failed: {message}"),
        Event::Closed { cause } => format!("closed: {cause}"),
        other => panic!("{other:?}"),
    }
}

/// Rows 14, 19: everything that happens on a connection, in its order, to a feed and to a listener alike.
#[test]
fn what_happens_is_told_in_order() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        confirm_mode(peer);
        let tag = peer.start_consumer(1);
        peer.send(0, BLOCKED, args!["low on memory"]);
        peer.send(0, UNBLOCKED, &[]);
        peer.send(1, CANCEL, args![&tag, 1]);
        for _ in 0..4 {
            peer.expect_publish(1);
        }
        peer.content(1, RETURN, args![312, "NO_ROUTE", "", "key"], b"back");
        peer.send(1, ACK, args![3, 1]);
        peer.send(1, NACK, args![4, 0]);
        peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND", 60, 40]);
        peer.expect(1, CHANNEL_CLOSE_OK);
        peer.send(0, CLOSE, args![320, "CONNECTION_FORCED", 0, 0]);
        peer.expect(0, CLOSE_OK);
        peer.expect_end();
    });
    let (connection, channel) = open(peer.config());
    let (events, listener) = (connection.events(), listen(&connection));
    let _consumer = channel.basic_consume(leveret::Consume::new("q").consumer_tag("tag")).unwrap();
    for _ in 0..4 {
        // It may be cut off by the end of the channel.
        let _ = channel.basic_publish("", "key", Publish::new("back").mandatory(true));
    }
    let told: Vec<String> = events.map(|event| name(&event)).collect();
    let expected = [
        "connected",
        "blocked low on memory",
        "unblocked",
        "cancelled 1 tag",
        "returned 1 back",
        "confirmed 1 3 true true",
        "confirmed 1 4 false false",
        "channel 1 404",
        "closed: the broker closed the connection: 320 CONNECTION_FORCED",
    ];
    assert_eq!(told, expected);
    // The listener's thread has ended, and dropped its end.
    assert_eq!(listener.iter().map(|event| name(&event)).collect::<Vec<_>>(), expected);
    let late: Vec<String> = connection.events().map(|event| name(&event)).collect();
    assert_eq!(late, expected[expected.len() - 1..], "all that is left to tell");
}

/// Rows 13, 19: the same from real brokers, and the last word when the program itself closes.
#[test]
fn real_brokers_cause_the_same_events() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let mut events = connection.events();
        assert_eq!(name(&next(&mut events)), "connected");
        channel.queue_declare("q")?;
        let consume = leveret::Consume::new("q").consumer_tag("tag");
        let consumer = channel.basic_consume(consume)?;
        let other = connection.channel()?;
        other.queue_delete("q")?;
        assert_eq!(name(&next(&mut events)), format!("cancelled {} tag", channel.id()));
        drop(consumer);
        let refused = other.queue_declare_passive("missing").unwrap_err();
        let Event::ChannelClosed { channel: closed, cause } = next(&mut events) else { panic!("{refused}") };
        assert_eq!((closed, cause.to_string()), (other.id(), refused.to_string()));
        channel.basic_publish("", "missing", Publish::new("back").mandatory(true))?;
        assert_eq!(name(&next(&mut events)), format!("returned {} back", channel.id()));
        channel.confirm_select()?;
        channel.publish_confirmed("", "q", "message")?;
        assert_eq!(name(&next(&mut events)), format!("confirmed {} 1 false true", channel.id()));
        assert!(events.try_next().is_none());
        assert!(events.next_timeout(SHORT).is_none(), "not before something happens");
        connection.close()?;
        assert!(matches!(next(&mut events), Event::Closed { cause: Error::Closed(Scope::Connection) }));
        assert!(
            events.next().is_none() && events.try_next().is_none() && events.next_timeout(LIMIT).is_none()
        );
        assert_eq!(events.missed(), 0);

        let connection = broker.connect();
        let events = connection.events();
        broker.close_all_connections("maintenance");
        let last = events.last().unwrap();
        let Event::Closed { cause } = &last else { panic!("{last:?}") };
        assert_eq!(cause.reply_code(), Some(ReplyCode::ConnectionForced));
        Ok(())
    });
}

/// Row 19: a listener that panics is not called again, the others are told, and nothing else happens.
#[test]
fn a_panicking_listener_harms_nobody() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        confirm_mode(peer);
        for number in 1..=3 {
            peer.expect_publish(1);
            peer.send(1, ACK, args![number, 0]);
        }
        peer.close();
    });
    let (connection, channel) = open(peer.config());
    let before = listen(&connection);
    let called = Arc::new(Mutex::new(Vec::new()));
    let by_listener = called.clone();
    connection
        .on_event(move |event| {
            by_listener.lock().unwrap().push(name(event));
            if matches!(event, Event::Confirmed { .. }) {
                // Without the message on standard error.
                panic::resume_unwind(Box::new(format!("{} at fault", "nobody")));
            }
        })
        .unwrap();
    let mut events = connection.events();
    channel.publish_confirmed("", "key", "1").unwrap();
    let told: Vec<String> = (0..3).map(|_| name(&next(&mut events))).collect();
    assert_eq!(told, ["connected", "confirmed 1 1 false true", "listener failed: nobody at fault"]);
    for body in ["2", "3"] {
        channel.publish_confirmed("", "key", body).unwrap();
    }
    connection.close().unwrap();
    let rest: Vec<String> = events.map(|event| name(&event)).collect();
    assert_eq!(
        rest,
        [
            "confirmed 1 2 false true",
            "confirmed 1 3 false true",
            "closed: the connection was closed by the application"
        ]
    );
    let heard: Vec<String> = before.iter().map(|event| name(&event)).collect();
    assert_eq!(heard, [&told[..], &rest[..]].concat());
    assert_eq!(*called.lock().unwrap(), told[..2]);
}

/// Row 19: the end is the last event, also when a listener panics over it.
#[test]
fn nothing_is_told_after_the_end() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let mut events = connection.events();
    let (panicking, panicked) = mpsc::channel::<()>();
    connection
        .on_event(move |event| {
            let _ends_with_the_listener = &panicking;
            if matches!(event, Event::Closed { .. }) {
                panic::resume_unwind(Box::new("at the end"));
            }
        })
        .unwrap();
    connection.close().unwrap();
    // Its thread drops the listener after everything else.
    assert!(panicked.recv().is_err());
    let told: Vec<String> = std::iter::from_fn(|| events.try_next()).map(|event| name(&event)).collect();
    assert_eq!(told, ["connected", "closed: the connection was closed by the application"]);
}

/// Row 19: a listener may use the connection it listens to, whatever it waits for.
#[test]
fn a_listener_may_make_blocking_calls() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let (done, is_done) = mpsc::channel();
        let (own_connection, own_channel) = (connection.clone(), channel.clone());
        connection.on_event(move |event| match event {
            Event::ChannelClosed { .. } => {
                let work = || -> Result<String> {
                    own_channel.reopen()?;
                    let queue = own_channel.queue_declare("made-by-the-listener")?.queue;
                    own_channel.confirm_select()?;
                    own_channel.publish_confirmed("", &queue, "message")?;
                    Ok(queue)
                };
                done.send(work()).unwrap();
                own_connection.close().unwrap();
            }
            Event::Closed { .. } => done.send(Ok(name(event))).unwrap(),
            _ => {}
        })?;
        for _ in 0..20 {
            assert!(channel.is_open());
            channel.basic_publish("", "q", "message")?;
        }
        channel.basic_publish("missing", "key", "message")?;
        assert_eq!(is_done.recv_timeout(LIMIT).unwrap()?, "made-by-the-listener");
        let end = is_done.recv_timeout(LIMIT).unwrap()?;
        assert_eq!(end, "closed: the connection was closed by the application");
        assert!(connection.wait_closed().is_closed());
        Ok(())
    });
}

/// Rows 18, 19: a feed that nobody reads and a listener that is stuck hold up nothing: the oldest confirms are
/// dropped and counted, and what is rarer is kept. The listener's thread ends with the connection.
#[test]
fn a_slow_reader_loses_the_oldest_confirms() {
    const CONFIRMS: usize = 3000;
    /// Connected, blocked, unblocked, closed.
    const OTHERS: usize = 4;
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        confirm_mode(peer);
        for number in 1..=CONFIRMS as u64 {
            peer.expect_publish(1);
            if number == 1 {
                peer.send(0, BLOCKED, args!["an alarm"]);
                peer.send(0, UNBLOCKED, &[]);
            }
            peer.send(1, ACK, args![number, 0]);
        }
        peer.close();
    });
    let (connection, channel) = open(peer.config());
    let mut slow = connection.events();
    let (go_on, stuck) = mpsc::channel::<()>();
    let (heard, by_listener) = mpsc::channel();
    connection
        .on_event(move |event| {
            heard.send(name(event)).unwrap();
            let _ = stuck.recv();
        })
        .unwrap();
    assert_eq!(by_listener.recv().unwrap(), "connected");
    for _ in 0..CONFIRMS {
        channel.basic_publish("", "key", "message").unwrap();
    }
    channel.wait_for_confirms(LIMIT).unwrap();
    connection.close().unwrap();

    assert_eq!(slow.missed() as usize, CONFIRMS + OTHERS - FEED_LENGTH);
    let left: Vec<String> = slow.by_ref().map(|event| name(&event)).collect();
    let mut expected: Vec<String> = ["connected", "blocked an alarm", "unblocked"].map(String::from).into();
    let kept = CONFIRMS + OTHERS - FEED_LENGTH + 1..=CONFIRMS;
    expected.extend(kept.map(|number| format!("confirmed 1 {number} false true")));
    expected.push("closed: the connection was closed by the application".into());
    assert_eq!(left, expected);
    drop(go_on);
    // The first event it had already.
    let heard: Vec<String> = by_listener.iter().collect();
    assert_eq!(heard.len(), FEED_LENGTH, "and the listener lost as many");
    assert_eq!(heard[..2], expected[1..3]);
    assert_eq!(heard[3..], expected[3..]);
}

/// Row 16: the secret reaches the broker as it is; answers come back to their callers; a refusal closes the
/// connection, and every caller learns why.
#[test]
fn a_new_secret_is_accepted_or_refused() {
    const SECRET: &str = "correct-horse-battery";
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    for accepted in [true, false] {
        let peer = Peer::run(move |peer| {
            peer.handshake();
            for _ in 0..3 {
                let arguments = peer.expect(0, UPDATE_SECRET);
                assert_eq!((arguments.text(0), arguments.text(1)), (SECRET, "expired"));
            }
            if accepted {
                (0..3).for_each(|_| peer.send(0, UPDATE_SECRET_OK, &[]));
                peer.close();
            } else {
                peer.send(0, CLOSE, args![530, "NOT_ALLOWED - no", 10, 70]);
                peer.expect(0, CLOSE_OK);
                peer.expect_end();
            }
        });
        let connection = Connection::open(peer.config()).unwrap();
        let too_long = connection.update_secret(SECRET, &"x".repeat(256)).unwrap_err();
        assert!(matches!(too_long, Error::Invalid(_)), "{too_long:?}");
        let results: Vec<Result<()>> = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..3).map(|_| scope.spawn(|| connection.update_secret(SECRET, "expired"))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for result in results {
            match result {
                Ok(()) => assert!(accepted),
                Err(Error::Refused(refusal)) => {
                    assert!(!accepted);
                    assert_eq!((refusal.code, refusal.scope), (ReplyCode::NotAllowed, Scope::Connection));
                    assert_eq!(refusal.method, "connection.update-secret");
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        if accepted {
            connection.close().unwrap();
        }
        let after = connection.update_secret(SECRET, "expired").unwrap_err();
        assert!(after.is_hard() && !format!("{after:?} {connection:?}").contains(SECRET), "{after:?}");
    }
}

/// Rows 16, 37: a broker that says nothing about the secret is not waited for longer than for any other call.
#[test]
fn a_new_secret_is_waited_for_no_longer_than_a_call() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.expect(0, UPDATE_SECRET);
        let mut owed = 1;
        while peer.next_frame().method() == Some(UPDATE_SECRET) {
            (0..=owed).for_each(|_| peer.send(0, UPDATE_SECRET_OK, &[]));
            owed = 0;
        }
        peer.send(0, CLOSE_OK, &[]);
        peer.expect_end();
    });
    let connection = Connection::open(peer.config().call_timeout(SHORT)).unwrap();
    let Err(Error::Timeout(timeout)) = connection.update_secret("secret", "") else {
        panic!("no answer came")
    };
    assert_eq!((timeout.waiting_for, timeout.limit), ("connection.update-secret", SHORT));
    // Its answer comes now, and is not taken for that of a later call.
    while connection.update_secret("secret", "").is_err() {}
    connection.close().unwrap();
}

/// Row 16: RabbitMQ takes it on an open connection, which goes on.
#[test]
fn a_real_broker_accepts_a_new_secret() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        connection.update_secret("guest", "the old one expires")?;
        channel.queue_declare("q")?;
        connection.close()
    });
}
