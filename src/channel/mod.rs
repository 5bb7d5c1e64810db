//! Channels: what users call. One file per AMQP noun, each with its requests and its `impl Channel`.
//!
//! # Locks
//!
//! [`Core::state`] is held while a call's frames are appended to the outgoing buffer, so that answers come in
//! the order of the waiters. It is never held while anybody waits, and no user code runs under it.

mod acknowledge;
mod call;
mod confirm;
mod consume;
mod deferred;
mod delivery;
mod exchange;
#[cfg(any(test, fuzzing))]
pub(crate) mod fixture;
mod get;
#[cfg(feature = "json")]
mod json;
mod message;
mod no_wait;
mod publish;
mod queue;
#[cfg(test)]
mod races;
mod ranges;
mod returns;
mod select;
#[cfg(test)]
mod tests;
mod tracker;
mod tx;
mod unacked;

pub use acknowledge::{Ack, Nack, Reject, Requeue};
pub use confirm::{Confirm, Outcome};
pub(crate) use consume::Control;
pub use consume::{BorrowedDelivery, Consume, Consumer, InlineConsumer, InlineHandler};
pub use deferred::{Deferred, Pending};
pub use delivery::Delivery;
pub use exchange::{ExchangeBind, ExchangeDeclare, ExchangeDelete, ExchangeKind, ExchangeUnbind};
pub use get::{Get, Qos};
pub use message::Message;
pub use no_wait::NoWait;
pub use publish::Publish;
pub use queue::{
    Overflow, QueueBind, QueueDeclare, QueueDeclareOk, QueueDelete, QueuePurge, QueueType, QueueUnbind,
};
pub use select::{select, select_timeout};
pub use tx::Transaction;

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::{
    connection::{
        Connection,
        batch::Arrived,
        events::Event,
        outgoing::{Gate, Push, Urgency},
        shutdown::Step,
        slots::Free,
        state::{Accepted, Confirmation, Inbox, Shared, refusal},
    },
    error::{Error, ReplyCode, Result, Scope},
    protocol::{
        content::Content,
        frame::write_method,
        spec::{BasicCancelOk, ChannelClose, ChannelFlow, ChannelOpen, Method, MethodBody},
        wire::ShortStr,
    },
    sync::{GivenUp, OneShot, Waiter, lock, may_wait, waits_never, wake_all},
};
use call::{Coming, Waiting};
use confirm::Confirms;
use consume::{End, Sink};
use returns::Returns;
use unacked::Unacked;

/// A channel: a conversation with the broker, in order, beside others on the same connection.
///
/// It is a handle: clones stand for the same channel, and it may be used by any number of threads at once.
/// Dropping the last handle closes the channel and waits for the broker's answer, at most
/// [`drop_timeout`](crate::Config::drop_timeout); an error that shows only then is logged. Call
/// [`close`](Channel::close) to get it, or use [`Connection::with_channel`].
///
/// All methods wait for the broker's answer, at most [`call_timeout`](crate::Config::call_timeout) (see
/// [`within`](Channel::within)), unless their documentation says **Asynchronous**.
///
/// When the broker refuses something it closes the channel. The error is then returned by the call that
/// caused it or, after an asynchronous one, by the next; and by every later call until
/// [`reopen`](Channel::reopen). Other channels are not affected.
#[derive(Clone)]
pub struct Channel {
    handle: Arc<Handle>,
    timeout: Duration,
}

struct Handle(Arc<Core>);

/// The channel itself, shared by its handles, its deliveries and the reader.
pub(crate) struct Core {
    connection: Arc<Shared>,
    gate: Gate,
    state: Mutex<State>,
    confirms: Confirms,
}

struct State {
    phase: Phase,
    /// Counts how often the channel was opened; deliveries remember theirs.
    epoch: u32,
    /// Calls that wait for their answer, in the order of their frames.
    calls: VecDeque<Waiting>,
    /// The caller that waits for the end of the channel.
    closer: Option<Coming>,
    consumers: HashSet<Sink>,
    unacked: Unacked,
    /// The prefetch count was set, by the user or by default.
    prefetch_is_set: bool,
    returns: Returns,
}

impl State {
    /// Fails with the reason why the channel cannot be used, if it cannot.
    fn check_open(&self) -> Result<()> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Closing => Err(Error::Closed(Scope::Channel)),
            Phase::Closed { cause, .. } => Err(cause.clone()),
        }
    }
}

enum Phase {
    Open,
    /// Our `channel.close` is on its way.
    Closing,
    /// The first cause, kept until the channel is opened again.
    Closed {
        cause: Error,
        /// The peer has not answered our close in time; the id may be used again once it has.
        close_ok_missing: bool,
    },
}

