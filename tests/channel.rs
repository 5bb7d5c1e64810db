//! Channels against real brokers: how they end, what survives, and many threads on one of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{
    brokers::on_each_broker,
    caller::may_wait_while_unwinding,
    limits::given_time,
    messages::Stamped,
    peer::eventually,
    proxy::{self, Direction},
};
use leveret::{Channel, Connection, Consume, Error, QueueDeclare, ReplyCode, Result, Scope};

fn assert_not_found<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.unwrap_err();
    let Error::Refused(refusal) = &error else { panic!("{error:?}") };
    assert_eq!((refusal.scope, refusal.code), (Scope::Channel, ReplyCode::NotFound));
    assert!(refusal.text.starts_with("NOT_FOUND - no exchange 'missing' in vhost"), "{error}");
    assert_eq!(refusal.method, "basic.publish");
    assert!(error.is_soft() && !error.is_hard() && !error.can_retry());
}

/// Waits for the reader to learn of an error that the broker has sent.
fn wait_until_closed(channel: &Channel) {
    while channel.is_open() {
        thread::yield_now();
    }
}

/// Rows 30, 32, 34: leaving the scope after publishing to a missing exchange is 404, both when the error came
/// before and when it comes during the close; 1000 times each. With one channel id, so none is ever lost.
#[test]
fn leaving_the_scope_returns_the_late_error_a_thousand_times() {
    on_each_broker(|broker| {
        let connection = Connection::open(broker.config().channel_max(1))?;
        for _ in 0..1000 {
            assert_not_found(connection.with_channel(|channel| channel.basic_publish("missing", "", "lost")));
        }
        for _ in 0..1000 {
            assert_not_found(connection.with_channel(|channel| {
                channel.basic_publish("missing", "", "lost")?;
                wait_until_closed(channel);
                Ok::<_, Error>(())
            }));
        }
        // The same for close(), which keeps saying so.
        let channel = connection.channel()?;
        channel.basic_publish("missing", "", "lost")?;
        assert_not_found(channel.close());
        assert_not_found(channel.close());
        Ok(())
    });
}

/// Row 34: a close that crosses the broker's own close succeeds in telling it, and the id is used again.
#[test]
fn closing_while_the_broker_closes_loses_no_channel_id() {
    on_each_broker(|broker| {
        let connection = Connection::open(broker.config().channel_max(4))?;
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..250 {
                        let channel = connection.channel().expect("an id is free");
                        channel.basic_publish("missing", "", "lost").expect("accepted");
                        assert_not_found(channel.close());
                    }
                });
            }
        });
        Ok(())
    });
}

/// Row 31: the closure's own error comes first, then the late error of the channel, then the result.
#[test]
fn with_channel_returns_the_first_error_or_the_result() {
    #[derive(Debug)]
    enum Trouble {
        Mine(&'static str),
        Amqp(Error),
    }

    impl From<Error> for Trouble {
        fn from(error: Error) -> Trouble {
            Trouble::Amqp(error)
        }
    }

    on_each_broker(|broker| {
        let connection = broker.connect();
        let mine = connection.with_channel(|channel| {
            channel.basic_publish("missing", "", "lost")?;
            Err::<(), _>(Trouble::Mine("first"))
        });
        assert!(matches!(mine, Err(Trouble::Mine("first"))), "{mine:?}");

        let amqp = connection.with_channel(|channel| {
            channel.basic_publish("missing", "", "lost")?;
            Ok::<_, Trouble>("never seen")
        });
        let Err(Trouble::Amqp(error)) = amqp else { panic!("{amqp:?}") };
        assert_not_found(Err::<(), _>(error));

        let fine = connection.with_channel(|channel| {
            channel.queue_declare("q")?;
            Ok::<_, Trouble>(7)
        });
        assert!(matches!(fine, Ok(7)), "{fine:?}");
        Ok(())
    });
}

/// Row 30: a panic that passes a channel closes it, and nothing else; also one with a late error in store.
#[test]
fn a_channel_is_closed_while_unwinding() {
    on_each_broker(|broker| {
        let connection = Connection::open(broker.config().channel_max(1))?;
        for exchange in ["", "missing"] {
            let unwound = catch_unwind(AssertUnwindSafe(|| {
                connection.with_channel(|channel| {
                    channel.queue_declare("q")?;
                    let _consumer = channel.basic_consume("q")?;
                    channel.basic_publish(exchange, "q", "body")?;
                    if channel.is_open() || exchange == "missing" {
                        panic!("on purpose");
                    }
                    Ok::<_, Error>(())
                })
            }));
            assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"on purpose"));
            // The only id is free again, and the consumer is gone.
            if !may_wait_while_unwinding() {
                eventually("the channel is not closed", || connection.channel().is_ok());
            }
            let channel = connection.channel()?;
            assert_eq!(channel.queue_declare("q")?.consumer_count, 0);
        }
        Ok(())
    });
}

