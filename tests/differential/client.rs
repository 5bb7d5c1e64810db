//! One connection of a sequence with its channels: what it asks, and all that it hears.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    Target,
    common::peer::*,
    operation::{CHANNELS, Words},
    shown::{closed, content_text, masked, reply_address},
    wire::{Received, Wire},
};

/// Every queue that may exist. The channel 10 + index asks about it.
pub const QUEUES: [&str; 6] = ["q0", "q1", "q2", "d0", "d1", "d2"];

pub struct Connection {
    pub name: char,
    pub wire: Wire,
    channels: BTreeMap<u16, Channel>,
    /// Answers that came while one on another channel was waited for.
    early: Vec<Received>,
    /// Channels that the broker has closed since something was asked there.
    refused: BTreeSet<u16>,
    /// What the broker said when it closed the connection.
    pub closed: Option<String>,
    /// The last address for direct replies that came in a message.
    pub reply_address: Option<String>,
}

/// What the client knows of a channel, and what it heard there.
#[derive(Default)]
pub struct Channel {
    pub unacked: Vec<u64>,
    /// Which consumer each delivery was for, if it was for one, and which queue it came from.
    sources: BTreeMap<u64, (Option<String>, String)>,
    /// Deliveries from queues that are gone.
    lost: BTreeSet<u64>,
    /// The queue of each consumer.
    pub queues: HashMap<String, String>,
    /// The queue that a message was fetched from last.
    pub fetched: String,
    /// Settled in a transaction that may be rolled back.
    settled: Vec<u64>,
    in_transaction: bool,
    /// The transaction has publishes.
    publishes: bool,
    /// The transaction settles something.
    settles: bool,
    /// Transactions of this channel publish or settle, not both: see [`Channel::may`].
    pub apart: bool,
    /// The number of the last publish, in confirm mode.
    published: Option<u64>,
    unconfirmed: BTreeSet<u64>,
    pub no_ack: HashMap<String, bool>,
    pub lines: Vec<String>,
    cancels: Vec<String>,
    confirms: Vec<(u64, &'static str)>,
}

impl Connection {
    pub fn open(target: &Target, name: char) -> Connection {
        let mut connection = Connection {
            name,
            wire: Wire::open(target, if name == 'C' { &target.restricted } else { "guest" }),
            channels: BTreeMap::new(),
            early: Vec::new(),
            refused: BTreeSet::new(),
            closed: None,
            reply_address: None,
        };
        let numbers = CHANNELS.into_iter().chain((0..QUEUES.len()).map(|index| 10 + index as u16));
        for number in numbers {
            connection.channels.insert(number, Channel::default());
            connection.wire.send(number, CHANNEL_OPEN, args![""]);
        }
        for _ in 0..connection.channels.len() {
            assert_eq!(connection.wire.receive().map(|received| received.method), Some(CHANNEL_OPEN_OK));
        }
        connection
    }

    /// Closes it, unless the broker has, and opens another. What was heard stays.
    pub fn reopen(&mut self, target: &Target) {
        if self.closed.is_none() {
            self.wire.send(0, CLOSE, args![200, "", 0, 0]);
            while self.wire.receive().is_some_and(|received| received.method != CLOSE_OK) {}
        }
        let heard = std::mem::take(&mut self.channels);
        *self =
            Connection { reply_address: self.reply_address.take(), ..Connection::open(target, self.name) };
        for (number, channel) in heard {
            if let Some(new) = self.channels.get_mut(&number) {
                new.lines = channel.heard();
            }
        }
    }

    pub fn channel(&mut self, number: u16) -> &mut Channel {
        self.channels.entry(number).or_default()
    }

    /// Sends a method that will be answered.
    pub fn ask(&mut self, channel: u16, method: Method, arguments: &[Value]) {
        self.refused.remove(&channel);
        self.wire.send(channel, method, arguments);
    }

    /// Reads until the answer on this channel is there. `None`: the channel or the connection was closed instead.
    pub fn answer(&mut self, channel: u16) -> Option<Received> {
        loop {
            if self.closed.is_some() || self.refused.remove(&channel) {
                return None;
            }
            if let Some(place) = self.early.iter().position(|received| received.channel == channel) {
                return Some(self.early.remove(place));
            }
            self.read();
        }
    }

    /// Takes whatever comes next.
    pub fn read(&mut self) {
        match self.wire.receive() {
            Some(received) => self.take(received),
            None => self.closed = Some("without a word".into()),
        }
    }

    fn take(&mut self, received: Received) {
        let (from, method) = (received.channel, received.method);
        self.reply_address = reply_address(&received.properties).or(self.reply_address.take());
        let heard = self.channels.get_mut(&from).is_some_and(|channel| channel.hear(&received));
        if method == CLOSE {
            self.closed = Some(closed(&received.arguments));
            self.wire.send(0, CLOSE_OK, &[]);
            self.wire.flush();
        } else if method == CHANNEL_CLOSE {
            // It is opened again at once, and what was asked there meanwhile is never answered.
            self.wire.send(from, CHANNEL_CLOSE_OK, &[]);
            self.wire.send(from, CHANNEL_OPEN, args![""]);
            self.forget(from);
            self.early.retain(|received| received.channel != from);
            self.refused.insert(from);
            self.channel(from).lines.push(closed(&received.arguments));
        } else if !heard && method != CHANNEL_OPEN_OK {
            self.early.push(received);
        }
    }

