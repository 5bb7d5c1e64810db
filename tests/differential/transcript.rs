//! Runs a sequence on one broker and writes down everything that the broker says.
//!
//! After each operation the broker gets the time to do all that follows from it, so that what belongs to one
//! operation never shows up with the next. In RabbitMQ queues and channels are processes that send each other
//! messages: asking each of them something, twice, makes sure that nothing is on its way any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    Target,
    common::peer::*,
    wire::{Received, Wire},
};

/// Every queue that may exist. The channel 10 + index asks about it.
const QUEUES: [&str; 5] = ["q0", "q1", "q2", "d0", "d1"];
const EXCHANGES: [&str; 3] = ["x0", "x1", "x2"];
const CHANNELS: [u16; 2] = [1, 2];

/// What the broker said after each operation.
pub type Transcript = Vec<Vec<String>>;

/// Runs a sequence from an empty virtual host, and leaves an empty one.
pub fn run(target: &Target, sequence: &[String]) -> Transcript {
    let mut run = Run {
        connections: ["A", "B"].map(|name| Connection::open(target, name)),
        target: target.clone(),
        known: BTreeSet::new(),
    };
    let transcript = sequence.iter().enumerate().map(|(at, line)| run.operation(at, line)).collect();
    run.clean_up(sequence);
    transcript
}

struct Run {
    target: Target,
    connections: [Connection; 2],
    /// Queues that may exist.
    known: BTreeSet<&'static str>,
}

struct Connection {
    name: &'static str,
    wire: Wire,
    channels: BTreeMap<u16, Channel>,
    /// Answers that came while one on another channel was waited for.
    early: Vec<Received>,
    /// Channels that the broker has closed since something was asked there.
    refused: BTreeSet<u16>,
    /// What the broker said when it closed the connection.
    closed: Option<String>,
}

