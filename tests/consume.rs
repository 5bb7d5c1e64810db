//! Consuming from real brokers: how consumers begin and end, what goes back, and what is held in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    thread,
    time::{Duration, Instant},
};

use common::{
    brokers::on_each_broker,
    limits::{PROMPT, given_time},
    messages::Stamped,
    peer::eventually,
    proxy::{self, Direction},
    queues::holds,
};
use leveret::{
    Channel, Connection, Consume, Consumer, Delivery, Error, FieldValue, Get, Qos, QueueDeclare, ReplyCode,
    Requeue, Result, Scope,
};

/// Long enough for every message that comes.
const SOON: Duration = PROMPT;

/// Long enough to believe that nothing comes.
const NOTHING: Duration = Duration::from_millis(150);

fn publish(channel: &Channel, queue: &str, messages: u64) -> Result<()> {
    (0..messages).try_for_each(|number| channel.basic_publish("", queue, &Stamped::new(number, 50)))
}

fn numbers(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(|delivery| Stamped::read(delivery.body()).expect("whole")).collect()
}

/// The next so many deliveries, and the certainty that there is no other.
fn exactly(consumer: &mut Consumer, count: usize) -> Result<Vec<Delivery>> {
    let deliveries = take(consumer, count)?;
    let further = consumer.next_timeout(NOTHING)?;
    assert!(further.is_none() && !consumer.has_ended(), "{further:?}");
    Ok(deliveries)
}

fn take(consumer: &mut Consumer, count: usize) -> Result<Vec<Delivery>> {
    (0..count).map(|_| Ok(consumer.next_timeout(SOON)?.expect("another delivery"))).collect()
}

/// Everything up to the end, which must not be an error.
fn drain(consumer: &mut Consumer) -> Result<Vec<Delivery>> {
    let deliveries = consumer.collect();
    assert!(consumer.has_ended() && consumer.next().is_none());
    deliveries
}

/// The cause with which a consumer ends: returned once, then it has ended.
fn cause(consumer: &mut Consumer) -> Error {
    let error = consumer.next().expect("the cause").expect_err("no delivery");
    assert!(consumer.next().is_none() && consumer.has_ended(), "once");
    assert!(consumer.try_next().expect("no error").is_none());
    assert!(consumer.next_timeout(SOON).expect("no error").is_none());
    error
}

/// Rows 70, 71, 78: tags are chosen or generated; one in use is caught locally, and nothing is lost by it.
#[test]
fn tags_are_chosen_or_generated_and_unique() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let mut chosen = channel.basic_consume(Consume::new("q").consumer_tag("mine"))?;
        assert_eq!(chosen.consumer_tag(), "mine");
        let generated =
            [channel.basic_consume("q")?, channel.basic_consume(Consume::new("q").consumer_tag(""))?];
        assert!(generated.iter().all(|consumer| !consumer.consumer_tag().is_empty()));
        assert_ne!(generated[0].consumer_tag(), generated[1].consumer_tag());
        assert_eq!(channel.queue_declare_passive("q")?.consumer_count, 3);

        for taken in ["mine", generated[0].consumer_tag()] {
            let error = channel.basic_consume(Consume::new("q").consumer_tag(taken)).unwrap_err();
            assert!(matches!(&error, Error::Invalid(text) if text.contains(taken)), "{error:?}");
        }
        // Another channel has tags of its own.
        let other = connection.channel()?;
        let twin = other.basic_consume(Consume::new("q").consumer_tag("mine"))?;
        drop((generated, twin));

        publish(&channel, "q", 1)?;
        let delivery = chosen.next().unwrap()?;
        assert_eq!((&*delivery.consumer_tag(), delivery.delivery_tag()), ("mine", 1));
        delivery.ack()?;

        // A tag that is free again can be used again.
        drop(chosen);
        drop(channel.basic_consume(Consume::new("q").consumer_tag("mine"))?);
        channel.queue_declare("q").map(drop)
    });
}