/// Row 33: the channel is dead and says why, every time, to all its users; everything else lives on.
#[test]
fn an_error_ends_one_channel_and_is_kept() {
    on_each_broker(|broker| {
        let (connection, broken) = broker.channel();
        let other = connection.channel()?;
        other.queue_declare("q")?;
        let mut others = other.basic_consume("q")?;
        let mut consumer = broken.basic_consume("q")?;
        let handle = broken.clone();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                assert_not_found(consumer.next().expect("the cause"));
                assert!(consumer.next().is_none() && consumer.has_ended(), "once, then the end");
            });
            broken.basic_publish("missing", "", "lost").expect("accepted");
            waiting.join().expect("no panic");
        });
        for _ in 0..100 {
            assert_not_found(broken.queue_declare("q"));
            assert_not_found(handle.basic_publish("", "q", "x"));
            assert_not_found(handle.try_publish("", "q", "x"));
            assert_not_found(broken.basic_consume("q"));
            assert_not_found(broken.basic_get("q"));
            assert_not_found(broken.basic_ack(1));
            assert_not_found(broken.no_wait().queue_declare("q"));
            assert_not_found(broken.flow(true));
        }
        assert!(!broken.is_open() && other.is_open() && connection.is_open());
        other.basic_publish("", "q", "still here")?;
        assert_eq!(others.next().unwrap()?.text()?, "still here");
        connection.channel()?.close()
    });
}

/// Row 33: opened again it works, on whatever id is free; what belonged to the old one is gone.
#[test]
fn a_channel_can_be_opened_again() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        channel.basic_publish("", "q", "again")?;
        let mut consumer = channel.basic_consume("q")?;
        let old = consumer.next().unwrap()?;
        assert!(!old.redelivered());

        channel.reopen()?;
        channel.basic_publish("missing", "", "lost")?;
        wait_until_closed(&channel);
        channel.reopen()?;
        assert!(channel.is_open() && channel.clone().is_open());
        assert_not_found(consumer.next().unwrap());
        drop(consumer);
        // Nobody consumes it any more, and it came back.
        assert_eq!(channel.queue_declare("q")?.consumer_count, 0);
        let new = channel.basic_consume("q")?.next().unwrap()?;
        assert!(new.redelivered());
        assert_eq!(new.delivery_tag(), old.delivery_tag());
        assert!(matches!(old.ack(), Err(Error::Settled { .. })));
        new.ack()?;

        channel.close()?;
        assert!(matches!(channel.flow(true), Err(Error::Closed(Scope::Channel))));
        channel.reopen()?;
        assert_eq!(channel.queue_declare("q")?.message_count, 0);
        connection.close()
    });
}

/// Row 34: the lowest free id is used; when all are in use the error says how many there are, and costs none.
#[test]
fn ids_are_used_again_and_exhaustion_is_typed() {
    on_each_broker(|broker| {
        let connection = Connection::open(broker.config().channel_max(3))?;
        let mut channels = (0..3).map(|_| connection.channel()).collect::<Result<Vec<_>>>()?;
        assert_eq!(channels.iter().map(Channel::id).collect::<Vec<_>>(), [1, 2, 3]);
        for _ in 0..100 {
            let error = connection.channel().unwrap_err();
            assert!(matches!(error, Error::ChannelsExhausted { max: 3 }), "{error:?}");
            assert!(error.can_retry() && !error.is_hard());
        }
        drop(channels.remove(1));
        let again = connection.channel()?;
        assert_eq!(again.id(), 2);
        channels[0].basic_publish("missing", "", "lost")?;
        wait_until_closed(&channels[0]);
        assert_eq!(connection.channel()?.id(), 1);
        Ok(())
    });
}

