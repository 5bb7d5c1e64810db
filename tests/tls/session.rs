//! An established connection over TLS, with a scripted peer behind the front.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use leveret::{Channel, Config, Connection, Consume, Error};
use openssl::ssl::SslVersion;

use crate::{
    common::{
        limits::{PROMPT, ample, given_time},
        peer::{
            CANCEL, CANCEL_OK, CHANNEL_OPEN_OK, CLOSE, CONSUME, CONSUME_OK, DELIVER, NO_PROPERTIES, OPEN_OK,
            Peer, TUNE, Tune, args, content, method, start,
        },
        proxy::{Direction, Proxy},
        watchdog::{LIMIT, Watchdog, test_name},
    },
    front::{Front, Manners, acceptor, acceptor_for, file, trusting},
};

fn config(port: u16) -> Config {
    ample(Config::new()).host("127.0.0.1", port).heartbeat(Duration::ZERO).tls(trusting())
}

/// The client consumes without acks, so it sets no prefetch.
fn start_consumer(peer: &mut Peer) -> String {
    let tag = peer.expect(1, CONSUME).text(2).to_owned();
    peer.send(1, CONSUME_OK, args![&tag]);
    tag
}

/// Row 21, and the reason for the memory between TLS and the socket: a publisher that is stuck because the peer
/// reads nothing holds up neither deliveries nor heartbeats of the same connection.
#[test]
fn deliveries_go_on_while_a_publisher_is_stuck() {
    const DELIVERIES: u64 = 1000;
    const PUBLISHES: usize = 400;
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let (want, wanted) = mpsc::channel();
        let peer = Peer::run(move |peer| {
            peer.handshake_with(Tune { heartbeat: 60, ..Tune::default() });
            peer.open_channel(1);
            peer.open_channel(2);
            let tag = start_consumer(peer);
            // One at a time: each has to get past the stuck publisher.
            for (number, ()) in (1..).zip(wanted) {
                peer.deliver(1, &tag, number, &number.to_be_bytes());
                peer.heartbeat();
            }
            for number in 0..PUBLISHES {
                let (_, _, body) = peer.expect_publish(2);
                assert_eq!(body, vec![number as u8; 64 * 1024], "publish {number}");
            }
            peer.close();
        });
        let front = Front::before(peer.port, acceptor_for("server", Some(version)));
        let proxy = Proxy::before(front.address);
        let connection =
            Connection::open(config(proxy.address.port()).heartbeat(Duration::from_secs(60))).unwrap();
        let (consuming, publishing) = (connection.channel().unwrap(), connection.channel().unwrap());
        let mut consumer = consuming.basic_consume(Consume::new("q").no_ack(true)).unwrap();
        let publisher = thread::spawn(move || {
            for number in 0..PUBLISHES {
                publishing.basic_publish("", "q", &vec![number as u8; 64 * 1024]).unwrap();
            }
            publishing
        });
        let written = proxy.wait_quiet(Direction::ToBroker, Duration::from_millis(300));
        assert!(!publisher.is_finished(), "25 MiB fit nowhere");
        let start = Instant::now();
        for number in 1..=DELIVERIES {
            want.send(()).unwrap();
            let delivery = consumer.next_timeout(PROMPT).unwrap().expect("in time");
            assert_eq!(delivery.body(), number.to_be_bytes());
        }
        // A writer that kept the lock while it waits would hold up each for a tenth of a second, so for longer in all.
        let took = start.elapsed();
        assert!(took < PROMPT, "{DELIVERIES} deliveries took {took:?}");
        assert_eq!(proxy.passed(Direction::ToBroker), written, "the publisher was stuck all the time");
        drop(want);
        drop(publisher.join().unwrap());
        connection.close().unwrap();
        peer.finish();
    }
}

