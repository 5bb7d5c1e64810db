//! From a publish to the queues: checks, routing, confirms, and dead letters.

use std::{collections::HashSet, sync::Arc};

use super::{
    ChannelId, Effect, Emulate, Name, Publish, Refusal,
    arguments::QueueType,
    channel::{Destinations, Found, Mode, Uncommitted},
    consumers::Consumer,
    dead_letter::{self, Letter, Reason},
    exchange::Destination,
    message::{Accepted, Message, accept},
    queue::Overflow,
    ready::Entry,
    vhost::Vhost,
};
use crate::error::ReplyCode;

type Result<T> = std::result::Result<T, Refusal>;

/// How many dead letters may wait to be delivered. Queues that feed each other with copies could make any number of
/// them; beyond this they are lost.
const MAX_LETTERS: usize = 100_000;

/// Publishing.
impl Vhost {
    /// Routes a message, or keeps it for the commit. Confirms and returns are effects: a mandatory message
    /// that no queue takes is returned before it is confirmed.
    pub(crate) fn publish(&mut self, channel: ChannelId, publish: Publish<'_>) -> Result<()> {
        self.channel(channel)?;
        if publish.immediate {
            return Err(Refusal::not_implemented("immediate=true"));
        }
        self.check_publish(&publish)?;
        let session = self.sessions.get(&channel.session);
        let (user, may_impersonate) =
            session.map_or(("", false), |session| (session.user.as_str(), session.may_impersonate));
        let reply_to = self.channels.get(&channel).and_then(|channel| channel.reply_consumer.as_ref());
        let reply_to = reply_to.map(|consumer| &consumer.address);
        let accepted = accept(publish, user, may_impersonate, reply_to, self.settings.emulate, &self.memory)?;
        let Accepted { message, mandatory } = accepted;
        let before = self.effects.len();
        let queues = self.route(&message);
        let replies = self.effects.len() > before;
        let message = Arc::new(message);
        match &mut self.channel(channel)?.mode {
            Mode::Plain => {
                self.deliver(channel, &message, mandatory, &queues);
            }
            Mode::Confirm(last) => {
                *last += 1;
                let delivery_tag = *last;
                let accepted = self.deliver(channel, &message, mandatory, &queues);
                self.effects.push(Effect::Confirm { channel, delivery_tag, accepted });
            }
            Mode::Transaction(_) => {
                let charge = self.memory.charge(queues.len() * size_of::<Found>());
                let uncommitted = Uncommitted { message, mandatory, to: self.destinations(queues), charge };
                if let Mode::Transaction(transaction) = &mut self.channel(channel)?.mode {
                    transaction.publishes.push(uncommitted);
                }
            }
        }
        // A direct reply counts as nobody, and its receiver may be this channel: it hears of the return first.
        if replies && let Some(effects) = self.effects.get_mut(before..) {
            effects.sort_by_key(|effect| !matches!(effect, Effect::Return { .. }));
        }
        self.send_letters();
        Ok(())
    }

    /// Routes a message that no channel published. Says whether a queue took it.
    pub(crate) fn inject(&mut self, publish: Publish<'_>) -> Result<bool> {
        self.check_publish(&publish)?;
        let accepted = accept(publish, "", true, None, self.emulate(), &self.memory)?;
        let queues = self.route(&accepted.message);
        let message = Arc::new(accepted.message);
        let mut taken = false;
        for queue in &queues {
            taken |= self.queues.contains_key(queue) && self.enqueue(queue, &message, None);
        }
        self.send_letters();
        Ok(taken)
    }

    fn check_publish(&self, publish: &Publish<'_>) -> Result<()> {
        match self.exchanges.get(publish.exchange) {
            None => Err(self.no_exchange(&publish.exchange.into())),
            Some(exchange) if exchange.internal => {
                let what = self.exchange_text(&publish.exchange.into());
                Err(Refusal::access_refused(format!("cannot publish to internal {what}")))
            }
            Some(_) => Ok(()),
        }
    }

