//! A broker that is restarted. The only test of its program, because it ends every connection of the broker.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{brokers::on_each_broker, queues::holds};
use leveret::{BasicProperties, Error, Publish, QueueDeclare, ReplyCode};

/// Row 14: the broker says 320 to everyone; afterwards a new connection finds what is durable.
#[test]
fn a_restarted_broker_says_goodbye_and_can_be_used_again() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare(QueueDeclare::new("durable").durable(true))?;
        channel.queue_declare(QueueDeclare::new("mine").exclusive(true))?;
        let persistent = BasicProperties::new().persistent();
        channel.basic_publish("", "durable", Publish::new("kept").properties(&persistent))?;
        channel.basic_publish("", "durable", "lost")?;
        holds(&channel, "durable", 2);
        let mut consumer = channel.basic_consume("mine")?;

        broker.restart();
        let errors = [
            consumer.next().unwrap().unwrap_err(),
            channel.basic_publish("", "durable", "too late").unwrap_err(),
            channel.queue_declare("durable").unwrap_err(),
            connection.wait_closed(),
            connection.close().unwrap_err(),
        ];
        for error in errors {
            let Error::Refused(refusal) = &error else { panic!("{error:?}") };
            assert_eq!(refusal.code, ReplyCode::ConnectionForced);
            assert!(refusal.text.contains("shutdown"), "{error}");
            assert!(error.is_hard() && error.can_retry());
        }

        let (_connection, channel) = broker.channel();
        holds(&channel, "durable", 1);
        let kept = channel.basic_get("durable")?.unwrap();
        assert_eq!(kept.text()?, "kept");
        kept.ack()
    });
}
