//! Settling deliveries on real brokers: each form does what it says, once, and never to another message.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{thread, time::Duration};

use common::{
    brokers::on_each_broker,
    messages::Stamped,
    proxy::Direction,
    queues::{holds, stays_at},
};
use leveret::{
    Ack, BasicProperties, Channel, Connection, Consume, Delivery, Error, FieldValue, Get, Nack, Publish,
    Reject, ReplyCode, Requeue, Result,
};

const MESSAGES: u64 = 10;

/// Ten messages in `q`.
fn fill(channel: &Channel) -> Result<()> {
    channel.queue_declare("q")?;
    for number in 0..MESSAGES {
        channel.basic_publish("", "q", &Stamped::new(number, 20))?;
    }
    holds(channel, "q", MESSAGES as u32);
    Ok(())
}

fn number(delivery: &Delivery) -> u64 {
    Stamped::read(delivery.body()).expect("whole")
}

/// Takes the ten out of the queue, and none is settled.
fn take_all(channel: &Channel) -> Result<Vec<Delivery>> {
    let mut consumer = channel.basic_consume("q")?;
    consumer.by_ref().take(MESSAGES as usize).collect()
}

fn assert_settled<T: std::fmt::Debug>(result: Result<T>, tag: u64) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Settled { delivery_tag, .. } if delivery_tag == tag), "{error:?}");
    assert!(!error.is_hard() && !error.is_soft() && !error.can_retry());
}

/// Row 81: each form, on the delivery and by tag, settles what it says, and requeues it at once if it says so; the rest
/// comes back with the channel's end. Tags are counted from 1, messages from 0.
#[test]
fn each_form_settles_what_it_says() {
    type Settle = fn(&Channel, &[Delivery]) -> Result<()>;
    const ALL: &[u64] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    const NOT_THE_FIFTH: &[u64] = &[0, 1, 2, 3, 5, 6, 7, 8, 9];
    const LAST_FIVE: &[u64] = &[5, 6, 7, 8, 9];
    // How many are in the queue again at once, and which of them after the channel's end.
    let forms: [(&str, Settle, u32, &[u64]); 18] = [
        ("ack", |_, all| all[4].ack(), 0, NOT_THE_FIFTH),
        ("ack_multiple", |_, all| all[4].ack_multiple(), 0, LAST_FIVE),
        ("nack", |_, all| all[4].nack(Requeue::No), 0, NOT_THE_FIFTH),
        ("nack_multiple", |_, all| all[4].nack_multiple(Requeue::No), 0, LAST_FIVE),
        ("reject", |_, all| all[4].reject(Requeue::No), 0, NOT_THE_FIFTH),
        ("nack, requeue", |_, all| all[4].nack(Requeue::Yes), 1, ALL),
        ("nack_multiple, requeue", |_, all| all[4].nack_multiple(Requeue::Yes), 5, ALL),
        ("reject, requeue", |_, all| all[4].reject(Requeue::Yes), 1, ALL),
        ("acks", |_, all| all.iter().rev().take(7).try_for_each(Delivery::ack), 0, &[0, 1, 2]),
        ("by tag: ack", |channel, _| channel.basic_ack(5), 0, NOT_THE_FIFTH),
        ("by tag: multiple", |channel, _| channel.basic_ack(Ack::new(5).multiple(true)), 0, LAST_FIVE),
        ("by tag: all", |channel, _| channel.basic_ack(Ack::new(0).multiple(true)), 0, &[]),
        (
            "by tag: nack",
            |channel, _| channel.basic_nack(Nack::new(5).multiple(true).requeue(Requeue::No)),
            0,
            LAST_FIVE,
        ),
        (
            "by tag: nack, requeue",
            |channel, _| channel.basic_nack(Nack::new(5).multiple(true).requeue(Requeue::Yes)),
            5,
            ALL,
        ),
        (
            "by tag: nack all",
            |channel, _| channel.basic_nack(Nack::new(0).multiple(true).requeue(Requeue::No)),
            0,
            &[],
        ),
        (
            "by tag: reject",
            |channel, _| channel.basic_reject(Reject::new(5).requeue(Requeue::No)),
            0,
            NOT_THE_FIFTH,
        ),
        (
            "by tag: reject, requeue",
            |channel, _| channel.basic_reject(Reject::new(5).requeue(Requeue::Yes)),
            1,
            ALL,
        ),
        (
            "by tag: what is not said",
            |channel, _| channel.basic_nack(5).and_then(|()| channel.basic_reject(6)),
            2,
            ALL,
        ),
    ];
    on_each_broker(|broker| {
        let (connection, observer) = broker.channel();
        for (form, settle, at_once, left) in &forms {
            fill(&observer)?;
            let channel = connection.channel()?;
            let all = take_all(&channel)?;
            settle(&channel, &all).unwrap_or_else(|error| panic!("{form}: {error}"));
            channel.flow(true)?;
            holds(&observer, "q", *at_once);
            channel.close()?;
            holds(&observer, "q", left.len() as u32);
            let mut found = Vec::new();
            while let Some(message) = observer.basic_get(Get::new("q").no_ack(true))? {
                assert!(message.redelivered(), "{form}");
                found.push(number(&message));
            }
            found.sort();
            assert_eq!(found, *left, "{form}");
        }
        Ok(())
    });
}

