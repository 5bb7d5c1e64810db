//! The writer thread: writes what callers left in the buffer, sends heartbeats, and notices a peer that is
//! silent or takes no more bytes.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use super::{heartbeat::Heartbeat, outgoing::Phase, state::Shared};
use crate::{
    error::{Error, Timeout},
    protocol::frame::write_heartbeat,
    sync::lock,
    transport::{Patience, WRITE_QUANTUM},
};

/// How long after a write the frames of a stream are gathered before the writer thread writes them: long against the
/// cost of a system call, short against anything that a person or a network notices.
pub(crate) const LINGER: Duration = Duration::from_micros(150);

/// After a failed write, how long the reader gets to find the broker's own words about it (a
/// `connection.close` that was sent before the socket was closed).
const LAST_LOOK: Duration = Duration::from_millis(50);

/// For how long a write may be stuck when heartbeats are off.
const STALL_WITHOUT_HEARTBEAT: Duration = Duration::from_secs(20);

/// Runs until the connection has ended and its last words are written.
pub(super) fn run(shared: &Shared, heartbeat: Heartbeat) {
    let outgoing = &shared.outgoing;
    let stall_limit = heartbeat.dead_after().unwrap_or(STALL_WITHOUT_HEARTBEAT);
    loop {
        let now = Instant::now();
        let last_heard = shared.incoming.last_heard(now);
        let mut state = lock(&outgoing.state);

        match state.phase {
            Phase::Shut => return,
            Phase::Draining(deadline) => {
                if state.unsent() == 0 && state.may_take_turn() || state.failure.is_some() || now >= deadline
                {
                    drop(state);
                    outgoing.abort();
                    return;
                }
            }
            Phase::Open | Phase::Closing => {
                if let Some(failure) = state.failure.clone() {
                    drop(state);
                    report_after_last_look(shared, failure);
                    continue;
                }
                if let Some(error) = given_up(&state, stall_limit, now) {
                    drop(state);
                    shared.fail(error);
                    continue;
                }
            }
        }

        let pulse = heartbeat.check(now, state.last_write, last_heard);
        if pulse.silent && matches!(state.phase, Phase::Open | Phase::Closing) {
            drop(state);
            shared.fail(Error::timeout(Timeout::SILENCE, stall_limit));
            continue;
        }
        if pulse.send && state.phase == Phase::Open && state.unsent() == 0 && state.may_take_turn() {
            state.append(write_heartbeat);
            state.urgent = true;
        }

        // While frames come in a stream their appenders need not wake this thread: it looks by itself.
        let linger_until = state.gathered_until().filter(|end| *end > now);
        if state.unsent() > 0 && state.may_take_turn() {
            if state.urgent || state.phase != Phase::Open || linger_until.is_none() {
                state.urgent = false;
                outgoing.write_out(state, Patience::Quantum, WRITE_QUANTUM);
                continue;
            }
        } else if state.unsent() == 0 {
            state.urgent = false;
        }

        state.writer_asleep = linger_until.is_none();
        let stall_end = state.stalled_since.filter(|_| !state.blocked).map(|since| since + stall_limit);
        let drain_end = if let Phase::Draining(end) = state.phase { Some(end) } else { None };
        let next = [pulse.next, linger_until, stall_end, drain_end].into_iter().flatten().min();
        let nap = next.map_or(Duration::MAX, |next| next.saturating_duration_since(now));
        let (mut state, _) = outgoing.work.wait_timeout(state, nap).unwrap_or_else(PoisonError::into_inner);
        state.writer_asleep = false;
    }
}

/// Nothing could be written for too long.
fn given_up(state: &super::outgoing::State, limit: Duration, now: Instant) -> Option<Error> {
    let since = state.stalled_since.filter(|_| !state.blocked)?;
    (now.saturating_duration_since(since) >= limit).then(|| Error::timeout(Timeout::STALL, limit))
}

fn report_after_last_look(shared: &Shared, failure: Error) {
    let _ = shared.wait_closed(Some(Instant::now() + LAST_LOOK));
    shared.fail(failure);
}
