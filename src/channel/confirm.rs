//! Publisher confirms: exactly one outcome per publish.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Channel, Core,
    publish::{Checked, Publish},
    tracker::{Fingerprint, Numbered, Told, Tracker},
};
use crate::{
    connection::{events::Event, outgoing::Urgency},
    error::{Error, Result, Returned, Scope, Unconfirmed},
    protocol::{
        frame::write_method,
        spec::{ConfirmSelect, MethodBody},
    },
    sync::{GivenUp, OneShot, Waiter, lock, may_wait, wake_all},
};

/// What became of a published message. There is exactly one for every publish.
#[derive(Debug, Clone)]
#[must_use]
pub enum Outcome {
    /// The broker has taken responsibility for it.
    Acked,
    /// The broker could not.
    Nacked,
    /// It was mandatory and matched no queue.
    Returned(Arc<Returned>),
    /// It cannot be known any more: the channel or connection was lost, or the wait was over before the answer
    /// came. The message may or may not have been taken.
    Unknown(Error),
}

impl Outcome {
    /// `Ok` for an ack, and an error for everything else.
    ///
    /// # Errors
    /// [`Error::Nacked`], [`Error::Returned`], or the reason why the outcome is unknown.
    pub fn into_result(self) -> Result<()> {
        match self {
            Outcome::Acked => Ok(()),
            Outcome::Nacked => Err(Error::Nacked),
            Outcome::Returned(returned) => Err(Error::Returned(returned)),
            Outcome::Unknown(error) => Err(error),
        }
    }
}

/// A publish whose outcome is still to come.
///
/// It may be dropped: nothing is leaked, and [`Channel::wait_for_confirms`] tells if the publish failed.
#[derive(Debug)]
#[must_use = "holds the outcome; without it only wait_for_confirms tells of a failure"]
pub struct Confirm {
    core: Arc<Core>,
    numbered: Numbered,
    coming: Arc<OneShot<Outcome>>,
    outcome: Option<Outcome>,
}

impl Confirm {
    /// The number of the publish on its channel, counted from 1 since the channel was put into confirm mode.
    pub fn sequence_number(&self) -> u64 {
        self.numbered.number
    }

    /// Waits for the outcome, at most [`confirm_timeout`](crate::Config::confirm_timeout); it is
    /// [`Unknown`](Outcome::Unknown) when that has passed.
    pub fn wait(mut self) -> Outcome {
        let limit = self.core.connection.limits.confirm_timeout;
        self.wait_timeout(limit)
            .unwrap_or_else(|| Outcome::Unknown(self.core.too_late("waiting for a confirm", limit)))
    }

    /// Waits at most `timeout`; `None` when the outcome has not come yet.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Outcome> {
        if self.try_wait().is_none() {
            let deadline = Instant::now().checked_add(timeout);
            let outcome = {
                let _awaiting = match self.core.connection.incoming.awaiting() {
                    Ok(awaiting) => awaiting,
                    Err(error) => return Some(Outcome::Unknown(error)),
                };
                self.core.connection.outgoing.flush();
                self.coming.wait(deadline)
            };
            if let Some(error) = outcome.as_ref().err().and_then(|why| why.forbidden()) {
                // Not kept: the outcome itself may still come.
                return Some(Outcome::Unknown(error));
            }
            self.keep(outcome.ok());
        }
        self.outcome.clone()
    }

    /// The outcome if it is here. **Does not wait.**
    pub fn try_wait(&mut self) -> Option<Outcome> {
        if self.outcome.is_none() {
            let outcome = self.coming.take();
            self.keep(outcome);
        }
        self.outcome.clone()
    }

    /// The outcome if it is here; if not, `waiter` is woken when it comes.
    pub(crate) fn poll(&mut self, waiter: &Waiter) -> Option<Outcome> {
        if self.outcome.is_none() {
            let outcome = self.coming.poll(waiter);
            self.keep(outcome);
        }
        self.outcome.clone()
    }

    /// For a caller that is about to wait for the outcome, or for what comes of it: writes what was gathered, and has
    /// the connection read on until the result is dropped.
    ///
    /// # Errors
    /// [`Error::WouldDeadlock`] on a thread that must never wait.
    pub(crate) fn expecting(&self) -> Result<impl Drop + use<'_>> {
        let awaiting = self.core.connection.incoming.awaiting()?;
        self.core.connection.outgoing.flush();
        Ok(awaiting)
    }

    fn keep(&mut self, outcome: Option<Outcome>) {
        if outcome.as_ref().is_some_and(|outcome| !matches!(outcome, Outcome::Acked)) {
            lock(&self.core.confirms.state).tracker.told(self.numbered.id);
        }
        self.outcome = outcome;
    }
}

