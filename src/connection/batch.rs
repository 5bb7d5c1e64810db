//! Deliveries that come together: first as they lie in the read buffer, then in memory of their own.
//!
//! The reader gathers what comes in a row for one consumer, without copying it. Who only looks at it, on the reader
//! thread, needs no copy; who keeps it gets small messages together in one copy of them all.

use std::{collections::VecDeque, mem, ops::Range, sync::Arc};

use crate::protocol::content::{Content, Parts};

/// Messages up to this size are packed together.
const PACK_UP_TO: usize = 4 * 1024;

/// A pack is handed over when it has grown to this size, so that a program which keeps one small message
/// keeps at most so much memory alive with it, and a message.
const PACK_SIZE: usize = 16 * 1024;

/// Messages from this size on stay in the buffer that they were read into, which a program that keeps one of them keeps
/// alive as a whole. Those between have a buffer of their own.
const SHARE_FROM: usize = 64 * 1024;

/// Packs that were handed over are remembered, so that their memory is used again when their messages are gone. As
/// many as one read may fill.
const REMEMBERED: usize = 68;

/// For so many messages there is room at first where they are copied one by one.
const SEVERAL: usize = 16;

/// Deliveries of one read to one consumer, in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Messages that were copied out together, or one that was put together.
    own: Vec<u8>,
    /// Or else the buffer that they were read into, among other things, and where in it they begin.
    shared: Option<(Arc<Vec<u8>>, usize)>,
    pub(crate) deliveries: Vec<Arrived>,
}

/// One delivery in a [`Batch`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrived {
    pub(crate) parts: Parts,
    pub(crate) delivery_tag: u64,
    pub(crate) redelivered: bool,
}

impl Batch {
    /// One delivery in memory of its own.
    pub(crate) fn of(own: Vec<u8>, delivery: Arrived) -> Batch {
        Batch { own, shared: None, deliveries: vec![delivery] }
    }

    /// What the positions of its deliveries are counted in.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.shared {
            None => &self.own,
            Some((buffer, start)) => buffer.get(*start..).unwrap_or_default(),
        }
    }

    /// What the batch takes of memory, or keeps there, about.
    pub(crate) fn size(&self) -> usize {
        let shared = self.shared.as_ref().map_or(0, |(shared, _)| shared.capacity());
        shared + self.own.capacity() + self.deliveries.capacity() * size_of::<Arrived>()
    }
}

/// Packs whose messages may be gone, to be used again.
#[derive(Default)]
pub(crate) struct Packs {
    lent: VecDeque<Arc<Batch>>,
}

impl Packs {
    /// A copy of `bytes` with these deliveries, which are exchanged for the memory of others.
    fn pack(&mut self, bytes: &[u8], deliveries: &mut Vec<Arrived>) -> Arc<Batch> {
        // They come back in the order in which they went. One that somebody keeps is forgotten when its turn comes.
        let mut oldest = self.lent.pop_front().unwrap_or_default();
        if Arc::get_mut(&mut oldest).is_none() {
            if self.lent.len() + 1 < REMEMBERED {
                self.lent.push_front(oldest);
            }
            oldest = Arc::default();
        }
        if let Some(pack) = Arc::get_mut(&mut oldest) {
            pack.own.clear();
            pack.own.reserve_exact(bytes.len());
            pack.own.extend_from_slice(bytes);
            mem::swap(&mut pack.deliveries, deliveries);
            deliveries.clear();
        }
        self.lent.push_back(oldest.clone());
        oldest
    }
}

/// What has come for one consumer and was not handed over.
#[derive(Default)]
pub(crate) struct Gathered {
    batch: Batch,
    /// How many bytes of the read buffer its messages take, from the first to the last.
    length: usize,
    /// They stay there.
    large: bool,
    /// They are not there any more: since others' have come between, each is copied out as it comes.
    apart: bool,
}

impl Gathered {
    /// A look at the deliveries where they are.
    pub(crate) fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The deliveries, to be kept.
    pub(crate) fn keep(&mut self, packs: &mut Packs) -> Arc<Batch> {
        if self.large || self.batch.shared.is_none() {
            return Arc::new(mem::take(&mut self.batch));
        }
        let mut deliveries = mem::take(&mut self.batch.deliveries);
        let bytes = self.batch.bytes().get(..self.length).unwrap_or_default();
        if bytes.len() > PACK_SIZE + PACK_UP_TO {
            return Arc::new(Batch { own: bytes.to_vec(), shared: None, deliveries });
        }
        let pack = packs.pack(bytes, &mut deliveries);
        self.batch.deliveries = deliveries;
        pack
    }

    /// Something for others comes before the next message: what lies in the read buffer ends here.
    pub(super) fn interrupt(&mut self) {
        if self.large {
            return;
        }
        let Some((buffer, start)) = self.batch.shared.take() else { return };
        self.apart = true;
        // The first of several, probably.
        self.batch.own.reserve((SEVERAL * self.length).min(PACK_SIZE));
        self.batch.deliveries.reserve(SEVERAL);
        self.batch.own.extend_from_slice(buffer.get(start..start + self.length).unwrap_or_default());
        self.length = 0;
    }

    /// A message may be added to what is there; if not, that is to be handed over first.
    #[inline]
    pub(super) fn fits(&self, message: &Range<usize>) -> bool {
        let start = match &self.batch.shared {
            Some((_, start)) => *start,
            None if self.batch.deliveries.is_empty() => return true,
            None => message.start,
        };
        match message.len() {
            SHARE_FROM.. => self.large,
            // Also when something else lies between. What was put together from pieces stays alone.
            ..=PACK_UP_TO => {
                let size = self.batch.own.len() + (message.end - start);
                !self.large && (self.length > 0 || self.apart) && size <= PACK_SIZE + PACK_UP_TO
            }
            _ => false,
        }
    }

    /// Adds a message that lies whole in the read buffer, which `arrived` describes with positions from its argument on.
    #[inline]
    pub(super) fn add(
        &mut self,
        buffer: &Arc<Vec<u8>>,
        message: &Range<usize>,
        arrived: impl FnOnce(usize) -> Arrived,
    ) {
        if self.apart {
            let arrived = arrived(message.start);
            let parts = arrived.parts.moved_up(self.batch.own.len());
            self.batch.own.extend_from_slice(buffer.get(message.clone()).unwrap_or_default());
            return self.batch.deliveries.push(Arrived { parts, ..arrived });
        }
        let (_, start) = *self.batch.shared.get_or_insert_with(|| (buffer.clone(), message.start));
        self.length = message.end - start;
        self.large = message.len() >= SHARE_FROM;
        self.batch.deliveries.push(arrived(start));
    }

    /// It is to be handed over.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        !self.large && self.batch.own.len() + self.length >= PACK_SIZE
    }

    /// Adds a message that was put together from pieces; nothing else may be there.
    pub(super) fn put(&mut self, content: Content, delivery_tag: u64, redelivered: bool) {
        self.batch.own = content.bytes;
        self.batch.deliveries.push(Arrived { parts: content.parts, delivery_tag, redelivered });
    }

    pub(super) fn deliveries(&self) -> &[Arrived] {
        &self.batch.deliveries
    }

    /// Forgets what was handed over, and the read buffer.
    pub(super) fn clear(&mut self) {
        self.batch.deliveries.clear();
        self.batch.own = Vec::new();
        self.batch.shared = None;
        self.length = 0;
        self.large = false;
        self.apart = false;
    }
}
