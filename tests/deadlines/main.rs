//! Every blocking call, whatever the peer does instead of answering it, and whenever it does so.
//!
//! One table of calls, one of faults, one of moments; [`run`] takes a cell of their product. A failure names
//! its cell.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub)]

mod calls;
mod cell;
#[path = "../common/mod.rs"]
mod common;

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use calls::{Seen, Stage, calls};
use cell::{Cell, FAULTS, Fault, MOMENTS, Moment, Outcome, outcome};
use common::{
    caller::call,
    limits::{AMPLE, PROMPT},
    peer::*,
};
use leveret::{Connection, Consume, Error, Result};

/// The limit of calls that are to run into it; long enough for what is set up before.
const SHORT: Duration = Duration::from_millis(200);

/// The limit of calls that are to end before it.
const LONG: Duration = AMPLE;

/// What is delivered before the call: enough for acks to fill a buffer with.
const DELIVERIES: u64 = 200;

/// Bytes that begin no frame and end none; enough to be whatever is missing of an answer.
const GARBAGE: [u8; 512] = [0xff; 512];

/// Rows 13, 14, 22, 30, 33, 37, 50, 53, 72, 100: every blocking call ends in time, with the right kind of
/// error, whatever the peer does and whenever; the first cause is what every later call says; no thread,
/// descriptor or channel id is left behind.
#[test]
fn every_call_ends_in_time_and_tells_the_first_cause() {
    let calls = calls();
    let cells = calls.iter().flat_map(|call| FAULTS.iter().map(move |&fault| (call, fault)));
    let cells = cells.flat_map(|(call, fault)| MOMENTS.map(|moment| Cell { call, fault, moment }));
    let cells: Mutex<Vec<Cell<'_>>> = Mutex::new(cells.filter(Cell::makes_sense).collect());
    let failures = Mutex::new(Vec::new());
    // Most of them only wait.
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while let Some(cell) = { cells.lock().unwrap().pop() } {
                    if let Err(panicked) = catch_unwind(AssertUnwindSafe(|| run(&cell))) {
                        failures.lock().unwrap().push(format!("{cell}: {}", text_of(&*panicked)));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} cells failed:\n{}", failures.len(), failures.join("\n"));
    nothing_is_left();
}

fn text_of(panicked: &(dyn Any + Send)) -> String {
    match (panicked.downcast_ref::<String>(), panicked.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, Some(text)) => (*text).to_owned(),
        _ => "a panic without text".to_owned(),
    }
}

fn run(cell: &Cell<'_>) {
    let mut limit = cell.limit();
    while !try_run(cell, limit) {
        // A machine that is too busy to set the stage within this time gets more.
        limit *= 2;
    }
}

/// False when the limit passed before the call.
fn try_run(cell: &Cell<'_>, limit: Duration) -> bool {
    let (waiting, client_waits) = channel();
    let (strike, struck) = channel();
    let plan = Plan { seen: cell.call.seen, fault: cell.fault, moment: cell.moment, channel: cell.channel() };
    let disguised = cell.is_disguised();
    let peer = Peer::run(move |peer| plan.play(peer, disguised, &client_waits, &strike));
    let mut stage = match set_stage(limit, &peer, waiting) {
        Ok(stage) => stage,
        Err(Error::Timeout(_)) => {
            peer.abandon();
            return false;
        }
        Err(error) => panic!("before the call: {error:?}"),
    };

    if cell.moment == Moment::Before {
        stage.waiting.send(()).unwrap();
        struck.recv().unwrap();
    } else if let Seen::Nothing = cell.call.seen {
        stage.waiting.send(()).unwrap();
    }
    let started = Instant::now();
    let result = call(|| (cell.call.run)(&mut stage));
    let took = started.elapsed();
    // Not for any longer limit than its own; which of the short ones it was, the error says.
    assert!(took < PROMPT, "it took {took:?}: {result:?}");
    assert!(cell.allowed().contains(&outcome(&result)), "{result:?} is none of {:?}", cell.allowed());
    if let Err(Error::Timeout(timeout)) = &result {
        let own = limit_of(cell.call.waiting_for, limit);
        assert_eq!((timeout.waiting_for, timeout.limit), (cell.call.waiting_for, own));
    }
    check_what_follows(cell, &mut stage, result);

    let started = Instant::now();
    call(move || drop(stage));
    let took = started.elapsed();
    assert!(took < PROMPT, "dropping everything took {took:?}");
    peer.finish();
    true
}

