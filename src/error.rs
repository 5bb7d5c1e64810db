//! What can go wrong, sorted by what the caller can do about it.
//!
//! There is one [`Error`] for the whole crate. It is cheap to clone because the first cause of a failure is
//! stored once and handed to every waiter and to every later call. No variant ever holds a password.

mod departure;
mod handler;
mod unfinished;

pub use departure::Departure;
pub(crate) use handler::panic_message;
pub use handler::{HandlerError, HandlerFailure};
pub use unfinished::Unfinished;

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

/// The result of nearly every call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
///
/// `Debug` prints the same text as `Display`, because `fn main() -> Result<(), Error>` and `unwrap` show that to
/// people.
///
/// The variants answer "whose mistake was it, and what now?":
///
/// | variant | who | what now |
/// |---|---|---|
/// | [`Invalid`](Error::Invalid) | you | nothing was sent; correct the argument |
/// | [`Refused`](Error::Refused), [`AuthenticationFailed`](Error::AuthenticationFailed) | the broker said no | read its text |
/// | [`Protocol`](Error::Protocol), [`ProtocolVersion`](Error::ProtocolVersion) | the peer broke the rules | is it an AMQP 0-9-1 broker? |
/// | [`Tls`](Error::Tls) | a certificate or a TLS setting, on one side | correct it; no credentials were sent |
/// | [`Connect`](Error::Connect), [`Io`](Error::Io), [`Timeout`](Error::Timeout) | the network, or a broker that stopped | open a new connection |
/// | [`Closed`](Error::Closed) | your own program closed it | stop using the handle |
/// | [`Cancelled`](Error::Cancelled) | your own program cancelled the coroutine | return |
/// | [`CancelledByServer`](Error::CancelledByServer) | the queue went away | consume again, if it comes back |
/// | [`Nacked`](Error::Nacked), [`Returned`](Error::Returned), [`Unconfirmed`](Error::Unconfirmed) | the broker did not take a message | publish it again, or elsewhere |
/// | [`Unfinished`](Error::Unfinished) | what was still at work at a shutdown | read what it was; give it more time |
/// | [`Blocked`](Error::Blocked) | the broker is short of memory or disk | wait |
/// | [`WouldBlock`](Error::WouldBlock), [`ChannelsExhausted`](Error::ChannelsExhausted) | a limit was reached | wait, or raise it |
/// | [`Settled`](Error::Settled) | you, or a channel error in between | drop the delivery |
/// | [`Malformed`](Error::Malformed) | the sender of one message | reject that message |
/// | [`Departed`](Error::Departed) | a peer that talked to you [directly](crate::direct) is gone | give up what was for it |
/// | [`Handler`](Error::Handler) | your message handler | read what it said |
/// | [`Remote`](Error::Remote) | the server of a [request](crate::rpc) | read what it said |
/// | [`WouldDeadlock`](Error::WouldDeadlock) | you | make the call on another thread |
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument, a URI or a setting is wrong. Nothing was sent and the handle stays usable.
    #[error("{0}")]
    Invalid(Arc<str>),

    /// The broker refused: it closed the channel or the connection with a reply code and a text.
    #[error("{0}")]
    Refused(Arc<Refusal>),

    /// The broker did not accept the credentials. The text is the broker's own.
    #[error("authentication failed: {0}")]
    AuthenticationFailed(Arc<str>),

    /// The peer does something that the protocol does not allow; the connection was given up.
    #[error("{0}")]
    Protocol(Arc<Violation>),

    /// The peer answered the handshake with a protocol header: it speaks another version of AMQP.
    #[error(
        "the broker does not speak AMQP 0-9-1; it offers {}",
        .offered.iter().map(u8::to_string).collect::<Vec<_>>().join("-")
    )]
    ProtocolVersion {
        /// The last four bytes of the header: protocol id, major, minor and revision.
        offered: [u8; 4],
    },

    /// The TLS handshake failed: the other side is not who it should be, or does not accept us.
    #[error("{0}")]
    Tls(Arc<TlsFailure>),

    /// No address could be connected to. Lists every address that was tried and why it failed.
    #[error("{0}")]
    Connect(Arc<ConnectFailure>),

    /// The socket failed, or the peer closed it without the closing handshake.
    #[error("{during} failed: {source}")]
    Io {
        /// What the connection was doing.
        during: &'static str,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },

    /// Something did not happen in time; says what was waited for, and how long.
    #[error("{0}")]
    Timeout(Timeout),

    /// The program itself closed the connection or the channel before this call.
    #[error("the {0} was closed by the application")]
    Closed(Scope),

    /// The coroutine that made this call was cancelled while it waited, or before, or it is unwinding: it cannot wait
    /// any more. As after a timeout, what was sent was sent, its answer is thrown away, and the handle stays usable
    /// for others. (Feature `coroutines`.)
    #[error("the coroutine was cancelled, or is unwinding, and cannot wait any more")]
    Cancelled,

    /// The broker cancelled this consumer, usually because its queue was deleted.
    #[error("the broker cancelled consumer {consumer_tag:?} (was its queue deleted?)")]
    CancelledByServer {
        /// The tag of the consumer that ended.
        consumer_tag: Arc<str>,
    },

    /// The broker could not take responsibility for a message (`basic.nack`).
    #[error("the broker refused to take the message (basic.nack)")]
    Nacked,

    /// A mandatory message matched no queue, and came back.
    #[error("{0}")]
    Returned(Arc<Returned>),

    /// Not everything that was published has been confirmed. Lists what was not, and why.
    #[error("{0}")]
    Unconfirmed(Arc<Unconfirmed>),

    /// A [`shutdown`](crate::Connection::shutdown) could not finish everything, or found that something had failed.
    #[error("{0}")]
    Unfinished(Arc<Unfinished>),

    /// The broker accepts nothing more from publishers for the time being, usually because it is short of memory
    /// or disk space.
    #[error("the broker has blocked the connection: {reason}")]
    Blocked {
        /// The broker's own words, for example `low on memory`.
        reason: Arc<str>,
    },

    /// The call would have had to wait for room in the outgoing buffer; nothing was sent.
    #[error("the outgoing buffer is full, or the channel's flow is stopped; nothing was sent")]
    WouldBlock,

    /// Every channel id that was negotiated with the broker is in use.
    #[error("all {max} channels of this connection are in use")]
    ChannelsExhausted {
        /// The negotiated `channel_max`.
        max: u16,
    },

    /// This delivery was acked, nacked or rejected before, or its channel has been closed since; nothing was
    /// sent. A delivery that was not settled when its channel closed is delivered again by the broker.
    #[error("delivery {delivery_tag} cannot be settled: {reason}")]
    Settled {
        /// The delivery tag.
        delivery_tag: u64,
        /// Why nothing was sent.
        reason: &'static str,
    },

    /// A part of one message cannot be decoded. The connection and the message's tag stay usable.
    #[error("malformed message: {0}")]
    Malformed(Arc<str>),

    /// A peer of a [direct listener](crate::direct), or its consumer, is gone: nothing more reaches it, and it is not
    /// known whether it has dealt with what it did not acknowledge.
    #[error("{0}")]
    Departed(Departure),

    /// A message handler returned an error or panicked, and the listener ended for it. The message was not acked.
    #[error("{0}")]
    Handler(Arc<HandlerFailure>),

    /// The server of a request could not handle it, and this is what it says about it; see
    /// [`rpc`](crate::rpc::ERROR_HEADER).
    #[error("the server could not handle the request: {0}")]
    Remote(Arc<str>),

    /// The call waits, and was made where waiting would never end: by an inline handler on the connection's reader
    /// thread, or by a handler for the end of its own listener. Nothing was sent.
    #[error("the call would wait for something that this very thread has to do; nothing was sent")]
    WouldDeadlock,
}

