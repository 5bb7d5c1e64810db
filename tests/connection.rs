//! Connections against real brokers: what is negotiated and refused, and every way to the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use common::{
    brokers::{Broker, on_each_broker},
    limits::{PROMPT, given_time},
    proxy::{Cut, Direction},
    watchdog::{LIMIT, Watchdog},
};
use leveret::{
    Channel, Config, Connection, Consumer, Delivery, Error, Mechanism, QueueDeclare, ReplyCode, Result, Scope,
};
use socket2::{Domain, Socket, Type};

/// An address that refuses connections as long as the socket lives: bound, but not listening.
fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

fn assert_closed_by_application<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Closed(Scope::Connection)), "{error:?}");
    assert!(error.is_closed() && error.is_hard() && !error.can_retry());
    assert_eq!(error.to_string(), "the connection was closed by the application");
}

/// Row 1: a URI with nothing but the address and the virtual host.
#[test]
fn opens_with_every_default() {
    on_each_broker(|broker| {
        let connection = Connection::open(format!("amqp://{}/{}", broker.address(), broker.vhost))?;
        assert!(connection.is_open());
        let server = connection.server_properties();
        assert_eq!(server.get("product").and_then(|value| value.as_str()), Some("RabbitMQ"));
        assert_eq!(server.get("version").and_then(|value| value.as_str()), Some(&*broker.version));
        assert!(server.get("capabilities").and_then(|value| value.as_table()).is_some());
        assert_eq!(
            (connection.channel_max(), connection.frame_max(), connection.heartbeat()),
            (2047, 131_072, Duration::from_secs(10))
        );
        connection.close()
    });
}

/// Rows 1, 11: the smaller of both sides; zero is no limit of ours, and for heartbeats off.
#[test]
fn what_is_negotiated_is_used_and_can_be_read() {
    on_each_broker(|broker| {
        let config = broker
            .config()
            .channel_max(7)
            .frame_max(8192)
            .heartbeat(Duration::from_secs(3))
            .connection_name("n");
        let small = Connection::open(config)?;
        assert_eq!(
            (small.channel_max(), small.frame_max(), small.heartbeat()),
            (7, 8192, Duration::from_secs(3))
        );
        let channel = small.channel()?;
        channel.queue_declare("frames")?;
        channel.basic_publish("", "frames", &vec![b'x'; 20_000])?;
        channel.flow(true)?;
        assert_eq!(channel.basic_get("frames")?.unwrap().body(), vec![b'x'; 20_000]);

        let none = broker.config().channel_max(0).frame_max(0).heartbeat(Duration::ZERO);
        let none = Connection::open(none)?;
        assert_eq!((none.channel_max(), none.frame_max(), none.heartbeat()), (2047, 131_072, Duration::ZERO));
        none.channel()?.queue_declare_passive("frames")?;

        let large =
            broker.config().channel_max(u16::MAX).frame_max(u32::MAX).heartbeat(Duration::from_secs(999));
        let large = Connection::open(large)?;
        assert_eq!(
            (large.channel_max(), large.frame_max(), large.heartbeat()),
            (2047, 131_072, Duration::from_secs(60))
        );
        Ok(())
    });
}

/// Row 8: both mechanisms with a password are accepted by a broker.
#[test]
fn both_mechanisms_with_a_password_log_in() {
    on_each_broker(|broker| {
        for mechanism in [Mechanism::Plain, Mechanism::AmqPlain] {
            let connection = Connection::open(broker.config().auth_mechanism(mechanism))?;
            connection.channel()?.close()?;
            connection.close()?;
        }
        Ok(())
    });
}

/// Row 9: with the broker's text, which it says at once, and not after its delay of three seconds, when it just hangs
/// up; no password anywhere.
#[test]
fn a_wrong_password_is_authentication_failed() {
    on_each_broker(|broker| {
        for mechanism in [Mechanism::Plain, Mechanism::AmqPlain] {
            let name = if mechanism == Mechanism::Plain { "PLAIN" } else { "AMQPLAIN" };
            let config = broker.config().credentials("guest", "swordfish").auth_mechanism(mechanism);
            let error = Connection::open(config).unwrap_err();
            let Error::AuthenticationFailed(text) = &error else { panic!("{error:?}") };
            let expected =
                format!("ACCESS_REFUSED - Login was refused using authentication mechanism {name}");
            assert!(text.starts_with(&expected), "{text}");
            assert_eq!(error.reply_code(), Some(ReplyCode::AccessRefused));
            assert!(!error.can_retry());
            assert!(!format!("{error} {error:?}").contains("swordfish"));
        }
        Ok(())
    });
}

