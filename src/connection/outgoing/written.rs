//! Whether everything was written, and what is left of it.

use std::{hint::black_box, time::Duration};

use super::{Outgoing, State};
use crate::sync::lock;

/// How long the end of the connection waits for somebody who is writing: longer than a write that makes no progress.
const TURN_PATIENCE: Duration = Duration::from_millis(500);

impl Outgoing {
    /// Waits until nobody is writing, at most [`TURN_PATIENCE`]: whoever writes has perhaps sent everything, and has not
    /// noted it yet.
    pub(in crate::connection) fn wait_for_the_turn(&self) {
        let busy = |state: &mut State| state.turn.is_some();
        drop(self.turn_ended.wait_timeout_while(lock(&self.state), TURN_PATIENCE, busy));
    }

    /// Something that was accepted has not reached the socket.
    pub(in crate::connection) fn has_unsent(&self) -> bool {
        lock(&self.state).occupied() > 0
    }

    /// Overwrites what the buffers still hold of what was written: a secret was among it.
    pub(in crate::connection) fn wipe_what_was_written(&self) {
        let mut state = lock(&self.state);
        let State { buffer, spare, .. } = &mut *state;
        for bytes in [buffer, spare] {
            let unsent = bytes.len();
            bytes.resize(bytes.capacity(), 0);
            // Without a reader the compiler may leave the writes out.
            black_box(&bytes);
            bytes.truncate(unsent);
        }
    }
}