    /// A channel starts again; what was heard on it stays.
    pub fn forget(&mut self, number: u16) {
        let Channel { lines, cancels, confirms, .. } = std::mem::take(self.channel(number));
        *self.channel(number) = Channel { lines, cancels, confirms, ..Channel::default() };
    }

    /// Asks the channels whether they have done everything that was asked of them.
    pub fn ask_flow(&mut self) {
        for number in CHANNELS {
            self.ask(number, FLOW, args![1]);
        }
        self.wire.flush();
    }

    pub fn flow(&mut self) {
        for number in CHANNELS {
            self.answer(number);
        }
    }

    fn asks_about(name: &str) -> u16 {
        10 + QUEUES.iter().position(|queue| *queue == name).unwrap() as u16
    }

    pub fn ask_states(&mut self, queues: &BTreeSet<&'static str>) {
        for name in queues {
            self.ask(Connection::asks_about(name), QUEUE_DECLARE, args![0, *name, 1, &[][..]]);
        }
        self.wire.flush();
    }

    /// The state of each queue, as far as this connection may know it.
    pub fn states(&mut self, queues: &BTreeSet<&'static str>) -> HashMap<&'static str, String> {
        let mut states = HashMap::new();
        for &name in queues {
            let number = Connection::asks_about(name);
            if let Some(received) = self.answer(number) {
                let counts = &received.arguments;
                states.insert(name, format!("{} messages, {} consumers", counts.number(1), counts.number(2)));
            }
            let refused = std::mem::take(&mut self.channel(number).lines);
            states.extend(refused.into_iter().map(|line| (name, line)));
        }
        states
    }
}

fn is_meant(known: u64, tag: u64, multiple: bool) -> bool {
    if multiple { tag == 0 || known <= tag } else { known == tag }
}

impl Channel {
    /// Takes what nobody asked for; says whether it was that.
    fn hear(&mut self, received: &Received) -> bool {
        let arguments = &received.arguments;
        match received.method {
            DELIVER => {
                let tag = arguments.text(0).to_owned();
                if self.no_ack.get(&tag) != Some(&true) {
                    self.unacked.push(arguments.number(1));
                    let queue = self.queues.get(&tag).cloned().unwrap_or_default();
                    self.sources.insert(arguments.number(1), (Some(tag.clone()), queue));
                }
                self.lines.push(format!(
                    "deliver to {}: {} redelivered={} {}",
                    masked(&tag),
                    arguments.number(1),
                    arguments.number(2),
                    content_text(received, 3)
                ));
            }
            RETURN => self.lines.push(format!(
                "return {} {} {}{}",
                arguments.number(0),
                arguments.text(1),
                content_text(received, 2),
                if self.confirms.is_empty() { "" } else { " after a confirm" }
            )),
            CANCEL => self.cancels.push(format!("cancel {}", masked(arguments.text(0)))),
            ACK | NACK => {
                let (tag, multiple) = (arguments.number(0), arguments.number(1) & 1 == 1);
                let outcome = if received.method == ACK { "confirmed" } else { "refused" };
                let meant = |number: &u64| if multiple { *number <= tag } else { *number == tag };
                let (known, others): (BTreeSet<u64>, _) =
                    std::mem::take(&mut self.unconfirmed).into_iter().partition(meant);
                self.unconfirmed = others;
                self.confirms.extend(known.into_iter().map(|number| (number, outcome)));
            }
            _ => return false,
        }
        true
    }

    /// Whether this operation is to be done. Of what waits for them RabbitMQ's classic queues prefer acks, and the quorum
    /// queues of 3.x whatever settles. So a part of what a transaction settles may come before its publishes.
    pub fn may(&mut self, verb: &str) -> bool {
        let (same, other) = match verb {
            "publish" => (&mut self.publishes, self.settles),
            "ack" | "nack" | "reject" => (&mut self.settles, self.publishes),
            _ => return true,
        };
        let may = !(self.apart && other);
        *same |= self.in_transaction && may;
        if !may {
            self.lines.push(format!("no {verb} in this transaction"));
        }
        may
    }

    /// Whether a delivery for a consumer, or for this one, is not settled for good.
    pub fn holds(&self, consumer: Option<&str>) -> bool {
        let held = self.unacked.iter().chain(&self.settled).filter_map(|tag| self.sources.get(tag));
        let mut consumers = held.filter_map(|(consumer, _)| consumer.as_ref());
        consumers.any(|tag| consumer.is_none_or(|wanted| tag == wanted))
    }

