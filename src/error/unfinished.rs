//! What a shutdown left undone.

use std::fmt;

use super::Error;

/// What [`Connection::shutdown`](crate::Connection::shutdown) found unfinished or failed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Unfinished {
    /// The time was over: the socket was closed as things stood.
    pub timed_out: bool,
    /// The handlers that had not finished, in words: `listener "ctag-1": 2 handlers at work`.
    pub at_work: Vec<String>,
    /// What channels were closed with, or did not finish, and the channel's number: [`Error::Unconfirmed`],
    /// [`Error::Refused`], [`Error::Timeout`]. Number 0 is the connection, whose close was not answered.
    pub errors: Vec<(u16, Error)>,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.timed_out {
            "the shutdown did not finish in time"
        } else {
            "the connection was shut down, but not everything had succeeded"
        })?;
        let errors = self.errors.iter().map(|(channel, error)| match channel {
            0 => error.to_string(),
            channel => format!("channel {channel}: {error}"),
        });
        for (number, item) in self.at_work.iter().cloned().chain(errors).enumerate() {
            write!(f, "{} {item}", if number == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Unfinished {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Scope;

    #[test]
    fn it_names_everything() {
        let mut unfinished = Unfinished { timed_out: true, ..Unfinished::default() };
        assert_eq!(unfinished.to_string(), "the shutdown did not finish in time");
        unfinished.at_work.push("listener \"a\": 1 handler at work".into());
        unfinished.errors.push((3, Error::Closed(Scope::Channel)));
        unfinished.errors.push((0, Error::WouldBlock));
        assert_eq!(
            unfinished.to_string(),
            "the shutdown did not finish in time: listener \"a\": 1 handler at work; channel 3: the channel was \
             closed by the application; the outgoing buffer is full, or the channel's flow is stopped; nothing was sent"
        );
    }
}
