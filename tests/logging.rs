//! What the library logs where an error can be told in no other way. One test at a time: there is one log.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    mem,
    sync::{Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use common::{
    peer::*,
    watchdog::{LIMIT, Watchdog, test_name},
};
use leveret::Connection;
use log::Level;

/// A limit that is meant to pass.
const SHORT: Duration = Duration::from_millis(50);

struct Kept;

static RECORDS: Mutex<Vec<(Level, String, String)>> = Mutex::new(Vec::new());

impl log::Log for Kept {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let line = (record.level(), record.target().to_owned(), record.args().to_string());
        RECORDS.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
    fn flush(&self) {}
}

/// Keeps what is logged from now on, for one test.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static SET: Once = Once::new();
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    SET.call_once(|| log::set_logger(&Kept).unwrap());
    log::set_max_level(log::LevelFilter::Trace);
    logged();
    alone
}

/// What was logged at level `warn` and above since the last time.
fn logged() -> Vec<(Level, String, String)> {
    let all = mem::take(&mut *RECORDS.lock().unwrap_or_else(PoisonError::into_inner));
    all.into_iter().filter(|(level, ..)| *level <= Level::Warn).collect()
}

/// Rows 30, 102: a channel that is dropped has nobody to return its late error to, so it is logged. Without an error
/// nothing is, and neither is one that a call returns.
#[test]
fn a_dropped_channel_logs_its_late_error() {
    let _alone = alone();
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        // The one id is used again at once.
        peer.handshake_with(Tune { channel_max: 1, ..Tune::default() });
        peer.open_channel(1);
        peer.close_channel(1);
        peer.open_channel(1);
        peer.expect(1, CHANNEL_CLOSE);
        peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND - no exchange", 60, 40]);
        peer.expect(1, CHANNEL_CLOSE_OK);
        peer.send(1, CHANNEL_CLOSE_OK, &[]);
        peer.open_channel(1);
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND - no queue", 50, 30]);
        peer.expect(1, CHANNEL_CLOSE_OK);
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    drop(connection.channel().unwrap());
    assert_eq!(logged(), []);

    drop(connection.channel().unwrap());
    let late = "the broker closed the channel: 404 NOT_FOUND - no exchange (caused by basic.publish)";
    let expected = [format!("channel 1: {late}"), format!("closing channel 1 on drop: {late}")];
    assert_eq!(logged(), expected.map(|line| (Level::Warn, "leveret::channel".to_owned(), line)));

    // A call gets this one.
    let channel = connection.channel().unwrap();
    assert!(channel.queue_purge("q").unwrap_err().is_soft());
    assert_eq!(logged(), []);
    connection.close().unwrap();
}

/// Rows 13, 102: the same for a connection: when it is lost, and when its close is not answered.
#[test]
fn a_lost_connection_is_logged() {
    let _alone = alone();
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.send(0, CLOSE, args![320, "CONNECTION_FORCED - bye", 0, 0]);
        peer.expect(0, CLOSE_OK);
        peer.expect_end();
    });
    let connection = Connection::open(peer.config()).unwrap();
    assert!(connection.wait_closed().is_hard());
    peer.finish();
    let lost = logged();
    let [(level, target, line)] = &lost[..] else { panic!("one line: {lost:?}") };
    assert_eq!((*level, &**target), (Level::Warn, "leveret::connection"));
    assert_eq!(line, "connection lost: the broker closed the connection: 320 CONNECTION_FORCED - bye");
    drop(connection);

    let silent = Peer::run(|peer| {
        peer.handshake();
        peer.silence();
    });
    logged();
    drop(Connection::open(silent.config().drop_timeout(SHORT)).unwrap());
    silent.finish();
    let late = logged();
    let closing = |(level, target, line): &(Level, String, String)| {
        let why = "closing on drop: connection.close took longer than 50ms";
        (*level, &**target, &**line) == (Level::Warn, "leveret::connection", why)
    };
    assert!(late.iter().any(closing), "{late:?}");
}