/// The limit of what a timeout names: a little different for each setting, so that the error tells them apart.
fn limit_of(waiting_for: &str, limit: Duration) -> Duration {
    limit
        + match waiting_for {
            "channel.close" | "connection.close" => Duration::from_millis(1),
            PUBLISHING | "sending the rest of a message" => Duration::from_millis(2),
            _ => Duration::ZERO,
        }
}

const PUBLISHING: &str = "publishing";

/// A connection with a channel, and on it a consumer whose deliveries have come.
fn set_stage(limit: Duration, peer: &Script<()>, waiting: Sender<()>) -> Result<Stage> {
    let mut config = peer.config().call_timeout(limit_of("", limit));
    config =
        config.close_timeout(limit_of("channel.close", limit)).publish_timeout(limit_of(PUBLISHING, limit));
    config = config.drop_timeout(limit.min(SHORT / 4)).prefetch(0);
    // Small, so that they are full soon.
    config = config.outgoing_buffer(16 * 1024).send_buffer(16 * 1024);
    let connection = Connection::open(config)?;
    let channel = connection.channel()?;
    let mut consumer = channel.basic_consume(Consume::new("q").consumer_tag("tag"))?;
    let deliveries = consumer.by_ref().take(DELIVERIES as usize).collect::<Result<VecDeque<_>>>()?;
    let (connection, channel, consumer) = (Some(connection), Some(channel), Some(consumer));
    Ok(Stage { connection, channel, consumer, made: Vec::new(), deliveries, waiting })
}

/// What is true after the call: the first cause is kept, and what need not be lost is not.
fn check_what_follows(cell: &Cell<'_>, stage: &mut Stage, result: Result<()>) {
    let told = result.err();
    let lost = match &stage.connection {
        Some(connection) if cell.loses_the_connection() || told.as_ref().is_some_and(Error::is_hard) => {
            let cause = connection.wait_closed_timeout(LONG).expect("the connection is lost");
            let expected = outcome::<()>(&Err(cause.clone()));
            let closed = cell.is_about_the_connection() && expected == Outcome::Closed;
            assert!(closed || cell.cause().contains(&expected), "{cause:?} is none of {:?}", cell.cause());
            Some(cause)
        }
        _ => None,
    };
    if let (Some(told), Some(cause)) = (&told, &lost) {
        assert_eq!(told.to_string(), cause.to_string(), "the call and the connection agree");
    }
    if let (Some(channel), true) = (&stage.channel, lost.is_some() || cell.kills_channel(1)) {
        let kept = keeps_saying(|| channel.flow(true));
        match lost.as_ref().or(told.as_ref()) {
            Some(_) if cell.closes_the_channel() => {}
            Some(expected) => assert_eq!(kept, expected.to_string(), "what later calls say"),
            None => assert!(kept.contains("404 NOT_FOUND - no such thing"), "{kept}"),
        }
    }
    if let (Some(connection), Some(cause)) = (&stage.connection, &lost) {
        assert_eq!(keeps_saying(|| connection.channel()), cause.to_string(), "what opening a channel says");
        assert!(!connection.is_open());
    }
    if let (Some(connection), None, false) = (&stage.connection, &lost, cell.is_disguised()) {
        assert_eq!(connection.is_open(), !cell.is_about_the_connection());
    }
    if cell.kills_channel(cell.channel()) {
        stage.made.clear();
        // Kept back until the answer has come to a close that crossed the peer's.
        eventually("the id is not free", || {
            let again = stage.connection().channel().expect("other channels are not affected");
            again.id() == cell.channel()
        });
    }
}

