//! Arguments of queues and consumers: what is understood, what is refused, and with which text.

use super::{
    Emulate, Refusal,
    values::{difference, integer, term, type_name},
};
use crate::protocol::value::{FieldTable, FieldValue};

/// What a queue is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueType {
    Classic,
    Quorum,
    Stream,
}

impl QueueType {
    /// The type that the arguments ask for; an unknown one is refused by [`check_queue_arguments`].
    pub(super) fn of(arguments: &FieldTable) -> QueueType {
        match arguments.get("x-queue-type").and_then(FieldValue::as_str) {
            Some("quorum") => QueueType::Quorum,
            Some("stream") => QueueType::Stream,
            _ => QueueType::Classic,
        }
    }

    /// RabbitMQ's module, which stands in its texts.
    pub(super) fn module(self) -> &'static str {
        match self {
            QueueType::Classic => "rabbit_classic_queue",
            QueueType::Quorum => "rabbit_quorum_queue",
            QueueType::Stream => "rabbit_stream_queue",
        }
    }

    /// The arguments that this type understands, in the order in which they are compared.
    fn arguments(self, emulate: Emulate) -> &'static [&'static str] {
        match self {
            QueueType::Classic if emulate == Emulate::RabbitMq3 => {
                CLASSIC.split_last().map_or(CLASSIC, |(_, rest)| rest)
            }
            QueueType::Classic => CLASSIC,
            QueueType::Quorum => QUORUM,
            QueueType::Stream => STREAM,
        }
    }

    fn consumer_arguments(self, emulate: Emulate) -> &'static [&'static str] {
        match (self, emulate) {
            (QueueType::Classic, Emulate::RabbitMq3) => &["x-priority", "x-cancel-on-ha-failover"],
            (QueueType::Classic | QueueType::Quorum, _) => &["x-priority"],
            (QueueType::Stream, Emulate::RabbitMq3) => &["x-stream-offset"],
            (QueueType::Stream, Emulate::RabbitMq4) => {
                &["x-stream-offset", "x-stream-filter", "x-stream-match-unfiltered"]
            }
        }
    }

    const ALL: [QueueType; 3] = [QueueType::Classic, QueueType::Quorum, QueueType::Stream];
}

/// The last one came with 4.0.
const CLASSIC: &[&str] = &[
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-overflow",
    "x-queue-mode",
    "x-queue-version",
    "x-single-active-consumer",
    "x-queue-type",
    "x-queue-master-locator",
    "x-queue-leader-locator",
];
const QUORUM: &[&str] = &[
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-expires",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-overflow",
    "x-single-active-consumer",
    "x-queue-type",
    "x-quorum-initial-group-size",
    "x-delivery-limit",
    "x-message-ttl",
    "x-queue-leader-locator",
];
const STREAM: &[&str] = &[
    "x-max-length-bytes",
    "x-queue-type",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-initial-cluster-size",
    "x-queue-leader-locator",
];

/// What an argument may depend on.
#[derive(Clone, Copy)]
struct Beside<'a> {
    arguments: &'a FieldTable,
    emulate: Emulate,
}

