//! Deadlines in coroutines.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use leveret::{Connection, Error, Result};

use crate::{LONG, common::peer::*, obliging, run, serve, set_stage, spawn, stage};

const TOO_SHORT: Duration = Duration::from_micros(300);

/// Row 105: timeouts below one millisecond, which the timer of `may` does not know, pass all the same; and zero
/// only looks.
#[test]
fn a_timeout_below_a_millisecond_passes() {
    let peer = Peer::run(|peer| {
        set_stage(peer);
        peer.silence();
    });
    let config = crate::config_of(&peer, Duration::from_millis(1));
    run(move || {
        let (waiting, _) = mpsc::channel();
        let mut stage = stage(config, waiting);
        for limit in [TOO_SHORT, Duration::from_nanos(1), Duration::from_micros(1500)] {
            let started = Instant::now();
            assert!(stage.consumer().next_timeout(limit).unwrap().is_none());
            assert!(started.elapsed() >= limit);
            assert!(stage.connection().wait_closed_timeout(limit).is_none());
            let error = stage.channel().within(limit).queue_purge("q").unwrap_err();
            assert!(matches!(error, Error::Timeout(timeout) if timeout.limit == limit), "{error}");
        }
        for _ in 0..1000 {
            assert!(stage.consumer().next_timeout(Duration::ZERO).unwrap().is_none());
        }
        // Nobody answers; dropping the connection is limited too.
        stage.connection.take().unwrap().close().unwrap_err();
    });
    peer.finish();
}

/// Row 37: the answer to a call that was given up is nobody else's.
#[test]
fn a_late_answer_is_thrown_away() {
    let (given_up, late) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        let first = peer.expect(1, QUEUE_DECLARE).text(1).to_owned();
        late.recv().unwrap();
        let second = peer.expect(1, QUEUE_DECLARE).text(1).to_owned();
        for name in [first, second] {
            peer.send(1, QUEUE_DECLARE_OK, args![&name, 0, 0]);
        }
        peer.close_channel(1);
        peer.close();
    });
    let config = peer.config();
    run(move || {
        let connection = Connection::open(config).unwrap();
        let channel = connection.channel().unwrap();
        let error = channel.within(Duration::from_millis(5)).queue_declare("first").unwrap_err();
        assert!(matches!(error, Error::Timeout(_)), "{error}");
        given_up.send(()).unwrap();
        assert_eq!(channel.within(LONG).queue_declare("second").unwrap().queue, "second");
        channel.close().unwrap();
        connection.close().unwrap();
    });
    peer.finish();
}

/// Row 105: the timer's only thread is left at once, so that what the program does after a timeout delays no other.
#[test]
fn a_coroutine_goes_on_on_a_worker_after_a_timeout() {
    let peer = Peer::run(|peer| {
        set_stage(peer);
        peer.silence();
    });
    let worker = run(|| thread::current().id());
    let config = crate::config_of(&peer, Duration::from_millis(2));
    run(move || {
        let (waiting, _) = mpsc::channel();
        let mut stage = stage(config, waiting);
        for _ in 0..20 {
            assert!(stage.consumer().next_timeout(Duration::from_millis(2)).unwrap().is_none());
            assert_eq!(thread::current().id(), worker);
        }
        let error = stage.channel().within(Duration::from_millis(2)).flow(true).unwrap_err();
        assert!(matches!(error, Error::Timeout(_)), "{error}");
        assert_eq!(thread::current().id(), worker);
        drop(stage);
        assert_eq!(thread::current().id(), worker);
    });
    peer.finish();
}

/// Row 39: deferred calls, and one wait over many consumers.
#[test]
fn deferred_calls_and_select_work() {
    let peer = Peer::run(|peer| {
        set_stage(peer);
        peer.deliver(1, "tag", 100, b"late");
        serve(peer, &crate::calls::calls()[0]);
    });
    let config = crate::config_of(&peer, crate::LONG);
    run(move || {
        let (waiting, _) = mpsc::channel();
        let mut stage = stage(config, waiting);
        let names = ["a", "b", "c"];
        let declares = names.map(|name| stage.channel().deferred().queue_declare(name).unwrap());
        for (mut declare, name) in declares.into_iter().zip(names) {
            assert_eq!(declare.wait_timeout(LONG).unwrap().unwrap().queue, name);
        }
        let selected = leveret::select_timeout(&mut [stage.consumer()], LONG).unwrap();
        assert_eq!(selected.1.unwrap().body(), b"late");
        let nothing = leveret::select_timeout(&mut [stage.consumer()], Duration::from_millis(3));
        assert!(nothing.is_none());
    });
    peer.finish();
}

/// Rows 13, 22: the peer goes away while coroutines wait in many ways; all are told the same.
#[test]
fn the_loss_of_the_connection_reaches_every_coroutine_that_waits() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        for channel in 1..=50 {
            peer.open_channel(channel);
        }
        for _ in 0..50 {
            assert_eq!(peer.next_frame().method(), Some(QUEUE_PURGE));
        }
        peer.rst();
    });
    let config = peer.config();
    let connection = run(move || Connection::open(config)).unwrap();
    let channels: Vec<_> = (0..50).map(|_| connection.channel().unwrap()).collect();
    let waiting = {
        let connection = connection.clone();
        spawn(move || Result::<()>::Err(connection.wait_closed()))
    };
    let mut coroutines = vec![waiting];
    for channel in channels {
        coroutines.push(spawn(move || channel.queue_purge("q").map(drop)));
    }
    let errors: Vec<_> = coroutines.into_iter().map(|one| one.join().unwrap().unwrap_err()).collect();
    for error in &errors {
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!(error.to_string(), errors[0].to_string());
    }
    peer.finish();
}

/// Row 13: a connection that a coroutine drops is closed.
#[test]
fn dropping_the_connection_closes_it() {
    let peer = Peer::run(obliging);
    let config = peer.config();
    run(move || drop(Connection::open(config).unwrap()));
    peer.finish();
}
