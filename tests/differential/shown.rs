//! What a broker said, as text. What differs from broker to broker by its nature is left out: the time of a death,
//! names that the broker made up, and how often a letter went round that goes round for ever.

use crate::{common::peer::Arguments, wire::Received};

/// How names begin that a broker makes up.
const MADE_UP: [&str; 3] = ["amq.gen-", "amq.ctag-", REPLY_ADDRESS];
const REPLY_ADDRESS: &str = "amq.rabbitmq.reply-to.";

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

/// Code, text and method of a close.
pub fn closed(arguments: &Arguments) -> String {
    let [code, class, method] = [0, 2, 3].map(|index| arguments.number(index));
    format!("closed {code} {} ({class}.{method})", masked(arguments.text(1)))
}

/// Exchange, key, headers and body. `at` is where the exchange stands in the arguments.
pub fn content_text(received: &Received, at: usize) -> String {
    let Received { arguments, properties, body, .. } = received;
    let properties: Vec<_> =
        set(properties).into_iter().map(|(name, value)| format!("{name}={}", masked(&value))).collect();
    format!(
        "{:?} {:?} {{{}}} {:?}",
        arguments.text(at),
        masked(arguments.text(at + 1)),
        properties.join(", "),
        String::from_utf8_lossy(body)
    )
}

/// The address for direct replies in the properties of a message.
pub fn reply_address(properties: &[u8]) -> Option<String> {
    let reply_to = set(properties).into_iter().find(|(name, _)| *name == "reply-to");
    reply_to.map(|(_, address)| address).filter(|address| address.starts_with(REPLY_ADDRESS))
}

/// With a star in place of what a broker made up.
pub fn masked(text: &str) -> String {
    let mut text = text.to_owned();
    for prefix in MADE_UP {
        let mut from = 0;
        while let Some(at) = text[from..].find(prefix) {
            let start = from + at + prefix.len();
            let made_up = |letter: char| letter.is_ascii_alphanumeric() || "-_+/=.".contains(letter);
            let end = text[start..].find(|letter| !made_up(letter)).map_or(text.len(), |end| start + end);
            text.replace_range(start..end, "*");
            from = start;
        }
    }
    text
}

/// The properties that are set.
fn set(mut rest: &[u8]) -> Vec<(&'static str, String)> {
    if rest.is_empty() {
        return Vec::new();
    }
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
        (*name, value)
    })
    .collect()
}

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

fn table(mut rest: &[u8]) -> String {
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let length = take(&mut rest, 1)[0];
        let name = text(take(&mut rest, length.into()));
        let value = value(&mut rest);
        let value = match name.as_str() {
            "time" => "T".to_owned(),
            "count" if is_many(&value) => "many".to_owned(),
            _ => value,
        };
        entries.push(format!("{name}: {value}"));
    }
    format!("{{{}}}", entries.join(", "))
}

/// In 3.x a letter that was rejected once can go round for ever, as often as there is time. Whatever has an end dies less
/// often than this in the same queue.
fn is_many(count: &str) -> bool {
    count.strip_prefix('l').and_then(|number| number.parse::<u64>().ok()).is_some_and(|number| number > 20)
}

fn value(rest: &mut &[u8]) -> String {
    let letter = take(rest, 1)[0];
    let shown = match letter {
        b'b' | b'B' | b't' => number(take(rest, 1)).to_string(),
        b's' | b'u' => number(take(rest, 2)).to_string(),
        b'I' | b'i' | b'f' => number(take(rest, 4)).to_string(),
        b'l' | b'd' | b'T' => number(take(rest, 8)).to_string(),
        b'S' | b'x' => text(long(rest)),
        b'D' => format!("{} {}", take(rest, 1)[0], number(take(rest, 4))),
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

#[test]
fn names_that_a_broker_made_up_are_masked() {
    assert_eq!(masked("no queue 'amq.gen-x_9' in vhost '/'"), "no queue 'amq.gen-*' in vhost '/'");
    assert_eq!(masked("amq.rabbitmq.reply-to.g1h=.x, amq.ctag-y"), "amq.rabbitmq.reply-to.*, amq.ctag-*");
    assert_eq!(masked("amq.rabbitmq.reply-to"), "amq.rabbitmq.reply-to");
}
