//! A peer: its channels and consumers, and the way to it for the program.
//!
//! Locks: the session takes the virtual host's turn for its frames and then a lock of these; the program does the same to
//! send. `state` and `inbox` are never held together, and nobody waits or is woken under either.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use super::{
    Program, Sent, Settled,
    channel::{Channel, Place, Subscription, Wanted},
    inbox::{Inbox, Job, Message},
};
use crate::{
    broker::{
        failure::Failure,
        hub::Hub,
        model::{ChannelId, Name, Payload, Refusal, SessionId},
        presence::Presence,
        served::{Served, Turn},
    },
    error::{Departure, Error, ReplyCode, Result},
    protocol::{
        spec::{BasicCancel, BasicDeliver},
        value::FieldTable,
        wire::ShortStr,
    },
    sync::{Waiter, lock, wake_all},
};

/// What a content header has beside the properties, with the frame around it.
const HEADER: usize = 14 + 8;

/// A connection of somebody who talks to this program. Cheap to clone; it keeps nothing open.
#[derive(Clone)]
pub struct Peer(pub(super) Arc<PeerState>);

impl Peer {
    /// Its number; no other connection of this listener ever has the same.
    pub fn id(&self) -> u64 {
        self.0.id().0
    }

    /// Where it comes from; `None` within the process.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.presence.peer
    }

    /// Who it says it is, and has proved with a password.
    pub fn user(&self) -> String {
        lock(&self.0.presence.details).user.clone()
    }

    /// What it says of itself.
    pub fn client_properties(&self) -> FieldTable {
        lock(&self.0.presence.details).client_properties.clone()
    }

    /// Closes its connection with a code and a text. **Does not wait** for the peer's answer.
    pub fn close(&self, code: ReplyCode, text: &str) {
        let Some(hub) = self.0.hub.upgrade() else { return };
        let mut turn = self.0.served.turn(&hub);
        self.0.end(Departure::Ended);
        turn.fail_session(self.0.id(), &Failure::new(code, text));
        turn.finish();
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("id", &self.id())
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

/// What a session and the program share.
pub(in crate::broker) struct PeerState {
    presence: Arc<Presence>,
    served: Arc<Served>,
    /// Weak, because a handler may keep consumers, and the hub keeps the handlers.
    hub: Weak<Hub>,
    state: Mutex<State>,
    inbox: Mutex<Inbox>,
}

#[derive(Debug, Default)]
struct State {
    channels: HashMap<u16, Channel>,
    /// The generation of the last channel that was opened.
    generation: u64,
    /// How many queues were named.
    named: u64,
    /// Those who wait for room.
    waiting: Vec<Waiter>,
    ended: Option<Departure>,
}

/// What became of an attempt to send.
enum Attempt {
    Sent(Sent),
    NoRoom,
}

impl PeerState {
    pub(in crate::broker) fn new(
        hub: &Hub,
        presence: &Arc<Presence>,
        served: &Arc<Served>,
    ) -> Arc<PeerState> {
        Arc::new(PeerState {
            presence: presence.clone(),
            served: served.clone(),
            hub: hub.weak(),
            state: Mutex::default(),
            inbox: Mutex::default(),
        })
    }

    pub(in crate::broker) fn id(&self) -> SessionId {
        self.presence.id
    }

    fn channel_id(&self, number: u16) -> ChannelId {
        ChannelId { session: self.id(), number }
    }
}

/// For the session, which holds the virtual host's turn.
impl PeerState {
    pub(in crate::broker) fn open_channel(&self, number: u16) {
        let mut state = lock(&self.state);
        state.generation += 1;
        let channel = Channel::new(state.generation);
        state.channels.insert(number, channel);
    }

    pub(in crate::broker) fn close_channel(&self, number: u16, why: Departure) {
        let channel = lock(&self.state).channels.remove(&number);
        if let Some(mut channel) = channel {
            channel.end(why);
        }
        self.wake_senders();
    }

    /// The name that a queue gets, and how many consumers of this peer it has.
    pub(in crate::broker) fn declare_queue(&self, number: u16, asked: &[u8]) -> (Name, u32) {
        let mut state = lock(&self.state);
        let name = if asked.is_empty() {
            state.named += 1;
            Name::from(format!("amq.gen-{}-{}", self.id().0, state.named))
        } else {
            Name::from(asked)
        };
        let all = state.channels.values().flat_map(Channel::consumers);
        let consumers = all.filter(|consumer| consumer.queue == name).count();
        if let Some(channel) = state.channels.get_mut(&number) {
            channel.last_queue = Some(name.clone());
        }
        (name, u32::try_from(consumers).unwrap_or(u32::MAX))
    }

    /// # Errors
    /// 404: an empty name stands for the queue that was declared last, and there is none.
    pub(in crate::broker) fn queue_name(&self, number: u16, asked: &[u8]) -> Result<Name, Refusal> {
        if !asked.is_empty() {
            return Ok(asked.into());
        }
        let last = self.with_channel(number, |channel| channel.last_queue.clone()).flatten();
        last.ok_or_else(|| Refusal::not_found("no previously declared queue"))
    }

    /// The peer's own consumers on this queue.
    pub(in crate::broker) fn consumers_of(&self, queue: &[u8]) -> Vec<Arc<Subscription>> {
        let state = lock(&self.state);
        let all = state.channels.values().flat_map(Channel::consumers);
        all.filter(|consumer| *consumer.queue == *queue).cloned().collect()
    }

    /// # Errors
    /// 530: the tag is in use.
    pub(in crate::broker) fn subscribe(
        &self,
        number: u16,
        wanted: Wanted<'_>,
    ) -> Result<Arc<Subscription>, Refusal> {
        let mut state = lock(&self.state);
        let ended = state.ended;
        let channel = state.channels.get_mut(&number);
        let subscription = match channel {
            Some(channel) => channel.subscribe(number, wanted)?,
            None => Channel::default().subscribe(number, wanted)?,
        };
        drop(state);
        if let Some(why) = ended {
            subscription.ended.put(why);
        }
        Ok(subscription)
    }

    /// The peer has cancelled a consumer, which need not be there.
    pub(in crate::broker) fn unsubscribe(&self, number: u16, tag: &[u8], why: Departure) {
        let subscription = self.with_channel(number, |channel| channel.cancel(tag)).flatten();
        if let Some(subscription) = subscription {
            subscription.ended.put(why);
            self.wake_senders();
        }
    }

    pub(in crate::broker) fn qos(&self, number: u16, count: u16, shared: bool) {
        self.with_channel(number, |channel| channel.qos(count, shared));
        self.wake_senders();
    }

    pub(in crate::broker) fn select_confirms(&self, number: u16) {
        self.with_channel(number, |channel| channel.confirms = true);
    }

    /// # Errors
    /// 406: nothing with this tag is to be settled.
    pub(in crate::broker) fn settle(
        &self,
        number: u16,
        tag: u64,
        multiple: bool,
        settled: Settled,
    ) -> Result<(), Refusal> {
        let outcomes = match self.with_channel(number, |channel| channel.settle(tag, multiple)) {
            Some(outcomes) => outcomes?,
            None => Vec::new(),
        };
        for outcome in outcomes {
            outcome.put(Ok(settled));
        }
        self.wake_senders();
        Ok(())
    }

    /// A message for the handler.
    pub(in crate::broker) fn publish(self: &Arc<Self>, program: &Program, number: u16, message: Message) {
        let numbered = self.with_channel(number, |channel| {
            channel.published += u64::from(channel.confirms);
            let place = Place { channel: number, generation: channel.generation };
            (place, channel.confirms.then_some(channel.published))
        });
        if let Some((place, number)) = numbered {
            self.put(program, Job::Message { message, place, number });
        }
    }

    /// A consumer for the handler.
    pub(in crate::broker) fn hand_over(self: &Arc<Self>, program: &Program, subscription: Arc<Subscription>) {
        self.put(program, Job::Consumer(subscription));
    }

    fn with_channel<T>(&self, number: u16, act: impl FnOnce(&mut Channel) -> T) -> Option<T> {
        lock(&self.state).channels.get_mut(&number).map(act)
    }

    /// The first reason is kept: nothing more is sent, and nothing will be settled.
    pub(in crate::broker) fn end(&self, why: Departure) {
        let mut state = lock(&self.state);
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(why);
        // They stay known, for the confirms of handlers that run.
        for channel in state.channels.values_mut() {
            channel.end(why);
        }
        drop(state);
        self.wake_senders();
    }
}

/// The inbox.
impl PeerState {
    fn put(self: &Arc<Self>, program: &Program, job: Job) {
        let mut inbox = lock(&self.inbox);
        inbox.put(job);
        if inbox.is_full() && !std::mem::replace(&mut inbox.held, true) {
            self.presence.hold_reading(true);
        }
        let scheduled = std::mem::replace(&mut inbox.scheduled, true);
        drop(inbox);
        if !scheduled {
            program.schedule(self.clone());
        }
    }

    pub(super) fn take_job(&self) -> Option<Job> {
        let mut inbox = lock(&self.inbox);
        let job = inbox.take();
        if inbox.held && inbox.has_room() {
            inbox.held = false;
            self.presence.hold_reading(false);
        }
        job
    }

    /// After a job: true when there is another.
    pub(super) fn goes_on(&self) -> bool {
        let mut inbox = lock(&self.inbox);
        inbox.scheduled = !inbox.is_empty();
        inbox.scheduled
    }
}

/// For the program, on any thread.
impl PeerState {
    /// Tells the peer what became of its message, unless the channel is another one by now.
    pub(super) fn confirm(&self, place: Place, number: u64, accepted: bool) {
        let Some(hub) = self.hub.upgrade() else { return };
        let mut turn = self.served.turn(&hub);
        let generation = self.with_channel(place.channel, |channel| channel.generation);
        if generation == Some(place.generation) {
            turn.confirm(self.channel_id(place.channel), number, accepted);
        }
        turn.finish();
    }

    /// Cancels a consumer at the peer.
    pub(super) fn cancel(&self, subscription: &Arc<Subscription>) {
        if subscription.ended.get().is_some() {
            return;
        }
        let Some(hub) = self.hub.upgrade() else { return };
        let mut turn = self.served.turn(&hub);
        self.cancel_in(&mut turn, subscription);
        turn.finish();
    }

    /// The same, of somebody who has the turn.
    pub(in crate::broker) fn cancel_in(&self, turn: &mut Turn<'_>, subscription: &Arc<Subscription>) {
        if subscription.ended.put(Departure::Ended) {
            let Place { channel, .. } = subscription.place;
            self.with_channel(channel, |channel| {
                if channel.generation == subscription.place.generation {
                    channel.cancel(&subscription.tag);
                }
            });
            if self.presence.takes_cancels() {
                let consumer_tag = ShortStr::from_bytes(&subscription.tag);
                turn.method(self.channel_id(channel), &BasicCancel { consumer_tag, no_wait: true });
            }
            self.wake_senders();
        }
    }

    /// The consumer that an answer goes to: of the same channel if there is one.
    pub(super) fn find_consumer(&self, number: u16, queue: &[u8]) -> Option<Arc<Subscription>> {
        let consumers = self.consumers_of(queue);
        let here = consumers.iter().find(|consumer| consumer.place.channel == number);
        here.or(consumers.first()).cloned()
    }

    pub(super) fn send(
        &self,
        subscription: &Arc<Subscription>,
        message: crate::Message,
        wait: bool,
    ) -> Result<Sent> {
        let mut properties = Vec::new();
        message.properties.encode(&mut properties)?;
        if properties.len() + HEADER > self.presence.max_frame() {
            return Err(Error::invalid("the properties do not fit into a frame"));
        }
        let payload = Payload {
            exchange: Name::default(),
            routing_key: subscription.queue.clone(),
            properties: properties.into(),
            body: message.body.into(),
        };
        let gone = || Error::Departed(Departure::Ended);
        let limit =
            self.hub.upgrade().and_then(|hub| Some(hub.program.as_ref()?.send_timeout)).ok_or_else(gone)?;
        let deadline = Instant::now().checked_add(limit);
        let waiter = wait.then(Waiter::new);
        loop {
            match self.try_send(
                &*self.hub.upgrade().ok_or_else(gone)?,
                subscription,
                &payload,
                waiter.as_ref(),
            )? {
                Attempt::Sent(sent) => return Ok(sent),
                Attempt::NoRoom => {}
            }
            let Some(waiter) = &waiter else { return Err(Error::WouldBlock) };
            if let Err(given_up) = waiter.park(deadline) {
                lock(&self.state).waiting.retain(|other| !other.is(waiter));
                return Err(given_up.forbidden().unwrap_or_else(|| no_room(limit)));
            }
        }
    }

    fn try_send(
        &self,
        hub: &Hub,
        subscription: &Arc<Subscription>,
        payload: &Payload,
        waiter: Option<&Waiter>,
    ) -> Result<Attempt> {
        let mut turn = self.served.turn(hub);
        let attempt = self.place(subscription, waiter);
        if let Ok(Some((delivery_tag, _))) = &attempt {
            turn.content(
                self.channel_id(subscription.place.channel),
                &BasicDeliver {
                    consumer_tag: ShortStr::from_bytes(&subscription.tag),
                    delivery_tag: *delivery_tag,
                    redelivered: false,
                    exchange: ShortStr::from_bytes(&payload.exchange),
                    routing_key: ShortStr::from_bytes(&payload.routing_key),
                },
                payload,
            );
        }
        turn.finish();
        Ok(attempt?.map_or(Attempt::NoRoom, |(_, sent)| Attempt::Sent(sent)))
    }

    /// Gives a delivery its tag, or leaves the waiter to be woken when there may be room.
    fn place(
        &self,
        subscription: &Arc<Subscription>,
        waiter: Option<&Waiter>,
    ) -> Result<Option<(u64, Sent)>> {
        let mut state = lock(&self.state);
        if let Some(why) = subscription.ended.get() {
            return Err(Error::Departed(why));
        }
        let Place { channel: number, generation } = subscription.place;
        let channel = state.channels.get_mut(&number).filter(|channel| channel.generation == generation);
        let channel = channel.ok_or(Error::Departed(Departure::ChannelClosed))?;
        if self.presence.link.is_full() || !channel.has_room(subscription) {
            if let Some(waiter) = waiter
                && !state.waiting.iter().any(|other| other.is(waiter))
            {
                state.waiting.push(waiter.clone());
            }
            return Ok(None);
        }
        let (tag, outcome) = channel.deliver(subscription);
        Ok(Some((tag, Sent::new(outcome))))
    }

    /// There may be room, or nothing to wait for any more.
    pub(super) fn wake_senders(&self) {
        let waiting = std::mem::take(&mut lock(&self.state).waiting);
        wake_all(waiting);
    }
}

fn no_room(limit: Duration) -> Error {
    Error::timeout("room at a peer's consumer", limit)
}

impl fmt::Debug for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerState").field("id", &self.id()).finish_non_exhaustive()
    }
}
