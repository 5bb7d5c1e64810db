//! The end of the in-process broker, and of direct listeners: in bounded time whatever clients and handlers do (promise 1),
//! and nothing is left of it. The tests count the threads of their process, so they run one after the other.

#![cfg(feature = "broker")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    io::Write,
    net::TcpStream,
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use common::watchdog::{LIMIT, Watchdog, test_name};
use leveret::{
    BasicProperties, Config, Connection, QueueDeclare, ReplyCode,
    broker::Broker,
    direct::{Published, Serve},
};

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> (Watchdog, MutexGuard<'static, ()>) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    (Watchdog::new(&test_name(), LIMIT), alone)
}

/// The names of the threads of brokers and direct listeners in this process.
#[cfg(target_os = "linux")]
fn threads() -> Vec<String> {
    let names = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        // A thread may end while it is looked at.
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    });
    let is_ours = |name: &String| {
        ["leveret-broker", "leveret-session", "leveret-sender", "leveret-direct"]
            .iter()
            .any(|own| name.starts_with(own))
    };
    names.filter(is_ours).collect()
}

#[cfg(not(target_os = "linux"))]
fn threads() -> Vec<String> {
    Vec::new()
}

/// The system takes a thread out of its list a moment after others know that it has ended.
fn assert_no_threads() {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !threads().is_empty() {
        assert!(Instant::now() < deadline, "{:?} are left", threads());
        thread::yield_now();
    }
}

/// A client that says what it likes, and reads nothing.
struct Raw(TcpStream);

impl Raw {
    fn connect(broker: &Broker) -> Raw {
        Raw(TcpStream::connect(broker.address().unwrap()).unwrap())
    }

    fn say(&mut self, bytes: &[u8]) -> &mut Raw {
        self.0.write_all(bytes).unwrap();
        self
    }

    fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) -> &mut Raw {
        let mut frame = vec![1];
        frame.extend_from_slice(&channel.to_be_bytes());
        frame.extend_from_slice(&u32::try_from(arguments.len() + 4).unwrap().to_be_bytes());
        frame.extend_from_slice(&class.to_be_bytes());
        frame.extend_from_slice(&method.to_be_bytes());
        frame.extend_from_slice(arguments);
        frame.push(0xce);
        self.say(&frame)
    }

    /// Up to the credentials.
    fn start(&mut self) -> &mut Raw {
        let credentials = b"\0\0\0\0\x05PLAIN\0\0\0\x0c\0guest\0guest\x05en_US";
        self.say(b"AMQP\0\0\x09\x01").method(0, 10, 11, credentials)
    }

    /// Without heartbeats.
    fn open(&mut self) -> &mut Raw {
        self.start().method(0, 10, 31, b"\x07\xff\0\x02\0\0\0\0").method(0, 10, 40, b"\x01/\0\0")
    }

    /// Consumes `q` without acks.
    fn consume(&mut self) -> &mut Raw {
        self.method(1, 20, 10, b"\0").method(1, 60, 20, b"\0\0\x01q\x01t\x02\0\0\0\0")
    }
}

/// A queue `q` with more than the network takes.
fn fill(broker: &Broker, connection: &Connection) {
    connection.channel().unwrap().queue_declare("q").unwrap();
    for _ in 0..40 {
        assert!(broker.inject("/", "", "q", &BasicProperties::new(), &[7; 1 << 20]).unwrap());
    }
}

fn id_of(broker: &Broker, name: &str) -> u64 {
    broker.connections().iter().find(|known| known.name() == Some(name)).unwrap().id
}

/// Clients in every state: silent, half-way through the handshake, deaf, stalled by a test, blocked by the alarm, at work.
fn crowd(broker: &Broker) -> (Vec<Raw>, Vec<Connection>) {
    let mut raw: Vec<Raw> = (0..5).map(|_| Raw::connect(broker)).collect();
    raw[1].say(b"AMQ");
    raw[2].start();
    raw[3].open().say(&[1, 0, 1, 0, 0]);
    let connect = |name: &str| {
        let config: Config = broker.uri().unwrap().parse().unwrap();
        let timeout = Duration::from_millis(10);
        Connection::open(config.connection_name(name).drop_timeout(timeout)).unwrap()
    };
    let connections = ["silent", "unread", "unwritten", "blocked"].map(connect);
    fill(broker, &connections[0]);
    raw[4].open().consume();
    broker.stall_reads(id_of(broker, "unread"), true);
    broker.stall_writes(id_of(broker, "unwritten"), true);
    let channel = connections[3].channel().unwrap();
    channel.basic_publish("", "nowhere", "a publisher").unwrap();
    channel.flow(true).unwrap();
    broker.block(true);
    // `raw[3]`, `raw[4]` and the four others are open.
    broker.expect_connections(6, LIMIT).unwrap();
    (raw, connections.into())
}

#[test]
fn nothing_holds_up_an_end() {
    let _alone = alone();
    type End = fn(&Broker);
    let ends: [(&str, End); 4] = [
        ("drop", |_| {}),
        ("stop", Broker::stop),
        ("crash", Broker::crash),
        ("restart", |broker| broker.restart().unwrap()),
    ];
    for (name, end) in ends {
        let broker = Broker::listen("127.0.0.1:0").unwrap();
        let crowd = crowd(&broker);
        assert!(cfg!(not(target_os = "linux")) || threads().len() >= 2 * (5 + 4));
        end(&broker);
        assert_eq!(name == "drop", !broker.connections().is_empty(), "{name}");
        drop(broker);
        assert_no_threads();
        drop(crowd);
    }
}

