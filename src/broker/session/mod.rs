//! A connection, seen from the broker: two threads, which read what the client sends and write what it does not
//! take at once.
//!
//! The thread that reads also decides: it takes the virtual host's lock for the frames of one read, or for as many of
//! them as others have patience for, and what comes of them is in the links of those concerned when it gives the lock up.

mod channel;
mod content;
mod direct;
#[cfg(any(test, fuzzing))]
pub(crate) mod fixture;
pub(super) mod frames;
mod handshake;
mod heartbeat;
mod methods;
mod permissions;
mod topology;

use std::{
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::Instant,
};

use super::{
    direct::PeerState,
    failure::Failure,
    hub::{Hub, spawn},
    link::CLOSING,
    model::ChannelId,
    presence::Presence,
    served::{Served, Turn},
};
use crate::{
    error::Departure,
    protocol::{
        frame::{self, MIN_FRAME_MAX},
        spec::{ConnectionClose, ConnectionCloseOk, MethodBody},
        wire::ShortStr,
    },
    transport::is_timeout,
};
use content::Assemblies;
use frames::{Incoming, RawFrame};
use handshake::Handshake;
use permissions::Access;

/// What is read at once. It becomes more only for a frame that does not fit.
const READ_BUFFER: usize = 64 * 1024;

/// The largest payload before tune: what every client can count on, and no more, as in RabbitMQ before 4.1.
const UNTUNED_FRAME_MAX: usize = MIN_FRAME_MAX as usize;

/// How far the connection is.
#[derive(Debug)]
enum Phase {
    /// The protocol header and all that follows until `connection.open`.
    Handshake(Handshake),
    Running(Running),
    /// `connection.close` was sent or answered: nothing counts any more but close and close-ok.
    Closing,
    /// Nothing is to be read any more.
    Ended,
}

/// An open connection.
#[derive(Debug)]
struct Running {
    served: Arc<Served>,
    access: Access,
    assemblies: Assemblies,
    channel_max: u16,
    /// Something was published: alarms concern the connection.
    publishes: bool,
}

/// The session's thread that reads.
struct Session<'a> {
    hub: &'a Hub,
    presence: &'a Arc<Presence>,
    /// Who talks to the program, once the connection is open; `None` with queues behind it.
    peer: Option<Arc<PeerState>>,
    phase: Phase,
    /// The largest payload that is accepted.
    max_payload: usize,
    /// After this the session ends, whatever it is doing; `None` while it is open.
    deadline: Option<Instant>,
    /// A stream of frames that was out of step cannot be read any further.
    lost: bool,
    /// What was read is not to be looked at before the session may be read from again.
    paused: bool,
}

/// Runs until the connection has ended.
pub(super) fn run(hub: &Arc<Hub>, presence: &Arc<Presence>) {
    let _finished = Finished { hub, presence };
    let writer = {
        let (hub, presence) = (hub.clone(), presence.clone());
        spawn("leveret-sender", move || {
            // Without it nothing more would reach the client.
            let _cut = Cut(&presence);
            heartbeat::run(&hub, &presence);
        })
    };
    let Ok(writer) = writer else { return };
    let mut session = Session {
        hub,
        presence,
        peer: None,
        phase: Phase::Handshake(Handshake::default()),
        max_payload: UNTUNED_FRAME_MAX,
        deadline: Instant::now().checked_add(hub.config.handshake_timeout),
        lost: false,
        paused: false,
    };
    // Whatever a client has brought about, it is this one's connection that ends.
    for part in [Session::read_all, Session::leave] {
        if panic::catch_unwind(AssertUnwindSafe(|| part(&mut session))).is_err() {
            log::error!(target: "leveret::broker", "connection {} is cut: its session panicked", presence.id.0);
        }
    }
    presence.link.finish();
    presence.cut();
    let _ = writer.join();
}

/// Cuts the session when it is dropped.
struct Cut<'a>(&'a Presence);

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        self.0.cut();
    }
}

/// The end of a session's thread, whatever has ended it: who stops the broker waits for it.
struct Finished<'a> {
    hub: &'a Hub,
    presence: &'a Presence,
}

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.presence.cut();
        self.hub.finished(self.presence.id);
    }
}

