//! The session's second thread: writes what the client does not take at once, sends heartbeats, and gives up a
//! client that is silent.

use std::{sync::atomic::Ordering, time::Duration};

use crate::broker::{hub::Hub, link::Turn, presence::Presence};
use crate::{protocol::frame, sync::lock};

/// Runs until the session has ended.
pub(super) fn run(hub: &Hub, presence: &Presence) {
    // What had been heard and sent when this thread looked last, and when that was.
    let (mut heard, mut heard_at) = (0, hub.clock.now());
    let (mut sent, mut sent_at) = (0, hub.clock.now());
    loop {
        let interval = Duration::from_secs(lock(&presence.details).heartbeat.into());
        let deadline = (!interval.is_zero()).then(|| {
            // As in RabbitMQ: sent after half an interval, dead after two.
            let next = (sent_at + interval / 2).min(heard_at + 2 * interval);
            hub.clock.instant(next)
        });
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
        if interval.is_zero() {
            continue;
        }
        let now = hub.clock.now();
        let received = presence.received.load(Ordering::Relaxed);
        // While nothing is read, silence is the broker's own doing.
        let forgiven = presence.forgive.swap(false, Ordering::SeqCst);
        if forgiven || received != heard || presence.is_shut() || presence.link.is_full() {
            (heard, heard_at) = (received, now);
        }
        if now >= heard_at + 2 * interval {
            log::debug!(target: "leveret::broker", "connection {} is silent: given up", presence.id.0);
            return presence.cut();
        }
        let written = presence.link.bytes_sent();
        if written != sent {
            (sent, sent_at) = (written, now);
        }
        if now >= sent_at + interval / 2 {
            presence.link.append(frame::write_heartbeat);
            presence.link.flush();
            (sent, sent_at) = (presence.link.bytes_sent(), now);
        }
    }
}
