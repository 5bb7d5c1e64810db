//! Inline consumers: handlers on the reader thread.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use common::{
    brokers::on_each_broker,
    calls::{Called, Ready},
    limits::given_time,
    messages::Stamped,
    peer::{ACK, CANCEL, CANCEL_OK, NACK, Peer, Tune, args, eventually, nothing_is_left},
    queues::{holds, stays_at},
};
use leveret::{
    BorrowedDelivery, Connection, Consume, Delivery, Error, Event, HandlerError, InlineHandler, Publish,
    Requeue, Scope,
};

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Row 76: messages of every size are handled in order, on the reader thread, and acked there; an object with a state is
/// a handler as well.
#[test]
fn messages_are_handled_on_the_reader_thread() {
    struct Reader {
        next: u64,
        done: mpsc::Sender<String>,
    }
    impl InlineHandler for Reader {
        fn handle(&mut self, delivery: &BorrowedDelivery<'_>) -> Result<(), HandlerError> {
            assert_eq!(Stamped::read(delivery.body())?, self.next);
            assert_eq!(delivery.routing_key(), "q");
            assert_eq!((&*delivery.exchange(), delivery.consumer_tag()), ("", "mine"));
            self.next += 1;
            delivery.ack()?;
            if self.next == 300 {
                self.done.send(thread::current().name().unwrap_or_default().to_owned())?;
            }
            Ok(())
        }
    }
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let publishing = connection.channel()?;
        channel.queue_declare("q")?;
        let (done, is_done) = mpsc::channel();
        let reader = Reader { next: 0, done };
        let consumer = channel.basic_consume_inline(Consume::new("q").consumer_tag("mine"), reader)?;
        for number in 0..300 {
            let length = [16, 4000, 5000, 200_000][(number % 4) as usize];
            publishing.basic_publish("", "q", &Stamped::new(number, length))?;
        }
        let done = is_done.recv_timeout(LONG);
        assert_eq!(done.as_deref(), Ok("leveret-reader"), "{:?}", consumer.wait_timeout(Duration::ZERO));
        assert!(!consumer.has_ended());
        consumer.cancel()?;
        consumer.cancel()?;
        consumer.wait()?;
        channel.close()?;
        channel.reopen()?;
        stays_at(&channel, "q", 0);
        Ok(())
    });
}

/// Row 76: what is copied out lives on, and can be settled on another thread.
#[test]
fn a_copy_may_be_kept_and_settled_elsewhere() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let (sender, receiver) = mpsc::channel::<Delivery>();
        let properties = leveret::BasicProperties::new().message_id("m").header("x", 1);
        let consumer = channel.basic_consume_inline("q", move |delivery: &BorrowedDelivery<'_>| {
            sender.send(delivery.to_owned())?;
            Ok(())
        })?;
        for number in 0..100 {
            let message = Stamped::new(number, 50);
            channel.basic_publish("", "q", Publish::new(&message).properties(&properties))?;
        }
        for (delivery, number) in receiver.iter().take(100).zip(0..) {
            assert_eq!(Stamped::read(delivery.body()).unwrap(), number);
            assert_eq!(delivery.properties()?, properties);
            assert_eq!(delivery.consumer_tag(), consumer.consumer_tag());
            if number % 2 == 0 {
                delivery.ack()?;
            }
        }
        drop(consumer);
        channel.close()?;
        channel.reopen()?;
        holds(&channel, "q", 50);
        Ok(())
    });
}

