//! The frame tap: shows every frame that is sent or received, decoded, with credentials redacted.
//!
//! Outgoing frames are shown where they are about to be written and incoming ones before they are acted on, so that
//! each is shown once, whole, and in the order of the wire. No lock is held meanwhile.

use std::{fmt, sync::Arc};

use super::{Connection, config::Config, events::Event, state::Shared};
use crate::{
    protocol::{
        content::ContentHeader,
        frame::{self, FrameKind},
        properties::BasicProperties,
        spec::Method,
        value::{FieldTable, FieldValue},
    },
    transport::tap::{ByteFilter, Direction, FilterSlot, Slot},
};

/// Fields that hold credentials, and what is shown instead.
const SECRET: &[(&str, &str)] = &[
    ("connection.start-ok", "response"),
    ("connection.secure-ok", "response"),
    ("connection.update-secret", "new_secret"),
];
const REDACTED: &str = "***";

/// Longer texts are cut in a line.
const SHOWN_TEXT: usize = 200;

/// One frame, as a [frame tap](Connection::set_frame_tap) sees it. `Display` writes it in one line:
///
/// ```text
/// OUT ch=1 queue.declare queue="hello" durable arguments={x-max-length=10}
/// IN  ch=1 queue.declare-ok queue="hello" message_count=0 consumer_count=0
/// OUT ch=1 basic.publish exchange="" routing_key="hello"
/// OUT ch=1 header body_size=12 content_type="text/plain"
/// OUT ch=1 body 12 bytes
/// ```
///
/// In a line, reserved fields, flags that are not set and empty tables are left out, and texts over 200 bytes are
/// cut. Credentials are `***`, and bodies are never shown.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    direction: Direction,
    channel: u16,
    kind: FrameKind,
    payload: &'a [u8],
}

impl Frame<'_> {
    /// Which way it goes.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The channel's number; 0 is the connection itself.
    pub fn channel(&self) -> u16 {
        self.channel
    }

    /// What it is.
    pub fn kind(&self) -> FrameKind {
        self.kind
    }

    /// Its size on the wire in bytes, with the eight that every frame has.
    pub fn size(&self) -> usize {
        self.payload.len() + frame::OVERHEAD
    }

    /// The method's name, for example `queue.declare-ok`; `None` for other kinds of frames, and for a method that
    /// cannot be decoded.
    pub fn method(&self) -> Option<&'static str> {
        self.decode().map(|method| method.name())
    }

    /// What it says, by the protocol's names with `_` for `-`: a method's fields; of a header `body_size` and the
    /// properties that are set. Empty for other kinds, and for what cannot be decoded. Credentials are `***`.
    ///
    /// Decoded when it is asked for.
    pub fn fields(&self) -> FieldTable {
        match self.kind {
            FrameKind::Method => self.decode().map(redacted).unwrap_or_default(),
            FrameKind::Header => header_fields(self.payload).unwrap_or_default(),
            FrameKind::Body | FrameKind::Heartbeat => FieldTable::new(),
        }
    }

    fn decode(&self) -> Option<Method<'_>> {
        if self.kind == FrameKind::Method { Method::decode(self.payload).ok() } else { None }
    }
}

fn redacted(method: Method<'_>) -> FieldTable {
    let mut fields = method.fields();
    for (_, field) in SECRET.iter().filter(|(secret, _)| *secret == method.name()) {
        fields.insert(*field, REDACTED);
    }
    fields
}

fn header_fields(payload: &[u8]) -> Option<FieldTable> {
    let header = ContentHeader::decode(payload).ok()?;
    let mut fields = FieldTable::new();
    fields.insert("body_size", i64::try_from(header.body_size).unwrap_or(i64::MAX));
    for (name, value) in BasicProperties::decode(header.properties).ok()?.fields().iter() {
        fields.insert(name, value.clone());
    }
    Some(fields)
}

