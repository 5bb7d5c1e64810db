//! The in-process broker beside RabbitMQ: the same sequences of operations, frame by frame the same answers.
//!
//! A [`sequence`](sequence) is text, one operation per line, so that one that showed a difference can be kept in
//! `tests/data/differential/` for ever. Random sequences come from seeds; more of them than in an ordinary run:
//!
//! ```sh
//! LEVERET_SEQUENCES=10000 LEVERET_SEED=1 tests/broker/with 3.10 4.0 -- \
//!     cargo test --features broker --test differential -- random
//! ```
//!
//! Most of a sequence's time is waiting for RabbitMQ. With `LEVERET_PAIRS=4` four sequences are compared at a time, each
//! in a virtual host of its own. `LEVERET_KEPT=quorum` leaves of the kept sequences those with that in their names.
//! Nothing else may use these brokers meanwhile: some of the kept sequences restart them.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod client;
mod operation;
mod sequence;
mod shown;
mod shrink;
mod transcript;
mod wire;

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    ops::Range,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread,
    time::{Duration, Instant},
};

use common::{
    brokers::{Broker, User, on_each_broker_within, on_each_rabbitmq_within},
    watchdog::say,
};
use leveret::broker::{self, BrokerConfig, Emulate, Permissions};
use transcript::{Patience, QUICK, Runner, THOROUGH};

/// One of the two brokers that are compared.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) vhost: String,
    /// What it is, or acts as.
    pub(crate) emulate: Emulate,
    /// A user who may [`CONFIGURE`], [`WRITE`] and [`READ`]. The password is the name.
    pub(crate) restricted: String,
    pub(crate) restart: Arc<dyn Fn() + Send + Sync>,
    /// Lets time pass.
    pub(crate) wait: Arc<dyn Fn(Duration) + Send + Sync>,
}

const CONFIGURE: [&str; 3] = ["q0", "q1", "x*"];
const WRITE: [&str; 3] = ["q0", "x0", "d0"];
const READ: [&str; 3] = ["q0", "q2", "x0"];

/// A restart ends the connections of everybody.
static RESTARTS: RwLock<()> = RwLock::new(());

/// A RabbitMQ and an in-process broker that acts as one.
struct Pair {
    rabbitmq: Runner,
    own: Runner,
    /// How many sequences ended where RabbitMQ crashed.
    crashes: usize,
    _user: User,
}

impl Pair {
    fn new(rabbitmq: &Broker) -> Pair {
        let emulate =
            if rabbitmq.version.starts_with("3.") { Emulate::RabbitMq3 } else { Emulate::RabbitMq4 };
        let user = rabbitmq.user_with_own_name_as_password();
        user.allow(&CONFIGURE, &WRITE, &READ);
        let own = target_of(emulate, &rabbitmq.vhost, &user.name);
        let restarted = rabbitmq.clone();
        let rabbitmq = Target {
            address: rabbitmq.address(),
            vhost: rabbitmq.vhost.clone(),
            emulate,
            restricted: user.name.clone(),
            restart: Arc::new(move || restarted.restart()),
            wait: Arc::new(thread::sleep),
        };
        Pair { rabbitmq: Runner::new(rabbitmq), own: Runner::new(own), crashes: 0, _user: user }
    }

    /// Where the two differ, if they do and go on doing so; and how often RabbitMQ was asked until it said what the
    /// broker in this process says. What is not defined in RabbitMQ differs from run to run there, and then one of
    /// the runs is enough. What it never says stays a difference.
    fn difference(&mut self, sequence: &[String]) -> (Option<String>, usize) {
        let mut difference = None;
        for (times, patience) in [QUICK, THOROUGH, THOROUGH, THOROUGH, THOROUGH].into_iter().enumerate() {
            let Some(found) = self.difference_within(sequence, patience) else { return (None, times + 1) };
            difference = Some(found);
        }
        (difference, 5)
    }

