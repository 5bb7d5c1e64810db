//! What a peer can make the client allocate. Resident memory is measured, and where it is to be exact allocations are
//! counted, so these tests run one at a time.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)] // A counting allocator cannot be had without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    io::Write,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicIsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use common::peer::*;
use leveret::{Connection, Consume, Error, ReplyCode};

const MEBIBYTE: usize = 1 << 20;

/// Counts what is allocated and not freed by all threads but those that ask not to be counted. All that was asked for
/// counts, whether it is resident or not.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);

/// What is this large the system moves when it grows, without a copy.
const MOVED: usize = MEBIBYTE;

thread_local! {
    static LEFT_OUT: Cell<bool> = const { Cell::new(false) };
}

fn count(change: isize) {
    // A thread that ends has no locals any more.
    if LEFT_OUT.try_with(Cell::get) == Ok(false) {
        let live = LIVE.fetch_add(change, Ordering::SeqCst) + change;
        MOST.fetch_max(live, Ordering::SeqCst);
    }
}

// SAFETY: everything is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (old, new) = (layout.size() as isize, size as isize);
        // There are two of them for a moment.
        let changes = if layout.size() >= MOVED { [-old, new] } else { [new, -old] };
        changes.into_iter().for_each(count);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most that was allocated at a time while this ran, over what was before.
fn most_allocated(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Ordering::SeqCst);
    MOST.store(before, Ordering::SeqCst);
    work();
    (MOST.load(Ordering::SeqCst) - before) as usize
}

/// The peak of resident memory while it lives; only one lives at a time.
struct Peak {
    before: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Peak {
    /// For the beginning of a test: what others prepare would be counted as well.
    fn alone() -> Peak {
        static ALONE: Mutex<()> = Mutex::new(());
        Peak { before: 0, _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    fn start(&mut self) {
        // "5" sets the peak back to what is resident now.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        self.before = resident("VmRSS:");
    }

    fn assert_below(&self, limit: usize) {
        let grown = resident("VmHWM:").saturating_sub(self.before);
        assert!(grown < limit, "memory has grown by {} KiB", grown / 1024);
    }
}

fn resident(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Rows 36, 91: bodies that are announced on hundreds of channels, up to the limit, and never come, cost what has
/// come of them.
#[test]
fn announced_bodies_cost_nothing() {
    let mut peak = Peak::alone();
    const CHANNELS: u16 = 300;
    let (announced, all_announced) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        (1..=CHANNELS).for_each(|channel| peer.open_channel(channel));
        for channel in 1..=CHANNELS {
            peer.send(channel, DELIVER, args!["tag", 1, 0, "", "q"]);
            peer.raw(&header(channel, 128 << 20, NO_PROPERTIES));
            peer.raw(&frame(BODY, channel, &[7; 1000]));
        }
        peer.send(0, BLOCKED, args!["all announced"]);
        peer.close();
        announced.send(()).unwrap();
    });
    peak.start();
    let connection = Connection::open(peer.config().drop_timeout(Duration::ZERO)).unwrap();
    let channels: Vec<_> = (0..CHANNELS).map(|_| connection.channel().unwrap()).collect();
    eventually("all is announced", || connection.blocked().is_some());
    connection.close().unwrap();
    all_announced.recv().unwrap();
    peak.assert_below(60 * MEBIBYTE);
    drop(channels);
}

/// Rows 73, 91: deliveries that nobody wants are not kept.
#[test]
fn what_nobody_wants_is_not_kept() {
    let mut peak = Peak::alone();
    const EACH: usize = 3000;
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.open_channel(2);
        peer.close_channel(2);
        let body = vec![7; 20_000];
        for tag in 1..=EACH as u64 {
            peer.content(1, DELIVER, args!["no such consumer", tag, 0, "", "q"], &body);
            peer.content(1, RETURN, args![312, "NO_ROUTE", "", "q"], &body);
            peer.content(2, DELIVER, args!["closed", tag, 0, "", "q"], &body);
            peer.send(1, CANCEL, args!["no such consumer", 1]);
        }
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, QUEUE_PURGE_OK, args![0]);
        peer.close();
    });
    peak.start();
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    connection.channel().unwrap().close().unwrap();
    channel.queue_purge("q").unwrap();
    connection.close().unwrap();
    // Of 180 MB; returned messages are kept up to 16 MiB.
    peak.assert_below(60 * MEBIBYTE);
}