impl fmt::Display for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.direction == Direction::Outgoing { "OUT" } else { "IN " };
        write!(f, "{direction} ch={} ", self.channel)?;
        let size = self.payload.len();
        let name = match self.kind {
            FrameKind::Heartbeat => return f.write_str("heartbeat"),
            FrameKind::Body => return write!(f, "body {size} bytes"),
            FrameKind::Header => "header",
            FrameKind::Method => self.method().unwrap_or_default(),
        };
        let fields = self.fields();
        if name.is_empty() || (self.kind == FrameKind::Header && fields.is_empty()) {
            return write!(f, "{:?} of {size} bytes that cannot be decoded", self.kind);
        }
        f.write_str(name)?;
        for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with("reserved_")) {
            match value {
                FieldValue::Bool(false) => {}
                FieldValue::Bool(true) => write!(f, " {name}")?,
                FieldValue::Table(table) if table.is_empty() => {}
                other => write!(f, " {}={}", name.trim_end_matches('_'), Shown(other))?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A value in a line.
struct Shown<'a>(&'a FieldValue);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            FieldValue::LongString(text) if text == REDACTED.as_bytes() => f.write_str(REDACTED),
            FieldValue::LongString(text) => {
                let shown = text.get(..SHOWN_TEXT).unwrap_or(text);
                write!(f, "{:?}", String::from_utf8_lossy(shown))?;
                if shown.len() < text.len() { write!(f, "… ({} bytes)", text.len()) } else { Ok(()) }
            }
            FieldValue::Bytes(bytes) => write!(f, "({} bytes)", bytes.len()),
            FieldValue::Table(table) => {
                f.write_str("{")?;
                for (index, (name, value)) in table.iter().enumerate() {
                    write!(f, "{}{name}={}", if index == 0 { "" } else { ", " }, Shown(value))?;
                }
                f.write_str("}")
            }
            FieldValue::Array(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    write!(f, "{}{}", if index == 0 { "" } else { ", " }, Shown(value))?;
                }
                f.write_str("]")
            }
            FieldValue::Void => f.write_str("void"),
            FieldValue::Bool(value) => write!(f, "{value}"),
            FieldValue::I8(value) => write!(f, "{value}"),
            FieldValue::U8(value) => write!(f, "{value}"),
            FieldValue::I16(value) => write!(f, "{value}"),
            FieldValue::U16(value) => write!(f, "{value}"),
            FieldValue::I32(value) => write!(f, "{value}"),
            FieldValue::U32(value) => write!(f, "{value}"),
            FieldValue::I64(value) => write!(f, "{value}"),
            FieldValue::F32(value) => write!(f, "{value}"),
            FieldValue::F64(value) => write!(f, "{value}"),
            FieldValue::Timestamp(value) => write!(f, "{value}"),
            FieldValue::Decimal { scale, value } => write!(f, "{value}e-{scale}"),
        }
    }
}

/// A function that sees the frames of a connection; see [`Connection::set_frame_tap`].
#[derive(Clone)]
pub struct FrameTap(Arc<Tap>);

type Tap = dyn Fn(&Frame<'_>) + Send + Sync;

impl FrameTap {
    /// A tap that calls `tap`.
    pub fn new(tap: impl Fn(&Frame<'_>) + Send + Sync + 'static) -> FrameTap {
        FrameTap(Arc::new(tap))
    }
}

impl fmt::Debug for FrameTap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameTap")
    }
}

/// Both taps of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Taps {
    /// Shared with the transport.
    pub(crate) filter: Arc<FilterSlot>,
    frames: Arc<Slot<Tap>>,
}

impl Taps {
    pub(crate) fn new(config: &Config) -> Taps {
        let tap = config.frame_tap.clone().map(|tap| tap.0);
        Taps {
            filter: FilterSlot::of(config.byte_filter.clone()),
            frames: Arc::new(Slot::new("frame tap", tap)),
        }
    }

    /// Panics become events of this connection.
    pub(super) fn report_to(&self, shared: &Arc<Shared>) {
        let weak = Arc::downgrade(shared);
        let report = move |message: &str| {
            if let Some(shared) = weak.upgrade() {
                shared.feeds.emit(|| Event::TapFailed { message: message.into() });
            }
        };
        self.filter.on_panic(report.clone());
        self.frames.on_panic(report);
    }

    /// Drops what the user has set: it may own what keeps the connection alive.
    pub(super) fn clear(&self) {
        self.filter.replace(None);
        self.frames.set(None);
    }

    /// Shows the complete frames at the start of `bytes`. One relaxed load when no tap is set.
    #[inline]
    pub(crate) fn show(&self, direction: Direction, bytes: &[u8], max_frame: usize) {
        if let Some(tap) = self.frames.get() {
            self.show_all(&tap, direction, bytes, max_frame);
        }
    }

