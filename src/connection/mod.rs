//! One connection: the handshake, two threads, and the state that they share.
//!
//! Invariant: nothing here knows what a channel does. A channel is a number and an [`Inbox`](state::Inbox).

pub(crate) mod batch;
pub(crate) mod config;
mod connect;
pub(crate) mod events;
mod handshake;
mod heartbeat;
pub(crate) mod incoming;
pub(crate) mod outgoing;
pub(crate) mod reader;
mod secure;
pub(crate) mod shutdown;
pub(crate) mod slots;
pub(crate) mod state;
pub(crate) mod tap;
#[cfg(test)]
mod tests;
pub(crate) mod tls_options;
mod uri;
pub(crate) mod work;
pub(crate) mod writer;

use std::{
    fmt,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    protocol::{sasl::Secret, value::FieldTable},
    sync::{GivenUp, Latch, lock, may_wait, on_a_thread, spawn, waits_never},
    transport::stream::Stream,
};
use config::Config;
use connect::Connected;
#[cfg(any(test, fuzzing))]
pub(crate) use handshake::Negotiated;
use heartbeat::Heartbeat;
use state::{Limits, Shared};

/// A connection to a broker.
///
/// It is a handle: clones stand for the same connection, and dropping the last one closes it (waiting at most
/// [`drop_timeout`](Config::drop_timeout), and for its threads as [`close`](Connection::close) does). Channels do not keep
/// a connection open. All handles of this crate may be used from any thread.
///
/// Every connection has two threads of its own, `leveret-reader` and `leveret-writer`. Of your code only
/// [inline handlers](crate::Channel::basic_consume_inline), filters and taps run on them.
///
/// ```no_run
/// use leveret::Connection;
///
/// let connection = Connection::open("amqp://guest:guest@localhost")?;
/// let channel = connection.channel()?;
/// channel.basic_publish("", "hello", "Hello World!")?;
/// channel.close()?;
/// connection.close()?;
/// # Ok::<(), leveret::Error>(())
/// ```
#[derive(Clone)]
pub struct Connection {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<Worker>>,
    description: String,
}

/// How long the end of a connection waits for its threads. They end soon, since the transport was shut down or will be
/// once the last words are written; unless code of the program holds one up: an inline handler, or a tap.
const THREADS_END: Duration = Duration::from_secs(1);

/// One of the threads of a connection.
struct Worker {
    thread: JoinHandle<()>,
    ended: Arc<Latch<()>>,
}

impl Worker {
    /// Waits for its end until `deadline`, unless the caller runs on it.
    fn join(self, deadline: Instant) {
        let thread = self.thread.thread();
        if thread.id() == thread::current().id() {
            return;
        }
        if self.ended.wait(Some(deadline)).is_err() {
            let name = thread.name().unwrap_or_default();
            return log::warn!(target: "leveret::connection", "{name} is held up by code of the program, and ends after it");
        }
        let _ = self.thread.join();
    }
}

impl Connection {
    /// Connects and shakes hands. **Waits**: for each address at most
    /// [`connect_timeout`](Config::connect_timeout) plus [`handshake_timeout`](Config::handshake_timeout).
    ///
    /// Takes a URI or a [`Config`]; the addresses are tried in order.
    ///
    /// # Errors
    /// - [`Error::Invalid`]: the URI or the configuration is wrong, and nothing was sent; or the broker offers no
    ///   authentication mechanism that is allowed here.
    /// - [`Error::Connect`]: no address could be reached; lists each with its reason.
    /// - [`Error::Tls`]: the broker, or this client, did not accept the other's certificate.
    /// - [`Error::AuthenticationFailed`]: the broker does not know the credentials.
    /// - [`Error::Refused`]: the broker refused, for example 530 for a virtual host that does not exist.
    /// - [`Error::ProtocolVersion`], [`Error::Protocol`]: this is not an AMQP 0-9-1 broker.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use leveret::{Config, Connection};
    ///
    /// let config = Config::new()
    ///     .host("broker.example", 5672)
    ///     .credentials("user", "secret")
    ///     .heartbeat(Duration::from_secs(5));
    /// let connection = Connection::open(config)?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[doc(alias = "connect")]
    pub fn open<C>(config: C) -> Result<Connection>
    where
        C: TryInto<Config>,
        Error: From<C::Error>,
    {
        Connection::establish(config.try_into()?, connect::connect)
    }

