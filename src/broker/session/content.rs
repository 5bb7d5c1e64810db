//! Contents that clients are in the middle of sending: at most one per channel.
//!
//! Invariant: what is kept of a content grows with what came of it, not with what was announced.

use std::{collections::HashMap, sync::Arc};

use super::frames;
use crate::broker::{by_number::ByNumber, failure::Failure};
use crate::{
    error::ReplyCode,
    protocol::{content::ContentHeader, properties::BasicProperties},
};

/// What may be reserved for a body before any of it came.
const RESERVE_UNSEEN: usize = 128 * 1024;

/// The class that every content belongs to.
const BASIC: u16 = 60;

/// By channel.
#[derive(Debug, Default)]
pub(super) struct Assemblies {
    open: HashMap<u16, Assembly, ByNumber>,
}

#[derive(Debug)]
struct Assembly {
    /// The method's payload.
    method: Vec<u8>,
    /// `None` until the header came.
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    properties: Arc<[u8]>,
    announced: u64,
    missing: u64,
    body: Vec<u8>,
    /// The body, if it came in one frame.
    whole: Option<Arc<[u8]>>,
    /// Larger than is allowed: it is followed to its end, and nothing of it is kept.
    too_large: bool,
}

/// A message that is complete.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) method: Vec<u8>,
    pub(super) properties: Arc<[u8]>,
    pub(super) body: Arc<[u8]>,
    /// The size of a body that was not kept because it is too large.
    pub(super) too_large: Option<u64>,
}

impl Assemblies {
    pub(super) fn is_open(&self, channel: u16) -> bool {
        !self.open.is_empty() && self.open.contains_key(&channel)
    }

    /// Starts with a method that announces a content.
    pub(super) fn start(&mut self, channel: u16, method: &[u8]) {
        self.open.insert(channel, Assembly { method: method.to_vec(), rest: None });
    }

    /// Takes a frame of a channel whose content is not complete; gives the message when it is.
    ///
    /// # Errors
    /// What ends the connection.
    pub(super) fn frame(
        &mut self,
        channel: u16,
        kind: u8,
        payload: &[u8],
        max_size: u64,
    ) -> Result<Option<Complete>, Failure> {
        let Some(assembly) = self.open.get_mut(&channel) else { return Ok(None) };
        let done = match &mut assembly.rest {
            None => assembly.header(kind, payload, max_size)?,
            Some(rest) => rest.body(kind, payload, &assembly.method)?,
        };
        if !done {
            return Ok(None);
        }
        Ok(self.open.remove(&channel).and_then(Assembly::complete))
    }
}

impl Assembly {
    fn header(&mut self, kind: u8, payload: &[u8], max_size: u64) -> Result<bool, Failure> {
        let unexpected = |text: String| {
            let ids = frames::method_ids(&self.method).unwrap_or_default();
            Err(Failure::of(ids, ReplyCode::UnexpectedFrame, text))
        };
        let weight = payload.get(2..4);
        let class = payload.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
        if kind == frames::HEADER && payload.len() < 12 {
            return Err(Failure::frame(kind, payload, "unknown_frame"));
        }
        if kind != frames::HEADER || weight != Some(&[0, 0]) {
            return unexpected(format!(
                "expected content header for class {BASIC}, got non content header frame instead"
            ));
        }
        if let Some(class) = class.filter(|class| *class != BASIC) {
            return unexpected(format!(
                "expected content header for class {BASIC}, got one for class {class} instead"
            ));
        }
        let header = ContentHeader::decode(payload).map_err(|_| Failure::internal())?;
        if BasicProperties::decode(header.properties).is_err() {
            return Err(Failure::internal());
        }
        let too_large = header.body_size > max_size;
        self.rest = Some(Rest {
            properties: header.properties.into(),
            announced: header.body_size,
            missing: header.body_size,
            body: Vec::new(),
            whole: None,
            too_large,
        });
        Ok(header.body_size == 0)
    }

    fn complete(self) -> Option<Complete> {
        let rest = self.rest?;
        Some(Complete {
            method: self.method,
            properties: rest.properties,
            body: rest.whole.unwrap_or_else(|| rest.body.into()),
            too_large: rest.too_large.then_some(rest.announced),
        })
    }
}

impl Rest {
    fn body(&mut self, kind: u8, payload: &[u8], method: &[u8]) -> Result<bool, Failure> {
        if kind != frames::BODY {
            let ids = frames::method_ids(method).unwrap_or_default();
            let text = "expected content body, got non content body frame instead";
            return Err(Failure::of(ids, ReplyCode::UnexpectedFrame, text));
        }
        let missing = match self.missing.checked_sub(payload.len() as u64) {
            Some(missing) => missing,
            None => {
                // As in RabbitMQ, a body that is too long never ends: the next frame of another kind is refused.
                self.too_large = true;
                self.body = Vec::new();
                u64::MAX
            }
        };
        self.missing = missing;
        if missing == 0 && self.body.is_empty() && !self.too_large {
            self.whole = Some(payload.into());
        } else if !self.too_large {
            if self.body.capacity() - self.body.len() < payload.len() {
                let seen = self.body.len() + payload.len();
                let unseen = usize::try_from(missing).unwrap_or(usize::MAX).min(seen.max(RESERVE_UNSEEN));
                self.body.reserve_exact(payload.len() + unseen);
            }
            self.body.extend_from_slice(payload);
        }
        Ok(missing == 0)
    }
}