    /// Gives a message to its queues, or back. Says whether every one of them took it.
    pub(super) fn deliver(
        &mut self,
        channel: ChannelId,
        message: &Arc<Message>,
        mandatory: bool,
        queues: &[Name],
    ) -> bool {
        if mandatory && !queues.iter().any(|name| self.queues.contains_key(name)) {
            let payload = message.payload();
            self.effects.push(Effect::Return { channel, code: ReplyCode::NoRoute, payload });
        }
        let in_transaction =
            self.channels.get(&channel).is_some_and(|channel| matches!(channel.mode, Mode::Transaction(_)));
        let mut accepted = true;
        for name in queues {
            // RabbitMQ's commit forgets what a quorum queue refuses.
            let is_quorum = self.queues.get(name).is_some_and(|queue| queue.kind == QueueType::Quorum);
            let is_forgotten = in_transaction && is_quorum;
            accepted &= self.enqueue(name, message, Some(channel)) || is_forgotten;
        }
        accepted
    }

    fn destinations(&self, queues: Vec<Name>) -> Destinations {
        if self.emulate() == Emulate::RabbitMq3 {
            return Destinations::Named(queues);
        }
        let found = queues.into_iter().filter_map(|name| {
            let queue = self.queues.get(&name)?;
            Some(Found { id: queue.id, kind: queue.kind, name })
        });
        Destinations::Found(found.collect())
    }

    /// Gives the messages of a transaction to their queues, or back. Says whether every queue took what it got.
    pub(super) fn deliver_all(&mut self, channel: ChannelId, publishes: Vec<Uncommitted>) -> Result<bool> {
        for found in publishes.iter().flat_map(|publish| publish.to.found()) {
            let is_there = self.queues.get(&found.name).is_some_and(|queue| queue.id == found.id);
            if found.kind == QueueType::Stream && !is_there {
                let text = format!("Stream not found for {}", self.queue_text(&found.name));
                return Err(Refusal::new(ReplyCode::ResourceError, text));
            }
        }
        // RabbitMQ's channel learns that a quorum queue refuses when it has sent them all.
        let names = publishes.iter().flat_map(|publish| publish.to.names());
        self.refused_before = Some(names.filter(|name| self.refuses(name, channel)).cloned().collect());
        let mut accepted = true;
        for publish in publishes {
            accepted &= self.deliver_uncommitted(channel, publish);
        }
        self.refused_before = None;
        Ok(accepted)
    }

