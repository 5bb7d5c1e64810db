//! What a connection costs while it lives, and that nothing of it is left. One test at a time: they count the
//! threads and sockets of the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![cfg(target_os = "linux")]

mod common;

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use common::{
    brokers::{Broker, on_each_rabbitmq},
    peer::{eventually, library_threads, sockets},
    proxy::{Cut, Direction},
};
use leveret::{Channel, Connection, Consumer, Error, Result};
use socket2::{Domain, Socket, Type};

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why none of these runs on the in-process broker.
const IN_ITS_OWN: &str =
    "counts the threads and descriptors of its process, of which the in-process broker has its own";

/// Close has joined the threads; the sockets go with the last handle.
fn nothing_is_left(sockets_before: usize) {
    assert_eq!(library_threads(), [""; 0]);
    eventually("sockets are left", || sockets() <= sockets_before);
}

/// All that a program holds of one connection.
struct Held {
    connection: Option<Connection>,
    channels: Vec<Channel>,
    consumers: Vec<Consumer>,
}

impl Held {
    fn open(broker: &Broker) -> Result<Held> {
        let connection = broker.connect();
        let channels = vec![connection.channel()?, connection.channel()?];
        channels[0].queue_declare("q")?;
        let consumers = vec![channels[0].basic_consume("q")?, channels[1].basic_consume("q")?];
        Ok(Held { connection: Some(connection), channels, consumers })
    }

    /// Drops everything in one of six orders, or with a close first.
    fn drop_in_order(mut self, order: usize) {
        if order >= 6 {
            self.connection.as_ref().unwrap().close().expect("closed");
        }
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        for part in orders[order % 6] {
            match part {
                0 => self.connection = None,
                1 => self.channels.clear(),
                _ => self.consumers.clear(),
            }
        }
    }
}

/// Row 18: two threads with telling names, whatever is done on the connection.
#[test]
fn a_connection_has_two_named_threads() {
    let _turn = one_at_a_time();
    on_each_rabbitmq(IN_ITS_OWN, |broker| {
        let before = sockets();
        let mut held = Vec::new();
        for number in 1..=3 {
            held.push(Held::open(broker)?);
            let expected: Vec<_> = ["leveret-reader", "leveret-writer"]
                .into_iter()
                .flat_map(|name| vec![name; number])
                .collect();
            // A thread gives itself its name when it begins.
            eventually("the threads are named", || library_threads() == expected);
            assert_eq!(sockets() - before, number);
        }
        held.into_iter().enumerate().for_each(|(order, held)| held.drop_in_order(order));
        nothing_is_left(before);
        Ok(())
    });
}

/// Rows 13, 18: a hundred connections, dropped in every order, first to last, last to first and mixed.
#[test]
fn a_hundred_connections_leave_nothing() {
    let _turn = one_at_a_time();
    on_each_rabbitmq(IN_ITS_OWN, |broker| {
        let before = sockets();
        let mut held = (0..100).map(|_| Held::open(broker)).collect::<Result<Vec<_>>>()?;
        eventually("all threads are named", || library_threads().len() == 200);
        let mut random = fastrand::Rng::with_seed(13);
        for step in 0..100 {
            let next = match step % 3 {
                0 => 0,
                1 => held.len() - 1,
                _ => random.usize(..held.len()),
            };
            held.remove(next).drop_in_order(step % 12);
        }
        nothing_is_left(before);
        Ok(())
    });
}

/// Row 5: neither does one that could not be opened.
#[test]
fn a_failed_connection_leaves_nothing() {
    let _turn = one_at_a_time();
    on_each_rabbitmq(IN_ITS_OWN, |broker| {
        let refusing = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        refusing.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let nobody = refusing.local_addr().unwrap().as_socket().unwrap();
        let before = sockets();
        for _ in 0..10 {
            for config in [
                broker.config().credentials("guest", "wrong"),
                broker.config().vhost("nowhere"),
                broker.config_through(nobody),
                broker.config().host("name.invalid", 5672),
            ] {
                Connection::open(config).unwrap_err();
            }
        }
        eventually("threads are left", || library_threads().is_empty());
        nothing_is_left(before);
        Ok(())
    });
}

/// Row 22: nor does one that was lost while everything was in use.
#[test]
fn a_lost_connection_leaves_nothing() {
    let _turn = one_at_a_time();
    on_each_rabbitmq(IN_ITS_OWN, |broker| {
        for cut in [Cut::Fin, Cut::Reset, Cut::HalfClose] {
            let proxy = broker.proxy();
            let before = sockets();
            let config = broker.config_through(proxy.address);
            let connection = Connection::open(config)?;
            let channel = connection.channel()?;
            channel.queue_declare("q")?;
            let consumer = channel.basic_consume("q")?;
            let passed = proxy.passed(Direction::ToClient);
            proxy.cut_at(Direction::ToClient, passed + 1000, cut);
            (0..100).for_each(|_| drop(channel.basic_publish("", "q", &[0; 100])));
            let lost = connection.wait_closed();
            assert!(matches!(lost, Error::Io { .. }), "{cut:?}: {lost:?}");
            drop((consumer, channel, connection));
            // The proxy's own go a moment later.
            drop(proxy);
            nothing_is_left(before);
        }
        Ok(())
    });
}