/// Row 76, promise 5: every call that waits returns `WouldDeadlock` on the reader thread, at once; those that do not wait
/// work there. What is dropped there is closed by somebody else.
#[test]
fn every_blocking_call_is_an_error_inline() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let observer = broker.connect();
        let observer = observer.channel()?;
        for queue in ["q", "scratch", "confirmed", "quiet", "published"] {
            channel.queue_declare(queue)?;
        }
        let ready = Mutex::new(Some(Ready::new(&connection, &broker.config())?));
        let (told, is_told) = mpsc::channel::<Vec<Called>>();
        let (inner, again) = (connection.clone(), channel.clone());
        let consumer = channel.basic_consume_inline("q", move |delivery: &BorrowedDelivery<'_>| {
            let mut called = ready.lock().unwrap().take().map(Ready::call_all).unwrap_or_default();
            let closed = inner.wait_closed();
            called.push(("Connection::wait_closed", Err(closed)));
            called.push(("update_secret", inner.update_secret("guest", "for the test")));
            delivery.ack()?;
            again.basic_publish("", "published", "small")?;
            again.basic_publish("", "published", &vec![7; 100_000])?;
            again.try_publish("", "published", "tried")?;
            again.no_wait().queue_declare("made without waiting")?;
            drop(again.deferred().queue_declare("made later")?);
            told.send(called)?;
            Ok(())
        })?;
        let pending = channel.deferred().queue_purge("scratch")?;
        observer.basic_publish("", "q", "go")?;
        let called = is_told.recv_timeout(LONG).unwrap();
        assert!(called.len() >= 45, "{}", called.len());
        for (name, result) in called {
            let expected = match name {
                // There is no error in what it returns.
                "Events::next_timeout" => matches!(result, Ok(())),
                _ => matches!(result, Err(Error::WouldDeadlock)),
            };
            assert!(expected, "{name}: {result:?}");
        }
        // Nothing is the worse for it.
        pending.wait()?;
        channel.flow(true)?;
        holds(&observer, "published", 3);
        observer.queue_declare_passive("made without waiting")?;
        observer.queue_declare_passive("made later")?;
        assert_eq!(observer.queue_declare_passive("confirmed")?.message_count, 0, "nothing was sent");
        eventually("what was dropped inline is closed", || {
            observer.queue_declare_passive("quiet").unwrap().consumer_count == 0
        });
        consumer.cancel()?;
        stays_at(&channel, "q", 0);
        Ok(())
    });
}

/// Rows 13, 76: the last handle of the connection may be dropped inline.
#[test]
fn a_connection_dropped_inline_is_closed() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let mut events = connection.events();
        let last = Mutex::new(Some(connection));
        let consumer = channel.basic_consume_inline("q", move |delivery: &BorrowedDelivery<'_>| {
            delivery.ack()?;
            drop(last.lock().unwrap().take());
            Ok(())
        })?;
        channel.basic_publish("", "q", "the last one")?;
        let ended = consumer.wait_timeout(LONG).expect("it ends");
        assert!(matches!(ended, Err(Error::Closed(Scope::Connection))), "{ended:?}");
        let last = events.by_ref().last();
        assert!(matches!(last, Some(Event::Closed { cause: Error::Closed(Scope::Connection) })), "{last:?}");
        Ok(())
    });
}

/// Rows 76, 77: a panic or an error ends the consumer and nothing else: the message goes back, and all behind it.
#[test]
fn a_failing_inline_handler_ends_its_consumer_only() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        for panics in [false, true] {
            let mut events = connection.events();
            (0..200).try_for_each(|number| channel.basic_publish("", "q", &number.to_string()))?;
            holds(&channel, "q", 200);
            let dropped = Arc::new(());
            let held = dropped.clone();
            let consumer = channel.basic_consume_inline("q", move |delivery: &BorrowedDelivery<'_>| {
                let _held = &held;
                match delivery.text()? {
                    "100" if panics => panic!("at a hundred"),
                    "100" => Err("at a hundred".into()),
                    _ => Ok(delivery.ack()?),
                }
            })?;
            let Some(Err(Error::Handler(failure))) = consumer.wait_timeout(LONG) else {
                panic!("no failure")
            };
            assert_eq!((failure.panicked, &*failure.reason), (panics, "at a hundred"));
            assert_eq!(&*failure.consumer_tag, consumer.consumer_tag());
            let told = events.find(|event| matches!(event, Event::HandlerFailed { .. }));
            let Some(Event::HandlerFailed { channel: id, failure: told }) = told else { panic!() };
            assert_eq!((id, told.delivery_tag), (channel.id(), failure.delivery_tag));
            eventually("the consumer is cancelled", || {
                channel.queue_declare("q").unwrap().consumer_count == 0
            });
            stays_at(&channel, "q", 100);
            eventually("the handler is dropped", || Arc::strong_count(&dropped) == 1);
            channel.queue_purge("q")?;
        }
        Ok(())
    });
}