/// Row 71: a missing queue is 404 at the call; a second exclusive consumer 403. Nothing is left of them.
#[test]
fn what_cannot_be_consumed_is_refused_at_the_call() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        for _ in 0..3 {
            let error = channel.basic_consume(Consume::new("none").consumer_tag("t")).unwrap_err();
            let Error::Refused(refusal) = &error else { panic!("{error:?}") };
            assert_eq!((refusal.scope, refusal.code), (Scope::Channel, ReplyCode::NotFound));
            assert_eq!(refusal.method, "basic.consume");
            channel.reopen()?;
        }
        channel.queue_declare("q")?;
        let only = channel.basic_consume(Consume::new("q").consumer_tag("t").exclusive(true))?;
        let other = connection.channel()?;
        let error = other.basic_consume("q").unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::AccessRefused), "{error}");
        drop(only);
        other.reopen()?;
        drop(other.basic_consume("q")?);

        // Priority: the higher one gets everything it has room for.
        let mut low = channel.basic_consume(Consume::new("q").priority(1))?;
        let mut high = channel.basic_consume(Consume::new("q").priority(10))?;
        publish(&channel, "q", 5)?;
        assert_eq!(numbers(&exactly(&mut high, 5)?), [0, 1, 2, 3, 4]);
        assert!(low.try_next()?.is_none());
        Ok(())
    });
}

/// Row 70: the three ways to wait.
#[test]
fn waiting_is_with_a_limit_without_one_or_not_at_all() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let mut consumer = channel.basic_consume("q")?;
        let started = Instant::now();
        for _ in 0..1000 {
            assert!(consumer.try_next()?.is_none());
            assert!(consumer.next_timeout(Duration::ZERO)?.is_none());
        }
        assert!(started.elapsed() < SOON);
        let started = Instant::now();
        assert!(consumer.next_timeout(NOTHING)?.is_none() && started.elapsed() >= NOTHING);
        assert!(!consumer.has_ended());

        publish(&channel, "q", 3)?;
        let first = consumer.next().unwrap()?;
        let second = consumer.next_timeout(SOON)?.unwrap();
        let mut third = None;
        eventually("the third comes", || {
            third = consumer.try_next().expect("no error");
            third.is_some()
        });
        assert_eq!(numbers(&[first, second, third.unwrap()]), [0, 1, 2]);
        Ok(())
    });
}

/// Row 70: a consumer may live on another thread than its channel, and its messages on a third.
#[test]
fn a_consumer_works_on_another_thread() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let consumer = channel.basic_consume("q")?;
        let (sender, receiver) = std::sync::mpsc::channel::<Delivery>();
        let consuming = thread::spawn(move || {
            for delivery in consumer {
                sender.send(delivery.expect("no error")).expect("somebody listens");
            }
        });
        publish(&channel, "q", 100)?;
        for (delivery, number) in receiver.iter().take(100).zip(0..) {
            assert_eq!(numbers(std::slice::from_ref(&delivery)), [number]);
            delivery.ack()?;
        }
        channel.queue_delete("q")?;
        // The cause ends that thread's loop with a panic of its own making.
        assert!(consuming.join().is_err());
        Ok(())
    });
}

/// Row 72: after its own cancel a consumer returns what was delivered, and ends cleanly; it all can be acked.
#[test]
fn a_cancelled_consumer_returns_what_was_delivered() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        for by_tag in [false, true] {
            publish(&channel, "q", 100)?;
            holds(&channel, "q", 100);
            let mut consumer = channel.basic_consume("q")?;
            let mut deliveries = take(&mut consumer, 3)?;
            // All are on their way to us, before the answer to the cancel.
            holds(&channel, "q", 0);
            match by_tag {
                true => channel.basic_cancel(consumer.consumer_tag())?,
                false => consumer.cancel()?,
            }
            consumer.cancel()?;
            publish(&channel, "q", 1)?;
            deliveries.extend(drain(&mut consumer)?);
            assert_eq!(numbers(&deliveries), (0..100).collect::<Vec<_>>());
            deliveries.iter().try_for_each(Delivery::ack)?;
            drop(consumer);
            holds(&channel, "q", 1);
            channel.queue_purge("q")?;
        }
        channel.close()?;
        channel.reopen()?;
        assert_eq!(channel.queue_declare("q")?.message_count, 0, "all were acked");
        Ok(())
    });
}

