//! When to send a heartbeat and when to give a peer up. Pure: time is an argument.

use std::time::{Duration, Instant};

/// The two thresholds of a connection; `None` when heartbeats are off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heartbeat(Option<Thresholds>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Thresholds {
    send_after: Duration,
    dead_after: Duration,
}

/// What is to be done now, and when to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pulse {
    /// Nothing was written for long enough (usually half an interval): send a heartbeat.
    pub(crate) send: bool,
    /// Nothing came for too long (usually two intervals): the peer is dead.
    pub(crate) silent: bool,
    /// The next moment at which one of the two may become true.
    pub(crate) next: Option<Instant>,
}

impl Heartbeat {
    /// For the negotiated interval, and the thresholds in percent of it; zero is off.
    pub(crate) fn new(interval: Duration, send_percent: u16, dead_percent: u16) -> Heartbeat {
        let part = |percent: u16| interval * percent.into() / 100;
        let thresholds = Thresholds { send_after: part(send_percent), dead_after: part(dead_percent) };
        Heartbeat((!interval.is_zero()).then_some(thresholds))
    }

    /// How long a peer may be silent, or refuse to take bytes.
    pub(crate) fn dead_after(self) -> Option<Duration> {
        self.0.map(|thresholds| thresholds.dead_after)
    }

    pub(crate) fn check(self, now: Instant, last_write: Instant, last_heard: Instant) -> Pulse {
        let Some(Thresholds { send_after, dead_after }) = self.0 else {
            return Pulse { send: false, silent: false, next: None };
        };
        let (send_at, dead_at) = (last_write + send_after, last_heard + dead_after);
        let send = now >= send_at;
        let send_at = if send { now + send_after } else { send_at };
        Pulse { send, silent: now >= dead_at, next: Some(send_at.min(dead_at)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Rows 20 and 21: sent at half the interval, dead after two.
    #[test]
    fn thresholds_are_half_and_twice_the_interval() {
        let start = Instant::now();
        let heartbeat = Heartbeat::new(10 * SECOND, 50, 200);
        let quiet = heartbeat.check(start + 4 * SECOND, start, start);
        assert_eq!(quiet, Pulse { send: false, silent: false, next: Some(start + 5 * SECOND) });
        let due = heartbeat.check(start + 5 * SECOND, start, start);
        assert_eq!(due, Pulse { send: true, silent: false, next: Some(start + 10 * SECOND) });
        let dead = heartbeat.check(start + 20 * SECOND, start + 19 * SECOND, start);
        assert!(dead.silent && !dead.send);
    }

    /// Row 20: any traffic counts, both ways.
    #[test]
    fn traffic_postpones_both() {
        let start = Instant::now();
        let pulse = Heartbeat::new(SECOND, 50, 200).check(
            start + 10 * SECOND,
            start + 10 * SECOND,
            start + 9 * SECOND,
        );
        assert_eq!(pulse, Pulse { send: false, silent: false, next: Some(start + SECOND / 2 + 10 * SECOND) });
    }

    /// Row 20: 0 disables both ways.
    #[test]
    fn zero_is_off() {
        let start = Instant::now();
        let pulse = Heartbeat::new(Duration::ZERO, 50, 200).check(start + 1000 * SECOND, start, start);
        assert_eq!(pulse, Pulse { send: false, silent: false, next: None });
        assert_eq!(Heartbeat::new(Duration::ZERO, 50, 200).dead_after(), None);
    }
}
