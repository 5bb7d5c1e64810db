//! Exchanges, queues and bindings on real brokers: every declaration, in both forms, and its refusals.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::{
    brokers::on_each_broker,
    proxy::Direction,
    queues::{holds, stays_at},
};
use leveret::{
    BasicProperties, Channel, Connection, Consume, Error, ExchangeBind, ExchangeDeclare, ExchangeDelete,
    ExchangeKind, ExchangeUnbind, FieldTable, FieldValue, Get, Overflow, Publish, QueueBind, QueueDeclare,
    QueueDelete, QueuePurge, QueueType, QueueUnbind, ReplyCode, Requeue, Result, Scope,
};

/// Row 40: each kind of exchange is declared, found, routes as it should, and is deleted.
#[test]
fn exchanges_of_every_kind_route() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        let kinds = [
            // The binding's key, a key that matches, and one that does not.
            (ExchangeKind::Direct, "red", "red", Some("blue")),
            (ExchangeKind::Fanout, "", "anything", None),
            (ExchangeKind::Topic, "eu.*.new", "eu.order.new", Some("eu.new")),
            (ExchangeKind::Topic, "eu.#", "eu", Some("us")),
            (ExchangeKind::Other("direct"), "red", "red", Some("blue")),
            ("fanout".into(), "", "anything", None),
        ];
        for (kind, binding, hit, miss) in kinds {
            channel.exchange_declare(ExchangeDeclare::new("e", kind))?;
            channel.exchange_declare_passive("e")?;
            channel.queue_declare("q")?;
            channel.queue_bind(("q", "e", binding))?;
            channel.basic_publish("e", hit, "hit")?;
            miss.into_iter().try_for_each(|key| channel.basic_publish("e", key, "miss"))?;
            holds(&channel, "q", 1);
            channel.queue_unbind(("q", "e", binding))?;
            channel.basic_publish("e", hit, "unbound")?;
            stays_at(&channel, "q", 1);
            assert_eq!(channel.queue_delete("q")?, 1, "{kind:?}");
            channel.exchange_delete("e")?;
            // RabbitMQ does not mind.
            channel.exchange_delete("e")?;
        }

        channel.exchange_declare(ExchangeDeclare::new("h", ExchangeKind::Headers))?;
        channel.queue_declare("q")?;
        let bind = QueueBind::new("q", "h", "").argument("x-match", "all").argument("size", 7);
        channel.queue_bind(bind)?;
        let fitting = BasicProperties::new().header("size", 7);
        channel.basic_publish("h", "", Publish::new("hit").properties(&fitting))?;
        channel.basic_publish("h", "", "miss")?;
        holds(&channel, "q", 1);
        let unbind = QueueUnbind::new("q", "h", "").argument("x-match", "all").argument("size", 7);
        channel.queue_unbind(unbind)?;
        channel.basic_publish("h", "", Publish::new("unbound").properties(&fitting))?;
        stays_at(&channel, "q", 1);
        Ok(())
    });
}

/// Row 40: durable, auto-delete, internal and alternate exchanges; bindings between exchanges.
#[test]
fn exchanges_take_their_options_and_bind_to_each_other() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let fanout = |name| ExchangeDeclare::new(name, ExchangeKind::Fanout);
        channel.exchange_declare(fanout("target"))?;
        channel.queue_declare("q")?;
        channel.queue_bind(("q", "target", ""))?;

        channel.exchange_declare(ExchangeDeclare::new("source", ExchangeKind::Topic).durable(true))?;
        channel.exchange_bind(ExchangeBind::new("target", "source", "eu.*"))?;
        channel.basic_publish("source", "eu.new", "bound")?;
        holds(&channel, "q", 1);
        assert_eq!(channel.queue_purge("q")?, 1);
        let in_use = connection.channel()?;
        let error = in_use.exchange_delete(ExchangeDelete::new("source").if_unused(true)).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::PreconditionFailed), "{error}");
        channel.exchange_unbind(ExchangeUnbind::new("target", "source", "eu.*"))?;
        channel.basic_publish("source", "eu.new", "unbound")?;
        stays_at(&channel, "q", 0);
        channel.exchange_delete(ExchangeDelete::new("source").if_unused(true))?;

        channel.exchange_declare(
            ExchangeDeclare::new("picky", ExchangeKind::Direct).alternate_exchange("target"),
        )?;
        channel.basic_publish("picky", "nobody", "goes on")?;
        holds(&channel, "q", 1);

        // Durability is part of what has to be the same.
        let again = connection.channel()?;
        let error = again.exchange_declare(fanout("target").durable(true)).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::PreconditionFailed), "{error}");

        channel.exchange_declare(fanout("passing").auto_delete(true))?;
        channel.exchange_bind(ExchangeBind::new("target", "passing", ""))?;
        channel.exchange_unbind(ExchangeUnbind::new("target", "passing", ""))?;
        assert_eq!(
            connection.channel()?.exchange_declare_passive("passing").unwrap_err().reply_code(),
            Some(ReplyCode::NotFound)
        );

        channel.exchange_declare(fanout("inner").internal(true))?;
        channel.basic_publish("inner", "", "refused")?;
        assert_eq!(channel.flow(true).unwrap_err().reply_code(), Some(ReplyCode::AccessRefused));
        Ok(())
    });
}

