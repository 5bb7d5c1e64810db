//! What the threads of one connection share: the phase, the channels' inboxes, and the way to the end.
//!
//! # Locks
//!
//! The order of the crate's locks: a channel's state, then `Shared::state`, then [`Outgoing`]'s, then a channel's
//! confirms. A consumer's queue, a feed and [`Incoming`]'s are taken alone.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::{
    batch::{Arrived, Gathered, Packs},
    events::{Event, Feeds},
    handshake::Negotiated,
    incoming::Incoming,
    outgoing::{Gate, Outgoing, Push, Urgency},
    shutdown::Step,
    slots::{Addressee, Free, Slots},
    tap::Taps,
    work::Work,
};
use crate::{
    error::{Error, Refusal, ReplyCode, Result, Scope},
    protocol::{
        content::Content,
        frame::write_method,
        sasl::Wiped,
        spec::{ConnectionClose, ConnectionCloseOk, ConnectionUpdateSecret, Method, MethodBody, method_name},
        wire::{LongStr, ShortStr},
    },
    sync::{Errands, GivenUp, OneShot, Waiter, lock, wake_all},
    transport::Transport,
};

/// How long the last frame to the peer (a close-ok, or the reason why we give up) may take.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The longest text of ours in a close: a short string.
const CLOSED_BY_APPLICATION: &str = "closed by the application";

/// More than there is in a frame with a new secret beside that: the frame's head and end, and the reason.
const BESIDE_A_SECRET: usize = 300;

/// Where the reader puts what comes for one channel. Called by the reader thread only (and `fail` by whoever
/// ends the connection): an inbox must not wait, and must not call user code but an inline handler.
pub(crate) trait Inbox: Send + Sync {
    /// A method without content.
    ///
    /// # Errors
    /// The peer broke the protocol; ends the connection.
    fn method(&self, method: Method<'_>, payload: &[u8]) -> Result<()>;

    /// A complete content other than a delivery.
    ///
    /// # Errors
    /// The peer broke the protocol; ends the connection.
    fn content(self: Arc<Self>, content: Content) -> Result<()>;

    /// These deliveries to one consumer, in order, are about to be handed over: from now on they may be settled. Who gets
    /// them; `None` if nobody does.
    fn accept(&self, consumer_tag: &[u8], arrived: &[Arrived]) -> Option<Accepted>;

    /// This consumer gets its deliveries at once, before anything that comes after them is handed over.
    fn is_immediate(&self, consumer_tag: &[u8]) -> bool;

    /// What the peer has confirmed, in order.
    fn confirmations(&self, confirmations: &[Confirmation], woken: &mut Vec<Waiter>);

    /// The connection is gone.
    fn fail(&self, cause: &Error);

    /// One step of a shutdown. Called by whoever shuts the connection down; waits at most `limit`.
    ///
    /// # Errors
    /// What the channel was closed with, or what was not done.
    fn wind_down(self: Arc<Self>, step: Step, limit: Duration) -> Result<()>;
}

/// Who gets the deliveries to one consumer. Like an [`Inbox`], it must not wait.
pub(crate) trait Recipient: Send + Sync {
    /// Deliveries that were accepted in this epoch of the channel. Whoever gets something and sleeps is left in `woken`, to
    /// be woken by the caller soon.
    fn deliver(&self, epoch: u32, gathered: &mut Gathered, packs: &mut Packs, woken: &mut Vec<Waiter>);
}

/// Deliveries that an [`Inbox`] has accepted.
pub(crate) struct Accepted {
    pub(crate) recipient: Arc<dyn Recipient>,
    pub(crate) epoch: u32,
}

/// Publishes that the peer has acked or nacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Confirmation {
    /// The number of the first; without meaning if `multiple`.
    pub(crate) first: u64,
    /// The number of the last.
    pub(crate) last: u64,
    /// Everything up to the last, and simply everything if that is 0.
    pub(crate) multiple: bool,
    /// Acked; otherwise nacked.
    pub(crate) acked: bool,
}

