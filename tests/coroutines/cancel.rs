//! A coroutine that is cancelled while it waits, and what it leaves behind.

use std::{
    panic,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use leveret::{Channel, Connection, Consume, Error, Result};

use crate::{calls::*, common::peer::*, run, run_and_cancel, serve, set_stage, spawn, stage};

/// Row 105: a coroutine that is cancelled in a wait gets an error of its own. What it asked for is answered after
/// that, and the answer is nobody else's: the channel goes on; and what it was closing gets closed.
#[test]
fn cancelling_any_call_leaves_the_rest_sound() {
    for call in calls() {
        let (waiting, client_waits) = mpsc::channel();
        let (asked, cancel_now) = mpsc::channel();
        let (cancelled, answer_now) = mpsc::channel::<()>();
        let (name, seen) = (call.name, call.seen);
        let peer = Peer::run(move |peer| {
            set_stage(peer);
            let late = match call.seen {
                Seen::Request(channel, method, answer) => answer(&peer.expect(channel, method)),
                Seen::Nothing | Seen::Full => {
                    client_waits.recv().unwrap();
                    Vec::new()
                }
            };
            asked.send(()).unwrap();
            answer_now.recv().unwrap();
            peer.raw(&late);
            serve(peer, &call);
        });
        let config = crate::config_of(&peer, crate::LONG);
        let (show, shown) = mpsc::channel();
        let result = run_and_cancel(
            move || {
                let mut stage = stage(config, waiting);
                // What is dropped by the call must have no other handle.
                let connection = stage.connection.clone().filter(|_| name != "drop of the connection");
                let channel = stage.channel.clone().filter(|_| name != "drop of the channel");
                show.send((connection, channel)).unwrap();
                if let Seen::Nothing = seen {
                    stage.waiting.send(()).unwrap();
                }
                (call.run)(&mut stage)
            },
            || cancel_now.recv().unwrap(),
        );
        let result = result.unwrap_or_else(|| panic!("{name} was unwound"));
        match result {
            Err(Error::Cancelled) => {}
            Ok(()) if name.starts_with("drop") => {}
            // Half of it was on its way, so all of it is.
            Ok(()) if name.ends_with("large body") => {}
            other => panic!("{name}: {other:?}"),
        }
        cancelled.send(()).unwrap();
        let (connection, channel) = shown.recv().unwrap();
        check_what_is_left(name, connection.as_ref(), channel.as_ref());
        drop((connection, channel));
        peer.finish();
    }
}

fn check_what_is_left(name: &str, connection: Option<&Connection>, channel: Option<&Channel>) {
    let Some(connection) = connection else { return };
    if name == "connection.close" {
        assert!(matches!(connection.wait_closed(), Error::Closed(_)));
        return;
    }
    assert!(connection.is_open(), "{name}");
    match channel {
        Some(channel) if name != "channel.close" => assert!(channel.flow(true).unwrap(), "{name}"),
        _ => eventually("the closed channel's id is free", || connection.channel().unwrap().id() == 1),
    }
}

/// Row 105: the same while a program's own wait unwinds the coroutine: nothing waits in a destructor then, and all
/// gets closed all the same: the transaction is rolled back, the consumer cancelled, the channel closed.
#[test]
fn what_an_unwinding_coroutine_drops_gets_closed() {
    let peer = Peer::run(|peer| {
        set_stage(peer);
        peer.expect(1, TX_SELECT);
        peer.send(1, TX_SELECT_OK, &[]);
        peer.expect(1, TX_ROLLBACK);
        peer.send(1, TX_ROLLBACK_OK, &[]);
        peer.expect(1, CANCEL);
        peer.send(1, CANCEL_OK, args!["tag"]);
        peer.close_channel(1);
        peer.close();
    });
    let config = crate::config_of(&peer, crate::LONG);
    let (ready, readied) = mpsc::channel();
    let result = run_and_cancel(
        move || {
            let (waiting, _) = mpsc::channel();
            let stage = stage(config, waiting);
            let Stage { connection, channel, consumer, deliveries, .. } = stage;
            drop(deliveries);
            let _connection = connection;
            let channel = channel.unwrap();
            let _consumer = consumer;
            let _transaction = channel.transaction().unwrap();
            ready.send(()).unwrap();
            may::coroutine::sleep(Duration::from_secs(1000));
        },
        || readied.recv().unwrap(),
    );
    assert!(result.is_none(), "it was unwound");
    assert!(!run(thread::panicking), "the worker has left the panic behind");
    peer.finish();
}

/// Row 30: the same for a panic, which belongs to the worker's thread as long as it unwinds: the coroutine is at its end
/// before anything that it has dropped was answered, and other coroutines know nothing of it.
#[test]
fn a_coroutine_that_panics_waits_for_nothing() {
    let (ended, answer_now) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        set_stage(peer);
        peer.expect(1, TX_SELECT);
        peer.send(1, TX_SELECT_OK, &[]);
        answer_now.recv().unwrap();
        serve(peer, &calls()[0]);
    });
    let config = crate::config_of(&peer, crate::LONG);
    let coroutine = spawn(move || {
        let (waiting, _) = mpsc::channel();
        let stage = stage(config, waiting);
        let _transaction = stage.channel().transaction().unwrap();
        // Without the hook, which prints a backtrace where that is wanted: too deep.
        panic::resume_unwind(Box::new("on purpose"))
    });
    assert_eq!(coroutine.join().map(|_: ()| ()).unwrap_err().downcast_ref(), Some(&"on purpose"));
    assert!(!run(thread::panicking), "the worker has left the panic behind");
    ended.send(()).unwrap();
    peer.finish();
}

