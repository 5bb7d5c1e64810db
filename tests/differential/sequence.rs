//! Sequences of operations, as text and at random.
//!
//! A line is `CONNECTION CHANNEL`, a verb and its words: `A1 publish x0 a.b mandatory h.colour=red`. Connections are
//! A and B, each with the channels 1 and 2. A name `-` is the empty one. `name=value` is an argument: a number is
//! an `I` or what `i8:`, `i64:`, `f64:` say, `true` and `false` are truth values, anything else is text.
//!
//! What RabbitMQ leaves undefined is avoided: each channel consumes from one queue, and dead letters of each queue
//! go to a queue of their own. Nothing here depends on time, except that something expires at once, or never.

use fastrand::Rng;

const KINDS: [&str; 4] = ["direct", "fanout", "topic", "headers"];
const BINDING_ARGUMENTS: [&str; 6] = [
    "x-match=all a=1",
    "x-match=any a=1 b=x",
    "a=1 b=x",
    "x-match=all-with-x x-c=true",
    "x-match=any-with-x x-c=true a=2",
    "x-match=odd",
];
const KEYS: [&str; 7] = ["a", "a.b", "a.*", "#", "*.b", "a.#", "-"];

/// The lines that are neither empty nor comments.
pub fn parse(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// Always the same sequence for the same seed.
pub fn random(seed: u64) -> Vec<String> {
    let mut random = Rng::with_seed(seed);
    let random = &mut random;
    let mut declared: Vec<String> = (0..3).map(|number| declare_queue(random, number)).collect();
    let mut lines = vec!["A1 queue.declare d0".into(), "A1 queue.declare d1".into()];
    // Something to work with.
    lines.extend(declared.iter().take(2).map(|line| format!("A1 {line}")));
    lines.extend((0..2).map(|number| format!("A1 exchange.declare x{number} {}", KINDS[random.usize(..4)])));
    lines.extend((0..4).map(|_| format!("A1 {}", bind(random))));
    if random.bool() {
        lines.push(format!("A1 {}", ["confirm.select", "confirm.select", "tx.select"][random.usize(..3)]));
    }
    for channel in [1, 2] {
        for connection in ['A', 'B'] {
            if random.bool() {
                lines.push(format!("{connection}{channel} qos {}", random.u8(1..4)));
            }
            if random.bool() {
                lines.push(format!("{connection}{channel} {}", consume(random, channel)));
            }
        }
    }
    for _ in 0..random.usize(10..60) {
        let connection = if random.u8(..3) == 0 { 'B' } else { 'A' };
        let channel = random.u8(1..3);
        let operation = operation(random, channel, &mut declared);
        lines.push(format!("{connection}{channel} {operation}"));
    }
    lines
}

/// One of many things to do.
type Verb = fn(&mut Rng, u8, &mut [String]) -> String;

/// Each with its share of all operations.
const VERBS: &[(u32, Verb)] = &[
    (50, |random, _, _| publish(random)),
    (30, |random, _, _| settle(random)),
    (12, |random, channel, _| consume(random, channel)),
    (8, |random, _, _| format!("get {}{}", queue(random), flags(random, &["no_ack"]))),
    (5, |random, channel, _| format!("cancel {}", tag(random, channel))),
    (4, |random, _, _| format!("qos {}{}", random.u8(..4), flags(random, &["global"]))),
    (3, |_, _, _| "recover".into()),
    (4, |random, _, _| bind(random)),
    (5, declare_again),
    (1, |random, _, _| format!("queue.check {}", queue(random))),
    (1, |random, _, _| format!("queue.purge {}", queue(random))),
    (2, |random, _, _| {
        format!("queue.delete {}{}", queue(random), flags(random, &["if_unused", "if_empty"]))
    }),
    (1, |random, _, _| declare_exchange(random)),
    (1, |random, _, _| format!("exchange.check {}", exchange(random))),
    (1, |random, _, _| format!("exchange.delete {}{}", exchange(random), flags(random, &["if_unused"]))),
    (4, |random, _, _| {
        ["tx.commit", "tx.commit", "tx.rollback", "tx.select", "confirm.select"][random.usize(..5)].into()
    }),
    (2, |_, _, _| "channel.close".into()),
    (1, |_, _, _| "connection.close".into()),
];

fn operation(random: &mut Rng, channel: u8, declared: &mut [String]) -> String {
    let all: u32 = VERBS.iter().map(|(share, _)| share).sum();
    let mut chosen = random.u32(..all);
    for (share, verb) in VERBS {
        if chosen < *share {
            return verb(random, channel, declared);
        }
        chosen -= share;
    }
    unreachable!()
}

/// Mostly what has been declared before.
fn declare_again(random: &mut Rng, _: u8, declared: &mut [String]) -> String {
    let number = random.usize(..3);
    if random.u8(..4) == 0 {
        declared[number] = declare_queue(random, number);
    }
    declared[number].clone()
}

fn flags(random: &mut Rng, names: &[&str]) -> String {
    names.iter().filter(|_| random.u8(..4) == 0).map(|name| format!(" {name}")).collect()
}

fn queue(random: &mut Rng) -> &'static str {
    ["q0", "q0", "q0", "q0", "q1", "q1", "q1", "q2", "d0", "d0", "d1", "none"][random.usize(..12)]
}