impl Confirmation {
    /// Takes in `next` if it continues this one, so that a row of single acks becomes one.
    pub(crate) fn extend(&mut self, next: Confirmation) -> bool {
        let continues = !self.multiple
            && !next.multiple
            && self.acked == next.acked
            && self.last.checked_add(1) == Some(next.first);
        if continues {
            self.last = next.last;
        }
        continues
    }
}

/// The limits in time and space that the user chose and the threads need.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) call_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) drop_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) confirm_timeout: Duration,
    pub(crate) max_outstanding_confirms: usize,
    pub(crate) allow_immediate: bool,
    pub(crate) outgoing_buffer: usize,
    pub(crate) incoming_buffer: usize,
    pub(crate) max_message_size: u64,
    pub(crate) prefetch: u16,
}

/// One connection, as its threads and channels see it.
pub(crate) struct Shared {
    pub(super) transport: Arc<dyn Transport>,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    pub(crate) negotiated: Negotiated,
    pub(crate) limits: Limits,
    pub(crate) feeds: Feeds,
    pub(crate) errands: Errands,
    pub(crate) taps: Taps,
    pub(crate) work: Work,
    /// Channel 0.
    gate: Gate,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    slots: Slots<Arc<dyn Inbox>>,
    /// Why the broker accepts nothing from publishers at the moment, if so.
    blocked: Option<Arc<str>>,
    /// Callers that wait for a new secret to be accepted, in the order of their frames.
    new_secrets: VecDeque<Arc<OneShot<Result<()>>>>,
    /// Callers that wait for the end of the connection, or for a channel id.
    waiting: Vec<Waiter>,
}

