//! Does what we wrote survive its broker? A publisher and a consumer while the broker is killed, stalled and restarted.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use leveret::{
    BasicProperties, Channel, Config, Connection, Publish, QueueDeclare, Result,
    broker::{Broker, ConfirmMode},
};

// What is tested. In your project this is in src/.

const QUEUE: &str = "orders";
const PAUSE: Duration = Duration::from_millis(20);

fn connect(uri: &str) -> Result<(Connection, Channel)> {
    let config = Config::try_from(uri)?.confirm_timeout(Duration::from_secs(1));
    let connection = Connection::open(config)?;
    let channel = connection.channel()?;
    channel.queue_declare(QueueDeclare::new(QUEUE).durable(true))?;
    Ok((connection, channel))
}

struct Publisher {
    uri: String,
    open: Option<(Connection, Channel)>,
}

impl Publisher {
    /// Publishes until the broker has confirmed it, on a new connection after each failure. An order may arrive twice.
    fn publish(&mut self, order: &str, deadline: Instant) -> Result<()> {
        loop {
            let Err(error) = self.try_publish(order) else { return Ok(()) };
            self.open = None;
            if !error.can_retry() || Instant::now() >= deadline {
                return Err(error);
            }
            thread::sleep(PAUSE);
        }
    }

    fn try_publish(&mut self, order: &str) -> Result<()> {
        let (_, channel) = match &mut self.open {
            Some(open) => open,
            closed => {
                let (connection, channel) = connect(&self.uri)?;
                channel.confirm_select()?;
                closed.insert((connection, channel))
            }
        };
        let persistent = BasicProperties::new().persistent();
        channel.publish_confirmed("", QUEUE, Publish::new(order).properties(&persistent))
    }
}

/// Hands every order over and then acks it, on a new connection after each failure, until it is told to stop.
fn consume(uri: &str, orders: &Sender<String>, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        if let Err(error) = try_consume(uri, orders, stop) {
            println!("consuming again after: {error}");
            thread::sleep(PAUSE);
        }
    }
}

fn try_consume(uri: &str, orders: &Sender<String>, stop: &AtomicBool) -> Result<()> {
    let (_connection, channel) = connect(uri)?;
    let mut consumer = channel.basic_consume(QUEUE)?;
    while !stop.load(Ordering::SeqCst) {
        if let Some(delivery) = consumer.next_timeout(Duration::from_millis(100))? {
            orders.send(delivery.text()?.to_owned()).unwrap();
            delivery.ack()?;
        }
    }
    Ok(())
}

// The tests.

/// Only a test that hangs waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker, and both programs on threads of their own.
struct Bench {
    broker: Broker,
    publisher: Publisher,
    received: Receiver<String>,
    stop: Arc<AtomicBool>,
    consumer: Option<JoinHandle<()>>,
}

impl Bench {
    fn new() -> Bench {
        // A port of its own: any number of tests run at the same time.
        let broker = Broker::listen("127.0.0.1:0").unwrap();
        let uri = broker.uri().unwrap();
        let (orders, received) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let consumer = thread::spawn({
            let (uri, stop) = (uri.clone(), stop.clone());
            move || consume(&uri, &orders, &stop)
        });
        broker.expect_consumers("/", QUEUE, 1, PATIENCE).unwrap();
        Bench { broker, publisher: Publisher { uri, open: None }, received, stop, consumer: Some(consumer) }
    }

    fn publish(&mut self, orders: std::ops::Range<u32>) {
        for order in orders {
            self.publisher.publish(&format!("order {order}"), Instant::now() + PATIENCE).unwrap();
        }
    }

    /// Every order arrives, in whatever order, perhaps twice.
    fn expect(&self, orders: std::ops::Range<u32>) {
        let mut missing: BTreeSet<String> = orders.map(|order| format!("order {order}")).collect();
        while !missing.is_empty() {
            let order = self.received.recv_timeout(PATIENCE);
            assert!(order.is_ok(), "never received: {missing:?}");
            missing.remove(&order.unwrap());
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(consumer) = self.consumer.take() {
            let _ = consumer.join();
        }
    }
}

#[test]
fn orders_survive_a_broker_that_is_killed() {
    let mut bench = Bench::new();
    bench.publish(0..10);
    bench.broker.crash(); // no goodbye to anybody
    bench.broker.restart().unwrap(); // same port
    bench.publish(10..20);
    bench.expect(0..20);
}

#[test]
fn orders_survive_a_restart_while_they_wait() {
    let mut bench = Bench::new();
    // The consumer gets nothing more, so that the orders wait in the queue.
    for connection in bench.broker.connections() {
        bench.broker.stall_writes(connection.id, true);
    }
    bench.publish(0..10);
    bench.broker.restart().unwrap(); // with a goodbye: 320
    bench.expect(0..10);
}

#[test]
fn orders_survive_a_broker_that_stalls() {
    let mut bench = Bench::new();
    bench.publish(0..1);
    // What is open now is not read from any more; new connections are. The publisher runs into its limit.
    for connection in bench.broker.connections() {
        bench.broker.stall_reads(connection.id, true);
    }
    bench.publish(1..2);
    bench.expect(0..2);
}

#[test]
fn orders_survive_a_broker_that_is_full() {
    let mut bench = Bench::new();
    bench.broker.set_confirms(ConfirmMode::Nack);
    let soon = Instant::now() + Duration::from_millis(100);
    assert!(bench.publisher.publish("order 0", soon).is_err());
    bench.broker.set_confirms(ConfirmMode::Send);
    bench.publish(0..1);
    bench.expect(0..1);
}
