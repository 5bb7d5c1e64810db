//! A thousand TLS connections, cut anywhere and dropped: nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "tls/front.rs"]
mod front;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    limits::ample,
    peer::{
        CHANNEL_CLOSE, CHANNEL_CLOSE_OK, CHANNEL_OPEN, CHANNEL_OPEN_OK, CLOSE, CLOSE_OK, Method, OPEN,
        OPEN_OK, PROTOCOL_HEADER, QUEUE_PURGE, QUEUE_PURGE_OK, START_OK, TUNE, Value, args, method,
        nothing_is_left, start, take_frame,
    },
    proxy::{Cut, Direction, Proxy},
    watchdog::{LIMIT, Watchdog, test_name},
};
use front::{Front, acceptor, trusting_quickly};
use leveret::{Config, Connection, Error};

const CONNECTIONS: usize = 1000;
const AT_ONCE: usize = 8;

/// Answers what clients ask, on any number of connections, until they hang up.
fn broker(stop: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let socket = socket.unwrap();
            if stop.load(Ordering::SeqCst) {
                break;
            }
            socket.set_nodelay(true).unwrap();
            thread::spawn(move || _ = answer(socket));
        }
    });
    port
}

fn answer(mut socket: TcpStream) -> std::io::Result<()> {
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let length = socket.read(&mut chunk)?;
        if length == 0 {
            return Ok(());
        }
        received.extend(&chunk[..length]);
        if received.starts_with(&PROTOCOL_HEADER) {
            received.drain(..8);
            socket.write_all(&start("PLAIN"))?;
        }
        if PROTOCOL_HEADER.starts_with(&received) {
            continue;
        }
        while let Some(frame) = take_frame(&mut received) {
            let answers: [(Method, Method, &[Value]); 6] = [
                (START_OK, TUNE, args![10, 131_072, 0]),
                (OPEN, OPEN_OK, args![""]),
                (CHANNEL_OPEN, CHANNEL_OPEN_OK, args![""]),
                (QUEUE_PURGE, QUEUE_PURGE_OK, args![1]),
                (CHANNEL_CLOSE, CHANNEL_CLOSE_OK, args![]),
                (CLOSE, CLOSE_OK, args![]),
            ];
            if let Some((_, answer, arguments)) =
                answers.iter().find(|(asked, ..)| frame.method() == Some(*asked))
            {
                socket.write_all(&method(frame.channel, *answer, arguments))?;
            }
        }
    }
}

/// Uses a connection in a random way.
fn use_it(config: Config, random: &mut fastrand::Rng) -> Result<(), Error> {
    let connection = Connection::open(config)?;
    let channel = connection.channel()?;
    for _ in 0..random.u32(0..20) {
        channel.queue_purge("q")?;
        channel.basic_publish("", "q", &vec![7; random.usize(0..20_000)])?;
    }
    match random.u32(0..3) {
        0 => connection.close(),
        1 => {
            drop(connection);
            Ok(())
        }
        _ => {
            channel.close()?;
            drop(connection);
            Ok(())
        }
    }
}

/// Row 22: whatever becomes of a connection, its threads and its socket go with it, soon.
#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let stop = Arc::new(AtomicBool::new(false));
    let port = broker(stop.clone());
    let front = Front::before(port, acceptor("server"));
    let (front_address, next) = (front.address, &AtomicUsize::new(0));
    let (orderly, cut) = (&AtomicUsize::new(0), &AtomicUsize::new(0));
    let start = Instant::now();
    thread::scope(|scope| {
        for worker in 0..AT_ONCE {
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(worker as u64);
                while next.fetch_add(1, Ordering::SeqCst) < CONNECTIONS {
                    let proxy = Proxy::before(front_address);
                    if random.bool() {
                        // Two thirds of that are the handshakes.
                        let after = random.u64(0..3000);
                        let kind = if random.bool() { Cut::Fin } else { Cut::Reset };
                        let direction = if random.bool() { Direction::ToClient } else { Direction::ToBroker };
                        proxy.cut_at(direction, after, kind);
                    }
                    let config = ample(Config::new())
                        .host("127.0.0.1", proxy.address.port())
                        .tls(trusting_quickly())
                        .drop_timeout(Duration::from_millis(random.u64(0..500)));
                    match use_it(config, &mut random) {
                        Ok(()) => orderly.fetch_add(1, Ordering::SeqCst),
                        Err(error) => {
                            assert!(
                                matches!(error, Error::Connect(_) | Error::Io { .. } | Error::Closed(_)),
                                "{error:?}"
                            );
                            cut.fetch_add(1, Ordering::SeqCst)
                        }
                    };
                }
            });
        }
    });
    println!("{orderly:?} orderly, {cut:?} cut, in {:?}", start.elapsed());
    assert!(orderly.load(Ordering::SeqCst) > 100 && cut.load(Ordering::SeqCst) > 100);
    drop(front);
    stop.store(true, Ordering::SeqCst);
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    nothing_is_left();
}
