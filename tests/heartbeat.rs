//! Heartbeats and the loss of a peer, on a real clock: intervals of one second, the shortest there is, and longer ones
//! where the machine is too busy for that. Every bound is a part of the interval.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    io::Write,
    net::TcpStream,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use common::{limits::given_time, peer::*};
use leveret::{Config, Connection, Consume, Error};

/// An interval of so many seconds, and what follows from it.
#[derive(Clone, Copy)]
struct Interval(u32);

impl Interval {
    fn time(self) -> Duration {
        Duration::from_secs(self.0.into())
    }

    /// After two intervals a peer is dead; what a busy machine may add.
    fn slack(self) -> Duration {
        self.time() * 9 / 10
    }

    /// Row 22: everybody is woken within this time of each other.
    fn all_woken(self) -> Duration {
        self.time() / 10
    }

    fn tune(self) -> Tune {
        Tune { channel_max: 100, frame_max: 4096, heartbeat: self.0 as u16 }
    }

    /// What [`wait_in_every_way`] needs before it waits.
    fn serve_those_who_wait(self, peer: &mut Peer) {
        peer.handshake_with(self.tune());
        for channel in 1..=4 {
            peer.open_channel(channel);
        }
        peer.until(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
    }

    fn config<T>(self, peer: &Script<T>) -> Config {
        peer.config().heartbeat(self.time()).prefetch(0)
    }

    /// Sends heartbeats until the client has gone: a peer that is alive whatever its script does.
    fn beat(self, mut socket: TcpStream) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            while socket.write_all(&frame(HEARTBEAT, 0, &[])).is_ok() {
                thread::sleep(self.time() / 4);
            }
        })
    }
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

/// Row 20: an idle connection sends a heartbeat every half interval, also while all of the application's threads
/// wait for something.
#[test]
fn heartbeats_come_while_everybody_waits() {
    given_time(|seconds| {
        let interval = Interval(seconds);
        let peer = Peer::run(move |peer| {
            peer.handshake_with(interval.tune());
            peer.open_channel(1);
            peer.expect(1, CONSUME);
            peer.send(1, CONSUME_OK, args!["tag"]);
            peer.expect(1, QUEUE_PURGE);
            let beating = interval.beat(peer.socket().try_clone().unwrap());
            let frames = frames_for(peer, 3 * interval.time());
            peer.send(1, QUEUE_PURGE_OK, args![0]);
            peer.send(1, CANCEL, args!["tag", 1]);
            peer.close();
            peer.rst();
            beating.join().unwrap();
            frames
        });
        let connection = Connection::open(interval.config(&peer)).unwrap();
        assert_eq!(connection.heartbeat(), interval.time());
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
            assert!(*at - last < interval.time(), "{frames:?}");
            last = *at;
        }
        assert!((4..=7).contains(&frames.len()), "one every half second: {frames:?}");
    });
}

