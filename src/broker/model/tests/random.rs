use std::{collections::BTreeSet, time::Duration};

use super::fixture::*;
use crate::{
    broker::model::*,
    protocol::{properties::BasicProperties, value::FieldTable},
};

const QUEUES: [&[u8]; 4] = [b"a", b"b", b"c", b""];
const EXCHANGES: [&[u8]; 5] = [b"", b"amq.fanout", b"amq.topic", b"amq.headers", b"x"];

/// One operation with arguments that need not make sense. Refusals are as good as answers.
fn anything(random: &mut fastrand::Rng, vhost: &mut Vhost, properties: &[std::sync::Arc<[u8]>]) {
    let channel = ChannelId { session: SessionId(random.u64(1..3)), number: random.u16(1..4) };
    let queue = QUEUES[random.usize(..4)];
    let exchange = EXCHANGES[random.usize(..5)];
    let (tag, flag, other) = (random.u64(..30), random.bool(), random.bool());
    let ok = match random.u8(..22) {
        0 => {
            let mut arguments = FieldTable::new();
            for name in ["x-max-length", "x-message-ttl", "x-max-priority", "x-delivery-limit", "x-expires"] {
                if random.u8(..4) == 0 {
                    arguments.insert(name, random.i32(-1..50));
                }
            }
            if flag {
                arguments.insert("x-dead-letter-exchange", "amq.fanout");
            }
            if random.u8(..3) == 0 {
                arguments.insert("x-queue-type", ["classic", "quorum", "stream"][random.usize(..3)]);
            }
            if other {
                arguments.insert("x-single-active-consumer", true);
            }
            let durable = arguments.get("x-queue-type").is_some();
            let options =
                QueueOptions { durable, exclusive: random.u8(..9) == 0, auto_delete: false, arguments };
            vhost.declare_queue(channel, queue, &options).is_ok()
        }
        1 => vhost.bind_queue(channel, queue, exchange, b"#", FieldTable::new()).is_ok(),
        2 => vhost.bind_exchange(b"x", exchange, b"k", FieldTable::new()).is_ok(),
        3 => vhost
            .declare_exchange(
                b"x",
                &ExchangeOptions { kind: "fanout".into(), auto_delete: flag, ..Default::default() },
            )
            .is_ok(),
        4 if random.u8(..4) == 0 => vhost.delete_queue(channel, queue, flag, other).is_ok(),
        5 => vhost.get(channel, queue, flag).is_ok(),
        6 => {
            let options =
                ConsumeOptions { queue, tag: QUEUES[random.usize(..3)], no_ack: flag, ..Default::default() };
            vhost.consume(channel, options).is_ok()
        }
        7 => vhost.cancel(channel, queue).is_ok(),
        8 | 9 => vhost.ack(channel, tag, flag).is_ok(),
        10 | 11 => vhost.nack(channel, tag, flag, other).is_ok(),
        12 => vhost.recover(channel, true).is_ok(),
        13 => vhost.qos(channel, 0, random.u16(..4), flag).is_ok(),
        14 if flag => vhost.select_confirms(channel).is_ok(),
        14 => vhost.select_transactions(channel).is_ok(),
        15 if flag => vhost.commit(channel).is_ok(),
        15 => vhost.rollback(channel).is_ok(),
        16 => {
            vhost.close_channel(channel);
            vhost.open_channel(channel);
            true
        }
        17 => {
            vhost.set_writable(channel.session, flag);
            true
        }
        18 => {
            let now = vhost.now + Duration::from_millis(random.u64(..40));
            vhost.tick(now);
            true
        }
        19 if random.u8(..30) == 0 => {
            vhost.restart();
            vhost.open_session(channel.session, "guest", false);
            true
        }
        _ => {
            let publish = Publish {
                exchange,
                routing_key: queue,
                mandatory: flag,
                immediate: false,
                properties: properties[random.usize(..properties.len())].clone(),
                body: [7; 100].into(),
            };
            vhost.publish(channel, publish).is_ok()
        }
    };
    let _ = ok;
}

/// Whatever anybody does, nothing is lost, counted twice or left behind.
#[test]
fn nothing_is_left_behind_whatever_was_done() {
    let headers = |name: &str| {
        BasicProperties::new().headers([(name, vec![crate::protocol::value::FieldValue::from("b")])])
    };
    let mut all: Vec<_> = [
        BasicProperties::new(),
        BasicProperties::new().expiration("5").priority(3),
        headers("CC"),
        headers("BCC"),
        headers("x-death"),
    ]
    .iter()
    .map(properties)
    .collect();
    // What is no property at all.
    all.extend([[0xff; 9].as_slice().into(), [0x20, 0, 0, 0, 0, 9, 1].as_slice().into()]);
    for seed in 0..150 {
        let emulate = if seed % 2 == 0 { Emulate::RabbitMq3 } else { Emulate::RabbitMq4 };
        let mut client = client_of(emulate);
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..600 {
            anything(&mut random, &mut client.vhost, &all);
            client.vhost.take_effects();
        }
        let vhost = &mut client.vhost;
        let bindings = vhost.list_bindings();
        let bound: BTreeSet<_> = bindings.iter().map(|one| (&one.destination, &one.source)).collect();
        let known: Vec<_> =
            vhost.sources.iter().flat_map(|(to, from)| from.iter().map(move |name| (to, name))).collect();
        assert_eq!((bound.len(), bound), (known.len(), known.into_iter().collect()), "seed {seed}");
        assert!(vhost.sources.values().all(|sources| !sources.is_empty()), "seed {seed}");
        for session in [1, 2] {
            vhost.close_session(SessionId(session));
        }
        assert!(vhost.list_consumers().is_empty(), "seed {seed}");
        for queue in vhost.list_queues() {
            assert_eq!((queue.unacked, queue.consumers), (0, 0), "seed {seed}: {queue:?}");
            assert_eq!(vhost.peek(&queue.name, usize::MAX).len(), queue.ready, "seed {seed}");
            vhost.remove_queue(&queue.name);
        }
        vhost.take_effects();
        assert_eq!(vhost.memory(), 0, "seed {seed}");
        assert!(
            vhost
                .list_bindings()
                .iter()
                .all(|binding| matches!(binding.destination, Destination::Exchange(_)))
        );
    }
}