/// Row 72: a queue that is deleted ends its consumers, after what was delivered; others go on.
#[test]
fn a_deleted_queue_ends_its_consumers_and_no_others() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("going")?;
        channel.queue_declare("staying")?;
        let mut going = [channel.basic_consume("going")?, connection.channel()?.basic_consume("going")?];
        // The second one's channel is dropped by now.
        assert!(matches!(cause(&mut going[1]), Error::Closed(Scope::Channel)));
        let mut staying = channel.basic_consume("staying")?;
        publish(&channel, "going", 10)?;
        let delivered = take(&mut going[0], 4)?;
        assert_eq!(numbers(&delivered), [0, 1, 2, 3]);
        holds(&channel, "going", 0);
        channel.flow(true)?;

        connection.channel()?.queue_delete("going")?;
        assert_eq!(numbers(&take(&mut going[0], 6)?), [4, 5, 6, 7, 8, 9]);
        let error = cause(&mut going[0]);
        let Error::CancelledByServer { consumer_tag } = &error else { panic!("{error:?}") };
        assert_eq!(&**consumer_tag, going[0].consumer_tag());
        assert!(error.can_retry() && !error.is_hard() && !error.is_soft());
        going[0].cancel()?;

        publish(&channel, "staying", 2)?;
        assert_eq!(numbers(&exactly(&mut staying, 2)?), [0, 1]);
        drop(going);
        channel.flow(true).map(drop)
    });
}

/// Row 72: when the channel ends, messages that were to be acked come again and are dropped here; those
/// without acks are the only copies and are returned first. Either way the cause comes once.
#[test]
fn a_lost_channel_ends_its_consumers_with_the_cause() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let observer = connection.channel()?;
        for by_error in [false, true] {
            for no_ack in [false, true] {
                let channel = connection.channel()?;
                channel.queue_declare("q")?;
                publish(&channel, "q", 10)?;
                let mut consumer = channel.basic_consume(Consume::new("q").no_ack(no_ack))?;
                holds(&channel, "q", 0);
                channel.flow(true)?;
                match by_error {
                    true => drop(channel.queue_declare_passive("none").unwrap_err()),
                    false => channel.close()?,
                }
                let returned = take(&mut consumer, if no_ack { 10 } else { 0 })?;
                assert_eq!(returned.len(), if no_ack { 10 } else { 0 });
                match cause(&mut consumer) {
                    Error::Refused(refusal) if by_error => assert_eq!(refusal.code, ReplyCode::NotFound),
                    Error::Closed(Scope::Channel) if !by_error => {}
                    other => panic!("{other:?}"),
                }
                holds(&observer, "q", if no_ack { 0 } else { 10 });
                observer.queue_delete("q")?;
            }
        }
        Ok(())
    });
}

/// Row 73: dropping a consumer cancels it; what it had not returned goes back, what it had returned can still
/// be settled.
#[test]
fn a_dropped_consumer_gives_back_what_it_had_not_returned() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        publish(&channel, "q", 10)?;
        holds(&channel, "q", 10);
        let mut consumer = channel.basic_consume("q")?;
        let kept = take(&mut consumer, 3)?;
        holds(&channel, "q", 0);
        let started = Instant::now();
        drop(consumer);
        assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
        holds(&channel, "q", 7);
        assert_eq!(channel.queue_declare("q")?.consumer_count, 0);

        kept.iter().try_for_each(Delivery::ack)?;
        let mut again = channel.basic_consume("q")?;
        let deliveries = exactly(&mut again, 7)?;
        assert_eq!(numbers(&deliveries), [3, 4, 5, 6, 7, 8, 9]);
        assert!(deliveries.iter().all(Delivery::redelivered));

        // Row 73 again: closing the channel gives back the rest.
        deliveries[0].ack()?;
        channel.close()?;
        channel.reopen()?;
        holds(&channel, "q", 6);
        Ok(())
    });
}

