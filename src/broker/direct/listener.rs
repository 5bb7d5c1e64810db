//! A listener that runs.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Peer, Program, Serve};
use crate::{
    broker::{hub::Hub, listener::Listener as Accepting, uri},
    error::{Error, Result},
};

/// Serves peers that talk to this program directly; made by [`Serve::start`] or [`Serve::listen`].
///
/// Dropping it stops it: no more connections are accepted, handlers that run finish and their confirms go out, what they
/// wait for from peers fails ([`Error::Departed`]), the connections are closed with 320, and all threads have ended
/// when the drop returns. Messages that no handler has seen are dropped, without a confirm. So it waits for
/// the handlers that run, at most [`drop_timeout`](Serve::drop_timeout), and for peers half a second.
#[derive(Debug)]
#[must_use = "it stops when it is dropped"]
pub struct Listener {
    pub(in crate::broker) hub: Arc<Hub>,
    program: Arc<Program>,
    accepting: Option<Accepting>,
    address: Option<SocketAddr>,
}

impl Listener {
    pub(super) fn start(serve: Serve, addresses: &[SocketAddr]) -> Result<Listener> {
        let (config, program) = serve.into_program()?;
        let hub = Hub::direct(config, program.clone());
        let mut listener = Listener { hub, program, accepting: None, address: None };
        if !addresses.is_empty() {
            let accepting = Accepting::start(&listener.hub, addresses)?;
            listener.address = Some(accepting.address());
            listener.accepting = Some(accepting);
        }
        Ok(listener)
    }

    /// Where it listens; `None` if only its own process can reach it.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// A URI with the credentials of the first user and the virtual host `/`.
    ///
    /// # Errors
    /// [`Error::Invalid`]: it does not listen.
    pub fn uri(&self) -> Result<String> {
        let address = self
            .address
            .ok_or_else(|| Error::invalid("a listener that was started without an address has no URI"))?;
        Ok(uri(&self.hub.config, address))
    }

    /// The peers whose connections are open.
    pub fn peers(&self) -> Vec<Peer> {
        self.program.peers().into_iter().map(Peer).collect()
    }

    /// Waits until all peers have left, so that stopping disturbs nobody. New ones may come meanwhile. For threads only:
    /// it blocks the thread of a coroutine.
    ///
    /// # Errors
    /// [`Error::Timeout`]: somebody is still there.
    pub fn wait_left(&self, timeout: Duration) -> Result<()> {
        // A year is as good as for ever.
        let deadline = Instant::now() + timeout.min(Duration::from_secs(365 * 24 * 60 * 60));
        if self.program.wait_left(deadline) {
            return Ok(());
        }
        Err(Error::timeout("all peers to leave", timeout))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.accepting = None;
        self.hub.set_stopped(true);
        self.program.stop();
        self.hub.stop_sessions();
        self.hub.timer.stop();
    }
}
