//! Sequences of operations, as text and at random.
//!
//! A line is `CONNECTION CHANNEL`, a verb and its words: `A1 publish x0 a.b mandatory h.colour=red`. Connections are
//! A and B, each with the channels 1 and 2. A name `-` is the empty one. `name=value` is an argument: a number is
//! an `I` or what `i8:`, `u32:`, `f64:` and their like say, `true` and `false` are truth values, anything else is text.
//!
//! `time:` makes a timestamp, `dec:` tenths; `bytes:` and `text:` are hexadecimal, `list:` has commas between its values, `table:` has
//! `name=value` with semicolons between.
//!
//! `ack 1` settles the second of the channel's deliveries that are not settled, `ack any1` that of the first channel after
//! it, round and round, that has one. C is a connection of a user who may not do everything. `@` is the address for direct
//! replies that was seen last. `wait 2500` lets so many milliseconds pass, `restart` stops the broker and starts it.
//!
//! After `tx.select apart` the channel leaves out what would bring publishes together with acks, nacks or rejects in one transaction.
//!
//! What RabbitMQ leaves undefined is avoided: each channel consumes from one queue, and dead letters of each queue
//! go to a queue of their own. What expires does so at once, or never, or in the time that a `wait` gives it.

mod declare;

use std::collections::BTreeMap;

use declare::{bind, declare_exchange, declare_queue};
use fastrand::Rng;

const KINDS: [&str; 4] = ["direct", "fanout", "topic", "headers"];
const KEYS: [&str; 7] = ["a", "a.b", "a.*", "#", "*.b", "a.#", "-"];

/// The lines that are neither empty nor comments.
pub fn parse(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// What a sequence is mostly about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Theme {
    Classic,
    Quorum,
    Stream,
    /// Direct replies, and a user who may not do everything.
    People,
    /// Dead letters that go on and on.
    Hops,
    Timers,
}

/// A sequence in the making.
struct Plan {
    random: Rng,
    theme: Theme,
    /// How each of the three queues was declared last.
    declared: [String; 3],
    /// Few consumers, so that messages stay in the queues.
    quiet: bool,
    /// A1 is in a transaction, or was.
    in_transaction: bool,
    /// Queues that probably hold a message, one for each: so that most of what is asked for is there.
    ready: Vec<&'static str>,
    /// Deliveries that are probably not settled.
    unacked: usize,
    /// Whether q0 and q1 probably have consumers.
    consumed: [bool; 2],
}

/// Always the same sequence for the same seed.
pub fn random(seed: u64) -> Vec<String> {
    let mut random = Rng::with_seed(seed);
    let theme = match random.u8(..40) {
        0..20 => Theme::Classic,
        20..27 => Theme::Quorum,
        27..30 => Theme::Stream,
        30..35 => Theme::People,
        35..39 => Theme::Hops,
        _ => Theme::Timers,
    };
    let (quiet, in_transaction) = (random.bool(), random.u8(..6) == 0);
    let (declared, ready) = Default::default();
    let mut plan =
        Plan { random, theme, declared, quiet, in_transaction, ready, unacked: 0, consumed: [false; 2] };
    plan.declared = [0, 1, 2].map(|number| declare_queue(&mut plan, number));
    let mut lines = prelude(&mut plan);
    let length = if theme == Theme::Timers { 5..16 } else { 15..70 };
    for _ in 0..plan.random.usize(length) {
        let connection = match plan.random.u8(..12) {
            0..4 => 'B',
            4..7 if theme == Theme::People => 'C',
            _ => 'A',
        };
        let channel = plan.random.u8(1..3);
        let operation = operation(&mut plan, channel);
        let place = format!("{connection}{channel}");
        let of_transaction = plan.in_transaction && operation.starts_with("tx.");
        lines.push(format!("{} {operation}", if of_transaction { "A1" } else { &place }));
    }
    match theme {
        Theme::Quorum => defined_for_quorum_queues(lines).into_iter().map(defined_for_transactions).collect(),
        Theme::Stream => defined_for_streams(lines),
        _ => lines.into_iter().map(defined_for_transactions).collect(),
    }
}

/// Leaves out what has no defined order: what a transaction settles, beside what it publishes.
fn defined_for_transactions(line: String) -> String {
    if line.ends_with(" tx.select") { line + " apart" } else { line }
}

/// Leaves out all but the first publish of each transaction. A stream keeps messages in chunks, and which of those that
/// come together share one is a matter of time. It can be seen: `last` is a chunk, and 3.x gives a chunk as a whole,
/// whatever the prefetch is.
fn defined_for_streams(mut lines: Vec<String>) -> Vec<String> {
    let mut is_first = true;
    if lines.iter().any(|line| line == "A1 tx.select") {
        lines.retain(|line| match line.starts_with("A1 publish ") {
            true => std::mem::take(&mut is_first),
            false => {
                is_first |= line.starts_with("A1 tx.");
                true
            }
        });
    }
    lines
}

