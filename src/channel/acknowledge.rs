//! Ack, nack and reject: what becomes of deliveries.

use std::time::{Duration, Instant};

use super::{Channel, Core};
use crate::{
    connection::outgoing::{Kind, Push, Urgency},
    error::{Error, Result},
    protocol::{
        frame::write_settlement,
        spec::{BasicAck, BasicNack, BasicRecover, BasicReject, Method, MethodBody},
    },
};

/// Whether a message that was not dealt with goes back to its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Requeue {
    /// It is delivered again, to any consumer of the queue.
    Yes,
    /// It is dropped, or dead-lettered if the queue says so.
    No,
}

/// Arguments of [`Channel::basic_ack`]. A bare delivery tag converts into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Ack {
    /// The delivery; 0 together with `multiple` means all.
    pub delivery_tag: u64,
    /// Also all before it that are not settled. Default: no.
    pub multiple: bool,
}

impl Ack {
    /// One delivery.
    pub fn new(delivery_tag: u64) -> Ack {
        Ack { delivery_tag, multiple: false }
    }

    /// Sets [`multiple`](Ack#structfield.multiple).
    pub fn multiple(mut self, multiple: bool) -> Ack {
        self.multiple = multiple;
        self
    }
}

impl From<u64> for Ack {
    fn from(delivery_tag: u64) -> Ack {
        Ack::new(delivery_tag)
    }
}

/// Arguments of [`Channel::basic_nack`]. A bare delivery tag converts into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Nack {
    /// The delivery; 0 together with `multiple` means all.
    pub delivery_tag: u64,
    /// Also all before it that are not settled. Default: no.
    pub multiple: bool,
    /// Whether the messages go back to their queues. Default: yes.
    pub requeue: Requeue,
}

impl Nack {
    /// One delivery, back to its queue.
    pub fn new(delivery_tag: u64) -> Nack {
        Nack { delivery_tag, multiple: false, requeue: Requeue::Yes }
    }

    /// Sets [`multiple`](Nack#structfield.multiple).
    pub fn multiple(mut self, multiple: bool) -> Nack {
        self.multiple = multiple;
        self
    }

    /// Sets [`requeue`](Nack#structfield.requeue).
    pub fn requeue(mut self, requeue: Requeue) -> Nack {
        self.requeue = requeue;
        self
    }
}

impl From<u64> for Nack {
    fn from(delivery_tag: u64) -> Nack {
        Nack::new(delivery_tag)
    }
}

/// Arguments of [`Channel::basic_reject`]. A bare delivery tag converts into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Reject {
    /// The delivery.
    pub delivery_tag: u64,
    /// Whether the message goes back to its queue. Default: yes.
    pub requeue: Requeue,
}

impl Reject {
    /// One delivery, back to its queue.
    pub fn new(delivery_tag: u64) -> Reject {
        Reject { delivery_tag, requeue: Requeue::Yes }
    }

    /// Sets [`requeue`](Reject#structfield.requeue).
    pub fn requeue(mut self, requeue: Requeue) -> Reject {
        self.requeue = requeue;
        self
    }
}

impl From<u64> for Reject {
    fn from(delivery_tag: u64) -> Reject {
        Reject::new(delivery_tag)
    }
}

/// The three ways to settle a delivery.
#[derive(Debug, Clone, Copy)]
pub(super) enum Settlement {
    Ack { multiple: bool },
    Nack { multiple: bool, requeue: Requeue },
    Reject { requeue: Requeue },
}

impl Settlement {
    fn is_multiple(self) -> bool {
        matches!(self, Settlement::Ack { multiple: true } | Settlement::Nack { multiple: true, .. })
    }

    fn write(self, out: &mut Vec<u8>, channel: u16, delivery_tag: u64) {
        let requeue = |requeue| u8::from(requeue == Requeue::Yes);
        let (method, flags) = match self {
            Settlement::Ack { multiple } => (BasicAck::METHOD, u8::from(multiple)),
            Settlement::Nack { multiple, requeue: back } => {
                (BasicNack::METHOD, u8::from(multiple) | requeue(back) << 1)
            }
            Settlement::Reject { requeue: back } => (BasicReject::METHOD, requeue(back)),
        };
        write_settlement(out, channel, method, delivery_tag, flags);
    }
}

impl Channel {
    /// Acknowledges by tag; [`Delivery::ack`](crate::Delivery::ack) is the safer form. **Asynchronous: does
    /// not wait for the broker.**
    ///
    /// # Errors
    /// [`Error::Settled`] if no such delivery is outstanding on this channel (nothing is sent then), or the
    /// reason why the channel is closed.
    pub fn basic_ack(&self, ack: impl Into<Ack>) -> Result<()> {
        let Ack { delivery_tag, multiple } = ack.into();
        self.core().settle(delivery_tag, None, Settlement::Ack { multiple })
    }

