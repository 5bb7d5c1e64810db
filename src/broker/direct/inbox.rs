//! What a peer has sent and no handler has seen yet: bounded, because a peer whose inbox is full is not read from.

use std::{collections::VecDeque, sync::Arc};

use super::channel::{Place, Subscription};
use crate::broker::model::Payload;

/// Above either, the peer is not read from until half is handled. What one read has brought comes on top.
const MAX_JOBS: usize = 256;
const MAX_BYTES: usize = 1 << 20;

/// Something for a handler.
#[derive(Debug)]
pub(super) enum Job {
    Message {
        message: Message,
        place: Place,
        /// The message's number, if the peer wants a confirm.
        number: Option<u64>,
    },
    Consumer(Arc<Subscription>),
}

/// A message as it came.
#[derive(Debug)]
pub(in crate::broker) struct Message {
    pub(in crate::broker) payload: Payload,
    pub(in crate::broker) mandatory: bool,
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Job::Message { message, .. } => message.payload.body.len() + message.payload.properties.len(),
            Job::Consumer(_) => 0,
        }
    }
}

/// Of one peer.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    jobs: VecDeque<Job>,
    bytes: usize,
    /// A worker has it, or will look into it.
    pub(super) scheduled: bool,
    /// The peer is not read from.
    pub(super) held: bool,
}

impl Inbox {
    pub(super) fn put(&mut self, job: Job) {
        self.bytes += job.bytes();
        self.jobs.push_back(job);
    }

    pub(super) fn take(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.bytes -= job.bytes();
        Some(job)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.jobs.len() >= MAX_JOBS || self.bytes >= MAX_BYTES
    }

    /// There is room enough to read from the peer again.
    pub(super) fn has_room(&self) -> bool {
        self.jobs.len() <= MAX_JOBS / 2 && self.bytes <= MAX_BYTES / 2
    }
}