/// Row 81: settled twice, by whatever form and through whatever clone, is caught here: nothing is sent, which
/// the broker would answer with 406.
#[test]
fn settling_twice_is_caught_locally() {
    on_each_broker(|broker| {
        let proxy = broker.proxy();
        let connection = Connection::open(broker.config_through(proxy.address))?;
        let channel = connection.channel()?;
        fill(&channel)?;
        let all = take_all(&channel)?;
        all[4].ack_multiple()?;
        all[6].clone().nack(Requeue::No)?;
        channel.flow(true)?;
        let before = proxy.wait_quiet(Direction::ToBroker, Duration::from_millis(50));
        for delivery in all[..5].iter().chain([&all[6]]) {
            let (clone, tag) = (delivery.clone(), delivery.delivery_tag());
            assert_settled(delivery.ack(), tag);
            assert_settled(clone.ack_multiple(), tag);
            assert_settled(delivery.nack(Requeue::Yes), tag);
            assert_settled(delivery.nack_multiple(Requeue::Yes), tag);
            assert_settled(clone.reject(Requeue::Yes), tag);
            assert_settled(channel.basic_ack(tag), tag);
            assert_settled(channel.basic_nack(tag), tag);
            assert_settled(channel.basic_reject(tag), tag);
        }
        // Tags that never were.
        assert_settled(channel.basic_ack(99), 99);
        assert_settled(channel.basic_ack(Ack::new(99).multiple(true)), 99);
        assert_settled(channel.basic_ack(0), 0);
        assert_eq!(proxy.passed(Direction::ToBroker), before, "nothing was sent");

        all[9].ack_multiple()?;
        assert_settled(all[5].ack(), 6);
        // Nothing is outstanding, so there is nothing to say.
        channel.basic_ack(Ack::new(0).multiple(true))?;
        // Row 83: the barrier surfaces nothing.
        assert!(channel.flow(true)?);

        // Of a consumer without acks nothing can be settled.
        fill(&channel)?;
        let mut consumer = channel.basic_consume(Consume::new("q").no_ack(true))?;
        let delivery = consumer.next().unwrap()?;
        assert!(matches!(delivery.ack(), Err(Error::Invalid(_))));
        assert_settled(channel.basic_ack(delivery.delivery_tag()), delivery.delivery_tag());
        channel.flow(true).map(drop)
    });
}

