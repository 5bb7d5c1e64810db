//! Calls: a method goes out, a waiter is left, and the reader gives it the answer.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Channel, Core, Phase};
use crate::{
    connection::outgoing::{Kind, Push, Urgency},
    error::{Error, ReplyCode, Result},
    protocol::{
        content::Content,
        frame::write_method,
        spec::{Encode, Method},
    },
    sync::OneShot,
};

/// A call that waits for its answer.
pub(super) struct Waiting {
    pub(super) expects: Expected,
    pub(super) answer: Coming,
}

/// What may answer a call.
///
/// Answers come in the order of the calls, with one exception: RabbitMQ has `basic.consume-ok` and `basic.cancel-ok` sent
/// by the queue, so the answers to later calls may overtake them. They carry the consumer's tag to be known by.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// The names of the methods that may answer.
    replies: &'static [&'static str],
    /// The consumer that it is about.
    consumer_tag: Option<Box<[u8]>>,
    /// A message that answers it is to be settled.
    to_settle: bool,
}

impl Expected {
    /// The answer about this consumer.
    pub(super) fn about(replies: &'static [&'static str], consumer_tag: &str) -> Expected {
        Expected { replies, consumer_tag: Some(consumer_tag.as_bytes().into()), to_settle: false }
    }

    /// A message, which is to be settled, or is not.
    pub(super) fn message(replies: &'static [&'static str], to_settle: bool) -> Expected {
        Expected { replies, consumer_tag: None, to_settle }
    }

    fn is_met_by(&self, name: &'static str, consumer_tag: Option<&[u8]>) -> bool {
        self.replies.contains(&name) && self.consumer_tag.as_deref() == consumer_tag
    }

    fn may_be_overtaken(&self) -> bool {
        self.consumer_tag.is_some()
    }
}

impl From<&'static [&'static str]> for Expected {
    fn from(replies: &'static [&'static str]) -> Expected {
        Expected { replies, consumer_tag: None, to_settle: false }
    }
}

/// Where the answer of a call will be.
pub(super) type Coming = Arc<OneShot<Result<Answer>>>;

/// What answered a call: a method's payload, or a whole content.
#[derive(Debug)]
pub(crate) enum Answer {
    Method(Vec<u8>),
    Content(Fetched),
}

/// A message that answers a call. It goes back when nobody takes it, because it comes too late.
#[derive(Debug)]
pub(crate) struct Fetched {
    content: Option<Content>,
    delivery_tag: u64,
    /// Where it is to be settled, and in which epoch, if it is.
    from: Option<(Arc<Core>, u32)>,
}

impl Fetched {
    pub(super) fn take(mut self) -> Content {
        self.from = None;
        self.content.take().unwrap_or_default()
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if let Some((core, epoch)) = self.from.take() {
            core.give_back(epoch, [self.delivery_tag]);
        }
    }
}

impl Answer {
    pub(super) fn decode<T>(self, decode: impl FnOnce(Method<'_>) -> Option<T>) -> Result<T> {
        match self {
            Answer::Method(payload) => {
                Method::decode(&payload).ok().and_then(decode).ok_or_else(unexpected_answer)
            }
            Answer::Content(_) => Err(unexpected_answer()),
        }
    }
}

/// The reader matches names before, so this does not happen.
pub(super) fn unexpected_answer() -> Error {
    Error::protocol(ReplyCode::CommandInvalid, "an answer to another call")
}

impl Channel {
    /// Sends a method and waits for its answer.
    pub(super) fn call<T>(
        &self,
        method: &dyn Encode,
        decode: impl FnOnce(Method<'_>) -> Option<T>,
    ) -> Result<T> {
        self.core().call(self.timeout, method)?.decode(decode)
    }

    /// Sends a method that nothing answers.
    pub(super) fn send(&self, method: &dyn Encode) -> Result<()> {
        let core = self.core();
        let outgoing = &core.connection.outgoing;
        // The broker may make room only when what it says is read.
        let awaiting = Cell::new(None);
        let deadline = || {
            awaiting.set(core.connection.incoming.awaiting().ok());
            Instant::now().checked_add(self.timeout)
        };
        let pushed = outgoing.push_within(&core.gate, Kind::Method, deadline, |out, channel| {
            write_method(out, channel, outgoing.max_frame(), method)
        })?;
        core.outcome(pushed, method.name(), self.timeout)
    }
}

impl Core {
    /// Sends a method and waits for what answers it.
    pub(super) fn call(&self, timeout: Duration, method: &dyn Encode) -> Result<Answer> {
        self.call_once_sent(timeout, method)?
    }

    /// The same for a method about a consumer.
    pub(super) fn call_about(
        &self,
        consumer_tag: &str,
        timeout: Duration,
        method: &dyn Encode,
    ) -> Result<()> {
        self.call_expecting(Expected::about(method.replies(), consumer_tag), timeout, method)?.map(drop)
    }