/// Who does not answer when the broker closes, or cannot even be told, is cut; without heartbeats nobody else would.
#[test]
fn a_close_that_is_not_answered_ends_the_connection() {
    let _alone = alone();
    let broker = Broker::listen("127.0.0.1:0").unwrap();
    let mut raw = [Raw::connect(&broker), Raw::connect(&broker)];
    raw[0].open();
    broker.expect_connections(1, LIMIT).unwrap();
    let filling = broker.connect().unwrap();
    fill(&broker, &filling);
    filling.close().unwrap();
    raw[1].open().consume();
    // The deaf one has as much as fits, and the rest stays in the queue.
    let consumes = || broker.queues("/")[0].consumers == 1;
    while !consumes() {
        thread::yield_now();
    }
    for known in broker.connections() {
        assert!(broker.close_connection(known.id, ReplyCode::ConnectionForced, "enough"));
    }
    broker.expect_connections(0, LIMIT / 2).unwrap();
    drop(broker);
    assert_no_threads();
}

/// A handler that never returns is left behind.
#[test]
fn a_handler_that_does_not_return_holds_up_no_end() {
    let _alone = alone();
    let (inside, is_inside) = mpsc::channel();
    let (open, door) = mpsc::channel::<()>();
    let door = Mutex::new(door);
    let listener = Serve::new()
        .messages(move |_: &Published| {
            inside.send(())?;
            let _ = door.lock().unwrap().recv();
            Ok(())
        })
        .drop_timeout(Duration::from_millis(10))
        .start()
        .unwrap();
    let connection = listener.connect().unwrap();
    connection.channel().unwrap().basic_publish("", "q", "stay").unwrap();
    is_inside.recv().unwrap();
    drop(listener);
    assert_eq!(connection.wait_closed().reply_code(), Some(ReplyCode::ConnectionForced));
    // Its thread goes when it has returned.
    assert_eq!(cfg!(target_os = "linux"), threads().iter().any(|name| name.starts_with("leveret-direct")));
    drop(open);
    assert_no_threads();
}

/// Thousands of connections at once, which open, declare, publish, and end in every way: nothing is left of them.
#[test]
fn thousands_come_and_go() {
    const CONNECTIONS: usize = 2000;
    const AT_ONCE: usize = 8;
    let _alone = alone();
    let broker = Broker::start();
    let keeping = broker.connect().unwrap();
    keeping.channel().unwrap().queue_declare("sent").unwrap();
    let connections: Vec<Connection> = thread::scope(|scope| {
        let openers: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let connections = (0..CONNECTIONS / AT_ONCE).map(|_| {
                        let connection = broker.connect().unwrap();
                        let channel = connection.channel().unwrap();
                        let own = channel.queue_declare(QueueDeclare::new("").exclusive(true)).unwrap().queue;
                        channel.basic_publish("", &own, "for me").unwrap();
                        channel.basic_publish("", "sent", "for all").unwrap();
                        channel.flow(true).unwrap();
                        connection
                    });
                    connections.collect::<Vec<_>>()
                })
            })
            .collect();
        openers.into_iter().flat_map(|opener| opener.join().unwrap()).collect()
    });
    broker.expect_connections(CONNECTIONS + 1, LIMIT).unwrap();
    assert!(cfg!(not(target_os = "linux")) || threads().len() >= 2 * CONNECTIONS);
    assert_eq!(broker.queues("/").len(), CONNECTIONS + 1);
    broker.expect_queue_depth("/", "sent", CONNECTIONS, LIMIT).unwrap();
    let mut kept = Vec::new();
    for (number, connection) in connections.into_iter().enumerate() {
        match number % 3 {
            0 => connection.close().unwrap(),
            1 => drop(connection),
            _ => kept.push(connection),
        }
    }
    for known in broker.connections().iter().skip(1) {
        broker.drop_connection(known.id);
    }
    broker.expect_connections(1, LIMIT).unwrap();
    assert_eq!(broker.queues("/").len(), 1);
    assert_eq!(keeping.channel().unwrap().queue_purge("sent").unwrap(), CONNECTIONS as u32);
    assert_eq!(broker.memory(), 0);
    drop(broker);
    assert_no_threads();
}

#[test]
fn a_broker_knows_its_connections() {
    let _alone = alone();
    let broker = Broker::listen("127.0.0.1:0").unwrap();
    let named = broker.uri().unwrap().parse::<Config>().unwrap().connection_name("billing");
    let connection = Connection::open(named).unwrap();
    let inside = broker.connect().unwrap();
    let _channel = inside.channel().unwrap();
    let known = broker.connections();
    assert_eq!(known.len(), 2);
    assert_eq!((known[0].name(), known[0].channels, &*known[0].user), (Some("billing"), 0, "guest"));
    assert!(known[0].peer.is_some() && known[1].peer.is_none());
    assert_eq!((known[1].channels, known[1].vhost.as_deref()), (1, Some("/")));
    connection.close().unwrap();
    broker.expect_connections(1, LIMIT).unwrap();
    let error = broker.expect_connections(5, Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("1 connections"), "{error}");
    drop(broker);
    assert_no_threads();
}
