//! The peer's own codec: a second opinion about the wire, sharing nothing with the library's.
//!
//! A method is a row: ids, name, and one letter per argument. `B`, `H`, `I`, `Q` are numbers of 1, 2, 4 and 8
//! bytes, `b` is an octet of up to eight flags (the first in the lowest bit), `s` and `S` are a short and a long
//! string, `t` is a table (its bytes without the length).

use std::fmt;

pub const METHOD: u8 = 1;
pub const HEADER: u8 = 2;
pub const BODY: u8 = 3;
pub const HEARTBEAT: u8 = 8;
pub const END: u8 = 0xCE;

/// What a client sends first.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";

/// One method of the protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Method {
    pub class: u16,
    pub id: u16,
    pub name: &'static str,
    pub layout: &'static str,
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

macro_rules! methods {
    ($($constant:ident $class:literal $id:literal $name:literal $layout:literal)+) => {
        $(pub const $constant: Method =
            Method { class: $class, id: $id, name: $name, layout: $layout };)+
        /// Every method there is.
        pub const ALL: &[Method] = &[$($constant),+];
    };
}

methods! {
    START 10 10 "connection.start" "BBtSS"
    START_OK 10 11 "connection.start-ok" "tsSs"
    SECURE 10 20 "connection.secure" "S"
    SECURE_OK 10 21 "connection.secure-ok" "S"
    TUNE 10 30 "connection.tune" "HIH"
    TUNE_OK 10 31 "connection.tune-ok" "HIH"
    OPEN 10 40 "connection.open" "ssb"
    OPEN_OK 10 41 "connection.open-ok" "s"
    CLOSE 10 50 "connection.close" "HsHH"
    CLOSE_OK 10 51 "connection.close-ok" ""
    BLOCKED 10 60 "connection.blocked" "s"
    UNBLOCKED 10 61 "connection.unblocked" ""
    UPDATE_SECRET 10 70 "connection.update-secret" "Ss"
    UPDATE_SECRET_OK 10 71 "connection.update-secret-ok" ""
    CHANNEL_OPEN 20 10 "channel.open" "s"
    CHANNEL_OPEN_OK 20 11 "channel.open-ok" "S"
    FLOW 20 20 "channel.flow" "b"
    FLOW_OK 20 21 "channel.flow-ok" "b"
    CHANNEL_CLOSE 20 40 "channel.close" "HsHH"
    CHANNEL_CLOSE_OK 20 41 "channel.close-ok" ""
    EXCHANGE_DECLARE 40 10 "exchange.declare" "Hssbt"
    EXCHANGE_DECLARE_OK 40 11 "exchange.declare-ok" ""
    EXCHANGE_DELETE 40 20 "exchange.delete" "Hsb"
    EXCHANGE_DELETE_OK 40 21 "exchange.delete-ok" ""
    EXCHANGE_BIND 40 30 "exchange.bind" "Hsssbt"
    EXCHANGE_BIND_OK 40 31 "exchange.bind-ok" ""
    EXCHANGE_UNBIND 40 40 "exchange.unbind" "Hsssbt"
    EXCHANGE_UNBIND_OK 40 51 "exchange.unbind-ok" ""
    QUEUE_DECLARE 50 10 "queue.declare" "Hsbt"
    QUEUE_DECLARE_OK 50 11 "queue.declare-ok" "sII"
    QUEUE_BIND 50 20 "queue.bind" "Hsssbt"
    QUEUE_BIND_OK 50 21 "queue.bind-ok" ""
    QUEUE_PURGE 50 30 "queue.purge" "Hsb"
    QUEUE_PURGE_OK 50 31 "queue.purge-ok" "I"
    QUEUE_DELETE 50 40 "queue.delete" "Hsb"
    QUEUE_DELETE_OK 50 41 "queue.delete-ok" "I"
    QUEUE_UNBIND 50 50 "queue.unbind" "Hssst"
    QUEUE_UNBIND_OK 50 51 "queue.unbind-ok" ""
    QOS 60 10 "basic.qos" "IHb"
    QOS_OK 60 11 "basic.qos-ok" ""
    CONSUME 60 20 "basic.consume" "Hssbt"
    CONSUME_OK 60 21 "basic.consume-ok" "s"
    CANCEL 60 30 "basic.cancel" "sb"
    CANCEL_OK 60 31 "basic.cancel-ok" "s"
    PUBLISH 60 40 "basic.publish" "Hssb"
    RETURN 60 50 "basic.return" "Hsss"
    DELIVER 60 60 "basic.deliver" "sQbss"
    GET 60 70 "basic.get" "Hsb"
    GET_OK 60 71 "basic.get-ok" "QbssI"
    GET_EMPTY 60 72 "basic.get-empty" "s"
    ACK 60 80 "basic.ack" "Qb"
    REJECT 60 90 "basic.reject" "Qb"
    RECOVER_ASYNC 60 100 "basic.recover-async" "b"
    RECOVER 60 110 "basic.recover" "b"
    RECOVER_OK 60 111 "basic.recover-ok" ""
    NACK 60 120 "basic.nack" "Qb"
    CONFIRM_SELECT 85 10 "confirm.select" "b"
    CONFIRM_SELECT_OK 85 11 "confirm.select-ok" ""
    TX_SELECT 90 10 "tx.select" ""
    TX_SELECT_OK 90 11 "tx.select-ok" ""
    TX_COMMIT 90 20 "tx.commit" ""
    TX_COMMIT_OK 90 21 "tx.commit-ok" ""
    TX_ROLLBACK 90 30 "tx.rollback" ""
    TX_ROLLBACK_OK 90 31 "tx.rollback-ok" ""
}