enum Phase {
    Open,
    /// Our `connection.close` is on its way.
    Closing,
    /// The first cause, kept for ever.
    Closed(Error),
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("negotiated", &self.negotiated).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        negotiated: Negotiated,
        limits: Limits,
        taps: Taps,
    ) -> Shared {
        let channel_max = negotiated.channel_max;
        let max_frame = negotiated.max_frame();
        Shared {
            transport: transport.clone(),
            outgoing: Outgoing::new(
                transport,
                limits.outgoing_buffer,
                max_frame,
                limits.publish_timeout,
                taps.clone(),
            ),
            incoming: Incoming::new(limits.incoming_buffer),
            negotiated,
            limits,
            feeds: Feeds::default(),
            errands: Errands::default(),
            taps,
            work: Work::default(),
            gate: Gate::opened(0),
            state: Mutex::new(State {
                phase: Phase::Open,
                slots: Slots::new(channel_max),
                blocked: None,
                new_secrets: VecDeque::new(),
                waiting: Vec::new(),
            }),
        }
    }

    /// Why nothing more can be done on this connection; `None` while it is open.
    pub(crate) fn cause(&self) -> Option<Error> {
        match &lock(&self.state).phase {
            Phase::Open => None,
            Phase::Closing => Some(Error::Closed(Scope::Connection)),
            Phase::Closed(cause) => Some(cause.clone()),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(lock(&self.state).phase, Phase::Closed(_))
    }

    /// Why the broker accepts nothing from publishers at the moment, if so.
    pub(crate) fn blocked(&self) -> Option<Arc<str>> {
        lock(&self.state).blocked.clone()
    }

    fn set_blocked(&self, reason: Option<Arc<str>>) {
        let blocked = reason.is_some();
        lock(&self.state).blocked = reason.clone();
        self.outgoing.set_blocked(blocked);
        self.feeds.emit(|| reason.map_or(Event::Unblocked, |reason| Event::Blocked { reason }));
    }

    /// The error for a wait that was given up.
    pub(crate) fn given_up(&self, why: GivenUp, waiting_for: &'static str, limit: Duration) -> Error {
        why.forbidden().unwrap_or_else(|| self.too_late(waiting_for, limit))
    }

    /// The error for a wait that has come to its end: a broker that has blocked the connection is the better
    /// explanation.
    pub(crate) fn too_late(&self, waiting_for: &'static str, limit: Duration) -> Error {
        match self.blocked() {
            Some(reason) => Error::Blocked { reason },
            None => Error::timeout(waiting_for, limit),
        }
    }

    /// Gives `inbox` a channel id that is not in use. Leaves the waiter if there will be one later.
    pub(crate) fn register(&self, inbox: Arc<dyn Inbox>, waiter: Option<&Waiter>) -> Result<Free> {
        let mut state = lock(&self.state);
        match &state.phase {
            Phase::Open => {}
            Phase::Closing => return Err(Error::Closed(Scope::Connection)),
            Phase::Closed(cause) => return Err(cause.clone()),
        }
        let free = state.slots.take(inbox, Instant::now());
        if let Free::Later(_) = free {
            state.waiting.extend(waiter.cloned());
        }
        Ok(free)
    }

    /// Waits after [`Free::Later`]; false when `deadline` has passed. The first time it only makes the waiter.
    pub(crate) fn wait_for_id(
        &self,
        waiter: &mut Option<Waiter>,
        until: Instant,
        deadline: Option<Instant>,
    ) -> Result<bool> {
        let Some(waiter) = waiter else {
            *waiter = Some(Waiter::new());
            return Ok(true);
        };
        let first = deadline.map_or(until, |deadline| until.min(deadline));
        let Err(given_up) = waiter.park(Some(first)) else { return Ok(true) };
        lock(&self.state).waiting.retain(|other| !other.is(waiter));
        given_up.forbidden().map_or(Ok(deadline != Some(first)), Err)
    }

    /// The id may be used again: both sides have closed the channel.
    pub(crate) fn release(&self, channel: u16) {
        let mut state = lock(&self.state);
        // The inbox is dropped after the lock was released.
        let _inbox = state.slots.release(channel);
        Self::wake_for_id(state);
    }

    /// The same after our close and the peer's have crossed.
    pub(crate) fn release_crossed(&self, channel: u16) {
        let _inbox = lock(&self.state).slots.release_crossed(channel, Instant::now());
    }

    /// A close-ok came that nobody has asked for. True if it answers the close of an earlier channel with this id.
    pub(crate) fn stray_close_ok(&self, channel: u16) -> bool {
        let mut state = lock(&self.state);
        let expected = state.slots.stray_close_ok(channel);
        Self::wake_for_id(state);
        expected
    }

    fn wake_for_id(mut state: MutexGuard<'_, State>) {
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        wake_all(waiting);
    }

    /// Everybody who has a channel id, and the id.
    pub(super) fn inboxes(&self) -> Vec<(u16, Arc<dyn Inbox>)> {
        lock(&self.state).slots.inboxes()
    }

    pub(crate) fn addressee(&self, channel: u16) -> Addressee<Arc<dyn Inbox>> {
        lock(&self.state).slots.addressee(channel)
    }

    /// The reader's: a method on channel 0.
    pub(crate) fn control(&self, method: Method<'_>) -> Result<()> {
        match method {
            Method::ConnectionClose(close) => {
                self.fail(refusal(Scope::Connection, &close.into()));
                Ok(())
            }
            Method::ConnectionCloseOk(_) if self.cause().is_some() => {
                self.fail(Error::Closed(Scope::Connection));
                Ok(())
            }
            Method::ConnectionBlocked(blocked) => {
                let reason = blocked.reason.to_text();
                log::warn!(target: "leveret::connection", "blocked by the broker: {reason}");
                self.set_blocked(Some(reason.into()));
                Ok(())
            }
            Method::ConnectionUnblocked(_) => {
                log::info!(target: "leveret::connection", "no longer blocked by the broker");
                self.set_blocked(None);
                Ok(())
            }
            Method::ConnectionUpdateSecretOk(_) => {
                let accepted = lock(&self.state).new_secrets.pop_front();
                match accepted {
                    Some(new_secret) => {
                        new_secret.put(Ok(()));
                        Ok(())
                    }
                    None => Err(Error::protocol(
                        ReplyCode::CommandInvalid,
                        "connection.update-secret-ok, which nobody asked for",
                    )),
                }
            }
            other => Err(Error::protocol(
                ReplyCode::CommandInvalid,
                format!("{} on channel 0 of an open connection", other.name()),
            )),
        }
    }

    /// The one way to the end: keeps the first cause, tells the peer what is due, wakes everyone.
    pub(crate) fn fail(&self, cause: Error) {
        if matches!(lock(&self.state).phase, Phase::Closing) {
            // The peer may have read our close, and said this, before its writer has come back to say that it is sent.
            self.outgoing.wait_for_the_turn();
        }
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::Closed(_)) {
            return;
        }
        // Asked to close, and then answered or lost: closed by the application, unless something that was accepted
        // is lost with it.
        let closed = matches!(state.phase, Phase::Closing) && !self.outgoing.has_unsent();
        let kept = if closed { Error::Closed(Scope::Connection) } else { cause.clone() };
        state.phase = Phase::Closed(kept.clone());
        let inboxes = state.slots.clear();
        let waiting = std::mem::take(&mut state.waiting);
        let new_secrets = std::mem::take(&mut state.new_secrets);
        drop(state);
        if !kept.is_closed() {
            log::warn!(target: "leveret::connection", "connection lost: {kept}");
        }
        match &cause {
            Error::Refused(_) => self.outgoing.finish(LAST_WORDS, &ConnectionCloseOk {}),
            Error::Protocol(violation) => {
                self.outgoing.finish(LAST_WORDS, &close_method(violation.code, &violation.text));
            }
            _ => self.outgoing.abort(),
        }
        self.incoming.close();
        for inbox in inboxes {
            inbox.fail(&kept);
        }
        for new_secret in new_secrets {
            new_secret.put(Err(kept.clone()));
        }
        self.feeds.close(&kept);
        wake_all(waiting);
    }

    /// Sends `connection.close` and waits for the answer. Any number of callers may do so; one frame is sent.
    pub(crate) fn close(&self, timeout: Duration) -> Result<()> {
        // A shutdown may have any limit.
        let deadline = Instant::now().checked_add(timeout);
        let _awaiting = self.incoming.awaiting()?;
        let first = {
            let mut state = lock(&self.state);
            match &state.phase {
                Phase::Open => {
                    state.phase = Phase::Closing;
                    true
                }
                Phase::Closing => false,
                Phase::Closed(cause) if cause.is_closed() => return Ok(()),
                Phase::Closed(cause) => return Err(cause.clone()),
            }
        };
        if first {
            self.send_close(deadline)?;
        }
        match self.wait_closed(deadline) {
            Ok(()) => return self.cause().filter(|cause| !cause.is_closed()).map_or(Ok(()), Err),
            Err(why) => why.forbidden().map_or(Ok(()), Err)?,
        }
        let error = self.too_late("connection.close", timeout);
        log::warn!(target: "leveret::connection", "{error}; the socket is closed all the same");
        self.fail(error.clone());
        Err(error)
    }

    /// Gives the broker a new secret and waits until it has accepted it.
    pub(super) fn update_secret(&self, new_secret: &str, reason: &str) -> Result<()> {
        let limit = self.limits.call_timeout;
        let deadline = Instant::now().checked_add(limit);
        let method = ConnectionUpdateSecret {
            new_secret: LongStr(new_secret.as_bytes()),
            reason: ShortStr::new("the reason", reason)?,
        };
        // It is not to move while it is written, nor in the buffer.
        let mut encoded = Wiped(Vec::with_capacity(new_secret.len() + BESIDE_A_SECRET));
        write_method(&mut encoded.0, 0, self.outgoing.max_frame(), &method)?;
        let _awaiting = self.incoming.awaiting()?;
        let answer = OneShot::new();
        let mut waiter = None;
        loop {
            let mut state = lock(&self.state);
            match &state.phase {
                Phase::Open => {}
                Phase::Closing => return Err(Error::Closed(Scope::Connection)),
                Phase::Closed(cause) => return Err(cause.clone()),
            }
            let waiting = waiter.clone();
            // Appended under the lock of the waiters, so that answers come in their order.
            let pushed = self.outgoing.push_method(&self.gate, Urgency::Caller, waiting, &mut |out, _| {
                out.extend_from_slice(&encoded.0);
                Ok(())
            })?;
            if let Push::Accepted { .. } = pushed {
                state.new_secrets.push_back(answer.clone());
                break;
            }
            drop(state);
            if pushed != Push::Later || !self.outgoing.pause(&mut waiter, deadline)? {
                return Err(self
                    .cause()
                    .unwrap_or_else(|| self.too_late(ConnectionUpdateSecret::NAME, limit)));
            }
        }
        self.outgoing.flush();
        let answered = answer.wait(deadline);
        // If it was answered, it was written.
        self.outgoing.wipe_what_was_written();
        answered.unwrap_or_else(|why| Err(self.given_up(why, ConnectionUpdateSecret::NAME, limit)))
    }

    fn send_close(&self, deadline: Option<Instant>) -> Result<()> {
        let mut waiter = None;
        loop {
            let close = close_method(ReplyCode::Success, CLOSED_BY_APPLICATION);
            let pushed = self.outgoing.close(waiter.clone(), &close);
            if pushed != Push::Later || !self.outgoing.pause(&mut waiter, deadline)? {
                break;
            }
        }
        self.outgoing.flush();
        Ok(())
    }

    /// Waits for the end of the connection until `deadline`.
    pub(crate) fn wait_closed(&self, deadline: Option<Instant>) -> Result<(), GivenUp> {
        if self.is_closed() {
            return Ok(());
        }
        let waiter = Waiter::new();
        loop {
            let mut state = lock(&self.state);
            if matches!(state.phase, Phase::Closed(_)) {
                return Ok(());
            }
            state.waiting.push(waiter.clone());
            drop(state);
            if let Err(given_up) = waiter.park(deadline) {
                lock(&self.state).waiting.retain(|other| !other.is(&waiter));
                return Err(given_up);
            }
        }
    }
}