/// Rows 40, 41: the queue family with its typed replies; an empty name is filled in by the broker.
#[test]
fn queues_are_declared_counted_purged_and_deleted() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let declared = channel.queue_declare(QueueDeclare::new("q").durable(true))?;
        assert_eq!((&*declared.queue, declared.message_count, declared.consumer_count), ("q", 0, 0));
        for body in ["one", "two", "three"] {
            channel.basic_publish("", "q", body)?;
        }
        holds(&channel, "q", 3);
        let consuming = connection.channel()?;
        let consumer = consuming.basic_consume(Consume::new("q"))?;
        let found = channel.queue_declare_passive("q")?;
        assert_eq!(found.consumer_count, 1);
        let in_use = connection.channel()?;
        let error = in_use.queue_delete(QueueDelete::new("q").if_unused(true)).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::PreconditionFailed), "{error}");
        drop(consumer);
        consuming.close()?;

        let full = connection.channel()?;
        let error = full.queue_delete(QueueDelete::new("q").if_empty(true)).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::PreconditionFailed), "{error}");
        holds(&channel, "q", 3);
        assert_eq!(channel.queue_purge("q")?, 3);
        assert_eq!(channel.queue_purge(QueuePurge::new("q"))?, 0);
        channel.basic_publish("", "q", "last")?;
        holds(&channel, "q", 1);
        assert_eq!(channel.queue_delete("q")?, 1);
        assert_eq!(channel.queue_delete(QueueDelete::new("q").if_unused(true).if_empty(true))?, 0);

        let (first, second) = (channel.queue_declare("")?.queue, channel.queue_declare("")?.queue);
        assert!(first.starts_with("amq.gen-") && second.starts_with("amq.gen-") && first != second);
        channel.basic_publish("", &first, "found")?;
        holds(&channel, &first, 1);

        channel.queue_declare(QueueDeclare::new("passing").auto_delete(true))?;
        drop(channel.basic_consume("passing")?);
        assert_eq!(
            channel.queue_declare_passive("passing").unwrap_err().reply_code(),
            Some(ReplyCode::NotFound)
        );
        Ok(())
    });
}

/// Row 40: the forms that are not answered; what goes wrong shows at the barrier.
#[test]
fn declarations_need_no_answer() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        let no_wait = channel.no_wait();
        no_wait.exchange_declare(ExchangeDeclare::new("source", ExchangeKind::Fanout))?;
        no_wait.exchange_declare(ExchangeDeclare::new("target", ExchangeKind::Fanout))?;
        no_wait.exchange_bind(ExchangeBind::new("target", "source", ""))?;
        no_wait.queue_declare("q")?;
        no_wait.queue_bind(("q", "target", ""))?;
        channel.basic_publish("source", "", "routed")?;
        holds(&channel, "q", 1);
        no_wait.queue_purge("q")?;
        no_wait.exchange_unbind(ExchangeUnbind::new("target", "source", ""))?;
        channel.basic_publish("source", "", "unbound")?;
        stays_at(&channel, "q", 0);
        no_wait.exchange_delete("target")?;
        no_wait.queue_delete("q")?;
        channel.flow(true)?;

        let unnamed = no_wait.queue_declare("").unwrap_err();
        assert!(matches!(unnamed, Error::Invalid(_)), "{unnamed:?}");

        for gone in ["target", "q"] {
            match gone {
                "q" => no_wait.queue_bind((gone, "source", ""))?,
                _ => no_wait.exchange_bind(ExchangeBind::new(gone, "source", ""))?,
            }
            let error = channel.flow(true).unwrap_err();
            assert_eq!(error.reply_code(), Some(ReplyCode::NotFound), "{error}");
            channel.reopen()?;
        }
        Ok(())
    });
}

