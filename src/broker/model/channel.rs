//! A channel: its consumers, what it has to settle, and its mode.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{
    Name, Refusal,
    arguments::QueueType,
    message::{Charge, Message},
};

/// A delivery that is not settled.
#[derive(Debug, Clone)]
pub(super) struct Unacked {
    pub(super) queue: Name,
    pub(super) queue_id: u64,
    pub(super) sequence: u64,
    /// `None`: it was fetched by `basic.get`.
    pub(super) consumer: Option<Name>,
}

/// A consumer, as its channel knows it.
#[derive(Debug)]
pub(super) struct ChannelConsumer {
    pub(super) queue: Name,
    pub(super) queue_id: u64,
    pub(super) no_ack: bool,
    /// 0: no limit.
    pub(super) prefetch: u16,
    pub(super) outstanding: u32,
}

impl ChannelConsumer {
    /// One that does not ack has only what it held before, as a consumer of a quorum queue with the same tag that did.
    pub(super) fn is_full(&self) -> bool {
        self.prefetch != 0 && self.outstanding >= self.prefetch.into()
    }

    /// Raises the limit, if there is one.
    pub(super) fn add_room(&mut self, count: u16) {
        if self.prefetch != 0 {
            self.prefetch = self.prefetch.saturating_add(count);
        }
    }
}

/// The consumer of direct replies.
#[derive(Debug, Clone)]
pub(super) struct ReplyConsumer {
    pub(super) tag: Name,
    /// What `reply-to` becomes.
    pub(super) address: Name,
}

/// What a client does with deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settlement {
    Ack,
    Requeue,
    Discard,
}

/// A message that waits for the commit.
#[derive(Debug)]
pub(super) struct Uncommitted {
    pub(super) message: Arc<Message>,
    pub(super) mandatory: bool,
    pub(super) to: Destinations,
    /// Of the destinations.
    pub(super) charge: Charge,
}

/// The queues that a message of a transaction was routed to.
#[derive(Debug)]
pub(super) enum Destinations {
    /// RabbitMQ 3 looks for them at the commit.
    Named(Vec<Name>),
    /// RabbitMQ 4 finds them when the message is published.
    Found(Vec<Found>),
}

impl Destinations {
    pub(super) fn found(&self) -> &[Found] {
        match self {
            Destinations::Named(_) => &[],
            Destinations::Found(found) => found,
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        let named = match self {
            Destinations::Named(names) => &names[..],
            Destinations::Found(_) => &[],
        };
        named.iter().chain(self.found().iter().map(|found| &found.name))
    }
}

/// A queue as it was when a message was published. Another of the same name does not stand in for it, unless they are
/// quorum queues, which have nothing but their names.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: Name,
    pub(super) id: u64,
    /// The commit fails without a classic queue or a stream; a quorum queue is not missed.
    pub(super) kind: QueueType,
}

impl Found {
    /// Whether a later queue of the same name, of this type, gets what was meant for this one.
    pub(super) fn is_also(&self, later: QueueType) -> bool {
        self.kind == QueueType::Quorum && later == QueueType::Quorum
    }
}

/// What a transaction has gathered.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    pub(super) publishes: Vec<Uncommitted>,
    /// What was settled alike without anything else in between is settled together.
    pub(super) settlements: Vec<(Settlement, Vec<(u64, Unacked)>)>,
}

impl Transaction {
    pub(super) fn settle(&mut self, settlement: Settlement, mut taken: Vec<(u64, Unacked)>) {
        match self.settlements.last_mut() {
            Some((last, gathered)) if *last == settlement => gathered.append(&mut taken),
            _ => self.settlements.push((settlement, taken)),
        }
    }
}

/// Publishes are confirmed, or gathered, or neither.
#[derive(Debug, Default)]
pub(super) enum Mode {
    #[default]
    Plain,
    /// With the number of the last publish.
    Confirm(u64),
    Transaction(Transaction),
}

/// A channel.
#[derive(Debug, Default)]
pub(super) struct Channel {
    pub(super) mode: Mode,
    /// `None`: no queue was declared yet.
    pub(super) last_queue: Option<Name>,
    pub(super) consumers: HashMap<Name, ChannelConsumer>,
    pub(super) reply_consumer: Option<ReplyConsumer>,
    pub(super) unacked: BTreeMap<u64, Unacked>,
    /// For consumers to come; 0: no limit.
    pub(super) prefetch: u16,
    /// For all consumers together; 0: no limit.
    pub(super) global_prefetch: u16,
    /// What counts against `global_prefetch`. Less than nothing after more was settled than was counted.
    pub(super) volume: i64,
    /// The queues that know it as one of their `publishers`.
    pub(super) publishes_to: HashSet<Name>,
    last_tag: u64,
}

impl Channel {
    pub(super) fn next_tag(&mut self) -> u64 {
        self.last_tag += 1;
        self.last_tag
    }

    /// What [`next_tag`](Channel::next_tag) will give.
    pub(super) fn tag_to_come(&self) -> u64 {
        self.last_tag + 1
    }

    pub(super) fn is_limited(&self) -> bool {
        self.global_prefetch != 0 && self.volume >= self.global_prefetch.into()
    }

    /// Takes all deliveries for which no settlement has taken effect: nothing of a transaction that was not committed has, the
    /// acks neither.
    pub(super) fn everything_unacked(&mut self) -> Vec<(u64, Unacked)> {
        let mut unacked = std::mem::take(&mut self.unacked);
        if let Mode::Transaction(transaction) = &mut self.mode {
            let settlements = std::mem::take(&mut transaction.settlements);
            unacked.extend(settlements.into_iter().flat_map(|(_, taken)| taken));
        }
        unacked.into_iter().collect()
    }

    /// The deliveries that a tag means, oldest first. They are not unacked any more.
    pub(super) fn take_unacked(&mut self, tag: u64, multiple: bool) -> Result<Vec<(u64, Unacked)>, Refusal> {
        if multiple && tag == 0 {
            return Ok(std::mem::take(&mut self.unacked).into_iter().collect());
        }
        let Some(single) = self.unacked.remove(&tag) else {
            return Err(Refusal::precondition(format!("unknown delivery tag {tag}")));
        };
        if !multiple {
            return Ok(vec![(tag, single)]);
        }
        let later = self.unacked.split_off(&tag);
        let mut taken: Vec<_> = std::mem::replace(&mut self.unacked, later).into_iter().collect();
        taken.push((tag, single));
        Ok(taken)
    }
}
