//! Acks, rejections and requeues; recover; transactions.

use std::collections::BTreeMap;

use super::{
    ChannelId, Effect, Emulate, Name, Refusal,
    arguments::QueueType,
    channel::{Mode, Settlement, Transaction, Unacked},
    dead_letter::Reason,
    ready::Entry,
    vhost::Vhost,
};

type Result<T> = std::result::Result<T, Refusal>;

/// Deliveries of one queue, by their places there; a queue is its name and its id.
type ByQueue = BTreeMap<(Name, u64), Vec<u64>>;

/// What RabbitMQ settles in one go, in its order: what was fetched one by one, then the deliveries of each consumer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Fetched(u64),
    Consumer(Name),
}

/// Settling deliveries.
impl Vhost {
    pub(crate) fn ack(&mut self, channel: ChannelId, delivery_tag: u64, multiple: bool) -> Result<()> {
        self.settle(channel, delivery_tag, multiple, Settlement::Ack)
    }

    /// `basic.nack`, and `basic.reject` with `multiple` false.
    pub(crate) fn nack(
        &mut self,
        channel: ChannelId,
        delivery_tag: u64,
        multiple: bool,
        requeue: bool,
    ) -> Result<()> {
        let settlement = if requeue { Settlement::Requeue } else { Settlement::Discard };
        self.settle(channel, delivery_tag, multiple, settlement)
    }

    fn settle(&mut self, channel: ChannelId, tag: u64, multiple: bool, settlement: Settlement) -> Result<()> {
        let opened = self.channel(channel)?;
        let taken = opened.take_unacked(tag, multiple)?;
        if let Mode::Transaction(transaction) = &mut self.channel(channel)?.mode {
            transaction.settle(settlement, taken);
            return Ok(());
        }
        if let Err(refusal) = self.check_not_stream(settlement, &taken) {
            // It goes back to its queues with the channel.
            self.channel(channel)?.unacked.extend(taken);
            return Err(refusal);
        }
        self.settle_all(channel, settlement, taken);
        self.send_letters();
        Ok(())
    }

    /// A stream keeps its messages: nothing can be given back. To 4.x that is an ack.
    fn check_not_stream(&self, settlement: Settlement, taken: &[(u64, Unacked)]) -> Result<()> {
        if settlement == Settlement::Ack || self.emulate() != Emulate::RabbitMq3 {
            return Ok(());
        }
        match taken.iter().find(|(_, unacked)| self.is_stream(&unacked.queue)) {
            Some((_, unacked)) => Err(Refusal::not_implemented(format!(
                "basic.nack and basic.reject not supported by stream queues {}",
                self.queue_text(&unacked.queue)
            ))),
            None => Ok(()),
        }
    }

    fn is_stream(&self, name: &Name) -> bool {
        self.queues.get(name).is_some_and(|queue| queue.stream.is_some())
    }

    /// `basic.recover`, whose answer is an effect.
    pub(crate) fn recover(&mut self, channel: ChannelId, requeue: bool) -> Result<()> {
        let before = self.effects.len();
        self.recover_async(channel, requeue)?;
        self.answer(before, Effect::Recovered { channel });
        Ok(())
    }

    /// `basic.recover-async`: everything unacked of the channel is requeued.
    pub(crate) fn recover_async(&mut self, channel: ChannelId, requeue: bool) -> Result<()> {
        if !requeue {
            return Err(Refusal::not_implemented("requeue=false"));
        }
        let taken = std::mem::take(&mut self.channel(channel)?.unacked);
        let (read, taken): (Vec<_>, Vec<_>) =
            taken.into_iter().partition(|(_, unacked)| self.is_stream(&unacked.queue));
        self.settle_all(channel, Settlement::Requeue, taken);
        // What there is in streams now RabbitMQ's channel sends to the last consumer first.
        let mut by_consumer = BTreeMap::<_, Vec<_>>::new();
        for (tag, unacked) in read {
            let consumer = (unacked.queue.clone(), unacked.consumer.clone());
            by_consumer.entry(consumer).or_default().push((tag, unacked));
        }
        for taken in by_consumer.into_values().rev() {
            self.settle_all(channel, Settlement::Requeue, taken);
        }
        self.send_letters();
        Ok(())
    }