/// Rows 74, 78: 250 messages are delivered ahead of their acks, or as many as was said; without acks all.
#[test]
fn prefetch_bounds_what_is_delivered_ahead_of_acks() {
    on_each_broker(|broker| {
        let observer = broker.connect();
        let observer = observer.channel()?;
        observer.queue_declare("q")?;
        publish(&observer, "q", 300)?;
        holds(&observer, "q", 300);
        // Configured, set on the channel, without acks; and what is delivered then.
        let cases = [
            (None, None, 250),
            (Some(7), None, 7),
            (Some(0), None, 300),
            (None, Some(Qos::new(5)), 5),
            (Some(7), Some(Qos::new(0)), 300),
            (None, Some(Qos::new(9).global(true)), 9),
        ];
        for (configured, set, expected) in cases {
            let mut config = broker.config();
            config.prefetch = configured.unwrap_or(config.prefetch);
            let connection = Connection::open(config)?;
            let channel = connection.channel()?;
            set.into_iter().try_for_each(|qos| channel.basic_qos(qos))?;
            let mut consumer = channel.basic_consume("q")?;
            holds(&observer, "q", 300 - expected);
            let deliveries = exactly(&mut consumer, expected as usize)?;
            if expected < 300 {
                // Each ack makes room for one.
                deliveries[0].nack(Requeue::Yes)?;
                deliveries[1].nack(Requeue::Yes)?;
                exactly(&mut consumer, 2)?;
            }
            connection.close()?;
            holds(&observer, "q", 300);
        }

        let connection = broker.connect();
        let channel = connection.channel()?;
        let mut consumer = channel.basic_consume(Consume::new("q").no_ack(true))?;
        exactly(&mut consumer, 300)?;
        holds(&observer, "q", 0);
        Ok(())
    });
}

/// Row 78: a prefetch count is for each consumer, or for the whole channel.
#[test]
fn a_prefetch_count_may_be_shared_by_a_channel() {
    on_each_broker(|broker| {
        let observer = broker.connect();
        let observer = observer.channel()?;
        observer.queue_declare("q")?;
        publish(&observer, "q", 50)?;
        holds(&observer, "q", 50);
        for (global, expected) in [(false, 8), (true, 4)] {
            let connection = broker.connect();
            let channel = connection.channel()?;
            channel.basic_qos(Qos::new(4).global(global))?;
            let mut consumers = [channel.basic_consume("q")?, channel.basic_consume("q")?];
            holds(&observer, "q", 50 - expected);
            channel.flow(true)?;
            let mut delivered = 0;
            while leveret::select_timeout(&mut consumers, NOTHING).is_some() {
                delivered += 1;
            }
            assert_eq!(delivered, expected, "global: {global}");
            connection.close()?;
            holds(&observer, "q", 50);
        }
        Ok(())
    });
}

/// Row 78: `basic_get` gives one message or none, and says how many are left.
#[test]
fn messages_can_be_fetched_one_by_one() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        assert!(channel.basic_get("q")?.is_none());
        publish(&channel, "q", 3)?;
        holds(&channel, "q", 3);
        let first = channel.basic_get("q")?.unwrap();
        assert_eq!((first.message_count(), first.delivery_tag(), first.redelivered()), (Some(2), 1, false));
        assert_eq!((&*first.consumer_tag(), &*first.routing_key()), ("", "q"));
        let second = channel.basic_get(Get::new("q").no_ack(true))?.unwrap();
        assert_eq!(second.message_count(), Some(1));
        assert!(matches!(second.ack(), Err(Error::Invalid(_))));
        assert_eq!(numbers(&[first, second]), [0, 1]);
        channel.close()?;
        channel.reopen()?;
        holds(&channel, "q", 2);
        assert!(channel.basic_get("q")?.unwrap().redelivered());
        Ok(())
    });
}

/// Row 78: prefetch by bytes is not RabbitMQ's (540).
#[test]
fn prefetch_in_bytes_is_refused_by_the_broker() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let error = channel.basic_qos(Qos::new(1).prefetch_size(1000)).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NotImplemented), "{error}");
        assert!(error.is_hard() && !connection.is_open());
        Ok(())
    });
}

