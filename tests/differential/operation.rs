//! One operation: from its words to the method that is sent, and the answer that is waited for.

use crate::{client::Connection, common::peer::*};

/// What operations are done on.
pub const CHANNELS: [u16; 2] = [1, 2];

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
fn entry(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![name.len() as u8];
    out.extend(name.bytes());
    if let Some(number) = value.strip_prefix("i8:") {
        out.push(b'b');
        out.extend(number.parse::<i8>().unwrap().to_be_bytes());
    } else if let Some(number) = value.strip_prefix("i64:") {
        out.push(b'l');
        out.extend(number.parse::<i64>().unwrap().to_be_bytes());
    } else if let Some(number) = value.strip_prefix("f64:") {
        out.push(b'd');
        out.extend(number.parse::<f64>().unwrap().to_be_bytes());
    } else if let Some(seconds) = value.strip_prefix("time:") {
        out.push(b'T');
        out.extend(seconds.parse::<u64>().unwrap().to_be_bytes());
    } else if value == "void" {
        out.push(b'V');
    } else if let Ok(number) = value.parse::<i32>() {
        out.push(b'I');
        out.extend(number.to_be_bytes());
    } else if let Ok(truth) = value.parse::<bool>() {
        out.extend([b't', u8::from(truth)]);
    } else {
        out.push(b'S');
        out.extend(sized(if value == "-" { "" } else { value }));
    }
    out
}

fn sized(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
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
                keys.split(',').flat_map(|key| [b"S".to_vec(), sized(key)].concat()).collect();
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
    if !headers.is_empty() {
        flags |= 1 << 13;
        fields.extend((headers.len() as u32).to_be_bytes());
        fields.extend(headers);
    }
    if words.has("persistent") {
        flags |= 1 << 12;
        fields.push(2);
    }
    if let Some(priority) = words.value("priority") {
        flags |= 1 << 11;
        fields.push(priority.parse().unwrap());
    }
    for (bit, name) in [(9, "reply_to"), (8, "expiration"), (4, "user")] {
        if let Some(text) = words.value(name) {
            flags |= 1 << bit;
            fields.push(text.len() as u8);
            fields.extend(text.bytes());
        }
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
