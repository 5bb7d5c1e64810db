//! One wait over many consumers, against real brokers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{collections::HashMap, thread, time::Duration};

use common::{brokers::on_each_broker, limits::PROMPT, queues::holds};
use leveret::{Channel, Consumer, Error, Result, select, select_timeout};

/// Far more than anything here takes.
const LONG: Duration = PROMPT;

fn consumer(channel: &Channel, queue: &str) -> Result<Consumer> {
    channel.queue_declare(queue)?;
    channel.basic_consume(queue)
}

/// Row 75: several consumers at once, across channels and connections; none is kept from being heard.
#[test]
fn one_wait_serves_consumers_of_two_connections_in_turn() {
    on_each_broker(|broker| {
        let (left, right) = (broker.connect(), broker.connect());
        let (one, two) = (left.channel()?, right.channel()?);
        let mut consumers = [consumer(&one, "a")?, consumer(&one, "b")?, consumer(&two, "c")?];
        for queue in ["a", "b", "c"] {
            for number in 0..100 {
                one.basic_publish("", queue, &format!("{queue}{number}"))?;
            }
        }
        // All are here before the first is taken: whoever is heard is chosen, and not the only one.
        for (channel, queue) in [(&one, "a"), (&one, "b"), (&two, "c")] {
            holds(channel, queue, 0);
            channel.flow(true)?;
        }
        let mut seen: HashMap<usize, usize> = HashMap::new();
        for round in 0..300 {
            if round == 30 {
                let counts: Vec<_> = (0..3).map(|place| seen.get(&place).copied().unwrap_or(0)).collect();
                assert!(counts.iter().all(|count| *count >= 5), "each has its turn: {counts:?}");
            }
            let (place, delivery) = select_timeout(&mut consumers, LONG).expect("a delivery");
            let delivery = delivery?;
            let count = seen.entry(place).or_default();
            assert_eq!(delivery.text()?, format!("{}{count}", ["a", "b", "c"][place]), "in order");
            *count += 1;
            delivery.ack()?;
        }
        assert_eq!(seen.values().collect::<Vec<_>>(), [&100; 3]);
        assert!(select_timeout(&mut consumers, Duration::from_millis(10)).is_none());
        Ok(())
    });
}

/// Rows 72, 75: the end of one is told once, and the others go on; the end of all ends the wait.
#[test]
fn the_wait_ends_with_the_last_consumer() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let channel = connection.channel()?;
        let (mut first, mut second) = (consumer(&channel, "a")?, consumer(&channel, "b")?);
        let mut both = [&mut first, &mut second];
        channel.queue_delete("a")?;
        let (place, end) = select(&mut both).expect("the end of the first");
        assert!(place == 0 && matches!(end, Err(Error::CancelledByServer { .. })), "{end:?}");
        channel.basic_publish("", "b", "still here")?;
        let (place, delivery) = select(&mut both).expect("a delivery of the second");
        assert_eq!((place, delivery?.text()?), (1, "still here"));

        let closer = thread::spawn({
            let connection = connection.clone();
            move || connection.close()
        });
        let (place, end) = select(&mut both).expect("the end of the second");
        assert!(place == 1 && matches!(end, Err(Error::Closed(_))), "{end:?}");
        assert!(select(&mut both).is_none());
        closer.join().unwrap()
    });
}
