//! Many threads on few channels, and many channels on one connection, against a server that checks every frame.
//! Bounded by counts, and with fixed seeds; what varies is how the threads meet.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
mod server;

use std::{
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{limits::PROMPT, peer::*};
use fastrand::Rng;
use leveret::{Channel, Config, Connection, Consume, Error, ReplyCode, Requeue, Result};
use server::{FORBIDDEN, Server, Tally, body, is_whole};

/// One of these sizes: within what is copied, around it, and written from the caller's slice.
fn random_body(random: &mut Rng) -> Vec<u8> {
    let length = match random.u8(..10) {
        0 => random.usize(30_000..200_000),
        1..=3 => random.usize(4000..9000),
        _ => random.usize(8..300),
    };
    body(random.u64(..), length)
}

fn serve(seed: u64, late: u32) -> Script<Tally> {
    Peer::run(move |peer| Server::new(peer, seed, late).run())
}

fn config(script: &Script<Tally>) -> Config {
    script.config().prefetch(0).outgoing_buffer(100_000)
}

/// One random operation on a channel that others use as well; counts what was published.
fn use_channel(channel: &Channel, random: &mut Rng, published: &AtomicUsize) -> Result<()> {
    match random.u8(..10) {
        0..=4 => {
            channel.basic_publish("", "q", &random_body(random))?;
            published.fetch_add(1, Ordering::Relaxed);
        }
        5 => match channel.try_publish("", "q", &random_body(random)) {
            Ok(()) => drop(published.fetch_add(1, Ordering::Relaxed)),
            Err(Error::WouldBlock) => {}
            Err(error) => return Err(error),
        },
        6 | 7 => {
            let name = format!("queue-{}", random.u32(..));
            let declared = channel.queue_declare(&name)?;
            assert_eq!(declared.queue, name, "somebody else's answer");
        }
        8 => {
            let name = format!("queue-{}", random.u32(..));
            let message = channel.basic_get(&name)?.expect("a message");
            assert_eq!(message.routing_key(), name, "somebody else's message");
            assert!(is_whole(message.body()));
            message.ack()?;
        }
        _ => drop(channel.flow(true)?),
    }
    Ok(())
}

/// Row 35: any number of threads share one channel: each gets its own answers, every message is whole and in one
/// piece, and all of them arrive.
#[test]
fn many_threads_share_one_channel() {
    const THREADS: u64 = 12;
    let script = serve(1, 0);
    let connection = Connection::open(config(&script)).unwrap();
    let channel = connection.channel().unwrap();
    let published = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let (channel, published) = (&channel, &published);
            scope.spawn(move || {
                let mut random = Rng::with_seed(seed);
                for _ in 0..400 {
                    use_channel(channel, &mut random, published).unwrap();
                }
            });
        }
    });
    channel.close().unwrap();
    connection.close().unwrap();
    let tally = script.finish();
    assert_eq!(tally.published[&1], published.into_inner());
}