fn close_method(code: ReplyCode, text: &str) -> ConnectionClose<'_> {
    ConnectionClose {
        reply_code: code.into(),
        reply_text: ShortStr::truncated(text),
        class_id: 0,
        method_id: 0,
    }
}

/// The fields that `connection.close` and `channel.close` have in common.
pub(crate) struct CloseFields<'a> {
    reply_code: u16,
    reply_text: ShortStr<'a>,
    class_id: u16,
    method_id: u16,
}

macro_rules! close_fields {
    ($($method:ident),+) => { $(
        impl<'a> From<crate::protocol::spec::$method<'a>> for CloseFields<'a> {
            fn from(close: crate::protocol::spec::$method<'a>) -> CloseFields<'a> {
                CloseFields {
                    reply_code: close.reply_code,
                    reply_text: close.reply_text,
                    class_id: close.class_id,
                    method_id: close.method_id,
                }
            }
        }
    )+ };
}
close_fields!(ConnectionClose, ChannelClose);

/// The error that a close of the broker stands for.
pub(crate) fn refusal(scope: Scope, close: &CloseFields<'_>) -> Error {
    Error::Refused(Arc::new(Refusal {
        scope,
        code: close.reply_code.into(),
        text: close.reply_text.to_text(),
        method: method_name(close.class_id, close.method_id).to_owned(),
    }))
}

/// The peer closed its side without a word.
pub(crate) fn end_of_stream(during: &'static str) -> Error {
    Error::io(during, io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection"))
}