/// What the client knows of a channel, and what it heard there.
#[derive(Default)]
struct Channel {
    unacked: Vec<u64>,
    /// Settled in a transaction that may be rolled back.
    settled: Vec<u64>,
    in_transaction: bool,
    /// The number of the last publish, in confirm mode.
    published: Option<u64>,
    unconfirmed: BTreeSet<u64>,
    no_ack: HashMap<String, bool>,
    lines: Vec<String>,
    cancels: Vec<String>,
    confirms: Vec<(u64, &'static str)>,
}

impl Connection {
    fn open(target: &Target, name: &'static str) -> Connection {
        let mut connection = Connection {
            name,
            wire: Wire::open(target),
            channels: BTreeMap::new(),
            early: Vec::new(),
            refused: BTreeSet::new(),
            closed: None,
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

    /// Sends a method that will be answered.
    fn ask(&mut self, channel: u16, method: Method, arguments: &[Value]) {
        self.refused.remove(&channel);
        self.wire.send(channel, method, arguments);
    }

    /// Reads until the answer on this channel is there. `None`: the channel or the connection was closed instead.
    fn answer(&mut self, channel: u16) -> Option<Received> {
        loop {
            if self.closed.is_some() || self.refused.remove(&channel) {
                return None;
            }
            if let Some(place) = self.early.iter().position(|received| received.channel == channel) {
                return Some(self.early.remove(place));
            }
            match self.wire.receive() {
                Some(received) => self.take(received),
                None => self.closed = Some("without a word".into()),
            }
        }
    }

    fn take(&mut self, received: Received) {
        let (from, method) = (received.channel, received.method);
        let heard = self.channels.get_mut(&from).is_some_and(|channel| channel.hear(&received));
        if method == CLOSE {
            self.closed = Some(closed(&received.arguments));
            self.wire.send(0, CLOSE_OK, &[]);
        } else if method == CHANNEL_CLOSE {
            // It is opened again at once, and what was asked there meanwhile is never answered.
            self.wire.send(from, CHANNEL_CLOSE_OK, &[]);
            self.wire.send(from, CHANNEL_OPEN, args![""]);
            self.forget(from);
            self.early.retain(|received| received.channel != from);
            self.refused.insert(from);
            if let Some(channel) = self.channels.get_mut(&from) {
                channel.lines.push(closed(&received.arguments));
            }
        } else if !heard && method != CHANNEL_OPEN_OK {
            self.early.push(received);
        }
    }

    /// A channel starts again; what was heard on it stays.
    fn forget(&mut self, number: u16) {
        if let Some(channel) = self.channels.get_mut(&number) {
            let Channel { lines, cancels, confirms, .. } = std::mem::take(channel);
            *channel = Channel { lines, cancels, confirms, ..Channel::default() };
        }
    }

    /// The channels have done everything that was asked of them.
    fn flow(&mut self) {
        for number in CHANNELS {
            self.ask(number, FLOW, args![1]);
        }
        for number in CHANNELS {
            self.answer(number);
        }
    }

    /// The state of each queue, as far as this connection may know it.
    fn states(&mut self, queues: &BTreeSet<&'static str>) -> HashMap<&'static str, String> {
        let number = |name: &str| 10 + QUEUES.iter().position(|queue| *queue == name).unwrap() as u16;
        for name in queues {
            self.ask(number(name), QUEUE_DECLARE, args![0, *name, 1, &[][..]]);
        }
        let mut states = HashMap::new();
        for &name in queues {
            if let Some(received) = self.answer(number(name)) {
                let counts = &received.arguments;
                states.insert(name, format!("{} messages, {} consumers", counts.number(1), counts.number(2)));
            }
            if let Some(channel) = self.channels.get_mut(&number(name)) {
                let refused = std::mem::take(&mut channel.lines);
                states.extend(refused.into_iter().map(|line| (name, line)));
            }
        }
        states
    }
}

/// Code, text and method of a close.
fn closed(arguments: &Arguments) -> String {
    let [code, class, method] = [0, 2, 3].map(|index| arguments.number(index));
    format!("closed {code} {} ({class}.{method})", arguments.text(1))
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
                }
                self.lines.push(format!(
                    "deliver to {tag}: {} redelivered={} {}",
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
            CANCEL => self.cancels.push(format!("cancel {}", arguments.text(0))),
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

    fn settle(&mut self, tag: u64, multiple: bool) {
        let meant = |known: &u64| if multiple { tag == 0 || *known <= tag } else { *known == tag };
        let (settled, rest): (Vec<_>, Vec<_>) = self.unacked.iter().partition(|known| meant(known));
        self.unacked = rest;
        if self.in_transaction {
            self.settled.extend(settled);
        }
    }

    /// What was heard since the last time.
    fn report(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.lines);
        self.cancels.sort();
        lines.append(&mut self.cancels);
        self.confirms.sort_unstable();
        lines.extend(self.confirms.drain(..).map(|(number, outcome)| format!("{outcome} {number}")));
        lines
    }
}

/// Exchange, key, headers and body. `at` is where the exchange stands in the arguments.
fn content_text(received: &Received, at: usize) -> String {
    let Received { arguments, properties, body, .. } = received;
    format!(
        "{:?} {:?} {} {:?}",
        arguments.text(at),
        arguments.text(at + 1),
        properties_text(properties),
        String::from_utf8_lossy(body)
    )
}

impl Run {
    fn operation(&mut self, at: usize, line: &str) -> Vec<String> {
        let mut words = line.split(' ');
        let place = words.next().unwrap();
        let words: Vec<&str> = words.collect();
        let index = usize::from(place.starts_with('B'));
        let number: u16 = place[1..].parse().unwrap();
        let words = Words(&words);
        match words.0[0] {
            "connection.close" => self.reconnect(index),
            verb => {
                if verb == "queue.declare" {
                    self.known.extend(QUEUES.iter().filter(|queue| **queue == words.0[1]));
                }
                self.connections[index].perform(number, at, words);
            }
        }
        let states = self.settle();
        let mut lines = Vec::new();
        for connection in &mut self.connections {
            for number in CHANNELS {
                let heard = connection.channels.get_mut(&number).map(Channel::report).unwrap_or_default();
                let place = format!("{}{number}", connection.name);
                lines.extend(heard.into_iter().map(|line| format!("{place} {line}")));
            }
        }
        lines.extend(states);
        lines
    }

    fn reconnect(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if connection.closed.is_none() {
            connection.wire.send(0, CLOSE, args![200, "", 0, 0]);
            while connection.wire.receive().is_some_and(|received| received.method != CLOSE_OK) {}
        }
        let name = connection.name;
        let heard: BTreeMap<_, _> = std::mem::take(&mut connection.channels);
        self.connections[index] = Connection::open(&self.target, name);
        for (number, mut channel) in heard {
            if let Some(new) = self.connections[index].channels.get_mut(&number) {
                new.lines = channel.report();
            }
        }
    }

    /// Waits until everything has happened that follows from what was asked. Gives the state of the queues.
    fn settle(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut states = BTreeMap::new();
        for _ in 0..3 {
            for index in 0..2 {
                self.connections[index].flow();
                if let Some(why) = self.connections[index].closed.take() {
                    lines.push(format!("{}: {why}", self.connections[index].name));
                    self.connections[index].closed = Some(why);
                    self.reconnect(index);
                }
            }
            states.clear();
            for connection in &mut self.connections {
                // What is exclusive to B, A cannot see.
                for (name, state) in connection.states(&self.known) {
                    let known: &mut String = states.entry(name).or_default();
                    if known.is_empty() || known.starts_with("closed 405") {
                        *known = state;
                    }
                }
            }
            self.known.retain(|name| states.get(name).is_some_and(|state| !state.starts_with("closed 404")));
        }
        self.connections.iter_mut().for_each(Connection::flow);
        lines.extend(states.into_iter().map(|(name, state)| format!("{name}: {state}")));
        lines
    }

    fn clean_up(&mut self, sequence: &[String]) {
        (0..2).for_each(|index| self.reconnect(index));
        let connection = &mut self.connections[0];
        let queues = QUEUES.map(|name| (QUEUE_DELETE, name));
        for (method, name) in queues.into_iter().chain(EXCHANGES.map(|name| (EXCHANGE_DELETE, name))) {
            connection.ask(1, method, args![0, name, 0]);
            assert!(connection.answer(1).is_some(), "{name} cannot be deleted");
        }
        // Bindings between the exchanges that are always there would stay.
        for line in sequence.iter().filter(|line| line.contains(" exchange.bind amq.")) {
            let words: Vec<&str> = line.split(' ').skip(1).collect();
            let words = Words(&words);
            let [destination, source, key] = [1, 2, 3].map(|index| words.name(index));
            if [destination, source].iter().all(|name| name.starts_with("amq.")) {
                let table = words.table();
                connection.ask(1, EXCHANGE_UNBIND, args![0, destination, source, key, 0, &*table]);
                assert!(connection.answer(1).is_some(), "{line} cannot be undone");
            }
        }
        (0..2).for_each(|index| self.reconnect(index));
    }
}

/// A verb and what follows it.
#[derive(Clone, Copy)]
struct Words<'a>(&'a [&'a str]);

impl<'a> Words<'a> {
    fn name(&self, index: usize) -> &'a str {
        match self.0.get(index) {
            Some(&"-") | None => "",
            Some(name) => name,
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.0.contains(&flag)
    }

    /// As they stand on the wire: the first flag in the lowest bit.
    fn bits(&self, flags: &[&str]) -> u64 {
        flags.iter().enumerate().map(|(bit, flag)| u64::from(self.has(flag)) << bit).sum()
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// Everything of the form `name=value`.
    fn table(&self) -> Vec<u8> {
        let pairs = self.0.iter().filter_map(|word| word.split_once('='));
        pairs.flat_map(|(name, value)| entry(name, value)).collect()
    }
}

/// An entry of a table.
fn entry(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![name.len() as u8];
    out.extend(name.bytes());
    if let Some(number) = value.strip_prefix("i8:") {
        out.push(b'b');
        out.extend(number.parse::<i8>().unwrap().to_be_bytes());
    } else if let Some(number) = value.strip_prefix("i64:") {
        out.push(b'l');
        out.extend(number.parse::<i64>().unwrap().to_be_bytes());
    } else if let Some(number) = value.strip_prefix("f64:") {
        out.push(b'd');
        out.extend(number.parse::<f64>().unwrap().to_be_bytes());
    } else if value == "void" {
        out.push(b'V');
    } else if let Ok(number) = value.parse::<i32>() {
        out.push(b'I');
        out.extend(number.to_be_bytes());
    } else if let Ok(truth) = value.parse::<bool>() {
        out.extend([b't', u8::from(truth)]);
    } else {
        out.push(b'S');
        out.extend(sized(if value == "-" { "" } else { value }));
    }
    out
}

fn sized(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

/// Flags and fields of a publish.
fn properties(words: &Words<'_>) -> Vec<u8> {
    let mut headers = Vec::new();
    for word in words.0 {
        if let Some((name, value)) = word.strip_prefix("h.").and_then(|word| word.split_once('=')) {
            headers.extend(entry(name, value));
        }
        if let Some((name, key)) = word.split_once('=').filter(|(name, _)| ["cc", "bcc"].contains(name)) {
            let item = [b"S".to_vec(), sized(key)].concat();
            headers.push(name.len() as u8);
            headers.extend(name.to_uppercase().bytes());
            headers.push(b'A');
            headers.extend((item.len() as u32).to_be_bytes());
            headers.extend(item);
        }
        if let Some(key) = word.strip_prefix("cc:") {
            headers.extend(entry("CC", key));
        }
    }
    let (mut flags, mut fields) = (0u16, Vec::new());
    if !headers.is_empty() {
        flags |= 1 << 13;
        fields.extend((headers.len() as u32).to_be_bytes());
        fields.extend(headers);
    }
    if let Some(priority) = words.value("priority") {
        flags |= 1 << 11;
        fields.push(priority.parse().unwrap());
    }
    for (bit, name) in [(8, "expiration"), (4, "user")] {
        if let Some(text) = words.value(name) {
            flags |= 1 << bit;
            fields.push(text.len() as u8);
            fields.extend(text.bytes());
        }
    }
    [flags.to_be_bytes().to_vec(), fields].concat()
}

impl Connection {
    fn perform(&mut self, number: u16, at: usize, words: Words<'_>) {
        let table = words.table();
        let name = |index: usize| words.name(index);
        let (method, arguments): (Method, Vec<Value>) = match words.0[0] {
            "publish" => return self.publish(number, at, words),
            "ack" | "nack" | "reject" => return self.settle(number, words),
            "consume" => return self.consume(number, words),
            "exchange.declare" => {
                let bits = words.bits(&["passive", "durable", "auto_delete", "internal"]);
                (EXCHANGE_DECLARE, args![0, name(1), name(2), bits, &*table].to_vec())
            }
            "exchange.check" => (EXCHANGE_DECLARE, args![0, name(1), "", 1, &*table].to_vec()),
            "exchange.delete" => (EXCHANGE_DELETE, args![0, name(1), words.bits(&["if_unused"])].to_vec()),
            "exchange.bind" => (EXCHANGE_BIND, args![0, name(1), name(2), name(3), 0, &*table].to_vec()),
            "exchange.unbind" => (EXCHANGE_UNBIND, args![0, name(1), name(2), name(3), 0, &*table].to_vec()),
            "queue.declare" => {
                let bits = words.bits(&["passive", "durable", "exclusive", "auto_delete"]);
                (QUEUE_DECLARE, args![0, name(1), bits, &*table].to_vec())
            }
            "queue.check" => (QUEUE_DECLARE, args![0, name(1), 1, &*table].to_vec()),
            "queue.purge" => (QUEUE_PURGE, args![0, name(1), 0].to_vec()),
            "queue.delete" => {
                (QUEUE_DELETE, args![0, name(1), words.bits(&["if_unused", "if_empty"])].to_vec())
            }
            "queue.bind" => (QUEUE_BIND, args![0, name(1), name(2), name(3), 0, &*table].to_vec()),
            "queue.unbind" => (QUEUE_UNBIND, args![0, name(1), name(2), name(3), &*table].to_vec()),
            "get" => (GET, args![0, name(1), words.bits(&["no_ack"])].to_vec()),
            "cancel" => (CANCEL, args![name(1), 0].to_vec()),
            "qos" => (QOS, args![0, words.name(1).parse::<u64>().unwrap(), words.bits(&["global"])].to_vec()),
            "recover" => (RECOVER, args![1].to_vec()),
            "confirm.select" => (CONFIRM_SELECT, args![0].to_vec()),
            "tx.select" => (TX_SELECT, Vec::new()),
            "tx.commit" => (TX_COMMIT, Vec::new()),
            "tx.rollback" => (TX_ROLLBACK, Vec::new()),
            "channel.close" => (CHANNEL_CLOSE, args![200, "", 0, 0].to_vec()),
            "flow" => (FLOW, args![0].to_vec()),
            _ => return,
        };
        self.ask(number, method, &arguments);
        if method == RECOVER
            && let Some(channel) = self.channels.get_mut(&number)
        {
            channel.unacked.clear();
        }
        let Some(received) = self.answer(number) else { return };
        if received.method == CHANNEL_CLOSE_OK {
            self.forget(number);
            self.wire.send(number, CHANNEL_OPEN, args![""]);
        }
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.answered(&received, words.has("no_ack"));
        }
    }

    fn publish(&mut self, number: u16, at: usize, words: Words<'_>) {
        let arguments = args![0, words.name(1), words.name(2), words.bits(&["mandatory", "immediate"])];
        let body = format!("m{at}");
        let properties = properties(&words);
        self.wire.write(&content(number, PUBLISH, arguments, &properties, body.as_bytes(), 1000));
        if let Some(channel) = self.channels.get_mut(&number)
            && let Some(last) = &mut channel.published
        {
            *last += 1;
            channel.unconfirmed.insert(*last);
        }
    }

    fn settle(&mut self, number: u16, words: Words<'_>) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let (tag, multiple) = match words.name(1) {
            "unknown" => (999_999, words.has("multiple")),
            "all" => (0, true),
            index if channel.unacked.is_empty() => {
                channel.lines.push(format!("nothing to settle for {index}"));
                return;
            }
            index => {
                let index = index.parse::<usize>().unwrap() % channel.unacked.len();
                (channel.unacked[index], words.has("multiple"))
            }
        };
        let multiple = multiple && words.name(0) != "reject";
        channel.settle(tag, multiple);
        let (multiple, requeue) = (u64::from(multiple), words.bits(&["requeue"]));
        match words.name(0) {
            "ack" => self.wire.send(number, ACK, args![tag, multiple]),
            "nack" => self.wire.send(number, NACK, args![tag, multiple | requeue << 1]),
            _ => self.wire.send(number, REJECT, args![tag, requeue]),
        }
    }

    fn consume(&mut self, number: u16, words: Words<'_>) {
        let bits = words.bits(&["no_local", "no_ack", "exclusive"]);
        let arguments = words.table();
        self.ask(number, CONSUME, args![0, words.name(1), words.name(2), bits, &*arguments]);
        let Some(channel) = self.channels.get_mut(&number) else { return };
        // Known before the first delivery; a tag that is taken keeps its meaning.
        channel.no_ack.entry(words.name(2).into()).or_insert(words.has("no_ack"));
        if let Some(received) = self.answer(number)
            && let Some(channel) = self.channels.get_mut(&number)
        {
            channel.answered(&received, false);
        }
    }
}

impl Channel {
    /// Writes an answer down, and what it means for this channel.
    fn answered(&mut self, received: &Received, no_ack: bool) {
        let arguments = &received.arguments;
        match received.method {
            GET_OK => {
                if !no_ack {
                    self.unacked.push(arguments.number(0));
                }
                let (tag, redelivered, left) =
                    (arguments.number(0), arguments.number(1), arguments.number(4));
                let content = content_text(received, 2);
                self.lines.push(format!("got {tag} redelivered={redelivered} {content}, {left} left"));
                return;
            }
            CANCEL_OK => drop(self.no_ack.remove(arguments.text(0))),
            CONFIRM_SELECT_OK => self.published = self.published.or(Some(0)),
            TX_SELECT_OK => self.in_transaction = true,
            TX_COMMIT_OK => self.settled.clear(),
            TX_ROLLBACK_OK => {
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
                Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            })
            .collect();
        self.lines.push(format!("{:?} {}", received.method, shown.join(" ")));
    }
}

/// The headers and the properties that matter here.
fn properties_text(properties: &[u8]) -> String {
    let properties = decode::properties(properties);
    format!("{{{}}}", properties.join(", "))
}

mod decode {
    //! Properties and tables as text; the time is left out.

    const NAMES: [&str; 14] = [
        "content-type",
        "content-encoding",
        "headers",
        "delivery-mode",
        "priority",
        "correlation-id",
        "reply-to",
        "expiration",
        "message-id",
        "timestamp",
        "type",
        "user-id",
        "app-id",
        "cluster-id",
    ];

    fn take<'a>(rest: &mut &'a [u8], length: usize) -> &'a [u8] {
        let (taken, left) = rest.split_at(length);
        *rest = left;
        taken
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn long<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
        let length = number(take(rest, 4)) as usize;
        take(rest, length)
    }

    pub(super) fn properties(mut rest: &[u8]) -> Vec<String> {
        let flags = number(take(&mut rest, 2));
        let set = NAMES.iter().enumerate().filter(|(place, _)| flags & 1 << (15 - place) != 0);
        set.map(|(place, name)| {
            let value = match place {
                2 => table(long(&mut rest)),
                3 | 4 => take(&mut rest, 1)[0].to_string(),
                9 => number(take(&mut rest, 8)).to_string(),
                _ => {
                    let length = take(&mut rest, 1)[0];
                    text(take(&mut rest, length.into()))
                }
            };
            format!("{name}={value}")
        })
        .collect()
    }

    fn table(mut rest: &[u8]) -> String {
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let length = take(&mut rest, 1)[0];
            let name = text(take(&mut rest, length.into()));
            let value = value(&mut rest);
            let value = if name == "time" { "T".to_owned() } else { value };
            entries.push(format!("{name}: {value}"));
        }
        format!("{{{}}}", entries.join(", "))
    }

    fn value(rest: &mut &[u8]) -> String {
        let letter = take(rest, 1)[0];
        let shown = match letter {
            b'b' | b'B' | b't' => number(take(rest, 1)).to_string(),
            b's' | b'u' => number(take(rest, 2)).to_string(),
            b'I' | b'i' | b'f' => number(take(rest, 4)).to_string(),
            b'l' | b'd' | b'T' => number(take(rest, 8)).to_string(),
            b'S' | b'x' => text(long(rest)),
            b'V' => String::new(),
            b'F' => return table(long(rest)),
            b'A' => {
                let mut items = long(rest);
                let mut shown = Vec::new();
                while !items.is_empty() {
                    shown.push(value(&mut items));
                }
                return format!("[{}]", shown.join(", "));
            }
            other => panic!("a field of type {other}"),
        };
        format!("{}{shown}", letter as char)
    }
}