impl Error {
    pub(crate) fn invalid(what: impl Into<String>) -> Error {
        Error::Invalid(what.into().into())
    }

    pub(crate) fn malformed(what: impl Into<String>) -> Error {
        Error::Malformed(what.into().into())
    }

    pub(crate) fn io(during: &'static str, source: io::Error) -> Error {
        Error::Io { during, source: Arc::new(source) }
    }

    pub(crate) fn protocol(code: ReplyCode, text: impl Into<String>) -> Error {
        Error::Protocol(Arc::new(Violation { code, text: text.into() }))
    }

    pub(crate) fn timeout(waiting_for: &'static str, limit: Duration) -> Error {
        Error::Timeout(Timeout { waiting_for, limit })
    }

    /// The AMQP reply code, if the broker sent one or if this crate would send one to the peer.
    pub fn reply_code(&self) -> Option<ReplyCode> {
        match self {
            Error::Refused(refusal) => Some(refusal.code),
            Error::AuthenticationFailed(_) => Some(ReplyCode::AccessRefused),
            Error::Protocol(violation) => Some(violation.code),
            Error::Returned(returned) => Some(returned.code),
            _ => None,
        }
    }

    /// The broker refused an operation and closed only the channel it came from.
    pub fn is_soft(&self) -> bool {
        matches!(self, Error::Refused(refusal) if refusal.scope == Scope::Channel)
    }

