//! TLS over another transport, by native-tls running over memory.
//!
//! The TLS library never touches the socket: what came from the peer is put into [`Memory`], and what it wants
//! to send is taken from there. So reading and writing share nothing but a lock that is held while bytes are
//! encrypted or decrypted, never while anybody waits: a write that is stuck cannot stop reading, nor the reverse.
//!
//! What reading makes TLS want to send (the answer to a key update, an alert) stays in the memory. It counts in
//! [`Transport::backlog`], and the reader, whose read is interrupted for it, has the writer thread fetch it.
//!
//! Locks: `leaving`, then `session`, then the memory's. `leaving` is held during a write to the socket, by the one
//! who has the turn to write, so [`shutdown`](Transport::shutdown) only tries it. The reader never takes it.

use std::{
    fmt,
    io::{self, IoSlice, Read, Write},
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use native_tls::{HandshakeError, MidHandshakeTlsStream, TlsConnector, TlsStream};

use super::{Patience, Transport, is_timeout, write_on};
use crate::{
    error::{Error, Result, TlsFailure, TlsProblem},
    sync::lock,
};

/// Ciphertext that is read at once.
const READ_CHUNK: usize = 64 * 1024;

/// Plaintext that is encrypted before it is written: enough for a large write, and what a peer that stops reading
/// can leave us with.
const ENCRYPT_AT_ONCE: usize = 64 * 1024;

/// Answers that the peer may provoke without reading them before it is given up.
const MAX_UNSENT: usize = 1024 * 1024;

/// The most plaintext that one TLS record holds.
const RECORD: usize = 16 * 1024;

/// While the peer negotiates anew (TLS 1.2), nothing can be encrypted until the reader has read its part.
const RENEGOTIATION_PAUSE: Duration = Duration::from_millis(1);

/// What is known about the client's certificate; tells what the peer's alerts mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientCertificate {
    None,
    Given,
    /// The connector is the user's own.
    Unknown,
}

/// A transport with TLS around it.
pub(crate) struct Tls<T> {
    inner: T,
    memory: Memory,
    session: Mutex<TlsStream<Memory>>,
    leaving: Mutex<Leaving>,
    arriving: Mutex<Arriving>,
    certificate: ClientCertificate,
}

/// Ciphertext on its way to the socket.
#[derive(Debug, Default)]
struct Leaving {
    bytes: Vec<u8>,
    written: usize,
    /// Plaintext of several pieces that is to become one record.
    gathered: Vec<u8>,
}

/// The reader's.
#[derive(Debug, Default)]
struct Arriving {
    chunk: Vec<u8>,
    /// Found after plaintext that had to be returned first.
    failure: Option<io::Error>,
}

/// What the TLS library takes for a socket.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Ciphertext that the socket has not taken yet, wherever it is.
    unsent: AtomicUsize,
    buffers: Mutex<Buffers>,
}

#[derive(Debug, Default)]
struct Buffers {
    incoming: Vec<u8>,
    /// The part of `incoming` that is still to be read by the TLS library.
    from: usize,
    to: usize,
    outgoing: Vec<u8>,
}

impl Memory {
    fn unsent(&self) -> usize {
        self.0.unsent.load(Ordering::SeqCst)
    }

    /// Puts what came from the peer in. `chunk` gets another buffer in exchange.
    fn feed(&self, chunk: &mut Vec<u8>, length: usize) {
        let mut buffers = lock(&self.0.buffers);
        if buffers.from == buffers.to {
            std::mem::swap(&mut buffers.incoming, chunk);
            (buffers.from, buffers.to) = (0, length);
        } else {
            let end = buffers.to;
            buffers.incoming.truncate(end);
            buffers.incoming.extend_from_slice(chunk.get(..length).unwrap_or_default());
            buffers.to += length;
        }
    }

    /// Adds what is to be sent to `leaving`.
    fn take_outgoing(&self, leaving: &mut Leaving) {
        let mut buffers = lock(&self.0.buffers);
        if leaving.written == leaving.bytes.len() {
            leaving.bytes.clear();
            leaving.written = 0;
            std::mem::swap(&mut buffers.outgoing, &mut leaving.bytes);
        } else {
            leaving.bytes.append(&mut buffers.outgoing);
        }
    }
}

