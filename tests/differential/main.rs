//! The in-process broker beside RabbitMQ: the same sequences of operations, frame by frame the same answers.
//!
//! A [`sequence`](sequence) is text, one operation per line, so that one that showed a difference can be kept in
//! `tests/data/differential/` for ever. Random sequences come from seeds; more of them than in an ordinary run:
//!
//! ```sh
//! LEVERET_SEQUENCES=10000 LEVERET_SEED=1 tests/broker/with 3.10 4.0 -- \
//!     cargo test --features broker --test differential -- random
//! ```

#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod sequence;
mod shrink;
mod transcript;
mod wire;

use std::{env, fs, net::SocketAddr, path::Path, time::Duration};

use common::brokers::{Broker, on_each_broker_within};
use leveret::broker::{self, BrokerConfig, Emulate, Permissions, User};

/// One of the two brokers that are compared.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) vhost: String,
}

/// A RabbitMQ and an in-process broker that acts as one.
struct Pair {
    rabbitmq: Target,
    own: Target,
    _own: broker::Broker,
}

impl Pair {
    fn new(rabbitmq: &Broker) -> Pair {
        let emulate =
            if rabbitmq.version.starts_with("3.") { Emulate::RabbitMq3 } else { Emulate::RabbitMq4 };
        let guest = User::new("guest", "guest").permissions(Permissions::all(&*rabbitmq.vhost));
        let config = BrokerConfig::new().emulate(emulate).vhost(&*rabbitmq.vhost).user(guest);
        let own = config.listen("127.0.0.1:0").unwrap();
        Pair {
            rabbitmq: Target { address: rabbitmq.address(), vhost: rabbitmq.vhost.clone() },
            own: Target { address: own.address().unwrap(), vhost: rabbitmq.vhost.clone() },
            _own: own,
        }
    }

    /// Where the two differ, if they do.
    fn difference(&self, sequence: &[String]) -> Option<String> {
        // Both at once: each waits for its broker most of the time.
        let (rabbitmq, own) = std::thread::scope(|scope| {
            let own = scope.spawn(|| transcript::run(&self.own, sequence));
            (transcript::run(&self.rabbitmq, sequence), own.join())
        });
        let own = own.unwrap_or_else(|_| vec![vec!["the in-process broker did not answer".into()]]);
        if rabbitmq == own {
            return None;
        }
        let at = (0..sequence.len())
            .find(|&at| rabbitmq.get(at) != own.get(at))
            .unwrap_or(sequence.len().saturating_sub(1));
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

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect(variable))
}

/// Random sequences of operations. A difference is made as small as possible before it is shown.
#[test]
fn random_sequences_have_the_same_answers() {
    let count = number("LEVERET_SEQUENCES").unwrap_or(40);
    let first = number("LEVERET_SEED").unwrap_or(1);
    on_each_broker_within(Duration::from_secs(60 + 2 * count), |broker| {
        let pair = Pair::new(broker);
        for seed in first..first + count {
            let sequence = sequence::random(seed);
            if pair.difference(&sequence).is_some() {
                let smallest = shrink::shrink(sequence, |sequence| pair.difference(sequence).is_some());
                let difference = pair.difference(&smallest).unwrap_or_else(|| "not always".into());
                panic!("seed {seed} on {}: {difference}", broker.name);
            }
        }
        Ok(())
    });
}

/// Every sequence that ever showed a difference, and some that somebody wrote.
#[test]
fn kept_sequences_have_the_same_answers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/differential");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    on_each_broker_within(Duration::from_secs(300), |broker| {
        let pair = Pair::new(broker);
        let mut differences = Vec::new();
        for file in &files {
            let sequence = sequence::parse(&fs::read_to_string(file).unwrap());
            if let Some(difference) = pair.difference(&sequence) {
                differences.push(format!("{}: {difference}", file.display()));
            }
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
    let steady = Target { address: SocketAddr::from(([127, 0, 0, 1], 0)), vhost: "/".into() };
    let brokers = [Emulate::RabbitMq3, Emulate::RabbitMq4, Emulate::RabbitMq4]
        .map(|emulate| BrokerConfig::new().emulate(emulate).listen("127.0.0.1:0").unwrap());
    let transcripts = |sequence: &[String]| {
        brokers.each_ref().map(|broker| {
            let target = Target { address: broker.address().unwrap(), ..steady.clone() };
            transcript::run(&target, sequence)
        })
    };
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
