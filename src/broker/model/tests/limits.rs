use super::fixture::*;
use crate::{
    broker::model::*,
    protocol::{
        properties::BasicProperties,
        value::{FieldTable, FieldValue},
    },
};

fn expiring(milliseconds: &str) -> BasicProperties {
    BasicProperties::new().expiration(milliseconds)
}

#[test]
fn messages_expire_at_the_head() {
    let mut client = client();
    client.queue("q", table([("x-message-ttl", 100.into())]));
    client.send("q", "queue's");
    client.publish("", "q", "own", &expiring("50")).unwrap();
    client.pass(60);
    assert_eq!(client.bodies("q"), ["queue's", "own"], "it is not at the head");
    client.pass(40);
    assert!(client.bodies("q").is_empty());
    let wrong = |client: &mut Client, text: &str| self::text(client.publish("", "q", "", &expiring(text)));
    let refused = "PRECONDITION_FAILED - invalid expiration";
    assert_eq!(wrong(&mut client, "x"), format!("{refused} 'x': no_integer"));
    assert_eq!(wrong(&mut client, "-1"), format!("{refused} '-1': {{value_negative,-1}}"));
    assert_eq!(wrong(&mut client, "5s"), format!("{refused} '5s': {{leftover_string,\"s\"}}"));
}

#[test]
fn a_consumer_gets_even_what_expires_at_once() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    client.publish("", "q", "nobody", &expiring("0")).unwrap();
    assert!(client.bodies("q").is_empty());
    client.consume(channel, "q", "c");
    client.publish("", "q", "somebody", &expiring("0")).unwrap();
    assert_eq!(client.handed_out(), ["c:somebody"]);
}

#[test]
fn unused_queues_expire() {
    let mut client = client();
    client.queue("q", table([("x-expires", 100.into())]));
    client.pass(80);
    client.get("q");
    client.pass(80);
    client.consume(client.channel, "q", "c");
    client.pass(1000);
    client.vhost.cancel(client.channel, b"c").unwrap();
    client.pass(99);
    assert_eq!(client.vhost.list_queues().len(), 1);
    client.pass(1);
    assert!(client.vhost.list_queues().is_empty());
}