    /// Like [`open`](Connection::open), over a [`Stream`] of your own instead of TCP. **Waits** at most
    /// [`handshake_timeout`](Config::handshake_timeout).
    ///
    /// Of the addresses only the first one's host is used: it names the broker if the configuration asks for TLS, which
    /// is then spoken over the stream. Options of the socket do nothing. The connection has two threads more than
    /// others, and at its end a third for a moment; see [`Stream`].
    ///
    /// # Errors
    /// Those of [`open`](Connection::open), and [`Error::Io`] with what the stream itself said.
    pub fn open_stream<C>(stream: Stream, config: C) -> Result<Connection>
    where
        C: TryInto<Config>,
        Error: From<C::Error>,
    {
        let config = config.try_into()?;
        Connection::establish(config, |config| connect::connect_stream(stream, config))
    }

    /// Like [`open`](Connection::open), over a transport that is connected already.
    #[cfg(feature = "broker")]
    pub(crate) fn open_transport(
        transport: impl crate::transport::Transport + 'static,
        config: Config,
    ) -> Result<Connection> {
        Connection::establish(config, move |config| connect::connect_transport(transport, config))
    }

    /// Name resolution and handshakes are deep, and block their thread.
    fn establish(
        config: Config,
        connect: impl FnOnce(&Config) -> Result<Connected> + Send + 'static,
    ) -> Result<Connection> {
        may_wait()?;
        let config = Box::new(config);
        let establish = move || {
            config.validate()?;
            let connected = connect(&config)?;
            Connection::start(&config, connected)
        };
        match on_a_thread("leveret-connect", establish) {
            Ok(Ok(connection)) => connection,
            // It has no deadline of its own: each of its steps has one.
            Ok(Err(why)) => Err(why.forbidden().unwrap_or(Error::Cancelled)),
            Err(error) => Err(error),
        }
    }

    fn start(config: &Config, connected: Connected) -> Result<Connection> {
        let heartbeat = Heartbeat::new(
            connected.negotiated.heartbeat,
            config.heartbeat_send_percent,
            config.heartbeat_dead_percent,
        );
        let limits = Limits::from(config);
        let Connected { transport, negotiated, received, taps } = connected;
        let shared = Arc::new(Shared::new(transport, negotiated, limits, taps));
        shared.taps.report_to(&shared);
        let connection = Connection {
            handle: Arc::new(Handle {
                shared: shared.clone(),
                threads: Mutex::default(),
                description: config.to_string(),
            }),
        };
        let for_reader = shared.clone();
        connection.spawn("leveret-reader", move || reader::run(&for_reader, received))?;
        connection.spawn("leveret-writer", move || writer::run(&shared, heartbeat))?;
        Ok(connection)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        struct Ending(Arc<Latch<()>>);
        impl Drop for Ending {
            fn drop(&mut self) {
                self.0.put(());
            }
        }
        let ended = Arc::new(Latch::default());
        let ending = Ending(ended.clone());
        let run = move || {
            let _ending = ending;
            run();
        };
        let thread = spawn(name, run).inspect_err(|error| self.handle.shared.fail(error.clone()))?;
        lock(&self.handle.threads).push(Worker { thread, ended });
        Ok(())
    }

    /// Closes the connection and everything on it. **Waits** at most [`close_timeout`](Config::close_timeout) for the
    /// broker, and then for the connection's threads to end: for a moment, unless an inline handler or a tap of yours holds
    /// one of them up, and even then for a second and a half at most.
    ///
    /// What was accepted before is still sent. Calls that wait on other threads end with
    /// [`Error::Closed`], as do all later ones. May be called by any number of threads, any number of times.
    ///
    /// # Errors
    /// - The reason why the connection was lost, if it was lost before, or if it is lost now and takes something with
    ///   it that was accepted and not written yet.
    /// - [`Error::Timeout`]: the broker did not answer; the socket is closed all the same.
    pub fn close(&self) -> Result<()> {
        self.handle.close(self.handle.shared.limits.close_timeout)
    }

    /// Waits until the connection ends, and says why: [`Error::Closed`] if the program closed it.
    /// **Waits without a limit**; see [`wait_closed_timeout`](Connection::wait_closed_timeout).
    ///
    /// [`Error::Cancelled`] means that it may still be open, but the coroutine that waits was cancelled.
    #[must_use = "says why the connection ended"]
    pub fn wait_closed(&self) -> Error {
        match self.handle.shared.wait_closed(None) {
            Ok(()) => self.cause(),
            Err(why) => why.forbidden().unwrap_or(Error::Cancelled),
        }
    }