    /// The whole connection is gone.
    pub fn is_hard(&self) -> bool {
        match self {
            Error::Refused(refusal) => refusal.scope == Scope::Connection,
            Error::Closed(scope) => *scope == Scope::Connection,
            Error::Timeout(timeout) => timeout.is_connection_loss(),
            Error::AuthenticationFailed(_)
            | Error::Protocol(_)
            | Error::ProtocolVersion { .. }
            | Error::Tls(_)
            | Error::Connect(_)
            | Error::Io { .. } => true,
            _ => false,
        }
    }

    /// The program itself closed the connection or the channel.
    pub fn is_closed(&self) -> bool {
        matches!(self, Error::Closed(_))
    }

    /// The same operation may succeed later, on this channel or on a new connection: nothing says that the
    /// request itself was wrong.
    pub fn can_retry(&self) -> bool {
        match self {
            Error::Refused(refusal) => matches!(
                refusal.code,
                ReplyCode::NoConsumers
                    | ReplyCode::ConnectionForced
                    | ReplyCode::ResourceLocked
                    | ReplyCode::ResourceError
                    | ReplyCode::InternalError
            ),
            Error::Connect(failure) => failure.attempts.iter().any(|attempt| attempt.error.can_retry()),
            Error::Io { .. }
            | Error::Timeout(_)
            | Error::CancelledByServer { .. }
            | Error::Nacked
            | Error::Blocked { .. }
            | Error::WouldBlock
            | Error::ChannelsExhausted { .. } => true,
            _ => false,
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Error {
        match never {}
    }
}

/// What a broker's refusal or a close concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One channel; the connection and its other channels live on.
    Channel,
    /// The whole connection.
    Connection,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scope::Channel => "channel",
            Scope::Connection => "connection",
        })
    }
}

/// A `channel.close` or `connection.close` of the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the broker closed the {scope}: {} {text}{}", u16::from(*.code), during(.method))]
#[non_exhaustive]
pub struct Refusal {
    /// What was closed.
    pub scope: Scope,
    /// The reply code.
    pub code: ReplyCode,
    /// The broker's text, for example `NOT_FOUND - no queue 'orders' in vhost '/'`.
    pub text: String,
    /// The method that the broker blames, for example `queue.bind`; empty when it names none.
    pub method: String,
}

fn during(method: &str) -> String {
    if method.is_empty() { String::new() } else { format!(" (caused by {method})") }
}

/// A rule of the protocol that the peer broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the peer broke the protocol: {text} ({code})")]
#[non_exhaustive]
pub struct Violation {
    /// The code that was sent to the peer with `connection.close`.
    pub code: ReplyCode,
    /// What was wrong.
    pub text: String,
}

/// A message that came back because it matched no queue.
///
/// Its properties are decoded by [`properties`](Returned::properties).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the broker returned a message to exchange {exchange:?} with key {routing_key:?}: {} {text}", u16::from(*.code))]
#[non_exhaustive]
pub struct Returned {
    /// Why, usually 312.
    pub code: ReplyCode,
    /// The broker's text, usually `NO_ROUTE`.
    pub text: String,
    /// The exchange that it was published to.
    pub exchange: String,
    /// The routing key that it was published with.
    pub routing_key: String,
    /// Its body.
    pub body: Vec<u8>,
    /// Flags and fields, not decoded.
    pub(crate) raw_properties: Vec<u8>,
}

#[cfg(test)]
impl Default for Returned {
    fn default() -> Returned {
        Returned {
            code: ReplyCode::NoRoute,
            text: "NO_ROUTE".into(),
            exchange: String::new(),
            routing_key: String::new(),
            body: Vec::new(),
            raw_properties: vec![0, 0],
        }
    }
}