/// A loop over deliveries that goes on after errors ends when its coroutine is cancelled.
#[test]
fn a_cancelled_consumer_does_not_spin() {
    let (waiting, client_waits) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        set_stage(peer);
        serve(peer, &calls()[0]);
    });
    let config = crate::config_of(&peer, crate::LONG);
    let told = run_and_cancel(
        move || {
            let mut stage = stage(config, waiting);
            stage.waiting.send(()).unwrap();
            let told: Vec<Result<_>> = stage.consumer().by_ref().collect();
            let mut consumers = [stage.consumer.take().unwrap()];
            let selected = leveret::select(&mut consumers);
            assert!(selected.is_none(), "it was told before");
            told
        },
        || client_waits.recv().unwrap(),
    );
    assert!(matches!(told.unwrap()[..], [Err(Error::Cancelled)]));
    peer.finish();
}

/// Row 105: many coroutines on one channel, half of them cancelled at any moment: each of the others gets its own
/// answers, and the channel stays open.
#[test]
fn a_storm_of_cancels_leaves_the_channel_sound() {
    const COROUTINES: usize = 200;
    const CALLS: usize = 20;
    let peer = Peer::run(crate::obliging);
    let connection = Connection::open(peer.config().call_timeout(crate::LONG)).unwrap();
    let channel = connection.channel().unwrap();
    let finished = Arc::new(AtomicUsize::new(0));
    let work = |number: usize| {
        let (channel, finished) = (channel.clone(), finished.clone());
        move || {
            for call in 0..CALLS {
                let name = format!("{number}-{call}");
                match channel.queue_declare(&*name) {
                    Ok(ok) => assert_eq!(ok.queue, name),
                    Err(Error::Cancelled) => return,
                    Err(other) => panic!("{other}"),
                }
            }
            finished.fetch_add(1, Ordering::SeqCst);
        }
    };
    let steady: Vec<_> = (0..COROUTINES).map(|number| spawn(work(number))).collect();
    may::cqueue::scope(|queue| {
        let doomed: Vec<_> = (COROUTINES..2 * COROUTINES)
            .map(|number| {
                let work = work(number);
                may::go!(queue, number, move |_alive| work())
            })
            .collect();
        for (number, one) in doomed.into_iter().enumerate() {
            if number % 3 == 0 {
                channel.queue_declare("in between").unwrap();
            }
            one.remove();
        }
        assert!(queue.poll(None).is_err(), "they send no events");
    });
    for one in steady {
        one.join().unwrap();
    }
    assert!(finished.load(Ordering::SeqCst) >= COROUTINES);
    assert_eq!(channel.queue_declare("the last").unwrap().queue, "the last");
    channel.close().unwrap();
    connection.close().unwrap();
    peer.finish();
}

/// Row 34: channels and consumers that cancelled coroutines drop do not use up the ids.
#[test]
fn a_storm_of_cancels_leaks_no_channel() {
    let peer = Peer::run(|peer| {
        peer.handshake_with(Tune { channel_max: 10, ..Tune::default() });
        while let Some(frame) = peer.next_frame_or_end() {
            if let Some(answer) = usual_answer(&frame) {
                peer.raw(&answer);
            }
        }
    });
    let connection = Connection::open(peer.config()).unwrap();
    for _ in 0..50 {
        let (ready, readied) = mpsc::channel();
        let connection_of_coroutine = connection.clone();
        let ended = run_and_cancel(
            move || {
                let channel = connection_of_coroutine.channel().unwrap();
                let mut consumer = channel.basic_consume(Consume::new("q")).unwrap();
                ready.send(()).unwrap();
                consumer.next().unwrap().unwrap_err()
            },
            || readied.recv().unwrap(),
        );
        assert!(matches!(ended, Some(Error::Cancelled)), "{ended:?}");
    }
    let mut open = Vec::new();
    eventually("ids leak", || {
        open.extend(connection.channel());
        open.len() == 10
    });
    drop(open);
    connection.close().unwrap();
    peer.finish();
}