impl Read for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffers = lock(&self.0.buffers);
        let mut rest = buffers.incoming.get(buffers.from..buffers.to).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let read = rest.read(buffer)?;
        buffers.from += read;
        Ok(read)
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0.buffers).outgoing.extend_from_slice(bytes);
        self.0.unsent.fetch_add(bytes.len(), Ordering::SeqCst);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<T: Transport> Tls<T> {
    /// Shakes hands over `inner`. `name` is the one that the peer's certificate must be valid for.
    ///
    /// # Errors
    /// [`Error::Tls`] says why the two sides do not come together; [`Error::Timeout`] and [`Error::Io`].
    pub(crate) fn establish(
        inner: T,
        connector: &TlsConnector,
        name: &str,
        certificate: ClientCertificate,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Tls<T>> {
        let begin = |memory| connector.connect(name, memory);
        Tls::shake_hands(inner, begin, name, certificate, deadline, limit)
    }

    /// Shakes hands over `inner` as the one who was connected to.
    ///
    /// # Errors
    /// As [`establish`](Tls::establish).
    #[cfg(feature = "broker")]
    pub(crate) fn accept(
        inner: T,
        acceptor: &native_tls::TlsAcceptor,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Tls<T>> {
        let begin = |memory| acceptor.accept(memory);
        Tls::shake_hands(inner, begin, "", ClientCertificate::Unknown, deadline, limit)
    }

    fn shake_hands(
        inner: T,
        begin: impl FnOnce(Memory) -> Step,
        name: &str,
        certificate: ClientCertificate,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Tls<T>> {
        let memory = Memory::default();
        let handshake = Handshake {
            inner: &inner,
            memory: &memory,
            certificate,
            deadline,
            limit,
            flights: 0,
            leaving: Leaving::default(),
            chunk: vec![0; READ_CHUNK],
            heard: false,
            lost: None,
        };
        let session = handshake.run(begin(memory.clone()), name)?;
        Ok(Tls {
            inner,
            memory,
            session: Mutex::new(session),
            leaving: Mutex::default(),
            arriving: Mutex::default(),
            certificate,
        })
    }

    /// Decrypts into `buffer` as much as is there and fits; `None` when more ciphertext is needed.
    fn decrypt(&self, buffer: &mut [u8], arriving: &mut Arriving) -> io::Result<Option<usize>> {
        if let Some(failure) = arriving.failure.take() {
            return Err(failure);
        }
        let mut filled = 0;
        while filled < buffer.len() {
            // The lock is given up between records, for a writer that waits for it.
            let read = lock(&self.session).read(buffer.get_mut(filled..).unwrap_or_default());
            match read {
                Ok(0) => return Ok(Some(filled)),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    let error = broken(&error, self.certificate);
                    if filled == 0 {
                        return Err(error);
                    }
                    arriving.failure = Some(error);
                    break;
                }
            }
        }
        Ok((filled > 0).then_some(filled))
    }

    /// Encrypts the beginning of `parts` into the memory, and says how many bytes of them.
    fn encrypt(&self, parts: &[IoSlice<'_>], gathered: &mut Vec<u8>) -> io::Result<usize> {
        let mut session = lock(&self.session);
        let mut accepted = 0;
        gathered.clear();
        for part in parts {
            let mut rest: &[u8] = part;
            while !rest.is_empty() && accepted + gathered.len() < ENCRYPT_AT_ONCE {
                // Frame headers and small bodies share records; of large ones whole records are taken as they are.
                let in_place = gathered.is_empty() && rest.len() >= RECORD;
                let (taken, others) = rest.split_at(rest.len().min(RECORD - gathered.len()));
                rest = others;
                if !in_place {
                    gathered.extend_from_slice(taken);
                    if gathered.len() < RECORD {
                        continue;
                    }
                }
                let encrypted = encrypt_all(&mut session, if in_place { taken } else { gathered });
                gathered.clear();
                if let Some(outcome) = count(&mut accepted, encrypted) {
                    return outcome;
                }
            }
        }
        let encrypted = encrypt_all(&mut session, gathered);
        count(&mut accepted, encrypted).unwrap_or(Ok(accepted))
    }

    /// Writes ciphertext until all of it is with the system, as long as that goes forward.
    fn send(&self, leaving: &mut Leaving, patience: Patience) -> io::Result<()> {
        send(&self.inner, &self.memory, leaving, patience)
    }
}

fn encrypt_all(session: &mut TlsStream<Memory>, plaintext: &[u8]) -> (usize, io::Result<()>) {
    let mut encrypted = 0;
    while let rest @ [_, ..] = plaintext.get(encrypted..).unwrap_or_default() {
        match session.write(rest) {
            Ok(0) => return (encrypted, Err(io::ErrorKind::WriteZero.into())),
            Ok(more) => encrypted += more,
            Err(error) => return (encrypted, Err(error)),
        }
    }
    (encrypted, Ok(()))
}

/// Adds up; after an error, what the whole write comes to. An error that is kept back will show itself again.
fn count(accepted: &mut usize, encrypted: (usize, io::Result<()>)) -> Option<io::Result<usize>> {
    *accepted += encrypted.0;
    let error = encrypted.1.err()?;
    Some(if *accepted > 0 { Ok(*accepted) } else { Err(error) })
}

fn send(
    inner: &impl Transport,
    memory: &Memory,
    leaving: &mut Leaving,
    patience: Patience,
) -> io::Result<()> {
    let before = leaving.written;
    let sent = write_on(inner, &leaving.bytes, &mut leaving.written, patience);
    memory.0.unsent.fetch_sub(leaving.written - before, Ordering::SeqCst);
    sent
}

impl<T: Transport> Transport for Tls<T> {
    /// Also ends, with `Interrupted`, when reading has made TLS want to send something.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut arriving = lock(&self.arriving);
        loop {
            let unsent = self.memory.unsent();
            if let Some(read) = self.decrypt(buffer, &mut arriving)? {
                return Ok(read);
            }
            if self.memory.unsent() > MAX_UNSENT {
                return Err(io::Error::other("the peer makes TLS answer and does not read the answers"));
            }
            if self.memory.unsent() > unsent {
                return Err(io::ErrorKind::Interrupted.into());
            }
            arriving.chunk.resize(READ_CHUNK, 0);
            let length = self.inner.read(&mut arriving.chunk)?;
            if length == 0 {
                return Err(truncated());
            }
            self.memory.feed(&mut arriving.chunk, length);
        }
    }

    fn write(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
        let mut leaving = lock(&self.leaving);
        self.send(&mut leaving, patience)?;
        let encrypted = self.encrypt(parts, &mut leaving.gathered);
        self.memory.take_outgoing(&mut leaving);
        let sent = self.send(&mut leaving, patience);
        match encrypted {
            // What was encrypted is accepted: what the socket does not take now goes first the next time, and an
            // error shows itself again then.
            Ok(accepted) if accepted > 0 => Ok(accepted),
            Ok(_) => sent.map(|()| 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if patience == Patience::Quantum {
                    std::thread::park_timeout(RENEGOTIATION_PAUSE);
                }
                Err(error)
            }
            Err(error) => Err(broken(&error, self.certificate)),
        }
    }

    fn backlog(&self) -> usize {
        self.memory.unsent()
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.inner.set_read_timeout(timeout)
    }

    /// Says goodbye first, if that needs no waiting.
    fn shutdown(&self) {
        let leaving = match self.leaving.try_lock() {
            Ok(leaving) => Some(leaving),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            // Somebody is stuck in a write: the peer does not listen anyway.
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(mut leaving) = leaving {
            let _ = lock(&self.session).shutdown();
            self.memory.take_outgoing(&mut leaving);
            let _ = self.send(&mut leaving, Patience::None);
        }
        self.inner.shutdown();
    }
}

impl<T: fmt::Debug> fmt::Debug for Tls<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// The peer ended the stream without the goodbye of TLS.
fn truncated() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the peer closed the connection without TLS's close_notify: what it said may be incomplete",
    )
}

/// An error of the TLS library, for those who read or write.
fn broken(error: &io::Error, certificate: ClientCertificate) -> io::Error {
    io::Error::other(explain(&error.to_string(), certificate, true))
}

struct Handshake<'a, T> {
    inner: &'a T,
    memory: &'a Memory,
    certificate: ClientCertificate,
    deadline: Instant,
    limit: Duration,
    /// How often we had something to say so far.
    flights: usize,
    leaving: Leaving,
    chunk: Vec<u8>,
    /// The peer has said something.
    heard: bool,
    /// Why writing failed. The peer's own words about it, which may still be there, are better.
    lost: Option<io::Error>,
}