#[test]
fn a_full_queue_drops_its_head_or_refuses() {
    let mut client = client();
    client.queue("length", table([("x-max-length", 2.into())]));
    client.queue("bytes", table([("x-max-length-bytes", 4.into())]));
    for body in ["aa", "bb", "cc"] {
        client.send("length", body);
        client.send("bytes", body);
    }
    assert_eq!(client.bodies("length"), ["bb", "cc"]);
    assert_eq!(client.bodies("bytes"), ["bb", "cc"]);
    client.queue("r", table([("x-max-length", 1.into()), ("x-overflow", "reject-publish".into())]));
    client.vhost.select_confirms(client.channel).unwrap();
    client.send("r", "a");
    client.send("r", "b");
    assert_eq!(client.bodies("r"), ["a"]);
    let outcomes: Vec<_> = client
        .vhost
        .take_effects()
        .into_iter()
        .map(|effect| match effect {
            Effect::Confirm { delivery_tag, accepted, .. } => (delivery_tag, accepted),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(outcomes, [(1, true), (2, false)]);
}

#[test]
fn every_reason_leads_to_the_dead_letter_exchange() {
    let mut client = client();
    client.queue("dead", FieldTable::new());
    let to_dead =
        [("x-dead-letter-exchange", FieldValue::from("")), ("x-dead-letter-routing-key", "dead".into())];
    let with = |more: [(&str, FieldValue); 2]| to_dead.iter().cloned().chain(more).collect::<FieldTable>();
    client.queue("ttl", with([("x-message-ttl", 10.into()), ("x-a", 1.into())]));
    client.queue("length", with([("x-max-length", 0.into()), ("x-a", 1.into())]));
    let reject = [("x-max-length", 0.into()), ("x-overflow", "reject-publish-dlx".into())];
    client.queue("refuses", with(reject));
    client.queue("rejected", with([("x-a", 1.into()), ("x-b", 1.into())]));
    for queue in ["ttl", "length", "refuses", "rejected"] {
        client.send(queue, queue);
    }
    client.pass(10);
    client.vhost.get(client.channel, b"rejected", false).unwrap();
    client.vhost.nack(client.channel, 1, false, false).unwrap();
    assert_eq!(client.bodies("dead"), ["length", "refuses", "ttl", "rejected"]);
    for (queue, reason) in
        [("length", "maxlen"), ("refuses", "maxlen"), ("ttl", "expired"), ("rejected", "rejected")]
    {
        let headers = client.headers("dead");
        assert_eq!(headers.get("x-first-death-reason"), Some(&reason.into()));
        assert_eq!(headers.get("x-last-death-queue"), Some(&queue.into()));
        assert_eq!(headers.get("x-first-death-exchange"), Some(&"".into()));
    }
}

#[test]
fn x_death_tells_the_story() {
    for emulate in [Emulate::RabbitMq3, Emulate::RabbitMq4] {
        let mut client = client_of(emulate);
        client.queue("q", table([("x-dead-letter-exchange", "amq.fanout".into())]));
        client.queue("dead", FieldTable::new());
        client.bind("dead", "amq.fanout", "");
        client.publish("", "q", "m", &expiring("5")).unwrap();
        client.pass(2000);
        let headers = client.headers("dead");
        let Some(FieldValue::Array(deaths)) = headers.get("x-death") else { panic!("{headers:?}") };
        let [FieldValue::Table(death)] = &deaths[..] else { panic!("{deaths:?}") };
        assert_eq!(death.get("count"), Some(&1i64.into()));
        assert_eq!(death.get("reason"), Some(&"expired".into()));
        assert_eq!(death.get("queue"), Some(&"q".into()));
        assert_eq!(death.get("exchange"), Some(&"".into()));
        assert_eq!(death.get("time"), Some(&FieldValue::Timestamp(1_000_000)));
        assert_eq!(death.get("routing-keys"), Some(&vec![FieldValue::from("q")].into()));
        assert_eq!(death.get("original-expiration"), Some(&"5".into()));
        assert_eq!(headers.get("x-last-death-queue").is_some(), emulate == Emulate::RabbitMq4);
        assert_eq!(headers.get("x-first-death-queue"), Some(&"q".into()));
    }
}

#[test]
fn a_message_does_not_go_round_by_itself_for_ever() {
    for emulate in [Emulate::RabbitMq3, Emulate::RabbitMq4] {
        let mut client = client_of(emulate);
        for (queue, next) in [("a", "b"), ("b", "a")] {
            let arguments = [
                ("x-dead-letter-exchange", "".into()),
                ("x-dead-letter-routing-key", next.into()),
                ("x-message-ttl", 10.into()),
            ];
            client.queue(queue, table(arguments));
        }
        client.send("a", "m");
        client.pass(10);
        assert_eq!(client.bodies("b"), ["m"]);
        client.pass(10);
        assert!(client.bodies("a").is_empty() && client.bodies("b").is_empty(), "{emulate:?}");
        // A client's rejection on the way makes it a new round.
        client.send("a", "m");
        let get = |client: &mut Client, queue: &str| {
            client.vhost.get(client.channel, queue.as_bytes(), false).unwrap().unwrap().delivery_tag
        };
        let tag = get(&mut client, "a");
        client.vhost.nack(client.channel, tag, false, false).unwrap();
        client.pass(10);
        assert_eq!(client.bodies("a"), ["m"], "{emulate:?}");
    }
}

#[test]
fn higher_priorities_come_first() {
    let mut client = client();
    client.queue("q", table([("x-max-priority", 5.into())]));
    for (body, priority) in [("none", None), ("nine", Some(9)), ("two", Some(2)), ("five", Some(5))] {
        let mut with = BasicProperties::new();
        with.priority = priority;
        client.publish("", "q", body, &with).unwrap();
    }
    assert_eq!(client.bodies("q"), ["nine", "five", "two", "none"]);
}

#[test]
fn a_quorum_queue_counts_deliveries_and_gives_up() {
    let mut client = client();
    client.queue("dead", FieldTable::new());
    client.queue(
        "q",
        table([
            ("x-queue-type", "quorum".into()),
            ("x-delivery-limit", 1.into()),
            ("x-dead-letter-exchange", "".into()),
            ("x-dead-letter-routing-key", "dead".into()),
        ]),
    );
    client.send("q", "m");
    for (tag, redelivered) in [(1, false), (2, true)] {
        let got = client.vhost.get(client.channel, b"q", false).unwrap().unwrap();
        assert_eq!((got.delivery_tag, got.redelivered), (tag, redelivered));
        client.vhost.nack(client.channel, tag, false, true).unwrap();
    }
    assert!(client.bodies("q").is_empty());
    assert_eq!(client.headers("dead").get("x-first-death-reason"), Some(&"delivery_limit".into()));
}