/// Leaves out what has no defined order in quorum queues: several consumers on one channel, whose deliveries overtake
/// each other, and errors that end several channels at once.
fn defined_for_quorum_queues(lines: Vec<String>) -> Vec<String> {
    let mut consumers = BTreeMap::<String, String>::new();
    let mut kept = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let place = words[0].to_owned();
        match words[1..] {
            ["consume", _, _, ..] if consumers.contains_key(&place) => continue,
            ["consume", _, tag, ..] => drop(consumers.insert(place, tag.into())),
            ["cancel", _] => {
                if let Some(tag) = consumers.remove(&place) {
                    kept.push(format!("{place} cancel {tag}"));
                }
                continue;
            }
            ["channel.close"] => drop(consumers.remove(&place)),
            ["connection.close"] => consumers.retain(|other, _| other[..1] != place[..1]),
            _ => {}
        }
        let fatal = [" redeliver", " global", " if_unused", " if_empty", " immediate"];
        kept.push(fatal.iter().fold(line, |line, word| line.replace(word, "")));
    }
    // A queue of RabbitMQ 4 stands still when the active consumer gives back to one of higher priority.
    if kept.iter().any(|line| line.contains("x-single-active-consumer")) {
        kept.retain(|line| !line.contains(" x-priority="));
    }
    kept
}

/// Something to work with.
fn prelude(plan: &mut Plan) -> Vec<String> {
    let hop = if plan.theme == Theme::Hops { plan.random.usize(..4) } else { 4 };
    let hops = [
        " x-message-ttl=0 x-dead-letter-exchange=- x-dead-letter-routing-key=d2",
        " x-message-ttl=0 x-dead-letter-exchange=- x-dead-letter-routing-key=q0",
        " x-max-length=1 x-dead-letter-exchange=- x-dead-letter-routing-key=d2",
        " x-message-ttl=0 x-dead-letter-exchange=-",
        "",
    ];
    let mut lines: Vec<String> = vec![format!("A1 queue.declare d0{}", hops[hop])];
    lines.extend(["d1", "d2"].map(|name| format!("A1 queue.declare {name}")));
    if plan.theme == Theme::Hops {
        for number in 0..2 {
            let kind = ["fanout", "direct", "topic"][plan.random.usize(..3)];
            lines.push(format!("A1 exchange.declare dx{number} {kind}"));
            lines.push(format!("A1 queue.bind d{number} dx{number} {}", key(plan)));
            lines.push(format!("A1 queue.bind d{number} dx{number} q{number}"));
        }
    }
    lines.extend(plan.declared.iter().map(|line| format!("A1 {line}")));
    for number in 0..3 {
        let mut line = format!("A1 exchange.declare x{number} {}", KINDS[plan.random.usize(..4)]);
        if plan.random.u8(..4) == 0 {
            line += &format!(" alternate-exchange=x{}", plan.random.u8(..3));
        }
        lines.push(line);
    }
    lines.extend((0..6).map(|_| format!("A1 {}", bind(plan))));
    if plan.in_transaction {
        lines.push("A1 tx.select".into());
    }
    if plan.random.bool() {
        lines.push(format!("A{} confirm.select", if plan.in_transaction { 2 } else { plan.random.u8(1..3) }));
    }
    for channel in [1, 2] {
        for connection in ['A', 'B'] {
            // Streams are not consumed without.
            if plan.random.bool() || plan.theme == Theme::Stream {
                lines.push(format!("{connection}{channel} qos {}", plan.random.u8(1..4)));
            }
            if plan.random.u8(..if plan.quiet { 6 } else { 2 }) == 0 {
                lines.push(format!("{connection}{channel} {}", consume(plan, channel)));
            }
        }
    }
    lines
}

/// One of many things to do.
type Verb = fn(&mut Plan, u8) -> String;

