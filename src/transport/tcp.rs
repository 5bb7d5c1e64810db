//! TCP, by `std::net`; `socket2` sets the options that `std` does not have.

use std::{
    io::{self, IoSlice, Read},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::{Patience, Transport, WRITE_QUANTUM};

/// Options of the socket.
#[derive(Debug, Clone)]
pub(crate) struct TcpOptions {
    pub(crate) nodelay: bool,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) bind_address: Option<IpAddr>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) receive_buffer: Option<usize>,
}

/// A connected TCP socket.
#[derive(Debug)]
pub(crate) struct Tcp(TcpStream);

impl Tcp {
    /// Connects within `timeout`. The socket is not inherited by child processes.
    pub(crate) fn connect(address: SocketAddr, options: &TcpOptions, timeout: Duration) -> io::Result<Tcp> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(local) = options.bind_address {
            socket.bind(&SocketAddr::new(local, 0).into())?;
        }
        // The buffer sizes have to be known when the window is negotiated.
        if let Some(size) = options.send_buffer {
            socket.set_send_buffer_size(size)?;
        }
        if let Some(size) = options.receive_buffer {
            socket.set_recv_buffer_size(size)?;
        }
        if let Some(idle) = options.keepalive {
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
        }
        socket.set_tcp_nodelay(options.nodelay)?;
        socket.set_write_timeout(Some(WRITE_QUANTUM))?;
        socket.connect_timeout(&address.into(), timeout)?;
        Ok(Tcp(socket.into()))
    }
}

impl Tcp {
    /// A connection that was accepted.
    #[cfg(feature = "broker")]
    pub(crate) fn accepted(stream: TcpStream) -> io::Result<Tcp> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_QUANTUM))?;
        Ok(Tcp(stream))
    }
}

/// The flags of a send that does not wait. Where the system has no such flag, it waits a quantum.
fn send_flags(patience: Patience) -> i32 {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    const NO_SIGNAL: i32 = libc::MSG_NOSIGNAL;
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    const NO_SIGNAL: i32 = 0;
    #[cfg(unix)]
    const DO_NOT_WAIT: i32 = libc::MSG_DONTWAIT;
    #[cfg(not(unix))]
    const DO_NOT_WAIT: i32 = 0;
    match patience {
        Patience::None => NO_SIGNAL | DO_NOT_WAIT,
        Patience::Quantum => NO_SIGNAL,
    }
}

/// Has whoever waits for a connection on this socket get an error. Every system but Linux refuses.
#[cfg(feature = "broker")]
pub(crate) fn end_listening(listener: &std::net::TcpListener) -> io::Result<()> {
    SockRef::from(listener).shutdown(std::net::Shutdown::Both)
}

impl Transport for Tcp {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    fn write(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
        let socket = SockRef::from(&self.0);
        match parts {
            [part] => socket.send_with_flags(part, send_flags(patience)),
            parts => socket.send_vectored_with_flags(parts, send_flags(patience)),
        }
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_read_timeout(timeout)
    }

    fn shutdown(&self) {
        // An error means that there is nothing left to shut down.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::is_timeout;
    use std::net::TcpListener;

    fn options() -> TcpOptions {
        TcpOptions {
            nodelay: true,
            keepalive: Some(Duration::from_secs(60)),
            bind_address: Some("127.0.0.1".parse().unwrap()),
            send_buffer: Some(64 * 1024),
            receive_buffer: Some(64 * 1024),
        }
    }

    /// Row 16: the options of the socket are set.
    #[test]
    fn the_options_reach_the_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = Tcp::connect(listener.local_addr().unwrap(), &options(), Duration::from_secs(5)).unwrap();
        let socket = SockRef::from(&tcp.0);
        assert!(tcp.0.nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert!(socket.send_buffer_size().unwrap() >= 64 * 1024);
        assert!(socket.recv_buffer_size().unwrap() >= 64 * 1024);
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", tcp.0.as_raw_fd())).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            assert!(u32::from_str_radix(flags, 8).unwrap() & 0o2_000_000 != 0, "row 16: CLOEXEC");
        }
    }

    /// Row 16: and those that are not wanted are not.
    #[test]
    fn the_options_can_be_left_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let none = TcpOptions {
            nodelay: false,
            keepalive: None,
            bind_address: None,
            send_buffer: None,
            receive_buffer: None,
        };
        let tcp = Tcp::connect(listener.local_addr().unwrap(), &none, Duration::from_secs(5)).unwrap();
        assert!(!tcp.0.nodelay().unwrap() && !SockRef::from(&tcp.0).keepalive().unwrap());
    }

    #[test]
    fn a_write_into_a_full_socket_does_not_wait_longer_than_its_patience() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = Tcp::connect(listener.local_addr().unwrap(), &options(), Duration::from_secs(5)).unwrap();
        let (_silent, _) = listener.accept().unwrap();
        let block = vec![0; 1 << 20];
        for patience in [Patience::None, Patience::Quantum] {
            // The system moves bytes from one end's buffer to the other's meanwhile.
            let error = loop {
                if let Err(error) = tcp.write(&[IoSlice::new(&block)], patience) {
                    break error;
                }
            };
            assert!(is_timeout(&error), "{error}");
        }
    }

    #[test]
    fn shutdown_wakes_a_reader() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = std::sync::Arc::new(
            Tcp::connect(listener.local_addr().unwrap(), &options(), Duration::from_secs(5)).unwrap(),
        );
        let (_silent, _) = listener.accept().unwrap();
        let reader = std::thread::spawn({
            let tcp = tcp.clone();
            move || tcp.read(&mut [0; 16])
        });
        tcp.shutdown();
        assert!(matches!(reader.join().unwrap(), Ok(0) | Err(_)));
    }
}
