//! From a list of hosts to one connected transport with the handshake done.

use std::{
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
    let options = TcpOptions {
        nodelay: config.tcp_nodelay,
        keepalive: config.keepalive,
        bind_address: config.bind_address,
        send_buffer: config.send_buffer,
        receive_buffer: config.receive_buffer,
    };
    let tcp = Tcp::connect(address, &options, config.connect_timeout).map_err(|error| {
        if is_timeout(&error) {
            Error::timeout("connecting", config.connect_timeout)
        } else {
            Error::io("connecting", error)
        }
    })?;
    begin(tcp, host, security, config)
}

/// The addresses of a host. The system's resolver knows no deadline, so it runs on a thread of its own, which
/// is left behind when it takes too long.
fn resolve(host: &Address, timeout: Duration) -> Result<Vec<SocketAddr>> {
    if let Ok(address) = host.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, host.port)]);
    }
    let answer = OneShot::new();
    let name = (host.host.clone(), host.port);
    let answered = answer.clone();
    spawn("leveret-resolve", move || answered.put(name.to_socket_addrs().map(Iterator::collect)))?;
    match answer.wait(Some(Instant::now() + timeout)) {
        // A coroutine does not connect by itself, so nobody is cancelled here.
        Err(_) => Err(Error::timeout("resolving the host name", timeout)),
        Ok(Err(error)) => Err(Error::io("resolving the host name", error)),
        Ok(Ok(addresses)) => Ok(addresses),
    }
}