/// One argument of a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Number(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Bytes(text.into())
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Value {
        Value::Bytes(text.as_str().into())
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Value {
        Value::Bytes(bytes.into())
    }
}

/// `args!["queue", 0, 0]`: the arguments of a method, in their order.
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$(($value).into()),*] };
}
pub(crate) use args;

/// The arguments of a received method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments(pub Vec<Value>);

impl Arguments {
    pub fn number(&self, index: usize) -> u64 {
        match &self.0[index] {
            Value::Number(number) => *number,
            other => panic!("argument {index} is {other:?}"),
        }
    }

    pub fn bytes(&self, index: usize) -> &[u8] {
        match &self.0[index] {
            Value::Bytes(bytes) => bytes,
            other => panic!("argument {index} is {other:?}"),
        }
    }

    pub fn text(&self, index: usize) -> &str {
        std::str::from_utf8(self.bytes(index)).expect("text")
    }
}

/// One frame as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub channel: u16,
    pub payload: Vec<u8>,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frame { kind, channel, payload } = self;
        let shown = &payload[..payload.len().min(64)];
        write!(f, "frame of type {kind} on channel {channel}, {} bytes: {shown:?}", payload.len())
    }
}

impl Frame {
    /// The frame's method, if it is one.
    pub fn method(&self) -> Option<Method> {
        let ids = (self.kind == METHOD).then(|| self.payload.get(..4)).flatten()?;
        let (class, id) = (u16::from_be_bytes([ids[0], ids[1]]), u16::from_be_bytes([ids[2], ids[3]]));
        ALL.iter().find(|method| (method.class, method.id) == (class, id)).copied()
    }

    /// The arguments of a method frame; every byte must belong to one.
    pub fn arguments(&self) -> Arguments {
        let method = self.method().unwrap_or_else(|| panic!("not a method: {self:?}"));
        let mut rest = &self.payload[4..];
        let values = method.layout.chars().map(|letter| argument(letter, &mut rest)).collect();
        assert!(rest.is_empty(), "{method:?} with {} bytes too many", rest.len());
        Arguments(values)
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(length);
    *rest = left;
    taken
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn width(letter: char) -> usize {
    match letter {
        'B' | 'b' | 's' => 1,
        'H' => 2,
        'I' | 'S' | 't' => 4,
        'Q' => 8,
        other => panic!("no such layout letter: {other}"),
    }
}

fn argument(letter: char, rest: &mut &[u8]) -> Value {
    let value = number(take(rest, width(letter)));
    match letter {
        's' | 'S' | 't' => Value::Bytes(take(rest, value as usize).to_vec()),
        _ => Value::Number(value),
    }
}

/// A frame with any payload.
pub fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(channel.to_be_bytes());
    out.extend((payload.len() as u32).to_be_bytes());
    out.extend(payload);
    out.push(END);
    out
}

/// The payload of a method frame.
pub fn payload(method: Method, arguments: &[Value]) -> Vec<u8> {
    assert_eq!(method.layout.len(), arguments.len(), "arguments of {method:?}");
    let mut out = [method.class.to_be_bytes(), method.id.to_be_bytes()].concat();
    for (letter, value) in method.layout.chars().zip(arguments) {
        let (number, bytes) = match value {
            Value::Number(number) => (*number, &[][..]),
            Value::Bytes(bytes) => (bytes.len() as u64, &bytes[..]),
        };
        out.extend(&number.to_be_bytes()[8 - width(letter)..]);
        out.extend(bytes);
    }
    out
}

/// A method frame.
pub fn method(channel: u16, method: Method, arguments: &[Value]) -> Vec<u8> {
    frame(METHOD, channel, &payload(method, arguments))
}

/// A content header frame; `properties` are the flags and the fields.
pub fn header(channel: u16, body_size: u64, properties: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0];
    payload.extend(body_size.to_be_bytes());
    payload.extend(properties);
    frame(HEADER, channel, &payload)
}

/// The flags of a content without properties.
pub const NO_PROPERTIES: &[u8] = &[0, 0];

/// A method with its content, the body in frames of at most `piece` bytes.
pub fn content(
    channel: u16,
    starting: Method,
    arguments: &[Value],
    properties: &[u8],
    body: &[u8],
    piece: usize,
) -> Vec<u8> {
    let mut out = method(channel, starting, arguments);
    out.extend(header(channel, body.len() as u64, properties));
    for piece in body.chunks(piece) {
        out.extend(frame(BODY, channel, piece));
    }
    out
}

/// Takes the first frame out of `received`, once it is complete.
pub fn take_frame(received: &mut Vec<u8>) -> Option<Frame> {
    let head = received.get(..7)?;
    let (kind, channel, size) = (head[0], number(&head[1..3]) as u16, number(&head[3..7]) as usize);
    assert!([METHOD, HEADER, BODY, HEARTBEAT].contains(&kind), "the client sent a frame of type {kind}");
    if received.len() < size + 8 {
        return None;
    }
    assert_eq!(received[7 + size], END, "the end of a frame");
    let frame = Frame { kind, channel, payload: received[7..7 + size].to_vec() };
    received.drain(..size + 8);
    Some(frame)
}

/// A table of one level: names with their type letter and value bytes, without the table's length.
pub fn table(entries: &[(&str, char, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, letter, value) in entries {
        out.push(name.len() as u8);
        out.extend(name.bytes());
        out.push(*letter as u8);
        if matches!(letter, 'S' | 'F' | 'A') {
            out.extend((value.len() as u32).to_be_bytes());
        }
        out.extend(*value);
    }
    out
}
