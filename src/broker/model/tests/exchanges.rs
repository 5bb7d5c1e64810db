use super::fixture::*;
use crate::{
    broker::model::*,
    protocol::{
        properties::BasicProperties,
        value::{FieldTable, FieldValue},
    },
};

fn options(kind: &str) -> ExchangeOptions {
    ExchangeOptions { kind: kind.into(), ..ExchangeOptions::default() }
}

#[test]
fn each_kind_routes_its_way() {
    let mut client = client();
    client.queue("q", FieldTable::new());
    for (exchange, key, other) in
        [("amq.direct", "k", "other"), ("amq.topic", "a.*", "a.b.c"), ("amq.fanout", "k", "")]
    {
        client.bind("q", exchange, key);
        client.publish(exchange, &key.replace('*', "b"), exchange, &BasicProperties::new()).unwrap();
        if exchange != "amq.fanout" {
            client.publish(exchange, other, "not this", &BasicProperties::new()).unwrap();
        }
    }
    assert_eq!(client.bodies("q"), ["amq.direct", "amq.topic", "amq.fanout"]);
}

#[test]
fn a_queue_gets_one_copy_however_it_is_bound_and_cycles_end() {
    let mut client = client();
    client.queue("q", FieldTable::new());
    client.exchange("one", "fanout", FieldTable::new());
    client.exchange("two", "fanout", FieldTable::new());
    for (source, destination) in [("one", "two"), ("two", "one"), ("one", "one")] {
        let (destination, source) = (destination.as_bytes(), source.as_bytes());
        client.vhost.bind_exchange(destination, source, b"", FieldTable::new()).unwrap();
    }
    for key in ["a", "b"] {
        client.bind("q", "one", key);
        client.bind("q", "two", key);
    }
    let copies = BasicProperties::new().headers([("CC", vec![FieldValue::from("b")])]);
    client.publish("one", "a", "once", &copies).unwrap();
    assert_eq!(client.bodies("q"), ["once"]);
}

#[test]
fn what_matches_nothing_goes_to_the_alternate_exchange() {
    let mut client = client();
    client.queue("q", FieldTable::new());
    client.exchange("last", "fanout", FieldTable::new());
    client.exchange("middle", "direct", table([("alternate-exchange", "last".into())]));
    client.exchange("first", "direct", table([("alternate-exchange", "middle".into())]));
    client.exchange("round", "direct", table([("alternate-exchange", "round".into())]));
    client.bind("q", "last", "");
    client.publish("first", "k", "found", &BasicProperties::new()).unwrap();
    client.publish("round", "k", "lost", &BasicProperties::new()).unwrap();
    assert_eq!(client.bodies("q"), ["found"]);
}

#[test]
fn cc_and_bcc_route_and_nobody_sees_bcc() {
    let mut client = client();
    for queue in ["to", "cc", "bcc"] {
        client.queue(queue, FieldTable::new());
    }
    let headers = [("CC", vec![FieldValue::from("cc")]), ("BCC", vec![FieldValue::from("bcc")])];
    client.publish("", "to", "m", &BasicProperties::new().headers(headers)).unwrap();
    for queue in ["to", "cc", "bcc"] {
        let headers = client.headers(queue);
        assert!(headers.get("CC").is_some() && headers.get("BCC").is_none(), "{queue}");
    }
    let wrong = BasicProperties::new().headers([("CC", "cc")]);
    assert_eq!(
        text(client.publish("", "to", "m", &wrong)),
        "PRECONDITION_FAILED - invalid message: {unacceptable_type_in_header,\"CC\",longstr}"
    );
}

#[test]
fn auto_delete_exchanges_go_with_their_last_binding_and_take_others_along() {
    let mut client = client();
    client.queue("q", FieldTable::new());
    let gone_with_last = ExchangeOptions { auto_delete: true, ..options("fanout") };
    client.vhost.declare_exchange(b"front", &gone_with_last).unwrap();
    client.vhost.declare_exchange(b"back", &gone_with_last).unwrap();
    client.vhost.bind_exchange(b"back", b"front", b"", FieldTable::new()).unwrap();
    client.bind("q", "back", "");
    assert_eq!(client.vhost.delete_queue(client.channel, b"q", false, false), Ok(0));
    assert_eq!(text(client.vhost.check_exchange(b"back")), "NOT_FOUND - no exchange 'back' in vhost '/'");
    assert!(client.vhost.check_exchange(b"front").is_err());
}

#[test]
fn refusals_are_in_rabbitmqs_words() {
    let mut client = client();
    client.exchange("x", "direct", FieldTable::new());
    client.queue("q", FieldTable::new());
    client.bind("q", "x", "k");
    let vhost = &mut client.vhost;
    let durable = ExchangeOptions { durable: true, ..options("direct") };
    let with_alternate =
        ExchangeOptions { arguments: table([("alternate-exchange", "y".into())]), ..options("direct") };
    let texts = [
        (
            text(vhost.declare_exchange(b"x", &options("topic"))),
            "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x' in vhost '/': received 'topic' but \
             current is 'direct'",
        ),
        (
            text(vhost.declare_exchange(b"x", &durable)),
            "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'x' in vhost '/': received 'true' but \
             current is 'false'",
        ),
        (
            text(vhost.declare_exchange(b"x", &with_alternate)),
            "PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'x' in vhost '/': received \
             the value 'y' of type 'longstr' but current is none",
        ),
        (
            text(vhost.declare_exchange(b"amq.new", &options("direct"))),
            "ACCESS_REFUSED - exchange name 'amq.new' contains reserved prefix 'amq.*'",
        ),
        (
            text(vhost.declare_exchange(b"z", &options("x-odd"))),
            "PRECONDITION_FAILED - unknown exchange type 'x-odd'",
        ),
        (text(vhost.declare_exchange(b"z", &options(""))), "PRECONDITION_FAILED - invalid exchange type ''"),
        (
            text(vhost.declare_exchange(b"", &options("direct"))),
            "ACCESS_REFUSED - operation not permitted on the default exchange",
        ),
        (
            text(vhost.delete_exchange(b"amq.direct", false)),
            "ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed",
        ),
        (text(vhost.delete_exchange(b"x", true)), "PRECONDITION_FAILED - exchange 'x' in vhost '/' in use"),
        (
            text(vhost.bind_exchange(b"x", b"none", b"", FieldTable::new())),
            "NOT_FOUND - no exchange 'none' in vhost '/'",
        ),
    ];
    for (is, should) in texts {
        assert_eq!(is, should);
    }
    assert_eq!(vhost.delete_exchange(b"unknown", false), Ok(()));
}