impl Channel {
    /// Puts the channel into confirm mode: the broker confirms every message published from now on.
    ///
    /// It stays in this mode until it is closed. Transactions are not possible on it.
    ///
    /// # Errors
    /// [`Error::Refused`] with 406 on a channel with transactions. Those of every call: see [`Channel`].
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open("amqp://localhost")?.channel()?;
    /// channel.confirm_select()?;
    /// channel.publish_confirmed("", "orders", "order 7")?; // Ok: the broker has it
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn confirm_select(&self) -> Result<()> {
        self.core().confirm_select(self.timeout)
    }

    /// Publishes a message and waits until the broker has confirmed it, at most
    /// [`confirm_timeout`](crate::Config::confirm_timeout). The channel must be in
    /// [confirm mode](Channel::confirm_select).
    ///
    /// Waiting for each message costs a round trip each; [`deferred`](Channel::deferred) publishes many and
    /// collects their outcomes later.
    ///
    /// # Errors
    /// - [`Error::Nacked`], [`Error::Returned`]: the broker did not take it.
    /// - [`Error::Refused`]: it closed the channel instead, for example with 404 for a missing exchange.
    /// - [`Error::Timeout`], or the reason why the connection was lost: it is not known whether the broker has it.
    /// - Those of [`basic_publish`](Channel::basic_publish): it was not sent.
    pub fn publish_confirmed<'a>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Publish<'a>>,
    ) -> Result<()> {
        // Before anything is sent.
        may_wait()?;
        self.confirmable(&Checked::new(exchange, routing_key, message.into())?)?.wait().into_result()
    }

    /// Publishes and leaves the outcome to a handle.
    pub(super) fn confirmable(&self, message: &Checked<'_>) -> Result<Confirm> {
        let core = self.core();
        if !core.confirms.is_selected() {
            core.lock().check_open()?;
            return Err(Error::invalid("the channel is not in confirm mode: call confirm_select first"));
        }
        let coming = OneShot::new();
        let numbered = core.publish(message, Some(coming.clone()))?;
        if numbered == Numbered::default() {
            // Closed and opened again by somebody else in between: nobody confirms it.
            coming.put(Outcome::Unknown(Error::Closed(Scope::Channel)));
        }
        Ok(Confirm { core: core.clone(), numbered, coming, outcome: None })
    }

    /// Waits until everything that was published on this channel so far is confirmed, at most `timeout`.
    ///
    /// May be called at any time, also after the channel or the connection was lost: what was outstanding then is
    /// listed as not confirmed. May be called by several threads at once: each is told of all that failed since it
    /// began to wait.
    ///
    /// # Errors
    /// - [`Error::Unconfirmed`]: lists what was not acked, and why, except for what a [`Confirm`] has told before.
    ///   What was still outstanding at the deadline may be confirmed later. Later calls do not list the others
    ///   again, unless the channel was lost: then all do, until it is in confirm mode again.
    /// - [`Error::Invalid`]: the channel was never put into confirm mode.
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open("amqp://localhost")?.channel()?;
    /// use std::time::Duration;
    ///
    /// channel.confirm_select()?;
    /// for number in 0..1000 {
    ///     channel.basic_publish("", "orders", &format!("order {number}"))?;
    /// }
    /// channel.wait_for_confirms(Duration::from_secs(30))?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn wait_for_confirms(&self, timeout: Duration) -> Result<()> {
        self.core().wait_for_confirms(timeout)
    }

    /// How many publishes are not confirmed yet.
    pub fn unconfirmed(&self) -> usize {
        lock(&self.core().confirms.state).tracker.outstanding()
    }
}

fn report(failures: Vec<(u64, Outcome)>, more: u64) -> Result<()> {
    let failures: Vec<(u64, Error)> = failures
        .into_iter()
        .filter_map(|(number, outcome)| outcome.into_result().err().map(|error| (number, error)))
        .collect();
    if failures.is_empty() && more == 0 {
        return Ok(());
    }
    Err(Error::Unconfirmed(Arc::new(Unconfirmed { failures, more })))
}

