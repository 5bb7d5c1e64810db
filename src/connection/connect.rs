//! From a list of hosts to one connected transport with the handshake done.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    config::{Address, Config},
    handshake::{Negotiated, shake_hands},
    secure::Security,
    tap::Taps,
};
use crate::{
    error::{Attempt, ConnectFailure, Error, Result},
    sync::{OneShot, spawn},
    transport::{
        Transport, is_timeout,
        stream::{Relay, Stream},
        tap::Tapped,
        tcp::{Tcp, TcpOptions},
    },
};

/// A connection after the handshake, before its threads are started.
pub(super) struct Connected {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) negotiated: Negotiated,
    /// Bytes that came after the handshake.
    pub(super) received: Vec<u8>,
    pub(super) taps: Taps,
}

/// Tries every address of every host, in order, until one accepts. What the broker itself refuses (the
/// credentials, the virtual host) is final.
pub(super) fn connect(config: &Config) -> Result<Connected> {
    connect_by(config, resolve)
}

fn connect_by(
    config: &Config,
    resolve: impl Fn(&Address, Duration) -> Result<Vec<SocketAddr>>,
) -> Result<Connected> {
    let security = config.tls.as_ref().map(Security::new).transpose()?;
    let mut attempts = Vec::new();
    for host in &config.addresses {
        let addresses = match resolve(host, config.connect_timeout) {
            Ok(addresses) => addresses,
            Err(error) => {
                attempts.push(Attempt { host: host.to_string(), address: None, error });
                continue;
            }
        };
        for address in addresses {
            match try_address(address, &host.host, security.as_ref(), config) {
                Ok(connected) => return Ok(connected),
                Err(error @ (Error::AuthenticationFailed(_) | Error::Refused(_) | Error::Invalid(_))) => {
                    return Err(error);
                }
                Err(error) => {
                    log::debug!(target: "leveret::connection", "cannot connect to {address}: {error}");
                    attempts.push(Attempt { host: host.to_string(), address: Some(address), error });
                }
            }
        }
    }
    match <[Attempt; 1]>::try_from(attempts) {
        // A peer that was reached and misbehaved is better described by its own error.
        Ok(
            [
                Attempt {
                    error: error @ (Error::Protocol(_) | Error::ProtocolVersion { .. } | Error::Tls(_)),
                    ..
                },
            ],
        ) => Err(error),
        Ok([attempt]) => Err(Error::Connect(Arc::new(ConnectFailure { attempts: vec![attempt] }))),
        Err(attempts) => Err(Error::Connect(Arc::new(ConnectFailure { attempts }))),
    }
}

/// Connects over the user's own stream.
pub(super) fn connect_stream(stream: Stream, config: &Config) -> Result<Connected> {
    let security = config.tls.as_ref().map(Security::new).transpose()?;
    let host = config.addresses.first().map_or("", |address| &address.host);
    begin(Relay::start(stream)?, host, security.as_ref(), config)
}

/// Connects over a transport within the process.
#[cfg(feature = "broker")]
pub(super) fn connect_transport(transport: impl Transport + 'static, config: &Config) -> Result<Connected> {
    begin(transport, "", None, config)
}

/// Shakes hands, for TLS if that is wanted and then for AMQP, with one deadline.
fn begin(
    transport: impl Transport + 'static,
    host: &str,
    security: Option<&Security>,
    config: &Config,
) -> Result<Connected> {
    let limit = config.handshake_timeout;
    let deadline = Instant::now() + limit;
    let taps = Taps::new(config);
    let filter = taps.filter.clone();
    let transport: Arc<dyn Transport> = match security {
        Some(security) => security.wrap(transport, host, deadline, limit, filter)?,
        None => Arc::new(Tapped::new(transport, filter)),
    };
    let (negotiated, received) = shake_hands(&*transport, config, deadline, &taps)?;
    Ok(Connected { transport, negotiated, received, taps })
}

fn try_address(
    address: SocketAddr,
    host: &str,
    security: Option<&Security>,
    config: &Config,
) -> Result<Connected> {
    let tcp = Tcp::connect(address, &options(config), config.connect_timeout).map_err(|error| {
        if is_timeout(&error) {
            Error::timeout("connecting", config.connect_timeout)
        } else {
            Error::io("connecting", error)
        }
    })?;
    begin(tcp, host, security, config)
}

fn options(config: &Config) -> TcpOptions {
    TcpOptions {
        nodelay: config.tcp_nodelay,
        keepalive: config.keepalive,
        bind_address: config.bind_address,
        send_buffer: config.send_buffer,
        receive_buffer: config.receive_buffer,
    }
}

