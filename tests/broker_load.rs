//! The in-process broker under load: who comes new beside many that publish, and thousands of connections.

#![cfg(feature = "broker")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use common::watchdog::{LIMIT, Watchdog};
use leveret::{
    Channel, Error, ExchangeKind, QueueDeclare,
    broker::{Broker, BrokerConfig},
};

const QUEUES: usize = 1000;
const PUBLISHERS: usize = 10;

/// What every publisher has published before anything is measured: more than is read at once.
const BEFORE: usize = 2000;

/// How many messages may be routed while a newcomer makes its eight calls. A turn that takes everything that was read
/// routes more than a thousand, and there are as many turns to wait for as there are publishers.
const MEANWHILE: usize = 8 * PUBLISHERS * 30;

/// An exchange `fan`, with queues that hold at most so many messages.
fn declare_fan(channel: &Channel, max_length: Option<u32>) {
    channel.exchange_declare(("fan", ExchangeKind::Fanout)).unwrap();
    for number in 0..QUEUES {
        let name = format!("q{number}");
        let mut declare = QueueDeclare::new(&name);
        if let Some(most) = max_length {
            declare = declare.max_length(most);
        }
        channel.no_wait().queue_declare(declare).unwrap();
        channel.no_wait().queue_bind((&*name, "fan", "")).unwrap();
    }
}

/// Publishers to an exchange with many queues leave room for others (promise 1).
#[test]
fn a_newcomer_gets_its_turn_beside_many_publishers() {
    let _watchdog = Watchdog::new("a newcomer beside many publishers", LIMIT);
    let broker = Broker::start();
    let setup = broker.connect().unwrap();
    let channel = setup.channel().unwrap();
    declare_fan(&channel, Some(1));
    channel.queue_declare("count").unwrap();
    channel.queue_bind(("count", "fan", "")).unwrap();

    let done = AtomicBool::new(false);
    let started = Barrier::new(PUBLISHERS + 1);
    let publishers: Vec<_> = (0..PUBLISHERS).map(|_| broker.connect().unwrap()).collect();
    thread::scope(|scope| {
        for connection in &publishers {
            let channel = connection.channel().unwrap();
            let (started, done) = (&started, &done);
            scope.spawn(move || {
                for _ in 0..BEFORE {
                    channel.basic_publish("fan", "", "").unwrap();
                }
                started.wait();
                // Until the broker is stopped.
                while !done.load(Ordering::Relaxed) && channel.basic_publish("fan", "", "").is_ok() {}
            });
        }
        started.wait();
        let routed = || broker.queues("/").iter().find(|queue| queue.name == "count").unwrap().ready;
        let before = routed();
        let newcomer = broker.connect().unwrap();
        let channel = newcomer.channel().unwrap();
        let queue = channel.queue_declare("").unwrap().queue;
        channel.basic_publish("", &queue, "mine").unwrap();
        assert_eq!(channel.basic_get(&*queue).unwrap().expect("a message").text().unwrap(), "mine");
        newcomer.close().unwrap();
        let meanwhile = routed() - before;
        done.store(true, Ordering::Relaxed);
        broker.crash();
        assert!(meanwhile <= MEANWHILE, "{meanwhile} messages were routed before a newcomer was served");
    });
}

/// A message without a byte takes memory in every queue that it is in, and whoever publishes such is stopped in time
/// (promise 6), also in the middle of what was read of it.
#[test]
fn empty_messages_in_many_queues_raise_the_alarm() {
    const LIMIT_BYTES: usize = 5_000_000;
    let _watchdog = Watchdog::new("empty messages in many queues", LIMIT);
    let broker = BrokerConfig::new().memory_limit(LIMIT_BYTES).start().unwrap();
    let connection = broker.connect().unwrap();
    let channel = connection.channel().unwrap();
    declare_fan(&channel, None);
    channel.queue_declare("q").unwrap();
    while connection.blocked().is_none() {
        // It does not wait, as a publish does once the connection is blocked.
        match channel.try_publish("fan", "", "") {
            Ok(()) | Err(Error::WouldBlock | Error::Blocked { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let memory = broker.memory();
    assert!(memory > LIMIT_BYTES && memory < LIMIT_BYTES + 2_000_000, "{memory}");
}
