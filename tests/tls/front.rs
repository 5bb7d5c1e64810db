//! The server's side of TLS: certificates, and a front that takes TLS off before a peer that speaks plain AMQP.

// Every test program uses a part of it; some fields are only printed.
#![allow(dead_code, unreachable_pub)]
use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use leveret::{
    TlsOptions,
    native_tls::{Certificate, TlsConnector},
};
use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod, SslStream, SslVersion};

/// How long a test waits for the end of a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// A certificate or key of `tests/broker/certificates`, made once for this process.
pub fn file(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("certificates-{}", process::id()));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broker/certificates");
        let output = Command::new(script).arg(&folder).output().expect("the script can be run");
        assert!(output.status.success(), "{output:?}");
        folder
    });
    folder.join(name)
}

pub fn read(name: &str) -> Vec<u8> {
    fs::read(file(name)).expect(name)
}

/// Trusts the authority that has issued the servers' certificates.
pub fn trusting() -> TlsOptions {
    TlsOptions::new().ca_certificate_file(file("ca.pem"))
}

/// The same with a connector that was built once: reading the authorities of the system takes longer than a handshake,
/// and native-tls does it for each connector.
pub fn trusting_quickly() -> TlsOptions {
    TlsOptions::new().connector(connector())
}

pub fn connector() -> TlsConnector {
    static CONNECTOR: OnceLock<TlsConnector> = OnceLock::new();
    let connector = CONNECTOR.get_or_init(|| {
        let authority = Certificate::from_pem(&read("ca.pem")).expect("a certificate");
        TlsConnector::builder().add_root_certificate(authority).build().expect("a connector")
    });
    connector.clone()
}

/// A server with this certificate.
pub fn acceptor(name: &str) -> SslAcceptor {
    acceptor_for(name, None)
}

/// With one version of TLS, or both. (native-tls's own acceptor knows no TLS 1.3.)
pub fn acceptor_for(name: &str, version: Option<SslVersion>) -> SslAcceptor {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).expect("an acceptor");
    builder.set_certificate_chain_file(file(&format!("{name}.pem"))).expect("a certificate");
    builder.set_private_key_file(file(&format!("{name}.key")), SslFiletype::PEM).expect("its key");
    if version.is_some() {
        builder.set_min_proto_version(version).expect("a version");
        builder.set_max_proto_version(version).expect("a version");
    }
    builder.build()
}

/// How one connection of a client ended.
#[derive(Debug)]
pub enum End {
    /// TLS did not come about.
    Refused(String),
    /// After so many bytes of plaintext from the client; `goodbye`: it sent TLS's close_notify.
    Over { received: u64, goodbye: bool },
}

/// How the front takes its leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// With close_notify.
    Good,
    /// The socket is closed, and that is all.
    Rude,
}

/// Takes TLS off any number of connections, for a backend. Dropping it ends them.
pub struct Front {
    pub address: SocketAddr,
    ends: Receiver<End>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    pub fn before(backend: u16, acceptor: SslAcceptor) -> Front {
        Front::with_manners(backend, acceptor, Manners::Good)
    }

    /// Nobody is behind it: what the client says is counted and forgotten.
    pub fn alone(acceptor: SslAcceptor) -> Front {
        Front::with_manners(0, acceptor, Manners::Good)
    }

    pub fn with_manners(backend: u16, acceptor: SslAcceptor, manners: Manners) -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its number");
        let (report, ends) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            while let Ok((client, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let one = One { backend, manners, stopped: stopped.clone(), report: report.clone() };
                let acceptor = acceptor.clone();
                connections.push(thread::spawn(move || one.serve(client, &acceptor)));
            }
            connections.into_iter().for_each(|connection| connection.join().expect("no panic"));
        });
        Front { address, ends, stop, thread: Some(thread) }
    }

    /// How the next connection ended.
    pub fn end(&self) -> End {
        self.ends.recv_timeout(PATIENCE).expect("a connection has ended")
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the one who accepts.
        let _ = TcpStream::connect(self.address);
        let outcome = self.thread.take().map(JoinHandle::join);
        assert!(matches!(outcome, Some(Ok(()))) || thread::panicking());
    }
}

struct One {
    backend: u16,
    manners: Manners,
    stopped: Arc<AtomicBool>,
    report: Sender<End>,
}

impl One {
    fn serve(self, client: TcpStream, acceptor: &SslAcceptor) {
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        client.set_nodelay(true).expect("nodelay");
        let end = match acceptor.accept(client) {
            Err(error) => End::Refused(error.to_string()),
            Ok(tls) if self.backend == 0 => self.listen(tls),
            Ok(tls) => self.relay(tls),
        };
        let _ = self.report.send(end);
    }

    fn listen(&self, mut tls: SslStream<TcpStream>) -> End {
        let outcome = io::copy(&mut tls, &mut io::sink());
        End::Over { received: *outcome.as_ref().unwrap_or(&0), goodbye: outcome.is_ok() }
    }

    fn relay(&self, mut tls: SslStream<TcpStream>) -> End {
        let plain = TcpStream::connect(("127.0.0.1", self.backend)).expect("the backend");
        plain.set_nodelay(true).expect("nodelay");
        plain.set_nonblocking(true).expect("non-blocking");
        tls.get_ref().set_nonblocking(true).expect("non-blocking");
        let (mut to_backend, mut to_client) = (Vec::new(), Vec::new());
        let mut received = 0;
        let goodbye = loop {
            let taken = fill(&mut to_backend, &mut tls);
            received += *taken.as_ref().unwrap_or(&0) as u64;
            let steps = [
                taken,
                drain(&mut to_backend, &mut &plain),
                fill(&mut to_client, &mut &plain),
                drain(&mut to_client, &mut tls),
            ];
            match steps {
                [Err(error), ..] => break error.kind() == ErrorKind::NotConnected,
                [_, Err(_), ..] | [_, _, Err(_), _] => {
                    if self.manners == Manners::Good {
                        let _ = tls.shutdown();
                    }
                    break false;
                }
                [.., Err(_)] => break false,
                [Ok(0), Ok(0), Ok(0), Ok(0)] => thread::sleep(Duration::from_micros(300)),
                _ => {}
            }
            if self.stopped.load(Ordering::SeqCst) {
                break false;
            }
        };
        let _ = plain.shutdown(Shutdown::Both);
        End::Over { received, goodbye }
    }
}

/// Reads, unless what came before has not gone yet; the orderly end is the error `NotConnected`.
fn fill(waiting: &mut Vec<u8>, source: &mut impl Read) -> io::Result<usize> {
    let mut chunk = [0; 64 * 1024];
    if !waiting.is_empty() {
        return Ok(0);
    }
    match source.read(&mut chunk) {
        Ok(0) => Err(ErrorKind::NotConnected.into()),
        Ok(length) => {
            waiting.extend_from_slice(&chunk[..length]);
            Ok(length)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    }
}

fn drain(waiting: &mut Vec<u8>, target: &mut impl Write) -> io::Result<usize> {
    if waiting.is_empty() {
        return Ok(0);
    }
    match target.write(waiting) {
        Ok(length) => {
            waiting.drain(..length);
            Ok(length)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    }
}
