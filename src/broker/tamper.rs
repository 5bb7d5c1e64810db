//! What a test has done to confirms, and to connections that are still to come.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicU8, Ordering},
    },
};

use super::{
    model::{ChannelId, SessionId},
    presence::Presence,
};
use crate::sync::lock;

/// What becomes of publisher confirms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ConfirmMode {
    /// They are sent as soon as a message is in its queues.
    #[default]
    Send,
    /// Every message is taken, and `basic.nack` is sent for it.
    Nack,
    /// Every message is taken, and nothing is sent until the mode is changed. At most a million are remembered.
    Withhold,
}

const MAX_WITHHELD: usize = 1_000_000;

/// A confirm that was held back: its channel, its number, and whether the message was accepted.
pub(super) type Withheld = (ChannelId, u64, bool);

#[derive(Debug, Default)]
pub(super) struct Confirms {
    /// 0 as long as nobody has changed anything.
    mode: AtomicU8,
    withheld: Mutex<Vec<Withheld>>,
}

impl Confirms {
    /// Whether and how a confirm is sent now.
    pub(super) fn decide(&self, channel: ChannelId, tag: u64, accepted: bool) -> Option<bool> {
        match self.mode.load(Ordering::SeqCst) {
            0 => Some(accepted),
            1 => Some(false),
            _ => {
                let mut withheld = lock(&self.withheld);
                if withheld.len() < MAX_WITHHELD {
                    withheld.push((channel, tag, accepted));
                }
                None
            }
        }
    }

    /// Gives what was held back and is to be sent now.
    pub(super) fn set(&self, mode: ConfirmMode) -> Vec<Withheld> {
        let mode = match mode {
            ConfirmMode::Send => 0,
            ConfirmMode::Nack => 1,
            ConfirmMode::Withhold => 2,
        };
        self.mode.store(mode, Ordering::SeqCst);
        if mode == 2 { Vec::new() } else { std::mem::take(&mut *lock(&self.withheld)) }
    }
}

/// What is done to a connection.
type Act = Box<dyn FnOnce(&Presence) + Send>;

/// What is to be done to connections as soon as they are there.
#[derive(Default)]
pub(super) struct Prepared(BTreeMap<SessionId, Vec<Act>>);

impl Prepared {
    pub(super) fn add(&mut self, id: SessionId, act: Act) {
        self.0.entry(id).or_default().push(act);
    }

    /// Does what is to be done to this one.
    pub(super) fn apply(&mut self, presence: &Presence) {
        for act in self.0.remove(&presence.id).unwrap_or_default() {
            act(presence);
        }
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