/// How an argument is checked. The error is what RabbitMQ prints behind the colon.
type Check = fn(&FieldValue, Beside<'_>) -> Result<(), String>;

/// In RabbitMQ's order: the first wrong argument is the one that is reported.
const CHECKS: &[(&str, Check)] = &[
    ("x-expires", expires),
    ("x-message-ttl", time_to_live),
    ("x-dead-letter-exchange", text),
    ("x-dead-letter-routing-key", dead_letter_routing_key),
    ("x-dead-letter-strategy", dead_letter_strategy),
    ("x-max-length", not_negative),
    ("x-max-length-bytes", not_negative),
    ("x-max-in-memory-length", not_negative),
    ("x-max-in-memory-bytes", not_negative),
    ("x-max-priority", max_priority),
    ("x-overflow", overflow),
    ("x-queue-mode", queue_mode),
    ("x-queue-version", queue_version),
    ("x-single-active-consumer", truth),
    ("x-quorum-initial-group-size", cluster_size),
    ("x-max-age", max_age),
    ("x-stream-max-segment-size-bytes", not_negative),
    ("x-initial-cluster-size", cluster_size),
    ("x-queue-leader-locator", leader_locator),
    ("x-queue-master-locator", master_locator),
];

const CONSUMER_CHECKS: &[(&str, Check)] =
    &[("x-priority", whole), ("x-cancel-on-ha-failover", truth), ("x-stream-offset", stream_offset)];

/// Refuses arguments of a new queue that RabbitMQ refuses. `queue` is `queue 'name' in vhost 'name'`.
pub(super) fn check_queue_arguments(
    queue: &str,
    arguments: &FieldTable,
    emulate: Emulate,
) -> Result<(), Refusal> {
    let beside = Beside { arguments, emulate };
    check(queue, beside, "x-queue-type", queue_type)?;
    let kind = QueueType::of(arguments);
    let known = kind.arguments(emulate);
    for (name, rule) in CHECKS.iter().filter(|(name, _)| known.contains(name)) {
        check(queue, beside, name, *rule)?;
    }
    let of_others = |name: &str| QueueType::ALL.iter().any(|kind| kind.arguments(emulate).contains(&name));
    refuse_those_of_others(queue, kind, arguments, known, of_others)
}

/// The largest segment of a stream.
const MAX_SEGMENT: i64 = 3_000_000_000;

/// Refuses sizes that a new stream cannot have: what RabbitMQ looks at last, and says in other words.
pub(super) fn check_stream_sizes(arguments: &FieldTable, emulate: Emulate) -> Result<(), Refusal> {
    let size = |name: &str| arguments.get(name).map(|value| integer(value).unwrap_or(i64::MAX));
    if size("x-stream-max-segment-size-bytes").is_some_and(|size| size > MAX_SEGMENT) {
        return Err(Refusal::precondition("Exceeded max value for x-stream-max-segment-size-bytes"));
    }
    let filter = size("x-stream-filter-size-bytes").filter(|_| emulate != Emulate::RabbitMq3);
    if filter.is_some_and(|size| !(16..=255).contains(&size)) {
        return Err(Refusal::precondition("Invalid value for  x-stream-filter-size-bytes"));
    }
    Ok(())
}

/// Refuses arguments of a consumer that RabbitMQ refuses.
pub(super) fn check_consumer_arguments(
    queue: &str,
    kind: QueueType,
    arguments: &FieldTable,
    emulate: Emulate,
) -> Result<(), Refusal> {
    let known = kind.consumer_arguments(emulate);
    for (name, rule) in CONSUMER_CHECKS.iter().filter(|(name, _)| known.contains(name)) {
        check(queue, Beside { arguments, emulate }, name, *rule)?;
    }
    let of_others =
        |name: &str| QueueType::ALL.iter().any(|kind| kind.consumer_arguments(emulate).contains(&name));
    refuse_those_of_others(queue, kind, arguments, known, of_others)
}

fn check(queue: &str, beside: Beside<'_>, name: &str, rule: Check) -> Result<(), Refusal> {
    match beside.arguments.get(name).map(|value| rule(value, beside)) {
        Some(Err(problem)) => {
            Err(Refusal::precondition(format!("invalid arg '{name}' for {queue}: {problem}")))
        }
        _ => Ok(()),
    }
}

/// An argument that nobody knows is accepted; one that only another type of queue knows is not.
fn refuse_those_of_others(
    queue: &str,
    kind: QueueType,
    arguments: &FieldTable,
    known: &[&str],
    of_others: impl Fn(&str) -> bool,
) -> Result<(), Refusal> {
    match arguments.iter().find(|(name, _)| !known.contains(name) && of_others(name)) {
        Some((name, _)) => {
            let module = kind.module();
            Err(Refusal::precondition(format!("invalid arg '{name}' for {queue} of queue type {module}")))
        }
        None => Ok(()),
    }
}

/// Refuses a declaration whose arguments differ from those of what exists, as far as its type compares them.
pub(super) fn check_equivalence(
    what: &str,
    existing: &FieldTable,
    new: &FieldTable,
    kind: Option<QueueType>,
    emulate: Emulate,
) -> Result<(), Refusal> {
    let compared = kind.map_or(&["alternate-exchange"][..], |kind| kind.arguments(emulate));
    let classic = FieldValue::from("classic");
    for &name in compared {
        let (mut old, mut new) = (existing.get(name), new.get(name));
        // A queue without a type is a classic one; only 3.x still tells "not said" from "said" in the text.
        if name == "x-queue-type" {
            let is_classic = |value: Option<&FieldValue>| value.is_none_or(|value| *value == classic);
            if emulate != Emulate::RabbitMq3 || (is_classic(old) && is_classic(new)) {
                (old, new) = (old.or(Some(&classic)), new.or(Some(&classic)));
            }
        }
        if let Some((received, current)) = difference(old, new) {
            return Err(inequivalent(name, what, &received, &current));
        }
    }
    Ok(())
}

/// For flags: `received` and `current` with their quotes.
pub(super) fn inequivalent(name: &str, what: &str, received: &str, current: &str) -> Refusal {
    Refusal::precondition(format!(
        "inequivalent arg '{name}' for {what}: received {received} but current is {current}"
    ))
}

/// The largest time to live, in milliseconds: ten years.
const MAX_EXPIRY: i64 = 315_360_000_000;

pub(super) fn check_expiry(milliseconds: i64) -> Result<(), String> {
    match milliseconds {
        ..0 => Err(format!("{{value_negative,{milliseconds}}}")),
        0..=MAX_EXPIRY => Ok(()),
        _ => Err(format!("{{value_too_large,{milliseconds}}}")),
    }
}

fn whole_number(value: &FieldValue) -> Result<i64, String> {
    integer(value).ok_or_else(|| format!("\"expected integer, got {}\"", type_name(value)))
}

fn unacceptable(value: &FieldValue) -> String {
    format!("{{unacceptable_type,{}}}", type_name(value))
}

fn whole(value: &FieldValue, _: Beside<'_>) -> Result<(), String> {
    whole_number(value).map(drop)
}

fn not_negative(value: &FieldValue, _: Beside<'_>) -> Result<(), String> {
    match whole_number(value)? {
        number @ ..0 => Err(format!("{{value_negative,{number}}}")),
        _ => Ok(()),
    }
}

fn expires(value: &FieldValue, _: Beside<'_>) -> Result<(), String> {
    match whole_number(value)? {
        0 => Err("{value_zero,0}".into()),
        number => check_expiry(number),
    }
}

fn time_to_live(value: &FieldValue, _: Beside<'_>) -> Result<(), String> {
    check_expiry(whole_number(value)?)
}

fn max_priority(value: &FieldValue, beside: Beside<'_>) -> Result<(), String> {
    not_negative(value, beside)?;
    match whole_number(value)? {
        number @ 256.. => Err(format!("{{max_value_exceeded,{number}}}")),
        _ => Ok(()),
    }
}

fn cluster_size(value: &FieldValue, beside: Beside<'_>) -> Result<(), String> {
    not_negative(value, beside)?;
    if whole_number(value)? == 0 { Err("{value_zero,0}".into()) } else { Ok(()) }
}

fn truth(value: &FieldValue, _: Beside<'_>) -> Result<(), String> {
    value.as_bool().map(drop).ok_or_else(|| unacceptable(value))
}

fn text(value: &FieldValue, _: Beside<'_>) -> Result<(), String> {
    if matches!(value, FieldValue::LongString(_)) { Ok(()) } else { Err(unacceptable(value)) }
}

/// A text out of `allowed`, else `problem`.
fn one_of(value: &FieldValue, allowed: &[&str], problem: impl Fn(&str) -> String) -> Result<(), String> {
    let FieldValue::LongString(bytes) = value else { return Err(unacceptable(value)) };
    let text = String::from_utf8_lossy(bytes);
    if allowed.contains(&&*text) { Ok(()) } else { Err(problem(&text)) }
}

fn dead_letter_routing_key(value: &FieldValue, beside: Beside<'_>) -> Result<(), String> {
    text(value, beside)?;
    match beside.arguments.get("x-dead-letter-exchange") {
        Some(_) => Ok(()),
        None => Err("routing_key_but_no_dlx_defined".into()),
    }
}

fn dead_letter_strategy(value: &FieldValue, _: Beside<'_>) -> Result<(), String> {
    one_of(value, &["at-most-once", "at-least-once"], |_| "invalid_dlx_strategy".into())
}

fn overflow(value: &FieldValue, _: Beside<'_>) -> Result<(), String> {
    one_of(value, &["drop-head", "reject-publish", "reject-publish-dlx"], |_| "invalid_overflow".into())
}

fn queue_mode(value: &FieldValue, _: Beside<'_>) -> Result<(), String> {
    one_of(value, &["default", "lazy"], |mode| format!("\"unsupported queue mode '{mode}'\""))
}

fn queue_type(value: &FieldValue, _: Beside<'_>) -> Result<(), String> {
    one_of(value, &["classic", "quorum", "stream"], |kind| format!("\"unsupported queue type '{kind}'\""))
}

fn leader_locator(value: &FieldValue, beside: Beside<'_>) -> Result<(), String> {
    let known = match beside.emulate {
        Emulate::RabbitMq3 => &["client-local", "balanced", "random", "least-leaders"][..],
        Emulate::RabbitMq4 => &["client-local", "balanced", "random", "least-leaders", "min-masters"],
    };
    one_of(value, known, |_| "invalid_queue_locator_arg".into())
}

/// What is wrong crashes 3.x, and 4.x does not look at it.
fn master_locator(value: &FieldValue, beside: Beside<'_>) -> Result<(), String> {
    match beside.emulate {
        Emulate::RabbitMq3 => {
            one_of(value, &["client-local", "min-masters", "random"], |_| "invalid_queue_locator_arg".into())
        }
        Emulate::RabbitMq4 => Ok(()),
    }
}

fn queue_version(value: &FieldValue, beside: Beside<'_>) -> Result<(), String> {
    not_negative(value, beside)?;
    match whole_number(value)? {
        1 | 2 => Ok(()),
        other => Err(format!("\"unsupported queue version '{other}'\"")),
    }
}

fn max_age(value: &FieldValue, beside: Beside<'_>) -> Result<(), String> {
    text(value, beside)?;
    match value.as_str().and_then(age_in_seconds) {
        Some(_) => Ok(()),
        None => Err("invalid_max_age".into()),
    }
}

/// `7D`, `12h`, …: a number and a unit, in seconds.
pub(super) fn age_in_seconds(age: &str) -> Option<u64> {
    let (number, unit) = age.split_at_checked(age.len().checked_sub(1)?)?;
    let unit: u64 = match unit {
        "Y" => 365 * 24 * 3600,
        "M" => 30 * 24 * 3600,
        "D" => 24 * 3600,
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        _ => return None,
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // What is too large for a number is for ever, as what is nearly so.
    let number = number.parse::<u64>().unwrap_or(u64::MAX);
    (number > 0).then(|| number.saturating_mul(unit))
}

fn stream_offset(value: &FieldValue, _: Beside<'_>) -> Result<(), String> {
    let ok = match value {
        FieldValue::LongString(_) => value
            .as_str()
            .is_some_and(|text| matches!(text, "first" | "last" | "next") || age_in_seconds(text).is_some()),
        FieldValue::Timestamp(_) => true,
        other => integer(other).is_some(),
    };
    if ok {
        return Ok(());
    }
    Err(format!("{{invalid_stream_offset_arg,{{{},{}}}}}", type_name(value), term(value)))
}