/// Row 10: 530 with the server's text, for a virtual host that is missing and for one that is forbidden.
#[test]
fn a_missing_or_forbidden_virtual_host_is_530() {
    on_each_broker(|broker| {
        let user = broker.user("pw");
        let cases = [
            (broker.config().vhost("nowhere"), "NOT_ALLOWED - vhost nowhere not found".to_owned()),
            (
                broker.config().credentials(&*user.name, "pw"),
                format!("NOT_ALLOWED - access to vhost '{}' refused for user '{}'", broker.vhost, user.name),
            ),
        ];
        for (config, text) in cases {
            let error = Connection::open(config).unwrap_err();
            let Error::Refused(refusal) = &error else { panic!("{error:?}") };
            assert_eq!((refusal.scope, refusal.code), (Scope::Connection, ReplyCode::NotAllowed));
            assert_eq!(refusal.text, text);
            assert_eq!(refusal.method, "connection.open");
            assert!(error.is_hard() && !error.can_retry());
        }
        Ok(())
    });
}

/// Rows 5, 6: hosts are tried in order; one that cannot be reached is no obstacle.
#[test]
fn the_next_host_is_tried_when_one_is_unreachable() {
    on_each_broker(|broker| {
        let (_socket, nobody) = refusing();
        let config = broker
            .config_through(nobody)
            .fallback_host("name.invalid", 1)
            .fallback_host(broker.address().ip().to_string(), broker.address().port());
        let connection = Connection::open(config)?;
        connection.channel()?.close()?;

        // What the broker itself says is final: the next host is not asked.
        let wrong = broker
            .config()
            .credentials("guest", "swordfish")
            .fallback_host(broker.address().ip().to_string(), broker.address().port());
        assert!(matches!(Connection::open(wrong), Err(Error::AuthenticationFailed(_))));
        Ok(())
    });
}

/// Row 5: the error lists every address with its reason.
#[test]
fn the_error_lists_every_address_that_was_tried() {
    let _watchdog = Watchdog::new("the_error_lists_every_address", LIMIT);
    let (_first, first) = refusing();
    let (_second, second) = refusing();
    let config = Config::new()
        .host("127.0.0.1", first.port())
        .fallback_host("name.invalid", 5672)
        .fallback_host("127.0.0.1", second.port());
    let error = Connection::open(config).unwrap_err();
    let Error::Connect(failure) = &error else { panic!("{error:?}") };
    let tried: Vec<_> =
        failure.attempts.iter().map(|attempt| (attempt.host.clone(), attempt.address)).collect();
    assert_eq!(
        tried,
        [
            (first.to_string(), Some(first)),
            ("name.invalid:5672".to_owned(), None),
            (second.to_string(), Some(second))
        ]
    );
    for attempt in &failure.attempts {
        assert!(matches!(attempt.error, Error::Io { .. }), "{:?}", attempt.error);
        assert!(error.to_string().contains(&attempt.to_string()), "{error}");
    }
    assert!(error.can_retry() && error.is_hard());
}

/// Row 13: any number of times, by any number of threads; later calls say who closed it.
#[test]
fn close_is_idempotent_and_later_calls_say_closed_by_the_application() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let mut consumer = channel.basic_consume("q")?;
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| connection.close().expect("closed"));
            }
        });
        connection.close()?;

        assert!(!connection.is_open() && !channel.is_open());
        for _ in 0..2 {
            assert_closed_by_application(connection.channel());
            assert_closed_by_application(channel.queue_declare("q"));
            assert_closed_by_application(channel.basic_publish("", "q", "x"));
            assert_closed_by_application(channel.try_publish("", "q", "x"));
            assert_closed_by_application(channel.basic_get("q"));
            assert_closed_by_application(channel.basic_consume("q"));
            assert_closed_by_application(channel.no_wait().queue_declare("q"));
            assert_closed_by_application(channel.basic_ack(1));
            assert_closed_by_application(channel.flow(true));
            assert_closed_by_application(channel.reopen());
            assert_closed_by_application(Err::<(), _>(connection.wait_closed()));
        }
        assert_closed_by_application(consumer.next().unwrap());
        assert!(consumer.next().is_none());
        channel.close()
    });
}

