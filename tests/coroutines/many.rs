//! Many coroutines, one worker.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc,
};

use leveret::Connection;

use crate::{LONG, common::peer::*, obliging, run, spawn};

/// Row 105: all of them wait at once, each in a call on a shared channel, and the worker goes on with other
/// coroutines.
#[test]
fn calls_that_wait_leave_the_worker_free() {
    const WAITING: usize = 500;
    let (ticked, all_wait) = mpsc::channel::<()>();
    let (tick, tick_now) = mpsc::channel::<()>();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        let names: Vec<_> = (0..WAITING).map(|_| peer.expect(1, QUEUE_DECLARE).text(1).to_owned()).collect();
        // Nobody is answered before another coroutine has run a thousand times.
        tick.send(()).unwrap();
        all_wait.recv().unwrap();
        for name in names {
            peer.send(1, QUEUE_DECLARE_OK, args![&name, 0, 0]);
        }
        peer.close_channel(1);
        peer.close();
    });
    let config = peer.config().call_timeout(LONG);
    let connection = run(move || Connection::open(config)).unwrap();
    let channel = connection.channel().unwrap();
    let calls: Vec<_> = (0..WAITING)
        .map(|number| {
            let channel = channel.clone();
            spawn(move || {
                let name = number.to_string();
                assert_eq!(channel.queue_declare(&*name).unwrap().queue, name);
            })
        })
        .collect();
    tick_now.recv().unwrap();
    let ticker = spawn(move || {
        for _ in 0..1000 {
            may::coroutine::yield_now();
        }
        ticked.send(()).unwrap();
    });
    ticker.join().unwrap();
    for call in calls {
        call.join().unwrap();
    }
    channel.close().unwrap();
    connection.close().unwrap();
    peer.finish();
}

/// Row 35, 105: ten thousand coroutines on shared channels; every answer reaches its caller.
#[test]
fn ten_thousand_coroutines_share_channels() {
    const COROUTINES: usize = 10_000;
    let peer = Peer::run(obliging);
    let config = peer.config().call_timeout(LONG);
    let connection = Connection::open(config).unwrap();
    let channels: Vec<_> = (0..20).map(|_| connection.channel().unwrap()).collect();
    let start = Arc::new(AtomicBool::new(false));
    let coroutines: Vec<_> = (0..COROUTINES)
        .map(|number| {
            let channel = channels[number % channels.len()].clone();
            let start = start.clone();
            spawn(move || {
                while !start.load(Ordering::SeqCst) {
                    may::coroutine::yield_now();
                }
                let name = format!("queue-{number}");
                assert_eq!(channel.queue_declare(&*name).unwrap().queue, name);
                channel.basic_publish("", &name, "body").unwrap();
                assert!(channel.basic_get(&*name).unwrap().is_none());
                assert_eq!(channel.queue_purge(&*name).unwrap(), 0);
            })
        })
        .collect();
    start.store(true, Ordering::SeqCst);
    for coroutine in coroutines {
        coroutine.join().unwrap();
    }
    drop(channels);
    connection.close().unwrap();
    peer.finish();
}