/// Row 41: what the broker refuses comes back at the call that caused it, with its own code and text.
#[test]
fn refusals_come_back_at_the_call() {
    fn refused<T: std::fmt::Debug>(
        connection: &Connection,
        code: ReplyCode,
        method: &str,
        text: &str,
        call: impl FnOnce(&Channel) -> Result<T>,
    ) {
        let channel = connection.channel().unwrap();
        let error = call(&channel).unwrap_err();
        let Error::Refused(refusal) = &error else { panic!("{error:?}") };
        assert_eq!(
            (refusal.scope, refusal.code, &*refusal.method),
            (Scope::Channel, code, method),
            "{error}"
        );
        assert!(refusal.text.starts_with(text), "{error}");
        assert!(error.is_soft());
        assert_eq!(error.can_retry(), code == ReplyCode::ResourceLocked);
    }

    on_each_broker(|broker| {
        let owner = broker.connect();
        let channel = owner.channel()?;
        channel.queue_declare(QueueDeclare::new("mine").exclusive(true))?;
        channel.queue_declare("q")?;
        channel.exchange_declare(ExchangeDeclare::new("e", ExchangeKind::Direct))?;
        let other = broker.connect();
        let (not_found, locked) = (ReplyCode::NotFound, ReplyCode::ResourceLocked);
        let (failed, forbidden) = (ReplyCode::PreconditionFailed, ReplyCode::AccessRefused);

        let text = "NOT_FOUND - no queue 'none' in vhost";
        refused(&other, not_found, "queue.declare", text, |channel| channel.queue_declare_passive("none"));
        refused(&other, not_found, "queue.bind", text, |channel| channel.queue_bind(("none", "e", "")));
        refused(&other, not_found, "queue.purge", text, |channel| channel.queue_purge("none"));
        refused(&other, not_found, "basic.consume", text, |channel| channel.basic_consume("none"));
        refused(&other, not_found, "basic.get", text, |channel| channel.basic_get("none"));
        let text = "NOT_FOUND - no exchange 'none' in vhost";
        refused(&other, not_found, "exchange.declare", text, |channel| {
            channel.exchange_declare_passive("none")
        });
        refused(&other, not_found, "queue.bind", text, |channel| channel.queue_bind(("q", "none", "")));
        refused(&other, not_found, "exchange.bind", text, |channel| {
            channel.exchange_bind(ExchangeBind::new("e", "none", ""))
        });

        let text = "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine'";
        refused(&other, locked, "queue.declare", text, |channel| channel.queue_declare("mine"));
        refused(&other, locked, "queue.declare", text, |channel| channel.queue_declare_passive("mine"));
        refused(&other, locked, "basic.consume", text, |channel| channel.basic_consume("mine"));
        refused(&other, locked, "queue.delete", text, |channel| channel.queue_delete("mine"));

        let text = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q'";
        refused(&other, failed, "queue.declare", text, |channel| {
            channel.queue_declare(QueueDeclare::new("q").durable(true))
        });
        let text = "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'e'";
        refused(&other, failed, "exchange.declare", text, |channel| {
            channel.exchange_declare(ExchangeDeclare::new("e", ExchangeKind::Fanout))
        });

        refused(&other, forbidden, "queue.declare", "ACCESS_REFUSED", |channel| {
            channel.queue_declare("amq.q")
        });
        refused(&other, forbidden, "exchange.declare", "ACCESS_REFUSED", |channel| {
            channel.exchange_declare(ExchangeDeclare::new("amq.e", ExchangeKind::Direct))
        });
        let text = "ACCESS_REFUSED - operation not permitted on the default exchange";
        refused(&other, forbidden, "queue.bind", text, |channel| channel.queue_bind(("q", "", "key")));

        // A type that it does not know costs the connection, since release 4 only the channel.
        let error = other
            .channel()?
            .exchange_declare(ExchangeDeclare::new("odd", ExchangeKind::Other("x-odd")))
            .unwrap_err();
        match error.reply_code() {
            Some(ReplyCode::CommandInvalid) => assert!(error.is_hard() && !other.is_open()),
            Some(ReplyCode::PreconditionFailed) => assert!(error.is_soft() && other.is_open()),
            _ => panic!("{error}"),
        }
        channel.queue_declare("q").map(drop)
    });
}