/// Each with its share of all operations.
const VERBS: &[(u32, Verb)] = &[
    (50, |plan, _| publish(plan)),
    (30, |plan, _| settle(plan)),
    (
        12,
        |plan, channel| {
            if plan.quiet && plan.random.u8(..4) != 0 { get(plan) } else { consume(plan, channel) }
        },
    ),
    (8, |plan, _| get(plan)),
    (4, |plan, channel| format!("cancel {}", tag(plan, channel))),
    (4, |plan, _| qos(plan)),
    (3, |plan, _| if plan.random.u8(..30) == 0 { "recover redeliver".into() } else { "recover".into() }),
    (4, |plan, _| bind(plan)),
    (5, |plan, _| declare_again(plan)),
    (1, |plan, _| format!("queue.check {}", queue(plan))),
    (1, |plan, _| format!("queue.purge {}", queue(plan))),
    (2, |plan, _| format!("queue.delete {}{}", queue(plan), flags(plan, &["if_unused", "if_empty"]))),
    (1, |plan, _| declare_exchange(plan)),
    (1, |plan, _| format!("exchange.check {}", exchange(plan))),
    (1, |plan, _| format!("exchange.delete {}{}", exchange(plan), flags(plan, &["if_unused"]))),
    (1, |plan, _| server_named(plan)),
    (4, |plan, _| transaction(plan)),
    (2, |_, _| "channel.close".into()),
    (1, |_, _| "connection.close".into()),
];

fn operation(plan: &mut Plan, channel: u8) -> String {
    match plan.theme {
        Theme::People if plan.random.u8(..4) == 0 => return reply(plan),
        Theme::Timers if plan.random.u8(..6) == 0 => return "wait 2500".into(),
        _ => {}
    }
    let all: u32 = VERBS.iter().map(|(share, _)| share).sum();
    let mut chosen = plan.random.u32(..all);
    for (share, verb) in VERBS {
        if chosen < *share {
            return verb(plan, channel);
        }
        chosen -= share;
    }
    unreachable!()
}

/// Direct replies.
fn reply(plan: &mut Plan) -> String {
    const ALL: [&str; 12] = [
        "consume amq.rabbitmq.reply-to r no_ack",
        "consume amq.rabbitmq.reply-to r no_ack",
        "publish - q0 reply_to=amq.rabbitmq.reply-to",
        "publish - q0 reply_to=amq.rabbitmq.reply-to mandatory",
        "publish - q1 reply_to=amq.rabbitmq.reply-to",
        "publish - @",
        "publish - @ mandatory",
        "publish - @ h.a=1 persistent",
        "publish - amq.rabbitmq.reply-to.unknown mandatory",
        "queue.check @",
        "cancel r",
        "",
    ];
    const RARE: [&str; 6] = [
        "consume amq.rabbitmq.reply-to r",
        "consume amq.rabbitmq.reply-to s no_ack",
        "queue.check amq.rabbitmq.reply-to",
        "queue.check amq.rabbitmq.reply-to.unknown",
        "publish - amq.rabbitmq.reply-to mandatory",
        "publish - q0 reply_to=elsewhere",
    ];
    match ALL[plan.random.usize(..ALL.len())] {
        "" => RARE[plan.random.usize(..RARE.len())].into(),
        line => line.into(),
    }
}

fn get(plan: &mut Plan) -> String {
    let queue = match plan.ready.len() {
        0 => queue(plan),
        _ if plan.random.u8(..4) == 0 => queue(plan),
        count => {
            plan.unacked += 1;
            plan.ready.swap_remove(plan.random.usize(..count))
        }
    };
    format!("get {queue}{}", flags(plan, &["no_ack"]))
}

fn transaction(plan: &mut Plan) -> String {
    let lines = ["tx.commit", "tx.commit", "tx.commit", "tx.rollback", "tx.select", "confirm.select"];
    match plan.in_transaction {
        true => lines[plan.random.usize(..5)].into(),
        // An error, and the channel is gone.
        false if plan.random.u8(..6) == 0 => lines[plan.random.usize(..6)].into(),
        false => publish(plan),
    }
}

fn server_named(plan: &mut Plan) -> String {
    ["queue.declare - exclusive", "queue.bind - amq.direct a", "get -", "queue.check -", "queue.delete -"]
        [plan.random.usize(..5)]
    .into()
}

fn qos(plan: &mut Plan) -> String {
    let count = match plan.theme {
        Theme::Stream => plan.random.u8(1..4),
        _ => plan.random.u8(..4),
    };
    // What is neither classic nor without a limit refuses it, with its connection.
    let global = match plan.theme {
        Theme::Quorum | Theme::Stream => plan.random.u8(..20) == 0,
        _ => plan.random.u8(..4) == 0,
    };
    format!("qos {count}{}", if global { " global" } else { "" })
}

/// Mostly what has been declared before.
fn declare_again(plan: &mut Plan) -> String {
    let number = plan.random.usize(..3);
    if plan.random.u8(..4) == 0 {
        plan.declared[number] = declare_queue(plan, number);
    }
    plan.declared[number].clone()
}

