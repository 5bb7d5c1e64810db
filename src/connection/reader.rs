//! The reader thread: reads large chunks, decodes frames in place, and puts what they say where it belongs.
//!
//! [`Demultiplexer`] does everything but the reading, so that tests and fuzzing can feed it.

use std::{collections::HashMap, sync::Arc};

use super::{
    slots::Addressee,
    state::{Arrived, Batch, Confirmation, Inbox, Shared, end_of_stream},
};
use crate::{
    error::{Error, ReplyCode, Result},
    protocol::{
        content::Assembly,
        frame::{self, Frame, FrameKind},
        spec::{BasicAck, BasicDeliver, BasicGetOk, BasicNack, BasicReturn, Method, MethodBody},
        wire::{Malformed, Reader},
    },
    sync::never_wait_here,
    transport::tap::Direction,
};

/// The size of the read buffer; it grows only for a frame that does not fit.
const READ_BUFFER: usize = 256 * 1024;

/// Messages up to this size are packed together, larger ones get a buffer of their own.
const PACK_UP_TO: usize = 4 * 1024;

/// A pack is handed over when it has grown to this size, so that a program which keeps one small message
/// keeps at most so much memory alive with it.
const PACK_SIZE: usize = 16 * 1024;

/// A pack that was not taken is used again up to this capacity.
const KEEP_CAPACITY: usize = 4 * PACK_SIZE;

/// Runs until the connection has ended.
pub(super) fn run(shared: &Shared, received: Vec<u8>) {
    // Everybody waits for this thread.
    never_wait_here();
    let mut demultiplexer = Demultiplexer::new(shared);
    let mut buffer = received;
    let mut filled = buffer.len();
    buffer.resize(READ_BUFFER.max(filled), 0);
    loop {
        let received = buffer.get(..filled).unwrap_or_default();
        shared.taps.show(Direction::Incoming, received, demultiplexer.max_frame);
        match demultiplexer.feed(received) {
            Ok(used) => {
                buffer.copy_within(used..filled, 0);
                filled -= used;
            }
            Err(error) => {
                shared.fail(error);
                filled = 0;
            }
        }
        if filled == buffer.len() {
            // A frame that does not fit; decode has accepted its size. Growing by doubling never gets ahead
            // of what was received.
            buffer.resize(2 * filled, 0);
        }
        shared.incoming.wait_until_wanted();
        let read = shared.transport.read(buffer.get_mut(filled..).unwrap_or_default());
        if shared.transport.backlog() > 0 {
            shared.outgoing.write_backlog();
        }
        match read {
            Ok(0) => return shared.fail(end_of_stream("reading")),
            Ok(read) => {
                shared.incoming.heard();
                // After the end, what still comes is read and thrown away: closing a socket with unread
                // bytes in it would destroy our own last words on their way.
                filled = if shared.is_closed() { 0 } else { filled + read };
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return shared.fail(Error::io("reading", error)),
        }
    }
}

/// Sorts frames by channel, puts contents together, and hands deliveries over in batches.
pub(crate) struct Demultiplexer<'a> {
    shared: &'a Shared,
    max_frame: usize,
    /// The channel of the frame before, if its content is not complete: mostly the next frame's as well.
    current: Option<(u16, Assembly)>,
    /// The other channels whose content is not complete.
    others: HashMap<u16, Assembly>,
    /// An assembly whose buffer is used again.
    spare: Assembly,
    run: Run,
}

/// Deliveries in a row to one consumer, or confirms in a row for one channel: only one of both at a time.
#[derive(Default)]
struct Run {
    /// The channel and its inbox, as long as nothing but deliveries and confirms came for it in this read.
    target: Option<(u16, Arc<dyn Inbox>)>,
    consumer_tag: Vec<u8>,
    batch: Batch,
    confirmations: Vec<Confirmation>,
}

impl Run {
    fn is_for(&self, channel: u16) -> bool {
        self.target.as_ref().is_some_and(|(target, _)| *target == channel)
    }

    fn confirmed(&mut self, next: Confirmation) {
        self.hand_over_deliveries();
        if !self.confirmations.last_mut().is_some_and(|last| last.extend(next)) {
            self.confirmations.push(next);
        }
    }

    fn hand_over(&mut self) {
        self.hand_over_deliveries();
        self.hand_over_confirmations();
    }

    fn hand_over_confirmations(&mut self) {
        if self.confirmations.is_empty() {
            return;
        }
        if let Some((_, inbox)) = &self.target {
            inbox.confirmations(&self.confirmations);
        }
        self.confirmations.clear();
    }