    fn settle_all(&mut self, channel: ChannelId, settlement: Settlement, taken: Vec<(u64, Unacked)>) {
        let mut groups = BTreeMap::<_, Vec<u64>>::new();
        let mut consumed = 0u32;
        for (tag, unacked) in taken {
            consumed += u32::from(unacked.consumer.is_some());
            let source = unacked.consumer.map_or(Source::Fetched(tag), Source::Consumer);
            groups.entry((unacked.queue, source, unacked.queue_id)).or_default().push(unacked.sequence);
        }
        // The limit of the channel is told at once, but those that waited for it are told last.
        self.release_channel(channel, consumed);
        for ((name, source, id), places) in groups {
            let has_room = self.release_consumer(channel, &source, id, places.len());
            let Some(queue) = self.queues.get_mut(&name).filter(|queue| queue.id == id) else { continue };
            let mut entries: Vec<Entry> =
                places.iter().filter_map(|sequence| queue.unacked.remove(sequence)).collect();
            queue.ready.sort_by_level(&mut entries);
            // Who was waiting for room gets in line before anything is handed out.
            if has_room {
                self.line_up_again(&name, channel);
            }
            match settlement {
                Settlement::Ack => {}
                Settlement::Discard => {
                    entries.iter().for_each(|entry| self.give_up(&name, entry, Reason::Rejected));
                }
                Settlement::Requeue => self.requeue(&name, entries, Some((channel, &source))),
            }
            let is_quorum = self.queues.get(&name).is_some_and(|queue| queue.kind == QueueType::Quorum);
            if has_room || is_quorum || settlement == Settlement::Requeue {
                self.run(&name);
            }
        }
        self.end_suspension(channel);
    }

    /// Deliveries of a channel that is gone.
    pub(super) fn give_back(&mut self, unacked: Vec<(u64, Unacked)>) {
        let emulate = self.emulate();
        for ((name, id), places) in by_queue(&unacked) {
            let Some(queue) = self.queues.get_mut(&name).filter(|queue| queue.id == id) else { continue };
            let mut entries: Vec<Entry> =
                places.iter().filter_map(|sequence| queue.unacked.remove(sequence)).collect();
            // A quorum queue takes back consumer by consumer.
            match emulate {
                Emulate::RabbitMq3 => entries.sort_by(|one, other| one.holder_tag().cmp(&other.holder_tag())),
                Emulate::RabbitMq4 => {
                    entries.sort_by(|one, other| one.holder_place().cmp(&other.holder_place()))
                }
            }
            self.requeue(&name, entries, None);
            self.run(&name);
        }
    }

    /// Puts messages back. A quorum queue counts how often they came, and gives up in the end. What is too many or
    /// too old then goes. Nobody gives them back when their channel is gone.
    fn requeue(&mut self, name: &Name, entries: Vec<Entry>, from: Option<(ChannelId, &Source)>) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        let came_back = entries.into_iter().map(|mut entry| {
            entry.redelivered = true;
            entry.holder = None;
            entry.returns = entry.returns.saturating_add(1);
            entry
        });
        if queue.kind != QueueType::Quorum {
            queue.ready.put_back(came_back.collect());
            self.drop_surplus(name);
            self.expire_messages(name);
            return;
        }
        let mut given_up = Vec::new();
        for mut entry in came_back {
            match queue.delivery_limit {
                Some(limit) if entry.returns > limit => given_up.push(entry),
                // Without a limit a message that nobody wants must not be in the way of the others.
                None if from.is_some() => {
                    entry.sequence = queue.next_sequence();
                    entry.is_normal = true;
                    queue.ready.push(entry);
                }
                _ => queue.ready.put_first(entry),
            }
        }
        given_up.iter().for_each(|entry| self.give_up(name, entry, Reason::DeliveryLimit));
        if let Some((channel, Source::Consumer(tag))) = from {
            self.credit_again(channel, tag, given_up.len());
        }
        // What has expired goes before anybody gets it, but only what nobody takes can be too many.
        self.expire_messages(name);
        self.run(name);
        self.drop_surplus(name);
        self.expire_messages(name);
    }

    /// Deliveries do not count against their consumer's limit any more. Says whether it was full.
    fn release_consumer(&mut self, channel: ChannelId, source: &Source, queue_id: u64, count: usize) -> bool {
        let Source::Consumer(tag) = source else { return false };
        let Some(opened) = self.channels.get_mut(&channel) else { return false };
        let Some(consumer) = opened.consumers.get_mut(tag) else { return false };
        // A later consumer may have the same tag.
        if consumer.queue_id != queue_id {
            return false;
        }
        let was_full = consumer.is_full();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // What an earlier consumer of the same tag had is room for one more to this one, for good.
        let surplus = u16::try_from(count.saturating_sub(consumer.outstanding)).unwrap_or(u16::MAX);
        consumer.outstanding = consumer.outstanding.saturating_sub(count);
        consumer.add_room(surplus);
        was_full
    }

    /// In 3.x whoever gives back what is given up then has room for one more than before, for good.
    fn credit_again(&mut self, channel: ChannelId, tag: &Name, count: usize) {
        if self.emulate() != Emulate::RabbitMq3 {
            return;
        }
        let consumer = self.channels.get_mut(&channel).and_then(|opened| opened.consumers.get_mut(tag));
        if let Some(consumer) = consumer {
            consumer.add_room(u16::try_from(count).unwrap_or(u16::MAX));
        }
    }

    /// The same for the limit of the channel. What never counted there makes room for more.
    fn release_channel(&mut self, channel: ChannelId, count: u32) {
        if let Some(opened) = self.channels.get_mut(&channel).filter(|opened| opened.volume != 0) {
            opened.volume -= i64::from(count);
        }
    }
}