/// Row 78: streams need a prefetch count, which is set by default, and are read from where one likes.
#[test]
fn streams_are_read_from_an_offset() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare(QueueDeclare::new("s").stream())?;
        publish(&channel, "s", 20)?;
        for (offset, from) in [("first".into(), 0), (FieldValue::from(15), 15)] {
            let mut consumer = channel.basic_consume(Consume::new("s").stream_offset(offset))?;
            let deliveries = take(&mut consumer, 20 - from)?;
            assert_eq!(numbers(&deliveries), (from as u64..20).collect::<Vec<_>>());
            assert_eq!(
                deliveries[0].headers()?.get("x-stream-offset").and_then(FieldValue::as_i64),
                Some(from as i64)
            );
        }
        Ok(())
    });
}

/// Row 78: what streams do not allow is said as the broker says it: no prefetch count costs the channel, and
/// `basic_get` the connection.
#[test]
fn streams_want_a_prefetch_count_and_no_get() {
    on_each_broker(|broker| {
        let connection = Connection::open(broker.config().prefetch(0))?;
        let channel = connection.channel()?;
        channel.queue_declare(QueueDeclare::new("s").stream())?;
        publish(&channel, "s", 1)?;
        let error = channel.basic_consume("s").unwrap_err();
        assert_eq!((error.reply_code(), error.is_soft()), (Some(ReplyCode::PreconditionFailed), true));
        assert!(error.to_string().contains("prefetch"), "{error}");
        channel.reopen()?;
        channel.basic_qos(1)?;
        let first = channel.basic_consume(Consume::new("s").stream_offset("first"))?.next().unwrap()?;
        assert_eq!(numbers(&[first]), [0]);

        let error = channel.basic_get("s").unwrap_err();
        assert_eq!((error.reply_code(), error.is_hard()), (Some(ReplyCode::NotImplemented), true), "{error}");
        assert!(!connection.is_open());
        Ok(())
    });
}

/// Row 74: a flood without acks, and a consumer that sleeps: what is held is bounded, the connection outlives
/// several heartbeats, and calls go on being answered. Then everything is there, in order.
#[test]
fn a_flood_and_a_sleeping_consumer() {
    given_time(|times| {
        const MESSAGES: u64 = 10_000;
        const SIZE: usize = 4000;
        const INCOMING: usize = 1 << 20;
        on_each_broker(|broker| {
            let (_feeder, feed) = broker.channel();
            feed.queue_declare("q")?;
            for number in 0..MESSAGES {
                feed.basic_publish("", "q", &Stamped::new(number, SIZE))?;
            }
            holds(&feed, "q", MESSAGES as u32);

            let proxy = broker.proxy();
            let config = broker
                .config_through(proxy.address)
                .heartbeat(times * Duration::from_secs(1))
                .incoming_buffer(INCOMING)
                .receive_buffer(proxy::BUFFER);
            let connection = Connection::open(config)?;
            let (channel, other) = (connection.channel()?, connection.channel()?);
            let mut consumer = channel.basic_consume(Consume::new("q").no_ack(true))?;

            proxy.wait_passed(Direction::ToClient, INCOMING as u64 / 2);
            let held = proxy.wait_quiet(Direction::ToClient, times * Duration::from_millis(300));
            // What the limit lets in, what is read at once (and once more, as slack), and what the kernel holds.
            let bound = INCOMING + 2 * 512 * 1024 + 8 * proxy::BUFFER;
            assert!(held < bound as u64, "{held} bytes were taken");

            // Heartbeats go on, each of 8 bytes, two a second; the broker gives up a client that is silent for two.
            proxy.wait_passed(Direction::ToBroker, proxy.passed(Direction::ToBroker) + 5 * 8);
            assert!(connection.is_open(), "{:?}", connection.wait_closed());
            let started = Instant::now();
            for _ in 0..3 {
                assert_eq!(other.queue_declare("other")?.queue, "other");
            }
            assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
            let held = proxy.wait_quiet(Direction::ToClient, times * Duration::from_millis(300));
            let total = MESSAGES * SIZE as u64;
            // What lay before the answers at the broker came with them; then it was quiet again.
            assert!(held < total, "{held} of {total} bytes were taken");

            for number in 0..MESSAGES {
                assert_eq!(Stamped::read(consumer.next().unwrap()?.body()), Ok(number));
            }
            assert!(connection.is_open());
            exactly(&mut consumer, 0).map(drop)
        });
    });
}
