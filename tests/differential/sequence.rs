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
const BINDING_ARGUMENTS: [&str; 7] = [
    "",
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
    let mut lines = vec![];
    // Something to work with.
    for queue in 0..2 {
        lines.push(format!("A1 {}", declare_queue(&mut random, queue)));
        lines.push(format!("A1 queue.declare d{queue}"));
        lines.push(format!("A1 exchange.declare x{queue} {}", KINDS[random.usize(..4)]));
    }
    let count = random.usize(10..60);
    for _ in 0..count {
        let connection = if random.u8(..3) == 0 { 'B' } else { 'A' };
        let channel = random.u8(1..3);
        lines.push(format!("{connection}{channel} {}", operation(&mut random, channel)));
    }
    lines
}

/// Each with its probability, in parts of all of them.
fn operation(random: &mut Rng, channel: u8) -> String {
    let verbs: &[(u32, fn(&mut Rng, u8) -> String)] = &[
        (40, |random, _| publish(random)),
        (18, |random, _| settle(random)),
        (12, |random, channel| consume(random, channel)),
        (8, |random, _| format!("get {}{}", queue(random), flags(random, &["no_ack"]))),
        (4, |random, channel| format!("cancel {}", tag(random, channel))),
        (6, |random, _| format!("qos {}{}", random.u8(..4), flags(random, &["global"]))),
        (3, |_, _| "recover".into()),
        (8, |random, _| bind(random)),
        (5, |random, _| {
            let number = random.usize(..3);
            declare_queue(random, number)
        }),
        (2, |random, _| format!("queue.check {}", queue(random))),
        (2, |random, _| format!("queue.purge {}", queue(random))),
        (3, |random, _| {
            format!("queue.delete {}{}", queue(random), flags(random, &["if_unused", "if_empty"]))
        }),
        (4, |random, _| declare_exchange(random)),
        (1, |random, _| format!("exchange.check {}", exchange(random))),
        (2, |random, _| format!("exchange.delete {}{}", exchange(random), flags(random, &["if_unused"]))),
        (3, |random, _| {
            ["confirm.select", "tx.select", "tx.commit", "tx.rollback"][random.usize(..4)].into()
        }),
        (2, |_, _| "channel.close".into()),
        (1, |_, _| "connection.close".into()),
    ];
    let mut chosen = random.u32(..verbs.iter().map(|(share, _)| share).sum());
    for (share, verb) in verbs {
        if chosen < *share {
            return verb(random, channel);
        }
        chosen -= share;
    }
    unreachable!()
}

fn flags(random: &mut Rng, names: &[&str]) -> String {
    names.iter().filter(|_| random.u8(..4) == 0).map(|name| format!(" {name}")).collect()
}

fn queue(random: &mut Rng) -> &'static str {
    ["q0", "q0", "q0", "q1", "q1", "q2", "d0", "d1", "none"][random.usize(..9)]
}

fn exchange(random: &mut Rng) -> &'static str {
    ["x0", "x0", "x1", "x1", "x2", "amq.direct", "amq.topic", "amq.headers", "none"][random.usize(..9)]
}

fn key(random: &mut Rng) -> &'static str {
    KEYS[random.usize(..KEYS.len())]
}

fn tag(random: &mut Rng, channel: u8) -> String {
    format!("t{channel}{}", random.u8(..3))
}

fn publish(random: &mut Rng) -> String {
    let mut line = match random.u8(..10) {
        0..5 => format!("publish - q{}", random.u8(..2)),
        _ => format!("publish {} {}", exchange(random), key(random).replace(['*', '#'], "b")),
    };
    line += &flags(random, &["mandatory", "priority=1", "priority=2", "h.a=1", "h.b=x", "h.x-c=true"]);
    if random.u8(..10) == 0 {
        line +=
            [" cc=q1", " bcc=q1", " cc=a bcc=a.b", " expiration=0", " expiration=600000"][random.usize(..5)];
    }
    if random.u8(..60) == 0 {
        line += [" expiration=x", " user=root", " immediate", " cc:a", " user=guest"][random.usize(..5)];
    }
    line
}

fn settle(random: &mut Rng) -> String {
    let verb = ["ack", "ack", "ack", "nack", "reject"][random.usize(..5)];
    let which = match random.u8(..20) {
        0 => "unknown".into(),
        1 => "all".into(),
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
    let queue = if channel == 1 { "q0" } else { ["q1", "d0"][0] };
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
        "x-message-ttl=0",
        "x-message-ttl=600000",
        "x-single-active-consumer=true",
        "x-queue-mode=lazy",
        "x-anything=1",
    ];
    for limit in limits {
        if random.u8(..10) == 0 && !line.contains(limit.split_once('=').unwrap().0) {
            line += &format!(" {limit}");
        }
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
        line += &format!(" {}", BINDING_ARGUMENTS[random.usize(1..BINDING_ARGUMENTS.len())]);
    }
    line
}

/// With what exchanges may have been bound to each other.
pub fn bindings() -> impl Iterator<Item = (String, &'static str)> {
    let keys = KEYS.iter().map(|key| if *key == "-" { String::new() } else { (*key).to_owned() });
    keys.flat_map(|key| BINDING_ARGUMENTS.iter().map(move |arguments| (key.clone(), *arguments)))
}

#[test]
fn a_seed_always_means_the_same() {
    assert_eq!(random(7), random(7));
    assert_ne!(random(7), random(8));
}
