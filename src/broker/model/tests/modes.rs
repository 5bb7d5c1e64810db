use std::time::Duration;

use super::fixture::*;
use crate::{
    broker::model::*,
    error::{ReplyCode, Scope},
    protocol::{
        properties::BasicProperties,
        value::{FieldTable, FieldValue},
    },
};

fn mandatory<'a>(key: &'a [u8], body: &[u8]) -> Publish<'a> {
    let properties = properties(&BasicProperties::new());
    Publish {
        exchange: b"",
        routing_key: key,
        mandatory: true,
        immediate: false,
        properties,
        body: body.into(),
    }
}

#[test]
fn a_return_precedes_its_confirm() {
    let mut client = client();
    let channel = client.channel;
    client.vhost.select_confirms(channel).unwrap();
    client.vhost.publish(channel, mandatory(b"nowhere", b"m")).unwrap();
    let effects = client.vhost.take_effects();
    let [
        Effect::Return { code: ReplyCode::NoRoute, .. },
        Effect::Confirm { delivery_tag: 1, accepted: true, .. },
    ] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(
        text(client.vhost.select_transactions(channel)),
        "PRECONDITION_FAILED - cannot switch from confirm to tx mode"
    );
    let immediate = Publish { immediate: true, ..mandatory(b"q", b"") };
    let refusal = client.vhost.publish(channel, immediate).unwrap_err();
    assert_eq!((&*refusal.text, refusal.scope), ("NOT_IMPLEMENTED - immediate=true", Scope::Connection));
}

#[test]
fn a_transaction_takes_effect_as_a_whole() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    client.send("q", "old");
    assert_eq!(text(client.vhost.commit(channel)), "PRECONDITION_FAILED - channel is not transactional");
    client.vhost.select_transactions(channel).unwrap();
    client.vhost.get(channel, b"q", false).unwrap();
    client.vhost.ack(channel, 1, false).unwrap();
    client.send("q", "new");
    assert!(client.bodies("q").is_empty());
    client.vhost.rollback(channel).unwrap();
    assert!(client.bodies("q").is_empty(), "a rollback requeues nothing");
    client.vhost.nack(channel, 1, false, true).unwrap();
    client.send("q", "newer");
    client.vhost.commit(channel).unwrap();
    assert_eq!(client.bodies("q"), ["old", "newer"]);
}

/// What comes back precedes the answer to a commit, what the queues deliver follows it.
#[test]
fn a_commit_is_answered_between_returns_and_deliveries() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    client.send("q", "old");
    client.vhost.select_transactions(channel).unwrap();
    client.consume(channel, "q", "t");
    client.vhost.take_effects();
    client.send("q", "new");
    client.vhost.publish(channel, mandatory(b"nowhere", b"lost")).unwrap();
    client.vhost.nack(channel, 1, false, true).unwrap();
    client.vhost.commit(channel).unwrap();
    let effects = client.vhost.take_effects();
    let [
        Effect::Return { .. },
        Effect::Committed { .. },
        Effect::Deliver { delivery_tag: 2, redelivered: false, .. },
        Effect::Deliver { delivery_tag: 3, redelivered: true, .. },
    ] = &effects[..]
    else {
        panic!("{effects:?}")
    };
}

/// Publishes to `q` and to `other` in a transaction, deletes `q` before the commit, and says how that ends
/// and how much is returned.
fn commit_without_queue(emulate: Emulate, kind: &str, declared_again: bool) -> (Result<(), String>, usize) {
    let mut client = client_of(emulate);
    let channel = client.channel;
    client.queue("q", table([("x-queue-type", kind.into())]));
    client.queue("other", FieldTable::new());
    client.vhost.select_transactions(channel).unwrap();
    client.vhost.publish(channel, mandatory(b"q", b"lost")).unwrap();
    client.send("other", "kept");
    client.vhost.delete_queue(channel, b"q", false, false).unwrap();
    if declared_again {
        client.queue("q", FieldTable::new());
    }
    let result = client.vhost.commit(channel).map_err(|refusal| refusal.text);
    assert_eq!(client.bodies("other"), ["kept"], "the rest takes effect");
    assert_eq!(client.bodies("q").len(), usize::from(declared_again && emulate == Emulate::RabbitMq3));
    let effects = client.vhost.take_effects();
    (result, effects.iter().filter(|effect| matches!(effect, Effect::Return { .. })).count())
}

#[test]
fn a_commit_fails_without_a_classic_queue_that_was_there_at_the_publish() {
    let failed = Err("PRECONDITION_FAILED - partial tx completion".to_owned());
    assert_eq!(commit_without_queue(Emulate::RabbitMq4, "classic", false), (failed.clone(), 0));
    assert_eq!(commit_without_queue(Emulate::RabbitMq4, "classic", true), (failed, 0));
    assert_eq!(commit_without_queue(Emulate::RabbitMq4, "quorum", false), (Ok(()), 0));
}

#[test]
fn rabbitmq_3_looks_for_the_queues_at_the_commit() {
    assert_eq!(commit_without_queue(Emulate::RabbitMq3, "classic", false), (Ok(()), 1));
    assert_eq!(commit_without_queue(Emulate::RabbitMq3, "classic", true), (Ok(()), 0));
}

