//! What TLS costs: publishing and consuming over TLS, beside the same without TLS and beside copying the same bytes
//! through native-tls alone, in processor time of the client's threads, per message. On Linux only, where the system
//! tells the time of each thread.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/tls/front.rs"]
mod front;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use common::peer::*;
use front::Front;
use leveret::{Config, Connection, Consume, native_tls::TlsStream};

/// Of ciphertext, about, for one measurement.
const AMOUNT: usize = 128 << 20;

/// Of the smallest messages so many are as much work.
const MOST_MESSAGES: usize = 2_000_000;

/// Each pair of measurements is made so often, by turns.
const ROUNDS: usize = 9;

fn main() {
    println!(
        "{:>14} {:>12} {:>12} {:>12} {:>12}",
        "ns per message", "over TLS", "without", "bare TLS", "over / bare"
    );
    for size in [16, 1024, 64 * 1024] {
        let published = content(1, PUBLISH, args![0, "", "key", 0], NO_PROPERTIES, &vec![0; size], 131_064);
        report(
            "publish",
            size,
            [&|| publish(size, Tls::On), &|| publish(size, Tls::Off), &|| write(&published)],
        );
        let delivered =
            content(1, DELIVER, args!["tag", 1, 0, "", "key"], NO_PROPERTIES, &vec![0; size], 131_064);
        report("next", size, [&|| next(size, Tls::On), &|| next(size, Tls::Off), &|| read(&delivered)]);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Tls {
    On,
    Off,
}

/// Measures by turns; prints the medians, and that of the ratios of the first to the last.
fn report(name: &str, size: usize, measured: [&dyn Fn() -> f64; 3]) {
    let rounds: Vec<[f64; 3]> = (0..ROUNDS).map(|_| measured.map(|measure| measure())).collect();
    let median = |value: &dyn Fn(&[f64; 3]) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let [over, without, bare] = [0, 1, 2].map(|column| median(&|round| round[column]));
    let ratio = median(&|round| round[0] / round[2]);
    println!("{:>14} {over:>12.0} {without:>12.0} {bare:>12.0} {ratio:>12.2}", format!("{name} {size}"));
}

/// Processor time so far, in nanoseconds, of this thread and of those of the connection.
fn processor_time() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux").filter_map(Result::ok);
    let own = fs::read_link("/proc/thread-self").unwrap();
    let client = tasks.filter(|task| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.starts_with("leveret") || own.ends_with(task.file_name())
    });
    let times = client.map(|task| fs::read_to_string(task.path().join("schedstat")).unwrap_or_default());
    times.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// Nanoseconds per message for `messages` of them.
fn cost(messages: usize, work: impl FnOnce()) -> f64 {
    let before = processor_time();
    work();
    (processor_time() - before) as f64 / messages as f64
}

fn messages(size: usize) -> usize {
    (AMOUNT / size).min(MOST_MESSAGES)
}

fn publish(size: usize, tls: Tls) -> f64 {
    let (_front, _script, connection) = connect(tls, swallow);
    let channel = connection.channel().unwrap();
    let (messages, body) = (messages(size), vec![0; size]);
    cost(messages, || (0..messages).for_each(|_| channel.basic_publish("", "key", &body[..]).unwrap()))
}

fn next(size: usize, tls: Tls) -> f64 {
    let (_front, _script, connection) = connect(tls, move |peer| {
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        let one = content(1, DELIVER, args!["tag", 1, 0, "", "key"], NO_PROPERTIES, &vec![0; size], 131_064);
        send_for_ever(peer, &one);
    });
    let channel = connection.channel().unwrap();
    let mut consumer = channel.basic_consume(Consume::new("q").consumer_tag("tag").no_ack(true)).unwrap();
    let messages = messages(size);
    cost(messages, || {
        for delivery in consumer.by_ref().take(messages) {
            assert_eq!(delivery.unwrap().body().len(), size);
        }
    })
}

fn write(one: &[u8]) -> f64 {
    let front = Front::alone(front::acceptor("server"));
    let mut stream = bare(&front);
    let (messages, chunk) = (messages(one.len()), vec![0; 64 * 1024]);
    cost(messages, || {
        let mut left = messages * one.len();
        while left > 0 {
            let piece = left.min(chunk.len());
            stream.write_all(&chunk[..piece]).unwrap();
            left -= piece;
        }
    })
}

fn read(one: &[u8]) -> f64 {
    let repeated = one.to_vec();
    let script = Peer::run(move |peer| send_for_ever(peer, &repeated));
    let front = Front::before(script.port, front::acceptor("server"));
    let mut stream = bare(&front);
    let (messages, mut chunk) = (messages(one.len()), vec![0; 64 * 1024]);
    let cost = cost(messages, || {
        let mut left = messages * one.len();
        while left > 0 {
            left -= stream.read(&mut chunk).unwrap().min(left);
        }
    });
    drop(stream);
    cost
}

/// A connection whose peer does this after the handshake, and has opened a channel.
fn connect(
    tls: Tls,
    script: impl FnOnce(&mut Peer) + Send + 'static,
) -> (Option<Front>, Script<()>, Connection) {
    let script = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        script(peer);
    });
    let front = (tls == Tls::On).then(|| Front::before(script.port, front::acceptor("server")));
    let config = match &front {
        Some(front) => Config::new().host("localhost", front.address.port()).tls(front::trusting_quickly()),
        None => script.config(),
    };
    let quick = Duration::from_millis(50);
    let connection = Connection::open(config.close_timeout(quick).drop_timeout(quick)).unwrap();
    (front, script, connection)
}

/// The same without AMQP.
fn bare(front: &Front) -> TlsStream<TcpStream> {
    let socket = TcpStream::connect(front.address).unwrap();
    socket.set_nodelay(true).unwrap();
    front::connector().connect("localhost", socket).unwrap()
}

/// Reads all there is and says nothing, until the client hangs up.
fn swallow(peer: &mut Peer) {
    let mut chunk = vec![0; 256 * 1024];
    while peer.socket().read(&mut chunk).is_ok_and(|read| read > 0) {}
}

fn send_for_ever(peer: &mut Peer, one: &[u8]) {
    let many = one.repeat((256 * 1024 / one.len()).max(1));
    while peer.socket().write_all(&many).is_ok() {}
}