/// Row 42: the typed helpers say to the broker what they mean, and leave room for others.
#[test]
fn typed_arguments_reach_the_broker() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare(
            QueueDeclare::new("classic")
                .queue_type(QueueType::Classic)
                .message_ttl(Duration::from_secs(60))
                .expires(Duration::from_millis(3_600_000))
                .max_length(7)
                .max_length_bytes(5_000_000_000)
                .overflow(Overflow::RejectPublish)
                .dead_letter_exchange("dlx")
                .dead_letter_routing_key("dead")
                .max_priority(9)
                .single_active_consumer()
                .argument("x-mine", true),
        )?;
        let known = broker.arguments_of("classic");
        for argument in [
            r#""x-queue-type":"classic""#,
            r#""x-message-ttl":60000"#,
            r#""x-expires":3600000"#,
            r#""x-max-length":7"#,
            r#""x-max-length-bytes":5000000000"#,
            r#""x-overflow":"reject-publish""#,
            r#""x-dead-letter-exchange":"dlx""#,
            r#""x-dead-letter-routing-key":"dead""#,
            r#""x-max-priority":9"#,
            r#""x-single-active-consumer":true"#,
            r#""x-mine":true"#,
        ] {
            assert!(known.contains(argument), "{argument} in {known}");
        }
        channel.queue_declare(QueueDeclare::new("lazy").lazy().overflow(Overflow::DropHead))?;
        let known = broker.arguments_of("lazy");
        assert!(known.contains(r#""x-queue-mode":"lazy""#) && known.contains("drop-head"), "{known}");

        channel.queue_declare(QueueDeclare::new("quorum").quorum().delivery_limit(5))?;
        let known = broker.arguments_of("quorum");
        assert!(known.contains(r#""x-queue-type":"quorum""#), "{known}");
        assert!(known.contains(r#""x-delivery-limit":5"#), "{known}");

        channel.queue_declare(QueueDeclare::new("stream").stream())?;
        assert!(broker.arguments_of("stream").contains(r#""x-queue-type":"stream""#));

        let error = channel.queue_declare(QueueDeclare::new("odd").queue_type(QueueType::Other("x-odd")));
        assert!(matches!(error.unwrap_err(), Error::Refused(_)));
        Ok(())
    });
}

/// Row 42: and mean what they say.
#[test]
fn typed_arguments_have_their_effect() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("dead")?;
        let short =
            QueueDeclare::new("short").max_length(2).dead_letter_exchange("").dead_letter_routing_key("dead");
        channel.queue_declare(short)?;
        for body in ["one", "two", "three"] {
            channel.basic_publish("", "short", body)?;
        }
        let mut dead = channel.basic_consume("dead")?;
        let pushed_out = dead.next().unwrap()?;
        assert_eq!((pushed_out.text()?, &*pushed_out.routing_key()), ("one", "dead"));
        channel.basic_get("short")?.unwrap().reject(Requeue::No)?;
        assert_eq!(dead.next().unwrap()?.text()?, "two");

        let mut expiring = QueueDeclare::new("expiring").message_ttl(Duration::ZERO).dead_letter_exchange("");
        expiring = expiring.dead_letter_routing_key("dead");
        channel.queue_declare(expiring)?;
        channel.basic_publish("", "expiring", "late")?;
        let expired = dead.next().unwrap()?;
        assert_eq!(expired.text()?, "late");
        // The broker writes down why.
        assert!(expired.headers()?.get("x-death").is_some());

        channel.queue_declare(QueueDeclare::new("sorted").max_priority(3))?;
        for priority in [1, 3, 2] {
            let properties = BasicProperties::new().priority(priority);
            channel.basic_publish("", "sorted", Publish::new(&[priority]).properties(&properties))?;
        }
        holds(&channel, "sorted", 3);
        let mut order = Vec::new();
        while let Some(message) = channel.basic_get(Get::new("sorted").no_ack(true))? {
            order.extend_from_slice(message.body());
        }
        assert_eq!(order, [3, 2, 1]);
        Ok(())
    });
}

/// Row 43: what cannot be said is refused before a byte is sent, and the channel stays usable.
#[test]
fn what_cannot_be_encoded_is_refused_before_a_byte_is_sent() {
    on_each_broker(|broker| {
        let proxy = broker.proxy();
        let connection = Connection::open(broker.config_through(proxy.address))?;
        let channel = connection.channel()?;
        channel.flow(true)?;
        let before = proxy.wait_quiet(Direction::ToBroker, Duration::from_millis(50));

        let long = &*"n".repeat(256);
        let huge = "v".repeat(140_000);
        let mut deep = FieldValue::from(1);
        for _ in 0..40 {
            deep = FieldValue::Array(vec![deep]);
        }
        let mut table = FieldTable::new();
        table.insert(long, 1);
        let no_wait = channel.no_wait();
        let property = |properties: BasicProperties| {
            channel.basic_publish("", "q", Publish::new("x").properties(&properties)).err()
        };
        let refused = [
            channel.queue_declare(long).err(),
            channel.queue_declare_passive(long).err(),
            channel.queue_bind((long, "e", "k")).err(),
            channel.queue_bind(("q", long, "k")).err(),
            channel.queue_bind(("q", "e", long)).err(),
            channel.queue_unbind((long, "e", "k")).err(),
            channel.queue_unbind(("q", "e", long)).err(),
            channel.queue_purge(long).err(),
            channel.queue_delete(long).err(),
            channel.exchange_declare(ExchangeDeclare::new(long, "direct")).err(),
            channel.exchange_declare(ExchangeDeclare::new("e", long)).err(),
            channel.exchange_declare_passive(long).err(),
            channel.exchange_delete(long).err(),
            channel.exchange_bind(ExchangeBind::new(long, "e", "k")).err(),
            channel.exchange_unbind(ExchangeUnbind::new("e", "e", long)).err(),
            channel.basic_consume(long).err(),
            channel.basic_consume(Consume::new("q").consumer_tag(long)).err(),
            channel.basic_cancel(long).err(),
            channel.basic_get(long).err(),
            channel.basic_publish(long, "k", "x").err(),
            channel.basic_publish("", long, "x").err(),
            channel.basic_publish("", long, &vec![0; 300_000]).err(),
            channel.try_publish("", long, "x").err(),
            no_wait.queue_declare(long).err(),
            no_wait.queue_bind(("q", "e", long)).err(),
            no_wait.exchange_delete(long).err(),
            // Arguments and headers that nest too deeply, have too long a name, or do not fit a frame.
            channel.queue_declare(QueueDeclare::new("q").argument("deep", deep.clone())).err(),
            channel.queue_declare(QueueDeclare::new("q").argument(long, 1)).err(),
            channel.queue_declare(QueueDeclare::new("q").argument("table", table.clone())).err(),
            channel.queue_declare(QueueDeclare::new("q").argument("huge", &*huge)).err(),
            channel.basic_consume(Consume::new("q").argument("huge", &*huge)).err(),
            property(BasicProperties::new().header("deep", deep)),
            property(BasicProperties::new().header(long, 1)),
            property(BasicProperties::new().header("table", table)),
            property(BasicProperties::new().header("huge", &*huge)),
            property(BasicProperties::new().content_type(long)),
            property(BasicProperties::new().correlation_id(long)),
            property(BasicProperties::new().message_id(long)),
        ];
        for (index, error) in refused.into_iter().enumerate() {
            assert!(matches!(error, Some(Error::Invalid(_))), "{index}: {error:?}");
        }
        assert_eq!(proxy.passed(Direction::ToBroker), before, "nothing was sent");

        // What is just short enough is not refused.
        let name = &long[..255];
        assert_eq!(channel.queue_declare(name)?.queue, name);
        let properties = BasicProperties::new().header("large", &huge[..130_000]);
        channel.basic_publish("", name, Publish::new("x").properties(&properties))?;
        assert_eq!(channel.basic_get(name)?.unwrap().properties()?, properties);
        Ok(())
    });
}