    /// The same, for who cares whether it was sent: the outer error says that it was not.
    pub(super) fn call_once_sent(&self, timeout: Duration, method: &dyn Encode) -> Result<Result<Answer>> {
        self.call_expecting(method.replies().into(), timeout, method)
    }

    /// The outer error says that it was not sent.
    pub(super) fn call_expecting(
        &self,
        expects: Expected,
        timeout: Duration,
        method: &dyn Encode,
    ) -> Result<Result<Answer>> {
        let deadline = Instant::now().checked_add(timeout);
        let _awaiting = self.connection.incoming.awaiting()?;
        let coming = self.begin(timeout, method.name(), expects, Urgency::Caller, &mut |out, channel| {
            write_method(out, channel, self.connection.outgoing.max_frame(), method)
        })?;
        self.connection.outgoing.flush();
        // A late answer finds its own waiter, who is gone: it can never reach another call.
        Ok(coming.wait(deadline).unwrap_or_else(|why| Err(self.given_up(why, method.name(), timeout))))
    }

    /// Sends what `encode` writes, and leaves a waiter for the answer.
    pub(super) fn begin(
        &self,
        timeout: Duration,
        name: &'static str,
        expects: Expected,
        urgency: Urgency,
        encode: &mut dyn FnMut(&mut Vec<u8>, u16) -> Result<()>,
    ) -> Result<Coming> {
        let outgoing = &self.connection.outgoing;
        let answer = OneShot::new();
        let mut waiter = None;
        // From the first wait on.
        let (mut deadline, mut awaiting) = (None, None);
        loop {
            let mut state = self.lock();
            state.check_open()?;
            // Registered and appended under one lock: answers come in the order of the waiters.
            state.calls.push_back(Waiting { expects: expects.clone(), answer: answer.clone() });
            let pushed = outgoing.push_method(&self.gate, urgency, waiter.clone(), encode);
            if let Ok(Push::Accepted { flush }) = pushed {
                drop(state);
                if flush {
                    outgoing.flush_stream();
                }
                return Ok(answer);
            }
            state.calls.pop_back();
            drop(state);
            awaiting.get_or_insert_with(|| self.connection.incoming.awaiting().ok());
            let deadline = *deadline.get_or_insert_with(|| Instant::now().checked_add(timeout));
            match pushed? {
                Push::Later if outgoing.pause(&mut waiter, deadline)? => {}
                other => self.outcome(other, name, timeout)?,
            }
        }
    }

    /// The reader's: somebody waits for this answer about a consumer.
    pub(super) fn expects(&self, name: &'static str, consumer_tag: &[u8]) -> bool {
        self.lock().calls.iter().any(|call| call.expects.is_met_by(name, Some(consumer_tag)))
    }

    /// The reader's: the method that answers the oldest call, or one whose answer may come late. An answer about a
    /// consumer comes with its tag.
    pub(super) fn answer(
        &self,
        name: &'static str,
        consumer_tag: Option<&[u8]>,
        payload: &[u8],
    ) -> Result<()> {
        if let Some((call, _)) = self.answered_call(name, consumer_tag)? {
            call.answer.put(Ok(Answer::Method(payload.to_vec())));
        }
        Ok(())
    }

    /// The reader's: the message that answers the oldest call.
    pub(super) fn answer_with(
        self: &Arc<Core>,
        name: &'static str,
        content: Content,
        delivery_tag: u64,
    ) -> Result<()> {
        if let Some((call, epoch)) = self.answered_call(name, None)? {
            let from = call.expects.to_settle.then(|| (self.clone(), epoch));
            call.answer.put(Ok(Answer::Content(Fetched { content: Some(content), delivery_tag, from })));
        }
        Ok(())
    }

    /// Takes out the call that this answers, and says in which epoch; `None` when the channel is closed.
    fn answered_call(
        &self,
        name: &'static str,
        consumer_tag: Option<&[u8]>,
    ) -> Result<Option<(Waiting, u32)>> {
        let mut state = self.lock();
        if let Phase::Closed { .. } = state.phase {
            // It comes late: whoever asked knows that the channel is closed, and the peer does not know it yet.
            return Ok(None);
        }
        let late = state.calls.iter().take_while(|call| call.expects.may_be_overtaken()).count();
        let mut in_question = state.calls.iter().take(late + 1);
        let place = in_question.position(|call| call.expects.is_met_by(name, consumer_tag));
        let Some(place) = place else {
            let text = match state.calls.front() {
                Some(call) => format!("{name} where {} was expected", call.expects.replies.join(" or ")),
                None => format!("{name}, which nobody asked for"),
            };
            return Err(Error::protocol(ReplyCode::CommandInvalid, text));
        };
        let epoch = state.epoch;
        Ok(state.calls.remove(place).map(|call| (call, epoch)))
    }
}
