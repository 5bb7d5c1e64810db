//! TLS, from the side of the one who listens.

use std::{
    io::{self, IoSlice},
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use super::config::Identity;
use crate::{
    sync::lock,
    transport::{Patience, Transport, tls::Tls},
};

/// As good as no limit, and never too much for an [`Instant`].
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A connection that shakes hands for TLS on the first read, so that a client which is slow about it holds up only
/// its own session. Nothing is written before: the client speaks first.
#[derive(Debug)]
pub(super) struct Accepted {
    socket: Socket,
    session: OnceLock<Tls<Socket>>,
    /// Taken by the handshake.
    shaking: Mutex<Option<Identity>>,
    limit: Duration,
}

/// The socket, for the handshake and for whoever shuts it down meanwhile.
#[derive(Debug, Clone)]
struct Socket(Arc<dyn Transport>);

impl Accepted {
    pub(super) fn new(socket: Arc<dyn Transport>, identity: &Identity, limit: Duration) -> Accepted {
        Accepted {
            socket: Socket(socket),
            session: OnceLock::new(),
            shaking: Mutex::new(Some(identity.clone())),
            limit,
        }
    }

    fn session(&self) -> io::Result<&Tls<Socket>> {
        if let Some(session) = self.session.get() {
            return Ok(session);
        }
        let identity = lock(&self.shaking).take().ok_or(io::ErrorKind::NotConnected)?;
        let deadline = Instant::now() + self.limit.min(A_DAY);
        let session = Tls::accept(self.socket.clone(), &identity.acceptor, deadline, self.limit)
            .map_err(io::Error::other)?;
        Ok(self.session.get_or_init(|| session))
    }
}

impl Transport for Accepted {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.session()?.read(buffer)
    }

    fn write(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
        self.session.get().ok_or(io::ErrorKind::NotConnected)?.write(parts, patience)
    }

    fn backlog(&self) -> usize {
        self.session.get().map_or(0, Transport::backlog)
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.0.set_read_timeout(timeout)
    }

    fn shutdown(&self) {
        match self.session.get() {
            Some(session) => session.shutdown(),
            None => self.socket.0.shutdown(),
        }
    }
}

impl Transport for Socket {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    fn write(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
        self.0.write(parts, patience)
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_read_timeout(timeout)
    }

    fn shutdown(&self) {
        self.0.shutdown();
    }
}