impl Connection {
    /// Opens a channel. Waits for the broker's answer, at most [`call_timeout`](crate::Config::call_timeout).
    ///
    /// # Errors
    /// - [`Error::ChannelsExhausted`]: as many as were negotiated are open.
    /// - The reason why the connection was lost or closed; [`Error::Timeout`].
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// let channel = connection.channel()?;
    /// channel.queue_declare("orders")?;
    /// channel.close()?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[doc(alias("create_channel", "open_channel", "allocate_channel"))]
    pub fn channel(&self) -> Result<Channel> {
        let core = Arc::new(Core::new(self.shared().clone()));
        let timeout = self.shared().limits.call_timeout;
        core.open(timeout)?;
        Ok(Channel { handle: Arc::new(Handle(core)), timeout })
    }

    /// Opens a channel for `work` and closes it afterwards.
    ///
    /// Returns the first of: the error of `work`; the error that the channel was closed with, also if it
    /// came only while closing; a mandatory message that came back and that nobody asked for.
    ///
    /// # Errors
    /// Also those of [`channel`](Connection::channel) and [`Channel::close`].
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// let result = connection.with_channel(|channel| {
    ///     channel.basic_publish("no such exchange", "key", "lost")
    /// });
    /// assert_eq!(result.unwrap_err().reply_code(), Some(leveret::ReplyCode::NotFound));
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn with_channel<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&Channel) -> Result<T, E>,
    ) -> Result<T, E> {
        let channel = self.channel()?;
        let result = work(&channel)?;
        channel.close()?;
        // After the round trip of the close, what comes back has come.
        channel.check_returned()?;
        Ok(result)
    }
}

impl Channel {
    /// The same channel, with another limit for calls made through the returned handle.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// use std::time::Duration;
    /// channel.within(Duration::from_secs(1)).queue_declare("orders")?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[must_use]
    pub fn within(&self, timeout: Duration) -> Channel {
        Channel { handle: self.handle.clone(), timeout }
    }

    /// Closes the channel and waits for the broker's answer, at most
    /// [`close_timeout`](crate::Config::close_timeout). May be called any number of times.
    ///
    /// Deliveries that were not acknowledged go back to their queues.
    ///
    /// # Errors
    /// - [`Error::Refused`]: what the broker closed the channel for, before or meanwhile: the late error of
    ///   something asynchronous.
    /// - The reason why the connection was lost; [`Error::Timeout`].
    pub fn close(&self) -> Result<()> {
        self.core().close(self.core().connection.limits.close_timeout)
    }

    /// Opens the channel again after it was closed, by an error or by the program. Does nothing when it is
    /// open.
    ///
    /// What belonged to the old one is gone: consumers have ended, prefetch is the default again, and
    /// deliveries that came before can no longer be acknowledged (the broker delivers them again).
    ///
    /// # Errors
    /// Those of [`Connection::channel`].
    pub fn reopen(&self) -> Result<()> {
        self.core().open(self.timeout)
    }

    /// The channel can be used. It may be closed by the broker the moment after.
    pub fn is_open(&self) -> bool {
        matches!(self.core().lock().phase, Phase::Open)
    }

    /// The channel's number on its connection.
    pub fn id(&self) -> u16 {
        self.core().gate.channel()
    }

    /// Asks the broker to stop (`false`) or resume (`true`) deliveries on this channel, and returns what it
    /// answered.
    ///
    /// RabbitMQ closes the connection for `false` (540). `flow(true)` changes nothing and serves as a
    /// *barrier*: everything sent on this channel before has been looked at when it returns, and an error
    /// that something asynchronous caused is returned here.
    ///
    /// # Errors
    /// Those of every call: see [`Channel`].
    pub fn flow(&self, active: bool) -> Result<bool> {
        self.call(&ChannelFlow { active }, |method| match method {
            Method::ChannelFlowOk(ok) => Some(ok.active),
            _ => None,
        })
    }

    fn core(&self) -> &Arc<Core> {
        &self.handle.0
    }
}