/// Row 13: dropping the last handle closes. The broker deletes exclusive queues before it confirms a close.
#[test]
fn dropping_the_last_handle_closes() {
    on_each_broker(|broker| {
        let (observer, channel) = broker.channel();
        let (connection, dropped) = broker.channel();
        let clone = connection.clone();
        dropped.queue_declare(QueueDeclare::new("mine").exclusive(true))?;
        drop(connection);
        dropped.queue_declare_passive("mine")?;
        assert_eq!(
            channel.queue_declare_passive("mine").unwrap_err().reply_code(),
            Some(ReplyCode::ResourceLocked)
        );

        // A channel does not keep the connection.
        drop(clone);
        assert_closed_by_application(dropped.queue_declare_passive("mine"));
        let gone = observer.channel()?.queue_declare_passive("mine").unwrap_err();
        assert_eq!(gone.reply_code(), Some(ReplyCode::NotFound), "{gone}");
        Ok(())
    });
}

/// Row 13: a broker that does not answer holds neither close() nor Drop.
#[test]
fn close_and_drop_are_bounded() {
    on_each_broker(|broker| {
        let proxy = broker.proxy();
        let limit = Duration::from_millis(200);
        let open = || {
            let config = broker.config_through(proxy.address).close_timeout(limit).drop_timeout(limit);
            let connection = Connection::open(config)?;
            let channel = connection.channel()?;
            Ok::<_, Error>((connection, channel))
        };
        let (connection, channel) = open()?;
        proxy.stall(Direction::ToClient);
        let started = Instant::now();
        assert!(matches!(channel.close(), Err(Error::Timeout(late)) if late.waiting_for == "channel.close"));
        assert!(
            matches!(connection.close(), Err(Error::Timeout(late)) if late.waiting_for == "connection.close")
        );
        assert!(started.elapsed() >= 2 * limit && started.elapsed() < PROMPT, "{:?}", started.elapsed());

        proxy.resume(Direction::ToClient);
        let (connection, channel) = open()?;
        proxy.stall(Direction::ToClient);
        let started = Instant::now();
        drop(channel);
        drop(connection);
        assert!(started.elapsed() >= 2 * limit && started.elapsed() < PROMPT, "{:?}", started.elapsed());
        Ok(())
    });
}

