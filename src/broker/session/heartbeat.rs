//! The session's second thread: writes what the client does not take at once, sends heartbeats, and gives up a
//! client that is silent.

use crate::broker::{hub::Hub, link::Turn, presence::Presence};

/// Runs until the session has ended.
pub(super) fn run(hub: &Hub, presence: &Presence) {
    let clock = &hub.clock;
    loop {
        let mut deadline = None;
        if let Some(interval) = presence.heartbeat() {
            presence.look(clock);
            let patience = presence.patience(clock, interval);
            if patience.is_zero() {
                log::debug!(target: "leveret::broker", "connection {} is silent: given up", presence.id.0);
                return presence.cut();
            }
            if presence.until_beat(clock, interval).is_zero() {
                presence.beat(clock);
            }
            let next = patience.min(presence.until_beat(clock, interval));
            deadline = Some(clock.instant(clock.now() + next));
        }
        match presence.link.wait_turn(deadline) {
            Turn::End => return,
            Turn::Write => {
                if presence.link.push()
                    && let Some(served) = presence.served()
                {
                    served.resume(hub, presence.id);
                }
            }
            Turn::Look => {}
        }
    }
}
