//! Moves bytes between two ends. Knows nothing of AMQP.
//!
//! A [`Transport`] is full duplex and shared: one thread reads while another writes, and a third may shut
//! both down. Every wait is bounded or can be ended by [`Transport::shutdown`].

#[cfg(test)]
pub(crate) mod fault;
pub(crate) mod pipe;
pub(crate) mod stint;
pub(crate) mod stream;
pub(crate) mod tap;
pub(crate) mod tcp;
#[cfg(feature = "tls")]
pub(crate) mod tls;

use std::{
    fmt::Debug,
    io::{self, IoSlice},
    time::Duration,
};

use stint::Stint;

/// How long [`Transport::write`] waits at most when it may wait: short enough for whoever writes to look at
/// his deadline often, long enough to cost nothing.
pub(crate) const WRITE_QUANTUM: Duration = Duration::from_millis(100);

/// Whether a write that cannot proceed waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Not at all.
    None,
    /// For [`WRITE_QUANTUM`] at most.
    Quantum,
}

/// One end of a byte stream.
pub(crate) trait Transport: Debug + Send + Sync {
    /// Waits for bytes; 0 means that the peer has closed its side.
    ///
    /// # Errors
    /// `WouldBlock` or `TimedOut` when the read timeout passed; `Interrupted` when it is to be called again, after
    /// a look at [`backlog`](Transport::backlog).
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes as much of `parts` as it can.
    ///
    /// # Errors
    /// `WouldBlock` or `TimedOut` when nothing could be written without more patience.
    fn write(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize>;

    /// Bytes of the transport's own that are still to be written, because they became more on the way or because
    /// reading has caused them. A [`write`](Transport::write) goes on with them, also one of nothing.
    fn backlog(&self) -> usize {
        0
    }

    /// How long [`read`](Transport::read) waits; `None` is forever, until bytes come or `shutdown`.
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// Ends both directions. Whoever reads or writes at that moment returns soon.
    fn shutdown(&self);
}

/// Writes the rest of `bytes` as long as that goes forward; if it waits in between, for a [`WRITE_QUANTUM`] or little more: a
/// peer that takes next to nothing at a time must not keep a writer who has a limit of his own.
///
/// # Errors
/// Those of [`Transport::write`]; `WouldBlock` also when only a part was taken in this time.
fn write_on(
    transport: &impl Transport,
    bytes: &[u8],
    written: &mut usize,
    patience: Patience,
) -> io::Result<()> {
    let mut stint = Stint::of(WRITE_QUANTUM);
    while let rest @ [_, ..] = bytes.get(*written..).unwrap_or_default() {
        match transport.write(&[IoSlice::new(rest)], patience) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(more) if more < rest.len() && patience == Patience::Quantum && stint.is_over() => {
                *written += more;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(more) => *written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The error only says that the time was over or that there was nothing to do yet.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
