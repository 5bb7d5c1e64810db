//! Why a peer that talks to this program directly gets nothing more.

use std::fmt;

/// Why nothing more can be sent to a consumer of a [direct listener](crate::direct), or is heard of what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Departure {
    /// The peer cancelled its consumer.
    Cancelled,
    /// The peer closed the channel.
    ChannelClosed,
    /// The peer made a mistake, and the channel was closed for it.
    ChannelFailed,
    /// The peer closed the connection.
    ConnectionClosed,
    /// The peer made a mistake, and the connection was closed for it.
    ConnectionFailed,
    /// The connection to the peer broke, or the peer was silent for too long.
    Lost,
    /// This program ended it: it cancelled the consumer, or stopped the listener.
    Ended,
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Departure::Cancelled => "the peer cancelled its consumer",
            Departure::ChannelClosed => "the peer closed its channel",
            Departure::ChannelFailed => "the peer's channel was closed for a mistake of the peer",
            Departure::ConnectionClosed => "the peer closed its connection",
            Departure::ConnectionFailed => "the peer's connection was closed for a mistake of the peer",
            Departure::Lost => "the connection to the peer was lost",
            Departure::Ended => "the consumer or its listener was ended by the application",
        })
    }
}
