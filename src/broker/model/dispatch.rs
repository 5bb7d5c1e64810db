//! From queues to consumers: consuming, fetching, prefetch, and whose turn it is.

use super::{
    ChannelId, ConsumeOptions, Effect, Emulate, Got, Name, Refusal, SessionId,
    arguments::{QueueType, check_consumer_arguments},
    channel::{Channel, ChannelConsumer, Unacked},
    consumers::{Consumer, Room},
    ready::{Entry, Holder},
    values::integer,
    vhost::{BUDGET, Vhost},
};
use crate::error::ReplyCode;

type Result<T> = std::result::Result<T, Refusal>;

/// Consuming.
impl Vhost {
    /// Gives the consumer's tag. Deliveries are effects, to be sent after `consume-ok`.
    pub(crate) fn consume(&mut self, channel: ChannelId, options: ConsumeOptions<'_>) -> Result<Name> {
        let queue = self.queue_name(channel, options.queue)?;
        let in_use = self.channel(channel)?.consumers.contains_key(options.tag);
        if in_use {
            let tag = Name::from(options.tag);
            return Err(Refusal::not_allowed(format!("attempt to reuse consumer tag '{tag}'")));
        }
        let tag: Name = match options.tag {
            [] => format!("amq.ctag-{}", self.unique()).into(),
            given => given.into(),
        };
        if *queue == *b"amq.rabbitmq.reply-to" {
            return self.consume_replies(channel, tag, options.no_ack);
        }
        self.check_consume(channel, &queue, &options)?;
        let (next_id, emulate) = (self.next_id(), self.emulate());
        let prefetch = self.channel(channel)?.prefetch;
        let Some(found) = self.queues.get_mut(&queue) else { return Err(self.no_queue(&queue)) };
        let priority = options.arguments.get("x-priority").and_then(integer).unwrap_or(0);
        let (kind, queue_id) = (found.kind, found.id);
        // To a quorum queue a consumer that comes back with its old tag is the same.
        let held = found.held_by(channel, &tag).count();
        let attached = found.held_by(channel, &tag).map(|holder| holder.attached).min();
        let own = ChannelConsumer {
            queue: queue.clone(),
            queue_id,
            no_ack: options.no_ack,
            prefetch,
            outstanding: u32::try_from(held).unwrap_or(u32::MAX),
        };
        let consumer = Consumer {
            channel,
            tag: tag.clone(),
            no_ack: options.no_ack,
            priority,
            attached: attached.unwrap_or(next_id),
            has_left: false,
        };
        if let Some(stream) = &mut found.stream {
            stream.attach(&consumer, &options.arguments, self.now, &self.settings);
        }
        match kind {
            // In 4.x one that has nothing to settle is another.
            QueueType::Quorum => {
                let keeps_place = emulate == Emulate::RabbitMq3 || held > 0;
                found.consumers.add_to_quorum(consumer, keeps_place, own.is_full());
            }
            QueueType::Classic => found.consumers.add(consumer, options.exclusive),
            QueueType::Stream => found.consumers.add(consumer, false),
        }
        found.had_consumers = true;
        self.channel(channel)?.consumers.insert(tag.clone(), own);
        self.run(&queue);
        self.send_letters();
        Ok(tag)
    }

    fn check_consume(&mut self, channel: ChannelId, name: &Name, options: &ConsumeOptions<'_>) -> Result<()> {
        let (what, emulate) = (self.queue_text(name), self.emulate());
        let (prefetch, global) = {
            let opened = self.channel(channel)?;
            (opened.prefetch, opened.global_prefetch)
        };
        let queue = self.accessible(channel, name)?;
        check_consumer_arguments(&what, queue.kind, &options.arguments, emulate)?;
        if queue.kind == QueueType::Stream {
            let (unset, unacked) = match emulate {
                Emulate::RabbitMq3 => (format!("'{what}'"), format!("stream queues {what}")),
                Emulate::RabbitMq4 => (format!("stream {what}"), format!("stream {what}")),
            };
            if prefetch == 0 {
                let text = format!("consumer prefetch count is not set for {unset}");
                return Err(Refusal::precondition(text));
            }
            if options.no_ack {
                let text = format!("automatic acknowledgement not supported by {unacked}");
                return Err(Refusal::not_implemented(text));
            }
        }
        if queue.kind != QueueType::Classic {
            if global != 0 {
                return Err(Refusal::not_implemented(format!("{what} does not support global qos")));
            }
            return Ok(());
        }
        if !queue.consumers.may_add(options.exclusive) {
            return Err(Refusal::access_refused(format!("{what} in exclusive use")));
        }
        Ok(())
    }

