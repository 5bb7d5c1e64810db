//! Accepts connections on a TCP port, on a thread of its own.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::hub::{Hub, spawn};
use crate::{
    error::{Error, Result},
    transport::{
        Transport,
        tcp::{self, Tcp},
    },
};

/// How long to wait when the system cannot accept, for example because it is out of file descriptors.
const PAUSE: Duration = Duration::from_millis(20);

/// How long the connection to ourselves may take that ends the wait where nothing else does.
const WAKE: Duration = Duration::from_secs(1);

/// A port that is listened on. Dropping it closes the port; the thread has ended then.
#[derive(Debug)]
pub(super) struct Listener {
    address: SocketAddr,
    socket: Arc<TcpListener>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(super) fn start(hub: &Arc<Hub>, addresses: &[SocketAddr]) -> Result<Listener> {
        let failed = |error| Error::io("listening", error);
        let socket = Arc::new(TcpListener::bind(addresses).map_err(failed)?);
        let address = socket.local_addr().map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = spawn("leveret-broker", {
            let (hub, socket, stop) = (hub.clone(), socket.clone(), stop.clone());
            move || accept(&hub, &socket, &stop)
        })?;
        Ok(Listener { address, socket, stop, thread: Some(thread) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Costs no file descriptor, of which there may be none left.
        if tcp::end_listening(&self.socket).is_ok() || self.connect() {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

impl Listener {
    /// The only way to end a wait for connections that every system has.
    fn connect(&self) -> bool {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        TcpStream::connect_timeout(&SocketAddr::new(ip, self.address.port()), WAKE).is_ok()
    }
}

fn accept(hub: &Arc<Hub>, socket: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        match socket.accept() {
            Ok(_) if stop.load(Ordering::SeqCst) => return,
            Ok((stream, peer)) => {
                let started = transport(hub, stream)
                    .and_then(|transport| hub.start(transport, Some(peer)).map_err(io::Error::other));
                if let Err(error) = started {
                    log::debug!(target: "leveret::broker", "a connection from {peer} is not served: {error}");
                }
            }
            Err(error) => {
                log::debug!(target: "leveret::broker", "cannot accept a connection: {error}");
                thread::park_timeout(PAUSE);
            }
        }
    }
}

fn transport(hub: &Hub, stream: TcpStream) -> io::Result<Arc<dyn Transport>> {
    let socket: Arc<dyn Transport> = Arc::new(Tcp::accepted(stream)?);
    #[cfg(feature = "tls")]
    if let Some(identity) = &hub.config.identity {
        return Ok(Arc::new(super::tls::Accepted::new(socket, identity, hub.config.handshake_timeout)));
    }
    let _ = hub;
    Ok(socket)
}