    /// Like [`wait_closed`](Connection::wait_closed), for at most `timeout`; `None` when it is still open.
    #[must_use = "says whether and why the connection ended"]
    pub fn wait_closed_timeout(&self, timeout: Duration) -> Option<Error> {
        let deadline = Instant::now().checked_add(timeout);
        match self.handle.shared.wait_closed(deadline) {
            Ok(()) => Some(self.cause()),
            Err(GivenUp::WouldDeadlock) => Some(Error::WouldDeadlock),
            Err(GivenUp::Cancelled | GivenUp::TooLate) => None,
        }
    }

    fn cause(&self) -> Error {
        self.handle.shared.cause().unwrap_or(Error::Closed(crate::error::Scope::Connection))
    }

    /// The connection can be used. It may be lost the moment after.
    pub fn is_open(&self) -> bool {
        self.handle.shared.cause().is_none()
    }

    /// Why the broker accepts nothing from publishers at the moment; `None` when it does.
    ///
    /// While it is blocked, publishing waits as long as for room in a full buffer, and a call that gets no answer
    /// in time fails with [`Error::Blocked`].
    pub fn blocked(&self) -> Option<Arc<str>> {
        self.handle.shared.blocked()
    }

    /// Gives the broker a new secret, such as an OAuth 2 token, before the old one expires. Waits for the answer,
    /// at most [`call_timeout`](Config::call_timeout).
    ///
    /// # Errors
    /// - [`Error::Refused`]: the broker does not accept it, and closed the connection.
    /// - [`Error::Timeout`], or the reason why the connection was lost or closed.
    pub fn update_secret(&self, new_secret: impl Into<Secret>, reason: &str) -> Result<()> {
        self.handle.shared.update_secret(new_secret.into().expose(), reason)
    }

    /// What the broker says of itself: product, version, capabilities.
    pub fn server_properties(&self) -> &FieldTable {
        &self.handle.shared.negotiated.server_properties
    }

    /// The highest number of channels that can be open at once, as negotiated.
    pub fn channel_max(&self) -> u16 {
        self.handle.shared.negotiated.channel_max
    }

    /// The largest frame in bytes, as negotiated; 0 is no limit.
    pub fn frame_max(&self) -> u32 {
        self.handle.shared.negotiated.frame_max
    }

    /// The interval of heartbeats, as negotiated; zero is off.
    pub fn heartbeat(&self) -> Duration {
        self.handle.shared.negotiated.heartbeat
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl Handle {
    fn close(&self, timeout: Duration) -> Result<()> {
        may_wait()?;
        let shared = self.shared.clone();
        let threads = self.take_threads();
        let close = move || {
            let result = shared.close(timeout);
            let deadline = Instant::now() + THREADS_END;
            threads.into_iter().for_each(|thread| thread.join(deadline));
            // They may own what keeps the connection alive.
            shared.taps.clear();
            result
        };
        match on_a_thread("leveret-close", close) {
            Ok(Ok(result)) => result,
            // It is closed all the same.
            Ok(Err(why)) => Err(why.forbidden().unwrap_or(Error::Cancelled)),
            Err(error) => {
                self.shared.fail(error.clone());
                Err(error)
            }
        }
    }
}

impl Handle {
    fn take_threads(&self) -> Vec<Worker> {
        std::mem::take(&mut *lock(&self.threads))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if waits_never() {
            // By an inline handler, perhaps on the very thread that would be waited for.
            let (shared, description) = (self.shared.clone(), std::mem::take(&mut self.description));
            let rest = Handle { shared, threads: Mutex::new(self.take_threads()), description };
            return self.shared.errands.leave(move || drop(rest));
        }
        if let Err(error) = self.close(self.shared.limits.drop_timeout)
            && !matches!(error, Error::Closed(_) | Error::Cancelled)
        {
            log::warn!(target: "leveret::connection", "closing on drop: {error}");
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("uri", &self.handle.description)
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

impl From<&Config> for Limits {
    fn from(config: &Config) -> Limits {
        Limits {
            call_timeout: config.call_timeout,
            close_timeout: config.close_timeout,
            drop_timeout: config.drop_timeout,
            publish_timeout: config.publish_timeout,
            confirm_timeout: config.confirm_timeout,
            max_outstanding_confirms: config.max_outstanding_confirms,
            allow_immediate: config.allow_immediate,
            outgoing_buffer: config.outgoing_buffer,
            incoming_buffer: config.incoming_buffer,
            // Positions within a message are 32 bits wide.
            max_message_size: config.max_message_size.min(u64::from(u32::MAX / 2)),
            prefetch: config.prefetch,
        }
    }
}
