//! A peer's channel: its consumers, how much each may have, and what is not settled. Pure state, no locks.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::consumer::{Outcome, Settled};
use crate::{
    broker::model::{Name, Refusal},
    error::{Departure, Error},
    protocol::value::FieldTable,
    sync::Latch,
};

/// A channel for as long as it is open: numbers are used again, generations are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::broker) struct Place {
    pub(in crate::broker) channel: u16,
    pub(super) generation: u64,
}

/// A consumer of the peer's, for as long as anybody remembers it.
#[derive(Debug)]
pub(in crate::broker) struct Subscription {
    pub(super) place: Place,
    pub(super) queue: Name,
    pub(in crate::broker) tag: Name,
    pub(super) no_ack: bool,
    pub(super) arguments: FieldTable,
    /// How many messages it may have that are not settled; 0 is no limit.
    prefetch: usize,
    /// How many it has.
    unsettled: AtomicUsize,
    pub(super) ended: Latch<Departure>,
}

/// What a peer asks for with `basic.consume`.
#[derive(Debug)]
pub(in crate::broker) struct Wanted<'a> {
    pub(in crate::broker) queue: Name,
    pub(in crate::broker) tag: &'a [u8],
    pub(in crate::broker) no_ack: bool,
    pub(in crate::broker) arguments: FieldTable,
}

#[derive(Debug)]
struct Unsettled {
    subscription: Arc<Subscription>,
    outcome: Arc<Outcome>,
}

impl Unsettled {
    fn settle(self) -> Arc<Outcome> {
        self.subscription.unsettled.fetch_sub(1, Ordering::Relaxed);
        self.outcome
    }
}

/// An open channel.
#[derive(Debug, Default)]
pub(super) struct Channel {
    pub(super) generation: u64,
    pub(super) confirms: bool,
    pub(super) published: u64,
    /// For consumers to come.
    prefetch: usize,
    /// For all consumers of the channel together; 0 is no limit.
    shared_prefetch: usize,
    last_tag: u64,
    /// How many tags of consumers were made up.
    made_up: u64,
    unsettled: BTreeMap<u64, Unsettled>,
    consumers: HashMap<Name, Arc<Subscription>>,
    /// What an empty name stands for.
    pub(super) last_queue: Option<Name>,
}

impl Channel {
    pub(super) fn new(generation: u64) -> Channel {
        Channel { generation, ..Channel::default() }
    }

    pub(super) fn qos(&mut self, count: u16, shared: bool) {
        if shared {
            self.shared_prefetch = count.into();
        } else {
            self.prefetch = count.into();
        }
    }

    /// # Errors
    /// 530: the tag is in use.
    pub(super) fn subscribe(
        &mut self,
        number: u16,
        wanted: Wanted<'_>,
    ) -> Result<Arc<Subscription>, Refusal> {
        let tag = if wanted.tag.is_empty() {
            self.made_up += 1;
            Name::from(format!("amq.ctag-{}-{}", self.generation, self.made_up))
        } else {
            Name::from(wanted.tag)
        };
        if self.consumers.contains_key(&tag) {
            return Err(Refusal::not_allowed(format_args!("attempt to reuse consumer tag '{tag}'")));
        }
        let subscription = Arc::new(Subscription {
            place: Place { channel: number, generation: self.generation },
            queue: wanted.queue,
            tag: tag.clone(),
            no_ack: wanted.no_ack,
            arguments: wanted.arguments,
            prefetch: self.prefetch,
            unsettled: AtomicUsize::new(0),
            ended: Latch::default(),
        });
        self.consumers.insert(tag, subscription.clone());
        Ok(subscription)
    }

    /// The consumer with this tag is no more. What it has can still be settled.
    pub(super) fn cancel(&mut self, tag: &[u8]) -> Option<Arc<Subscription>> {
        self.consumers.remove(tag)
    }

    pub(super) fn consumers(&self) -> impl Iterator<Item = &Arc<Subscription>> {
        self.consumers.values()
    }

    pub(super) fn has_room(&self, subscription: &Arc<Subscription>) -> bool {
        if subscription.no_ack {
            return true;
        }
        let its = subscription.unsettled.load(Ordering::Relaxed);
        (self.shared_prefetch == 0 || self.unsettled.len() < self.shared_prefetch)
            && (subscription.prefetch == 0 || its < subscription.prefetch)
    }

