//! Confirms by real brokers.

use std::{
    thread,
    time::{Duration, Instant},
};

use leveret::{
    BasicProperties, Connection, Error, Event, FieldTable, FieldValue, Outcome, Overflow, Publish,
    QueueDeclare, ReplyCode, Result, Returned,
};

use super::common::{
    brokers::on_each_broker,
    limits::PROMPT,
    proxy::{Cut, Direction},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Properties of every kind, and a header that brokers take out.
fn properties() -> BasicProperties {
    let mut table = FieldTable::new();
    table.insert("inner", "text");
    BasicProperties::new()
        .content_type("text/plain")
        .content_encoding("identity")
        .persistent()
        .priority(3)
        .correlation_id("7")
        .reply_to("answers")
        .expiration("60000")
        .message_id("id")
        .timestamp(1_700_000_000_u64)
        .type_("order")
        .user_id("guest")
        .app_id("test")
        .header("text", "x")
        .header("number", 5)
        .header("long", i64::MAX)
        .header("flag", true)
        .header("double", 1.5)
        .header("nothing", FieldValue::Void)
        .header("table", table)
}

/// Some brokers put headers into another order.
fn assert_same(mut back: BasicProperties, mut sent: BasicProperties) {
    let mut headers = [&mut back, &mut sent].map(|properties| {
        let table = properties.headers.take().unwrap();
        table.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect::<Vec<_>>()
    });
    assert_eq!(back, sent);
    headers.iter_mut().for_each(|headers| headers.sort_by(|(one, _), (other, _)| one.cmp(other)));
    assert_eq!(headers[0], headers[1]);
}

fn returned(result: Result<()>) -> Returned {
    match result {
        Err(Error::Returned(returned)) => (*returned).clone(),
        other => panic!("{other:?}"),
    }
}

/// Row 60: every outcome of a publish, by the broker that makes it.
#[test]
fn each_outcome_of_a_confirmed_publish() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let refused = channel.publish_confirmed("", "q", "too early").unwrap_err();
        assert!(matches!(refused, Error::Invalid(_)), "{refused:?}");
        channel.confirm_select()?;
        channel.confirm_select()?;

        channel.queue_declare("q")?;
        channel.publish_confirmed("", "q", "acked")?;
        assert_eq!(channel.basic_get("q")?.unwrap().body(), b"acked");
        channel.publish_confirmed("", "nowhere", "dropped, and acked all the same")?;

        let properties = properties();
        let message = Publish::new("returned").properties(&properties).mandatory(true);
        let back = returned(channel.publish_confirmed("amq.direct", "nowhere", message));
        assert_eq!((back.code, &*back.text), (ReplyCode::NoRoute, "NO_ROUTE"));
        assert_eq!((&*back.exchange, &*back.routing_key), ("amq.direct", "nowhere"));
        assert_eq!(back.body, b"returned");
        assert_same(back.properties()?, properties);

        let full = QueueDeclare::new("full").max_length(1).overflow(Overflow::RejectPublish);
        channel.queue_declare(full)?;
        channel.publish_confirmed("", "full", "the only one")?;
        let refused = channel.publish_confirmed("", "full", "one too many").unwrap_err();
        assert!(matches!(refused, Error::Nacked) && refused.can_retry(), "{refused:?}");
        let handle = channel.deferred().basic_publish("", "full", "one too many")?;
        assert!(matches!(handle.wait(), Outcome::Nacked));
        // All of these were told.
        channel.wait_for_confirms(PATIENCE)?;

        let missing = channel.publish_confirmed("missing", "q", "lost").unwrap_err();
        assert_eq!((missing.reply_code(), missing.is_soft()), (Some(ReplyCode::NotFound), true));
        let later = channel.publish_confirmed("", "q", "later").unwrap_err();
        assert_eq!(later.to_string(), missing.to_string());
        channel.reopen()?;
        channel.confirm_select()?;
        channel.publish_confirmed("", "q", "again")?;
        connection.close()
    });
}

