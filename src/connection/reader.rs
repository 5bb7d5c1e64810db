//! The reader thread: reads large chunks, decodes frames in place, and puts what they say where it belongs.
//!
//! [`Demultiplexer`] does everything but the reading, so that tests and fuzzing can feed it.

mod buffer;
mod run;

use std::{collections::HashMap, sync::Arc};

use super::{
    batch::Arrived,
    slots::Addressee,
    state::{Confirmation, Inbox, Shared, end_of_stream},
};
use crate::{
    error::{Error, ReplyCode, Result},
    protocol::{
        content::{Assembly, ContentHeader, Parts},
        frame::{self, Frame, FrameKind},
        spec::{BasicAck, BasicDeliver, BasicGetOk, BasicNack, BasicReturn, Method, MethodBody},
        wire::{Malformed, Reader},
    },
    sync::never_wait_here,
    transport::tap::Direction,
};
use buffer::{Growth, READ_BUFFER, ReadBuffer};
use run::Run;

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
            Ok(used) => buffer.used(used, demultiplexer.growth()),
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
        // Positions are counted with 32 bits.
        if buffer.len() > u32::MAX as usize {
            return Ok(None);
        }
        let BasicDeliver { consumer_tag, delivery_tag, redelivered, .. } = match fields(method) {
            Ok(deliver) => deliver,
            // Late frames are not looked at.
            Err(error) => return inbox(self.shared, channel)?.map_or(Ok(Some(used)), |_| Err(error)),
        };
        if !self.run.turn_to(channel, consumer_tag.bytes(), || inbox(self.shared, channel))? {
            return Ok(Some(used));
        }
        // From the method's payload to the end of the last payload, each followed by the end octet of its frame.
        let after_method = start + frame::OVERHEAD + method.len();
        let method_start = start + frame::OVERHEAD - 1;
        let header_end = after_method + header_used - 1;
        let body_end = after_method + used - 1;
        self.run.whole(buffer, &(method_start..body_end), |first| {
            let at = |end: usize, size: usize| end - first - size..end - first;
            let parts = Parts::apart(
                at(after_method - 1, method.len()),
                at(header_end, properties.len()),
                at(body_end, body.len()),
            );
            Arrived { parts, delivery_tag, redelivered }
        });
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
        if starts_content(payload) {
            let wanted = self.run.is_for(channel) || inbox(self.shared, channel)?.is_some();
            let mut assembly = std::mem::take(&mut self.spare);
            assembly.start(payload);
            if !wanted {
                assembly.discard();
            }
            self.make_current(channel, assembly);
            return Ok(());
        }
        if let Some(confirmation) = confirmation(payload) {
            let wanted = self.run.turn_to(channel, NO_CONSUMER, || inbox(self.shared, channel))?;
            let confirmation = confirmation?;
            if wanted {
                self.run.confirmed(confirmation);
            }
            return Ok(());
        }
        let inbox = inbox(self.shared, channel)?;
        let method = Method::decode(payload).map_err(frame_error)?;
        // What came before comes before.
        self.run.end();
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
            self.complete()?;
        }
        Ok(())
    }

    fn body(&mut self, channel: u16, payload: &[u8]) -> Result<()> {
        if self.receiving(channel)?.body(payload).map_err(content_error)? {
            self.complete()?;
        }
        Ok(())
    }

    /// The current content is complete.
    fn complete(&mut self) -> Result<()> {
        let Some((channel, mut assembly)) = self.current.take() else { return Ok(()) };
        let find = || inbox(self.shared, channel);
        match delivery(assembly.method()) {
            Ok(Some(deliver)) => {
                if self.run.turn_to(channel, deliver.consumer_tag.bytes(), find)? {
                    let (delivery_tag, redelivered) = (deliver.delivery_tag, deliver.redelivered);
                    self.run.assembled(assembly.finish(), delivery_tag, redelivered);
                }
            }
            other => {
                if let Some(inbox) = find()? {
                    other?;
                    self.run.end();
                    inbox.content(assembly.finish())?;
                }
            }
        }
        self.spare = assembly;
        Ok(())
    }

    /// Whether a larger read buffer would be of use for what comes next.
    fn growth(&self) -> Growth {
        let coming = self.current.as_ref().map_or(0, |(_, assembly)| assembly.size());
        if coming > READ_BUFFER { Growth::Useless } else { Growth::Useful }
    }

    /// A content is on its way on this channel.
    fn is_receiving(&self, channel: u16) -> bool {
        self.current.as_ref().is_some_and(|(current, _)| *current == channel)
            || (!self.others.is_empty() && self.others.contains_key(&channel))
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

/// The inbox of a channel; `None` for one that was closed, whose late frames are ignored.
fn inbox(shared: &Shared, channel: u16) -> Result<Option<Arc<dyn Inbox>>> {
    match shared.addressee(channel) {
        Addressee::Channel(inbox) => Ok(Some(inbox)),
        Addressee::Nobody => Ok(None),
        Addressee::Unknown => Err(Error::protocol(
            ReplyCode::ChannelError,
            format!("a frame on channel {channel}, which was never opened"),
        )),
    }
}

/// Confirms are for the channel's publisher.
const NO_CONSUMER: &[u8] = &[];

const DELIVER: (u16, u16) = (BasicDeliver::CLASS, BasicDeliver::METHOD);

/// Class and method id of the methods that a content follows, as far as a client may get them.
fn starts_content(payload: &[u8]) -> bool {
    const CONTENT: [(u16, u16); 3] =
        [DELIVER, (BasicGetOk::CLASS, BasicGetOk::METHOD), (BasicReturn::CLASS, BasicReturn::METHOD)];
    ids(payload).is_some_and(|ids| CONTENT.contains(&ids))
}

/// The method as a confirm; `None` when it is another one.
fn confirmation(payload: &[u8]) -> Option<Result<Confirmation>> {
    const ACK: (u16, u16) = (BasicAck::CLASS, BasicAck::METHOD);
    const NACK: (u16, u16) = (BasicNack::CLASS, BasicNack::METHOD);
    let confirmation =
        |number, multiple, acked| Confirmation { first: number, last: number, multiple, acked };
    match ids(payload) {
        Some(ACK) => {
            Some(fields(payload).map(|ack: BasicAck| confirmation(ack.delivery_tag, ack.multiple, true)))
        }
        Some(NACK) => {
            Some(fields(payload).map(|nack: BasicNack| confirmation(nack.delivery_tag, nack.multiple, false)))
        }
        _ => None,
    }
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