    fn hand_over_deliveries(&mut self) {
        if self.batch.deliveries.is_empty() {
            return;
        }
        let (bytes, deliveries) = (self.batch.bytes.len().min(PACK_SIZE), self.batch.deliveries.len());
        if let Some((_, inbox)) = &self.target {
            inbox.deliveries(&self.consumer_tag, &mut self.batch);
        }
        if (PACK_SIZE..=KEEP_CAPACITY).contains(&self.batch.bytes.capacity()) {
            self.batch.bytes.clear();
            self.batch.deliveries.clear();
        } else {
            // The next batch of a stream will be about as large as this one.
            let (bytes, deliveries) = (Vec::with_capacity(bytes), Vec::with_capacity(deliveries));
            self.batch = Batch { bytes, deliveries };
        }
    }
}

impl<'a> Demultiplexer<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Demultiplexer<'a> {
        Demultiplexer {
            shared,
            max_frame: shared.negotiated.max_incoming_frame(shared.limits.max_message_size),
            current: None,
            others: HashMap::new(),
            spare: Assembly::default(),
            run: Run::default(),
        }
    }

    /// Takes all complete frames at the start of `bytes`, and says how many bytes these were.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut rest = bytes;
        let result = loop {
            match frame::decode(rest, self.max_frame) {
                Ok(None) => break Ok(bytes.len() - rest.len()),
                Ok(Some((frame, used))) => {
                    if let Err(error) = self.frame(&frame) {
                        break Err(error);
                    }
                    rest = rest.get(used..).unwrap_or_default();
                }
                Err(malformed) => break Err(frame_error(malformed)),
            }
        };
        self.end_run();
        result
    }

    fn frame(&mut self, frame: &Frame<'_>) -> Result<()> {
        match (frame.kind, frame.channel) {
            (FrameKind::Heartbeat, 0) => Ok(()),
            (FrameKind::Heartbeat, channel) => {
                Err(Error::protocol(ReplyCode::FrameError, format!("a heartbeat on channel {channel}")))
            }
            (FrameKind::Method, 0) => {
                self.end_run();
                self.shared.control(Method::decode(frame.payload).map_err(frame_error)?)
            }
            (FrameKind::Method, channel) => self.method(channel, frame.payload),
            (FrameKind::Header, channel) => self.header(channel, frame.payload),
            (FrameKind::Body, channel) => self.body(channel, frame.payload),
        }
    }

    fn method(&mut self, channel: u16, payload: &[u8]) -> Result<()> {
        let busy = self.current.as_ref().is_some_and(|(current, _)| *current == channel)
            || (!self.others.is_empty() && self.others.contains_key(&channel));
        if busy {
            return Err(Error::protocol(
                ReplyCode::UnexpectedFrame,
                format!("a method on channel {channel} where the rest of a content was expected"),
            ));
        }
        let known = self.run.is_for(channel);
        let inbox = if known { None } else { self.inbox(channel)? };
        if starts_content(payload) {
            let mut assembly = std::mem::take(&mut self.spare);
            assembly.start(payload);
            if !known && inbox.is_none() {
                assembly.discard();
            }
            self.make_current(channel, assembly);
            return Ok(());
        }
        if let Some(confirmation) = confirmation(payload)? {
            if !known {
                self.end_run();
                let Some(inbox) = inbox else { return Ok(()) };
                self.run.target = Some((channel, inbox));
            }
            self.run.confirmed(confirmation);
            return Ok(());
        }
        let method = Method::decode(payload).map_err(frame_error)?;
        // What was delivered before comes before.
        self.run.hand_over();
        let target = self.run.target.take();
        let inbox = if known { target.map(|(_, inbox)| inbox) } else { inbox };
        match (inbox, method) {
            (Some(inbox), method) => inbox.method(method, payload),
            (None, Method::ChannelCloseOk(_)) => {
                self.shared.stray_close_ok(channel);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    fn header(&mut self, channel: u16, payload: &[u8]) -> Result<()> {
        let limit = self.shared.limits.max_message_size;
        if self.receiving(channel)?.header(payload, limit).map_err(content_error)? {
            self.complete(&[])?;
        }
        Ok(())
    }

    fn body(&mut self, channel: u16, payload: &[u8]) -> Result<()> {
        let assembly = self.receiving(channel)?;
        if assembly.is_whole_body(payload) && assembly.size() <= PACK_UP_TO {
            self.complete(payload)
        } else if assembly.body(payload).map_err(content_error)? {
            self.complete(&[])
        } else {
            Ok(())
        }
    }

    /// The current content is complete, its body being what was assembled and then `body`.
    fn complete(&mut self, body: &[u8]) -> Result<()> {
        let Some((channel, mut assembly)) = self.current.take() else { return Ok(()) };
        if !self.run.is_for(channel) {
            self.end_run();
            let Some(inbox) = self.inbox(channel)? else {
                self.spare = assembly;
                return Ok(());
            };
            self.run.target = Some((channel, inbox));
            self.run.consumer_tag.clear();
        }
        let Some(deliver) = delivery(assembly.method())? else {
            self.run.hand_over();
            let Some((_, inbox)) = self.run.target.take() else { return Ok(()) };
            // A content of one frame was not assembled yet.
            if !body.is_empty() {
                assembly.body(body).map_err(content_error)?;
            }
            return inbox.content(assembly.finish());
        };
        self.run.hand_over_confirmations();
        if self.run.consumer_tag != deliver.consumer_tag.bytes() {
            self.run.hand_over();
            self.run.consumer_tag.clear();
            self.run.consumer_tag.extend_from_slice(deliver.consumer_tag.bytes());
        }
        let (delivery_tag, redelivered) = (deliver.delivery_tag, deliver.redelivered);
        let large = assembly.size() > PACK_UP_TO;
        let parts = if large {
            self.run.hand_over();
            let content = assembly.finish();
            self.run.batch.bytes = content.bytes;
            content.parts
        } else {
            let body = if body.is_empty() { assembly.body_so_far() } else { body };
            assembly.append_to(&mut self.run.batch.bytes, body)
        };
        self.spare = assembly;
        self.run.batch.deliveries.push(Arrived { parts, delivery_tag, redelivered });
        if large || self.run.batch.bytes.len() >= PACK_SIZE {
            self.run.hand_over();
        }
        Ok(())
    }

    /// What is decided here must not outlive the read: a channel may be closed in between.
    fn end_run(&mut self) {
        self.run.hand_over();
        self.run.target = None;
    }

    /// The inbox of a channel; `None` for one that was closed, whose late frames are ignored.
    fn inbox(&self, channel: u16) -> Result<Option<Arc<dyn Inbox>>> {
        match self.shared.addressee(channel) {
            Addressee::Channel(inbox) => Ok(Some(inbox)),
            Addressee::Nobody => Ok(None),
            Addressee::Unknown => Err(Error::protocol(
                ReplyCode::ChannelError,
                format!("a frame on channel {channel}, which was never opened"),
            )),
        }
    }

    /// The content that `channel` is receiving, made current.
    fn receiving(&mut self, channel: u16) -> Result<&mut Assembly> {
        let unexpected = || {
            Error::protocol(
                ReplyCode::UnexpectedFrame,
                format!("a header or body on channel {channel} without its method"),
            )
        };
        if self.current.as_ref().is_none_or(|(current, _)| *current != channel) {
            let wanted = self.others.remove(&channel).ok_or_else(unexpected)?;
            self.make_current(channel, wanted);
        }
        self.current.as_mut().map(|(_, assembly)| assembly).ok_or_else(unexpected)
    }

    fn make_current(&mut self, channel: u16, assembly: Assembly) {
        if let Some((other, assembly)) = self.current.replace((channel, assembly)) {
            self.others.insert(other, assembly);
        }
    }
}

/// Class and method id of the methods that a content follows, as far as a client may get them.
fn starts_content(payload: &[u8]) -> bool {
    const CONTENT: [(u16, u16); 3] = [
        (BasicDeliver::CLASS, BasicDeliver::METHOD),
        (BasicGetOk::CLASS, BasicGetOk::METHOD),
        (BasicReturn::CLASS, BasicReturn::METHOD),
    ];
    ids(payload).is_some_and(|ids| CONTENT.contains(&ids))
}

/// The method as a confirm; `None` when it is another one.
fn confirmation(payload: &[u8]) -> Result<Option<Confirmation>> {
    const ACK: (u16, u16) = (BasicAck::CLASS, BasicAck::METHOD);
    const NACK: (u16, u16) = (BasicNack::CLASS, BasicNack::METHOD);
    let (number, multiple, acked) = match ids(payload) {
        Some(ACK) => {
            let ack: BasicAck = fields(payload)?;
            (ack.delivery_tag, ack.multiple, true)
        }
        Some(NACK) => {
            let nack: BasicNack = fields(payload)?;
            (nack.delivery_tag, nack.multiple, false)
        }
        _ => return Ok(None),
    };
    Ok(Some(Confirmation { first: number, last: number, multiple, acked }))
}

/// The fields of a method that is known by its ids.
fn fields<'a, M: MethodBody<'a>>(payload: &'a [u8]) -> Result<M> {
    let mut reader = Reader::new(payload.get(4..).unwrap_or_default());
    let method = M::read(&mut reader).and_then(|method| reader.finish().map(|()| method));
    method.map_err(frame_error)
}

/// The method as a delivery; `None` when it is another one.
fn delivery(payload: &[u8]) -> Result<Option<BasicDeliver<'_>>> {
    if ids(payload) != Some((BasicDeliver::CLASS, BasicDeliver::METHOD)) {
        return Ok(None);
    }
    fields(payload).map(Some)
}

fn ids(payload: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *payload.first_chunk()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn frame_error(malformed: Malformed) -> Error {
    let code = match malformed {
        Malformed::UnknownMethod { .. } => ReplyCode::CommandInvalid,
        Malformed::Because(_) => ReplyCode::FrameError,
    };
    Error::protocol(code, malformed.to_string())
}

fn content_error(malformed: Malformed) -> Error {
    Error::protocol(ReplyCode::UnexpectedFrame, malformed.to_string())
}