/// Row 34: deliveries on their way to a channel that is closed meanwhile trouble nobody.
#[test]
fn frames_for_a_channel_that_was_closed_are_ignored() {
    on_each_broker(|broker| {
        let connection = Connection::open(broker.config().channel_max(2))?;
        let feed = connection.channel()?;
        feed.queue_declare("q")?;
        for _ in 0..100 {
            let channel = connection.channel()?;
            let mut consumer = channel.basic_consume(Consume::new("q").no_ack(true))?;
            (0..50).try_for_each(|_| feed.basic_publish("", "q", "many"))?;
            feed.flow(true)?;
            consumer.next().unwrap()?;
            channel.close()?;
        }
        feed.flow(true).map(|active| assert!(active))
    });
}

/// Row 38: `flow(true)` surfaces what something asynchronous caused; `flow(false)` is 540.
#[test]
fn flow_is_a_barrier() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        for _ in 0..100 {
            assert!(channel.flow(true)?);
            channel.basic_publish("missing", "", "lost")?;
            assert_not_found(channel.flow(true));
            channel.reopen()?;
        }
        let error = channel.flow(false).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NotImplemented));
        assert!(error.is_hard() && !connection.is_open());
        Ok(())
    });
}

/// Row 37: a call has a deadline of its own; the answer that comes too late reaches nobody else.
#[test]
fn a_late_answer_is_never_given_to_another_caller() {
    on_each_broker(|broker| {
        let proxy = broker.proxy();
        let connection = Connection::open(broker.config_through(proxy.address))?;
        let channel = connection.channel()?;
        ["a", "b"].into_iter().try_for_each(|queue| channel.queue_declare(queue).map(drop))?;
        channel.basic_publish("", "a", "for the late get")?;
        channel.basic_publish("", "b", "for the next get")?;
        channel.flow(true)?;

        proxy.stall(Direction::ToClient);
        let limit = Duration::from_millis(50);
        let impatient = channel.within(limit);
        let started = Instant::now();
        for waiting_for in ["queue.declare", "basic.get", "channel.flow"] {
            let error = match waiting_for {
                "queue.declare" => impatient.queue_declare_passive("a").unwrap_err(),
                "basic.get" => impatient.basic_get("a").unwrap_err(),
                _ => impatient.flow(true).unwrap_err(),
            };
            let Error::Timeout(timeout) = error else { panic!("{error:?}") };
            assert_eq!((timeout.waiting_for, timeout.limit), (waiting_for, limit));
            assert!(error.can_retry() && !error.is_hard());
        }
        assert!(started.elapsed() >= 3 * limit);
        proxy.resume(Direction::ToClient);

        let declared = channel.queue_declare_passive("b")?;
        assert_eq!((&*declared.queue, declared.message_count), ("b", 1));
        assert_eq!(channel.basic_get("b")?.unwrap().text()?, "for the next get");
        assert!(channel.flow(true)?);
        // What the late answer brought is not lost either: it was never settled.
        channel.close()?;
        channel.reopen()?;
        let late = channel.basic_get("a")?.unwrap();
        assert_eq!((late.text()?, late.redelivered()), ("for the late get", true));
        Ok(())
    });
}

