//! What a message may cost: allocations, reads and writes; and what is idle. Counted, not timed, so that a loaded machine changes
//! nothing. A program of its own with one test: it counts for the whole process.

#![allow(unsafe_code)] // A counting allocator cannot be had without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::VecDeque,
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicIsize, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::peer::*;
use leveret::{Channel, Connection, Consume, Direction, Outcome};

/// Messages in a row.
const MESSAGES: usize = 20_000;

/// Calls, one after the other.
const CALLS: usize = 500;

/// Bodies that are written from the caller's slice.
const LARGE_MESSAGES: usize = 100;
const LARGE: usize = 256 * 1024;

const BODY: &[u8; 16] = b"sixteen bytes...";

/// How long a stream is gathered at most before it is written, and how much of it.
const LINGER: Duration = Duration::from_micros(150);
const GATHERED: usize = 128 * 1024;

/// What does not go by the number of messages: buffers that grow, the first and the last of a row.
const ONCE: usize = 50;

/// Counts what is allocated by all threads but those that ask not to be counted.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
/// What is allocated and not freed, as the most common allocator counts: with a length each, and in steps.
static LIVE: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    static LEFT_OUT: Cell<bool> = const { Cell::new(false) };
}

fn count(size: usize) {
    if is_counted() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        ALLOCATED.fetch_add(size, Ordering::Relaxed);
        LIVE.fetch_add(taken(size), Ordering::Relaxed);
    }
}

fn count_freed(size: usize) {
    if is_counted() {
        LIVE.fetch_sub(taken(size), Ordering::Relaxed);
    }
}

fn is_counted() -> bool {
    // A thread that ends has no locals any more.
    !LEFT_OUT.try_with(Cell::get).unwrap_or(true)
}

fn taken(size: usize) -> isize {
    (size + 8).next_multiple_of(16).max(32) as isize
}

