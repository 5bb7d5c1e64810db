//! An exchange and its bindings.

use std::collections::{BTreeMap, HashMap};

use super::{Emulate, Name, headers, message::Message, topic::TopicTrie};
use crate::protocol::value::{FieldTable, FieldValue};

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    Fanout,
    Topic,
    Headers,
}

impl Kind {
    pub(crate) fn from_name(name: &[u8]) -> Option<Kind> {
        match name {
            b"direct" => Some(Kind::Direct),
            b"fanout" => Some(Kind::Fanout),
            b"topic" => Some(Kind::Topic),
            b"headers" => Some(Kind::Headers),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Direct => "direct",
            Kind::Fanout => "fanout",
            Kind::Topic => "topic",
            Kind::Headers => "headers",
        }
    }
}

/// Where a binding leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Destination {
    Queue(Name),
    Exchange(Name),
}

/// A key and arguments with which a destination is bound.
type Key = (Name, FieldTable);

/// An exchange with everything that is bound to it.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) kind: Kind,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) internal: bool,
    pub(super) arguments: FieldTable,
    /// Every binding; arguments are sorted by name.
    bindings: BTreeMap<Destination, Vec<Key>>,
    by_key: HashMap<Name, Vec<Destination>>,
    topics: TopicTrie,
}

impl Exchange {
    pub(super) fn new(kind: Kind) -> Exchange {
        Exchange {
            kind,
            durable: false,
            auto_delete: false,
            internal: false,
            arguments: FieldTable::new(),
            bindings: BTreeMap::new(),
            by_key: HashMap::new(),
            topics: TopicTrie::default(),
        }
    }

    /// Where messages go that match no binding.
    pub(super) fn alternate(&self) -> Option<&[u8]> {
        match self.arguments.get("alternate-exchange") {
            Some(FieldValue::LongString(name)) => Some(name),
            _ => None,
        }
    }

    pub(super) fn has_bindings(&self) -> bool {
        !self.bindings.is_empty()
    }

    /// Every binding with its destination.
    pub(super) fn bindings(&self) -> impl Iterator<Item = (&Destination, &Name, &FieldTable)> {
        self.bindings
            .iter()
            .flat_map(|(destination, keys)| keys.iter().map(move |(key, args)| (destination, key, args)))
    }

    /// Says whether the binding is new.
    pub(super) fn bind(&mut self, destination: Destination, key: Name, arguments: FieldTable) -> bool {
        let keys = self.bindings.entry(destination.clone()).or_default();
        if keys.iter().any(|(known, args)| *known == key && *args == arguments) {
            return false;
        }
        keys.push((key.clone(), arguments));
        match self.kind {
            Kind::Direct => self.by_key.entry(key).or_default().push(destination),
            Kind::Topic => self.topics.insert(&key, destination),
            Kind::Fanout | Kind::Headers => {}
        }
        true
    }

    pub(super) fn leads_to(&self, destination: &Destination) -> bool {
        self.bindings.contains_key(destination)
    }

    pub(super) fn has(&self, destination: &Destination, key: &[u8], arguments: &FieldTable) -> bool {
        let same = |(known, args): &Key| **known == *key && args == arguments;
        self.bindings.get(destination).is_some_and(|keys| keys.iter().any(same))
    }

    /// Says whether there was such a binding.
    pub(super) fn unbind(&mut self, destination: &Destination, key: &[u8], arguments: &FieldTable) -> bool {
        let Some(keys) = self.bindings.get_mut(destination) else { return false };
        let Some(place) = keys.iter().position(|(known, args)| **known == *key && args == arguments) else {
            return false;
        };
        keys.remove(place);
        if keys.is_empty() {
            self.bindings.remove(destination);
        }
        self.forget(destination, key);
        true
    }

    /// Removes every binding of a destination.
    pub(super) fn unbind_all(&mut self, destination: &Destination) {
        for (key, _) in self.bindings.remove(destination).unwrap_or_default() {
            self.forget(destination, &key);
        }
    }

    /// Takes a binding out of what routing looks at.
    fn forget(&mut self, destination: &Destination, key: &[u8]) {
        match self.kind {
            Kind::Direct => {
                let Some(bound) = self.by_key.get_mut(key) else { return };
                if let Some(place) = bound.iter().position(|known| known == destination) {
                    bound.swap_remove(place);
                }
                if bound.is_empty() {
                    self.by_key.remove(key);
                }
            }
            Kind::Topic => self.topics.remove(key, destination),
            Kind::Fanout | Kind::Headers => {}
        }
    }

    /// Every destination of a message, perhaps more than once.
    pub(super) fn route(&self, message: &Message, emulate: Emulate) -> Vec<Destination> {
        let mut found = Vec::new();
        match self.kind {
            Kind::Direct => {
                let bound = message.routing_keys.iter().filter_map(|key| self.by_key.get(key));
                found.extend(bound.flatten().cloned());
            }
            Kind::Fanout => found.extend(self.bindings.keys().cloned()),
            Kind::Topic => message.routing_keys.iter().for_each(|key| self.topics.matches(key, &mut found)),
            Kind::Headers => {
                let mut headers = message.headers().unwrap_or_default();
                if !message.deaths.is_empty() {
                    // 4.x keeps them elsewhere.
                    headers.remove("x-death");
                }
                let matching = self.bindings.iter().filter(|(_, keys)| {
                    keys.iter().any(|(_, arguments)| headers::matches(arguments, &headers, emulate))
                });
                found.extend(matching.map(|(destination, _)| destination.clone()));
            }
        }
        found
    }
}