/// What [`Channel::wait_for_confirms`](crate::Channel::wait_for_confirms) found not to be confirmed.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "{} messages were not confirmed{}",
    .failures.len() as u64 + .more,
    .failures.first().map(|(number, error)| format!("; number {number}: {error}")).unwrap_or_default()
)]
#[non_exhaustive]
pub struct Unconfirmed {
    /// The number of the publish on its channel, and why it was not confirmed: [`Error::Nacked`],
    /// [`Error::Returned`], or the reason why the outcome is unknown.
    pub failures: Vec<(u64, Error)>,
    /// Further failures that were counted but not kept.
    pub more: u64,
}

/// Why the two sides of a TLS connection did not come together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("TLS: {problem} ({details})")]
#[non_exhaustive]
pub struct TlsFailure {
    /// What went wrong, as far as it can be told.
    pub problem: TlsProblem,
    /// The words of the TLS library, or the number and name of the peer's alert.
    pub details: String,
}

/// What can go wrong with TLS. Which of them is recognised depends on the TLS library of the system; what is not
/// becomes [`Other`](TlsProblem::Other).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsProblem {
    /// The broker's certificate was not issued by an authority that this client trusts. See
    /// [`ca_certificate_file`](crate::TlsOptions::ca_certificate_file).
    UnknownAuthority,
    /// The broker's certificate is not valid for the name or address that was connected to. See
    /// [`server_name`](crate::TlsOptions::server_name).
    WrongName,
    /// The broker's certificate is not valid any more, or not yet. Is the clock right?
    Expired,
    /// The broker's certificate cannot be accepted for another reason.
    BadCertificate,
    /// The broker wants a certificate from the client. See
    /// [`certificate_file`](crate::TlsOptions::certificate_file).
    ClientCertificateRequired,
    /// The broker does not accept the client's certificate.
    ClientCertificateRefused,
    /// The peer does not speak TLS: the port is not the one for `amqps`.
    NotTls,
    /// The two sides have no version of TLS, or no cipher, in common.
    Incompatible,
    /// Something else.
    Other,
}

impl fmt::Display for TlsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TlsProblem::UnknownAuthority => {
                "the broker's certificate is not from an authority that is trusted"
            }
            TlsProblem::WrongName => "the broker's certificate has another name",
            TlsProblem::Expired => "the broker's certificate has expired, or is not valid yet",
            TlsProblem::BadCertificate => "the broker's certificate cannot be accepted",
            TlsProblem::ClientCertificateRequired => "the broker requires a client certificate",
            TlsProblem::ClientCertificateRefused => "the broker does not accept the client's certificate",
            TlsProblem::NotTls => "the peer does not speak TLS",
            TlsProblem::Incompatible => "no TLS version or cipher in common",
            TlsProblem::Other => "failed",
        })
    }
}

/// Every address that was tried, and why each failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot connect: {}", .attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
#[non_exhaustive]
pub struct ConnectFailure {
    /// One entry per address, or per host whose name could not be resolved.
    pub attempts: Vec<Attempt>,
}

/// One failed attempt to reach a broker.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{host}{}: {error}", .address.map(|address| format!(" ({address})")).unwrap_or_default())]
#[non_exhaustive]
pub struct Attempt {
    /// Host and port as they were given.
    pub host: String,
    /// The address that the name resolved to; `None` when it did not resolve.
    pub address: Option<SocketAddr>,
    /// Why it failed.
    pub error: Error,
}

/// Which wait came to its end, and how long it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting_for} took longer than {limit:?}")]
#[non_exhaustive]
pub struct Timeout {
    /// What was waited for: a method's name such as `queue.declare` or `connection.start`, or words such as
    /// `resolving the host name`, `connecting`, `publishing`, `a sign of life from the peer`, `writing to the peer`.
    pub waiting_for: &'static str,
    /// The limit that was exceeded.
    pub limit: Duration,
}

impl Timeout {
    pub(crate) const SILENCE: &'static str = "a sign of life from the peer";
    pub(crate) const STALL: &'static str = "writing to the peer";
    pub(crate) const HALF_SENT: &'static str = "sending the rest of a message";

    fn is_connection_loss(self) -> bool {
        [Timeout::SILENCE, Timeout::STALL, Timeout::HALF_SENT].contains(&self.waiting_for)
    }
}