/// Row 72: the end of an inline consumer is told, with its cause; Drop cancels it, bounded.
#[test]
fn an_inline_consumer_tells_why_it_ended() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let handled = Arc::new(AtomicUsize::new(0));
        let consume = || {
            let handled = handled.clone();
            channel.queue_declare("q")?;
            channel.basic_consume_inline("q", move |delivery: &BorrowedDelivery<'_>| {
                handled.fetch_add(1, Ordering::SeqCst);
                Ok(delivery.ack()?)
            })
        };
        let consumer = consume()?;
        assert!(consumer.wait_timeout(Duration::from_millis(1)).is_none());
        channel.queue_delete("q")?;
        assert!(matches!(consumer.wait(), Err(Error::CancelledByServer { .. })));

        let consumer = consume()?;
        channel.basic_cancel(consumer.consumer_tag())?;
        consumer.wait()?;

        drop(consume()?);
        assert_eq!(channel.queue_declare("q")?.consumer_count, 0);
        channel.basic_publish("", "q", "for nobody")?;
        stays_at(&channel, "q", 1);

        let consumer = consume()?;
        eventually("it is handled", || handled.load(Ordering::SeqCst) == 1);
        channel.close()?;
        assert!(matches!(consumer.wait(), Err(Error::Closed(Scope::Channel))));
        channel.reopen()?;
        let consumer = consume()?;
        let closing = thread::spawn(move || connection.close());
        assert!(matches!(consumer.wait(), Err(Error::Closed(Scope::Connection))));
        closing.join().unwrap()
    });
}

/// Row 76: the broker sees nothing of the calls that were refused. After a failure it sees a cancel, and then everything
/// back that it has sent and still sends.
#[test]
fn a_failing_inline_handler_gives_back_what_still_comes() {
    let (given_back, is_given_back) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        let tag = peer.start_consumer(1);
        peer.deliver(1, &tag, 1, b"fine");
        peer.expect(1, ACK);
        peer.deliver(1, &tag, 2, b"not fine");
        peer.deliver(1, &tag, 3, b"behind it");
        assert_eq!(peer.expect(1, CANCEL).text(0), tag);
        for number in 2..=3 {
            let nack = peer.expect(1, NACK);
            assert_eq!((nack.number(0), nack.number(1)), (number, 0b10), "requeue");
        }
        peer.deliver(1, &tag, 4, b"crossed the cancel");
        assert_eq!(peer.expect(1, NACK).number(0), 4);
        peer.send(1, CANCEL_OK, args![&tag]);
        given_back.send(()).unwrap();
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    let other = channel.clone();
    let consumer = channel
        .basic_consume_inline("q", move |delivery: &BorrowedDelivery<'_>| {
            assert!(matches!(other.queue_declare("never"), Err(Error::WouldDeadlock)));
            if delivery.body() == b"not fine" {
                return Err("as expected".into());
            }
            Ok(delivery.ack()?)
        })
        .unwrap();
    assert!(matches!(consumer.wait(), Err(Error::Handler(_))));
    is_given_back.recv_timeout(LONG).unwrap();
    consumer.cancel().unwrap();
    drop(consumer);
    connection.close().unwrap();
    peer.finish();
}