    /// Gives a message of a transaction to its queues, or back. Says whether every one of them took it.
    fn deliver_uncommitted(&mut self, channel: ChannelId, publish: Uncommitted) -> bool {
        let Uncommitted { message, mandatory, to, charge: _charge } = publish;
        let found = match to {
            Destinations::Named(queues) => return self.deliver(channel, &message, mandatory, &queues),
            Destinations::Found(found) => found,
        };
        let is_routed = !found.is_empty();
        let (there, gone): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| {
            let queue = self.queues.get(&found.name);
            queue.is_some_and(|queue| queue.id == found.id || found.is_also(queue.kind))
        });
        let there: Vec<Name> = there.into_iter().map(|found| found.name).collect();
        let accepted = self.deliver(channel, &message, mandatory && !is_routed, &there);
        accepted && !gone.iter().any(|found| found.kind == QueueType::Classic)
    }

    /// The names of the queues that a message is for, each once. They need not exist. A direct reply among
    /// them is delivered.
    pub(super) fn route(&mut self, message: &Message) -> Vec<Name> {
        let mut queues = if message.exchange.is_empty() {
            message.routing_keys.clone()
        } else {
            self.bound_queues(message)
        };
        queues.sort_unstable();
        queues.dedup();
        if message.exchange.is_empty() && queues.iter().any(|name| is_reply_address(name)) {
            queues.iter().filter(|name| is_reply_address(name)).for_each(|name| self.reply(name, message));
            queues.retain(|name| !is_reply_address(name));
        }
        queues
    }

    /// Follows bindings between exchanges and alternate exchanges; each exchange is visited once.
    fn bound_queues(&self, message: &Message) -> Vec<Name> {
        let mut queues = Vec::new();
        let mut seen = HashSet::from([message.exchange.clone()]);
        let mut to_visit = vec![message.exchange.clone()];
        while let Some(name) = to_visit.pop() {
            let Some(exchange) = self.exchanges.get(&name) else { continue };
            if name.is_empty() {
                // The default exchange can be an alternate one.
                queues.extend(message.routing_keys.iter().cloned());
                continue;
            }
            let mut found = exchange.route(message, self.emulate());
            if found.is_empty() {
                found.extend(exchange.alternate().map(|name| Destination::Exchange(name.into())));
            }
            for destination in found {
                match destination {
                    Destination::Queue(name) => queues.push(name),
                    Destination::Exchange(name) => {
                        if seen.insert(name.clone()) {
                            to_visit.push(name);
                        }
                    }
                }
            }
        }
        queues
    }

    /// Whether a quorum queue takes nothing from a channel. It tells those who have published to it when it is full, and
    /// again when it has room; who has not done so before asks.
    fn refuses(&mut self, name: &Name, channel: ChannelId) -> bool {
        let Some(queue) = self.queues.get_mut(name) else { return false };
        if queue.kind != QueueType::Quorum || queue.overflow != Overflow::RejectPublish {
            return false;
        }
        if let Some(&refused) = queue.publishers.get(&channel) {
            return refused;
        }
        let refused = queue.is_over_limit();
        queue.publishers.insert(channel, refused);
        if let Some(opened) = self.channels.get_mut(&channel) {
            opened.publishes_to.insert(name.clone());
        }
        refused
    }

    /// A message arrives at a queue, from a channel or as a dead letter. Says whether the queue took it; one that does not
    /// exist has no objection.
    pub(super) fn enqueue(&mut self, name: &Name, message: &Arc<Message>, from: Option<ChannelId>) -> bool {
        let (now, is_3) = (self.now, self.emulate() == Emulate::RabbitMq3);
        let refused = match (&self.refused_before, from) {
            (Some(refused), _) => refused.contains(name),
            (None, Some(channel)) => self.refuses(name, channel),
            (None, None) => false,
        };
        let Some(queue) = self.queues.get_mut(name) else { return true };
        if let Some(stream) = &mut queue.stream {
            stream.append(message.clone(), now);
            self.run(name);
            return true;
        }
        let is_full = match queue.kind {
            QueueType::Quorum => refused,
            _ => queue.would_overflow(message),
        };
        match queue.overflow {
            Overflow::RejectPublish if is_full => return false,
            Overflow::RejectPublishDlx if is_full => {
                let entry = queue.entry(message.clone(), now);
                self.give_up(name, &entry, Reason::MaxLength);
                return false;
            }
            _ => {}
        }
        let entry = queue.entry(message.clone(), now);
        if is_3 && let Some(consumer) = self.next_past_others(name) {
            self.hand_out(name, &consumer, entry);
            return true;
        }
        let Some(queue) = self.queues.get_mut(name) else { return true };
        let sequence = entry.sequence;
        let expires = entry.expires.is_some();
        queue.ready.push(entry);
        self.run(name);
        if let Some(queue) = self.queues.get_mut(name).filter(|queue| queue.lazy)
            && let Some(waiting) = queue.ready.pushed(sequence)
        {
            waiting.lazy = true;
        }
        let dropped = self.drop_surplus(name);
        if let Some(queue) = self.queues.get_mut(name) {
            queue.watch_limit();
        }
        let is_head = |entry: &Entry| entry.sequence == sequence;
        let alone = self.queues.get(name).is_some_and(|queue| match queue.kind {
            QueueType::Quorum => queue.ready.head().is_some_and(is_head),
            _ => queue.ready.len() == 1,
        });
        // RabbitMQ looks at the head only when this message may have become it by itself. In a classic queue one of a
        // higher priority, which takes the head from others, expires when something else happens there.
        if (dropped || alone) && (expires || !(dropped && alone)) {
            self.expire_messages(name);
        }
        true
    }

    /// Messages that wait for the successor of a single active consumer go on waiting in 3.x when another comes, but that one
    /// does not, if the successor does not ack. (If it does, RabbitMQ's queue crashes.)
    fn next_past_others(&mut self, name: &Name) -> Option<Consumer> {
        let queue = self.queues.get(name)?;
        if !queue.single_active || queue.kind != QueueType::Classic || queue.ready.is_empty() {
            return None;
        }
        self.next_consumer(name).filter(|consumer| consumer.no_ack)
    }

    /// Says whether there was a message too many.
    pub(super) fn drop_surplus(&mut self, name: &Name) -> bool {
        let mut dropped = false;
        let before = self.letters.len();
        while let Some(queue) = self.queues.get_mut(name) {
            if queue.overflow != Overflow::DropHead || !queue.is_over_limit() {
                break;
            }
            let Some(entry) = queue.ready.pop() else { break };
            self.give_up(name, &entry, Reason::MaxLength);
            dropped = true;
        }
        // What is too many at once a quorum queue sends the last one first.
        let is_quorum = self.queues.get(name).is_some_and(|queue| queue.kind == QueueType::Quorum);
        if let Some(letters) = self.letters.make_contiguous().get_mut(before..).filter(|_| is_quorum) {
            letters.reverse();
        }
        dropped
    }

    /// Removes the messages at the head whose time is over.
    pub(super) fn expire_messages(&mut self, name: &Name) {
        let now = self.now;
        while let Some(entry) = self.queues.get_mut(name).and_then(|queue| queue.pop_expired(now)) {
            self.give_up(name, &entry, Reason::Expired);
        }
        if let Some(queue) = self.queues.get_mut(name) {
            queue.watch_limit();
            queue.head_expires = queue.ready.head().and_then(|entry| entry.expires);
        }
        self.schedule(name);
    }

    /// A queue is done with a message: it goes to the dead-letter exchange, if the queue has one and it exists.
    pub(super) fn give_up(&mut self, name: &Name, entry: &Entry, reason: Reason) {
        let Some(to) = self.queues.get(name).and_then(|queue| queue.dead_letters.as_ref()) else { return };
        if !self.exchanges.contains_key(&to.exchange) || self.letters.len() >= MAX_LETTERS {
            return;
        }
        let (time, emulate) = (self.time(), self.emulate());
        let message = dead_letter::letter(entry, name, reason, to, time, emulate, &self.memory);
        self.letters.push_back(Letter { message: Arc::new(message), reason });
    }

    /// Delivers a dead letter, except to queues that it would come back to for ever. Gives the number of queues that it was
    /// routed to.
    pub(super) fn send_letter(&mut self, letter: Letter) -> usize {
        let Letter { message, reason } = letter;
        let emulate = self.emulate();
        let queues = self.route(&message);
        for queue in &queues {
            // A stream of 3.x takes what a channel publishes, and nothing else.
            let is_lost = emulate == Emulate::RabbitMq3
                && self.queues.get(queue).is_some_and(|queue| queue.stream.is_some());
            if is_lost {
                continue;
            }
            if reason == Reason::Rejected || !dead_letter::is_cycle(&message, queue, emulate) {
                self.enqueue(queue, &message, None);
            }
        }
        queues.len()
    }
}

fn is_reply_address(name: &[u8]) -> bool {
    name.starts_with(b"amq.rabbitmq.reply-to.")
}
