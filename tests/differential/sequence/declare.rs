//! What random sequences declare and bind.

use super::{KINDS, Plan, Theme, exchange, flags, key};

const BINDING_ARGUMENTS: [&str; 6] = [
    "x-match=all a=1",
    "x-match=any a=1 b=x",
    "a=1 b=x",
    "x-match=all-with-x x-c=true",
    "x-match=any-with-x x-c=true a=2",
    "x-match=odd",
];

pub(super) fn declare_queue(plan: &mut Plan, number: usize) -> String {
    match plan.theme {
        Theme::Quorum if number < 2 => return declare_quorum_queue(plan, number),
        Theme::Stream if number == 0 => return declare_stream(plan),
        _ => {}
    }
    let mut line = format!("queue.declare q{number}");
    for flag in ["durable", "exclusive", "auto_delete"] {
        if plan.random.u8(..8) == 0 {
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
        if plan.random.u8(..8) == 0 && !line.contains(limit.split_once('=').unwrap().0) {
            line += &format!(" {limit}");
        }
    }
    if plan.random.u8(..15) == 0 && !line.contains("x-message-ttl") {
        line += " x-message-ttl=0";
    }
    if plan.theme == Theme::Timers && !line.contains("x-message-ttl") {
        line += [" x-message-ttl=1500", " x-message-ttl=1500", " x-expires=2000", ""][plan.random.usize(..4)];
    }
    line += &dead_letters(plan, number);
    if plan.random.u8(..4) == 0 {
        line += [" x-overflow=reject-publish", " x-overflow=drop-head", " x-overflow=reject-publish-dlx"]
            [plan.random.usize(..3)];
    }
    if plan.random.u8(..40) == 0 {
        line += [" x-expires=0", " x-max-length=-1", " x-message-ttl=soon", " x-max-age=1D", " x-overflow=5"]
            [plan.random.usize(..5)];
    }
    line
}

fn dead_letters(plan: &mut Plan, number: usize) -> String {
    match plan.theme {
        Theme::Hops if number < 2 && plan.random.bool() => format!(" x-dead-letter-exchange=dx{number}"),
        Theme::Hops | Theme::Timers | Theme::Quorum if plan.random.bool() => {
            format!(" x-dead-letter-exchange=- x-dead-letter-routing-key=d{number}")
        }
        _ if plan.random.u8(..5) < 2 => {
            format!(" x-dead-letter-exchange=- x-dead-letter-routing-key=d{number}")
        }
        _ => String::new(),
    }
}

fn declare_quorum_queue(plan: &mut Plan, number: usize) -> String {
    let mut line = format!("queue.declare q{number} durable x-queue-type=quorum");
    let arguments = [
        "x-max-length=1",
        "x-max-length=3",
        "x-max-length-bytes=8",
        "x-message-ttl=600000",
        "x-single-active-consumer=true",
        "x-delivery-limit=1",
        "x-delivery-limit=2",
        "x-message-ttl=0",
        "x-overflow=reject-publish",
        "x-overflow=drop-head",
    ];
    for argument in arguments {
        if plan.random.u8(..8) == 0 && !line.contains(argument.split_once('=').unwrap().0) {
            line += &format!(" {argument}");
        }
    }
    if plan.random.u8(..30) == 0 {
        line += [
            " exclusive",
            " auto_delete",
            " x-max-priority=3",
            " x-overflow=reject-publish-dlx",
            " x-queue-mode=lazy",
            " x-delivery-limit=-1",
            " x-delivery-limit=many",
            " x-dead-letter-strategy=at-most-once",
            " x-dead-letter-strategy=often",
            " x-quorum-initial-group-size=1",
        ][plan.random.usize(..10)];
    }
    line + &dead_letters(plan, number)
}

fn declare_stream(plan: &mut Plan) -> String {
    let mut line = "queue.declare q0 durable x-queue-type=stream".to_owned();
    if plan.random.u8(..6) == 0 {
        line += [
            " exclusive",
            " auto_delete",
            " x-max-age=1h",
            " x-max-age=true",
            " x-max-length=5",
            " x-message-ttl=5",
            " x-max-length-bytes=1000000",
            " x-stream-max-segment-size-bytes=100000",
            " x-initial-cluster-size=1",
            " x-dead-letter-exchange=-",
        ][plan.random.usize(..10)];
    }
    line
}

pub(super) fn declare_exchange(plan: &mut Plan) -> String {
    let name = ["x0", "x1", "x2", "amq.direct", "amq.mine"][plan.random.usize(..5)];
    let mut line = format!("exchange.declare {name} {}", KINDS[plan.random.usize(..4)]);
    line += &flags(plan, &["durable", "auto_delete", "internal"]);
    if plan.random.u8(..3) == 0 {
        line += &format!(" alternate-exchange={}", exchange(plan));
    }
    line
}

pub(super) fn bind(plan: &mut Plan) -> String {
    let verb = if plan.random.u8(..4) == 0 { "unbind" } else { "bind" };
    let mut line = if plan.random.u8(..4) == 0 {
        format!("exchange.{verb} {} {} {}", exchange(plan), exchange(plan), key(plan))
    } else {
        format!("queue.{verb} q{} {} {}", plan.random.u8(..3), exchange(plan), key(plan))
    };
    if plan.random.u8(..3) == 0 {
        line += &format!(" {}", BINDING_ARGUMENTS[plan.random.usize(..BINDING_ARGUMENTS.len())]);
    }
    line
}