/// Row 81: an ack goes out by itself, also when nothing else is ever sent, and from any thread.
#[test]
fn an_ack_is_sent_without_a_later_call() {
    on_each_broker(|broker| {
        let proxy = broker.proxy();
        let connection = Connection::open(broker.config_through(proxy.address).heartbeat(Duration::ZERO))?;
        let channel = connection.channel()?;
        fill(&channel)?;
        let all = take_all(&channel)?;
        channel.flow(true)?;
        // The proxy counts what it has passed on, so the barrier's own frame may be counted after its answer.
        let before = proxy.wait_quiet(Direction::ToBroker, Duration::from_millis(50));
        thread::spawn(move || all.iter().try_for_each(Delivery::ack)).join().unwrap()?;
        // A frame of 21 bytes each.
        proxy.wait_passed(Direction::ToBroker, before + 21 * MESSAGES);
        assert_eq!(proxy.passed(Direction::ToBroker), before + 21 * MESSAGES);
        Ok(())
    });
}

/// Row 82: deliveries of a channel that was opened again are reported, and never touch a new message with
/// the same tag; also those of `basic_get`, and `multiple`.
#[test]
fn an_old_ack_never_touches_a_new_message() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        fill(&channel)?;
        let old = take_all(&channel)?;
        channel.close()?;
        assert!(matches!(old[0].ack(), Err(error) if error.is_closed()));
        channel.reopen()?;
        holds(&channel, "q", MESSAGES as u32);
        let got = channel.basic_get("q")?.unwrap();
        channel.close()?;
        channel.reopen()?;
        holds(&channel, "q", MESSAGES as u32);

        let new = take_all(&channel)?;
        assert_eq!((new[0].delivery_tag(), new[9].delivery_tag()), (1, 10));
        for stale in old.iter().chain([&got]) {
            let tag = stale.delivery_tag();
            assert_settled(stale.ack(), tag);
            assert_settled(stale.ack_multiple(), tag);
            assert_settled(stale.nack_multiple(Requeue::No), tag);
            assert_settled(stale.reject(Requeue::No), tag);
        }
        new[0].ack()?;
        channel.close()?;
        channel.reopen()?;
        holds(&channel, "q", MESSAGES as u32 - 1);
        Ok(())
    });
}

/// `basic_recover` brings back what is not settled; RabbitMQ does not know the other form.
#[test]
fn what_is_recovered_comes_again() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        fill(&channel)?;
        let mut consumer = channel.basic_consume("q")?;
        let all: Vec<Delivery> = consumer.by_ref().take(MESSAGES as usize).collect::<Result<_>>()?;
        all[2].ack_multiple()?;
        channel.basic_recover(Requeue::Yes)?;
        let mut again: Vec<Delivery> = consumer.by_ref().take(7).collect::<Result<_>>()?;
        again.sort_by_key(number);
        assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8, 9]);
        assert!(again.iter().all(Delivery::redelivered));
        for old in &all {
            assert_settled(old.ack(), old.delivery_tag());
        }
        again.iter().try_for_each(Delivery::ack)?;
        drop(consumer);
        stays_at(&channel, "q", 0);

        let error = channel.basic_recover(Requeue::No).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NotImplemented), "{error}");
        assert!(!connection.is_open());
        Ok(())
    });
}

/// Row 80: what is not UTF-8 survives, can be looked at, and can be settled.
#[test]
fn bytes_that_are_no_text_survive() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let bytes = [0xFF, 0x00, 0xC3, 0x28];
        let properties = BasicProperties::new().header("x", FieldValue::LongString(bytes.to_vec()));
        channel.basic_publish("", "q", Publish::new(&bytes).properties(&properties))?;
        let delivery = channel.basic_consume("q")?.next().unwrap()?;
        assert_eq!((delivery.body(), delivery.as_ref()), (&bytes[..], &bytes[..]));
        assert!(matches!(delivery.text(), Err(Error::Malformed(_))));
        let headers = delivery.headers()?;
        assert_eq!(headers.get("x"), Some(&FieldValue::LongString(bytes.to_vec())));
        assert_eq!(headers.get("x").and_then(FieldValue::as_str), None);
        assert_eq!(delivery.routing_key_bytes(), b"q");
        delivery.reject(Requeue::No)?;
        stays_at(&channel, "q", 0);
        Ok(())
    });
}
