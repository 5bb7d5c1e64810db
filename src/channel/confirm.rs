//! Publisher confirms: exactly one outcome per publish.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Channel, Core,
    publish::{Checked, Publish},
    tracker::{Fingerprint, Numbered, Tracker},
};
use crate::{
    connection::{events::Event, outgoing::Urgency, state::Confirmation},
    error::{Error, Result, Returned, Scope, Unconfirmed},
    protocol::{
        frame::write_method,
        spec::{ConfirmSelect, MethodBody},
    },
    sync::{GivenUp, Waiter, lock, may_wait, wake_all},
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
        if let Some(outcome) = self.try_wait() {
            return Some(outcome);
        }
        let deadline = Instant::now().checked_add(timeout);
        let _awaiting = match self.core.connection.incoming.awaiting() {
            Ok(awaiting) => awaiting,
            Err(error) => return Some(Outcome::Unknown(error)),
        };
        self.core.connection.outgoing.flush();
        match self.core.confirms.wait_for_outcome(self.numbered.id, deadline) {
            Ok(outcome) => Some(outcome),
            Err(why) => why.forbidden().map(Outcome::Unknown),
        }
    }

    /// The outcome if it is here. **Does not wait.**
    #[inline]
    pub fn try_wait(&mut self) -> Option<Outcome> {
        self.known(|confirms| confirms.outcome(self.numbered.id))
    }

    /// The outcome if it is here; if not, `waiter` is woken when it comes.
    pub(crate) fn poll(&mut self, waiter: &Waiter) -> Option<Outcome> {
        self.known(|confirms| confirms.poll_outcome(self.numbered.id, waiter))
    }

    #[inline]
    fn known(&self, look: impl FnOnce(&Confirms) -> Option<Outcome>) -> Option<Outcome> {
        if self.numbered == Numbered::default() {
            // The channel was closed and opened again by somebody else in between: nobody confirms it.
            return Some(Outcome::Unknown(Error::Closed(Scope::Channel)));
        }
        look(&self.core.confirms)
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
}

impl Drop for Confirm {
    fn drop(&mut self) {
        self.core.confirms.forget(self.numbered.id);
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
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// channel.confirm_select()?;
    /// channel.publish_confirmed("", "orders", "order 7")?; // Ok: the broker has it
    /// # }
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
        let numbered = core.publish(message, true)?;
        Ok(Confirm { core: core.clone(), numbered })
    }