    fn difference_within(&mut self, sequence: &[String], patience: Patience) -> Option<String> {
        let restarts = sequence.iter().any(|line| line.ends_with(" restart"));
        let (_alone, _beside) = match restarts {
            true => (Some(RESTARTS.write().unwrap_or_else(PoisonError::into_inner)), None),
            false => (None, Some(RESTARTS.read().unwrap_or_else(PoisonError::into_inner))),
        };
        let own = self.own.run(sequence, None);
        let rabbitmq = self.rabbitmq.run(sequence, Some((&own, patience)));
        let at = (0..sequence.len()).find(|&at| rabbitmq.get(at) != own.get(at))?;
        if is_crash(&sequence[at], &rabbitmq[at]) {
            say(&format!("RabbitMQ has crashed at {:?}", sequence[at]));
            self.crashes += 1;
            return None;
        }
        let shown = |transcript: &[Vec<String>]| {
            transcript.get(at).map(|lines| lines.join("\n    ")).unwrap_or_default()
        };
        Some(format!(
            "after\n    {}\nRabbitMQ:\n    {}\nin process:\n    {}",
            sequence[..=at].join("\n    "),
            shown(&rabbitmq),
            shown(&own)
        ))
    }
}

/// Whether RabbitMQ has crashed: whoever needed what crashed gets 541. A queue also crashes when something is rejected
/// that came from a queue of the same name before it, and in 3.10 when something is published while messages wait for the
/// successor of a single active consumer; its consumers are cancelled then.
fn is_crash(operation: &str, said: &[String]) -> bool {
    const VERBS: [&str; 5] = [" ack ", " nack ", " reject ", " tx.commit", " publish "];
    let has_crashed = VERBS.iter().any(|verb| operation.contains(verb));
    said.iter().any(|line| line.contains("closed 541") || (has_crashed && line.contains(" cancel ")))
}

/// A new broker in this process.
fn target_of(emulate: Emulate, vhost: &str, restricted: &str) -> Target {
    let guest = broker::User::new("guest", "guest").permissions(Permissions::all(vhost));
    let permissions = Permissions::new(vhost).configure(CONFIGURE).write(WRITE).read(READ);
    let user = broker::User::new(restricted, restricted).permissions(permissions);
    let config = BrokerConfig::new().emulate(emulate).vhost(vhost).user(guest).user(user);
    let broker = Arc::new(config.listen("127.0.0.1:0").unwrap());
    let restarted = broker.clone();
    Target {
        address: broker.address().unwrap(),
        vhost: vhost.into(),
        emulate,
        restricted: restricted.into(),
        restart: Arc::new(move || restarted.restart().unwrap()),
        wait: Arc::new(move |time| broker.advance(time)),
    }
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect(variable))
}

/// So many differences are made small, for so long each: there may be thousands of sequences left to run.
const SHRUNK: usize = 5;
const SHRINKING: Duration = Duration::from_secs(60);

/// What came of the random sequences on one RabbitMQ.
#[derive(Default)]
struct Found {
    differences: Vec<String>,
    /// The seeds of the differences.
    seeds: Vec<u64>,
    /// The seeds of sequences that RabbitMQ has not survived.
    crashes: Vec<u64>,
    /// The seeds of sequences that RabbitMQ was asked more than twice to run, and how often.
    again: Vec<(u64, usize)>,
}

/// Random sequences of operations. A difference is made as small as possible before it is shown, and the rest is
/// compared all the same.
#[test]
fn random_sequences_have_the_same_answers() {
    let count = number("LEVERET_SEQUENCES").unwrap_or(40);
    let first = number("LEVERET_SEED").unwrap_or(1);
    let pairs = number("LEVERET_PAIRS").unwrap_or(1);
    let reason = "what comes from a seed is compared with RabbitMQ";
    let limit = Duration::from_secs(120 + 4 * count) + SHRINKING * 2 * SHRUNK as u32;
    on_each_rabbitmq_within(reason, limit, |broker| {
        let (seeds, found) = (Mutex::new(first..first + count), Mutex::new(Found::default()));
        thread::scope(|scope| {
            for pair in 0..pairs {
                let vhost = OwnVhost::new(broker, pair);
                let (seeds, found) = (&seeds, &found);
                scope.spawn(move || compare_all(&vhost.0, seeds, found));
            }
        });
        let Found { differences, mut seeds, crashes, again } = found.into_inner().unwrap();
        seeds.sort_unstable();
        say(&format!(
            "{}: {count} sequences from seed {first}, {} differences {seeds:?}; RabbitMQ crashed in {crashes:?}; run more \
             than twice (seed, times): {again:?}",
            broker.name,
            differences.len(),
        ));
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    });
}

