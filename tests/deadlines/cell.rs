//! One cell of the table: a call, what the peer does, and when; and what the call may end with.

use std::{fmt, time::Duration};

use super::{
    LONG, SHORT,
    calls::{Call, Seen},
    common::peer::{CHANNEL_CLOSE, CLOSE},
};
use leveret::{Error, ReplyCode, Result, Scope};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    Fin,
    Rst,
    Silence,
    ConnectionClose,
    ChannelClose,
    HalfClose,
    Garbage,
}

pub const FAULTS: [Fault; 7] = [
    Fault::Fin,
    Fault::Rst,
    Fault::Silence,
    Fault::ConnectionClose,
    Fault::ChannelClose,
    Fault::HalfClose,
    Fault::Garbage,
];

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Moment {
    /// Before the call.
    Before,
    /// After the call's frame was read, instead of the answer.
    Instead,
    /// In the middle of the answer's bytes.
    During,
    /// Right behind the answer.
    After,
}

pub const MOMENTS: [Moment; 4] = [Moment::Before, Moment::Instead, Moment::During, Moment::After];

/// What a call may end with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    Success,
    Io,
    Timeout,
    Refused(Scope, ReplyCode),
    Protocol(ReplyCode),
    Closed,
}

pub fn outcome<T>(result: &Result<T>) -> Outcome {
    match result {
        Ok(_) => Outcome::Success,
        Err(Error::Io { .. }) => Outcome::Io,
        Err(Error::Timeout(_)) => Outcome::Timeout,
        Err(Error::Refused(refusal)) => Outcome::Refused(refusal.scope, refusal.code),
        Err(Error::Protocol(violation)) => Outcome::Protocol(violation.code),
        Err(Error::Closed(_)) => Outcome::Closed,
        Err(other) => panic!("no call may end with {other:?}"),
    }
}

/// One cell of the table.
#[derive(Clone, Copy)]
pub struct Cell<'a> {
    pub call: &'a Call,
    pub fault: Fault,
    pub moment: Moment,
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {:?} / {:?}", self.call.name, self.fault, self.moment)
    }
}

impl Cell<'_> {
    pub fn makes_sense(&self) -> bool {
        let Cell { call, fault, moment } = *self;
        match call.seen {
            Seen::Request(2, ..) => fault != Fault::ChannelClose || moment != Moment::Before,
            Seen::Request(..) => true,
            // They wait without a limit, or for something else than the channel.
            Seen::Nothing if fault == Fault::Silence => false,
            Seen::Nothing if call.name == "connection.wait_closed" => {
                fault != Fault::ChannelClose && matches!(moment, Moment::Before | Moment::Instead)
            }
            Seen::Nothing => moment != Moment::During || matches!(fault, Fault::Fin | Fault::Rst),
            Seen::Full => moment == Moment::Instead,
        }
    }

    /// The channel that is closed.
    pub fn channel(&self) -> u16 {
        if let Seen::Request(2, ..) = self.call.seen { 2 } else { 1 }
    }

    /// The call closes the connection.
    pub fn is_about_the_connection(&self) -> bool {
        matches!(self.call.seen, Seen::Request(_, CLOSE, _))
    }

    /// Nobody hears of the fault whose call is not about the channel.
    pub fn is_elsewhere(&self) -> bool {
        self.fault == Fault::ChannelClose && matches!(self.call.seen, Seen::Request(0, ..))
    }

    /// The bytes of a close in the middle of another frame are just bytes: either they make it complete, and
    /// wrong, or it never is.
    pub fn is_disguised(&self) -> bool {
        self.moment == Moment::During && matches!(self.fault, Fault::ConnectionClose | Fault::ChannelClose)
    }

    /// The whole connection ends by it.
    pub fn loses_the_connection(&self) -> bool {
        self.fault != Fault::Silence && self.fault != Fault::ChannelClose && !self.is_disguised()
    }

    /// This channel ends by it, and is not closed by the call before.
    pub fn kills_channel(&self, channel: u16) -> bool {
        self.fault == Fault::ChannelClose
            && channel == self.channel()
            && !self.is_disguised()
            && !self.is_about_the_connection()
            && !(self.closes_the_channel() && self.moment == Moment::After)
    }

    pub fn closes_the_channel(&self) -> bool {
        matches!(self.call.seen, Seen::Request(_, CHANNEL_CLOSE, _))
    }

    /// The limit of the call: short when it is to be reached.
    pub fn limit(&self) -> Duration {
        let is_reached = self.fault == Fault::Silence && self.moment != Moment::After || self.is_disguised();
        if is_reached { SHORT } else { LONG }
    }

    /// What the fault alone leads to.
    pub fn cause(&self) -> Vec<Outcome> {
        if self.is_disguised() {
            return vec![Outcome::Timeout, Outcome::Protocol(ReplyCode::FrameError)];
        }
        vec![match self.fault {
            Fault::Fin | Fault::Rst | Fault::HalfClose => Outcome::Io,
            Fault::Silence => Outcome::Timeout,
            Fault::ConnectionClose => Outcome::Refused(Scope::Connection, ReplyCode::ConnectionForced),
            Fault::ChannelClose => Outcome::Refused(Scope::Channel, ReplyCode::NotFound),
            Fault::Garbage => Outcome::Protocol(ReplyCode::FrameError),
        }]
    }

    pub fn allowed(&self) -> Vec<Outcome> {
        let mut allowed = self.cause();
        let name = self.call.name;
        let came_first = self.moment == Moment::After;
        // What is waited for may come to pass all the same: closed is closed, and cancelled is cancelled.
        let is_an_end = self.is_about_the_connection() || self.is_elsewhere() || name.contains("cancel");
        if name.starts_with("drop") {
            return vec![Outcome::Success];
        }
        if came_first && matches!(self.call.seen, Seen::Request(..)) && self.fault != Fault::Rst {
            return vec![Outcome::Success];
        }
        if came_first || is_an_end {
            allowed.push(Outcome::Success);
        }
        allowed
    }
}