macro_rules! reply_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal $text:literal,)+) => {
        /// The reply codes of AMQP 0-9-1. Codes that the specification does not know are kept in
        /// [`Other`](ReplyCode::Other).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ReplyCode {
            $($(#[doc = $doc])+ $name,)+
            /// A code that the specification does not name.
            Other(u16),
        }

        impl ReplyCode {
            #[cfg(test)]
            pub(crate) const NAMED: &[ReplyCode] = &[$(ReplyCode::$name),+];

            /// The constant's name in the specification, such as `NOT_FOUND`; empty for [`Other`](ReplyCode::Other).
            pub fn name(self) -> &'static str {
                match self { $(ReplyCode::$name => $text,)+ ReplyCode::Other(_) => "" }
            }
        }

        impl From<u16> for ReplyCode {
            fn from(code: u16) -> ReplyCode {
                match code { $($code => ReplyCode::$name,)+ other => ReplyCode::Other(other) }
            }
        }

        impl From<ReplyCode> for u16 {
            fn from(code: ReplyCode) -> u16 {
                match code { $(ReplyCode::$name => $code,)+ ReplyCode::Other(other) => other }
            }
        }
    };
}

reply_codes! {
    /// 200: no error.
    Success = 200 "REPLY_SUCCESS",
    /// 311: the content is too large to be accepted now.
    ContentTooLarge = 311 "CONTENT_TOO_LARGE",
    /// 312: a mandatory message matched no queue.
    NoRoute = 312 "NO_ROUTE",
    /// 313: an immediate message found no consumer.
    NoConsumers = 313 "NO_CONSUMERS",
    /// 320: an operator closed the connection, or the broker shuts down.
    ConnectionForced = 320 "CONNECTION_FORCED",
    /// 402: the virtual host does not exist or its name is invalid.
    InvalidPath = 402 "INVALID_PATH",
    /// 403: the user may not do this.
    AccessRefused = 403 "ACCESS_REFUSED",
    /// 404: no such queue or exchange.
    NotFound = 404 "NOT_FOUND",
    /// 405: someone else holds the queue exclusively.
    ResourceLocked = 405 "RESOURCE_LOCKED",
    /// 406: a declaration differs from what exists, or an unknown delivery tag.
    PreconditionFailed = 406 "PRECONDITION_FAILED",
    /// 501: a frame that cannot be decoded.
    FrameError = 501 "FRAME_ERROR",
    /// 502: a frame with illegal values in its fields.
    SyntaxError = 502 "SYNTAX_ERROR",
    /// 503: a method that is not allowed now.
    CommandInvalid = 503 "COMMAND_INVALID",
    /// 504: a channel that is not open, or one that is open already.
    ChannelError = 504 "CHANNEL_ERROR",
    /// 505: a frame that was not expected now.
    UnexpectedFrame = 505 "UNEXPECTED_FRAME",
    /// 506: the broker lacks the resources.
    ResourceError = 506 "RESOURCE_ERROR",
    /// 530: the client is not allowed to work in this way.
    NotAllowed = 530 "NOT_ALLOWED",
    /// 540: the broker does not implement this.
    NotImplemented = 540 "NOT_IMPLEMENTED",
    /// 541: the broker failed.
    InternalError = 541 "INTERNAL_ERROR",
}

