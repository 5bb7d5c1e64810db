//! How many locks and wake-ups a message may cost, by counting those of the thread that does the work. The other half of
//! the budget, allocations and system calls, is in `tests/budget.rs`.

use super::fixture::{Fixture, WRITES};
use crate::{
    connection::{outgoing::Urgency, reader::Demultiplexer, writer::LINGER},
    protocol::{
        content::{write_body, write_header},
        frame::write_method,
        spec::{BasicAck, BasicDeliver, MethodBody, QueuePurge, QueuePurgeOk},
        wire::ShortStr,
    },
    sync::{Waiter, counted},
};
use std::time::{Duration, Instant};

const MESSAGES: usize = 10_000;

/// The first and the last of a row.
const ONCE: usize = 50;

/// What is handed over at once, and written at once.
const PACK: usize = 16 * 1024;
const WRITE: usize = 64 * 1024;

/// The locks that `work` has taken, and whom it has woken.
fn cost(work: impl FnOnce()) -> (usize, usize) {
    let before = (counted::LOCKS.get(), counted::WAKES.get());
    work();
    (counted::LOCKS.get() - before.0, counted::WAKES.get() - before.1)
}

/// Deliveries on channel 1, in one buffer. A consumer gets `row` of them before it is the next one's turn.
fn deliveries(tags: &[&'static str], row: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 0..MESSAGES {
        let tag = tags[number / row % tags.len()];
        let deliver = BasicDeliver {
            consumer_tag: ShortStr::truncated(tag),
            delivery_tag: number as u64 + 1,
            ..Default::default()
        };
        write_method(&mut bytes, 1, 4096, &deliver).unwrap();
        write_header(&mut bytes, 1, 4096, 16, None).unwrap();
        write_body(&mut bytes, 1, 4096, b"sixteen bytes...");
    }
    bytes
}

/// One wake-up for as much as is read at once, and a few locks for a pack; the consumer takes all of them with one.
#[test]
fn deliveries_are_handed_over_in_batches() {
    for tag in ["a", "b"] {
        let mut fixture = Fixture::new();
        let mut demultiplexer = Demultiplexer::new(&fixture.shared);
        let bytes = deliveries(&[tag], 1);
        let consumer = fixture.consumers.iter_mut().find(|consumer| consumer.consumer_tag() == tag).unwrap();
        assert!(consumer.take_next(Some(Waiter::new())).unwrap().is_none());
        let (locks, wakes) = cost(|| assert_eq!(demultiplexer.feed(&bytes).unwrap(), bytes.len()));
        assert!(locks <= 3 * bytes.len() / PACK + ONCE, "{locks} locks for {MESSAGES} deliveries");
        assert_eq!(wakes, 1);
        let (locks, wakes) = cost(|| {
            for _ in 0..MESSAGES {
                assert_eq!(consumer.next_timeout(Duration::ZERO).unwrap().unwrap().body().len(), 16);
            }
        });
        assert!(locks <= ONCE, "{locks} locks to take {MESSAGES} deliveries");
        assert_eq!(wakes, 0);
    }
}

/// Each message is for another consumer than the one before: they cost what a row for one costs, and whoever sleeps is
/// woken once.
#[test]
fn deliveries_in_turn_are_handed_over_in_batches() {
    let mut fixture = Fixture::new();
    let mut demultiplexer = Demultiplexer::new(&fixture.shared);
    for consumer in &mut fixture.consumers {
        assert!(consumer.take_next(Some(Waiter::new())).unwrap().is_none());
    }
    let bytes = deliveries(&["a", "b"], 1);
    let (locks, wakes) = cost(|| assert_eq!(demultiplexer.feed(&bytes).unwrap(), bytes.len()));
    assert!(locks <= 3 * bytes.len() / PACK + ONCE, "{locks} locks for {MESSAGES} deliveries");
    assert_eq!(wakes, 2);
}

/// The same with many consumers: what they get of one read they get in few batches.
#[test]
fn deliveries_to_many_consumers_in_turn_are_handed_over_in_batches() {
    let fixture = Fixture::new();
    let mut demultiplexer = Demultiplexer::new(&fixture.shared);
    let tags: Vec<&'static str> = (0..100).map(|number| &*format!("consumer {number}").leak()).collect();
    let mut consumers: Vec<_> =
        tags.iter().map(|tag| fixture.channels[0].pretend_to_consume(tag, false)).collect();
    for consumer in &mut consumers {
        assert!(consumer.take_next(Some(Waiter::new())).unwrap().is_none());
    }
    let bytes = deliveries(&tags, 1);
    let (locks, wakes) = cost(|| assert_eq!(demultiplexer.feed(&bytes).unwrap(), bytes.len()));
    // Two to find out about each, and two for each of its batches.
    assert!(locks <= tags.len() * 2 * 3 + ONCE, "{locks} locks for {MESSAGES} deliveries");
    assert_eq!(wakes, tags.len());
    for (number, consumer) in (1..).zip(&mut consumers) {
        for tag in (number..=MESSAGES as u64).step_by(tags.len()) {
            let delivery = consumer.try_next().unwrap().unwrap();
            assert_eq!((delivery.delivery_tag(), delivery.body().len()), (tag, 16));
            delivery.ack().unwrap();
        }
    }
}