    /// Waits until everything that was published on this channel so far is confirmed, at most `timeout`.
    ///
    /// May be called at any time, also after the channel or the connection was lost: what was outstanding then is
    /// listed as not confirmed. May be called by several threads at once: each is told of all that failed since it
    /// began to wait.
    ///
    /// # Errors
    /// - [`Error::Unconfirmed`]: lists what was not acked, and why, except for what a [`Confirm`] has told before. Of those
    ///   that nobody has asked for 1000, and 16 MiB of returned messages, are kept; the others are counted.
    ///   What was still outstanding at the deadline may be confirmed later. Later calls do not list the others
    ///   again, unless the channel was lost: then all do, until it is in confirm mode again.
    /// - [`Error::Invalid`]: the channel was never put into confirm mode.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// use std::time::Duration;
    ///
    /// channel.confirm_select()?;
    /// for number in 0..1000 {
    ///     channel.basic_publish("", "orders", &format!("order {number}"))?;
    /// }
    /// channel.wait_for_confirms(Duration::from_secs(30))?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn wait_for_confirms(&self, timeout: Duration) -> Result<()> {
        self.core().wait_for_confirms(timeout)
    }

    /// How many publishes are not confirmed yet.
    pub fn unconfirmed(&self) -> usize {
        let confirms = &self.core().confirms;
        if confirms.was_ever_selected() { confirms.lock().tracker.outstanding() as usize } else { 0 }
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
///
/// What most handles ask is answered without it: see [`outcome`](Confirms::outcome).
#[derive(Debug)]
pub(super) struct Confirms {
    /// How many publishes may be outstanding; `None` is no limit.
    window: Option<usize>,
    /// Places of the window that are taken: outstanding publishes, and publishers that have a place and no number yet.
    /// What is outstanding is counted in and out under the lock.
    taken: AtomicUsize,
    /// The channel is in confirm mode. Changed under the lock of the state; where it decides about a number it is
    /// also looked at under that lock.
    selected: AtomicBool,
    /// The tracker's [`settled_up_to`](Tracker::settled_up_to) and [`has_outcomes`](Tracker::has_outcomes). Stored
    /// under the lock, the second one first: whoever finds an id settled finds that there are outcomes other than acks.
    settled_up_to: AtomicU64,
    has_outcomes: AtomicBool,
    /// The id of the last publish, and the last one before the broker began to count anew. Changed under the outgoing
    /// buffer's lock, thus before the broker can know of it, and told to the tracker by whoever locks that.
    published: AtomicU64,
    counted_from: AtomicU64,
    ever_selected: AtomicBool,
    /// Made when the channel is put into confirm mode: most never are.
    state: LazyLock<Box<Mutex<State>>>,
}

#[derive(Debug, Default)]
struct State {
    tracker: Tracker,
    waiting: Vec<(Wanted, Waiter)>,
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// A place in the window.
    Place,
    /// The outcome of one publish.
    Outcome(u64),
    /// The outcomes of all publishes up to one.
    UpTo(u64),
}

impl State {
    fn forget_waiter(&mut self, waiter: &Waiter) {
        self.waiting.retain(|(_, other)| !other.is(waiter));
    }

    /// A handle is waited for by one at a time.
    fn forget_outcome(&mut self, id: u64) {
        self.waiting.retain(|(wanted, _)| !matches!(wanted, Wanted::Outcome(other) if *other == id));
    }

    /// Takes out those who have what they wait for.
    fn satisfied(&mut self) -> Vec<Waiter> {
        let tracker = &self.tracker;
        let satisfied = |wanted: &Wanted| match wanted {
            Wanted::Place => true,
            Wanted::Outcome(id) => !tracker.is_outstanding(*id),
            Wanted::UpTo(id) => !tracker.is_waiting_for(*id),
        };
        self.waiting.extract_if(.., |(wanted, _)| satisfied(wanted)).map(|(_, waiter)| waiter).collect()
    }
}

impl Confirms {
    /// With a window of so many outstanding publishes; 0 is no limit.
    pub(super) fn new(window: usize) -> Confirms {
        Confirms {
            window: (window > 0).then_some(window),
            taken: AtomicUsize::new(0),
            selected: AtomicBool::new(false),
            settled_up_to: AtomicU64::new(0),
            has_outcomes: AtomicBool::new(false),
            published: AtomicU64::new(0),
            counted_from: AtomicU64::new(0),
            ever_selected: AtomicBool::new(false),
            state: LazyLock::new(Box::default),
        }
    }

    pub(super) fn is_selected(&self) -> bool {
        self.selected.load(Ordering::SeqCst)
    }

    /// Called under the outgoing buffer's lock: what is published from here on is numbered from 1.
    fn select(&self) {
        let mut state = self.lock();
        if !self.selected.swap(true, Ordering::SeqCst) {
            self.ever_selected.store(true, Ordering::SeqCst);
            self.counted_from.store(state.tracker.published(), Ordering::SeqCst);
            state.tracker.restart();
        }
    }

    fn was_ever_selected(&self) -> bool {
        self.ever_selected.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.tracker.published_up_to(self.published.load(Ordering::Acquire));
        state
    }

    /// Waits for a place in the window of outstanding publishes until the deadline; false when there is no window.
    ///
    /// What `before_waiting` gives is kept while it waits.
    fn reserve<W>(
        &self,
        deadline: impl Fn() -> Option<Instant>,
        before_waiting: impl Fn() -> W,
    ) -> Result<bool, GivenUp> {
        let Some(window) = self.window else { return Ok(false) };
        if self.try_reserve(window) {
            return Ok(true);
        }
        let deadline = deadline();
        let _waiting = before_waiting();
        let waiter = Waiter::new();
        loop {
            let mut state = self.lock();
            // Places are given up under the lock, or with a look at it afterwards.
            if self.try_reserve(window) {
                state.forget_waiter(&waiter);
                return Ok(true);
            }
            state.forget_waiter(&waiter);
            state.waiting.push((Wanted::Place, waiter.clone()));
            drop(state);
            if let Err(given_up) = waiter.park(deadline) {
                self.lock().forget_waiter(&waiter);
                return Err(given_up);
            }
        }
    }

    /// Also beyond the window on a channel that is not in confirm mode any more: then the publish fails, or is one
    /// without a confirm.
    fn try_reserve(&self, window: usize) -> bool {
        let free = |taken| (taken < window || !self.is_selected()).then_some(taken + 1);
        self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free).is_ok()
    }

    #[cold]
    fn unreserve(&self) {
        self.taken.fetch_sub(1, Ordering::SeqCst);
        let waiting = self.lock().satisfied();
        wake_all(waiting);
    }

    /// Numbers a publish if the channel is in confirm mode. Called under the outgoing buffer's lock, at the place
    /// where the publish stands on the wire.
    #[inline]
    pub(super) fn number(&self, place: &mut Option<Place<'_>>) -> Numbered {
        if self.is_selected() { self.number_confirmed(place) } else { Numbered::default() }
    }

    fn number_confirmed(&self, place: &mut Option<Place<'_>>) -> Numbered {
        let (fingerprint, watched, has_place) = match place {
            Some(place) => (place.fingerprint, place.watched, std::mem::take(&mut place.reserved)),
            None => (None, false, false),
        };
        if self.window.is_some() && !has_place {
            self.taken.fetch_add(1, Ordering::SeqCst);
        }
        let id = self.published.load(Ordering::Acquire) + 1;
        if fingerprint.is_some() || !watched {
            lock(&self.state).tracker.note(id, fingerprint, watched);
        }
        self.published.store(id, Ordering::Release);
        Numbered { id, number: id - self.counted_from.load(Ordering::SeqCst) }
    }

    /// The outcome of a publish that is watched, if it is here.
    ///
    /// Mostly a look at two atomics: the publish and all before it are settled, and nothing is left to be told but
    /// that they were acked.
    #[inline]
    fn outcome(&self, id: u64) -> Option<Outcome> {
        if self.is_acked(id) { Some(Outcome::Acked) } else { self.look_for_outcome(id) }
    }

    fn look_for_outcome(&self, id: u64) -> Option<Outcome> {
        self.lock().tracker.outcome(id)
    }

    #[inline]
    fn is_acked(&self, id: u64) -> bool {
        id <= self.settled_up_to.load(Ordering::SeqCst) && !self.has_outcomes.load(Ordering::SeqCst)
    }

    /// The outcome if it is here; if not, `waiter` is woken when it comes.
    fn poll_outcome(&self, id: u64, waiter: &Waiter) -> Option<Outcome> {
        let mut state = self.lock();
        let outcome = state.tracker.outcome(id);
        if outcome.is_none() {
            state.forget_outcome(id);
            state.waiting.push((Wanted::Outcome(id), waiter.clone()));
        }
        outcome
    }

    fn wait_for_outcome(&self, id: u64, deadline: Option<Instant>) -> Result<Outcome, GivenUp> {
        let waiter = Waiter::new();
        loop {
            if let Some(outcome) = self.poll_outcome(id, &waiter) {
                return Ok(outcome);
            }
            if let Err(given_up) = waiter.park(deadline) {
                self.lock().forget_waiter(&waiter);
                return self.outcome(id).ok_or(given_up);
            }
        }
    }

    /// Nobody will ask for the outcome of this publish any more.
    fn forget(&self, id: u64) {
        if !self.is_acked(id) {
            let mut state = self.lock();
            state.tracker.forget(id);
            state.forget_outcome(id);
            self.publish_progress(&state.tracker);
        }
    }

    /// Under the lock: what can be seen without it.
    fn publish_progress(&self, tracker: &Tracker) {
        self.has_outcomes.store(tracker.has_outcomes(), Ordering::SeqCst);
        self.settled_up_to.store(tracker.settled_up_to(), Ordering::SeqCst);
    }

    /// Changes what is outstanding; returns who is to be woken once no lock is held.
    fn change(&self, mut state: MutexGuard<'_, State>, change: impl FnOnce(&mut Tracker)) -> Vec<Waiter> {
        let before = state.tracker.outstanding();
        change(&mut state.tracker);
        if self.window.is_some() {
            self.taken.fetch_sub((before - state.tracker.outstanding()) as usize, Ordering::SeqCst);
        }
        self.publish_progress(&state.tracker);
        state.satisfied()
    }

    fn settle(&self, confirmations: &[Confirmation], woken: &mut Vec<Waiter>) {
        let mut satisfied = self.change(self.lock(), |tracker| {
            confirmations.iter().for_each(|confirmation| tracker.settle(*confirmation));
        });
        woken.append(&mut satisfied);
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
        self.lock().tracker.returned(fingerprint, returned)
    }

    pub(super) fn take_returned(&self) -> Option<Arc<Returned>> {
        if self.was_ever_selected() { self.lock().tracker.take_returned() } else { None }
    }

    /// The channel is gone. Returns who is to be woken once no lock is held.
    pub(super) fn lose(&self, cause: &Error) -> Vec<Waiter> {
        // Both this and what selects it happen under the channel's lock.
        if !self.is_selected() {
            return Vec::new();
        }
        let state = self.lock();
        self.selected.store(false, Ordering::SeqCst);
        self.change(state, |tracker| tracker.lose(cause))
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

/// One publish before it has a number.
pub(super) struct Place<'a> {
    confirms: &'a Confirms,
    fingerprint: Option<Fingerprint>,
    watched: bool,
    /// It has a place in the window, which goes over to the number.
    reserved: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.reserved {
            self.confirms.unreserve();
        }
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
            let tracker = &mut self.confirms.lock().tracker;
            (tracker.published(), tracker.begin_report())
        };
        let waiter = Waiter::new();
        let why = loop {
            let mut state = self.confirms.lock();
            if !state.tracker.is_waiting_for(last) {
                let (failures, more) = state.tracker.end_report(mark, self.confirms.is_selected());
                drop(state);
                return report(failures, more);
            }
            state.waiting.push((Wanted::UpTo(last), waiter.clone()));
            drop(state);
            if let Err(why) = waiter.park(deadline) {
                break why;
            }
        };
        let error = self.given_up(why, "waiting for confirms", timeout);
        let mut state = self.confirms.lock();
        state.forget_waiter(&waiter);
        let missing: Vec<u64> = state.tracker.outstanding_up_to(last).collect();
        let (mut failures, more) = state.tracker.end_report(mark, self.confirms.is_selected());
        drop(state);
        failures.extend(missing.into_iter().map(|number| (number, Outcome::Unknown(error.clone()))));
        report(failures, more)
    }

    /// The reader's: the broker has acked or nacked publishes.
    pub(super) fn confirmed(&self, confirmations: &[Confirmation], woken: &mut Vec<Waiter>) {
        self.confirms.settle(confirmations, woken);
        if self.connection.feeds.is_wanted() {
            let channel = self.gate.channel();
            for &Confirmation { first, last, multiple, acked } in confirmations {
                for sequence_number in if multiple { last..=last } else { first..=last } {
                    self.connection.feeds.emit(|| Event::Confirmed {
                        channel,
                        sequence_number,
                        multiple,
                        acked,
                    });
                }
            }
        }
    }

    /// A place for one publish, if the channel is in confirm mode.
    #[inline]
    pub(super) fn place(
        &self,
        message: &Checked<'_>,
        watched: bool,
        deadline: impl Fn() -> Option<Instant>,
    ) -> Result<Option<Place<'_>>> {
        if !self.confirms.is_selected() {
            return Ok(None);
        }
        let fingerprint = message.is_mandatory().then(|| message.fingerprint()).transpose()?;
        // The acks may stand behind deliveries that fill our buffer: while we wait for them they are read.
        let before_waiting = || {
            self.connection.outgoing.flush();
            self.connection.incoming.awaiting()
        };
        let reserved = self.confirms.reserve(deadline, before_waiting).map_err(|why| {
            let limit = self.connection.limits.publish_timeout;
            self.given_up(why, "room in the window of unconfirmed messages", limit)
        })?;
        Ok(Some(Place { confirms: &self.confirms, fingerprint, watched, reserved }))
    }

    fn confirm_select(&self, timeout: Duration) -> Result<()> {
        if self.confirms.is_selected() {
            return Ok(());
        }
        let deadline = Instant::now().checked_add(timeout);
        let _awaiting = self.connection.incoming.awaiting()?;
        let outgoing = &self.connection.outgoing;
        let (name, replies) = (ConfirmSelect::NAME, ConfirmSelect::REPLIES.into());
        let coming = self.begin(timeout, name, replies, Urgency::Caller, &mut |out, channel| {
            write_method(out, channel, outgoing.max_frame(), &ConfirmSelect { nowait: false })?;
            // Under the outgoing buffer's lock: what is published after this method counts.
            self.confirms.select();
            Ok(())
        })?;
        outgoing.flush();
        let answer = coming.wait(deadline);
        answer.unwrap_or_else(|why| Err(self.given_up(why, name, timeout))).map(drop)
    }
}