/// Row 14: an operator closes the connection: every waiter and iterator learns code and text, and again on
/// every later call.
#[test]
fn a_close_by_the_broker_reaches_everyone_with_code_and_text() {
    on_each_broker(|broker| {
        let (connection, first) = broker.channel();
        let second = connection.channel()?;
        first.queue_declare("q")?;
        let mut consumers = [first.basic_consume("q")?, second.basic_consume("q")?];
        let ends: Vec<Error> = thread::scope(|scope| {
            let mut waiting: Vec<_> = consumers
                .iter_mut()
                .map(|consumer| {
                    scope.spawn(|| {
                        let end = consumer.next().expect("the cause").expect_err("no delivery");
                        assert!(consumer.next().is_none() && consumer.has_ended(), "once, then the end");
                        end
                    })
                })
                .collect();
            waiting.push(scope.spawn(|| connection.wait_closed()));
            broker.close_all_connections("maintenance at noon");
            waiting.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let later = (0..100).map(|_| first.queue_declare("q").unwrap_err());
        let later = later.chain([
            second.basic_publish("", "q", "x").unwrap_err(),
            connection.channel().unwrap_err(),
            connection.close().unwrap_err(),
            connection.wait_closed(),
        ]);
        for error in ends.into_iter().chain(later) {
            let Error::Refused(refusal) = &error else { panic!("{error:?}") };
            assert_eq!((refusal.scope, refusal.code), (Scope::Connection, ReplyCode::ConnectionForced));
            assert!(refusal.text.contains("maintenance at noon"), "{}", refusal.text);
            assert!(error.is_hard() && error.can_retry());
        }
        Ok(())
    });
}

/// Rows 13, 72: the loop of a consumer ends with the reason when another thread closes the connection, also
/// while messages stream in.
#[test]
fn a_consumer_on_one_thread_while_another_closes_the_connection() {
    on_each_broker(|broker| {
        let feeder = broker.connect();
        let feed = feeder.channel()?;
        feed.queue_declare("q")?;
        for round in 0..50 {
            let (connection, channel) = broker.channel();
            let mut consumer = channel.basic_consume("q")?;
            if round % 2 == 0 {
                (0..300).try_for_each(|_| feed.basic_publish("", "q", "more"))?;
            }
            thread::scope(|scope| {
                let consuming = scope.spawn(move || {
                    for delivery in consumer.by_ref() {
                        match delivery.and_then(|delivery| delivery.ack()) {
                            Ok(()) => {}
                            // Of the ack or of the iterator, whichever comes first.
                            Err(error) => assert!(error.is_closed(), "{error:?}"),
                        }
                    }
                    assert!(consumer.has_ended());
                });
                connection.close().expect("closed");
                consuming.join().expect("no panic");
            });
        }
        Ok(())
    });
}

/// Row 22: however the line is cut, everybody who waits is woken with the cause.
#[test]
fn a_cut_line_wakes_everyone_with_the_cause() {
    on_each_broker(|broker| {
        for cut in [Cut::Fin, Cut::Reset] {
            let proxy = broker.proxy();
            let connection = Connection::open(broker.config_through(proxy.address))?;
            let channel = connection.channel()?;
            channel.queue_declare(QueueDeclare::new("").exclusive(true))?;
            let queue = channel.queue_declare(QueueDeclare::new("").exclusive(true))?.queue;
            let mut consumer = channel.basic_consume(&queue)?;
            proxy.stall(Direction::ToClient);
            let started = Instant::now();
            let errors = thread::scope(|scope| {
                let before = proxy.wait_quiet(Direction::ToBroker, Duration::from_millis(50));
                let waiting = [
                    scope.spawn(|| consumer.next().unwrap().unwrap_err()),
                    scope.spawn(|| channel.queue_declare_passive(&queue).unwrap_err()),
                    scope.spawn(|| connection.wait_closed()),
                ];
                // The call is on its way.
                proxy.wait_passed(Direction::ToBroker, before + 1);
                proxy.cut(cut);
                waiting.map(|thread| thread.join().expect("no panic"))
            });
            assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
            for error in errors.into_iter().chain((0..100).map(|_| channel.flow(true).unwrap_err())) {
                assert!(matches!(error, Error::Io { .. }), "{error:?}");
                assert!(error.is_hard() && error.can_retry());
            }
        }
        Ok(())
    });
}

/// Rows 20, 21: heartbeats keep an idle connection open with both sides; a broker that falls silent is
/// noticed after two intervals.
#[test]
fn heartbeats_keep_the_connection_and_notice_a_silent_broker() {
    given_time(|times| {
        on_each_broker(|broker| {
            let interval = times * Duration::from_secs(1);
            let proxy = broker.proxy();
            let config = broker.config_through(proxy.address).heartbeat(interval);
            let connection = Connection::open(config)?;
            // Six frames of 8 bytes at half an interval each: three intervals, in which the broker gives up a silent
            // client.
            proxy.wait_passed(Direction::ToBroker, proxy.passed(Direction::ToBroker) + 48);
            assert!(connection.is_open(), "{:?}", connection.wait_closed());
            connection.channel()?.close()?;

            proxy.stall(Direction::ToClient);
            let stalled = Instant::now();
            let error = connection.wait_closed_timeout(LIMIT).expect("noticed");
            assert!(
                matches!(error, Error::Timeout(silence) if silence.waiting_for == "a sign of life from the peer")
            );
            let taken = stalled.elapsed();
            assert!(taken >= interval && taken < 4 * interval, "{taken:?}");
            Ok(())
        });
    });
}

/// Row 17: one value owns them all; everything can be sent and shared.
#[test]
fn a_struct_may_own_connection_channel_and_consumer() {
    fn is_shareable<T: Send + Sync + 'static>() {}
    is_shareable::<(Connection, Channel, Consumer, Delivery, Error, Config)>();

    struct Worker {
        _connection: Connection,
        channel: Channel,
        consumer: Consumer,
    }

    impl Worker {
        fn new(broker: &Broker) -> Result<Worker> {
            let connection = Connection::open(broker.config())?;
            let channel = connection.channel()?;
            channel.queue_declare("work")?;
            let consumer = channel.basic_consume("work")?;
            Ok(Worker { _connection: connection, channel, consumer })
        }

        fn work(&mut self) -> Result<String> {
            let delivery = self.consumer.next().expect("not ended")?;
            delivery.ack()?;
            self.channel.basic_publish("", "done", delivery.body())?;
            Ok(delivery.text()?.to_owned())
        }
    }

    on_each_broker(|broker| {
        let mut worker = Worker::new(broker)?;
        let (_connection, channel) = broker.channel();
        channel.queue_declare("done")?;
        channel.basic_publish("", "work", "one")?;
        let (mut worker, text) = thread::spawn(move || {
            let text = worker.work();
            (worker, text)
        })
        .join()
        .expect("no panic");
        assert_eq!(text?, "one");
        channel.basic_publish("", "work", "two")?;
        assert_eq!(worker.work()?, "two");
        drop(worker);
        assert_eq!(channel.queue_declare_passive("done")?.message_count, 2);
        Ok(())
    });
}