type Step = std::result::Result<TlsStream<Memory>, HandshakeError<Memory>>;

impl<T: Transport> Handshake<'_, T> {
    fn run(mut self, first: Step, name: &str) -> Result<TlsStream<Memory>> {
        let mut step = first;
        loop {
            self.memory.take_outgoing(&mut self.leaving);
            self.flights += usize::from(!self.leaving.bytes.is_empty());
            match step {
                Ok(session) => {
                    self.send()?;
                    return Ok(session);
                }
                Err(HandshakeError::Failure(error)) => {
                    // The alert that tells the peer why.
                    let _ = send(self.inner, self.memory, &mut self.leaving, Patience::None);
                    let mut failure = explain(&error.to_string(), self.certificate, self.flights > 1);
                    if failure.problem == TlsProblem::WrongName {
                        failure.details = format!("it is not valid for {name:?}");
                    }
                    return Err(Error::Tls(Arc::new(failure)));
                }
                Err(HandshakeError::WouldBlock(unfinished)) => {
                    self.send()?;
                    step = self.receive(unfinished)?;
                }
            }
        }
    }

    fn left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Error::timeout("the TLS handshake", self.limit)) } else { Ok(left) }
    }

    fn send(&mut self) -> Result<()> {
        while self.lost.is_none() {
            match send(self.inner, self.memory, &mut self.leaving, Patience::Quantum) {
                Ok(()) => break,
                Err(error) if is_timeout(&error) => _ = self.left()?,
                Err(error) => self.lost = Some(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self, unfinished: MidHandshakeTlsStream<Memory>) -> Result<Step> {
        let length = loop {
            let left = self.left()?;
            let prepared = self.inner.set_read_timeout(Some(left));
            match prepared.and_then(|()| self.inner.read(&mut self.chunk)) {
                Ok(0) => return Err(self.ended(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => break length,
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.ended(error)),
            }
        };
        let arrived = self.chunk.get(..length).unwrap_or_default();
        let hint = if std::mem::replace(&mut self.heard, true) { None } else { not_tls(arrived) };
        if let Some(details) = hint {
            return Err(Error::Tls(Arc::new(TlsFailure { problem: TlsProblem::NotTls, details })));
        }
        self.memory.feed(&mut self.chunk, length);
        self.chunk.resize(READ_CHUNK, 0);
        Ok(unfinished.handshake())
    }

    fn ended(&mut self, error: io::Error) -> Error {
        if error.kind() != io::ErrorKind::UnexpectedEof {
            return Error::io("shaking hands for TLS", self.lost.take().unwrap_or(error));
        }
        let hint = if !self.heard { " (is this the port for amqps?)" } else { "" };
        let text = format!("the peer closed the connection during the TLS handshake{hint}");
        Error::io("shaking hands for TLS", io::Error::new(error.kind(), text))
    }
}

/// What a peer may be whose first bytes are those.
fn not_tls(arrived: &[u8]) -> Option<String> {
    match arrived {
        [b'A', b'M', b'Q', b'P', ..] => Some("it answered in plain AMQP: is this the port for amqps?".into()),
        [b'H', b'T', b'T', b'P', ..] => Some("it answered in plain HTTP".into()),
        _ => None,
    }
}

/// An alert's number in the protocol, and what it means for us.
const ALERTS: &[(u8, TlsProblem, &str)] = &[
    (40, TlsProblem::Incompatible, "handshake_failure"),
    (42, TlsProblem::ClientCertificateRefused, "bad_certificate"),
    (43, TlsProblem::ClientCertificateRefused, "unsupported_certificate"),
    (44, TlsProblem::ClientCertificateRefused, "certificate_revoked"),
    (45, TlsProblem::ClientCertificateRefused, "certificate_expired"),
    (46, TlsProblem::ClientCertificateRefused, "certificate_unknown"),
    (48, TlsProblem::ClientCertificateRefused, "unknown_ca"),
    (49, TlsProblem::ClientCertificateRefused, "access_denied"),
    (70, TlsProblem::Incompatible, "protocol_version"),
    (71, TlsProblem::Incompatible, "insufficient_security"),
    (112, TlsProblem::WrongName, "unrecognized_name"),
    (116, TlsProblem::ClientCertificateRequired, "certificate_required"),
];

/// Words of the TLS library, and what they mean. OpenSSL has no other way to tell through native-tls.
const COMPLAINTS: &[(&str, TlsProblem)] = &[
    ("certificate has expired", TlsProblem::Expired),
    ("certificate is not yet valid", TlsProblem::Expired),
    ("hostname mismatch", TlsProblem::WrongName),
    ("ip address mismatch", TlsProblem::WrongName),
    ("unable to get local issuer certificate", TlsProblem::UnknownAuthority),
    ("unable to get issuer certificate", TlsProblem::UnknownAuthority),
    ("unable to verify the first certificate", TlsProblem::UnknownAuthority),
    ("self-signed certificate", TlsProblem::UnknownAuthority),
    ("self signed certificate", TlsProblem::UnknownAuthority),
    ("certificate signature failure", TlsProblem::UnknownAuthority),
    ("certificate verify failed", TlsProblem::BadCertificate),
    ("wrong version number", TlsProblem::NotTls),
    ("packet length too long", TlsProblem::NotTls),
    ("http request", TlsProblem::NotTls),
    ("unsupported protocol", TlsProblem::Incompatible),
    ("version too low", TlsProblem::Incompatible),
    ("no ciphers available", TlsProblem::Incompatible),
];

/// Puts the TLS library's words into ours. `asked_for_certificate`: the peer may have done so already.
fn explain(text: &str, certificate: ClientCertificate, asked_for_certificate: bool) -> TlsFailure {
    if let Some(number) = alert_number(text) {
        let known = ALERTS.iter().find(|(known, ..)| *known == number);
        let (problem, name) = known.map_or((TlsProblem::Other, ""), |(_, problem, name)| (*problem, *name));
        let problem = match problem {
            // Until TLS 1.3 a peer that misses our certificate, or does not like it, can only say this.
            TlsProblem::Incompatible if number == 40 && asked_for_certificate => match certificate {
                ClientCertificate::Given => TlsProblem::ClientCertificateRefused,
                ClientCertificate::None | ClientCertificate::Unknown => TlsProblem::ClientCertificateRequired,
            },
            TlsProblem::ClientCertificateRefused if certificate == ClientCertificate::None => {
                TlsProblem::ClientCertificateRequired
            }
            other => other,
        };
        let details = format!("the peer's alert is {number} {name}");
        return TlsFailure { problem, details: details.trim_end().to_owned() };
    }
    let lower = text.to_lowercase();
    let complaint = COMPLAINTS.iter().find(|(words, _)| lower.contains(words));
    let problem = complaint.map_or(TlsProblem::Other, |(_, problem)| *problem);
    // OpenSSL gives the reason of a failed verification in parentheses at the end.
    let reason = text.rsplit_once(" (").and_then(|(_, reason)| reason.strip_suffix(')'));
    TlsFailure { problem, details: reason.unwrap_or(text).to_owned() }
}

/// The peer's alert, as OpenSSL writes it.
fn alert_number(text: &str) -> Option<u8> {
    let (_, after) = text.split_once("SSL alert number ")?;
    let digits = after.split(|letter: char| !letter.is_ascii_digit()).next()?;
    digits.parse().ok()
}