/// A virtual host for each pair: they must not meet.
struct OwnVhost(Broker);

impl OwnVhost {
    fn new(broker: &Broker, pair: u64) -> OwnVhost {
        let mut own = broker.clone();
        own.vhost = format!("{}-{pair}", broker.vhost);
        own.create_vhost(&own.vhost);
        OwnVhost(own)
    }
}

impl Drop for OwnVhost {
    fn drop(&mut self) {
        let _ = self.0.delete_vhost(&self.0.vhost);
    }
}

/// Compares one sequence after the other, for as long as there are seeds.
fn compare_all(broker: &Broker, seeds: &Mutex<Range<u64>>, found: &Mutex<Found>) {
    let mut pair = Pair::new(broker);
    while let Some(seed) = { seeds.lock().unwrap().next() } {
        let small = found.lock().unwrap().seeds.len() < SHRUNK;
        let before = pair.crashes;
        let compared = AssertUnwindSafe(|| compare(&mut pair, seed, small));
        let (difference, times) = panic::catch_unwind(compared).unwrap_or_else(|_| {
            pair = Pair { crashes: pair.crashes, ..Pair::new(broker) };
            pair.rabbitmq.clean_up(&sequence::random(seed));
            (Some("it cannot be run".into()), 1)
        });
        let mut found = found.lock().unwrap();
        if pair.crashes > before {
            found.crashes.push(seed);
        }
        if times > 2 {
            found.again.push((seed, times));
        }
        if let Some(difference) = difference {
            let difference = format!("seed {seed} on {}: {difference}", broker.name);
            say(&difference);
            found.differences.push(difference);
            found.seeds.push(seed);
        }
    }
}

/// Where the sequence of this seed differs, and how often it was run.
fn compare(pair: &mut Pair, seed: u64, small: bool) -> (Option<String>, usize) {
    let sequence = sequence::random(seed);
    let (difference, times) = pair.difference(&sequence);
    if difference.is_none() || !small {
        return (difference, times);
    }
    let started = Instant::now();
    let differs = |sequence: &[String]| {
        started.elapsed() < SHRINKING && pair.difference_within(sequence, THOROUGH).is_some()
    };
    let smallest = shrink::shrink(sequence, differs);
    let (smaller, _) = pair.difference(&smallest);
    (smaller.or(difference), times)
}

/// Every sequence that ever showed a difference, and some that somebody wrote.
#[test]
fn kept_sequences_have_the_same_answers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/differential");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    if let Ok(part) = env::var("LEVERET_KEPT") {
        files.retain(|file| file.to_string_lossy().contains(&part));
    }
    files.sort();
    on_each_broker_within(Duration::from_secs(300), |broker| {
        let mut pair = Pair::new(broker);
        let mut differences = Vec::new();
        for file in &files {
            let sequence = sequence::parse(&fs::read_to_string(file).unwrap());
            let (difference, times) = pair.difference(&sequence);
            let file = file.display();
            if times > 2 {
                say(&format!("{}: run {times} times: {file}", broker.name));
            }
            differences.extend(difference.map(|difference| format!("{file}: {difference}")));
        }
        assert!(
            differences.is_empty(),
            "{} on {}:\n{}",
            differences.len(),
            broker.name,
            differences.join("\n")
        );
        Ok(())
    });
}