impl Core {
    /// A channel that is not open yet.
    fn new(connection: Arc<Shared>) -> Core {
        let confirms = Confirms::new(connection.limits.max_outstanding_confirms);
        Core {
            connection,
            gate: Gate::shut(),
            state: Mutex::new(State {
                phase: Phase::Closed { cause: Error::Closed(Scope::Channel), close_ok_missing: false },
                epoch: 0,
                calls: VecDeque::new(),
                closer: None,
                consumers: HashSet::new(),
                unacked: Unacked::default(),
                prefetch_is_set: false,
                returns: Returns::default(),
            }),
            confirms,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// For a gate that was found shut: the error that explains it.
    fn why_shut(&self) -> Error {
        let channel = self.lock().check_open().err();
        channel.or_else(|| self.connection.cause()).unwrap_or(Error::Closed(Scope::Channel))
    }

    fn outcome(&self, pushed: Push, waiting_for: &'static str, limit: Duration) -> Result<()> {
        match pushed {
            Push::Accepted { .. } => Ok(()),
            Push::Later | Push::HalfSent => Err(self.too_late(waiting_for, limit)),
            Push::Shut => Err(self.why_shut()),
        }
    }

    fn too_late(&self, waiting_for: &'static str, limit: Duration) -> Error {
        self.connection.too_late(waiting_for, limit)
    }

    fn given_up(&self, why: GivenUp, waiting_for: &'static str, limit: Duration) -> Error {
        self.connection.given_up(why, waiting_for, limit)
    }

    fn open(self: &Arc<Core>, timeout: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(timeout);
        let outgoing = &self.connection.outgoing;
        let _awaiting = self.connection.incoming.awaiting()?;
        let answer = OneShot::new();
        let mut waiter = None;
        loop {
            let mut state = self.lock();
            match &state.phase {
                Phase::Open => return Ok(()),
                Phase::Closing => return Err(Error::Closed(Scope::Channel)),
                Phase::Closed { cause, close_ok_missing: true } => return Err(cause.clone()),
                Phase::Closed { .. } => {}
            }
            let id = match self.connection.register(self.clone(), waiter.as_ref())? {
                Free::Id(id) => id,
                Free::Later(until) => {
                    drop(state);
                    if self.connection.wait_for_id(&mut waiter, until, deadline)? {
                        continue;
                    }
                    return Err(self.too_late(ChannelOpen::NAME, timeout));
                }
                Free::None => {
                    return Err(Error::ChannelsExhausted { max: self.connection.negotiated.channel_max });
                }
            };
            let waiting = waiter.clone();
            let opening = Gate::opened(id);
            let pushed = outgoing.push_method(&opening, Urgency::Caller, waiting, &mut |out, channel| {
                write_method(out, channel, outgoing.max_frame(), &ChannelOpen::default())?;
                // From here on others may send: behind the open.
                self.gate.open(channel);
                Ok(())
            });
            if let Ok(Push::Accepted { .. }) = pushed {
                state.phase = Phase::Open;
                state.epoch = state.epoch.wrapping_add(1);
                state.prefetch_is_set = false;
                state
                    .calls
                    .push_back(Waiting { expects: ChannelOpen::REPLIES.into(), answer: answer.clone() });
                break;
            }
            self.connection.release(id);
            drop(state);
            match pushed? {
                Push::Later if outgoing.pause(&mut waiter, deadline)? => {}
                Push::Later => return Err(self.too_late(ChannelOpen::NAME, timeout)),
                _ => return Err(self.connection.cause().unwrap_or(Error::Closed(Scope::Connection))),
            }
        }
        outgoing.flush();
        let opened = answer.wait(deadline);
        if opened.is_err() {
            // The broker may still open it: the id stays taken until it has answered our close.
            let _ = self.close(Duration::ZERO);
        }
        opened.unwrap_or_else(|why| Err(self.given_up(why, ChannelOpen::NAME, timeout))).map(drop)
    }

    fn close(self: &Arc<Core>, timeout: Duration) -> Result<()> {
        may_wait()?;
        let answer = OneShot::new();
        {
            let mut state = self.lock();
            match &state.phase {
                Phase::Open => state.phase = Phase::Closing,
                Phase::Closing => return Ok(()),
                Phase::Closed { cause: Error::Closed(_), .. } => return Ok(()),
                Phase::Closed { cause, .. } => return Err(cause.clone()),
            }
            state.closer = Some(answer.clone());
        }
        let closed = self.see_close_through(&answer, timeout);
        if let Err(Error::Cancelled) = closed {
            // The id stays taken until this is done.
            let core = self.clone();
            self.connection.errands.leave(move || {
                core.log_late_error(&core.see_close_through(&answer, core.connection.limits.drop_timeout));
            });
        }
        closed
    }

    /// Sends the close, unless that was done, and waits for the answer.
    fn see_close_through(&self, answer: &Coming, timeout: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(timeout);
        let outgoing = &self.connection.outgoing;
        let _awaiting = self.connection.incoming.awaiting()?;
        let (mut waiter, mut urgency) = (None, Urgency::Caller);
        loop {
            let state = self.lock();
            // The peer may have closed it meanwhile, and somebody opened it again: that one is not to be closed.
            if !state.closer.as_ref().is_some_and(|closer| Arc::ptr_eq(closer, answer)) {
                break;
            }
            let pushed = outgoing.shut(&self.gate, urgency, waiter.clone(), &closing_method());
            if urgency == Urgency::Writer {
                break outgoing.shut_silently(&self.gate);
            }
            drop(state);
            match pushed {
                Ok(Push::Later) if outgoing.pause(&mut waiter, deadline)? => {}
                // Nobody comes back for it. So it may go beyond the limit, unless a message is being sent in pieces.
                Ok(Push::Later) => (waiter, urgency) = (None, Urgency::Writer),
                _ => break,
            }
        }
        outgoing.flush();
        match answer.wait(deadline) {
            Ok(Ok(_)) | Ok(Err(Error::Closed(_))) => return Ok(()),
            Ok(Err(cause)) => return Err(cause),
            Err(why) => why.forbidden().map_or(Ok(()), Err)?,
        }
        let state = self.lock();
        match &state.phase {
            Phase::Closed { cause: cause @ Error::Refused(_), .. } => return Err(cause.clone()),
            // Not answered in time: closed for its users all the same, but its id stays taken.
            Phase::Closing => self.end_locked(state, &Error::Closed(Scope::Channel), true),
            _ => {}
        }
        Err(self.too_late(ChannelClose::NAME, timeout))
    }

    fn log_late_error(&self, closed: &Result<()>) {
        if let Err(error) = closed {
            log::warn!(target: "leveret::channel", "closing channel {} on drop: {error}", self.gate.channel());
        }
    }

    /// The channel is at its end: keeps the first cause and wakes everyone.
    fn end(&self, cause: &Error, close_ok_missing: bool) {
        self.end_locked(self.lock(), cause, close_ok_missing);
    }

    fn end_locked(&self, mut state: MutexGuard<'_, State>, cause: &Error, close_ok_missing: bool) {
        let closer = state.closer.take();
        let first = match &state.phase {
            Phase::Closed { cause, .. } => Some(cause.clone()),
            Phase::Open | Phase::Closing => None,
        };
        let cause = first.as_ref().unwrap_or(cause);
        if first.is_none() {
            state.phase = Phase::Closed { cause: cause.clone(), close_ok_missing };
        }
        let calls = std::mem::take(&mut state.calls);
        let consumers: Vec<Sink> = state.consumers.drain().collect();
        state.unacked.clear();
        // Under the lock: should somebody open the channel again at once, this comes before. And no publish may be
        // numbered after those that are outstanding were given up.
        self.connection.outgoing.shut_silently(&self.gate);
        let waiting = self.confirms.lose(cause);
        drop(state);
        wake_all(waiting);
        // Before the answers: once a close has returned, nothing is delivered any more.
        for consumer in consumers {
            consumer.end(End::Lost(cause.clone()));
        }
        for answer in calls.into_iter().map(|call| call.answer).chain(closer) {
            answer.put(Err(cause.clone()));
        }
    }

    /// The reader's: the peer closes the channel.
    fn closed_by_peer(&self, close: ChannelClose<'_>) {
        let cause = refusal(Scope::Channel, &close.into());
        // Without a call that gets it, the error may never be seen by anybody.
        let level = if self.lock().calls.is_empty() { log::Level::Warn } else { log::Level::Debug };
        log::log!(target: "leveret::channel", level, "channel {}: {cause}", self.gate.channel());
        let outgoing = &self.connection.outgoing;
        let channel = self.gate.channel();
        // All under one lock: whoever finds the gate shut finds the cause as well, and whoever learns the cause
        // may use the id again.
        let mut state = self.lock();
        if let Phase::Closed { close_ok_missing, .. } = &mut state.phase {
            *close_ok_missing = false;
        }
        let crossed = outgoing.answer_close(&self.gate);
        if crossed {
            self.connection.release_crossed(channel);
        } else {
            self.connection.release(channel);
        }
        self.end_locked(state, &cause, false);
        // Afterwards: a listener may want to open the channel again.
        self.connection.feeds.emit(|| Event::ChannelClosed { channel, cause });
    }

    /// The reader's: the peer has answered our close.
    fn close_ok(&self) -> Result<()> {
        let mut state = self.lock();
        match &mut state.phase {
            Phase::Open if self.connection.stray_close_ok(self.gate.channel()) => return Ok(()),
            Phase::Open => {
                return Err(Error::protocol(
                    ReplyCode::CommandInvalid,
                    "channel.close-ok on an open channel",
                ));
            }
            Phase::Closing => {}
            Phase::Closed { close_ok_missing, .. } => *close_ok_missing = false,
        }
        self.connection.release(self.gate.channel());
        self.end_locked(state, &Error::Closed(Scope::Channel), false);
        Ok(())
    }
}

fn closing_method() -> ChannelClose<'static> {
    ChannelClose {
        reply_code: ReplyCode::Success.into(),
        reply_text: ShortStr::truncated("closed by the application"),
        class_id: 0,
        method_id: 0,
    }
}

impl Inbox for Core {
    fn method(&self, method: Method<'_>, payload: &[u8]) -> Result<()> {
        match method {
            Method::ChannelClose(close) => self.closed_by_peer(close),
            Method::ChannelCloseOk(_) => self.close_ok()?,
            Method::ChannelFlow(flow) => {
                if !self.connection.outgoing.set_flow(&self.gate, flow.active) {
                    return Err(Error::protocol(ReplyCode::ResourceError, "too many unread answers"));
                }
            }
            Method::BasicCancel(cancel) => {
                self.consumer_cancelled(cancel.consumer_tag.bytes());
                if !cancel.no_wait {
                    let outgoing = &self.connection.outgoing;
                    outgoing.push_method(&self.gate, Urgency::Writer, None, &mut |out, channel| {
                        let answer = BasicCancelOk { consumer_tag: cancel.consumer_tag };
                        write_method(out, channel, outgoing.max_frame(), &answer)
                    })?;
                }
            }
            Method::BasicConsumeOk(ok) => {
                let tag = ok.consumer_tag.bytes();
                self.answer(method.name(), Some(tag), payload)?;
            }
            Method::BasicCancelOk(ok) => {
                let tag = ok.consumer_tag.bytes();
                // Before the caller is woken, who may drop the consumer; unless nobody has asked for it.
                if self.expects(method.name(), tag) {
                    self.consumer_ended(tag);
                }
                self.answer(method.name(), Some(tag), payload)?;
            }
            Method::BasicRecoverOk(_) => {
                self.lock().unacked.clear();
                self.answer(method.name(), None, payload)?;
            }
            _ => self.answer(method.name(), None, payload)?,
        }
        Ok(())
    }

