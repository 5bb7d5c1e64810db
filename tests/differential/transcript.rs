//! Runs sequences on one broker and writes down everything that the broker says.
//!
//! After each operation the broker gets the time to do all that follows from it, so that what belongs to one
//! operation never shows up with the next. In RabbitMQ queues and channels are processes that send each other
//! messages. Asking each of them something makes them do most of what is on its way; and since it is known what the
//! broker in this process says, that is what RabbitMQ is given the time for. A difference is one that stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use leveret::broker::Emulate;

use crate::{
    Target,
    client::{Connection, QUEUES},
    common::peer::*,
    operation::{CHANNELS, Words, perform},
};

const EXCHANGES: [&str; 5] = ["x0", "x1", "x2", "dx0", "dx1"];

/// What the broker said after each operation.
pub type Transcript = Vec<Vec<String>>;

/// How much time a broker gets to do what follows from an operation.
#[derive(Clone, Copy)]
pub struct Patience {
    /// How often everybody is asked at least.
    pub rounds: u32,
    /// How long it may take until the broker has said what is expected.
    pub limit: Duration,
}

/// For most sequences this is enough. What differs is looked at again with [`THOROUGH`].
pub const QUICK: Patience = Patience { rounds: 1, limit: Duration::from_millis(300) };
pub const THOROUGH: Patience = Patience { rounds: 3, limit: Duration::from_secs(1) };

/// A broker, and the connections to it.
pub struct Runner {
    target: Target,
    connections: Vec<Connection>,
    /// Queues that may exist.
    known: BTreeSet<&'static str>,
    /// There is a stream, and it is q0. RabbitMQ counts its messages and consumers some seconds later.
    has_stream: bool,
    has_quorum_queue: bool,
}

/// Without the numbers of messages and consumers of q0.
fn without_count(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["q0:", _, "messages,", ..] => "q0: *".into(),
        [place, "queue.declare-ok", "q0", ..] => format!("{place} queue.declare-ok q0 *"),
        [place, "queue.delete-ok", _] => format!("{place} queue.delete-ok *"),
        _ => line.into(),
    }
}

impl Runner {
    pub fn new(target: Target) -> Runner {
        let connections = ['A', 'B'].map(|name| Connection::open(&target, name)).into();
        Runner { target, connections, known: BTreeSet::new(), has_stream: false, has_quorum_queue: false }
    }

    /// Runs a sequence from an empty virtual host, and leaves an empty one. Stops after the first operation that
    /// does not lead to what is expected.
    pub fn run(&mut self, sequence: &[String], expected: Option<(&Transcript, Patience)>) -> Transcript {
        self.has_stream = sequence.iter().any(|line| line.contains("q0 durable x-queue-type=stream"));
        self.has_quorum_queue = sequence.iter().any(|line| line.contains("x-queue-type=quorum"));
        let mut transcript = Transcript::new();
        for (at, line) in sequence.iter().enumerate() {
            let wanted = expected.and_then(|(expected, patience)| Some((expected.get(at)?, patience)));
            let lines = self.operation(at, line, wanted);
            let differs = wanted.is_some_and(|(wanted, _)| *wanted != lines);
            transcript.push(lines);
            if differs {
                break;
            }
        }
        self.clean_up(sequence);
        transcript
    }

    fn operation(&mut self, at: usize, line: &str, wanted: Option<(&Vec<String>, Patience)>) -> Vec<String> {
        for connection in &mut self.connections {
            CHANNELS.into_iter().for_each(|number| connection.channel(number).listen());
        }
        let address = self.connections.iter().find_map(|connection| connection.reply_address.clone());
        let address = address.unwrap_or_else(|| "amq.rabbitmq.reply-to.none".into());
        let mut words = line.split(' ').map(|word| if word == "@" { &address } else { word });
        let place = words.next().unwrap();
        let words: Vec<&str> = words.collect();
        let words = Words(&words);
        let (name, number) = place.split_at(1);
        let number: u16 = number.parse().unwrap();
        let index = self.connection(name.chars().next().unwrap());
        let mut ended = Vec::new();
        match words.0[0] {
            "connection.close" => self.connections[index].reopen(&self.target),
            "wait" => (self.target.wait)(Duration::from_millis(words.0[1].parse().unwrap())),
            "restart" => self.restart(&mut ended),
            verb => {
                if verb == "queue.declare" {
                    self.known.extend(QUEUES.iter().filter(|queue| **queue == words.0[1]));
                }
                let (index, number) = match words.0.get(1) {
                    Some(word) if word.starts_with("any") => self.with_unacked(index, number),
                    _ => (index, number),
                };
                if self.connections[index].channel(number).mistakes(words, &self.known) {
                    let lines = &mut self.connections[index].channel(number).lines;
                    lines.push(format!("no {verb}: its queue is another"));
                } else if self.crashes(index, number, words) {
                    let lines = &mut self.connections[index].channel(number).lines;
                    lines.push(format!("no {verb}: RabbitMQ 3.10 crashes"));
                } else {
                    perform(&mut self.connections[index], number, at, words);
                }
            }
        }
        let started = Instant::now();
        for round in 1.. {
            let lines = self.settle(&mut ended);
            let is_over = wanted.is_none_or(|(wanted, patience)| {
                round >= patience.rounds && (*wanted == lines || started.elapsed() > patience.limit)
            });
            if is_over {
                return lines;
            }
            if round > 3 {
                thread::sleep(Duration::from_millis(5));
            }
        }
        unreachable!()
    }

