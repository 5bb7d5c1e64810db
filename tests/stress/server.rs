//! A well-behaved server in a loop. It checks what it gets, answers everything, and sometimes takes its time.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::common::peer::*;
use fastrand::Rng;

/// Asking for a queue with this prefix closes the channel.
pub const FORBIDDEN: &str = "forbidden";

/// What arrived.
#[derive(Debug, Default)]
pub struct Tally {
    /// Messages by channel.
    pub published: HashMap<u16, usize>,
    pub acked: usize,
    pub opened: usize,
}

/// A body of this length that can be checked: everything follows from its first eight bytes.
pub fn body(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = seed.to_be_bytes().to_vec();
    let mut next = seed;
    while bytes.len() < length {
        next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend(next.to_le_bytes());
    }
    bytes.truncate(length.max(8));
    bytes
}

pub fn is_whole(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|seed| body(u64::from_be_bytes(*seed), bytes.len()) == bytes)
}

#[derive(Default)]
struct Channel {
    open: bool,
    /// Ours was sent; everything but its answer and a close is ignored.
    closing: bool,
    /// What is still missing of a message: the header when `None`.
    content: Option<(Option<u64>, Vec<u8>)>,
    answers: VecDeque<Vec<u8>>,
    held_until: Option<Instant>,
    delivery_tag: u64,
}

/// One connection's server.
pub struct Server<'a> {
    peer: &'a mut Peer,
    random: Rng,
    /// One answer in so many is held up, with all behind it on its channel; 0 for none.
    late: u32,
    channels: HashMap<u16, Channel>,
    tally: Tally,
}

impl<'a> Server<'a> {
    pub fn new(peer: &'a mut Peer, seed: u64, late: u32) -> Server<'a> {
        let random = Rng::with_seed(seed);
        Server { peer, random, late, channels: HashMap::new(), tally: Tally::default() }
    }

    /// Shakes hands and serves until the client has closed the connection.
    pub fn run(mut self) -> Tally {
        self.peer.handshake_with(Tune { channel_max: 200, frame_max: 4096, heartbeat: 0 });
        self.peer.piece = 4088;
        let mut idle_since = Instant::now();
        loop {
            match self.peer.receive_within(Duration::from_millis(1)) {
                Some(true) => idle_since = Instant::now(),
                // A client may go without a word only when it gives up.
                Some(false) => return self.tally,
                None => assert!(idle_since.elapsed() < PATIENCE, "the client says nothing any more"),
            }
            while let Some(frame) = self.peer.frame_that_is_here() {
                if frame.method() == Some(CLOSE) {
                    self.peer.send(0, CLOSE_OK, &[]);
                    self.peer.expect_end();
                    return self.tally;
                }
                self.frame(&frame);
            }
            self.send_answers();
        }
    }

    fn frame(&mut self, frame: &Frame) {
        if frame.kind == HEARTBEAT {
            return;
        }
        let channel = self.channels.entry(frame.channel).or_default();
        if channel.closing {
            match frame.method() {
                Some(CHANNEL_CLOSE) => self.peer.send(frame.channel, CHANNEL_CLOSE_OK, &[]),
                Some(CHANNEL_CLOSE_OK) => *channel = Channel::default(),
                _ => {}
            }
            return;
        }
        assert_eq!(
            channel.open,
            frame.method() != Some(CHANNEL_OPEN),
            "channel {}: {frame:?}",
            frame.channel
        );
        match (channel.content.take(), frame.kind) {
            (None, METHOD) => self.method(frame),
            (Some((None, _)), HEADER) => {
                let size = u64::from_be_bytes(frame.payload[4..12].try_into().unwrap());
                self.content(frame.channel, size, Vec::new());
            }
            (Some((Some(size), mut body)), BODY) => {
                body.extend(&frame.payload);
                self.content(frame.channel, size, body);
            }
            (missing, _) => panic!("{frame:?} where {missing:?} was expected"),
        }
    }

    fn content(&mut self, number: u16, size: u64, body: Vec<u8>) {
        let channel = self.channels.entry(number).or_default();
        assert!(body.len() as u64 <= size, "more body than announced");
        if (body.len() as u64) < size {
            channel.content = Some((Some(size), body));
            return;
        }
        assert!(is_whole(&body), "a body of {size} bytes on channel {number} is garbled");
        *self.tally.published.entry(number).or_default() += 1;
    }

    fn method(&mut self, frame: &Frame) {
        let number = frame.channel;
        let asked = frame.method().expect("a known method");
        let channel = self.channels.entry(number).or_default();
        let answer = match asked {
            PUBLISH => {
                channel.content = Some((None, Vec::new()));
                return;
            }
            CHANNEL_OPEN => {
                channel.open = true;
                self.tally.opened += 1;
                usual_answer(frame)
            }
            CHANNEL_CLOSE => {
                // Its own answer is the last, and nobody waits for those before it.
                *channel = Channel::default();
                self.peer.send(number, CHANNEL_CLOSE_OK, &[]);
                return;
            }
            QUEUE_DECLARE if frame.arguments().text(1).starts_with(FORBIDDEN) => {
                channel.closing = true;
                channel.answers.clear();
                self.peer.send(number, CHANNEL_CLOSE, args![403, "ACCESS_REFUSED - forbidden", 50, 10]);
                return;
            }
            GET => {
                channel.delivery_tag += 1;
                let arguments = frame.arguments();
                let name = arguments.text(1);
                let body = body(self.random.u64(..), self.random.usize(8..10_000));
                let got = args![channel.delivery_tag, 0, "", name, 0];
                Some(content(number, GET_OK, got, NO_PROPERTIES, &body, 4088))
            }
            ACK | NACK | REJECT => {
                let arguments = frame.arguments();
                assert!((1..=channel.delivery_tag).contains(&arguments.number(0)), "{arguments:?}");
                self.tally.acked += 1;
                return;
            }
            CONSUME => {
                let arguments = frame.arguments();
                let tag = arguments.text(2);
                let mut bytes = usual_answer(frame).unwrap();
                for _ in 0..self.random.usize(5..30) {
                    channel.delivery_tag += 1;
                    let body = body(self.random.u64(..), self.random.usize(8..6000));
                    let deliver = args![tag, channel.delivery_tag, 0, "", "q"];
                    bytes.extend(content(number, DELIVER, deliver, NO_PROPERTIES, &body, 4088));
                }
                Some(bytes)
            }
            CANCEL if frame.arguments().number(1) == 1 => return,
            _ => usual_answer(frame),
        };
        channel.answers.push_back(answer.unwrap_or_else(|| panic!("{asked:?} has no answer")));
        if self.late != 0 && channel.held_until.is_none() && self.random.u32(..self.late) == 0 {
            channel.held_until = Some(Instant::now() + Duration::from_millis(self.random.u64(1..30)));
        }
    }

    fn send_answers(&mut self) {
        let now = Instant::now();
        let mut bytes = Vec::new();
        for channel in self.channels.values_mut() {
            if channel.held_until.is_some_and(|until| until > now) {
                continue;
            }
            channel.held_until = None;
            bytes.extend(channel.answers.drain(..).flatten());
        }
        // In pieces, as a network may do.
        let slice = self.random.usize(1..5000);
        self.peer.sliced(&bytes, slice);
    }
}
