//! Peers that talk to the program directly: confirms after the handler, sending within the prefetch, and what becomes of
//! everything when somebody goes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;
mod consumers;
mod ends;
mod messages;
mod refused;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use common::{
    direct::die_at_any_point,
    peer::eventually,
    proxy::{Cut, Direction, Proxy},
    watchdog::{LIMIT, Watchdog, test_name},
};
use leveret::{
    BasicProperties, Config, Connection, Consume, Departure, Error, ExchangeDeclare, ExchangeKind, Message,
    Outcome, Publish, QueueDeclare, ReplyCode, Requeue,
    broker::{BrokerConfig, Permissions, User},
    direct::{Consumer, Listener, Published, Serve, Settled},
    rpc,
};

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Long enough for something to happen that must not.
const MOMENT: Duration = Duration::from_millis(50);

fn watched() -> Watchdog {
    Watchdog::new(&test_name(), LIMIT)
}

/// Every message's text goes to the receiver.
fn collecting() -> (Serve, Receiver<String>) {
    let (sender, received) = mpsc::channel();
    let serve = Serve::new().messages(move |message: &Published| {
        sender.send(message.text()?.to_owned())?;
        Ok(())
    });
    (serve, received)
}

/// Every consumer goes to the receiver.
fn offering() -> (Serve, Receiver<Consumer>) {
    let (sender, consumers) = mpsc::channel();
    (Serve::new().consumers(move |consumer: Consumer| Ok(sender.send(consumer)?)), consumers)
}

/// A door that handlers wait at.
fn door() -> (Sender<()>, impl Fn() + Send + Sync + 'static) {
    let (open, closed) = mpsc::channel();
    let closed = Mutex::new(closed);
    (open, move || _ = closed.lock().unwrap().recv())
}

fn publish_on(connection: &Connection) -> leveret::Channel {
    let channel = connection.channel().unwrap();
    channel.confirm_select().unwrap();
    channel
}

fn connect_through(proxy: &Proxy) -> Connection {
    let SocketAddr::V4(address) = proxy.address else { panic!() };
    Connection::open(Config::new().host(address.ip().to_string(), address.port())).unwrap()
}