    /// A queue is gone: what came from it is to be settled all the same, but not if there is another of that name.
    pub fn lose(&mut self, queue: &str) {
        let from_it = self.sources.iter().filter(|(_, (_, source))| source == queue).map(|(tag, _)| *tag);
        self.lost.extend(from_it);
    }

    /// Whether this settles, for good, something that came from an earlier queue of the name of one that is `known`. RabbitMQ
    /// takes it for what the later one has delivered from the same place, or crashes.
    pub fn mistakes(&self, words: Words<'_>, known: &BTreeSet<&'static str>) -> bool {
        let meant = match words.0[0] {
            "ack" | "nack" | "reject" => self
                .meant(words)
                .into_iter()
                .flat_map(|(tag, multiple)| {
                    self.unacked.iter().filter(move |known| is_meant(**known, tag, multiple)).copied()
                })
                .collect(),
            "recover" => self.unacked.clone(),
            "tx.commit" => self.settled.clone(),
            _ => Vec::new(),
        };
        let mut lost = meant.iter().filter(|tag| self.lost.contains(tag));
        lost.any(|tag| self.sources.get(tag).is_some_and(|(_, queue)| known.contains(&**queue)))
    }

    /// The delivery tag that a settlement means, and whether it means others before it as well. `None`: there is none.
    pub fn meant(&self, words: Words<'_>) -> Option<(u64, bool)> {
        let multiple = words.has("multiple") && words.0[0] != "reject";
        match words.name(1) {
            "unknown" => Some((999_999, multiple)),
            "all" => Some((0, words.0[0] != "reject")),
            _ if self.unacked.is_empty() => None,
            index => {
                let index = index.trim_start_matches("any").parse::<usize>().unwrap() % self.unacked.len();
                Some((self.unacked[index], multiple))
            }
        }
    }

    /// Counts a publish, if they are counted.
    pub fn publish(&mut self) {
        if let Some(last) = &mut self.published {
            *last += 1;
            self.unconfirmed.insert(*last);
        }
    }

    pub fn settle(&mut self, tag: u64, multiple: bool) {
        let (settled, rest): (Vec<_>, Vec<_>) =
            self.unacked.iter().partition(|known| is_meant(**known, tag, multiple));
        self.unacked = rest;
        if self.in_transaction {
            self.settled.extend(settled);
        }
    }

    /// What was heard since [`listen`](Channel::listen). What has no order stands at the end, sorted.
    pub fn heard(&self) -> Vec<String> {
        let mut cancels = self.cancels.clone();
        cancels.sort();
        let mut confirms = self.confirms.clone();
        confirms.sort_unstable();
        let confirms = confirms.into_iter().map(|(number, outcome)| format!("{outcome} {number}"));
        self.lines.iter().cloned().chain(cancels).chain(confirms).collect()
    }

    pub fn listen(&mut self) {
        self.lines.clear();
        self.cancels.clear();
        self.confirms.clear();
    }

    /// Writes an answer down, and what it means for this channel.
    pub fn answered(&mut self, received: &Received, no_ack: bool) {
        let arguments = &received.arguments;
        let mut place = self.lines.len();
        match received.method {
            GET_OK => {
                if !no_ack {
                    self.unacked.push(arguments.number(0));
                    self.sources.insert(arguments.number(0), (None, self.fetched.clone()));
                }
                let (tag, redelivered, left) =
                    (arguments.number(0), arguments.number(1), arguments.number(4));
                let content = content_text(received, 2);
                self.lines.push(format!("got {tag} redelivered={redelivered} {content}, {left} left"));
                return;
            }
            CONSUME_OK => drop(self.no_ack.insert(arguments.text(0).into(), no_ack)),
            CANCEL_OK => drop(self.no_ack.remove(arguments.text(0))),
            CONFIRM_SELECT_OK => self.published = self.published.or(Some(0)),
            TX_SELECT_OK => self.in_transaction = true,
            TX_COMMIT_OK => {
                self.settled.clear();
                // RabbitMQ's channel answers when every queue has confirmed what it got. Deliveries may be on their way
                // from the queues then: whether they come before the answer or after it is not defined. Without publishes
                // the answer comes first.
                self.settles = false;
                if std::mem::take(&mut self.publishes) {
                    place = self
                        .lines
                        .iter()
                        .rposition(|line| !line.starts_with("deliver "))
                        .map_or(0, |at| at + 1);
                }
            }
            TX_ROLLBACK_OK => {
                (self.publishes, self.settles) = (false, false);
                self.unacked.append(&mut self.settled);
                self.unacked.sort_unstable();
            }
            _ => {}
        }
        let shown: Vec<_> = arguments
            .0
            .iter()
            .map(|value| match value {
                Value::Number(number) => number.to_string(),
                Value::Bytes(bytes) => masked(&String::from_utf8_lossy(bytes)),
            })
            .collect();
        self.lines.insert(place, format!("{:?} {}", received.method, shown.join(" ")));
    }
}