impl Session<'_> {
    fn read_all(&mut self) {
        let mut buffer = vec![0; READ_BUFFER];
        let mut filled = 0;
        let mut timeout = None;
        while !matches!(self.phase, Phase::Ended) {
            let open = self.presence.wait_for_reading() && self.presence.link.wait_for_room();
            let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !open || left.is_some_and(|left| left.is_zero()) {
                return;
            }
            if left.is_some() || timeout.is_some() {
                if self.presence.link.transport.set_read_timeout(left).is_err() {
                    return;
                }
                timeout = left;
            }
            if self.paused {
                self.paused = false;
                filled -= self.take(&mut buffer, filled);
                continue;
            }
            if filled == buffer.len() {
                // A frame that does not fit, and whose size is allowed.
                buffer.resize(2 * filled, 0);
            }
            match self.presence.link.transport.read(buffer.get_mut(filled..).unwrap_or_default()) {
                Ok(0) => return,
                Ok(read) => {
                    filled += read;
                    filled -= self.take(&mut buffer, filled);
                }
                Err(error) if is_timeout(&error) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
                    if self.presence.link.transport.backlog() > 0 {
                        self.presence.link.flush();
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Takes what is complete out of the beginning of the buffer; gives the number of bytes.
    fn take(&mut self, buffer: &mut Vec<u8>, filled: usize) -> usize {
        // It may have been stopped while this thread waited for the client.
        if self.presence.stopped() {
            self.paused = true;
            return 0;
        }
        self.presence.hear();
        let used = self.feed(buffer.get(..filled).unwrap_or_default());
        buffer.copy_within(used..filled, 0);
        if used == filled && buffer.len() > READ_BUFFER {
            buffer.truncate(READ_BUFFER);
            buffer.shrink_to_fit();
        }
        used
    }

    /// Takes what is complete at the start of `bytes`; gives the number of bytes.
    fn feed(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        loop {
            let (before, was) = (rest.len(), std::mem::discriminant(&self.phase));
            rest = match std::mem::replace(&mut self.phase, Phase::Ended) {
                Phase::Handshake(handshake) => self.feed_handshake(handshake, rest),
                Phase::Running(running) => self.feed_running(running, rest),
                Phase::Closing => self.feed_closing(rest),
                Phase::Ended => return bytes.len(),
            };
            if self.paused || (rest.len() == before && std::mem::discriminant(&self.phase) == was) {
                return bytes.len() - rest.len();
            }
        }
    }

    /// The frame at the start of `bytes`.
    fn next_frame<'b>(&self, turn: Option<&mut Turn<'_>>, bytes: &'b [u8]) -> Incoming<'b> {
        if self.presence.took_last() {
            return Incoming::Partial;
        }
        let next = frames::next(bytes, self.max_payload);
        if let Incoming::Frame(RawFrame { kind, channel, payload }, _) = &next {
            self.hub.log.received(self.presence.id, *kind, *channel, payload);
            if *kind != frames::HEARTBEAT && self.presence.take_frame() {
                // What came before it is answered, itself is not.
                turn.into_iter().for_each(Turn::end_run);
                self.presence.finish();
            }
        }
        next
    }

    fn feed_running<'b>(&mut self, mut running: Running, bytes: &'b [u8]) -> &'b [u8] {
        let served = running.served.clone();
        let mut turn = served.turn(self.hub);
        let mut rest = bytes;
        let mut silent = false;
        self.phase = loop {
            if !turn.has_session(self.presence.id) {
                // It was closed, by this session or by somebody else, and the client was told.
                self.deadline = Instant::now().checked_add(CLOSING);
                break if silent { Phase::Ended } else { Phase::Closing };
            }
            if self.presence.stopped() {
                self.paused = true;
                break Phase::Running(running);
            }
            match self.next_frame(Some(&mut turn), rest) {
                Incoming::Partial => break Phase::Running(running),
                Incoming::Broken(failure) => {
                    self.depart(Departure::ConnectionFailed);
                    turn.fail_session(self.presence.id, &failure);
                    self.lost = true;
                }
                Incoming::Frame(frame, used) => {
                    rest = rest.get(used..).unwrap_or_default();
                    if let Err(failure) = self.frame(&mut running, &mut turn, frame) {
                        self.depart(Departure::ConnectionFailed);
                        turn.fail_session(self.presence.id, &failure);
                        silent = failure.silent;
                    } else if turn.is_over() {
                        break Phase::Running(running);
                    }
                }
            }
        };
        turn.finish();
        rest
    }

    /// # Errors
    /// What ends the connection.
    fn frame(
        &mut self,
        running: &mut Running,
        turn: &mut Turn<'_>,
        frame: RawFrame<'_>,
    ) -> Result<(), Failure> {
        let RawFrame { kind, channel, payload } = frame;
        match (kind, channel) {
            (frames::HEARTBEAT, 0) if payload.is_empty() => Ok(()),
            (frames::METHOD, 0) => self.control(turn, payload),
            (frames::HEADER | frames::BODY, 0) => Err(Failure::unexpected(kind, payload)),
            (frames::HEARTBEAT, _) if payload.is_empty() => Err(Failure::unexpected(kind, payload)),
            (frames::METHOD | frames::HEADER | frames::BODY, number) => {
                let channel = ChannelId { session: self.presence.id, number };
                self.channel_frame(running, turn, channel, kind, payload)
            }
            _ => Err(Failure::frame(kind, payload, "unknown_frame")),
        }
    }

    fn feed_closing<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        self.phase = Phase::Closing;
        if self.lost {
            return &[];
        }
        match self.next_frame(None, bytes) {
            Incoming::Partial => bytes,
            Incoming::Broken(_) => {
                self.lost = true;
                &[]
            }
            Incoming::Frame(RawFrame { kind, channel, payload }, used) => {
                if (kind, channel) == (frames::METHOD, 0) {
                    match frames::method_ids(payload) {
                        // One who asks again and again and reads no answer gets none.
                        Some((ConnectionClose::CLASS, ConnectionClose::METHOD))
                            if !self.presence.link.is_full() =>
                        {
                            self.send(&ConnectionCloseOk {});
                        }
                        Some((ConnectionCloseOk::CLASS, ConnectionCloseOk::METHOD)) => {
                            self.phase = Phase::Ended;
                        }
                        _ => {}
                    }
                }
                bytes.get(used..).unwrap_or_default()
            }
        }
    }

    /// Sends a method on channel 0 outside of any turn.
    fn send<'m>(&self, method: &impl MethodBody<'m>) {
        self.presence.link.append(|out| {
            let _ = frame::write_method(out, 0, usize::MAX, method);
        });
        self.presence.link.flush();
    }

    /// Closes a connection that has no virtual host yet.
    fn refuse(&mut self, failure: &Failure) {
        let text = failure.text();
        let (class_id, method_id) = failure.method;
        self.send(&ConnectionClose {
            reply_code: failure.refusal.code.into(),
            reply_text: ShortStr::truncated(&text),
            class_id,
            method_id,
        });
        self.deadline = Instant::now().checked_add(CLOSING);
        self.phase = Phase::Closing;
    }

    /// Tells the program, if the client talks to one, why nothing more reaches the client. The first reason counts.
    fn depart(&self, why: Departure) {
        if let Some(peer) = &self.peer {
            peer.end(why);
        }
    }

    /// The client is gone, or done.
    fn leave(&mut self) {
        self.depart(Departure::Lost);
        if let (Some(peer), Some(program)) = (&self.peer, &self.hub.program) {
            program.remove(peer.id());
        }
        if let Some(served) = self.presence.served() {
            let mut turn = served.turn(self.hub);
            turn.close_session(self.presence.id);
            turn.finish();
        }
    }
}

