//! Memory stays flat, however many publishes nobody asks about. A program of its own: it looks at the size of the
//! whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    env, fs,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use common::{
    peer::*,
    watchdog::{Watchdog, test_name},
};
use leveret::{Connection, Error, Publish};

/// How many publishes: `LEVERET_TEST_PUBLISHES=10000000` for the whole of row 63.
const VARIABLE: &str = "LEVERET_TEST_PUBLISHES";
const PUBLISHES: u64 = 1_000_000;

/// Before memory is looked at the first time.
const WARM_UP: u64 = 50_000;

/// What may come on top. One word for each publish would be 8 MB.
const SLACK: usize = 4 * 1024 * 1024;

const BODY: &[u8; 16] = b"sixteen bytes...";

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kilobytes = line.split_whitespace().nth(1).unwrap();
    kilobytes.parse::<usize>().unwrap() * 1024
}

/// What one publish takes on the wire.
fn length() -> u64 {
    content(1, PUBLISH, args![0, "", "key", 0], NO_PROPERTIES, BODY, 4096).len() as u64
}

/// Takes publishes of the same length and settles them in their order: of two answers, one is a nack.
fn serve(peer: &mut Peer, publishes: u64, answered: &AtomicU64) {
    let (length, mut bytes, mut settled) = (length(), 0, 0);
    let mut chunk = vec![0; 64 * 1024];
    while settled < publishes {
        let read = peer.socket().read(&mut chunk).unwrap();
        assert_ne!(read, 0, "the client hung up");
        bytes += read as u64;
        let received = bytes / length;
        if received > settled {
            let middle = settled + (received - settled) / 2;
            peer.send(1, ACK, args![received - 1, 0]);
            peer.send(1, NACK, args![middle.max(1), 1]);
            peer.send(1, ACK, args![received, 1]);
            settled = received;
        }
        answered.store(settled, Ordering::SeqCst);
    }
}

/// Row 63: handles that are dropped leak nothing, nor do messages that were mandatory, nor failures that nobody
/// asks for.
#[test]
fn memory_is_flat_whatever_is_dropped() {
    let _watchdog = Watchdog::new(&test_name(), Duration::from_secs(600));
    let publishes =
        env::var(VARIABLE).map_or(PUBLISHES, |number| number.parse().expect("a number of publishes"));
    let answered = Arc::new(AtomicU64::new(0));
    let by_peer = answered.clone();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, CONFIRM_SELECT);
        peer.send(1, CONFIRM_SELECT_OK, &[]);
        serve(peer, publishes, &by_peer);
        peer.close_channel(1);
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    channel.confirm_select().unwrap();
    let mut at_first = 0;
    for number in 0..publishes {
        match number % 3 {
            0 => drop(channel.deferred().basic_publish("", "key", BODY).unwrap()),
            1 => channel.basic_publish("", "key", BODY).unwrap(),
            _ => {
                let mut handle =
                    channel.deferred().basic_publish("", "key", Publish::new(BODY).mandatory(true)).unwrap();
                let _ = handle.try_wait();
            }
        }
        if number == WARM_UP {
            at_first = resident();
        }
    }
    let failures = channel.wait_for_confirms(Duration::from_secs(60)).unwrap_err();
    let at_last = resident();
    assert_eq!((channel.unconfirmed(), answered.load(Ordering::SeqCst)), (0, publishes));
    let Error::Unconfirmed(unconfirmed) = failures else { panic!("{failures:?}") };
    assert!(unconfirmed.failures.len() <= 1000 && unconfirmed.more > 0);
    let grown = at_last.saturating_sub(at_first);
    assert!(grown < SLACK, "{grown} bytes more after {publishes} publishes");
    channel.close().unwrap();
    connection.close().unwrap();
}