#[test]
fn a_direct_reply_finds_its_channel() {
    let mut client = client();
    let channel = client.channel;
    let reply_to = b"amq.rabbitmq.reply-to";
    let consume = |no_ack| ConsumeOptions { queue: reply_to, tag: b"replies", no_ack, ..Default::default() };
    let request = BasicProperties::new().reply_to("amq.rabbitmq.reply-to");
    client.queue("requests", FieldTable::new());
    assert_eq!(
        text(client.publish("", "requests", "?", &request)),
        "PRECONDITION_FAILED - fast reply consumer does not exist"
    );
    assert_eq!(
        text(client.vhost.consume(channel, consume(false))),
        "PRECONDITION_FAILED - reply consumer cannot acknowledge"
    );
    client.vhost.consume(channel, consume(true)).unwrap();
    client.publish("", "requests", "?", &request).unwrap();
    let got = client.get("requests").unwrap();
    let address = BasicProperties::decode(&got.payload.properties).unwrap().reply_to.unwrap();
    let server = client.open(2, 1);
    assert_eq!(client.vhost.check_queue(server, address.as_bytes()).unwrap().consumers, 1);
    client.vhost.publish(server, mandatory(address.as_bytes(), b"!")).unwrap();
    let effects = client.vhost.take_effects();
    assert!(
        matches!(&effects[..], [Effect::Return { .. }, Effect::Deliver { channel: to, .. }] if *to == channel)
    );
    client.vhost.close_channel(channel);
    assert!(client.vhost.check_queue(server, address.as_bytes()).is_err());
}

#[test]
fn a_user_id_is_ones_own() {
    let mut client = client();
    assert!(client.publish("", "q", "", &BasicProperties::new().user_id("guest")).is_ok());
    assert_eq!(
        text(client.publish("", "q", "", &BasicProperties::new().user_id("root"))),
        "PRECONDITION_FAILED - user_id property set to 'root' but authenticated user was 'guest'"
    );
    client.vhost.open_session(SessionId(1), "guest", true);
    assert!(client.publish("", "q", "", &BasicProperties::new().user_id("root")).is_ok());
}

#[test]
fn memory_is_counted_once_and_given_back() {
    let mut client = client();
    for queue in ["a", "b"] {
        client.queue(queue, FieldTable::new());
        client.bind(queue, "amq.fanout", "");
    }
    client.publish("amq.fanout", "", &"x".repeat(1000), &BasicProperties::new()).unwrap();
    let both = client.vhost.memory();
    assert!((1000..1700).contains(&both));
    client.get("a");
    assert!((1000..both).contains(&client.vhost.memory()));
    client.vhost.purge_queue(client.channel, b"b").unwrap();
    assert_eq!(client.vhost.memory(), 0);
}

/// A message without a byte costs memory, and so does every queue that it is in, delivered or not.
#[test]
fn empty_messages_are_counted_in_every_queue() {
    let mut client = client();
    let publish = |client: &mut Client| {
        client.publish("amq.fanout", "", "", &BasicProperties::new()).unwrap();
        client.vhost.memory()
    };
    assert_eq!(publish(&mut client), 0);
    for number in 0..100 {
        let name = number.to_string();
        client.queue(&name, FieldTable::new());
        client.bind(&name, "amq.fanout", "");
    }
    let once = publish(&mut client);
    assert!(once > 100 * 50, "{once}");
    assert_eq!(publish(&mut client), 2 * once);
    client.vhost.consume(client.channel, ConsumeOptions { queue: b"0", ..Default::default() }).unwrap();
    assert_eq!(client.vhost.memory(), 2 * once);
    client.vhost.select_transactions(client.channel).unwrap();
    assert!(publish(&mut client) - 2 * once > 100 * size_of::<usize>());
    client.vhost.rollback(client.channel).unwrap();
    assert_eq!(client.vhost.memory(), 2 * once);
}

#[test]
fn a_restart_keeps_what_is_durable() {
    let mut client = client();
    let durable = QueueOptions { durable: true, ..Default::default() };
    client.vhost.declare_queue(client.channel, b"durable", &durable).unwrap();
    client.queue("transient", FieldTable::new());
    client.send("durable", "transient");
    client.publish("", "durable", "persistent", &BasicProperties::new().persistent()).unwrap();
    client.vhost.get(client.channel, b"durable", false).unwrap();
    client.vhost.restart();
    assert_eq!(client.vhost.list_queues().len(), 1);
    assert_eq!(client.bodies("durable"), ["persistent"]);
}

#[test]
fn a_stream_is_read_and_not_consumed() {
    let mut client = client();
    let channel = client.channel;
    client.queue("s", table([("x-queue-type", "stream".into())]));
    for body in ["a", "b", "c"] {
        client.send("s", body);
    }
    let from = |tag: &'static str, offset: FieldValue| ConsumeOptions {
        queue: b"s",
        tag: tag.as_bytes(),
        arguments: table([("x-stream-offset", offset)]),
        ..Default::default()
    };
    assert_eq!(
        text(client.vhost.consume(channel, from("first", "first".into()))),
        "PRECONDITION_FAILED - consumer prefetch count is not set for stream queue 's' in vhost '/'"
    );
    client.vhost.qos(channel, 0, 2, false).unwrap();
    client.vhost.consume(channel, from("first", "first".into())).unwrap();
    assert_eq!(client.handed_out(), ["first:a", "first:b"]);
    client.vhost.consume(channel, from("second", 1.into())).unwrap();
    assert_eq!(client.handed_out(), ["second:b", "second:c"]);
    client.vhost.ack(channel, 2, true).unwrap();
    assert_eq!(client.handed_out(), ["first:c"]);
    assert_eq!(
        text(client.vhost.get(channel, b"s", true)),
        "NOT_IMPLEMENTED - basic.get not supported by stream queues queue 's' in vhost '/'"
    );
}

#[test]
fn the_clock_says_when_to_look_again() {
    let mut client = client();
    client.queue("q", table([("x-message-ttl", 100.into())]));
    assert_eq!(client.vhost.next_deadline(), None);
    client.send("q", "m");
    assert_eq!(client.vhost.next_deadline(), Some(Duration::from_millis(100)));
    client.pass(100);
    assert_eq!(client.vhost.next_deadline(), None);
}