/// The harness itself: the same broker twice must not differ, and two brokers that are not alike must.
#[test]
fn the_comparison_is_steady_and_can_fail() {
    let mut runners = [Emulate::RabbitMq3, Emulate::RabbitMq4, Emulate::RabbitMq4]
        .map(|emulate| Runner::new(target_of(emulate, "/", "somebody")));
    let mut transcripts = |sequence: &[String]| runners.each_mut().map(|runner| runner.run(sequence, None));
    for seed in 1..30 {
        let [_, one, other] = transcripts(&sequence::random(seed));
        assert_eq!(one, other, "seed {seed}");
    }
    let differ = sequence::parse("A1 queue.declare q0 x-max-length=1 x-dead-letter-exchange=d0\nA1 nonsense");
    assert_eq!(transcripts(&differ)[0].len(), 2);
    let order = sequence::parse("A1 queue.declare q0\nA1 publish - q0 h.b=1 h.a=1\nA1 get q0 no_ack");
    let [three, four, _] = transcripts(&order);
    assert_ne!(three, four, "4.x sorts headers");
}

/// Whatever is compared has to occur: every verb, the errors, and what makes a message go elsewhere.
#[test]
fn random_sequences_are_varied() {
    let mut counts = BTreeMap::<String, u32>::new();
    for emulate in [Emulate::RabbitMq3, Emulate::RabbitMq4] {
        let mut runner = Runner::new(target_of(emulate, "/", "somebody"));
        for seed in 1..150 {
            let sequence = sequence::random(seed);
            let transcript = runner.run(&sequence, None);
            for line in &sequence {
                let words =
                    line.split(' ').skip(1).filter(|word| word.contains('=')).chain(line.split(' ').nth(1));
                words
                    .for_each(|word| *counts.entry(word.split('=').next().unwrap().into()).or_default() += 1);
            }
            for line in transcript.iter().flatten() {
                let words: Vec<&str> = line.split(' ').collect();
                let said = match words[..] {
                    [_, "closed", code, ..] => format!("closed {code}"),
                    [_, "deliver", ..] if line.contains("redelivered=1") => "delivered again".into(),
                    [_, verb, ..] => verb.into(),
                    _ => continue,
                };
                *counts.entry(said).or_default() += 1;
                let inside =
                    ["x-death", "x-delivery-count", "x-stream-offset", "rejected", "expired", "maxlen"];
                for word in inside.into_iter().filter(|word| line.contains(word)) {
                    *counts.entry(format!("{word} in a message")).or_default() += 1;
                }
            }
        }
    }
    println!("{counts:#?}");
    for wanted in EXPECTED_TO_OCCUR {
        assert!(counts.contains_key(*wanted), "{wanted} never occurs: {counts:#?}");
    }
}

const EXPECTED_TO_OCCUR: &[&str] = &[
    // Verbs.
    "publish",
    "ack",
    "nack",
    "reject",
    "recover",
    "consume",
    "cancel",
    "get",
    "qos",
    "wait",
    "confirm.select",
    "tx.commit",
    "tx.rollback",
    "queue.declare",
    "queue.check",
    "queue.purge",
    "queue.delete",
    "queue.bind",
    "queue.unbind",
    "exchange.declare",
    "exchange.check",
    "exchange.delete",
    "exchange.bind",
    "exchange.unbind",
    "channel.close",
    "connection.close",
    // What is said.
    "deliver",
    "delivered again",
    "got",
    "basic.get-empty",
    "return",
    "confirmed",
    "refused",
    "tx.commit-ok",
    "tx.rollback-ok",
    "closed 403",
    "closed 404",
    "closed 405",
    "closed 406",
    "closed 530",
    "closed 540",
    "x-death in a message",
    "rejected in a message",
    "expired in a message",
    "maxlen in a message",
    "x-delivery-count in a message",
    "x-stream-offset in a message",
    // Arguments and properties.
    "alternate-exchange",
    "bcc",
    "cc",
    "expiration",
    "priority",
    "reply_to",
    "user",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-delivery-limit",
    "x-expires",
    "x-match",
    "x-max-age",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-message-ttl",
    "x-overflow",
    "x-priority",
    "x-queue-mode",
    "x-queue-type",
    "x-single-active-consumer",
    "x-stream-offset",
];
