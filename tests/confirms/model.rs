//! A broker that acks, nacks and returns publishes in whatever order it likes, remembers what it did to each,
//! and ends the connection when it likes.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read},
    net::Shutdown,
    time::Duration,
};

use fastrand::Rng;

use super::common::peer::*;

/// Frames are small, so that many bodies take several.
pub const FRAME_MAX: u32 = 4096;

/// How long the broker waits for more before it settles something all the same.
const QUIET: Duration = Duration::from_millis(1);

/// How the connection comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything is settled, and the client closes.
    Complete,
    /// The broker sends no more, but reads on.
    HalfClose,
    Fin,
    Reset,
    /// In the middle of an ack.
    HalfAnAck,
    CloseConnection,
    CloseChannel,
}

pub const ENDINGS: [Ending; 7] = [
    Ending::Complete,
    Ending::HalfClose,
    Ending::Fin,
    Ending::Reset,
    Ending::HalfAnAck,
    Ending::CloseConnection,
    Ending::CloseChannel,
];

impl Ending {
    /// Whatever the broker sent before reaches the client.
    pub fn is_orderly(self) -> bool {
        !matches!(self, Ending::Fin | Ending::Reset | Ending::HalfAnAck)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Acked,
    Nacked,
    Returned,
    Unknown,
}

/// One publish as the broker received it. Its delivery number is its place, counted from 1.
#[derive(Debug)]
pub struct Received {
    pub id: u64,
    exchange: String,
    routing_key: String,
    mandatory: bool,
    properties: Vec<u8>,
    body: Vec<u8>,
    returned: Option<usize>,
    settled: Option<(usize, bool)>,
}

impl Received {
    /// What the client must be told, and with which of the broker's actions that was decided.
    pub fn verdict(&self) -> (usize, Verdict) {
        match (self.returned, self.settled) {
            (Some(action), _) => (action, Verdict::Returned),
            (None, Some((action, true))) => (action, Verdict::Acked),
            (None, Some((action, false))) => (action, Verdict::Nacked),
            (None, None) => (usize::MAX, Verdict::Unknown),
        }
    }
}

/// The id that a body begins with.
pub fn id(body: &[u8]) -> u64 {
    u64::from_be_bytes(body[..8].try_into().expect("an id"))
}

/// What the broker has done.
#[derive(Debug)]
pub struct Record {
    pub received: Vec<Received>,
    /// It was the broker that ended it.
    pub ended: bool,
}

impl Record {
    /// The place of each publish.
    pub fn places(&self) -> HashMap<u64, usize> {
        self.received.iter().enumerate().map(|(place, received)| (received.id, place)).collect()
    }
}

enum Seen {
    Frame(Frame),
    Quiet,
    End,
}

struct Broker<'p> {
    peer: &'p mut Peer,
    random: Rng,
    bytes: Vec<u8>,
    out: Vec<u8>,
    /// A content that is not complete, and how much of it is missing.
    coming: Option<(Received, Option<usize>)>,
    received: Vec<Received>,
    /// The places of those that are not settled.
    outstanding: Vec<usize>,
    actions: usize,
}

/// Serves channel 1, which is in confirm mode, until the client closes or `actions` acks, nacks and returns were
/// sent.
pub fn serve(peer: &mut Peer, seed: u64, ending: Ending, actions: usize) -> Record {
    let mut broker = Broker {
        peer,
        random: Rng::with_seed(seed),
        bytes: Vec::new(),
        out: Vec::new(),
        coming: None,
        received: Vec::new(),
        outstanding: Vec::new(),
        actions: 0,
    };
    let ended = broker.serve(ending, actions);
    Record { received: broker.received, ended }
}

