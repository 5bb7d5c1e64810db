//! How long each side of a connection has said nothing, and what follows. Time is an argument.

use std::time::{Duration, Instant};

/// When a client was heard last, by the broker's clock and by the system's, and when something was sent to it.
///
/// As in RabbitMQ, a heartbeat is due after half an interval, and a client is given up after two. When a test moves the
/// broker's clock, a client that is well cannot know, and goes on sending once an interval of real time. So one of the two
/// must really have passed, unless the broker was told not to listen.
#[derive(Debug)]
pub(super) struct Silence {
    /// How often it had been heard.
    heard: u64,
    heard_at: Duration,
    really_heard_at: Instant,
    /// How many bytes had been sent.
    sent: u64,
    sent_at: Duration,
}

impl Silence {
    pub(super) fn new(now: Duration, really: Instant) -> Silence {
        Silence { heard: 0, heard_at: now, really_heard_at: really, sent: 0, sent_at: now }
    }

    /// Notes how often the client has been heard, and how much it has been sent. Its silence does not count if it is
    /// `excused`.
    pub(super) fn look(&mut self, heard: u64, excused: bool, sent: u64, now: Duration, really: Instant) {
        if excused || heard != self.heard {
            (self.heard, self.heard_at, self.really_heard_at) = (heard, now, really);
        }
        if sent != self.sent {
            (self.sent, self.sent_at) = (sent, now);
        }
    }

    /// How much longer the client may be silent. `unheard`: the broker does not listen.
    pub(super) fn patience(
        &self,
        interval: Duration,
        unheard: bool,
        now: Duration,
        really: Instant,
    ) -> Duration {
        let left = (self.heard_at + 2 * interval).saturating_sub(now);
        let really_left = match unheard {
            true => Duration::ZERO,
            false => interval.saturating_sub(really.saturating_duration_since(self.really_heard_at)),
        };
        left.max(really_left)
    }

    /// How long it is until a heartbeat is due.
    pub(super) fn until_beat(&self, interval: Duration, now: Duration) -> Duration {
        (self.sent_at + interval / 2).saturating_sub(now)
    }

    /// A heartbeat is on its way.
    pub(super) fn beat(&mut self, now: Duration) {
        self.sent_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_client_may_be_silent_for_two_intervals() {
        let start = Instant::now();
        let mut silence = Silence::new(seconds(0), start);
        let left =
            |silence: &Silence, at| silence.patience(INTERVAL, false, seconds(at), start + seconds(at));
        assert_eq!(left(&silence, 0), seconds(20));
        silence.look(0, false, 0, seconds(15), start + seconds(15));
        assert_eq!(left(&silence, 15), seconds(5));
        silence.look(1, false, 0, seconds(15), start + seconds(15));
        assert_eq!(left(&silence, 15), seconds(20));
        assert_eq!(left(&silence, 35), seconds(0));
        silence.look(1, true, 0, seconds(35), start + seconds(35));
        assert_eq!(left(&silence, 35), seconds(20), "the broker was to blame");
    }

    #[test]
    fn of_a_moved_clock_one_interval_must_be_real() {
        let start = Instant::now();
        let silence = Silence::new(seconds(0), start);
        let left =
            |unheard, at, really| silence.patience(INTERVAL, unheard, seconds(at), start + seconds(really));
        assert_eq!(left(false, 1000, 0), seconds(10));
        assert_eq!(left(false, 1000, 10), seconds(0));
        assert_eq!(left(true, 1000, 0), seconds(0), "the broker does not listen");
        assert_eq!(left(true, 19, 0), seconds(1));
    }

    #[test]
    fn a_heartbeat_is_due_after_half_an_interval() {
        let start = Instant::now();
        let mut silence = Silence::new(seconds(0), start);
        silence.look(0, false, 8, seconds(3), start);
        assert_eq!(silence.until_beat(INTERVAL, seconds(7)), seconds(1));
        assert_eq!(silence.until_beat(INTERVAL, seconds(9)), seconds(0));
        silence.beat(seconds(9));
        assert_eq!(silence.until_beat(INTERVAL, seconds(9)), seconds(5));
    }
}