fn flags(plan: &mut Plan, names: &[&str]) -> String {
    names.iter().filter(|_| plan.random.u8(..4) == 0).map(|name| format!(" {name}")).collect()
}

fn queue(plan: &mut Plan) -> &'static str {
    if plan.random.u8(..40) == 0 {
        return "none";
    }
    ["q0", "q0", "q0", "q0", "q0", "q1", "q1", "q1", "q2", "d0", "d0", "d1", "d2"][plan.random.usize(..13)]
}

fn exchange(plan: &mut Plan) -> &'static str {
    if plan.random.u8(..40) == 0 {
        return "none";
    }
    ["x0", "x0", "x0", "x0", "x1", "x1", "x1", "x2", "amq.direct", "amq.topic", "amq.headers"]
        [plan.random.usize(..11)]
}

fn key(plan: &mut Plan) -> &'static str {
    KEYS[plan.random.usize(..KEYS.len())]
}

fn tag(plan: &mut Plan, channel: u8) -> String {
    format!("t{channel}{}", plan.random.u8(..3))
}

fn publish(plan: &mut Plan) -> String {
    let mut line = match plan.random.u8(..10) {
        0..6 => {
            let number = plan.random.usize(..2);
            match plan.consumed[number] {
                true => plan.unacked += 1,
                false => plan.ready.push(["q0", "q1"][number]),
            }
            format!("publish - q{number}")
        }
        6 => format!("publish x0 {}", key(plan).replace(['*', '#'], "b")),
        _ => format!("publish {} {}", exchange(plan), key(plan).replace(['*', '#'], "b")),
    };
    line += &flags(plan, &["mandatory", "priority=1", "priority=5", "h.a=1", "h.b=x", "h.x-c=true"]);
    if plan.random.u8(..10) == 0 {
        line += [
            " cc=q1",
            " bcc=q1",
            " cc=a,q1 bcc=a.b",
            " expiration=0",
            " expiration=0",
            " expiration=600000",
            " persistent",
        ][plan.random.usize(..7)];
    }
    if plan.theme == Theme::Timers && plan.random.u8(..3) == 0 {
        line += " expiration=1000";
    }
    if plan.random.u8(..100) == 0 {
        line += [" expiration=x", " user=root", " immediate", " cc:a", " user=guest"][plan.random.usize(..5)];
    }
    line
}

fn settle(plan: &mut Plan) -> String {
    if plan.unacked == 0 && plan.random.u8(..6) != 0 {
        return if plan.ready.is_empty() { publish(plan) } else { get(plan) };
    }
    plan.unacked = plan.unacked.saturating_sub(1);
    let verb = ["ack", "ack", "nack", "reject"][plan.random.usize(..4)];
    let which = match plan.random.u8(..20) {
        0 if plan.random.bool() => "unknown".into(),
        0 | 1 => "all".into(),
        _ => format!("any{}", plan.random.u8(..4)),
    };
    let mut line = format!("{verb} {which}");
    if verb != "reject" {
        line += &flags(plan, &["multiple"]);
    }
    if verb != "ack" {
        let requeue = plan.random.bool();
        plan.ready.push(["d0", "d0", "d1", "q0"][if requeue { 3 } else { plan.random.usize(..3) }]);
        line += if requeue { " requeue" } else { "" };
    }
    line
}

fn consume(plan: &mut Plan, channel: u8) -> String {
    // Each channel from one queue: what comes from several has no order.
    let queue = if channel == 1 { "q0" } else { "q1" };
    plan.consumed[usize::from(channel - 1)] = true;
    let mut line = format!("consume {queue} {}", tag(plan, channel));
    if plan.theme == Theme::Stream && plan.declared[usize::from(channel - 1)].contains("=stream") {
        // What is neither text nor a number crashes RabbitMQ, and so does text that cannot be read.
        let offsets = ["first", "last", "next", "0", "2", "i64:5", "time:0", "1h", "-1", "-2"];
        let offset = offsets[[0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7][plan.random.usize(..11)]];
        return match plan.random.u8(..20) {
            0 => line,
            1 => format!("{line} no_ack"),
            2 => format!("{line} x-stream-offset={}", offsets[plan.random.usize(8..10)]),
            _ => format!("{line} x-stream-offset={offset}"),
        };
    }
    line += &flags(plan, &["no_ack"]);
    if plan.random.u8(..6) == 0 {
        line += &format!(" x-priority={}", plan.random.i8(-1..3));
    }
    if plan.random.u8(..12) == 0 {
        line += " exclusive";
    }
    line
}

#[test]
fn a_seed_always_means_the_same() {
    assert_eq!(random(7), random(7));
    assert_ne!(random(7), random(8));
}