    /// Gives the next delivery its tag.
    pub(super) fn deliver(&mut self, subscription: &Arc<Subscription>) -> (u64, Arc<Outcome>) {
        self.last_tag += 1;
        let outcome = Arc::new(Outcome::default());
        if subscription.no_ack {
            outcome.put(Ok(Settled::Untracked));
        } else {
            let unsettled = Unsettled { subscription: subscription.clone(), outcome: outcome.clone() };
            subscription.unsettled.fetch_add(1, Ordering::Relaxed);
            self.unsettled.insert(self.last_tag, unsettled);
        }
        (self.last_tag, outcome)
    }

    /// The outcomes that are known now. Zero with `multiple` means all.
    ///
    /// # Errors
    /// 406: nothing with this tag is to be settled.
    pub(super) fn settle(&mut self, tag: u64, multiple: bool) -> Result<Vec<Arc<Outcome>>, Refusal> {
        if tag == 0 && multiple {
            return Ok(self.settle_all());
        }
        if !self.unsettled.contains_key(&tag) {
            return Err(Refusal::precondition(format_args!("unknown delivery tag {tag}")));
        }
        if !multiple {
            return Ok(self.unsettled.remove(&tag).map(Unsettled::settle).into_iter().collect());
        }
        let rest = self.unsettled.split_off(&(tag + 1));
        let settled = std::mem::replace(&mut self.unsettled, rest);
        Ok(settled.into_values().map(Unsettled::settle).collect())
    }

    pub(super) fn settle_all(&mut self) -> Vec<Arc<Outcome>> {
        std::mem::take(&mut self.unsettled).into_values().map(Unsettled::settle).collect()
    }

    /// Nothing more is sent on this channel, nor settled.
    pub(super) fn end(&mut self, why: Departure) {
        for (_, subscription) in self.consumers.drain() {
            subscription.ended.put(why);
        }
        for outcome in self.settle_all() {
            outcome.put(Err(Error::Departed(why)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribe(channel: &mut Channel, no_ack: bool) -> Arc<Subscription> {
        let wanted = Wanted { queue: "q".into(), tag: b"", no_ack, arguments: FieldTable::new() };
        channel.subscribe(1, wanted).unwrap()
    }

    #[test]
    fn a_consumer_gets_what_its_prefetch_allows() {
        let mut channel = Channel::new(1);
        channel.qos(2, false);
        let (one, other) = (subscribe(&mut channel, false), subscribe(&mut channel, false));
        let free = subscribe(&mut channel, true);
        for _ in 0..2 {
            assert!(channel.has_room(&one));
            channel.deliver(&one);
        }
        assert!(!channel.has_room(&one) && channel.has_room(&other) && channel.has_room(&free));
        channel.qos(2, true);
        assert!(!channel.has_room(&other) && channel.has_room(&free));
        channel.settle(1, false).unwrap();
        assert!(channel.has_room(&one) && channel.has_room(&other));
    }

    #[test]
    fn what_is_settled_is_settled_once() {
        let mut channel = Channel::new(1);
        let consumer = subscribe(&mut channel, false);
        for _ in 0..5 {
            channel.deliver(&consumer);
        }
        assert_eq!(channel.settle(3, true).unwrap().len(), 3);
        assert!(channel.settle(3, true).is_err() && channel.settle(1, false).is_err());
        assert_eq!(channel.settle(5, false).unwrap().len(), 1);
        assert_eq!(channel.settle(0, true).unwrap().len(), 1);
        assert_eq!(channel.settle(0, true).unwrap().len(), 0);
        assert!(channel.settle(0, false).is_err());
    }

    #[test]
    fn a_tag_is_used_once_at_a_time() {
        let mut channel = Channel::new(1);
        let wanted = || Wanted { queue: "q".into(), tag: b"t", no_ack: false, arguments: FieldTable::new() };
        channel.subscribe(1, wanted()).unwrap();
        assert!(channel.subscribe(1, wanted()).is_err());
        channel.cancel(b"t").unwrap();
        channel.subscribe(1, wanted()).unwrap();
    }
}