/// Row 74: while nobody takes what is delivered, reading pauses and the peer has to wait; a call gets its answer
/// all the same, and nothing is lost.
#[test]
fn a_consumer_that_does_not_read_holds_up_the_peer() {
    let mut peak = Peak::alone();
    const MESSAGES: u64 = 40_000;
    const SIZE: usize = 4000;
    let (stuck, is_stuck) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.open_channel(2);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        let mut writing = peer.socket().try_clone().unwrap();
        let writer = thread::spawn(move || {
            let body = [7; SIZE];
            let mut announced = Some(stuck);
            writing.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            for tag in 1..=MESSAGES {
                let bytes = content(1, DELIVER, args!["tag", tag, 0, "", "q"], NO_PROPERTIES, &body, 4088);
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    match writing.write(rest) {
                        Ok(written) => rest = &rest[written..],
                        // The client takes nothing any more.
                        Err(_) => drop(announced.take().map(|stuck| stuck.send(tag).unwrap())),
                    }
                }
                // A call waits; its answer stands behind deliveries.
                if tag == MESSAGES / 2 {
                    writing.write_all(&method(2, QUEUE_PURGE_OK, args![5])).unwrap();
                }
            }
        });
        peer.expect(2, QUEUE_PURGE);
        writer.join().unwrap();
        peer.close();
    });
    peak.start();
    let connection = Connection::open(peer.config().incoming_buffer(MEBIBYTE)).unwrap();
    let (channel, other) = (connection.channel().unwrap(), connection.channel().unwrap());
    let consume = Consume::new("q").consumer_tag("tag").no_ack(true);
    let mut consumer = channel.basic_consume(consume).unwrap();
    let sent = is_stuck.recv().expect("the peer has to wait");
    // What the system buffers is on top of the limit.
    assert!(sent < MESSAGES / 3, "the peer could send {sent} messages");
    peak.assert_below(30 * MEBIBYTE);
    assert_eq!(other.queue_purge("q").unwrap(), 5);
    for tag in 1..=MESSAGES {
        let delivery = consumer.next().unwrap().unwrap();
        assert_eq!((delivery.delivery_tag(), delivery.body().len()), (tag, SIZE));
    }
    connection.close().unwrap();
}

/// Rows 74, 91: ten million small messages wait for a consumer without acks that sleeps. The peer gets rid of as many as
/// fit into the limit and the system's buffers; the rest stays with it.
#[test]
fn a_sleeping_consumer_is_bounded_however_many_messages_wait() {
    let mut peak = Peak::alone();
    const WAITING: u64 = 10_000_000;
    const TAKEN: u64 = 100_000;
    let (stuck, is_stuck) = mpsc::channel();
    let (done, is_done) = mpsc::channel::<()>();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        let mut socket = peer.socket().try_clone().unwrap();
        socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut announced = Some(stuck);
        let deliver =
            |tag: u64| content(1, DELIVER, args!["tag", tag, 0, "", "q"], NO_PROPERTIES, &[7; 16], 4088);
        for first in (1..=WAITING).step_by(500) {
            let bytes: Vec<u8> = (first..first + 500).flat_map(deliver).collect();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match socket.write(rest) {
                    Ok(written) => rest = &rest[written..],
                    // The client takes nothing any more.
                    Err(_) if is_done.try_recv() == Err(mpsc::TryRecvError::Disconnected) => return,
                    Err(_) => drop(announced.take().map(|stuck| stuck.send(first).unwrap())),
                }
            }
        }
    });
    peak.start();
    let connection = Connection::open(peer.config().drop_timeout(Duration::ZERO)).unwrap();
    let channel = connection.channel().unwrap();
    let consume = Consume::new("q").consumer_tag("tag").no_ack(true);
    let mut consumer = channel.basic_consume(consume).unwrap();
    let sent = is_stuck.recv().expect("the peer has to wait");
    assert!(sent < WAITING / 10, "the peer could send {sent} messages");
    // 16 MiB is the default, of which a read that is under way knows nothing.
    peak.assert_below(24 * MEBIBYTE);
    for tag in 1..=TAKEN {
        assert_eq!(consumer.next().unwrap().unwrap().delivery_tag(), tag);
    }
    drop(done);
    drop((consumer, channel, connection));
    peer.finish();
}

