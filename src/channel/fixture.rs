//! A connection without threads and without a peer, for tests and fuzzing: bytes are fed to the reader's
//! demultiplexer by hand, and what would be sent is counted and thrown away.

#![allow(clippy::unwrap_used, clippy::unreachable)]

use std::{
    cell::Cell,
    io::{self, IoSlice},
    sync::Arc,
    time::Duration,
};

use super::{
    Channel, Consumer, Core, Handle, Phase,
    call::{Coming, Waiting},
    consume::{DeliveryQueue, Sink},
};
use crate::{
    connection::{
        Negotiated,
        config::Config,
        reader::Demultiplexer,
        slots::Free,
        state::{Limits, Shared},
        tap::Taps,
    },
    error::{Error, Scope},
    protocol::{
        spec::{BasicGet, MethodBody, QueueDeclare},
        value::FieldTable,
    },
    sync::OneShot,
    transport::{Patience, Transport},
};

thread_local! {
    /// The writes of this thread.
    pub(super) static WRITES: Cell<usize> = const { Cell::new(0) };
}

/// Takes every byte, and never has one.
#[derive(Debug)]
struct Nowhere;

impl Transport for Nowhere {
    fn read(&self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
    fn write(&self, parts: &[IoSlice<'_>], _: Patience) -> io::Result<usize> {
        WRITES.set(WRITES.get() + 1);
        Ok(parts.iter().map(|part| part.len()).sum())
    }
    fn set_read_timeout(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }
    fn shutdown(&self) {}
}

/// The connection, with: channel 1 open, a declare and a get unanswered, consumers `a` (with acks) and `b`
/// (without); channel 2 open and idle; channel 3 being closed by us; channel 4 closed.
pub(crate) struct Fixture {
    pub(super) shared: Arc<Shared>,
    calls: Vec<Coming>,
    pub(super) consumers: Vec<Consumer>,
    pub(super) channels: Vec<Channel>,
}

impl Fixture {
    pub(crate) fn new() -> Fixture {
        let negotiated = Negotiated {
            channel_max: 16,
            frame_max: 4096,
            heartbeat: Duration::ZERO,
            server_properties: FieldTable::new(),
        };
        let limits = Limits { drop_timeout: Duration::ZERO, ..Limits::from(&Config::new()) };
        let shared = Arc::new(Shared::new(Arc::new(Nowhere), negotiated, limits, Taps::new(&Config::new())));
        let channels: Vec<Channel> = (0..4).map(|_| opened(&shared)).collect();
        let [first, _, closing, closed] = &channels[..] else { unreachable!() };

        let (declare, get) = (OneShot::new(), OneShot::new());
        let mut state = first.core().lock();
        state.calls.push_back(Waiting { expects: QueueDeclare::REPLIES.into(), answer: declare.clone() });
        state.calls.push_back(Waiting { expects: BasicGet::REPLIES.into(), answer: get.clone() });
        drop(state);
        let consumers =
            [("a", false), ("b", true)].map(|(tag, no_ack)| first.pretend_to_consume(tag, no_ack)).into();

        let _ = closing.core().close(Duration::ZERO);
        shared.release(closed.id());
        closed.core().end(&Error::Closed(Scope::Channel), false);
        Fixture { shared, calls: vec![declare, get], consumers, channels }
    }

    /// Feeds `bytes` in pieces of `piece` bytes, as the reader does, until they are used up or the peer has
    /// broken the protocol. Then takes everything that was delivered, and ends the connection.
    ///
    /// Panics when somebody who waits is left without an answer, or when more is held than was received.
    pub(crate) fn feed(mut self, bytes: &[u8], piece: usize) {
        let shared = self.shared.clone();
        let mut demultiplexer = Demultiplexer::new(&shared);
        let mut buffer = Vec::new();
        for piece in bytes.chunks(piece.max(1)) {
            buffer.extend_from_slice(piece);
            match demultiplexer.feed(&buffer) {
                Ok(used) => drop(buffer.drain(..used)),
                Err(error) => {
                    assert!(matches!(error, Error::Protocol(_)), "{error}");
                    self.shared.fail(error);
                    break;
                }
            }
            if self.shared.cause().is_some() {
                break;
            }
            self.take_deliveries();
        }
        drop(demultiplexer);
        self.shared.fail(Error::Closed(Scope::Connection));
        self.take_deliveries();
        assert!(self.calls.iter().all(|call| call.wait(None).is_ok()));
        for consumer in &mut self.consumers {
            while consumer.next().is_some() {}
            assert!(consumer.has_ended());
        }
    }

    fn take_deliveries(&mut self) {
        for consumer in &mut self.consumers {
            while let Ok(Some(delivery)) = consumer.try_next() {
                let _ = (delivery.properties(), delivery.text(), delivery.exchange(), delivery.routing_key());
                let _ = delivery.ack();
                assert!(delivery.ack().is_err(), "settled twice");
            }
        }
    }
}

impl Channel {
    pub(super) fn pretend_to_consume(&self, tag: &str, no_ack: bool) -> Consumer {
        let queue = Arc::new(DeliveryQueue::new(self.core().clone(), tag, no_ack));
        self.core().add_consumer(Sink::Queue(queue.clone())).unwrap();
        Consumer::new(queue, Duration::ZERO)
    }
}

/// A channel that counts as open without having asked.
fn opened(shared: &Arc<Shared>) -> Channel {
    let core = Arc::new(Core::new(shared.clone()));
    core.pretend_to_open();
    Channel { handle: Arc::new(Handle(core)), timeout: Duration::ZERO }
}

impl Core {
    pub(super) fn pretend_to_open(self: &Arc<Core>) {
        let Ok(Free::Id(id)) = self.connection.register(self.clone(), None) else { unreachable!() };
        self.gate.open(id);
        self.lock().phase = Phase::Open;
    }
}