/// The error that the 1st, the 2nd and the 100th call give, as text.
fn keeps_saying<T>(call: impl Fn() -> Result<T>) -> String {
    let errors: Vec<Error> = (0..100).map(|_| call().err().expect("an error")).collect();
    let first = &errors[0];
    for index in [1, 99] {
        assert_eq!(errors[index].to_string(), first.to_string(), "call {}", index + 1);
        assert_eq!(errors[index].reply_code(), first.reply_code());
    }
    first.to_string()
}

/// The peer's part of a cell.
struct Plan {
    seen: Seen,
    fault: Fault,
    moment: Moment,
    channel: u16,
}

impl Plan {
    fn play(&self, peer: &mut Peer, disguised: bool, client_waits: &Receiver<()>, struck: &Sender<()>) {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        for tag in 1..=DELIVERIES {
            peer.deliver(1, "tag", tag, b"early");
        }

        if self.moment == Moment::Before || !matches!(self.seen, Seen::Request(..)) {
            client_waits.recv().unwrap();
        }
        let answer = match (self.moment, self.seen) {
            (Moment::Before, _) => Vec::new(),
            (_, Seen::Request(channel, method, answer)) => answer(&peer.expect(channel, method)),
            (_, Seen::Nothing) => {
                content(1, DELIVER, args!["tag", DELIVERIES + 1, 0, "", "q"], NO_PROPERTIES, b"late", 2)
            }
            (_, Seen::Full) => Vec::new(),
        };
        match self.moment {
            Moment::During => peer.raw(&answer[..answer.len() / 2]),
            Moment::After => peer.raw(&answer),
            Moment::Before | Moment::Instead => {}
        }
        match self.fault {
            Fault::Fin => peer.fin(),
            Fault::Rst => peer.rst(),
            Fault::Silence | Fault::HalfClose => {}
            Fault::Garbage => peer.raw(&GARBAGE),
            Fault::ConnectionClose => peer.send(0, CLOSE, args![320, "CONNECTION_FORCED - bye", 0, 0]),
            Fault::ChannelClose => {
                peer.send(self.channel, CHANNEL_CLOSE, args![404, "NOT_FOUND - no such thing", 50, 10]);
            }
        }
        let _ = struck.send(());
        match self.fault {
            Fault::Fin | Fault::Rst => {}
            Fault::HalfClose => peer.half_close(),
            // Not even reading; until the client has dropped everything.
            Fault::Silence if matches!(self.seen, Seen::Full) => while client_waits.recv().is_ok() {},
            Fault::Silence | Fault::Garbage => peer.silence(),
            _ if disguised => peer.silence(),
            Fault::ConnectionClose if self.moment == Moment::After && self.asks_for_a_close() => {
                peer.silence()
            }
            Fault::ConnectionClose => {
                peer.until(0, CLOSE_OK);
                peer.silence();
            }
            Fault::ChannelClose => {
                if self.moment == Moment::Instead && self.goes_on() {
                    peer.raw(&answer);
                }
                self.serve(peer);
            }
        }
    }

    fn asks_for_a_close(&self) -> bool {
        matches!(self.seen, Seen::Request(_, CLOSE | CHANNEL_CLOSE, _))
    }

    /// Its call is answered although the channel was closed.
    fn goes_on(&self) -> bool {
        matches!(self.seen, Seen::Request(0, ..)) || self.asks_for_a_close()
    }

    /// Goes on as a broker would after it has closed one channel.
    fn serve(&self, peer: &mut Peer) {
        let mut closed = false;
        while let Some(frame) = peer.next_frame_or_end() {
            if frame.channel == self.channel && closed {
                assert_eq!(frame.method(), Some(CHANNEL_OPEN), "nothing else follows our close-ok");
                closed = false;
            }
            match frame.method() {
                Some(CHANNEL_OPEN) => peer.send(frame.channel, CHANNEL_OPEN_OK, args![""]),
                Some(CHANNEL_CLOSE) => peer.send(frame.channel, CHANNEL_CLOSE_OK, &[]),
                Some(CHANNEL_CLOSE_OK) => closed = true,
                Some(CLOSE) => peer.send(0, CLOSE_OK, &[]),
                Some(UPDATE_SECRET) => peer.send(0, UPDATE_SECRET_OK, &[]),
                _ => {}
            }
        }
    }
}