    #[cold]
    fn show_all(&self, tap: &Arc<Tap>, direction: Direction, mut bytes: &[u8], max_frame: usize) {
        while let Ok(Some((frame, used))) = frame::decode(bytes, max_frame) {
            let frame::Frame { kind, channel, payload } = frame;
            if !self.show_one(tap, &Frame { direction, channel, kind, payload }) {
                return;
            }
            bytes = bytes.get(used..).unwrap_or_default();
        }
    }

    /// Shows frames of a body that are put together on the wire only.
    #[inline]
    pub(crate) fn show_body<'b>(&self, channel: u16, pieces: impl Iterator<Item = &'b [u8]>) {
        if let Some(tap) = self.frames.get() {
            let direction = Direction::Outgoing;
            let frames = pieces.map(|payload| Frame { direction, channel, kind: FrameKind::Body, payload });
            for frame in frames {
                if !self.show_one(&tap, &frame) {
                    return;
                }
            }
        }
    }

    fn show_one(&self, tap: &Arc<Tap>, frame: &Frame<'_>) -> bool {
        self.frames.call(tap, |tap| tap(frame))
    }
}

impl Connection {
    /// Has `filter` see all bytes between the protocol and the network, both ways, from now on, instead of the
    /// filter before. **Does not wait.** With TLS it sees plaintext.
    ///
    /// It may change the bytes in place, not their number; what it makes of them is what goes out or comes in. The
    /// bytes come as they are sent and received: a call may get half a frame, or many. Each byte is seen once.
    /// **It sees the credentials** if it is there during the handshake ([`Config::byte_filter`]), and all messages.
    ///
    /// # Where it runs
    /// For what comes in, on the thread that reads; for what goes out, on the thread that writes at that moment, which
    /// is a caller's or the writer thread. Never two calls at once for one direction, but the two directions at the
    /// same time. It holds up the whole connection, heartbeats included: it must be fast, and must not wait for
    /// anything. A call of this crate that would wait fails with [`Error::WouldDeadlock`](crate::Error::WouldDeadlock)
    /// instead.
    ///
    /// A filter that panics is removed, what that call has changed is undone, and the connection goes on; the panic
    /// is logged as an error and reported by [`Event::TapFailed`].
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// connection.set_byte_filter(|direction, bytes| println!("{direction} ---> {}", bytes.escape_ascii()));
    /// connection.channel()?.queue_declare("seen")?;
    /// connection.remove_byte_filter();
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[doc(alias = "set_transport_filter")]
    pub fn set_byte_filter(&self, filter: impl Fn(Direction, &mut [u8]) + Send + Sync + 'static) {
        self.taps().filter.replace(Some(ByteFilter::new(filter)));
    }

    /// Removes the [byte filter](Connection::set_byte_filter). **Does not wait**: a call that has begun on another
    /// thread may still be running.
    pub fn remove_byte_filter(&self) {
        self.taps().filter.replace(None);
    }

    /// Has `tap` called for every [`Frame`] that is sent or received from now on, instead of the tap before.
    /// **Does not wait.**
    ///
    /// Frames are shown in their order on the wire: before they are written, and before anybody learns of what has
    /// come. It sees them on the inner side of the [byte filter](Connection::set_byte_filter). With
    /// [`Config::frame_tap`] it also sees the handshake (except for the protocol header, which is no frame), with the
    /// credentials redacted.
    ///
    /// It runs where a [byte filter](Connection::set_byte_filter) runs, under the same rules: fast, and without
    /// waiting. A tap that panics is removed likewise.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// connection.set_frame_tap(|frame| eprintln!("{frame}"));
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn set_frame_tap(&self, tap: impl Fn(&Frame<'_>) + Send + Sync + 'static) {
        self.taps().frames.set(Some(FrameTap::new(tap).0));
    }

    /// Removes the [frame tap](Connection::set_frame_tap). **Does not wait**: a call that has begun on another thread
    /// may still be running.
    pub fn remove_frame_tap(&self) {
        self.taps().frames.set(None);
    }

    fn taps(&self) -> &Taps {
        &self.shared().taps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        content::write_header,
        frame::{write_heartbeat, write_method},
        spec::*,
        wire::{LongStr, ShortStr, Table},
    };

    fn short(text: &str) -> ShortStr<'_> {
        ShortStr::new("it", text).unwrap()
    }

    fn lines(direction: Direction, bytes: &[u8]) -> Vec<String> {
        let shown = Arc::new(std::sync::Mutex::new(Vec::new()));
        let noted = shown.clone();
        let config = Config::new().frame_tap(move |frame| noted.lock().unwrap().push(frame.to_string()));
        Taps::new(&config).show(direction, bytes, 4096);
        std::mem::take(&mut *shown.lock().unwrap())
    }