/// The largest payload in frames of this size; zero is no limit but that of messages.
fn max_payload(frame_max: u32, max_message_size: u64) -> usize {
    match frame_max {
        0 => usize::try_from(max_message_size).unwrap_or(usize::MAX).max(MIN_FRAME_MAX as usize),
        // RabbitMQ does not count the frame's own eight bytes.
        limit => limit as usize,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Condvar, Mutex},
        time::Duration,
    };

    use super::*;
    use crate::{
        broker::BrokerConfig,
        protocol::frame::PROTOCOL_HEADER,
        sync::lock,
        transport::{Patience, Transport},
    };

    /// Something of it is the worst that can happen to a session.
    #[derive(Debug)]
    enum Worst {
        Read,
        /// That of the second thread, which has to write what the first could not. With whether it was asked for something
        /// and has not been shut down.
        Write(Mutex<bool>, Condvar),
    }

    impl Transport for Worst {
        fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let Worst::Write(asked, changed) = self else { panic!("on purpose") };
            let mut asked = lock(asked);
            if let Some(first) = buffer.first_chunk_mut().filter(|_| !*asked) {
                *first = PROTOCOL_HEADER;
                *asked = true;
                return Ok(PROTOCOL_HEADER.len());
            }
            drop(changed.wait_while(asked, |asked| *asked).unwrap());
            Ok(0)
        }

        fn write(&self, _: &[std::io::IoSlice<'_>], patience: Patience) -> std::io::Result<usize> {
            assert!(patience == Patience::None, "on purpose");
            Err(std::io::ErrorKind::WouldBlock.into())
        }

        fn set_read_timeout(&self, _: Option<Duration>) -> std::io::Result<()> {
            Ok(())
        }

        fn shutdown(&self) {
            if let Worst::Write(asked, changed) = self {
                *lock(asked) = false;
                changed.notify_all();
            }
        }
    }

    /// Whichever of its threads it is: the connection ends by itself, and nobody waits for it.
    #[test]
    fn a_session_that_panics_is_cut_and_holds_up_no_stop() {
        for worst in [Worst::Read, Worst::Write(Mutex::new(false), Condvar::new())] {
            let hub = Hub::new(BrokerConfig::new().handshake_timeout(Duration::MAX));
            hub.start(Arc::new(worst), None).unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            while !hub.sessions().is_empty() {
                assert!(Instant::now() < deadline, "it has not ended");
                std::thread::yield_now();
            }
            hub.stop_sessions();
        }
    }
}