/// The reverse: publishing goes on while reading pauses because nobody takes the deliveries (row 74).
#[test]
fn publishes_go_on_while_reading_pauses() {
    const PUBLISHES: usize = 2000;
    const DELIVERIES: u64 = 300;
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        let tag = start_consumer(peer);
        let mut socket = peer.socket().try_clone().unwrap();
        let deliveries = thread::spawn(move || {
            for number in 1..=DELIVERIES {
                let arguments = args![&tag, number, 0, "", "key"];
                let delivery = content(1, DELIVER, arguments, NO_PROPERTIES, &[7; 64 * 1024], 131_064);
                socket.write_all(&delivery).unwrap();
            }
        });
        for number in 0..PUBLISHES {
            assert_eq!(peer.expect_publish(1).2, vec![number as u8; 1000], "publish {number}");
        }
        assert!(!deliveries.is_finished(), "the client has stopped reading");
        let cancelled = peer.until(1, CANCEL).text(0).to_owned();
        peer.send(1, CANCEL_OK, args![&cancelled]);
        peer.close();
        let _ = deliveries.join();
    });
    let front = Front::before(peer.port, acceptor("server"));
    let connection = Connection::open(config(front.address.port()).incoming_buffer(64 * 1024)).unwrap();
    let channel = connection.channel().unwrap();
    let mut consumer = channel.basic_consume(Consume::new("q").no_ack(true)).unwrap();
    for number in 0..PUBLISHES {
        channel.basic_publish("", "q", &vec![number as u8; 1000]).unwrap();
    }
    for _ in 0..DELIVERIES {
        let delivery = consumer.next_timeout(PROMPT).unwrap().expect("in time");
        assert_eq!(delivery.body(), [7; 64 * 1024]);
    }
    consumer.cancel().unwrap();
    connection.close().unwrap();
    peer.finish();
}

/// Row 21: over TLS as well, a write that cannot progress for two intervals is a dead peer, though it still sends.
#[test]
fn a_peer_that_takes_no_more_bytes_is_given_up() {
    given_time(|times| {
        let _watchdog = Watchdog::new(&test_name(), LIMIT);
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let peer = Peer::run(move |peer| {
            peer.handshake_with(Tune { heartbeat: times as u16, ..Tune::default() });
            peer.open_channel(1);
            while !stop.load(Ordering::SeqCst) {
                peer.heartbeat();
                thread::sleep(Duration::from_millis(100));
            }
        });
        let front = Front::before(peer.port, acceptor("server"));
        let connection =
            Connection::open(config(front.address.port()).heartbeat(times * Duration::from_secs(1))).unwrap();
        let channel = connection.channel().unwrap();
        let body = vec![0; 1 << 20];
        let error = loop {
            if let Err(error) = channel.basic_publish("", "q", &body) {
                break error;
            }
        };
        over.store(true, Ordering::SeqCst);
        assert!(
            matches!(&error, Error::Timeout(timeout) if timeout.waiting_for == "writing to the peer"),
            "{error}"
        );
        assert_eq!(connection.wait_closed().to_string(), error.to_string(), "one first cause");
        peer.finish();
    });
}

/// Row 22: how the stream ends is told, and every waiter hears the same.
#[test]
fn an_end_without_goodbye_is_told_from_an_orderly_one() {
    for (manners, expected) in [
        (Manners::Good, "reading failed: the peer closed the connection"),
        (Manners::Rude, "without TLS's close_notify"),
    ] {
        let peer = Peer::run(|peer| {
            peer.handshake();
            peer.open_channel(1);
            peer.fin();
        });
        let front = Front::with_manners(peer.port, acceptor("server"), manners);
        let connection = Connection::open(config(front.address.port())).unwrap();
        let channel = connection.channel().unwrap();
        let cause = connection.wait_closed_timeout(PROMPT).expect("it has ended");
        assert!(matches!(cause, Error::Io { .. }), "{cause:?}");
        assert!(cause.to_string().contains(expected), "{cause}");
        assert_eq!(channel.queue_purge("q").unwrap_err().to_string(), cause.to_string());
        peer.finish();
    }
}

/// Row 22: bytes that are not from the peer's TLS end the connection, with a clear text.
#[test]
fn a_forged_record_ends_the_connection() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.expect_end();
    });
    let front = Front::before(peer.port, acceptor("server"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = front.address;
    let (opened, is_open) = mpsc::channel::<()>();
    let forger = thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(server).unwrap();
        let ways = [(&client, &server), (&server, &client)];
        let pumps = ways.map(|(from, to)| {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Both);
            })
        });
        is_open.recv().unwrap();
        let mut record = vec![0x17, 3, 3, 0, 64];
        record.extend([0x5A; 64]);
        (&client).write_all(&record).unwrap();
        pumps.into_iter().for_each(|pump| pump.join().unwrap());
    });
    let connection = Connection::open(config(port)).unwrap();
    opened.send(()).unwrap();
    let cause = connection.wait_closed_timeout(PROMPT).expect("it has ended");
    assert!(matches!(&cause, Error::Io { .. }), "{cause:?}");
    assert!(cause.to_string().contains("TLS: ") && cause.to_string().contains("bad record mac"), "{cause}");
    drop(connection);
    forger.join().unwrap();
    peer.finish();
}