    /// Row 104: one line a frame, with what matters.
    #[test]
    fn frames_are_shown_in_lines() {
        let mut bytes = Vec::new();
        let arguments = FieldTable::from([("x-max-length", 10)]).encode().unwrap();
        let declare = QueueDeclare {
            queue: short("hello"),
            durable: true,
            arguments: Table(&arguments),
            ..Default::default()
        };
        write_method(&mut bytes, 1, 4096, &declare).unwrap();
        let consume = BasicConsume { queue: short("q\n"), ..Default::default() };
        write_method(&mut bytes, 2, 4096, &consume).unwrap();
        let properties =
            BasicProperties::new().content_type("text/plain").type_("t").persistent().header("a", "b");
        write_header(&mut bytes, 1, 4096, 12, Some(&properties)).unwrap();
        bytes.extend_from_slice(&frame::header(FrameKind::Body, 1, 2));
        bytes.extend_from_slice(b"hi");
        bytes.extend_from_slice(&frame::TRAILER);
        write_heartbeat(&mut bytes);
        bytes.extend_from_slice(&frame::header(FrameKind::Method, 3, 4));
        bytes.extend_from_slice(&[0, 99, 0, 99]);
        bytes.extend_from_slice(&frame::TRAILER);
        // Half a frame is shown when it is whole.
        bytes.extend_from_slice(&frame::header(FrameKind::Body, 1, 2));
        assert_eq!(
            lines(Direction::Outgoing, &bytes),
            [
                r#"OUT ch=1 queue.declare queue="hello" durable arguments={x-max-length=10}"#,
                r#"OUT ch=2 basic.consume queue="q\n" consumer_tag="""#,
                r#"OUT ch=1 header body_size=12 content_type="text/plain" headers={a="b"} delivery_mode=2 type="t""#,
                "OUT ch=1 body 2 bytes",
                "OUT ch=0 heartbeat",
                "OUT ch=3 Method of 4 bytes that cannot be decoded",
            ]
        );
    }

    /// Row 104: no credentials, in a line or in a field.
    #[test]
    fn credentials_are_redacted() {
        let mut bytes = Vec::new();
        let start_ok = ConnectionStartOk { response: LongStr(b"\0guest\0s3cret"), ..Default::default() };
        write_method(&mut bytes, 0, 4096, &start_ok).unwrap();
        write_method(&mut bytes, 0, 4096, &ConnectionSecureOk { response: LongStr(b"s3cret") }).unwrap();
        let update = ConnectionUpdateSecret { new_secret: LongStr(b"s3cret"), reason: short("expired") };
        write_method(&mut bytes, 0, 4096, &update).unwrap();
        let lines = lines(Direction::Outgoing, &bytes);
        assert_eq!(lines[1], "OUT ch=0 connection.secure-ok response=***");
        assert_eq!(lines[2], r#"OUT ch=0 connection.update-secret new_secret=*** reason="expired""#);
        assert!(lines.len() == 3 && !lines.concat().contains("s3cret"), "{lines:?}");

        let (frame, _) = frame::decode(&bytes, 4096).unwrap().unwrap();
        let frame =
            Frame { direction: Direction::Outgoing, channel: 0, kind: frame.kind, payload: frame.payload };
        assert_eq!(frame.fields().get("response").and_then(FieldValue::as_str), Some("***"));
        assert!(!format!("{frame:?} {:?}", frame.fields()).contains("s3cret"));
        // Every field that carries credentials is one that the protocol has.
        for (method, field) in SECRET {
            let row = Method::TABLE.iter().find(|row| row.name == *method).expect("a method");
            assert!(row.fields.iter().any(|(name, _)| name == field), "{method} {field}");
        }
    }

    /// Row 104: a tap that panics is not called again; the rest of its batch is not shown.
    #[test]
    fn a_tap_that_panics_is_removed() {
        let calls = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counted = calls.clone();
        let taps = Taps::new(&Config::new().frame_tap(move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            panic!("no good");
        }));
        let mut bytes = Vec::new();
        write_heartbeat(&mut bytes);
        write_heartbeat(&mut bytes);
        taps.show(Direction::Incoming, &bytes, 4096);
        taps.show(Direction::Incoming, &bytes, 4096);
        assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}