/// Confirms and transactions.
impl Vhost {
    pub(crate) fn select_confirms(&mut self, channel: ChannelId) -> Result<()> {
        let mode = &mut self.channel(channel)?.mode;
        match mode {
            Mode::Transaction(_) => Err(Refusal::precondition("cannot switch from tx to confirm mode")),
            Mode::Confirm(_) => Ok(()),
            Mode::Plain => {
                *mode = Mode::Confirm(0);
                Ok(())
            }
        }
    }

    pub(crate) fn select_transactions(&mut self, channel: ChannelId) -> Result<()> {
        let mode = &mut self.channel(channel)?.mode;
        match mode {
            Mode::Confirm(_) => Err(Refusal::precondition("cannot switch from confirm to tx mode")),
            Mode::Transaction(_) => Ok(()),
            Mode::Plain => {
                *mode = Mode::Transaction(Transaction::default());
                Ok(())
            }
        }
    }

    /// The answer is an effect: it comes after what is returned, and before what the queues deliver.
    pub(crate) fn commit(&mut self, channel: ChannelId) -> Result<()> {
        let Transaction { publishes, settlements } = self.transaction(channel)?;
        let before = self.effects.len();
        let accepted = match self.deliver_all(channel, publishes) {
            Ok(accepted) => accepted,
            Err(refusal) => {
                let settled = settlements.into_iter().flat_map(|(_, taken)| taken);
                self.channel(channel)?.unacked.extend(settled);
                return Err(refusal);
            }
        };
        // The channel gives back what nobody takes while its queues are still busy.
        let mut effects = self.effects.split_off(before);
        effects.sort_by_key(|effect| !matches!(effect, Effect::Return { .. }));
        let returned = effects.partition_point(|effect| matches!(effect, Effect::Return { .. }));
        let answer = before + returned;
        self.effects.append(&mut effects);
        // A classic queue of RabbitMQ takes acks before whatever else waits for it.
        let is_classic = |unacked: &Unacked| {
            self.queues.get(&unacked.queue).is_some_and(|queue| queue.kind == QueueType::Classic)
        };
        let (mut acks, mut others) = (Vec::new(), Vec::new());
        for (settlement, mut taken) in settlements {
            // In the order of the deliveries, whatever that of their settlement was.
            taken.sort_unstable_by_key(|(tag, _)| *tag);
            let (first, rest): (Vec<_>, Vec<_>) = taken
                .into_iter()
                .partition(|(_, unacked)| settlement == Settlement::Ack && is_classic(unacked));
            acks.push((settlement, first));
            others.push((settlement, rest));
        }
        let mut rest = acks.into_iter().chain(others);
        while let Some((settlement, taken)) = rest.next() {
            if let Err(refusal) = self.check_not_stream(settlement, &taken) {
                let settled = taken.into_iter().chain(rest.flat_map(|(_, taken)| taken));
                self.channel(channel)?.unacked.extend(settled);
                return Err(refusal);
            }
            self.settle_all(channel, settlement, taken);
        }
        self.send_letters();
        if !accepted {
            return Err(Refusal::precondition("partial tx completion"));
        }
        self.answer(answer, Effect::Committed { channel });
        Ok(())
    }

    /// Puts an answer before all effects from this place on but what streams deliver to consumers of its channel: those
    /// are read by RabbitMQ's channel itself, while queues need time to answer it.
    fn answer(&mut self, place: usize, answer: Effect) {
        let mut effects = self.effects.split_off(place);
        let to = answer.channel();
        let is_read = |effect: &Effect| {
            let Effect::Deliver { channel, consumer_tag, .. } = effect else { return false };
            let opened = self.channels.get(channel).filter(|_| *channel == to);
            let consumer = opened.and_then(|opened| opened.consumers.get(consumer_tag));
            let queue = consumer.and_then(|consumer| self.queues.get(&consumer.queue));
            queue.is_some_and(|queue| queue.stream.is_some())
        };
        effects.sort_by_key(|effect| !is_read(effect));
        let read = effects.partition_point(is_read);
        effects.insert(read, answer);
        self.effects.append(&mut effects);
    }

    /// What was settled since the last commit is unacked again; nothing is requeued.
    pub(crate) fn rollback(&mut self, channel: ChannelId) -> Result<()> {
        let transaction = self.transaction(channel)?;
        let settled = transaction.settlements.into_iter().flat_map(|(_, taken)| taken);
        self.channel(channel)?.unacked.extend(settled);
        Ok(())
    }

    fn transaction(&mut self, channel: ChannelId) -> Result<Transaction> {
        match &mut self.channel(channel)?.mode {
            Mode::Transaction(transaction) => Ok(std::mem::take(transaction)),
            _ => Err(Refusal::precondition("channel is not transactional")),
        }
    }
}

fn by_queue(unacked: &[(u64, Unacked)]) -> ByQueue {
    let mut queues = ByQueue::new();
    for (_, delivery) in unacked {
        let queue = (delivery.queue.clone(), delivery.queue_id);
        queues.entry(queue).or_default().push(delivery.sequence);
    }
    queues
}