/// OpenSSL's own server, which can be told to ask for new keys. What is written to it goes to the client.
struct OpensslServer {
    child: Child,
    port: u16,
}

impl OpensslServer {
    fn start(version: &str) -> OpensslServer {
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-naccept", "1", version])
            .arg("-cert")
            .arg(file("server.pem"))
            .arg("-key")
            .arg(file("server.key"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl");
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let port = loop {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "it has ended");
            if let Some(address) = line.trim().strip_prefix("ACCEPT ") {
                break address.rsplit_once(':').unwrap().1.parse().unwrap();
            }
        };
        // It must not be held up by what it prints.
        thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        OpensslServer { child, port }
    }

    /// In one piece: a piece that starts with a certain letter is a command.
    fn say(&mut self, words: &[u8]) {
        let input: &mut ChildStdin = self.child.stdin.as_mut().unwrap();
        input.write_all(words).unwrap();
        input.flush().unwrap();
    }
}

impl Drop for OpensslServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection to it, with a channel.
fn open(server: &mut OpensslServer, proxy: &Proxy) -> (Connection, Channel) {
    // Said in advance: the client takes it in its order.
    let mut script = start("PLAIN");
    script.extend(method(0, TUNE, args![10, 131_072, 0]));
    script.extend(method(0, OPEN_OK, args![""]));
    server.say(&script);
    // It answers no close of a channel.
    let config = config(proxy.address.port()).drop_timeout(Duration::ZERO);
    let connection = Connection::open(config).unwrap();
    let before = proxy.wait_quiet(Direction::ToBroker, Duration::from_millis(20));
    let opening = thread::spawn({
        let connection = connection.clone();
        move || connection.channel()
    });
    proxy.wait_passed(Direction::ToBroker, before + 1);
    server.say(&method(1, CHANNEL_OPEN_OK, args![""]));
    (connection, opening.join().unwrap().unwrap())
}

/// The peer's last word arrives and is understood, whatever was done to the keys before.
fn is_still_understood(server: &mut OpensslServer, connection: &Connection) {
    server.say(&method(0, CLOSE, args![320, "with new keys", 0, 0]));
    let cause = connection.wait_closed_timeout(PROMPT).expect("it is over");
    assert!(cause.to_string().contains("320 with new keys"), "{cause}");
}

/// What reading makes TLS want to send is sent without any other traffic: the writer is woken for it. Here the peer
/// negotiates anew, which takes both sides several steps.
#[test]
fn a_new_negotiation_needs_no_other_traffic() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let mut server = OpensslServer::start("-tls1_2");
    let proxy = Proxy::before(([127, 0, 0, 1], server.port).into());
    let (connection, _channel) = open(&mut server, &proxy);
    for _ in 0..20 {
        let before = proxy.wait_quiet(Direction::ToBroker, Duration::from_millis(50));
        server.say(b"r\n");
        // More than one flight of the client.
        proxy.wait_passed(Direction::ToBroker, before + 400);
    }
    is_still_understood(&mut server, &connection);
}

/// New keys (TLS 1.3) and new negotiations (TLS 1.2) while a publisher goes on.
#[test]
fn new_keys_do_not_disturb_a_publisher() {
    for (version, command) in [("-tls1_2", b"r\n"), ("-tls1_3", b"K\n")] {
        let _watchdog = Watchdog::new(&test_name(), LIMIT);
        let mut server = OpensslServer::start(version);
        let proxy = Proxy::before(([127, 0, 0, 1], server.port).into());
        let (connection, channel) = open(&mut server, &proxy);
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let publisher = thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                channel.basic_publish("", "q", &[7; 10_000]).unwrap();
            }
        });
        for _ in 0..20 {
            let before = proxy.passed(Direction::ToBroker);
            server.say(command);
            proxy.wait_passed(Direction::ToBroker, before + 200_000);
        }
        over.store(true, Ordering::SeqCst);
        publisher.join().unwrap();
        is_still_understood(&mut server, &connection);
    }
}
