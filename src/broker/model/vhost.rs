//! The virtual host: everything in it, its clock, and the life of sessions and channels.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    time::Duration,
};

use super::{
    ChannelId, Effect, Emulate, Name, QueueStatus, Refusal, SessionId, Settings,
    arguments::QueueType,
    channel::Channel,
    dead_letter::Letter,
    exchange::{Destination, Exchange, Kind},
    message::Memory,
    queue::Queue,
};
use crate::{broker::by_number::ByNumber, error::ReplyCode};

/// A virtual host with everything in it.
#[derive(Debug)]
pub(crate) struct Vhost {
    pub(super) settings: Settings,
    pub(super) now: Duration,
    pub(super) memory: Memory,
    pub(super) exchanges: BTreeMap<Name, Exchange>,
    /// The exchanges that have bindings to each destination.
    pub(super) sources: HashMap<Destination, BTreeSet<Name>>,
    pub(super) queues: HashMap<Name, Queue>,
    pub(super) sessions: HashMap<SessionId, Session, ByNumber>,
    pub(super) channels: HashMap<ChannelId, Channel, ByNumber>,
    /// Which channel a direct reply goes to.
    pub(super) reply_addresses: HashMap<Name, ChannelId>,
    /// Dead letters that have not been delivered yet.
    pub(super) letters: VecDeque<Letter>,
    pub(super) effects: Vec<Effect>,
    /// During a commit: the quorum queues that refused when it began.
    pub(super) refused_before: Option<HashSet<Name>>,
    /// Sessions that have used up their budget.
    pub(super) sated: Vec<SessionId>,
    /// When a queue has to be looked at.
    schedule: BTreeSet<(Duration, Name)>,
    next_id: u64,
    random: u64,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) user: String,
    pub(super) may_impersonate: bool,
    pub(super) writable: bool,
    /// How many bytes may be delivered before the caller has to say again that it can be written to.
    pub(super) budget: usize,
    /// Its channels.
    channels: BTreeSet<u16>,
    /// The queues that are exclusive to it.
    pub(super) queues: BTreeSet<Name>,
}

/// What one operation delivers to one session at most, but for its last message. It bounds the effects that gather
/// when a queue is long and nothing else limits a consumer.
pub(super) const BUDGET: usize = 256 * 1024;

/// How many dead letters one operation delivers, each once for every queue that it goes to; those beyond wait for the next.
/// They can breed: a queue that expires everything at once passes each letter on, perhaps to many.
const LETTERS_AT_ONCE: usize = 10_000;

/// How many of those that letters make are delivered with them, for each. In 3.x a letter that was rejected once can go
/// round for ever, which must not keep anybody waiting.
const OFFSPRING: usize = 64;

/// Exchanges that are always there.
const PREDECLARED: [(&str, Kind); 7] = [
    ("", Kind::Direct),
    ("amq.direct", Kind::Direct),
    ("amq.fanout", Kind::Fanout),
    ("amq.headers", Kind::Headers),
    ("amq.match", Kind::Headers),
    ("amq.rabbitmq.trace", Kind::Topic),
    ("amq.topic", Kind::Topic),
];

impl Vhost {
    /// A virtual host with the predeclared exchanges, and nothing else.
    pub(crate) fn new(settings: Settings) -> Vhost {
        let exchanges = PREDECLARED.map(|(name, kind)| {
            let mut exchange = Exchange::new(kind);
            exchange.durable = true;
            exchange.internal = name == "amq.rabbitmq.trace";
            (Name::from(name), exchange)
        });
        Vhost {
            random: settings.seed,
            settings,
            now: Duration::ZERO,
            memory: Memory::default(),
            exchanges: exchanges.into(),
            sources: HashMap::new(),
            queues: HashMap::new(),
            sessions: HashMap::default(),
            channels: HashMap::default(),
            reply_addresses: HashMap::new(),
            letters: VecDeque::new(),
            effects: Vec::new(),
            refused_before: None,
            sated: Vec::new(),
            schedule: BTreeSet::new(),
            next_id: 0,
        }
    }