// SAFETY: everything is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count_freed(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_freed(layout.size());
        count(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What something has cost.
struct Cost {
    allocations: usize,
    allocated: usize,
    reads: usize,
    writes: usize,
    elapsed: Duration,
}

/// The client's side: how it is measured.
struct Client {
    connection: Connection,
    channel: Channel,
    calls: Arc<[AtomicUsize; 2]>,
}

impl Client {
    /// Three times: to warm up, for the allocations, and for the reads and writes, which are seen by a filter (that
    /// allocates). Before each the peer is told.
    fn cost(&self, work: impl Fn(&Channel)) -> Cost {
        let go = || self.channel.queue_purge("go").unwrap();
        go();
        work(&self.channel);
        go();
        let before = (ALLOCATIONS.load(Ordering::SeqCst), ALLOCATED.load(Ordering::SeqCst));
        work(&self.channel);
        let after = (ALLOCATIONS.load(Ordering::SeqCst), ALLOCATED.load(Ordering::SeqCst));
        go();
        let calls = self.calls.clone();
        self.connection.set_byte_filter(move |direction, _| {
            calls[usize::from(direction == Direction::Outgoing)].fetch_add(1, Ordering::SeqCst);
        });
        let counted = || [0, 1].map(|which| self.calls[which].load(Ordering::SeqCst));
        let ([reads, writes], started) = (counted(), Instant::now());
        work(&self.channel);
        let ([reads_after, writes_after], elapsed) = (counted(), started.elapsed());
        self.connection.remove_byte_filter();
        Cost {
            allocations: after.0 - before.0,
            allocated: after.1 - before.1,
            reads: reads_after - reads,
            writes: writes_after - writes,
            elapsed,
        }
    }
}

impl Cost {
    /// At most this many allocations for a thousand messages.
    fn allocates(&self, what: &str, per_thousand: usize, messages: usize) {
        let most = messages * per_thousand / 1000 + ONCE;
        assert!(self.allocations <= most, "{what}: {} allocations for {messages}", self.allocations);
    }

    /// A stream is written in large pieces, or once in a while.
    fn writes_a_stream(&self, what: &str, bytes: usize) {
        let in_time = (self.elapsed.as_nanos() / LINGER.as_nanos()) as usize;
        let most = bytes / GATHERED + in_time + ONCE;
        assert!(self.writes <= most, "{what}: {} writes of {bytes} bytes in {:?}", self.writes, self.elapsed);
    }

    fn reads_at_most(&self, what: &str, most: usize) {
        assert!(self.reads <= most, "{what}: {} reads, at most {most} were expected", self.reads);
    }
}

/// The peer's side of one measurement.
fn three_times(peer: &mut Peer, mut work: impl FnMut(&mut Peer)) {
    for _ in 0..3 {
        purged(peer);
        work(peer);
    }
}

fn purged(peer: &mut Peer) {
    peer.expect(1, QUEUE_PURGE);
    peer.send(1, QUEUE_PURGE_OK, args![0]);
}

/// Takes so many bytes, and not one more.
fn take(peer: &Peer, mut bytes: usize) {
    let mut chunk = vec![0; 256 * 1024];
    while bytes > 0 {
        let most = bytes.min(chunk.len());
        let read = peer.socket().read(&mut chunk[..most]).unwrap();
        assert_ne!(read, 0, "the client hung up");
        bytes -= read;
    }
}

fn published(body: &[u8]) -> usize {
    content(1, PUBLISH, args![0, "", "key", 0], NO_PROPERTIES, body, 131_064).len()
}

fn acked() -> usize {
    method(1, ACK, args![1, 0]).len()
}

/// Messages in one buffer, written at once.
fn deliveries(tag: &str, first: usize) -> Vec<u8> {
    let deliver =
        |number: u64| content(1, DELIVER, args![tag, number, 0, "", "key"], NO_PROPERTIES, BODY, 131_064);
    (first..first + MESSAGES).flat_map(|number| deliver(number as u64)).collect()
}

fn serve(peer: &mut Peer) {
    LEFT_OUT.set(true);
    peer.handshake();
    peer.open_channel(1);
    // Publishes.
    three_times(peer, |peer| {
        take(peer, MESSAGES * published(BODY));
        purged(peer);
    });
    three_times(peer, |peer| {
        take(peer, LARGE_MESSAGES * published(&[0; LARGE]));
        purged(peer);
    });
    // Calls.
    three_times(peer, |peer| (0..CALLS).for_each(|_| purged(peer)));
    // A consumer without acks, and one with acks.
    peer.expect(1, CONSUME);
    peer.send(1, CONSUME_OK, args!["no-ack"]);
    three_times(peer, |peer| peer.socket().write_all(&deliveries("no-ack", 1)).unwrap());
    let tag = peer.start_consumer(1);
    let mut first = 1;
    three_times(peer, |peer| {
        peer.socket().write_all(&deliveries(&tag, first)).unwrap();
        first += MESSAGES;
        take(peer, MESSAGES * acked());
        purged(peer);
    });
    // Confirms, each of its own.
    peer.expect(1, CONFIRM_SELECT);
    peer.send(1, CONFIRM_SELECT_OK, &[]);
    let mut number = 0;
    three_times(peer, |peer| {
        for _ in 0..MESSAGES / WINDOW {
            take(peer, WINDOW * published(BODY));
            let acks = (1..=WINDOW as u64).flat_map(|next| method(1, ACK, args![number + next, 0]));
            peer.socket().write_all(&acks.collect::<Vec<u8>>()).unwrap();
            number += WINDOW as u64;
        }
    });
    // Idle ones.
    (2..IDLE + 2).for_each(|channel| peer.open_channel(channel));
    for _ in 0..IDLE {
        let tag = peer.expect(1, CONSUME).text(2).to_owned();
        peer.send(1, CONSUME_OK, args![&tag]);
    }
    peer.close();
}

/// Channels, and consumers on one of them, with which nothing is done, and what each may take.
const IDLE: u16 = 1000;
const IDLE_CHANNEL: usize = 768;
const IDLE_CONSUMER: usize = 256;

/// Makes idle things, which may take so many bytes each.
fn idle<T>(what: &str, most: usize, make: impl Fn() -> T) -> Vec<T> {
    let before = LIVE.load(Ordering::SeqCst);
    let all: Vec<T> = (0..IDLE).map(|_| make()).collect();
    let each = (LIVE.load(Ordering::SeqCst) - before) as usize / usize::from(IDLE);
    assert!(each <= most, "{what} takes {each} bytes");
    all
}

/// Publishes whose confirms are waited for together.
const WINDOW: usize = 500;

#[test]
fn what_a_message_may_cost() {
    let script = Peer::run(serve);
    let connection = Connection::open(script.config().max_outstanding_confirms(0)).unwrap();
    let channel = connection.channel().unwrap();
    let client = Client { connection, channel, calls: Arc::default() };
    let barrier = |channel: &Channel| channel.queue_purge("q").unwrap();

    let cost = client.cost(|channel| {
        (0..MESSAGES).for_each(|_| channel.basic_publish("", "key", BODY).unwrap());
        barrier(channel);
    });
    cost.allocates("publish", 0, MESSAGES);
    cost.writes_a_stream("publish", MESSAGES * published(BODY));

    let large = vec![0; LARGE];
    let cost = client.cost(|channel| {
        (0..LARGE_MESSAGES).for_each(|_| channel.basic_publish("", "key", &large).unwrap());
        barrier(channel);
    });
    cost.allocates("publish a large body", 1000, LARGE_MESSAGES);
    assert!(cost.allocated < LARGE_MESSAGES * LARGE / 100, "a copy of the body: {} bytes", cost.allocated);

    let cost = client.cost(|channel| (0..CALLS).for_each(|_| assert_eq!(barrier(channel), 0)));
    cost.allocates("call", 2000, CALLS);
    assert!(cost.writes <= CALLS + ONCE, "call: {} writes for {CALLS}", cost.writes);
    cost.reads_at_most("call", CALLS + ONCE);

    let consume = Consume::new("q").consumer_tag("no-ack").no_ack(true);
    let consumer = std::cell::RefCell::new(client.channel.basic_consume(consume).unwrap());
    let cost = client.cost(|_| {
        for _ in 0..MESSAGES {
            assert_eq!(consumer.borrow_mut().next().unwrap().unwrap().body(), BODY);
        }
    });
    cost.allocates("deliver", 20, MESSAGES);
    cost.reads_at_most("deliver", MESSAGES / 16);

    let consumer = std::cell::RefCell::new(client.channel.basic_consume("q").unwrap());
    let cost = client.cost(|channel| {
        for _ in 0..MESSAGES {
            consumer.borrow_mut().next().unwrap().unwrap().ack().unwrap();
        }
        barrier(channel);
    });
    cost.allocates("ack", 20, MESSAGES);
    cost.writes_a_stream("ack", MESSAGES * acked());

    client.channel.confirm_select().unwrap();
    let confirms = std::cell::RefCell::new(VecDeque::with_capacity(WINDOW));
    let cost = client.cost(|channel| {
        let mut confirms = confirms.borrow_mut();
        for _ in 0..MESSAGES / WINDOW {
            for _ in 0..WINDOW {
                confirms.push_back(channel.deferred().basic_publish("", "key", BODY).unwrap());
            }
            assert!(confirms.drain(..).all(|confirm| matches!(confirm.wait(), Outcome::Acked)));
        }
    });
    cost.allocates("confirm", 10, MESSAGES);
    cost.writes_a_stream("confirm", MESSAGES * published(BODY));
    cost.reads_at_most("confirm", MESSAGES / 16);

    let Client { connection, channel, .. } = client;
    let idle_channels = idle("a channel", IDLE_CHANNEL, || connection.channel().unwrap());
    let no_ack = || channel.basic_consume(Consume::new("q").no_ack(true)).unwrap();
    let idle_consumers = idle("a consumer", IDLE_CONSUMER, no_ack);
    connection.close().unwrap();
    drop((idle_channels, idle_consumers));
    script.finish();
}
