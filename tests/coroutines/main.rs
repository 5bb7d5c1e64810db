//! The blocking API from coroutines of `may`, all of them on one worker thread: whatever blocks it, or is deeper
//! than a coroutine's stack, hangs or ends this program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(dead_code, unreachable_pub)]

#[path = "../deadlines/calls.rs"]
mod calls;
mod cancel;
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "broker")]
mod direct;
#[cfg(all(feature = "broker", feature = "tls"))]
#[path = "../tls/front.rs"]
mod front;
mod listeners;
mod many;
mod stack;
mod timeouts;

use std::{
    panic,
    sync::{Mutex, Once},
    time::Duration,
};

use calls::{Call, Seen};
use common::peer::*;
use leveret::{Config, Connection};
use may::{coroutine::JoinHandle, cqueue};

/// The limit of calls that are to end before it.
const LONG: Duration = Duration::from_secs(60);

/// What is delivered to the consumer of a [`Stage`](calls::Stage).
const DELIVERIES: u64 = 20;

fn set_up() {
    static ONE_WORKER: Once = Once::new();
    ONE_WORKER.call_once(|| {
        may::config().set_workers(1).set_worker_pin(false);
    });
}

/// Runs `work` in a coroutine with a stack of the default size.
fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    set_up();
    may::go!(work)
}

/// The same, and waits for its end. A panic is passed on.
fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn(work).join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
}

/// Runs `work` in a coroutine, which is cancelled when `ready` returns, and waits for its end. `None` when the
/// coroutine did not return but was unwound.
fn run_and_cancel<T: Send>(work: impl FnOnce() -> T + Send, ready: impl FnOnce()) -> Option<T> {
    set_up();
    let result = Mutex::new(None);
    cqueue::scope(|queue| {
        // Its end is noticed when `_alive` is dropped.
        let coroutine = may::go!(queue, 0, |_alive| *result.lock().unwrap() = Some(work()));
        ready();
        coroutine.remove();
        assert!(queue.poll(None).is_err(), "it sends no events");
    });
    result.into_inner().unwrap()
}

/// A broker that answers everything in the usual way, until the client hangs up.
fn obliging(peer: &mut Peer) {
    peer.handshake();
    while let Some(frame) = peer.next_frame_or_end() {
        if let Some(answer) = usual_answer(&frame) {
            peer.raw(&answer);
        }
    }
}

/// What a [`Stage`](calls::Stage) needs of a broker: a channel, a consumer, deliveries.
fn set_stage(peer: &mut Peer) {
    peer.handshake();
    peer.open_channel(1);
    peer.expect(1, CONSUME);
    peer.send(1, CONSUME_OK, args!["tag"]);
    for tag in 1..=DELIVERIES {
        peer.deliver(1, "tag", tag, b"early");
    }
}

/// The rest of the conversation: the usual answers, and this call's own to it.
fn serve(peer: &mut Peer, call: &Call) {
    while let Some(frame) = peer.next_frame_or_end() {
        let own = match (call.seen, frame.method()) {
            (Seen::Request(channel, method, answer), Some(asked))
                if (channel, method) == (frame.channel, asked) =>
            {
                Some(answer(&frame.arguments()))
            }
            _ => usual_answer(&frame),
        };
        if let Some(answer) = own {
            peer.raw(&answer);
        }
    }
}

/// The way to a peer that sets the stage. Made outside of coroutines: a configuration is no small value.
fn config_of(peer: &Script<()>, limit_of_closing: Duration) -> Config {
    let config = peer.config().call_timeout(LONG).publish_timeout(LONG);
    let config = config.close_timeout(limit_of_closing).drop_timeout(limit_of_closing);
    // Small, so that they are full soon.
    config.prefetch(0).outgoing_buffer(16 * 1024).send_buffer(16 * 1024)
}

/// A connection with a channel, and on it a consumer whose deliveries have come.
fn stage(config: Config, waiting: std::sync::mpsc::Sender<()>) -> calls::Stage {
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    let consume = leveret::Consume::new("q").consumer_tag("tag");
    let mut consumer = channel.basic_consume(consume).unwrap();
    let deliveries = consumer.by_ref().take(DELIVERIES as usize).map(Result::unwrap).collect();
    let (connection, channel, consumer) = (Some(connection), Some(channel), Some(consumer));
    calls::Stage { connection, channel, consumer, made: Vec::new(), deliveries, waiting }
}