    /// An unknown tag is no error. What was delivered stays unacked.
    pub(crate) fn cancel(&mut self, channel: ChannelId, tag: &[u8]) -> Result<()> {
        self.stop_consumer(channel, tag);
        Ok(())
    }

    /// Cancels a consumer as if its queue had gone: gives whether there was one.
    pub(crate) fn cancel_by_server(&mut self, channel: ChannelId, tag: &[u8]) -> bool {
        let found = self.stop_consumer(channel, tag);
        if found {
            self.effects.push(Effect::Cancel { channel, consumer_tag: tag.into() });
        }
        found
    }

    fn stop_consumer(&mut self, channel: ChannelId, tag: &[u8]) -> bool {
        let Some(opened) = self.channels.get_mut(&channel) else { return false };
        if let Some(reply) = opened.reply_consumer.take_if(|consumer| *consumer.tag == *tag) {
            self.reply_addresses.remove(&reply.address);
            return true;
        }
        let Some(consumer) = opened.consumers.remove(tag) else { return false };
        if let Some(queue) = self.queues.get_mut(&consumer.queue) {
            match queue.kind {
                QueueType::Quorum => queue.consumers.leave(channel, tag),
                _ => drop(queue.consumers.remove(channel, tag)),
            }
            if let Some(stream) = &mut queue.stream {
                stream.detach(channel, tag);
            }
        }
        self.after_consumers_left(&consumer.queue);
        // In 3.x the successor of a classic queue's single active consumer gets nothing until something else happens there.
        let is_quorum = self.queues.get(&consumer.queue).is_some_and(|queue| queue.kind == QueueType::Quorum);
        if self.emulate() != Emulate::RabbitMq3 || is_quorum {
            self.run(&consumer.queue);
        }
        self.send_letters();
        true
    }