impl Broker<'_> {
    fn serve(&mut self, ending: Ending, actions: usize) -> bool {
        loop {
            match self.read() {
                Seen::Frame(frame) if frame.method() == Some(CLOSE) => {
                    self.peer.send(0, CLOSE_OK, &[]);
                    self.peer.expect_end();
                    return false;
                }
                Seen::Frame(frame) => self.take(frame),
                Seen::Quiet => self.act(),
                Seen::End => panic!("the client hung up"),
            }
            if self.random.u8(..4) == 0 {
                self.act();
            }
            if self.random.bool() {
                self.flush();
            }
            if ending != Ending::Complete && self.actions >= actions {
                self.flush();
                self.end(ending);
                return true;
            }
        }
    }

    fn flush(&mut self) {
        self.peer.raw(&std::mem::take(&mut self.out));
    }

    fn read(&mut self) -> Seen {
        loop {
            if let Some(frame) = take_frame(&mut self.bytes) {
                return Seen::Frame(frame);
            }
            let mut chunk = [0; 16 * 1024];
            self.peer.socket().set_read_timeout(Some(QUIET)).expect("a timeout");
            match self.peer.socket().read(&mut chunk) {
                Ok(0) => return Seen::End,
                Ok(read) => self.bytes.extend(&chunk[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.flush();
                    return Seen::Quiet;
                }
                Err(_) => return Seen::End,
            }
        }
    }

    fn read_patiently(&mut self) -> Seen {
        loop {
            match self.read() {
                Seen::Quiet => {}
                seen => return seen,
            }
        }
    }

    /// A part of a publish; nothing may come between these.
    fn take(&mut self, frame: Frame) {
        assert_eq!(frame.channel, 1, "{frame:?}");
        let (mut coming, missing) = match (self.coming.take(), frame.kind) {
            (None, METHOD) => {
                assert_eq!(frame.method(), Some(PUBLISH));
                let arguments = frame.arguments();
                let received = Received {
                    id: 0,
                    exchange: arguments.text(1).to_owned(),
                    routing_key: arguments.text(2).to_owned(),
                    mandatory: arguments.number(3) == 1,
                    properties: Vec::new(),
                    body: Vec::new(),
                    returned: None,
                    settled: None,
                };
                (received, None)
            }
            (Some((mut coming, None)), HEADER) => {
                let size = u64::from_be_bytes(frame.payload[4..12].try_into().expect("8 bytes"));
                coming.properties = frame.payload[12..].to_vec();
                (coming, Some(size as usize))
            }
            (Some((mut coming, Some(missing))), BODY) => {
                coming.body.extend(&frame.payload);
                (coming, Some(missing - frame.payload.len()))
            }
            (coming, kind) => panic!("a frame of type {kind} after {coming:?}"),
        };
        if missing == Some(0) {
            coming.id = id(&coming.body);
            self.outstanding.push(self.received.len());
            self.received.push(coming);
        } else {
            self.coming = Some((coming, missing));
        }
    }

    fn act(&mut self) {
        let Some(&place) = self.random.choice(&self.outstanding) else { return };
        let publish = &mut self.received[place];
        let choice = self.random.u8(..10);
        if choice < 4 && publish.mandatory && publish.returned.is_none() {
            publish.returned = Some(self.actions);
            let arguments = args![312, "NO_ROUTE", &publish.exchange, &publish.routing_key];
            let piece = FRAME_MAX as usize - 8;
            self.out.extend(content(1, RETURN, arguments, &publish.properties, &publish.body, piece));
            self.actions += 1;
        } else if choice < 8 {
            self.settle(place);
        } else {
            let again = self.random.usize(..=place);
            if !self.outstanding.contains(&again) {
                // Settled before, so it says nothing new.
                self.out.extend(method(1, ACK, args![again as u64 + 1, 0]));
            }
        }
    }

    fn settle(&mut self, place: usize) {
        let multiple = self.random.u8(..4) == 0;
        let acked = self.random.u8(..3) > 0;
        let number = place as u64 + 1;
        let ack = method(1, ACK, args![number, u64::from(multiple)]);
        let nack = method(1, NACK, args![number, u64::from(multiple)]);
        self.out.extend(if acked { ack } else { nack });
        let (received, action) = (&mut self.received, self.actions);
        self.outstanding.retain(|&other| {
            let meant = other == place || (multiple && other < place);
            if meant {
                received[other].settled = Some((action, acked));
            }
            !meant
        });
        self.actions += 1;
    }

    fn end(&mut self, ending: Ending) {
        match ending {
            Ending::Complete => {}
            Ending::HalfClose => {
                let _ = self.peer.socket().shutdown(Shutdown::Write);
                self.peer.silence();
            }
            Ending::Fin => self.peer.fin(),
            Ending::Reset => self.peer.rst(),
            Ending::HalfAnAck => {
                let ack = method(1, ACK, args![0, 1]);
                self.peer.raw(&ack[..self.random.usize(1..ack.len())]);
                self.peer.fin();
            }
            Ending::CloseConnection => {
                self.peer.send(0, CLOSE, args![320, "CONNECTION_FORCED", 0, 0]);
                self.until(CLOSE_OK);
                self.peer.silence();
            }
            Ending::CloseChannel => {
                self.peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND", 60, 40]);
                self.until(CHANNEL_CLOSE_OK);
                let Seen::Frame(next) = self.read_patiently() else { panic!("the client hung up") };
                assert_eq!(next.method(), Some(CLOSE), "nothing may follow on the channel: {next:?}");
                self.peer.send(0, CLOSE_OK, &[]);
                self.peer.expect_end();
            }
        }
    }

    /// What comes before is on its way in vain.
    fn until(&mut self, method: Method) {
        loop {
            match self.read_patiently() {
                Seen::Frame(frame) if frame.method() == Some(method) => return,
                Seen::Frame(_) | Seen::Quiet => {}
                Seen::End => panic!("the client hung up before {method:?}"),
            }
        }
    }
}