/// Rows 35, 37: the same where answers come late and calls give up at random moments: a late answer never reaches
/// another call.
#[test]
fn calls_give_up_at_random_moments() {
    const THREADS: u64 = 8;
    let script = serve(2, 20);
    let connection = Connection::open(config(&script)).unwrap();
    let channel = connection.channel().unwrap();
    let (published, given_up) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let (channel, published, given_up) = (&channel, &published, &given_up);
            scope.spawn(move || {
                let mut random = Rng::with_seed(100 + seed);
                for _ in 0..150 {
                    let limit = Duration::from_millis(random.u64(1..20));
                    match use_channel(&channel.within(limit), &mut random, published) {
                        Ok(()) => {}
                        Err(Error::Timeout(_)) => drop(given_up.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
        }
    });
    // Behind all the late answers.
    channel.flow(true).unwrap();
    connection.close().unwrap();
    let tally = script.finish();
    assert_eq!(tally.published[&1], published.into_inner());
    assert!(given_up.into_inner() > 50, "there was something to see");
}

/// The life of a channel of its own, with or without an end by the broker.
fn live_on_a_channel(connection: &Connection, random: &mut Rng) -> Result<()> {
    let channel = connection.channel()?;
    let ignored = AtomicUsize::new(0);
    for _ in 0..random.usize(..6) {
        use_channel(&channel, random, &ignored)?;
    }
    match random.u8(..6) {
        0 => {
            // The close may overtake publishes of another handle of this channel.
            let other = channel.clone();
            let large = random_body(random);
            thread::scope(|scope| {
                scope.spawn(|| while other.basic_publish("", "q", &large).is_ok() {});
                let error = channel.queue_declare(FORBIDDEN).unwrap_err();
                assert!(
                    error.is_closed() || error.reply_code() == Some(ReplyCode::AccessRefused),
                    "{error:?}"
                );
            });
            channel.reopen()?;
            use_channel(&channel, random, &ignored)?;
        }
        1 => {
            let mut consumer = channel.basic_consume("q")?;
            for delivery in consumer.by_ref().take(random.usize(..5)) {
                let delivery = delivery?;
                assert!(is_whole(delivery.body()));
                delivery.nack(Requeue::Yes)?;
            }
            consumer.cancel()?;
            for delivery in consumer {
                assert!(is_whole(delivery?.body()));
            }
        }
        2 => drop(channel.basic_consume(Consume::new("q").no_ack(random.bool()))?),
        3 => channel.close()?,
        4 => {
            channel.close()?;
            channel.reopen()?;
        }
        _ => {}
    }
    Ok(())
}

/// Rows 30, 33, 34: channels come and go on many threads, by themselves and by the broker's will: ids are used
/// again, nothing is mixed up, and nothing is left.
#[test]
fn channels_come_and_go() {
    const THREADS: u64 = 8;
    let script = serve(3, 0);
    let connection = Connection::open(config(&script)).unwrap();
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let connection = &connection;
            scope.spawn(move || {
                let mut random = Rng::with_seed(200 + seed);
                for _ in 0..150 {
                    live_on_a_channel(connection, &mut random).unwrap();
                }
            });
        }
    });
    let last = connection.channel().unwrap();
    assert_eq!(last.id(), 1, "all ids have come back");
    drop(last);
    connection.close().unwrap();
    assert!(script.finish().opened > 1000);
}

/// Rows 13, 14, 22: one thread closes the connection while the others are at work: everybody ends in time, and
/// says that the program did it.
#[test]
fn one_thread_closes_under_the_others() {
    for seed in 0..40 {
        let script = serve(seed, 30);
        let connection = Connection::open(config(&script)).unwrap();
        let shared = connection.channel().unwrap();
        let start = Barrier::new(7);
        let ignored = AtomicUsize::new(0);
        let started = Instant::now();
        thread::scope(|scope| {
            for thread in 0..6 {
                let (connection, shared, start, ignored) = (&connection, &shared, &start, &ignored);
                scope.spawn(move || {
                    let mut random = Rng::with_seed(seed * 10 + thread);
                    start.wait();
                    let error = loop {
                        let result = match thread {
                            0..=2 => use_channel(shared, &mut random, ignored),
                            _ => live_on_a_channel(connection, &mut random),
                        };
                        if let Err(error) = result {
                            break error;
                        }
                    };
                    assert!(error.is_closed(), "{error:?}");
                });
            }
            start.wait();
            thread::sleep(Duration::from_micros(seed * 200));
            connection.close().unwrap();
        });
        assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
        drop((shared, connection));
        script.finish();
    }
    nothing_is_left();
}

/// All orders of so many things.
fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(count - 1);
    let insert = |order: &Vec<usize>, place| {
        let mut order = order.clone();
        order.insert(place, count - 1);
        order
    };
    shorter.iter().flat_map(|order| (0..count).map(move |place| insert(order, place))).collect()
}

/// Rows 13, 17, 30, 73: handles may be dropped in any order, on any thread; nothing waits for what cannot come,
/// and nothing is left.
#[test]
fn handles_are_dropped_in_every_order() {
    for order in permutations(5) {
        let script = serve(4, 0);
        let connection = Connection::open(config(&script)).unwrap();
        let channel = connection.channel().unwrap();
        let mut consumer = channel.basic_consume("q").unwrap();
        let delivery = consumer.next().unwrap().unwrap();
        let second = channel.within(PROMPT);
        let mut handles: [Option<Box<dyn Send>>; 5] = [
            Some(Box::new(connection)),
            Some(Box::new(channel)),
            Some(Box::new(second)),
            Some(Box::new(consumer)),
            Some(Box::new(delivery)),
        ];
        let started = Instant::now();
        for &index in &order {
            let handle = handles[index].take();
            if index % 2 == 0 {
                drop(handle);
            } else {
                thread::scope(|scope| scope.spawn(move || drop(handle)).join().unwrap());
            }
        }
        // Below the time that a Drop may wait for an answer.
        assert!(started.elapsed() < PROMPT, "{order:?}: {:?}", started.elapsed());
        script.finish();
    }
    nothing_is_left();
}