    /// All consumers of a channel leave a queue.
    pub(super) fn remove_consumers_of(&mut self, name: &Name, channel: ChannelId) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        if queue.consumers.remove_channel(channel) {
            if let Some(stream) = &mut queue.stream {
                stream.detach_channel(channel);
            }
            self.after_consumers_left(name);
        }
    }

    fn after_consumers_left(&mut self, name: &Name) {
        let Some(queue) = self.queues.get(name) else { return };
        if !queue.consumers.is_empty() {
            return;
        }
        if queue.auto_delete && queue.had_consumers {
            self.remove_queue(name);
        } else {
            self.touch(name);
        }
    }

    /// `basic.get`
    pub(crate) fn get(&mut self, channel: ChannelId, queue: &[u8], no_ack: bool) -> Result<Option<Got>> {
        self.channel(channel)?;
        let name = self.queue_name(channel, queue)?;
        let what = self.queue_text(&name);
        let queue = self.accessible(channel, &name)?;
        if queue.stream.is_some() {
            let text = format!("basic.get not supported by stream queues {what}");
            return Err(Refusal::not_implemented(text));
        }
        if queue.kind == QueueType::Quorum && queue.single_active {
            return Err(Refusal::locked(format!(
                "cannot obtain access to locked {what}. basic.get operations are not supported by quorum queues with \
                 single active consumer"
            )));
        }
        self.touch(&name);
        let (emulate, attached) = (self.emulate(), self.next_id());
        let tag_to_come = self.channel(channel)?.tag_to_come();
        let Some(queue) = self.queues.get_mut(&name) else { return Ok(None) };
        let Some(mut entry) = queue.ready.pop() else { return Ok(None) };
        if queue.kind == QueueType::Quorum {
            queue.consumers.pass_over();
            let tag = Name::from(tag_to_come.to_string());
            entry.holder = Some(Box::new(Holder { channel, tag, fetched: true, attached }));
        }
        let (queue_id, sequence, redelivered) = (queue.id, entry.sequence, entry.redelivered);
        let payload = entry.delivered(queue.kind, emulate);
        if !no_ack {
            queue.unacked.insert(sequence, entry);
        }
        // A quorum queue counts before it looks at what has expired behind a message that is to be settled.
        let counted = (queue.kind == QueueType::Quorum && !no_ack).then(|| queue.ready.len());
        self.expire_messages(&name);
        let messages = match counted {
            Some(count) => u32::try_from(count).unwrap_or(u32::MAX),
            None => self.status(&name).messages,
        };
        let channel = self.channel(channel)?;
        let delivery_tag = channel.next_tag();
        if !no_ack {
            let unacked = Unacked { queue: name, queue_id, sequence, consumer: None };
            channel.unacked.insert(delivery_tag, unacked);
        }
        self.send_letters();
        Ok(Some(Got { delivery_tag, redelivered, messages, payload }))
    }

    /// A limit for consumers to come, or for the whole channel.
    pub(crate) fn qos(&mut self, channel: ChannelId, size: u32, count: u16, global: bool) -> Result<()> {
        if size != 0 {
            return Err(Refusal::not_implemented(format!("prefetch_size!=0 ({size})")));
        }
        let opened = self.channel(channel)?;
        if global {
            if opened.global_prefetch == 0 {
                opened.volume = i64::try_from(opened.unacked.len()).unwrap_or(i64::MAX);
            }
            opened.global_prefetch = count;
        } else {
            opened.prefetch = count;
            opened.global_prefetch = 0;
        }
        self.end_suspension(channel);
        self.send_letters();
        Ok(())
    }

    /// `channel.flow`
    pub(crate) fn flow(&mut self, channel: ChannelId, active: bool) -> Result<()> {
        self.channel(channel)?;
        if active { Ok(()) } else { Err(Refusal::new(ReplyCode::NotImplemented, "active=false")) }
    }

    /// A session that cannot be written to gets no deliveries until it can.
    pub(crate) fn set_writable(&mut self, session: SessionId, writable: bool) {
        let Some(opened) = self.sessions.get_mut(&session) else { return };
        opened.budget = BUDGET;
        if std::mem::replace(&mut opened.writable, writable) == writable || !writable {
            return;
        }
        let mut channels = self.channels_of(session);
        self.shift(&mut channels);
        channels.into_iter().for_each(|channel| self.resume(channel));
        self.send_letters();
    }

    /// The consumers of a channel may be able to take messages again.
    fn resume(&mut self, channel: ChannelId) {
        self.queues_of(channel).iter().for_each(|name| self.resume_in(name, channel));
    }

    /// A channel may have room for more again: queues that found none there are told so.
    pub(super) fn end_suspension(&mut self, channel: ChannelId) {
        if self.channels.get(&channel).is_none_or(Channel::is_limited) {
            return;
        }
        for name in self.queues_of(channel) {
            let queue = self.queues.get_mut(&name);
            if queue.is_some_and(|queue| queue.consumers.end_suspension(channel)) {
                self.resume_in(&name, channel);
            }
        }
    }

    /// The queues that a channel consumes from.
    fn queues_of(&mut self, channel: ChannelId) -> Vec<Name> {
        let Some(opened) = self.channels.get(&channel) else { return Vec::new() };
        let mut queues: Vec<_> = opened.consumers.values().map(|consumer| consumer.queue.clone()).collect();
        queues.sort_unstable();
        queues.dedup();
        self.shift(&mut queues);
        queues
    }

    /// The same in one queue.
    pub(super) fn resume_in(&mut self, name: &Name, channel: ChannelId) {
        let is_stream = self.queues.get(name).is_some_and(|queue| queue.stream.is_some());
        if self.line_up_again(name, channel) || is_stream {
            self.run(name);
        }
    }

    /// Those who can take messages again stand in line, and nothing is handed out yet. Says whether there are any.
    pub(super) fn line_up_again(&mut self, name: &Name, channel: ChannelId) -> bool {
        let Some(opened) = self.channels.get(&channel) else { return false };
        let Some(queue) = self.queues.get_mut(name) else { return false };
        let can = |consumer: &Consumer| opened.consumers.get(&consumer.tag).is_some_and(|own| !own.is_full());
        queue.consumers.resume(channel, can)
    }

    /// Hands out messages for as long as there are messages and consumers that can take them.
    pub(super) fn run(&mut self, name: &Name) {
        let Vhost { queues, channels, .. } = self;
        let Some(queue) = queues.get_mut(name) else { return };
        if queue.stream.is_some() {
            return self.run_stream(name);
        }
        if queue.consumers.takes_over() {
            queue.consumers.hand_over(|consumer| {
                let own =
                    channels.get(&consumer.channel).and_then(|channel| channel.consumers.get(&consumer.tag));
                own.is_none_or(|own| own.outstanding == 0)
            });
        }
        loop {
            let Some(queue) = self.queues.get_mut(name) else { return };
            if queue.kind == QueueType::Quorum {
                queue.forget_who_left();
            }
            if queue.ready.is_empty() {
                return;
            }
            let Some(consumer) = self.next_consumer(name) else { return };
            let Some(entry) = self.queues.get_mut(name).and_then(|queue| queue.ready.pop()) else { return };
            self.hand_out(name, &consumer, entry);
        }
    }

    /// Whose turn it is, of those who can take a message.
    pub(super) fn next_consumer(&mut self, name: &Name) -> Option<Consumer> {
        let Vhost { queues, channels, sessions, .. } = self;
        let queue = queues.get_mut(name)?;
        // The limit of a channel is for its consumers of classic queues.
        let is_quorum = queue.kind == QueueType::Quorum;
        queue.consumers.next(|consumer| {
            let writable = sessions.get(&consumer.channel.session).is_none_or(|session| session.writable);
            let opened = channels.get(&consumer.channel).filter(|_| writable);
            let own = opened.and_then(|opened| Some((opened, opened.consumers.get(&consumer.tag)?)));
            match own.filter(|(_, own)| !own.is_full()) {
                None => Room::None,
                Some((opened, _)) if !is_quorum && opened.is_limited() => Room::NoneInChannel,
                Some(_) => Room::Some,
            }
        })
    }

    /// Gives a message of a queue to a consumer.
    pub(super) fn hand_out(&mut self, name: &Name, consumer: &Consumer, mut entry: Entry) {
        let emulate = self.emulate();
        let Some(queue) = self.queues.get_mut(name) else { return };
        let is_quorum = queue.kind == QueueType::Quorum;
        if is_quorum {
            let Consumer { channel, ref tag, attached, .. } = *consumer;
            entry.holder = Some(Box::new(Holder { channel, tag: tag.clone(), fetched: false, attached }));
        }
        let (queue_id, sequence, redelivered) = (queue.id, entry.sequence, entry.redelivered);
        let payload = entry.delivered(queue.kind, emulate);
        if !consumer.no_ack {
            queue.unacked.insert(sequence, entry);
        }
        let unacked =
            Unacked { queue: name.clone(), queue_id, sequence, consumer: Some(consumer.tag.clone()) };
        self.deliver_to(consumer.clone(), unacked, redelivered, payload);
        if is_quorum {
            self.set_aside_if_full(name, consumer);
        }
        self.expire_messages(name);
    }

    /// Who is full loses the place in line: at once in a quorum queue, in others when it would be its turn.
    fn set_aside_if_full(&mut self, name: &Name, consumer: &Consumer) {
        let opened = self.channels.get(&consumer.channel);
        let is_full = opened
            .and_then(|opened| opened.consumers.get(&consumer.tag))
            .is_some_and(ChannelConsumer::is_full);
        if let Some(queue) = self.queues.get_mut(name).filter(|_| is_full) {
            queue.consumers.set_aside(consumer);
        }
    }

    /// Counts a delivery and sends it.
    pub(super) fn deliver_to(
        &mut self,
        consumer: Consumer,
        unacked: Unacked,
        redelivered: bool,
        payload: super::Payload,
    ) {
        let Some(opened) = self.channels.get_mut(&consumer.channel) else { return };
        let delivery_tag = opened.next_tag();
        if !consumer.no_ack {
            if let Some(own) = opened.consumers.get_mut(&consumer.tag) {
                own.outstanding += 1;
            }
            let queue = self.queues.get(&unacked.queue);
            let counts = queue.is_some_and(|queue| queue.kind == QueueType::Classic);
            if opened.global_prefetch != 0 && counts {
                opened.volume += 1;
            }
            opened.unacked.insert(delivery_tag, unacked);
        }
        let Consumer { channel, tag: consumer_tag, .. } = consumer;
        if let Some(session) = self.sessions.get_mut(&channel.session) {
            // The size of the frames around it, roughly.
            let size = payload.body.len() + payload.properties.len() + 128;
            session.budget = session.budget.saturating_sub(size);
            if session.budget == 0 && std::mem::replace(&mut session.writable, false) {
                self.sated.push(channel.session);
            }
        }
        self.effects.push(Effect::Deliver { channel, consumer_tag, delivery_tag, redelivered, payload });
    }
}