/// Rows 53, 91: a message of 64 MiB that comes takes itself, and half a mebibyte besides; one that goes takes a third of
/// one.
#[test]
fn a_large_message_takes_little_more_than_itself() {
    let _alone = Peak::alone();
    const SIZE: usize = 64 * MEBIBYTE;
    const PIECE: usize = 128 * 1024 - 8;
    let peer = Peer::run(|peer| {
        LEFT_OUT.set(true);
        peer.handshake();
        peer.open_channel(1);
        let tag = peer.start_consumer(1);
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, QUEUE_PURGE_OK, args![0]);
        peer.send(1, DELIVER, args![tag.as_str(), 1, 0, "", "q"]);
        peer.raw(&header(1, SIZE as u64, NO_PROPERTIES));
        let piece = frame(BODY, 1, &[7; PIECE]);
        (0..SIZE / PIECE).for_each(|_| peer.raw(&piece));
        peer.raw(&frame(BODY, 1, &[7; PIECE][..SIZE % PIECE]));
        peer.expect(1, PUBLISH);
        peer.next_frame();
        let mut received = 0;
        while received < SIZE {
            received += peer.next_frame().payload.len();
        }
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    let mut consumer = channel.basic_consume("q").unwrap();
    let mut delivery = None;
    let taken = most_allocated(|| {
        channel.queue_purge("go").unwrap();
        delivery = consumer.next().transpose().unwrap();
    });
    let delivery = delivery.unwrap();
    assert_eq!(delivery.body().len(), SIZE);
    assert!((SIZE..=SIZE + MEBIBYTE / 2).contains(&taken), "{taken} bytes for {SIZE} that came");
    let taken = most_allocated(|| channel.basic_publish("", "q", delivery.body()).unwrap());
    assert!(taken <= 3 * MEBIBYTE / 10, "{taken} bytes for {SIZE} that went");
    connection.close().unwrap();
}

/// Rows 38, 91: a peer that asks for ever more answers and reads none of them is given up.
#[test]
fn answers_that_nobody_reads_are_bounded() {
    let mut peak = Peak::alone();
    let (given_up, is_given_up) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        let flows: Vec<u8> = (0..2000).flat_map(|round| method(1, FLOW, args![round % 2])).collect();
        while is_given_up.try_recv().is_err() && peer.try_raw(&flows) {}
    });
    peak.start();
    let config = peer.config().outgoing_buffer(16 * 1024).send_buffer(16 * 1024);
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    assert_eq!(connection.wait_closed().reply_code(), Some(ReplyCode::ResourceError));
    given_up.send(()).unwrap();
    drop((channel, connection));
    peer.finish();
    peak.assert_below(20 * MEBIBYTE);
}

/// Row 53: a publisher of much is held up by a peer that does not read, and costs no more than the limit.
#[test]
fn a_stalled_peer_bounds_what_publishers_cost() {
    let mut peak = Peak::alone();
    let (done, is_done) = mpsc::channel::<()>();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        let _ = is_done.recv();
    });
    peak.start();
    let body = vec![7; 20 * MEBIBYTE];
    let config = peer.config().outgoing_buffer(MEBIBYTE).publish_timeout(Duration::from_millis(200));
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    thread::scope(|scope| {
        for size in [100, 5000, 31_000, 31_000] {
            let (channel, body) = (&channel, &body[..size]);
            scope.spawn(move || while channel.basic_publish("", "q", body).is_ok() {});
        }
    });
    let error = channel.basic_publish("", "q", &body).unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    // The system's own buffers are not resident here.
    peak.assert_below(body.len() + 20 * MEBIBYTE);
    drop(done);
    drop((channel, connection));
}