fn exchange(random: &mut Rng) -> &'static str {
    let names = ["x0", "x1", "x2", "amq.direct", "amq.topic", "amq.headers", "none"];
    names[[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 3, 3, 4, 4, 5, 5, 6][random.usize(..18)]]
}

fn key(random: &mut Rng) -> &'static str {
    KEYS[random.usize(..KEYS.len())]
}

fn tag(random: &mut Rng, channel: u8) -> String {
    format!("t{channel}{}", random.u8(..3))
}

fn publish(random: &mut Rng) -> String {
    let mut line = match random.u8(..10) {
        0..6 => format!("publish - q{}", random.u8(..2)),
        6 => format!("publish x0 {}", key(random).replace(['*', '#'], "b")),
        _ => format!("publish {} {}", exchange(random), key(random).replace(['*', '#'], "b")),
    };
    line += &flags(random, &["mandatory", "priority=1", "priority=2", "h.a=1", "h.b=x", "h.x-c=true"]);
    if random.u8(..10) == 0 {
        line +=
            [" cc=q1", " bcc=q1", " cc=a bcc=a.b", " expiration=0", " expiration=600000"][random.usize(..5)];
    }
    if random.u8(..100) == 0 {
        line += [" expiration=x", " user=root", " immediate", " cc:a", " user=guest"][random.usize(..5)];
    }
    line
}

fn settle(random: &mut Rng) -> String {
    let verb = ["ack", "ack", "ack", "nack", "reject"][random.usize(..5)];
    let which = match random.u8(..20) {
        0 if random.bool() => "unknown".into(),
        0 | 1 => "all".into(),
        _ => random.u8(..4).to_string(),
    };
    let mut line = format!("{verb} {which}");
    if verb != "reject" {
        line += &flags(random, &["multiple"]);
    }
    if verb != "ack" && random.bool() {
        line += " requeue";
    }
    line
}

fn consume(random: &mut Rng, channel: u8) -> String {
    // Each channel from one queue: what comes from several has no order.
    let queue = if channel == 1 { "q0" } else { "q1" };
    let mut line = format!("consume {queue} {}{}", tag(random, channel), flags(random, &["no_ack"]));
    if random.u8(..6) == 0 {
        line += &format!(" x-priority={}", random.i8(-1..3));
    }
    if random.u8(..12) == 0 {
        line += " exclusive";
    }
    line
}

fn declare_queue(random: &mut Rng, number: usize) -> String {
    let mut line = format!("queue.declare q{number}");
    for flag in ["durable", "exclusive", "auto_delete"] {
        if random.u8(..8) == 0 {
            line += &format!(" {flag}");
        }
    }
    let limits = [
        "x-max-length=1",
        "x-max-length=3",
        "x-max-length-bytes=8",
        "x-max-priority=2",
        "x-message-ttl=600000",
        "x-single-active-consumer=true",
        "x-queue-mode=lazy",
        "x-anything=1",
    ];
    for limit in limits {
        if random.u8(..8) == 0 && !line.contains(limit.split_once('=').unwrap().0) {
            line += &format!(" {limit}");
        }
    }
    if random.u8(..10) == 0 && !line.contains("x-message-ttl") {
        line += " x-message-ttl=0";
    }
    if random.u8(..3) == 0 {
        line += &format!(" x-dead-letter-exchange=- x-dead-letter-routing-key=d{number}");
    }
    if random.u8(..4) == 0 {
        line += [" x-overflow=reject-publish", " x-overflow=drop-head", " x-overflow=reject-publish-dlx"]
            [random.usize(..3)];
    }
    if random.u8(..40) == 0 {
        line += [" x-expires=0", " x-max-length=-1", " x-message-ttl=soon", " x-max-age=1D", " x-overflow=5"]
            [random.usize(..5)];
    }
    line
}

fn declare_exchange(random: &mut Rng) -> String {
    let name = ["x0", "x1", "x2", "amq.direct", "amq.mine"][random.usize(..5)];
    let mut line = format!("exchange.declare {name} {}", KINDS[random.usize(..4)]);
    line += &flags(random, &["durable", "auto_delete", "internal"]);
    if random.u8(..3) == 0 {
        line += &format!(" alternate-exchange={}", exchange(random));
    }
    line
}

fn bind(random: &mut Rng) -> String {
    let verb = if random.u8(..4) == 0 { "unbind" } else { "bind" };
    let mut line = if random.u8(..4) == 0 {
        format!("exchange.{verb} {} {} {}", exchange(random), exchange(random), key(random))
    } else {
        format!("queue.{verb} q{} {} {}", random.u8(..3), exchange(random), key(random))
    };
    if random.u8(..3) == 0 {
        line += &format!(" {}", BINDING_ARGUMENTS[random.usize(..BINDING_ARGUMENTS.len())]);
    }
    line
}

#[test]
fn a_seed_always_means_the_same() {
    assert_eq!(random(7), random(7));
    assert_ne!(random(7), random(8));
}