/// Row 74: a handler that takes longer than two heartbeats is not a silent peer.
#[test]
fn a_slow_inline_handler_does_not_lose_the_connection() {
    given_time(|times| {
        on_each_broker(|broker| {
            let connection = Connection::open(broker.config().heartbeat(times * Duration::from_secs(1)))?;
            let channel = connection.channel()?;
            channel.queue_declare("q")?;
            let (done, is_done) = mpsc::channel();
            let _consumer = channel.basic_consume_inline("q", move |delivery: &BorrowedDelivery<'_>| {
                // The time itself is what this is about.
                thread::sleep(times * Duration::from_secs(3));
                delivery.nack(Requeue::No)?;
                done.send(())?;
                Ok(())
            })?;
            channel.basic_publish("", "q", "slow")?;
            is_done.recv_timeout(LONG).unwrap();
            channel.queue_declare("q")?;
            Ok(())
        });
    });
}

/// Rows 13, 76: a handler that is stuck holds up the end of its connection no longer than that may take.
#[test]
fn a_stuck_handler_holds_up_no_close() {
    on_each_broker(|broker| {
        for by_drop in [false, true] {
            let limit = Duration::from_millis(100);
            let config = broker.config().close_timeout(limit).drop_timeout(limit);
            let connection = Connection::open(config)?;
            let channel = connection.channel()?;
            channel.queue_declare("q")?;
            let (stuck, is_stuck) = mpsc::channel();
            let (go_on, may_go_on) = mpsc::channel::<()>();
            let mut events = connection.events();
            let consumer = channel.basic_consume_inline("q", move |delivery: &BorrowedDelivery<'_>| {
                delivery.ack()?;
                stuck.send(())?;
                let _ = may_go_on.recv();
                Ok(())
            })?;
            channel.basic_publish("", "q", "sticky")?;
            is_stuck.recv_timeout(LONG).unwrap();
            if by_drop {
                drop(connection);
            } else {
                let closed = connection.close();
                assert!(matches!(closed, Err(Error::Timeout(_))), "{closed:?}");
            }
            let last = events.by_ref().last();
            assert!(matches!(last, Some(Event::Closed { .. })), "{last:?}");
            drop(go_on);
            drop(consumer);
        }
        Ok(())
    });
    nothing_is_left();
}

/// Rows 21, 76: the handler may own the last handle of the connection, and be dropped by the thread that notices the
/// loss.
#[test]
fn the_last_handle_may_go_with_the_handler() {
    let peer = Peer::run(|peer| {
        peer.handshake_with(Tune { heartbeat: 1, ..Tune::default() });
        peer.open_channel(1);
        peer.start_consumer(1);
        peer.silence();
    });
    let connection = Connection::open(peer.config().heartbeat(Duration::from_secs(1))).unwrap();
    let channel = connection.channel().unwrap();
    let owned = (connection.clone(), channel.clone());
    let consumer = channel
        .basic_consume_inline("q", move |_: &BorrowedDelivery<'_>| {
            let _owned = &owned;
            Ok(())
        })
        .unwrap();
    drop((channel, connection));
    let ended = consumer.wait();
    assert!(matches!(ended, Err(Error::Timeout(_))), "{ended:?}");
    peer.finish();
}

/// An error that nobody can look at.
#[derive(Debug)]
struct Unspeakable;

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("unspeakable")
    }
}

impl std::error::Error for Unspeakable {}

/// Row 77: what an error says of itself is code of the program as well, and may panic.
#[test]
fn an_error_that_panics_when_it_is_shown_is_a_failure_like_others() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        channel.basic_publish("", "q", "one")?;
        let fails = |_: &BorrowedDelivery<'_>| Err(Unspeakable.into());
        let inline = channel.basic_consume_inline("q", fails)?;
        let ended = inline.wait();
        assert!(matches!(ended, Err(Error::Handler(_))), "{ended:?}");
        drop(inline);
        let listener = channel.basic_consume("q")?.listen(|_: &Delivery| Err(Unspeakable.into()))?;
        let ended = listener.wait();
        assert!(matches!(ended, Err(Error::Handler(_))), "{ended:?}");
        Ok(())
    });
}
