//! The blocking API from coroutines of `may`, all of them on one worker thread: whatever blocks it, or is deeper
//! than a coroutine's stack, hangs or ends this program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

use std::sync::Once;

use common::peer::*;
use leveret::Connection;
use may::coroutine::JoinHandle;

/// Runs `work` in a coroutine with a stack of the default size.
fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    static ONE_WORKER: Once = Once::new();
    ONE_WORKER.call_once(|| {
        may::config().set_workers(1).set_worker_pin(false);
    });
    may::go!(work)
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

/// Row 105: connecting, calls, publishing and closing, with nothing but the default stack.
#[test]
fn a_coroutine_does_what_a_thread_does() {
    let peer = Peer::run(obliging);
    let config = peer.config();
    spawn(move || {
        let connection = Connection::open(config)?;
        let channel = connection.channel()?;
        channel.queue_declare("q")?;
        channel.basic_publish("", "q", "small")?;
        channel.basic_publish("", "q", &vec![1; 1 << 20])?;
        assert!(channel.basic_get("q")?.is_none());
        channel.close()?;
        connection.close()
    })
    .join()
    .unwrap()
    .unwrap();
    peer.finish();
}
