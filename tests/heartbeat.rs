//! Heartbeats and the loss of a peer, on a real clock: intervals of one second, the shortest there is. What the
//! clock is asked for are bounds, and generous ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    io::Write,
    net::TcpStream,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use common::peer::*;
use leveret::{Config, Connection, Consume, Error};

const INTERVAL: Duration = Duration::from_secs(1);

/// After two intervals a peer is dead; what a busy machine may add.
const SLACK: Duration = Duration::from_millis(900);

/// Row 22: everybody is woken within this time of each other.
const ALL_WOKEN: Duration = Duration::from_millis(100);

const TUNE: Tune = Tune { channel_max: 100, frame_max: 4096, heartbeat: 1 };

fn config<T>(peer: &Script<T>) -> Config {
    peer.config().heartbeat(INTERVAL).prefetch(0)
}

/// The client's frames of this long, each with the time since the start.
fn frames_for(peer: &mut Peer, time: Duration) -> Vec<(Duration, Frame)> {
    let started = Instant::now();
    let mut frames = Vec::new();
    while started.elapsed() < time {
        let frame = peer.next_frame_or_end().expect("the client is still there");
        frames.push((started.elapsed(), frame));
    }
    frames
}

/// Sends heartbeats until the client has gone: a peer that is alive whatever its script does.
fn beat(mut socket: TcpStream) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        while socket.write_all(&frame(HEARTBEAT, 0, &[])).is_ok() {
            thread::sleep(INTERVAL / 4);
        }
    })
}

/// Row 20: an idle connection sends a heartbeat every half interval, also while all of the application's threads
/// wait for something.
#[test]
fn heartbeats_come_while_everybody_waits() {
    let peer = Peer::run(|peer| {
        peer.handshake_with(TUNE);
        peer.open_channel(1);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        peer.expect(1, QUEUE_PURGE);
        let beating = beat(peer.socket().try_clone().unwrap());
        let frames = frames_for(peer, 3 * INTERVAL);
        peer.send(1, QUEUE_PURGE_OK, args![0]);
        peer.send(1, CANCEL, args!["tag", 1]);
        peer.close();
        peer.rst();
        beating.join().unwrap();
        frames
    });
    let connection = Connection::open(config(&peer)).unwrap();
    assert_eq!(connection.heartbeat(), INTERVAL);
    let channel = connection.channel().unwrap();
    let mut consumer = channel.basic_consume(Consume::new("q").consumer_tag("tag")).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| consumer.next());
        channel.queue_purge("q").unwrap();
    });
    connection.close().unwrap();
    let frames = peer.finish();
    assert!(frames.iter().all(|(_, frame)| frame.kind == HEARTBEAT && frame.channel == 0));
    let mut last = Duration::ZERO;
    for (at, _) in &frames {
        assert!(*at - last < INTERVAL, "{frames:?}");
        last = *at;
    }
    assert!((4..=7).contains(&frames.len()), "one every half second: {frames:?}");
}

/// Row 20: any traffic counts: who publishes sends no heartbeats, and a peer that delivers needs none.
#[test]
fn any_traffic_counts_both_ways() {
    let peer = Peer::run(|peer| {
        peer.handshake_with(TUNE);
        peer.open_channel(1);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        let started = Instant::now();
        let (mut published, mut heartbeats, mut tag) = (0, 0, 0);
        while started.elapsed() < 3 * INTERVAL {
            match peer.next_frame_or_end().unwrap() {
                frame if frame.kind == HEARTBEAT => heartbeats += 1,
                frame if frame.method() == Some(PUBLISH) => {
                    published += 1;
                    if published % 8 == 0 {
                        tag += 1;
                        peer.deliver(1, "tag", tag, b"a sign of life");
                    }
                }
                _ => {}
            }
        }
        peer.close();
        (published, heartbeats)
    });
    let connection = Connection::open(config(&peer)).unwrap();
    let channel = connection.channel().unwrap();
    let consume = Consume::new("q").consumer_tag("tag").no_ack(true);
    let mut consumer = channel.basic_consume(consume).unwrap();
    let started = Instant::now();
    let mut delivered = 0;
    while started.elapsed() < 3 * INTERVAL + INTERVAL / 2 {
        channel.basic_publish("", "q", "x").unwrap();
        delivered += usize::from(consumer.next_timeout(INTERVAL / 10).unwrap().is_some());
    }
    connection.close().unwrap();
    let (published, heartbeats) = peer.finish();
    assert!(published >= 10 && delivered >= 1, "{published} published, {delivered} delivered");
    // One may fall into a gap that is not the library's.
    assert!(heartbeats <= 1, "{heartbeats} heartbeats beside {published} publishes");
}