    /// Refuses by tag; see [`Delivery::nack`](crate::Delivery::nack). **Asynchronous: does not wait for the
    /// broker.**
    ///
    /// # Errors
    /// Those of [`basic_ack`](Channel::basic_ack).
    pub fn basic_nack(&self, nack: impl Into<Nack>) -> Result<()> {
        let Nack { delivery_tag, multiple, requeue } = nack.into();
        self.core().settle(delivery_tag, None, Settlement::Nack { multiple, requeue })
    }

    /// Refuses by tag; see [`Delivery::reject`](crate::Delivery::reject). **Asynchronous: does not wait for
    /// the broker.**
    ///
    /// # Errors
    /// Those of [`basic_ack`](Channel::basic_ack).
    pub fn basic_reject(&self, reject: impl Into<Reject>) -> Result<()> {
        let Reject { delivery_tag, requeue } = reject.into();
        self.core().settle(delivery_tag, None, Settlement::Reject { requeue })
    }

    /// Asks the broker to deliver again everything on this channel that is not settled.
    ///
    /// What was delivered before can no longer be settled afterwards. RabbitMQ knows only
    /// [`Requeue::Yes`]; it closes the connection for the other (540).
    ///
    /// # Errors
    /// Those of every call: see [`Channel`].
    pub fn basic_recover(&self, requeue: Requeue) -> Result<()> {
        self.call(&BasicRecover { requeue: requeue == Requeue::Yes }, |method| {
            matches!(method, Method::BasicRecoverOk(_)).then_some(())
        })
    }
}

impl Core {
    /// Settles what is outstanding, once. `epoch` is that of the delivery; a bare tag means today's.
    pub(super) fn settle(&self, tag: u64, epoch: Option<u32>, settlement: Settlement) -> Result<()> {
        self.settle_within(self.connection.limits.call_timeout, tag, epoch, settlement)
    }

    pub(super) fn settle_within(
        &self,
        limit: Duration,
        tag: u64,
        epoch: Option<u32>,
        settlement: Settlement,
    ) -> Result<()> {
        let outgoing = &self.connection.outgoing;
        // Who cannot wait does not come back either, so it may go beyond the limit.
        let urgency = if limit.is_zero() { Urgency::Writer } else { Urgency::Stream };
        let mut deadline = None;
        let mut waiter = None;
        let mut awaiting = None;
        loop {
            let mut state = self.lock();
            state.check_open()?;
            let settled = |reason| Err(Error::Settled { delivery_tag: tag, reason });
            if epoch.is_some_and(|epoch| epoch != state.epoch) {
                return settled("its channel has been opened again since; the broker delivers it again");
            }
            let all = tag == 0 && settlement.is_multiple();
            if all && state.unacked.is_empty() {
                return Ok(());
            }
            if !all && !state.unacked.contains(tag) {
                return settled("no such delivery is outstanding on its channel");
            }
            let waiting = waiter.clone();
            let pushed = outgoing.push(&self.gate, Kind::Method, urgency, waiting, |out, channel| {
                settlement.write(out, channel, tag);
                Ok(())
            })?;
            match pushed {
                Push::Accepted { flush } => {
                    if all {
                        state.unacked.clear();
                    } else if settlement.is_multiple() {
                        state.unacked.remove_up_to(tag);
                    } else {
                        state.unacked.remove(tag);
                    }
                    drop(state);
                    if flush {
                        outgoing.flush_stream();
                    }
                    return Ok(());
                }
                Push::Later | Push::HalfSent => {
                    drop(state);
                    // The broker may make room only when what it says is read.
                    awaiting.get_or_insert_with(|| self.connection.incoming.awaiting().ok());
                    let deadline = *deadline.get_or_insert_with(|| Instant::now().checked_add(limit));
                    if !outgoing.pause(&mut waiter, deadline)? {
                        return Err(self.too_late("sending an acknowledgement", limit));
                    }
                }
                Push::Shut => {
                    drop(state);
                    return Err(self.why_shut());
                }
            }
        }
    }

    /// What came for nobody, or for somebody who is gone: it goes back, unless it is settled. **Does not wait.**
    pub(super) fn give_back(&self, epoch: u32, delivery_tags: impl IntoIterator<Item = u64>) {
        for tag in delivery_tags {
            let back = Settlement::Nack { multiple: false, requeue: Requeue::Yes };
            match self.settle_within(Duration::ZERO, tag, Some(epoch), back) {
                Ok(()) | Err(Error::Settled { .. }) => {}
                Err(error) => {
                    let channel = self.gate.channel();
                    log::warn!(target: "leveret::channel", "channel {channel}: deliveries cannot be given back: {error}");
                    return;
                }
            }
        }
    }
}