    /// Brings the virtual clock forward to `now`, which is never earlier than before, and lets expire what is
    /// due, each at its time. Messages expire at the head of their queue only, as in RabbitMQ.
    pub(crate) fn tick(&mut self, now: Duration) {
        while let Some((at, name)) = self.schedule.pop_first() {
            if at > now {
                self.schedule.insert((at, name));
                break;
            }
            self.now = self.now.max(at);
            let Some(queue) = self.queues.get_mut(&name) else { continue };
            queue.scheduled = None;
            // A message that expires before its queue is a dead letter, the others are lost with it.
            if queue.head_expires.is_some_and(|at| at <= self.now) {
                self.expire_messages(&name);
            } else if queue.expires_at().is_some_and(|at| at <= self.now) {
                self.remove_queue(&name);
            } else {
                self.schedule(&name);
            }
            self.send_letters();
        }
        self.now = self.now.max(now);
        self.send_letters();
    }

    /// When [`tick`](Vhost::tick) should be called again, if nothing else happens before. It may find nothing
    /// to do.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        if !self.letters.is_empty() {
            return Some(self.now);
        }
        self.schedule.first().map(|(at, _)| *at)
    }

    /// What is to be sent, in order.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Sessions that have used up what is delivered to them at once: the caller says with
    /// [`set_writable`](Vhost::set_writable) when it goes on, or that it has to wait.
    pub(crate) fn take_sated(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.sated)
    }

    /// What all messages cost that are held: their bytes once, and something for each place where they are.
    pub(crate) fn memory(&self) -> usize {
        self.memory.bytes()
    }

    /// A broker that stops and starts again: what is not durable is lost, and so are all sessions. Their
    /// connections are the caller's to close.
    pub(crate) fn restart(&mut self) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        sessions.into_iter().for_each(|session| self.close_session(session));
        self.lose_exchanges();
        let transient: Vec<_> =
            self.queues.iter().filter(|(_, queue)| !queue.durable).map(|(name, _)| name.clone()).collect();
        transient.iter().for_each(|name| self.remove_queue(name));
        for queue in self.queues.values_mut() {
            queue.ready.retain(|entry| entry.message.persistent || queue.kind != QueueType::Classic);
        }
        self.effects.clear();
    }

    /// A connection was opened by `user`; only one who may impersonate others can set another `user-id`.
    pub(crate) fn open_session(&mut self, session: SessionId, user: &str, may_impersonate: bool) {
        let opened = Session {
            user: user.to_owned(),
            may_impersonate,
            writable: true,
            budget: BUDGET,
            channels: BTreeSet::new(),
            queues: BTreeSet::new(),
        };
        self.sessions.insert(session, opened);
    }

    /// The connection is gone: its channels, exclusive queues and consumers go, what was unacked is requeued.
    pub(crate) fn close_session(&mut self, session: SessionId) {
        let channels = self.channels_of(session);
        // What one of its channels gives back must not be lost with another.
        let consumers = channels.iter().filter_map(|channel| self.channels.get(channel));
        let without_acks = consumers.flat_map(|channel| channel.consumers.values()).filter(|own| own.no_ack);
        let queues: BTreeSet<Name> = without_acks.map(|own| own.queue.clone()).collect();
        for name in queues {
            if let Some(queue) = self.queues.get_mut(&name) {
                queue.consumers.expect_acks(session);
            }
        }
        // A channel of RabbitMQ tells the classic queues that it consumes from; others learn that it is gone, which is later.
        channels.iter().for_each(|channel| self.leave_queues(*channel));
        channels.into_iter().for_each(|channel| self.close_channel(channel));
        let owned = self.sessions.get_mut(&session).map(|session| std::mem::take(&mut session.queues));
        owned.iter().flatten().for_each(|name| self.remove_queue(name));
        self.sessions.remove(&session);
        self.send_letters();
    }

    /// A channel that is about to end leaves the classic queues that it consumes from, and gives back what they gave it.
    fn leave_queues(&mut self, channel: ChannelId) {
        let Some(opened) = self.channels.get(&channel) else { return };
        let consumed = opened.consumers.values().map(|consumer| consumer.queue.clone());
        let is_classic =
            |name: &Name| self.queues.get(name).is_some_and(|queue| queue.kind == QueueType::Classic);
        let consumed: BTreeSet<_> = consumed.filter(is_classic).collect();
        let Some(opened) = self.channels.get_mut(&channel) else { return };
        opened.consumers.retain(|_, consumer| !consumed.contains(&consumer.queue));
        let mut unacked = Vec::new();
        for (tag, delivery) in opened.everything_unacked() {
            match consumed.contains(&delivery.queue) {
                true => unacked.push((tag, delivery)),
                false => drop(opened.unacked.insert(tag, delivery)),
            }
        }
        for name in &consumed {
            self.remove_consumers_of(name, channel);
        }
        self.give_back(unacked);
        consumed.iter().for_each(|name| self.run(name));
    }

    pub(super) fn channels_of(&self, session: SessionId) -> Vec<ChannelId> {
        let numbers = self.sessions.get(&session).map(|session| session.channels.iter());
        numbers.into_iter().flatten().map(|&number| ChannelId { session, number }).collect()
    }

    /// The session must exist, and the channel must not.
    pub(crate) fn open_channel(&mut self, channel: ChannelId) {
        if let Some(session) = self.sessions.get_mut(&channel.session) {
            session.channels.insert(channel.number);
            self.channels.insert(channel, Channel::default());
        }
    }

    /// The channel's consumers go, what was unacked is requeued.
    pub(crate) fn close_channel(&mut self, channel: ChannelId) {
        let Some(mut closed) = self.channels.remove(&channel) else { return };
        if let Some(session) = self.sessions.get_mut(&channel.session) {
            session.channels.remove(&channel.number);
        }
        if let Some(reply) = closed.reply_consumer.take() {
            self.reply_addresses.remove(&reply.address);
        }
        for name in &closed.publishes_to {
            if let Some(queue) = self.queues.get_mut(name) {
                queue.publishers.remove(&channel);
            }
        }
        let unacked = closed.everything_unacked();
        let consumed: BTreeSet<_> = closed.consumers.into_values().map(|consumer| consumer.queue).collect();
        for name in &consumed {
            self.remove_consumers_of(name, channel);
        }
        self.give_back(unacked);
        consumed.iter().for_each(|name| self.run(name));
        self.send_letters();
    }

    pub(super) fn channel(&mut self, channel: ChannelId) -> Result<&mut Channel, Refusal> {
        let missing = || Refusal::new(ReplyCode::ChannelError, "expected 'channel.open'");
        self.channels.get_mut(&channel).ok_or_else(missing)
    }

    pub(super) fn emulate(&self) -> Emulate {
        self.settings.emulate
    }

    /// `queue 'name' in vhost '/'`
    pub(super) fn queue_text(&self, name: &Name) -> String {
        format!("queue '{name}' in vhost '{}'", self.settings.name)
    }

    /// `exchange 'name' in vhost '/'`
    pub(super) fn exchange_text(&self, name: &Name) -> String {
        format!("exchange '{name}' in vhost '{}'", self.settings.name)
    }

    pub(super) fn status(&self, name: &Name) -> QueueStatus {
        let queue = self.queues.get(name);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        QueueStatus {
            name: name.clone(),
            messages: queue.map_or(0, |queue| count(queue.messages())),
            consumers: queue.map_or(0, |queue| count(queue.consumer_count())),
        }
    }

    /// Seconds since 1970.
    pub(super) fn time(&self) -> u64 {
        self.settings.epoch.saturating_add(self.now.as_secs())
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The queue is looked at when something is due there.
    pub(super) fn schedule(&mut self, name: &Name) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        let Some(at) = queue.deadline() else { return };
        if queue.scheduled.is_none_or(|scheduled| at < scheduled) {
            queue.scheduled = Some(at);
            self.schedule.insert((at, name.clone()));
        }
    }

    /// Delivers the dead letters that the current operation has made, and those that these make.
    pub(super) fn send_letters(&mut self) {
        let most = LETTERS_AT_ONCE.min(self.letters.len().saturating_mul(1 + OFFSPRING));
        let mut sent = 0;
        while sent < most {
            let Some(letter) = self.letters.pop_front() else { return };
            sent += 1 + self.send_letter(letter);
        }
    }

    /// 22 letters that nobody guesses, in the alphabet of RabbitMQ's names.
    pub(super) fn unique(&mut self) -> String {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let letter = |index: u64| ALPHABET.get(index as usize & 63).map_or('A', |&byte| byte.into());
        let (one, other) = (self.random(), self.random());
        let first = (0..11).map(|at| letter(one >> (at * 5)));
        first.chain((0..11).map(|at| letter(other >> (at * 5)))).collect()
    }

    /// Lets any of them be the first, so that nobody is left out because others take all the room that there is.
    pub(super) fn shift<T>(&mut self, all: &mut [T]) {
        if all.len() > 1 {
            all.rotate_left((self.random() % all.len() as u64) as usize);
        }
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