/// Confirms for two channels, in turn and with deliveries between them.
#[test]
fn confirms_are_handed_over_together() {
    let fixture = Fixture::new();
    let mut demultiplexer = Demultiplexer::new(&fixture.shared);
    let delivery = deliveries(&["b"], 1);
    let delivery = &delivery[..delivery.len() / MESSAGES];
    let mut bytes = Vec::new();
    for number in 1..=MESSAGES as u64 {
        for channel in [1, 2] {
            let ack = BasicAck { delivery_tag: number, multiple: false };
            write_method(&mut bytes, channel, 4096, &ack).unwrap();
        }
        bytes.extend_from_slice(delivery);
    }
    let (locks, _) = cost(|| assert_eq!(demultiplexer.feed(&bytes).unwrap(), bytes.len()));
    assert!(locks <= 5 * bytes.len() / PACK + ONCE, "{locks} locks for {MESSAGES} confirms");
}

/// The channel's lock and that of the outgoing buffer.
#[test]
fn an_ack_takes_two_locks() {
    let mut fixture = Fixture::new();
    let mut demultiplexer = Demultiplexer::new(&fixture.shared);
    let bytes = deliveries(&["a"], 1);
    demultiplexer.feed(&bytes).unwrap();
    let consumer = &mut fixture.consumers[0];
    let (locks, _) = cost(|| {
        for _ in 0..MESSAGES {
            consumer.try_next().unwrap().unwrap().ack().unwrap();
        }
    });
    assert!(locks <= 2 * MESSAGES + ONCE, "{locks} locks for {MESSAGES} acks");
}

/// That of the outgoing buffer.
#[test]
fn a_publish_takes_one_lock() {
    let fixture = Fixture::new();
    let (locks, wakes) = cost(|| {
        for _ in 0..MESSAGES {
            fixture.channels[0].basic_publish("", "key", "sixteen bytes...").unwrap();
        }
    });
    // Each write takes a few.
    let writes = MESSAGES * 80 / WRITE;
    assert!(locks <= MESSAGES + 4 * writes + ONCE, "{locks} locks for {MESSAGES} publishes");
    assert_eq!(wakes, 0);
}

/// The caller takes five (the channel's, three to append and to write, the answer's) and the reader three; nobody is woken
/// who does not wait for this answer.
#[test]
fn a_call_takes_eight_locks() {
    let fixture = Fixture::new();
    let mut demultiplexer = Demultiplexer::new(&fixture.shared);
    let mut answer = Vec::new();
    write_method(&mut answer, 2, 4096, &QueuePurgeOk { message_count: 0 }).unwrap();
    let core = fixture.channels[1].core();
    let purge = QueuePurge { queue: ShortStr::truncated("q"), ..Default::default() };
    let (locks, wakes) = cost(|| {
        for _ in 0..MESSAGES {
            let coming = core
                .begin(
                    Duration::ZERO,
                    QueuePurge::NAME,
                    QueuePurge::REPLIES.into(),
                    Urgency::Caller,
                    &mut |out, channel| write_method(out, channel, 4096, &purge),
                )
                .unwrap();
            core.connection.outgoing.flush();
            demultiplexer.feed(&answer).unwrap();
            assert!(coming.take().is_some());
        }
    });
    assert!(locks <= 8 * MESSAGES, "{locks} locks for {MESSAGES} calls");
    assert_eq!(wakes, 0);
}

/// The writer thread looks after a stream every 150 microseconds, and not after those who wait for each answer.
#[test]
fn those_who_wait_are_no_stream() {
    let fixture = Fixture::new();
    let (channel, outgoing) = (&fixture.channels[1], &fixture.shared.outgoing);
    assert!(!outgoing.is_gathering());
    let purge = QueuePurge { queue: ShortStr::truncated("q"), ..Default::default() };
    for _ in 0..3 {
        // In vain: there is nobody who reads the answer.
        assert!(channel.core().call(Duration::ZERO, &purge).is_err());
        assert!(!outgoing.is_gathering());
        channel.basic_publish("", "key", "sixteen bytes...").unwrap();
        assert!(outgoing.is_gathering());
    }
}

/// Row 54: what is gathered for a window is written once, by the one who waits for it, and not its first message alone; but a
/// lone message is not held back.
#[test]
fn a_window_takes_one_write_and_a_lone_message_another() {
    let fixture = Fixture::new();
    let channel = &fixture.channels[1];
    let outgoing = &fixture.shared.outgoing;
    let writes = |of_window: usize| {
        let (before, mut late) = (WRITES.get(), 0);
        for _ in 0..MESSAGES / of_window {
            let paused = Instant::now();
            outgoing.flush();
            channel.basic_publish("", "key", b"sixteen bytes...").unwrap();
            // After a pause, its first message is a lone one.
            late += usize::from(paused.elapsed() >= LINGER);
            (1..of_window).for_each(|_| channel.basic_publish("", "key", b"sixteen bytes...").unwrap());
        }
        outgoing.flush();
        (WRITES.get() - before, late)
    };
    let (written, late) = writes(100);
    let windows = MESSAGES / 100;
    assert!((windows..=windows + late + ONCE).contains(&written), "{written} writes, {late} pauses");
    assert_eq!(writes(1).0, MESSAGES);
}