/// Row 20: zero on our side disables heartbeats both ways, whatever the broker suggests.
#[test]
fn zero_disables_both_ways() {
    let peer = Peer::run(|peer| {
        let tune_ok = peer.handshake_with(TUNE).tune_ok;
        assert_eq!(tune_ok.number(2), 0);
        // Neither side says anything for longer than a dead peer would take.
        peer.socket().set_read_timeout(Some(2 * INTERVAL + SLACK)).unwrap();
        let heard = std::io::Read::read(&mut peer.socket(), &mut [0; 100]);
        assert!(heard.is_err(), "{heard:?}");
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    assert!(connection.wait_closed_timeout(2 * INTERVAL + 2 * SLACK).is_none());
    connection.close().unwrap();
}

/// Everybody who waits on a connection, and when and why each was woken.
fn wait_in_every_way(connection: &Connection, started: Instant) -> Vec<(Duration, Error)> {
    let channels: Vec<_> = (0..4).map(|_| connection.channel().unwrap()).collect();
    let mut consumer = channels[0].basic_consume(Consume::new("q").consumer_tag("tag")).unwrap();
    let (woken, all) = mpsc::channel();
    thread::scope(|scope| {
        let tell = |error: Error| woken.send((started.elapsed(), error)).unwrap();
        for channel in &channels {
            scope.spawn(move || tell(channel.queue_purge("q").unwrap_err()));
            scope.spawn(move || tell(channel.basic_get("q").unwrap_err()));
        }
        scope.spawn(move || tell(consumer.next().unwrap().unwrap_err()));
        scope.spawn(move || tell(connection.wait_closed()));
    });
    all.try_iter().collect()
}

/// They were woken together, with one cause, after the time that it takes to be sure.
fn check_woken(woken: &[(Duration, Error)], waiting_for: &str, after: Duration) {
    let times = woken.iter().map(|(at, _)| *at);
    let (first, last) = (times.clone().min().unwrap(), times.max().unwrap());
    assert!(last - first < ALL_WOKEN, "from {first:?} to {last:?}");
    assert!(first >= after - INTERVAL / 2 && last < after + SLACK, "from {first:?} to {last:?}");
    for (_, error) in woken {
        let Error::Timeout(timeout) = error else { panic!("{error:?}") };
        assert_eq!((timeout.waiting_for, timeout.limit), (waiting_for, after));
        assert!(error.is_hard() && error.can_retry());
    }
}

/// Rows 21, 22: a silent peer is noticed after two intervals, and everybody is woken at once.
#[test]
fn a_silent_peer_is_noticed() {
    let peer = Peer::run(|peer| {
        peer.handshake_with(TUNE);
        for channel in 1..=4 {
            peer.open_channel(channel);
        }
        peer.until(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        peer.silence();
    });
    let connection = Connection::open(config(&peer)).unwrap();
    let woken = wait_in_every_way(&connection, Instant::now());
    assert_eq!(woken.len(), 10);
    check_woken(&woken, "a sign of life from the peer", 2 * INTERVAL);
}

/// Row 20: the threshold can be chosen.
#[test]
fn the_thresholds_can_be_chosen() {
    let peer = Peer::run(|peer| {
        peer.handshake_with(TUNE);
        for channel in 1..=4 {
            peer.open_channel(channel);
        }
        peer.until(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        let started = Instant::now();
        let mut heartbeats = 0;
        while let Some(frame) = peer.next_frame_or_end() {
            heartbeats += usize::from(frame.kind == HEARTBEAT);
        }
        (heartbeats, started.elapsed())
    });
    let config = config(&peer).heartbeat_dead_percent(100).heartbeat_send_percent(10);
    let connection = Connection::open(config).unwrap();
    let woken = wait_in_every_way(&connection, Instant::now());
    check_woken(&woken, "a sign of life from the peer", INTERVAL);
    drop(connection);
    let (heartbeats, time) = peer.finish();
    assert!(heartbeats >= 4, "one every tenth of a second: {heartbeats} in {time:?}");
}

/// Row 21: a peer that still sends but takes nothing any more is dead as well.
#[test]
fn a_peer_that_does_not_read_is_noticed() {
    let (full, is_full) = mpsc::channel::<()>();
    let (ended, has_ended) = mpsc::channel::<()>();
    let peer = Peer::run(move |peer| {
        peer.handshake_with(TUNE);
        peer.open_channel(1);
        let beating = beat(peer.socket().try_clone().unwrap());
        is_full.recv().unwrap();
        has_ended.recv().unwrap();
        peer.rst();
        beating.join().unwrap();
    });
    let config = config(&peer).outgoing_buffer(16 * 1024).send_buffer(16 * 1024);
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    let mut last_accepted = Instant::now();
    let error = thread::scope(|scope| {
        let closed = scope.spawn(|| (connection.wait_closed(), Instant::now()));
        let error = loop {
            match channel.basic_publish("", "q", &[7; 1000]) {
                Ok(()) => last_accepted = Instant::now(),
                Err(error) => break error,
            }
        };
        let took = last_accepted.elapsed();
        assert!(took >= INTERVAL && took < 2 * INTERVAL + SLACK, "noticed after {took:?}");
        let (cause, at) = closed.join().unwrap();
        assert!(at.elapsed() < ALL_WOKEN);
        assert_eq!(cause.to_string(), error.to_string());
        error
    });
    assert!(
        matches!(error, Error::Timeout(timeout) if timeout.waiting_for == "writing to the peer"),
        "{error}"
    );
    full.send(()).unwrap();
    ended.send(()).unwrap();
}

/// Row 74: while we do not read because nobody takes what came, heartbeats go on being sent, our own pause is not
/// the peer's silence, and all of it is there afterwards.
#[test]
fn our_own_pause_is_not_the_peers_silence() {
    const MESSAGES: u64 = 2000;
    let (waited, has_waited) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake_with(TUNE);
        peer.open_channel(1);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        let mut writing = peer.socket().try_clone().unwrap();
        let writer = thread::spawn(move || {
            for tag in 1..=MESSAGES {
                let arguments = args!["tag", tag, 0, "", "q"];
                writing.write_all(&content(1, DELIVER, arguments, NO_PROPERTIES, &[7; 4000], 4088)).unwrap();
            }
        });
        let frames = frames_for(peer, 3 * INTERVAL);
        waited.send(()).unwrap();
        peer.close();
        writer.join().unwrap();
        frames.iter().filter(|(_, frame)| frame.kind == HEARTBEAT).count()
    });
    let connection = Connection::open(config(&peer).incoming_buffer(10_000)).unwrap();
    let channel = connection.channel().unwrap();
    let consume = Consume::new("q").consumer_tag("tag").no_ack(true);
    let mut consumer = channel.basic_consume(consume).unwrap();
    has_waited.recv().unwrap();
    assert!(connection.is_open());
    for tag in 1..=MESSAGES {
        assert_eq!(consumer.next().unwrap().unwrap().delivery_tag(), tag);
    }
    connection.close().unwrap();
    assert!(peer.finish() >= 4);
}
