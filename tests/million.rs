//! A producer and a consumer that move many messages of mixed sizes: each arrives, once, whole, in order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{env, thread, time::Duration};

use common::{brokers::on_each_broker_within, messages::Stamped, queues::holds};
use leveret::Result;

/// How many messages; a million takes minutes without optimization:
/// `LEVERET_TEST_MESSAGES=1000000 tests/run -- --release --test million`.
const VARIABLE: &str = "LEVERET_TEST_MESSAGES";

fn messages() -> u64 {
    env::var(VARIABLE).map_or(100_000, |number| number.parse().expect("a number"))
}

/// Mostly small, some of a few frames; from the number, so that both sides know it.
fn length(number: u64) -> usize {
    let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    match mixed % 1000 {
        0 => 100_000 + mixed as usize % 200_000,
        1..=19 => 4_000 + mixed as usize % 12_000,
        _ => 16 + mixed as usize % 700,
    }
}

/// Rows 50, 51, 70, 81.
#[test]
fn every_message_arrives_once_whole_and_in_order() {
    let messages = messages();
    on_each_broker_within(Duration::from_secs(300 + messages / 1000), |broker| {
        let (_consuming, channel) = broker.channel();
        channel.queue_declare("q")?;
        let mut consumer = channel.basic_consume("q")?;
        let producer = {
            let broker = broker.clone();
            thread::spawn(move || -> Result<u64> {
                let (connection, channel) = broker.channel();
                let mut sum = 0;
                for number in 0..messages {
                    let message = Stamped::new(number, length(number));
                    channel.basic_publish("", "q", &message)?;
                    sum += message.sum();
                }
                channel.close()?;
                connection.close()?;
                Ok(sum)
            })
        };
        let mut sum = 0;
        for number in 0..messages {
            let delivery = consumer.next().expect("not ended")?;
            assert_eq!(Stamped::read(delivery.body()), Ok(number));
            sum += Stamped::sum_of(number, delivery.body().len());
            match number % 64 {
                _ if number < messages / 2 => delivery.ack()?,
                63 => delivery.ack_multiple()?,
                _ if number + 1 == messages => delivery.ack_multiple()?,
                _ => {}
            }
        }
        assert_eq!(producer.join().expect("no panic")?, sum);
        drop(consumer);
        channel.close()?;
        channel.reopen()?;
        holds(&channel, "q", 0);
        Ok(())
    });
}
