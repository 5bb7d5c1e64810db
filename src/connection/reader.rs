//! The reader thread: reads large chunks, decodes frames in place, and puts what they say where it belongs.
//!
//! [`Demultiplexer`] does everything but the reading, so that tests and fuzzing can feed it.

mod buffer;
mod run;

use std::{collections::HashMap, sync::Arc};

use super::{
    slots::Addressee,
    state::{Arrived, Confirmation, Inbox, Shared, end_of_stream},
};
use crate::{
    error::{Error, ReplyCode, Result},
    protocol::{
        content::{Assembly, Content, ContentHeader, Message, Parts},
        frame::{self, Frame, FrameKind},
        spec::{BasicAck, BasicDeliver, BasicGetOk, BasicNack, BasicReturn, Method, MethodBody},
        wire::{Malformed, Reader},
    },
    sync::never_wait_here,
    transport::tap::Direction,
};
use buffer::ReadBuffer;
use run::Run;

/// Messages up to this size are packed together.
const PACK_UP_TO: usize = 4 * 1024;

/// Messages from this size on stay in the buffer that they were read into, which a program that keeps one of them keeps
/// alive as a whole. Those between have a buffer of their own.
const SHARE_FROM: usize = 64 * 1024;

/// Runs until the connection has ended.
pub(super) fn run(shared: &Shared, received: Vec<u8>) {
    // Everybody waits for this thread.
    never_wait_here();
    let mut demultiplexer = Demultiplexer::new(shared);
    let mut buffer = ReadBuffer::new(&received);
    drop(received);
    loop {
        let (bytes, filled) = buffer.received();
        let received = bytes.get(..filled).unwrap_or_default();
        shared.taps.show(Direction::Incoming, received, demultiplexer.max_frame);
        match demultiplexer.feed_shared(bytes, filled) {
            Ok(used) => buffer.used(used),
            Err(error) => {
                shared.fail(error);
                buffer.clear();
            }
        }
        shared.incoming.wait_until_wanted();
        let read = shared.transport.read(buffer.space());
        if shared.transport.backlog() > 0 {
            shared.outgoing.write_backlog();
        }
        match read {
            Ok(0) => return shared.fail(end_of_stream("reading")),
            Ok(read) => {
                shared.incoming.heard();
                buffer.add(read);
                // After the end, what still comes is read and thrown away: closing a socket with unread
                // bytes in it would destroy our own last words on their way.
                if shared.is_closed() {
                    buffer.clear();
                }
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
    #[cfg(any(test, fuzzing))]
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<usize> {
        self.feed_shared(&Arc::new(bytes.to_vec()), bytes.len())
    }

    /// The same with the first `filled` bytes of a buffer, which large messages may go on to share.
    pub(super) fn feed_shared(&mut self, buffer: &Arc<Vec<u8>>, filled: usize) -> Result<usize> {
        let mut rest = buffer.get(..filled).unwrap_or_default();
        let result = loop {
            match frame::decode(rest, self.max_frame) {
                Ok(None) => break Ok(filled - rest.len()),
                Ok(Some((frame, used))) => {
                    rest = rest.get(used..).unwrap_or_default();
                    let start = filled - rest.len() - used;
                    match self.whole_delivery(&frame, start, rest, buffer) {
                        Ok(Some(used)) => rest = rest.get(used..).unwrap_or_default(),
                        Ok(None) => {
                            if let Err(error) = self.frame(&frame) {
                                break Err(error);
                            }
                        }
                        Err(error) => break Err(error),
                    }
                }
                Err(malformed) => break Err(frame_error(malformed)),
            }
        };
        self.run.end();
        self.run.wake();
        result
    }

    /// The short way for what most frames are part of: a delivery, in the read buffer from its method to the end of its
    /// only body frame. Says how many bytes it took of what `follows` the method. `None` when it is anything else, which
    /// the long way takes frame by frame.
    fn whole_delivery(
        &mut self,
        frame: &Frame<'_>,
        start: usize,
        follows: &[u8],
        buffer: &Arc<Vec<u8>>,
    ) -> Result<Option<usize>> {
        let (channel, method) = (frame.channel, frame.payload);
        let is_deliver = frame.kind == FrameKind::Method && ids(method) == Some(DELIVER);
        if !is_deliver || channel == 0 || self.is_receiving(channel) {
            return Ok(None);
        }
        let next = |kind, bytes| match frame::decode(bytes, self.max_frame) {
            Ok(Some((next, used))) if next.kind == kind && next.channel == channel => {
                Some((next.payload, used))
            }
            _ => None,
        };
        let Some((header, header_used)) = next(FrameKind::Header, follows) else { return Ok(None) };
        let Ok(ContentHeader { body_size, properties }) = ContentHeader::decode(header) else {
            return Ok(None);
        };
        let (body, body_used) = match body_size {
            0 => (&[][..], 0),
            size if size > self.shared.limits.max_message_size => return Ok(None),
            size => match next(FrameKind::Body, follows.get(header_used..).unwrap_or_default()) {
                Some((body, used)) if body.len() as u64 == size => (body, used),
                _ => return Ok(None),
            },
        };
        let used = header_used + body_used;
        if !self.run.is_for(channel) {
            let Some(inbox) = self.inbox(channel)? else { return Ok(Some(used)) };
            self.run.turn_to(channel, inbox);
        }
        let BasicDeliver { consumer_tag, delivery_tag, redelivered, .. } = fields(method)?;
        self.run.deliver_to(consumer_tag.bytes());
        let arrived = |parts| Arrived { parts, delivery_tag, redelivered };
        let size = method.len() + properties.len() + body.len();
        // Positions are counted with 32 bits.
        if size < SHARE_FROM || buffer.len() > u32::MAX as usize {
            let message = Message { method, properties, body };
            if size <= PACK_UP_TO {
                self.run.small(|pack| arrived(message.append_to(pack)));
            } else {
                let mut bytes = Vec::with_capacity(size);
                let parts = message.append_to(&mut bytes);
                self.run.large(bytes, arrived(parts));
            }
        } else {
            // Each payload ends before the end octet of its frame.
            let header_end = start + frame::OVERHEAD + method.len() + header_used;
            let parts = Parts::apart(
                start + frame::OVERHEAD - 1..start + frame::OVERHEAD - 1 + method.len(),
                header_end - 1 - properties.len()..header_end - 1,
                header_end + body_used - 1 - body.len()..header_end + body_used - 1,
            );
            self.run.shared(buffer, arrived(parts));
        }
        Ok(Some(used))
    }

    fn frame(&mut self, frame: &Frame<'_>) -> Result<()> {
        match (frame.kind, frame.channel) {
            (FrameKind::Heartbeat, 0) => Ok(()),
            (FrameKind::Heartbeat, channel) => {
                Err(Error::protocol(ReplyCode::FrameError, format!("a heartbeat on channel {channel}")))
            }
            (FrameKind::Method, 0) => {
                self.run.end();
                self.shared.control(Method::decode(frame.payload).map_err(frame_error)?)
            }
            (FrameKind::Method, channel) => self.method(channel, frame.payload),
            (FrameKind::Header, channel) => self.header(channel, frame.payload),
            (FrameKind::Body, channel) => self.body(channel, frame.payload),
        }
    }

    fn method(&mut self, channel: u16, payload: &[u8]) -> Result<()> {
        if self.is_receiving(channel) {
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
                let Some(inbox) = inbox else { return Ok(()) };
                self.run.turn_to(channel, inbox);
            }
            self.run.confirmed(confirmation);
            return Ok(());
        }
        let method = Method::decode(payload).map_err(frame_error)?;
        // What was delivered before comes before.
        let target = self.run.end();
        let inbox = if known { target } else { inbox };
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
            let Some(inbox) = self.inbox(channel)? else {
                self.spare = assembly;
                return Ok(());
            };
            self.run.turn_to(channel, inbox);
        }
        let Some(deliver) = delivery(assembly.method())? else {
            let Some(inbox) = self.run.end() else { return Ok(()) };
            // A content of one frame was not assembled yet.
            if !body.is_empty() {
                assembly.body(body).map_err(content_error)?;
            }
            return inbox.content(assembly.finish());
        };
        self.run.deliver_to(deliver.consumer_tag.bytes());
        let (delivery_tag, redelivered) = (deliver.delivery_tag, deliver.redelivered);
        let arrived = |parts| Arrived { parts, delivery_tag, redelivered };
        if assembly.size() > PACK_UP_TO {
            let Content { bytes, parts } = assembly.finish();
            self.run.large(bytes, arrived(parts));
        } else {
            let body = if body.is_empty() { assembly.body_so_far() } else { body };
            self.run.small(|pack| arrived(assembly.append_to(pack, body)));
        }
        self.spare = assembly;
        Ok(())
    }

    /// A content is on its way on this channel.
    fn is_receiving(&self, channel: u16) -> bool {
        self.current.as_ref().is_some_and(|(current, _)| *current == channel)
            || (!self.others.is_empty() && self.others.contains_key(&channel))
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

const DELIVER: (u16, u16) = (BasicDeliver::CLASS, BasicDeliver::METHOD);

/// Class and method id of the methods that a content follows, as far as a client may get them.
fn starts_content(payload: &[u8]) -> bool {
    const CONTENT: [(u16, u16); 3] =
        [DELIVER, (BasicGetOk::CLASS, BasicGetOk::METHOD), (BasicReturn::CLASS, BasicReturn::METHOD)];
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
    if ids(payload) != Some(DELIVER) {
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
