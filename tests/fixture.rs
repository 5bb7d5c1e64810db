//! The test support itself: the list of brokers, and the faults of the proxy. Says what is left out when there
//! is no broker.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use common::{
    brokers::{VARIABLE, listed, on_each_broker},
    proxy::{Cut, Direction, Proxy},
    watchdog::{Watchdog, say, test_name},
};

/// The names of the tests in a file of `tests/` that call `on_each_broker`.
fn tests_with_brokers(source: &str) -> usize {
    source.split("#[test]").skip(1).filter(|test| test.contains("on_each_broker")).count()
}

/// A run without brokers says what it leaves out; one with brokers finds every one of them.
#[test]
fn what_is_left_out_is_said() {
    if let Some(brokers) = listed() {
        for broker in brokers {
            let (status, overview) = broker.management("GET", "/api/overview", "").expect("it answers");
            assert_eq!(status, 200, "{}", broker.name);
            let version = format!("\"rabbitmq_version\":\"{}\"", broker.version);
            assert!(overview.contains(&version), "{}: {overview}", broker.name);
        }
        return;
    }
    let mut counts = Vec::new();
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")).expect("the tests") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let count = tests_with_brokers(&fs::read_to_string(&path).expect("its text"));
            if count > 0 {
                counts.push((path.file_stem().expect("a name").to_string_lossy().into_owned(), count));
            }
        }
    }
    counts.sort();
    let total: usize = counts.iter().map(|(_, count)| count).sum();
    let each: Vec<String> = counts.iter().map(|(file, count)| format!("{file} {count}")).collect();
    say(&format!(
        "LEFT OUT: {total} tests that need RabbitMQ, because {VARIABLE} is not set ({}). \
         tests/run starts the brokers and runs everything.",
        each.join(", ")
    ));
}

/// Each run of a body has a virtual host of its own, which is gone afterwards.
#[test]
fn a_virtual_host_lives_as_long_as_its_test() {
    let seen = std::sync::Mutex::new(Vec::new());
    on_each_broker(|broker| {
        assert!(broker.has_vhost(&broker.vhost));
        assert_eq!(
            broker.connect().server_properties().get("product").and_then(|it| it.as_str()),
            Some("RabbitMQ")
        );
        seen.lock().unwrap().push(broker.clone());
        Ok(())
    });
    for broker in seen.into_inner().unwrap() {
        assert!(!broker.has_vhost(&broker.vhost));
    }
}

/// Sends back what it gets, and tells how its only connection ended.
fn echo() -> (std::net::SocketAddr, JoinHandle<Result<u64, ErrorKind>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its number");
    let thread = thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a connection");
        let mut received = 0;
        let mut buffer = [0; 4096];
        loop {
            match socket.read(&mut buffer) {
                Ok(0) => return Ok(received),
                Ok(read) => {
                    received += read as u64;
                    socket.write_all(&buffer[..read]).map_err(|error| error.kind())?;
                }
                Err(error) => return Err(error.kind()),
            }
        }
    });
    (address, thread)
}

/// A proxy in front of an echo, and a client.
fn proxied() -> (Watchdog, Proxy, TcpStream, JoinHandle<Result<u64, ErrorKind>>) {
    let watchdog = Watchdog::new(&test_name(), Duration::from_secs(30));
    let (address, echo) = echo();
    let proxy = Proxy::before(address);
    let client = TcpStream::connect(proxy.address).expect("the proxy listens");
    (watchdog, proxy, client, echo)
}

fn read_exactly(client: &mut TcpStream, expected: &[u8]) {
    let mut answer = vec![0; expected.len()];
    client.read_exact(&mut answer).expect("the echo");
    assert_eq!(answer, expected);
}

#[test]
fn the_proxy_passes_everything_in_both_directions() {
    let (_watchdog, proxy, mut client, echo) = proxied();
    for _ in 0..10 {
        client.write_all(b"hello").unwrap();
        read_exactly(&mut client, b"hello");
    }
    drop(client);
    assert_eq!(echo.join().unwrap(), Ok(50));
    // Counted a moment after they were written.
    proxy.wait_passed(Direction::ToClient, 50);
    assert_eq!((proxy.passed(Direction::ToBroker), proxy.passed(Direction::ToClient)), (50, 50));
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn the_proxy_cuts_after_exactly_so_many_bytes() {
    for cut in [Cut::Fin, Cut::Reset, Cut::HalfClose] {
        let (_watchdog, proxy, mut client, echo) = proxied();
        proxy.cut_at(Direction::ToBroker, 7, cut);
        client.write_all(b"123").unwrap();
        read_exactly(&mut client, b"123");
        client.write_all(b"4567890").unwrap();
        let end = echo.join().unwrap();
        match cut {
            Cut::Reset => assert_eq!(end, Err(ErrorKind::ConnectionReset)),
            _ => assert_eq!(end, Ok(7)),
        }
        if cut == Cut::HalfClose {
            read_exactly(&mut client, b"4567");
        }
        assert_eq!(proxy.passed(Direction::ToBroker), 7, "{cut:?}");
    }
}

#[test]
fn the_proxy_stalls_and_resumes() {
    let (_watchdog, proxy, mut client, echo) = proxied();
    proxy.stall(Direction::ToClient);
    client.write_all(b"held").unwrap();
    proxy.wait_passed(Direction::ToBroker, 4);
    assert_eq!(proxy.wait_quiet(Direction::ToClient, Duration::from_millis(50)), 0);
    proxy.resume(Direction::ToClient);
    read_exactly(&mut client, b"held");
    drop(client);
    assert_eq!(echo.join().unwrap(), Ok(4));
}

#[test]
fn the_proxy_delays_and_throttles() {
    let (_watchdog, proxy, mut client, _echo) = proxied();
    let started = Instant::now();
    proxy.delay(Direction::ToBroker, Duration::from_millis(40));
    client.write_all(b"late").unwrap();
    read_exactly(&mut client, b"late");
    assert!(started.elapsed() >= Duration::from_millis(40), "{:?}", started.elapsed());

    proxy.delay(Direction::ToBroker, Duration::ZERO);
    proxy.throttle(Direction::ToBroker, 100_000);
    let started = Instant::now();
    client.write_all(&[7; 5000]).unwrap();
    read_exactly(&mut client, &[7; 5000]);
    assert!(started.elapsed() >= Duration::from_millis(50), "{:?}", started.elapsed());
}