    /// Whether this would crash a channel of RabbitMQ 3.10, at once or with the next delivery, so that nothing that follows
    /// could be compared: giving back what came from a stream by `recover`, and consuming from a quorum queue with a tag
    /// that still has something to settle.
    fn crashes(&mut self, index: usize, number: u16, words: Words<'_>) -> bool {
        if self.target.emulate != Emulate::RabbitMq3 {
            return false;
        }
        let channel = self.connections[index].channel(number);
        match words.0[0] {
            "recover" => self.has_stream && channel.holds(None),
            "consume" => self.has_quorum_queue && channel.holds(Some(words.name(2))),
            _ => false,
        }
    }

    /// The place of a connection; others than A and B are opened when somebody wants them.
    fn connection(&mut self, name: char) -> usize {
        if let Some(index) = self.connections.iter().position(|connection| connection.name == name) {
            return index;
        }
        self.connections.push(Connection::open(&self.target, name));
        self.connections.len() - 1
    }

    /// This channel, or the first of those that follow that has something to settle.
    fn with_unacked(&mut self, index: usize, number: u16) -> (usize, u16) {
        let count = self.connections.len();
        let places = (index..index + count).flat_map(|index| CHANNELS.map(|number| (index % count, number)));
        let mut places = places.skip_while(|place| *place != (index, number)).collect::<Vec<_>>().into_iter();
        places
            .find(|&(index, number)| !self.connections[index].channel(number).unacked.is_empty())
            .unwrap_or((index, number))
    }

    /// Asks everybody, so that they do what follows from what was asked before. Gives all that was heard, and the
    /// state of the queues.
    fn settle(&mut self, ended: &mut Vec<String>) -> Vec<String> {
        self.flow();
        for connection in &mut self.connections {
            if let Some(why) = connection.closed.clone() {
                ended.push(format!("{}: {why}", connection.name));
                connection.reopen(&self.target);
            }
        }
        let mut states = BTreeMap::new();
        self.connections.iter_mut().for_each(|connection| connection.ask_states(&self.known));
        for connection in &mut self.connections {
            // What is exclusive to B, A cannot see.
            for (name, state) in connection.states(&self.known) {
                let known: &mut String = states.entry(name).or_default();
                if known.is_empty() || known.starts_with("closed 405") {
                    *known = state;
                }
            }
        }
        states.retain(|_, state| !state.starts_with("closed 404"));
        for name in self.known.iter().filter(|name| !states.contains_key(*name)) {
            for connection in &mut self.connections {
                CHANNELS.into_iter().for_each(|number| connection.channel(number).lose(name));
            }
        }
        self.known.retain(|name| states.contains_key(name));
        self.flow();
        let mut lines = Vec::new();
        for connection in &mut self.connections {
            for number in CHANNELS {
                let place = format!("{}{number}", connection.name);
                let heard = connection.channel(number).heard();
                lines.extend(heard.into_iter().map(|line| format!("{place} {line}")));
            }
        }
        // What a connection still hears of deliveries while it ends is a matter of time.
        for why in ended.iter() {
            let of_ended =
                |line: &String| why.get(..1) == line.get(..1) && line.get(2..10) == Some(" deliver");
            lines.retain(|line| !of_ended(line));
        }
        lines.extend(ended.iter().cloned());
        lines.extend(states.into_iter().map(|(name, state)| format!("{name}: {state}")));
        if self.has_stream {
            lines.iter_mut().for_each(|line| *line = without_count(line));
        }
        lines
    }

    fn flow(&mut self) {
        self.connections.iter_mut().for_each(Connection::ask_flow);
        self.connections.iter_mut().for_each(Connection::flow);
    }

    /// The broker goes, says why, and comes back.
    fn restart(&mut self, ended: &mut Vec<String>) {
        (self.target.restart)();
        for connection in &mut self.connections {
            while connection.closed.is_none() {
                connection.read();
            }
            ended.extend(connection.closed.as_ref().map(|why| format!("{}: {why}", connection.name)));
            connection.reopen(&self.target);
        }
    }

    /// Leaves an empty virtual host.
    pub fn clean_up(&mut self, sequence: &[String]) {
        // What belongs to a connection or a channel goes with it.
        self.connections.truncate(2);
        self.connections.iter_mut().for_each(|connection| connection.reopen(&self.target));
        self.known.clear();
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
    }
}