/// Rows 60, 62: a return is the outcome of its own publish also when the broker sends back other properties than
/// were published: it takes a BCC header out.
#[test]
fn a_return_is_attributed_although_the_broker_changed_it() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.confirm_select()?;
        let properties = properties()
            .header("CC", vec![FieldValue::from("nowhere either")])
            .header("BCC", vec![FieldValue::from("nor here")]);
        let message = Publish::new("returned").properties(&properties).mandatory(true);
        let back = returned(channel.publish_confirmed("amq.direct", "nowhere", message));
        assert_eq!(back.body, b"returned");
        channel.check_returned()?;
        connection.close()
    });
}

/// Rows 60, 61, 62: under load acks come out of order; each handle gets its own, with returns and nacks between.
#[test]
fn every_handle_resolves_under_load() {
    const THREADS: usize = 8;
    const PUBLISHES: usize = 400;
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.confirm_select()?;
        channel.queue_declare(QueueDeclare::new("durable").durable(true))?;
        channel.queue_declare("transient")?;
        channel.queue_declare(QueueDeclare::new("full").max_length(1).overflow(Overflow::RejectPublish))?;
        channel.publish_confirmed("", "full", "the only one")?;
        let mut events = connection.events();
        let persistent = BasicProperties::new().persistent();
        let publisher = |thread: usize| -> Result<()> {
            let mut handles = Vec::new();
            for number in 0..PUBLISHES {
                let body = format!("{thread} {number}");
                let message = Publish::new(&body).properties(&persistent).mandatory(number % 3 == 0);
                let queue = ["durable", "transient", "transient", "full", "nowhere"][number % 5];
                handles.push((number, body.clone(), channel.deferred().basic_publish("", queue, message)?));
                if number % 50 == 0 {
                    channel.basic_publish("", "durable", message.mandatory(false))?;
                }
            }
            for (number, body, handle) in handles {
                match (handle.wait(), number % 5, number % 3 == 0) {
                    (Outcome::Acked, 0..=2, _) | (Outcome::Nacked, 3, _) | (Outcome::Acked, 4, false) => {}
                    (Outcome::Returned(returned), 4, true) => assert_eq!(returned.body, body.as_bytes()),
                    other => panic!("{thread} {number}: {other:?}"),
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let publisher = &publisher;
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || publisher(thread))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap())
        })?;
        channel.wait_for_confirms(PATIENCE)?;
        assert_eq!(channel.unconfirmed(), 0);
        let (mut highest, mut behind) = (0, 0);
        while let Some(event) = events.try_next() {
            if let Event::Confirmed { sequence_number, .. } = event {
                behind += usize::from(sequence_number < highest);
                highest = highest.max(sequence_number);
            }
        }
        eprintln!("{}: {behind} confirms came behind a later one", broker.name);
        connection.close()
    });
}

/// Rows 14, 61: the connection is cut with much on its way: what was not acked is listed, and what is listed as
/// acked is in the queue.
#[test]
fn what_was_on_its_way_when_the_connection_was_cut_is_unknown() {
    on_each_broker(|broker| {
        for (round, cut) in [Cut::Reset, Cut::Fin, Cut::Reset].into_iter().enumerate() {
            let queue = format!("q{round}");
            let (_connection, control) = broker.channel();
            control.queue_declare(&*queue)?;
            let proxy = broker.proxy();
            let connection = Connection::open(broker.config_through(proxy.address))?;
            let channel = connection.channel()?;
            channel.confirm_select()?;
            let so_far = proxy.passed(Direction::ToBroker);
            proxy.cut_at(Direction::ToBroker, so_far + 10_000 * (round as u64 + 1), cut);
            let mut handles = Vec::new();
            while let Ok(handle) = channel.deferred().basic_publish("", &queue, "message") {
                handles.push(handle);
            }
            let started = Instant::now();
            let accepted = handles.len() as u32;
            let acked = handles
                .into_iter()
                .map(|handle| match handle.wait() {
                    Outcome::Acked => 1,
                    Outcome::Unknown(error) if error.is_hard() => 0,
                    other => panic!("{other:?}"),
                })
                .sum::<u32>();
            assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
            assert!(acked < accepted, "something was on its way");
            assert_eq!(channel.unconfirmed(), 0);
            assert!(connection.close().is_err());
            let in_queue = control.queue_declare(leveret::QueueDeclare::new(&queue))?.message_count;
            assert!(in_queue >= acked, "{in_queue} of {acked} acked messages");
        }
        Ok(())
    });
}