/// The addresses of a host. The system's resolver knows no deadline, so it runs on a thread of its own, which
/// is left behind when it takes too long.
fn resolve(host: &Address, timeout: Duration) -> Result<Vec<SocketAddr>> {
    if let Ok(address) = host.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, host.port)]);
    }
    let name = (host.host.clone(), host.port);
    resolve_by(timeout, move || name.to_socket_addrs().map(Iterator::collect))
}

fn resolve_by(
    timeout: Duration,
    look_up: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> Result<Vec<SocketAddr>> {
    let answer = OneShot::new();
    let answered = answer.clone();
    spawn("leveret-resolve", move || answered.put(look_up()))?;
    match answer.wait(Some(Instant::now() + timeout)) {
        // A coroutine does not connect by itself, so nobody is cancelled here.
        Err(_) => Err(Error::timeout("resolving the host name", timeout)),
        Ok(Err(error)) => Err(Error::io("resolving the host name", error)),
        Ok(Ok(addresses)) => Ok(addresses),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::{net::TcpStream, sync::mpsc};

    /// A socket of this machine, and its address.
    fn bound() -> (Socket, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    /// A listener that accepts nobody, behind a queue that is full: whoever connects hears nothing. What holds its
    /// place in the queue, and the listener.
    fn unreachable() -> (Vec<TcpStream>, Socket, SocketAddr) {
        let (socket, address) = bound();
        socket.listen(0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
            waiting.push(stream);
        }
        (waiting, socket, address)
    }

    fn attempts(config: &Config, addresses: &[SocketAddr]) -> Vec<Attempt> {
        match connect_by(config, |_, _| Ok(addresses.to_vec())).map(drop) {
            Err(Error::Connect(failure)) => failure.attempts.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Row 5: every address that a name resolves to is tried, for every host, and listed with the host's name.
    #[test]
    fn every_address_of_every_host_is_tried() {
        let sockets: Vec<_> = (0..3).map(|_| bound()).collect();
        let addresses: Vec<_> = sockets.iter().map(|(_, address)| *address).collect();
        let config = Config::new().host("one", 1).fallback_host("two", 2);
        let tried = attempts(&config, &addresses);
        let expected =
            ["one:1", "two:2"].into_iter().flat_map(|host| addresses.iter().map(move |it| (host, it)));
        for (attempt, (host, address)) in tried.iter().zip(expected) {
            assert_eq!((&*attempt.host, attempt.address), (host, Some(*address)));
            assert!(matches!(attempt.error, Error::Io { .. }), "{attempt}");
        }
        assert_eq!(tried.len(), 6);
    }

    /// Row 5: each address has the whole limit for itself, and one that says nothing does not keep the next one from
    /// being tried.
    #[test]
    fn each_address_has_its_own_time() {
        let (_waiting, _listener, silent) = unreachable();
        let (_refusing, nobody) = bound();
        let limit = Duration::from_millis(100);
        let started = Instant::now();
        let tried = attempts(&Config::new().connect_timeout(limit), &[silent, silent, nobody]);
        // The system counts in milliseconds.
        assert!(started.elapsed() >= limit * 3 / 2, "{:?}", started.elapsed());
        for attempt in &tried[..2] {
            let Error::Timeout(timeout) = attempt.error else { panic!("{attempt}") };
            assert_eq!((timeout.waiting_for, timeout.limit), ("connecting", limit));
        }
        assert!(matches!(tried[2].error, Error::Io { .. }), "{}", tried[2]);
    }

    /// Row 5: a resolver that does not answer is waited for no longer than so long.
    #[test]
    fn resolving_a_name_has_a_limit() {
        let (end, may_end) = mpsc::channel::<()>();
        let limit = Duration::from_millis(50);
        let late = resolve_by(limit, move || {
            let _ = may_end.recv();
            Ok(Vec::new())
        });
        let Err(Error::Timeout(timeout)) = late else { panic!("{late:?}") };
        assert_eq!((timeout.waiting_for, timeout.limit), ("resolving the host name", limit));
        drop(end);
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(resolve_by(Duration::from_secs(60), move || Ok(vec![address])).unwrap(), [address]);
    }

    /// Row 16: each option of the configuration is that of the socket.
    #[test]
    fn options_are_those_of_the_configuration() {
        let config = Config::new().tcp_nodelay(false).keepalive(Duration::from_secs(7));
        let options = options(&config.bind_address([127, 0, 0, 2]).send_buffer(5000).receive_buffer(6000));
        assert_eq!((options.nodelay, options.keepalive), (false, Some(Duration::from_secs(7))));
        assert_eq!(options.bind_address, Some([127, 0, 0, 2].into()));
        assert_eq!((options.send_buffer, options.receive_buffer), (Some(5000), Some(6000)));
    }
}