impl fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", u16::from(*self))?;
        if self.name().is_empty() { Ok(()) } else { write!(f, " {}", self.name()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row 101: all codes have names, and those that nobody knows are kept.
    #[test]
    fn reply_codes_round_trip_and_unknown_ones_are_kept() {
        for &code in ReplyCode::NAMED {
            assert_eq!(ReplyCode::from(u16::from(code)), code);
        }
        assert_eq!(ReplyCode::NAMED.len(), 18 + 1, "the 18 error codes and reply-success");
        assert_eq!(u16::from(ReplyCode::from(777)), 777);
        assert_eq!(ReplyCode::from(777).to_string(), "777");
        assert_eq!(ReplyCode::NotFound.to_string(), "404 NOT_FOUND");
    }

    #[test]
    fn errors_are_small_and_shareable() {
        fn shareable<T: Send + Sync + Clone + 'static>() {}
        shareable::<Error>();
        assert!(size_of::<Error>() <= 32, "{}", size_of::<Error>());
    }

    fn refused(scope: Scope, code: ReplyCode) -> Error {
        Error::Refused(Arc::new(Refusal { scope, code, text: String::new(), method: String::new() }))
    }

    /// Row 100: whether it may work later, by the broker's code.
    #[test]
    fn codes_say_whether_to_try_again() {
        for &code in ReplyCode::NAMED {
            let worth_it = [313, 320, 405, 506, 541].contains(&u16::from(code));
            for scope in [Scope::Channel, Scope::Connection] {
                let error = refused(scope, code);
                assert_eq!(error.can_retry(), worth_it, "{code}");
                assert_eq!(
                    (error.is_soft(), error.is_hard()),
                    (scope == Scope::Channel, scope == Scope::Connection)
                );
                assert_eq!((error.reply_code(), error.is_closed()), (Some(code), false));
            }
        }
    }

    /// Row 100: what each kind of error answers: whether the connection is gone, whether it may work later, and a code.
    #[test]
    fn errors_answer_by_their_kind() {
        let io = || Error::io("reading", io::Error::other("x"));
        let text = || Arc::<str>::from("x");
        let attempt = |error| Attempt { host: "h".into(), address: None, error };
        let connect = |attempts: Vec<Attempt>| Error::Connect(Arc::new(ConnectFailure { attempts }));
        let tls = TlsFailure { problem: TlsProblem::Expired, details: String::new() };
        let tls = Error::Tls(Arc::new(tls));
        let limit = Duration::from_secs(1);
        let unconfirmed = Unconfirmed { failures: Vec::new(), more: 1 };
        let (gone, stays, later, never) = (true, false, true, false);
        for (error, is_hard, can_retry, code) in [
            (Error::invalid("x"), stays, never, None),
            (Error::AuthenticationFailed(text()), gone, never, Some(403)),
            (Error::protocol(ReplyCode::FrameError, "x"), gone, never, Some(501)),
            (Error::ProtocolVersion { offered: [0; 4] }, gone, never, None),
            (tls.clone(), gone, never, None),
            (connect(vec![attempt(io()), attempt(tls.clone())]), gone, later, None),
            (connect(vec![attempt(tls)]), gone, never, None),
            (io(), gone, later, None),
            (Error::timeout("queue.declare", limit), stays, later, None),
            (Error::timeout(Timeout::SILENCE, limit), gone, later, None),
            (Error::timeout(Timeout::STALL, limit), gone, later, None),
            (Error::timeout(Timeout::HALF_SENT, limit), gone, later, None),
            (Error::Closed(Scope::Channel), stays, never, None),
            (Error::Closed(Scope::Connection), gone, never, None),
            (Error::Cancelled, stays, never, None),
            (Error::CancelledByServer { consumer_tag: text() }, stays, later, None),
            (Error::Nacked, stays, later, None),
            (Error::Returned(Arc::default()), stays, never, Some(312)),
            (Error::Unconfirmed(Arc::new(unconfirmed)), stays, never, None),
            (Error::Blocked { reason: text() }, stays, later, None),
            (Error::WouldBlock, stays, later, None),
            (Error::ChannelsExhausted { max: 1 }, stays, later, None),
            (Error::Settled { delivery_tag: 1, reason: "x" }, stays, never, None),
            (Error::malformed("x"), stays, never, None),
            (Error::Remote(text()), stays, never, None),
            (Error::WouldDeadlock, stays, never, None),
        ] {
            assert_eq!((error.is_hard(), error.can_retry()), (is_hard, can_retry), "{error}");
            assert_eq!(error.reply_code().map(u16::from), code, "{error}");
            assert_eq!(error.is_closed(), matches!(error, Error::Closed(_)), "{error}");
            assert!(!error.is_soft(), "{error}");
        }
    }

    #[test]
    fn a_refusal_reads_well() {
        let refusal = Refusal {
            scope: Scope::Channel,
            code: ReplyCode::NotFound,
            text: "NOT_FOUND - no queue 'q' in vhost '/'".into(),
            method: "queue.bind".into(),
        };
        assert_eq!(
            Error::Refused(refusal.into()).to_string(),
            "the broker closed the channel: 404 NOT_FOUND - no queue 'q' in vhost '/' (caused by queue.bind)"
        );
    }
}