/// The confirms of one channel. The lock is a leaf that may be taken under that of the outgoing buffer, so that
/// numbers follow the order on the wire.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    /// The channel is in confirm mode. Changed under the lock of the state; where it decides about a number it is
    /// also looked at under that lock.
    selected: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tracker: Tracker,
    ever_selected: bool,
    /// Publishers that have a place in the window and are not numbered yet.
    reserved: usize,
    waiting: Vec<Waiter>,
}

impl Confirms {
    pub(super) fn is_selected(&self) -> bool {
        self.selected.load(Ordering::SeqCst)
    }

    fn was_ever_selected(&self) -> bool {
        lock(&self.state).ever_selected
    }

    /// Waits for a place in the window of outstanding publishes until the deadline.
    ///
    /// What `before_waiting` gives is kept while it waits.
    fn reserve<W>(
        &self,
        window: usize,
        deadline: Option<Instant>,
        before_waiting: impl Fn() -> W,
    ) -> Result<(), GivenUp> {
        loop {
            let mut state = lock(&self.state);
            if state.tracker.outstanding() + state.reserved < window || !self.is_selected() {
                state.reserved += 1;
                return Ok(());
            }
            drop(state);
            let _waiting = before_waiting();
            let mut state = lock(&self.state);
            if state.tracker.outstanding() + state.reserved < window {
                continue;
            }
            let waiter = Waiter::new();
            state.waiting.push(waiter.clone());
            drop(state);
            if let Err(given_up) = waiter.park(deadline) {
                lock(&self.state).waiting.retain(|other| !other.is(&waiter));
                return Err(given_up);
            }
        }
    }

    fn unreserve(&self) {
        let mut state = lock(&self.state);
        state.reserved -= 1;
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        wake_all(waiting);
    }

    /// Numbers a publish if the channel is in confirm mode. Called under the outgoing buffer's lock, at the place
    /// where the publish stands on the wire.
    pub(super) fn number(&self, place: &mut Option<Place<'_>>) -> Numbered {
        if !self.is_selected() {
            return Numbered::default();
        }
        let mut state = lock(&self.state);
        // A channel's gate is shut before its publishes are given up, so nothing slips in between.
        if !self.is_selected() {
            return Numbered::default();
        }
        let (fingerprint, handle) =
            place.as_mut().map_or((None, None), |place| (place.fingerprint, place.handle.take()));
        state.tracker.publish(fingerprint, handle)
    }

    fn change(&self, change: impl FnOnce(&mut Tracker) -> Told) {
        let mut state = lock(&self.state);
        let told = change(&mut state.tracker);
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        told.deliver();
        wake_all(waiting);
    }

    fn settle(&self, number: u64, multiple: bool, acked: bool) {
        self.change(|tracker| tracker.settle(number, multiple, acked));
    }

    /// The reader's: a message came back; given back if it is none of a confirmed publish.
    pub(super) fn returned(&self, returned: Arc<Returned>) -> Option<Arc<Returned>> {
        if !self.is_selected() {
            return Some(returned);
        }
        let fingerprint = Fingerprint::of(
            returned.exchange.as_bytes(),
            returned.routing_key.as_bytes(),
            &returned.raw_properties,
            &returned.body,
        );
        lock(&self.state).tracker.returned(fingerprint, returned)
    }

    pub(super) fn take_returned(&self) -> Option<Arc<Returned>> {
        lock(&self.state).tracker.take_returned()
    }

    /// The channel is gone. What is told to whom, once no lock is held.
    pub(super) fn lose(&self, cause: &Error) -> impl FnOnce() + use<> {
        let mut state = lock(&self.state);
        let (mut told, mut waiting) = (Told::default(), Vec::new());
        if self.selected.swap(false, Ordering::SeqCst) {
            told = state.tracker.lose(cause);
            waiting = mem::take(&mut state.waiting);
        }
        move || {
            told.deliver();
            wake_all(waiting);
        }
    }
}

impl Fingerprint {
    pub(super) fn of(exchange: &[u8], routing_key: &[u8], properties: &[u8], body: &[u8]) -> Fingerprint {
        let hash = |parts: &[&[u8]]| {
            let mut hasher = DefaultHasher::new();
            parts.hash(&mut hasher);
            hasher.finish()
        };
        Fingerprint { message: hash(&[exchange, routing_key, body]), properties: hash(&[properties]) }
    }
}