/// Row 20: any traffic counts: who publishes sends no heartbeats, and a peer that delivers needs none.
#[test]
fn any_traffic_counts_both_ways() {
    given_time(|seconds| {
        let interval = Interval(seconds);
        let peer = Peer::run(move |peer| {
            peer.handshake_with(interval.tune());
            peer.open_channel(1);
            peer.expect(1, CONSUME);
            peer.send(1, CONSUME_OK, args!["tag"]);
            let started = Instant::now();
            let (mut published, mut heartbeats, mut tag) = (0, 0, 0);
            while started.elapsed() < 3 * interval.time() {
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
        let connection = Connection::open(interval.config(&peer)).unwrap();
        let channel = connection.channel().unwrap();
        let consume = Consume::new("q").consumer_tag("tag").no_ack(true);
        let mut consumer = channel.basic_consume(consume).unwrap();
        let started = Instant::now();
        let mut delivered = 0;
        while started.elapsed() < 3 * interval.time() + interval.time() / 2 {
            channel.basic_publish("", "q", "x").unwrap();
            delivered += usize::from(consumer.next_timeout(interval.time() / 10).unwrap().is_some());
        }
        connection.close().unwrap();
        let (published, heartbeats) = peer.finish();
        assert!(published >= 10 && delivered >= 1, "{published} published, {delivered} delivered");
        // One may fall into a gap that is not the library's.
        assert!(heartbeats <= 1, "{heartbeats} heartbeats beside {published} publishes");
    });
}

/// Row 20: zero on our side disables heartbeats both ways, whatever the broker suggests.
#[test]
fn zero_disables_both_ways() {
    given_time(|seconds| {
        let interval = Interval(seconds);
        let (quiet, was_quiet) = mpsc::channel();
        let peer = Peer::run(move |peer| {
            let tune_ok = peer.handshake_with(interval.tune()).tune_ok;
            assert_eq!(tune_ok.number(2), 0);
            // Neither side says anything for longer than a dead peer would take.
            peer.socket().set_read_timeout(Some(2 * interval.time() + interval.slack())).unwrap();
            let heard = std::io::Read::read(&mut peer.socket(), &mut [0; 100]);
            assert!(heard.is_err(), "{heard:?}");
            quiet.send(()).unwrap();
            peer.close();
        });
        let connection = Connection::open(peer.config().heartbeat(Duration::ZERO)).unwrap();
        was_quiet.recv().unwrap();
        assert!(connection.is_open());
        connection.close().unwrap();
    });
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
fn check_woken(interval: Interval, woken: &[(Duration, Error)], waiting_for: &str, after: Duration) {
    let times = woken.iter().map(|(at, _)| *at);
    let (first, last) = (times.clone().min().unwrap(), times.max().unwrap());
    assert!(last - first < interval.all_woken(), "from {first:?} to {last:?}");
    assert!(
        first >= after - interval.time() / 2 && last < after + interval.slack(),
        "from {first:?} to {last:?}"
    );
    for (_, error) in woken {
        let Error::Timeout(timeout) = error else { panic!("{error:?}") };
        assert_eq!((timeout.waiting_for, timeout.limit), (waiting_for, after));
        assert!(error.is_hard() && error.can_retry());
    }
}

/// Rows 21, 22: a silent peer is noticed after two intervals, and everybody is woken at once.
#[test]
fn a_silent_peer_is_noticed() {
    given_time(|seconds| {
        let interval = Interval(seconds);
        let peer = Peer::run(move |peer| {
            interval.serve_those_who_wait(peer);
            peer.silence();
        });
        let connection = Connection::open(interval.config(&peer)).unwrap();
        let woken = wait_in_every_way(&connection, Instant::now());
        assert_eq!(woken.len(), 10);
        check_woken(interval, &woken, "a sign of life from the peer", 2 * interval.time());
    });
}

/// Row 20: the threshold can be chosen.
#[test]
fn the_thresholds_can_be_chosen() {
    given_time(|seconds| {
        let interval = Interval(seconds);
        let peer = Peer::run(move |peer| {
            interval.serve_those_who_wait(peer);
            let started = Instant::now();
            let mut heartbeats = 0;
            while let Some(frame) = peer.next_frame_or_end() {
                heartbeats += usize::from(frame.kind == HEARTBEAT);
            }
            (heartbeats, started.elapsed())
        });
        let config = interval.config(&peer).heartbeat_dead_percent(100).heartbeat_send_percent(10);
        let connection = Connection::open(config).unwrap();
        let woken = wait_in_every_way(&connection, Instant::now());
        check_woken(interval, &woken, "a sign of life from the peer", interval.time());
        drop(connection);
        let (heartbeats, time) = peer.finish();
        assert!(heartbeats >= 4, "one every tenth of a second: {heartbeats} in {time:?}");
    });
}

/// Row 21: a peer that still sends but takes nothing any more is dead as well.
#[test]
fn a_peer_that_does_not_read_is_noticed() {
    given_time(|seconds| {
        let interval = Interval(seconds);
        let (full, is_full) = mpsc::channel::<()>();
        let (ended, has_ended) = mpsc::channel::<()>();
        let peer = Peer::run(move |peer| {
            peer.handshake_with(interval.tune());
            peer.open_channel(1);
            let beating = interval.beat(peer.socket().try_clone().unwrap());
            is_full.recv().unwrap();
            has_ended.recv().unwrap();
            peer.rst();
            beating.join().unwrap();
        });
        let config = interval.config(&peer).outgoing_buffer(16 * 1024).send_buffer(16 * 1024);
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
            assert!(
                took >= interval.time() && took < 2 * interval.time() + interval.slack(),
                "noticed after {took:?}"
            );
            let (cause, at) = closed.join().unwrap();
            assert!(at.elapsed() < interval.all_woken());
            assert_eq!(cause.to_string(), error.to_string());
            error
        });
        assert!(
            matches!(error, Error::Timeout(timeout) if timeout.waiting_for == "writing to the peer"),
            "{error}"
        );
        full.send(()).unwrap();
        ended.send(()).unwrap();
    });
}

/// Row 74: while we do not read because nobody takes what came, heartbeats go on being sent, our own pause is not
/// the peer's silence, and all of it is there afterwards.
#[test]
fn our_own_pause_is_not_the_peers_silence() {
    given_time(|seconds| {
        let interval = Interval(seconds);
        const MESSAGES: u64 = 2000;
        let (waited, has_waited) = mpsc::channel();
        let peer = Peer::run(move |peer| {
            peer.handshake_with(interval.tune());
            peer.open_channel(1);
            peer.expect(1, CONSUME);
            peer.send(1, CONSUME_OK, args!["tag"]);
            let mut writing = peer.socket().try_clone().unwrap();
            let writer = thread::spawn(move || {
                for tag in 1..=MESSAGES {
                    let arguments = args!["tag", tag, 0, "", "q"];
                    writing
                        .write_all(&content(1, DELIVER, arguments, NO_PROPERTIES, &[7; 4000], 4088))
                        .unwrap();
                }
            });
            let frames = frames_for(peer, 3 * interval.time());
            waited.send(()).unwrap();
            peer.close();
            writer.join().unwrap();
            frames.iter().filter(|(_, frame)| frame.kind == HEARTBEAT).count()
        });
        let connection = Connection::open(interval.config(&peer).incoming_buffer(10_000)).unwrap();
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
    });
}
