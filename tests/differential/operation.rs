//! One operation: from its words to the method that is sent, and the answer that is waited for.

use crate::{client::Connection, common::peer::*};

/// What operations are done on.
pub const CHANNELS: [u16; 2] = [1, 2];

/// The properties of a message, as sequences name them. `persistent` is `mode=2`, and headers are given one by one.
const PROPERTIES: [&str; 14] = [
    "content",
    "encoding",
    "headers",
    "mode",
    "priority",
    "correlation",
    "reply_to",
    "expiration",
    "id",
    "timestamp",
    "type",
    "user",
    "app",
    "cluster",
];

/// A verb and what follows it.
#[derive(Clone, Copy)]
pub struct Words<'a>(pub &'a [&'a str]);

impl<'a> Words<'a> {
    pub fn name(&self, index: usize) -> &'a str {
        match self.0.get(index) {
            Some(&"-") | None => "",
            Some(name) => name,
        }
    }

    pub fn has(&self, flag: &str) -> bool {
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
    pub fn table(&self) -> Vec<u8> {
        let pairs = self.0.iter().filter_map(|word| word.split_once('='));
        pairs.flat_map(|(name, value)| entry(name, value)).collect()
    }
}

/// An entry of a table.
fn entry(name: &str, text: &str) -> Vec<u8> {
    [&[name.len() as u8], name.as_bytes(), &value(text)].concat()
}

/// A value, after the letter of its type.
fn value(text: &str) -> Vec<u8> {
    let (kind, rest) = text.split_once(':').unwrap_or(("", text));
    let (letter, bytes) = match kind {
        "i8" => (b'b', rest.parse::<i8>().unwrap().to_be_bytes().to_vec()),
        "u8" => (b'B', rest.parse::<u8>().unwrap().to_be_bytes().to_vec()),
        "i16" => (b's', rest.parse::<i16>().unwrap().to_be_bytes().to_vec()),
        "u16" => (b'u', rest.parse::<u16>().unwrap().to_be_bytes().to_vec()),
        "u32" => (b'i', rest.parse::<u32>().unwrap().to_be_bytes().to_vec()),
        "i64" => (b'l', rest.parse::<i64>().unwrap().to_be_bytes().to_vec()),
        "f32" => (b'f', rest.parse::<f32>().unwrap().to_be_bytes().to_vec()),
        "f64" => (b'd', rest.parse::<f64>().unwrap().to_be_bytes().to_vec()),
        "time" => (b'T', rest.parse::<u64>().unwrap().to_be_bytes().to_vec()),
        "dec" => (b'D', [&[1], &rest.parse::<u32>().unwrap().to_be_bytes()[..]].concat()),
        "bytes" => (b'x', sized(&hex(rest))),
        "text" => (b'S', sized(&hex(rest))),
        "list" => (
            b'A',
            sized(&rest.split(',').filter(|item| !item.is_empty()).flat_map(value).collect::<Vec<_>>()),
        ),
        "table" => {
            let entries = rest.split(';').filter_map(|entry| entry.split_once('='));
            (b'F', sized(&entries.flat_map(|(name, value)| entry(name, value)).collect::<Vec<_>>()))
        }
        _ if text == "void" => (b'V', Vec::new()),
        _ => match (text.parse::<i32>(), text.parse::<bool>()) {
            (Ok(number), _) => (b'I', number.to_be_bytes().to_vec()),
            (_, Ok(truth)) => (b't', vec![u8::from(truth)]),
            _ => (b'S', sized(if text == "-" { b"" } else { text.as_bytes() })),
        },
    };
    [&[letter], &bytes[..]].concat()
}

fn hex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// Flags and fields of a publish.
fn properties(words: &Words<'_>) -> Vec<u8> {
    let mut headers = Vec::new();
    for word in words.0 {
        if let Some((name, value)) = word.strip_prefix("h.").and_then(|word| word.split_once('=')) {
            headers.extend(entry(name, value));
        }
        if let Some((name, keys)) = word.split_once('=').filter(|(name, _)| ["cc", "bcc"].contains(name)) {
            let items: Vec<u8> =
                keys.split(',').flat_map(|key| [b"S".to_vec(), sized(key.as_bytes())].concat()).collect();
            headers.push(name.len() as u8);
            headers.extend(name.to_uppercase().bytes());
            headers.push(b'A');
            headers.extend((items.len() as u32).to_be_bytes());
            headers.extend(items);
        }
        if let Some(key) = word.strip_prefix("cc:") {
            headers.extend(entry("CC", key));
        }
    }
    let (mut flags, mut fields) = (0u16, Vec::new());
    for (place, name) in PROPERTIES.iter().enumerate() {
        let field = match (*name, words.value(name)) {
            ("headers", _) if headers.is_empty() => None,
            ("headers", _) => Some(sized(&headers)),
            ("mode", None) => words.has("persistent").then(|| vec![2]),
            ("mode" | "priority", value) => value.map(|value| vec![value.parse().unwrap()]),
            ("timestamp", value) => value.map(|value| value.parse::<u64>().unwrap().to_be_bytes().to_vec()),
            (_, value) => value.map(|value| {
                let text = if value == "-" { "" } else { value };
                [&[text.len() as u8], text.as_bytes()].concat()
            }),
        };
        flags |= u16::from(field.is_some()) << (15 - place);
        fields.extend(field.into_iter().flatten());
    }
    [flags.to_be_bytes().to_vec(), fields].concat()
}

/// `at` is the number of the operation.
pub fn perform(connection: &mut Connection, number: u16, at: usize, words: Words<'_>) {
    if !connection.channel(number).may(words.0[0]) {
        return;
    }
    let table = words.table();
    let name = |index: usize| words.name(index);
    let (method, arguments): (Method, Vec<Value>) = match words.0[0] {
        "publish" => return publish(connection, number, at, words),
        "ack" | "nack" | "reject" => return settle(connection, number, words),
        "consume" => {
            // Known before the first delivery; a tag that is taken keeps its meaning.
            let known = &mut connection.channel(number).no_ack;
            known.entry(name(2).into()).or_insert(words.has("no_ack"));
            connection.channel(number).queues.insert(name(2).into(), name(1).into());
            let bits = words.bits(&["no_local", "no_ack", "exclusive"]);
            (CONSUME, args![0, name(1), name(2), bits, &*table].to_vec())
        }
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
        "queue.delete" => (QUEUE_DELETE, args![0, name(1), words.bits(&["if_unused", "if_empty"])].to_vec()),
        "queue.bind" => (QUEUE_BIND, args![0, name(1), name(2), name(3), 0, &*table].to_vec()),
        "queue.unbind" => (QUEUE_UNBIND, args![0, name(1), name(2), name(3), &*table].to_vec()),
        "get" => {
            connection.channel(number).fetched = name(1).into();
            (GET, args![0, name(1), words.bits(&["no_ack"])].to_vec())
        }
        "cancel" => (CANCEL, args![name(1), 0].to_vec()),
        "qos" => (QOS, args![0, words.name(1).parse::<u64>().unwrap(), words.bits(&["global"])].to_vec()),
        "recover" => (RECOVER, args![u64::from(!words.has("redeliver"))].to_vec()),
        "confirm.select" => (CONFIRM_SELECT, args![0].to_vec()),
        "tx.select" => (TX_SELECT, Vec::new()),
        "tx.commit" => (TX_COMMIT, Vec::new()),
        "tx.rollback" => (TX_ROLLBACK, Vec::new()),
        "channel.close" => (CHANNEL_CLOSE, args![200, "", 0, 0].to_vec()),
        "flow" => (FLOW, args![0].to_vec()),
        _ => return,
    };
    connection.ask(number, method, &arguments);
    if method == RECOVER {
        connection.channel(number).unacked.clear();
    }
    let Some(received) = connection.answer(number) else { return };
    if received.method == CHANNEL_CLOSE_OK {
        connection.forget(number);
        connection.wire.send(number, CHANNEL_OPEN, args![""]);
    }
    connection.channel(number).answered(&received, words.has("no_ack"));
    connection.channel(number).apart |= words.has("apart");
}

fn publish(connection: &mut Connection, number: u16, at: usize, words: Words<'_>) {
    let arguments = args![0, words.name(1), words.name(2), words.bits(&["mandatory", "immediate"])];
    let body = format!("m{at}");
    let properties = properties(&words);
    connection.wire.write(&content(number, PUBLISH, arguments, &properties, body.as_bytes(), 1000));
    connection.channel(number).publish();
}

fn settle(connection: &mut Connection, number: u16, words: Words<'_>) {
    let channel = connection.channel(number);
    let Some((tag, multiple)) = channel.meant(words) else {
        channel.lines.push(format!("nothing to settle for {}", words.name(1)));
        return;
    };
    channel.settle(tag, multiple);
    let (multiple, requeue) = (u64::from(multiple), words.bits(&["requeue"]));
    match words.name(0) {
        "ack" => connection.wire.send(number, ACK, args![tag, multiple]),
        "nack" => connection.wire.send(number, NACK, args![tag, multiple | requeue << 1]),
        _ => connection.wire.send(number, REJECT, args![tag, requeue]),
    }
}