/// One publish's place in the window, until it has a number.
pub(super) struct Place<'a> {
    confirms: &'a Confirms,
    fingerprint: Option<Fingerprint>,
    handle: Option<Arc<OneShot<Outcome>>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.confirms.unreserve();
    }
}

impl Core {
    /// See [`Channel::wait_for_confirms`].
    pub(super) fn wait_for_confirms(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(timeout);
        let _awaiting = self.connection.incoming.awaiting()?;
        self.connection.outgoing.flush();
        if !self.confirms.was_ever_selected() {
            return Err(Error::invalid("the channel was never in confirm mode: call confirm_select first"));
        }
        let (last, mark) = {
            let tracker = &mut lock(&self.confirms.state).tracker;
            (tracker.published(), tracker.begin_report())
        };
        let waiter = Waiter::new();
        let why = loop {
            let mut state = lock(&self.confirms.state);
            if !state.tracker.is_waiting_for(last) {
                let (failures, more) = state.tracker.end_report(mark, self.confirms.is_selected());
                drop(state);
                return report(failures, more);
            }
            state.waiting.push(waiter.clone());
            drop(state);
            if let Err(why) = waiter.park(deadline) {
                break why;
            }
        };
        let error = self.given_up(why, "waiting for confirms", timeout);
        let mut state = lock(&self.confirms.state);
        state.waiting.retain(|other| !other.is(&waiter));
        let missing: Vec<u64> = state.tracker.outstanding_up_to(last).collect();
        let (mut failures, more) = state.tracker.end_report(mark, self.confirms.is_selected());
        drop(state);
        failures.extend(missing.into_iter().map(|number| (number, Outcome::Unknown(error.clone()))));
        report(failures, more)
    }

    /// The reader's: the broker has acked or nacked a publish, or all up to it.
    pub(super) fn confirmed(&self, sequence_number: u64, multiple: bool, acked: bool) {
        self.confirms.settle(sequence_number, multiple, acked);
        let channel = self.gate.channel();
        self.connection.feeds.emit(|| Event::Confirmed { channel, sequence_number, multiple, acked });
    }

    /// A place for one publish, if the channel is in confirm mode.
    pub(super) fn place(
        &self,
        message: &Checked<'_>,
        handle: Option<Arc<OneShot<Outcome>>>,
        deadline: impl Fn() -> Option<Instant>,
    ) -> Result<Option<Place<'_>>> {
        if !self.confirms.is_selected() {
            return Ok(None);
        }
        let fingerprint = message.is_mandatory().then(|| message.fingerprint()).transpose()?;
        let window = self.connection.limits.max_outstanding_confirms;
        let window = if window == 0 { usize::MAX } else { window };
        // The acks may stand behind deliveries that fill our buffer: while we wait for them they are read.
        let before_waiting = || {
            self.connection.outgoing.flush();
            self.connection.incoming.awaiting()
        };
        if let Err(why) = self.confirms.reserve(window, deadline(), before_waiting) {
            let limit = self.connection.limits.publish_timeout;
            return Err(self.given_up(why, "room in the window of unconfirmed messages", limit));
        }
        Ok(Some(Place { confirms: &self.confirms, fingerprint, handle }))
    }

    fn confirm_select(&self, timeout: Duration) -> Result<()> {
        if self.confirms.is_selected() {
            return Ok(());
        }
        let _awaiting = self.connection.incoming.awaiting()?;
        let outgoing = &self.connection.outgoing;
        let (name, replies) = (ConfirmSelect::NAME, ConfirmSelect::REPLIES);
        let coming = self.begin(timeout, name, replies, Urgency::Caller, |out, channel| {
            write_method(out, channel, outgoing.max_frame(), &ConfirmSelect { nowait: false })?;
            // Under the outgoing buffer's lock: what is published after this method counts.
            let mut state = lock(&self.confirms.state);
            if !self.confirms.selected.swap(true, Ordering::SeqCst) {
                state.ever_selected = true;
                state.tracker.restart();
            }
            Ok(())
        })?;
        outgoing.flush();
        let answer = coming.wait(Instant::now().checked_add(timeout));
        answer.unwrap_or_else(|why| Err(self.given_up(why, name, timeout))).map(drop)
    }
}