    fn content(self: Arc<Core>, content: Content) -> Result<()> {
        match Method::decode(content.parts.method(&content.bytes)) {
            Ok(method @ Method::BasicGetOk(ok)) => {
                let name = method.name();
                let delivery_tag = ok.delivery_tag;
                self.got(delivery_tag);
                self.answer_with(name, content, delivery_tag)
            }
            Ok(Method::BasicReturn(method)) => {
                let returned = self.returned(method, &content);
                let channel = self.gate.channel();
                self.connection.feeds.emit(|| Event::Returned { channel, returned });
                Ok(())
            }
            Ok(other) => {
                Err(Error::protocol(ReplyCode::CommandInvalid, format!("{} with a content", other.name())))
            }
            Err(malformed) => Err(Error::protocol(ReplyCode::FrameError, malformed.to_string())),
        }
    }

    fn accept(&self, consumer_tag: &[u8], arrived: &[Arrived]) -> Option<Accepted> {
        self.accept_deliveries(consumer_tag, arrived)
    }

    fn is_immediate(&self, consumer_tag: &[u8]) -> bool {
        self.has_inline_consumer(consumer_tag)
    }

    fn confirmations(&self, confirmations: &[Confirmation], woken: &mut Vec<Waiter>) {
        self.confirmed(confirmations, woken);
    }

    fn fail(&self, cause: &Error) {
        self.end(cause, false);
    }

    fn wind_down(self: Arc<Core>, step: Step, limit: Duration) -> Result<()> {
        match step {
            Step::CancelConsumers => self.cancel_consumers(limit),
            Step::AwaitConfirms if self.confirms.is_selected() => self.wait_for_confirms(limit),
            Step::AwaitConfirms => Ok(()),
            Step::Close => self.close(limit),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.0.lock().check_open().is_err() {
            // The reason was returned to a call, or logged when it came.
            return;
        }
        let limit = self.0.connection.limits.drop_timeout;
        if waits_never() {
            let core = self.0.clone();
            self.0.connection.errands.leave(move || core.log_late_error(&core.close(limit)));
            return;
        }
        let closed = self.0.close(limit);
        if !matches!(closed, Err(Error::Cancelled)) {
            self.0.log_late_error(&closed);
        }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("id", &self.id())
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("gate", &self.gate).finish_non_exhaustive()
    }
}
