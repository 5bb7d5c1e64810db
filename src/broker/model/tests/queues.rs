use super::fixture::*;
use crate::{
    broker::model::*,
    protocol::value::{FieldTable, FieldValue},
};

#[test]
fn declarations_are_compared() {
    let mut client = client();
    let ttl = table([("x-message-ttl", 60.into())]);
    client.queue("q", ttl.clone());
    let channel = client.channel;
    let mut declare = |options: QueueOptions| client.vhost.declare_queue(channel, b"q", &options);
    let same = QueueOptions { arguments: table([("x-message-ttl", 60i64.into())]), ..Default::default() };
    assert!(declare(same).is_ok(), "the type of the integer does not matter");
    assert_eq!(
        text(declare(QueueOptions { durable: true, arguments: ttl.clone(), ..Default::default() })),
        "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current \
         is 'false'"
    );
    assert_eq!(
        text(declare(QueueOptions::default())),
        "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received none but \
         current is the value '60' of type 'signedint'"
    );
    let other = table([("x-message-ttl", 61.into())]);
    assert_eq!(
        text(declare(QueueOptions { arguments: other, ..Default::default() })),
        "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received '61' but \
         current is '60'"
    );
    assert!(
        text(declare(QueueOptions { exclusive: true, arguments: ttl, ..Default::default() })).starts_with(
            "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'."
        )
    );
}

#[test]
fn wrong_arguments_are_refused() {
    let mut client = client();
    for (name, value, problem) in [
        ("x-message-ttl", FieldValue::from(-1), "{value_negative,-1}"),
        ("x-message-ttl", "5".into(), "\"expected integer, got longstr\""),
        ("x-expires", 0.into(), "{value_zero,0}"),
        ("x-max-priority", 256.into(), "{max_value_exceeded,256}"),
        ("x-overflow", "odd".into(), "invalid_overflow"),
        ("x-dead-letter-routing-key", "k".into(), "routing_key_but_no_dlx_defined"),
        ("x-queue-mode", "odd".into(), "\"unsupported queue mode 'odd'\""),
        ("x-queue-type", "odd".into(), "\"unsupported queue type 'odd'\""),
        ("x-single-active-consumer", "yes".into(), "{unacceptable_type,longstr}"),
    ] {
        let options = QueueOptions { arguments: table([(name, value)]), ..Default::default() };
        assert_eq!(
            text(client.vhost.declare_queue(client.channel, b"q", &options)),
            format!("PRECONDITION_FAILED - invalid arg '{name}' for queue 'q' in vhost '/': {problem}")
        );
    }
    let of_stream = QueueOptions { arguments: table([("x-max-age", "1D".into())]), ..Default::default() };
    assert_eq!(
        text(client.vhost.declare_queue(client.channel, b"q", &of_stream)),
        "PRECONDITION_FAILED - invalid arg 'x-max-age' for queue 'q' in vhost '/' of queue type \
         rabbit_classic_queue"
    );
    let unknown = QueueOptions { arguments: table([("x-anything", 1.into())]), ..Default::default() };
    assert!(client.vhost.declare_queue(client.channel, b"q", &unknown).is_ok());
}

#[test]
fn an_exclusive_queue_is_of_its_session_and_goes_with_it() {
    let mut client = client();
    let exclusive = QueueOptions { exclusive: true, ..Default::default() };
    let own = client.vhost.declare_queue(client.channel, b"", &exclusive).unwrap().name;
    assert!(own.starts_with(b"amq.gen-") && own.len() == 30, "{own}");
    let stranger = client.open(2, 1);
    assert!(text(client.vhost.get(stranger, &own, true)).starts_with("RESOURCE_LOCKED"));
    assert!(text(client.vhost.declare_queue(stranger, &own, &exclusive)).starts_with("ACCESS_REFUSED"));
    let elsewhere = client.open(1, 2);
    assert!(client.vhost.get(elsewhere, &own, true).unwrap().is_none());
    client.vhost.close_session(SessionId(1));
    assert_eq!(
        text(client.vhost.get(stranger, &own, true)),
        format!("NOT_FOUND - no queue '{own}' in vhost '/'")
    );
}

#[test]
fn an_empty_name_is_the_queue_declared_last() {
    let mut client = client();
    let channel = client.channel;
    let none = "NOT_FOUND - no previously declared queue";
    assert_eq!(text(client.vhost.get(channel, b"", true)), none);
    client.queue("q", FieldTable::new());
    client.vhost.bind_queue(channel, b"", b"amq.direct", b"", FieldTable::new()).unwrap();
    client.publish("amq.direct", "q", "m", &Default::default()).unwrap();
    assert!(client.get("").is_some());
}

#[test]
fn deletion_has_conditions_and_tells_consumers() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    client.send("q", "m");
    let vhost = &mut client.vhost;
    assert_eq!(
        text(vhost.delete_queue(channel, b"q", false, true)),
        "PRECONDITION_FAILED - queue 'q' in vhost '/' not empty"
    );
    client.consume(channel, "q", "c");
    let vhost = &mut client.vhost;
    assert_eq!(
        text(vhost.delete_queue(channel, b"q", true, false)),
        "PRECONDITION_FAILED - queue 'q' in vhost '/' in use"
    );
    vhost.take_effects();
    assert_eq!(vhost.delete_queue(channel, b"q", false, false), Ok(0), "what is unacked does not count");
    assert!(matches!(&vhost.take_effects()[..], [Effect::Cancel { .. }]));
    assert_eq!(vhost.delete_queue(channel, b"q", false, false), Ok(0));
    assert_eq!(vhost.ack(channel, 1, false), Ok(()), "the delivery is still the channel's");
    assert_eq!(text(vhost.ack(channel, 1, false)), "PRECONDITION_FAILED - unknown delivery tag 1");
}

#[test]
fn an_auto_delete_queue_goes_with_its_last_consumer() {
    let mut client = client();
    let options = QueueOptions { auto_delete: true, ..Default::default() };
    let channel = client.channel;
    client.vhost.declare_queue(channel, b"q", &options).unwrap();
    client.consume(channel, "q", "one");
    client.consume(channel, "q", "two");
    client.vhost.cancel(channel, b"one").unwrap();
    assert!(client.vhost.check_queue(channel, b"q").is_ok());
    client.vhost.cancel(channel, b"two").unwrap();
    assert!(client.vhost.check_queue(channel, b"q").is_err());
}

#[test]
fn quorum_queues_and_streams_are_durable_and_shared() {
    let mut client = client();
    for kind in ["quorum", "stream"] {
        let arguments = table([("x-queue-type", kind.into())]);
        let options = QueueOptions { arguments, durable: true, ..Default::default() };
        for (property, wrong) in [
            ("non-durable", QueueOptions { durable: false, ..options.clone() }),
            ("auto-delete", QueueOptions { auto_delete: true, ..options.clone() }),
            ("exclusive-owner", QueueOptions { exclusive: true, ..options.clone() }),
        ] {
            assert_eq!(
                text(client.vhost.declare_queue(client.channel, b"q", &wrong)),
                format!("PRECONDITION_FAILED - invalid property '{property}' for queue 'q' in vhost '/'")
            );
        }
        assert_eq!(
            text(client.vhost.declare_queue(client.channel, b"", &options)),
            format!("PRECONDITION_FAILED - Cannot declare a server-named queue for type rabbit_{kind}_queue")
        );
    }
}