/// Row 35: 32 threads on one channel publish (also bodies of several frames), declare, get and ack. Each reply
/// reaches its caller, no message is garbled, lost or doubled.
#[test]
fn many_threads_share_one_channel() {
    const THREADS: u64 = 32;
    const ROUNDS: u64 = 40;
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("shared")?;
        let (published, fetched) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (channel, published, fetched) = (&channel, &published, &fetched);
                scope.spawn(move || -> Result<()> {
                    let own = format!("own-{thread}");
                    let mut random = fastrand::Rng::with_seed(thread);
                    assert_eq!(channel.queue_declare(&own)?.queue, own);
                    for round in 0..ROUNDS {
                        let length = if round % 10 == 0 { 130_000..400_000 } else { 0..2000 };
                        let message = Stamped::new(thread * ROUNDS + round, random.usize(length));
                        channel.basic_publish("", &own, &message)?;
                        channel.basic_publish("", "shared", &message)?;
                        published.fetch_add(message.sum(), Ordering::Relaxed);
                        assert_eq!(channel.queue_declare_passive(&own)?.queue, own);
                        let got = channel.basic_get(&own)?.expect("published before, in order");
                        assert_eq!(Stamped::read(got.body()), Ok(message.number), "{own}");
                        got.ack()?;
                        if let Some(got) = channel.basic_get("shared")? {
                            let number = Stamped::read(got.body()).expect("whole");
                            fetched.fetch_add(Stamped::sum_of(number, got.body().len()), Ordering::Relaxed);
                            got.ack()?;
                        }
                    }
                    assert_eq!(channel.queue_delete(&own)?, 0);
                    Ok(())
                });
            }
        });
        while let Some(got) = channel.basic_get("shared")? {
            let number = Stamped::read(got.body()).expect("whole");
            fetched.fetch_add(Stamped::sum_of(number, got.body().len()), Ordering::Relaxed);
            got.ack()?;
        }
        assert_eq!(published.into_inner(), fetched.into_inner());
        channel.close()?;
        assert_eq!(connection.channel()?.queue_declare("shared")?.message_count, 0, "all were acked");
        Ok(())
    });
}

/// Row 36: while a large message crawls to the broker on one channel, calls on another are answered, and the
/// message arrives as it was.
#[test]
fn a_large_publish_does_not_starve_another_channel() {
    given_time(|times| {
        on_each_broker(|broker| {
            let proxy = broker.proxy();
            // A large buffer in the kernel would be a queue of its own.
            let config = broker.config_through(proxy.address).send_buffer(proxy::BUFFER);
            let connection = Connection::open(config)?;
            let (large, small) = (connection.channel()?, connection.channel()?);
            large.queue_declare("large")?;
            let message = Stamped::new(1, 12 << 20);
            proxy.throttle(Direction::ToBroker, (6 << 20) / u64::from(times));
            let publishing = AtomicBool::new(true);
            let calls = thread::scope(|scope| {
                scope.spawn(|| {
                    large.basic_publish("", "large", &message).expect("published");
                    publishing.store(false, Ordering::SeqCst);
                });
                let mut calls = 0;
                while publishing.load(Ordering::SeqCst) {
                    small.queue_declare_passive("large").expect("an answer");
                    calls += 1;
                }
                calls
            });
            // It took two seconds or more; behind the whole message there would have been one call.
            assert!(calls >= 5, "{calls} calls");
            large.flow(true)?;
            assert_eq!(Stamped::read(large.basic_get("large")?.unwrap().body()), Ok(1));
            Ok(())
        });
    });
}

/// Row 33: what one user of a channel does wrong, another who waits for an answer on it learns as well.
#[test]
fn a_call_that_waits_on_a_channel_learns_of_its_end() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let exclusive = connection.channel()?;
        let queue = exclusive.queue_declare(QueueDeclare::new("").exclusive(true))?.queue;
        for _ in 0..200 {
            let channel = connection.channel()?;
            let results = thread::scope(|scope| {
                let calls = [(); 4].map(|()| scope.spawn(|| channel.queue_declare_passive(&queue)));
                channel.basic_publish("missing", "", "lost").ok();
                calls.map(|call| call.join().expect("no panic"))
            });
            for result in results {
                match result {
                    Ok(declared) => assert_eq!(declared.queue, queue),
                    error => assert_not_found(error),
                }
            }
        }
        channel.flow(true).map(drop)
    });
}
