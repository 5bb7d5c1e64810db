//! The side that answers: a listener whose handler sends what the program returns.

use std::{
    error, fmt,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::ERROR_HEADER;
use crate::{
    BasicProperties, Channel, Connection, Delivery, Error, Failed, FailurePolicy, Handler, HandlerError,
    Listen, Listener, Message, Publish, Result,
};

/// What addresses of RabbitMQ's direct reply-to begin with.
const DIRECT: &str = "amq.rabbitmq.reply-to.";

/// How much of the reason stands in an answer: it has to fit a frame.
const MAX_REASON: usize = 1024;

/// How a [`Server`] serves. The name of a queue converts into it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Serve<'a> {
    /// The queue that requests come from. It must exist.
    pub queue: &'a str,
    /// How many requests are handled at a time, each on a thread of its own. Default: 1.
    pub workers: usize,
    /// How many requests the broker may send ahead. Default: as many as there are workers, so that no request waits for
    /// a busy server while another one is idle. Zero means no limit.
    pub prefetch: Option<u16>,
    /// What becomes of a request whose handler fails. Default: `None`; the requester is told, and the request acked.
    pub on_failure: Option<FailurePolicy>,
}

impl<'a> Serve<'a> {
    /// From this queue, one request at a time.
    pub fn new(queue: &'a str) -> Serve<'a> {
        Serve { queue, workers: 1, prefetch: None, on_failure: None }
    }

    /// Sets [`workers`](Serve#structfield.workers).
    pub fn workers(mut self, count: usize) -> Serve<'a> {
        self.workers = count;
        self
    }

    /// Sets [`prefetch`](Serve#structfield.prefetch).
    pub fn prefetch(mut self, requests: u16) -> Serve<'a> {
        self.prefetch = Some(requests);
        self
    }

    /// Applies this policy to requests that fail, *instead of* telling the requester: he gets no answer, unless the
    /// request succeeds when it is tried again.
    pub fn on_failure(mut self, policy: FailurePolicy) -> Serve<'a> {
        self.on_failure = Some(policy);
        self
    }
}

impl<'a> From<&'a str> for Serve<'a> {
    fn from(queue: &'a str) -> Serve<'a> {
        Serve::new(queue)
    }
}

impl<'a> From<&'a String> for Serve<'a> {
    fn from(queue: &'a String) -> Serve<'a> {
        Serve::new(queue)
    }
}

/// Answers the requests of a queue, until it is stopped or dropped, or its channel is lost.
///
/// Several servers, in this or other programs, may serve the same queue: the broker spreads the requests.
///
/// Each request is acked after its answer was handed over to the connection, so a request is not lost with its server:
/// another one gets it, and its handler may run twice.
///
/// - A requester that has vanished does no harm: his answer is dropped, and
///   [counted](Server::vanished_requesters) if the broker says so.
/// - A request without `reply_to` is handled, and not answered.
/// - A handler that fails or panics: the requester is told ([`ERROR_HEADER`](super::ERROR_HEADER), up to 1 KiB of what
///   the error says; of a panic only that there was one), and the request is acked, unless
///   [`Serve::on_failure`] says otherwise. The failure is reported like that of every handler: in the log, and as
///   [`Event::HandlerFailed`](crate::Event::HandlerFailed).
/// - A request whose properties cannot be decoded is rejected: dropped, or a dead letter.
/// - When an answer cannot be handed over: if the broker only takes nothing at the moment, the request goes back to its
///   queue; else the server ends, and [`wait`](Server::wait) says why.
///
/// Dropping it stops it, and waits for the handlers that run, at most [`drop_timeout`](crate::Config::drop_timeout).
#[must_use = "dropping it stops it"]
pub struct Server {
    // First: it is stopped before its channels are closed.
    listener: Listener,
    answers: Arc<Answers>,
    _requests: Channel,
}

impl Server {
    /// Starts to serve. Waits for the broker.
    ///
    /// `handler` returns the answer: a text, bytes, or a [`Message`] with properties of its own (the correlation id is
    /// set for it). It runs on threads of the server's (`leveret-handler`), where every call of this crate is allowed.
    ///
    /// # Errors
    /// - [`Error::Refused`] with 404: the queue does not exist.
    /// - [`Error::Invalid`]: zero workers.
    /// - Those of [`Connection::channel`] and of [`Consumer::listen`](crate::Consumer::listen).
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # connection.with_channel(|channel| channel.queue_declare("add"))?;
    /// use leveret::{Delivery, rpc};
    ///
    /// let server = rpc::Server::serve(&connection, rpc::Serve::new("add").workers(4), |request: &Delivery| {
    ///     let numbers = request.text()?.split('+').map(|number| number.trim().parse::<i64>());
    ///     Ok(numbers.sum::<Result<i64, _>>()?.to_string())
    /// })?;
    /// # if false {
    /// server.wait()?;
    /// # }
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn serve<'a, F, R>(connection: &Connection, serve: impl Into<Serve<'a>>, handler: F) -> Result<Server>
    where
        F: Fn(&Delivery) -> Result<R, HandlerError> + Send + Sync + 'static,
        R: Into<Message>,
    {
        let handler = move |request: &Delivery| handler(request).map(Into::into);
        Server::start(connection, serve.into(), Arc::new(handler))
    }

    fn start(connection: &Connection, serve: Serve<'_>, handler: Arc<Answer>) -> Result<Server> {
        let Serve { queue, workers, prefetch, on_failure } = serve;
        let requests = connection.channel()?;
        requests.basic_qos(prefetch.unwrap_or(u16::try_from(workers).unwrap_or(u16::MAX)))?;
        let answers = Arc::new(Answers { channel: connection.channel()?, vanished: AtomicU64::new(0) });
        let tells = on_failure.is_none();
        let worker = Worker { handler, answers: answers.clone(), tells };
        let listen = Listen::new(worker)
            .workers(workers)
            .on_failure_with(move |failed| what_becomes_of(failed, on_failure.as_ref()));
        let listener = requests.basic_consume(queue)?.listen(listen)?;
        Ok(Server { listener, answers, _requests: requests })
    }

    /// Takes no further request; those that are being handled are answered. Those that were only sent ahead go back to
    /// the queue. **Asynchronous: does not wait**; see [`wait`](Server::wait).
    pub fn stop(&self) {
        self.listener.stop();
    }

    /// Waits until the server has ended and all its handlers are done. **Waits without a limit**; see
    /// [`wait_timeout`](Server::wait_timeout).
    ///
    /// # Errors
    /// Those of [`Listener::wait`]. `Ok` means that it was stopped.
    pub fn wait(&self) -> Result<()> {
        self.listener.wait()
    }

    /// Like [`wait`](Server::wait), for at most `timeout`; `None` when it still serves.
    #[must_use = "says whether and why the server ended"]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<()>> {
        self.listener.wait_timeout(timeout)
    }

    /// How many answers the broker has sent back so far because the queue of their requester was gone. With direct
    /// reply-to the broker does not say.
    pub fn vanished_requesters(&self) -> u64 {
        self.answers.count_vanished();
        self.answers.vanished.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

type Answer = dyn Fn(&Delivery) -> Result<Message, HandlerError> + Send + Sync;

/// Handles requests on one thread.
#[derive(Clone)]
struct Worker {
    handler: Arc<Answer>,
    answers: Arc<Answers>,
    /// The requester is told of failures.
    tells: bool,
}

impl Handler for Worker {
    fn handle(&mut self, request: &Delivery) -> Result<(), HandlerError> {
        let properties = request.properties()?;
        let handled = panic::catch_unwind(AssertUnwindSafe(|| (self.handler)(request)));
        let failure = match handled {
            Ok(Ok(answer)) => match self.answers.send(&properties, answer) {
                // The answer cannot be sent as it is: the handler's mistake.
                Err(error @ Error::Invalid(_)) => error.into(),
                sent => return sent.map_err(|error| NotSent(error).into()),
            },
            Ok(Err(failure)) => failure,
            Err(panicked) => {
                self.tell(&properties, "the server panicked")?;
                // Caught again, and reported, by the listener.
                panic::resume_unwind(panicked);
            }
        };
        self.tell(&properties, &failure.to_string())?;
        Err(failure)
    }
}

impl Worker {
    fn tell(&self, properties: &BasicProperties, reason: &str) -> Result<(), NotSent> {
        if !self.tells {
            return Ok(());
        }
        let end = (0..=MAX_REASON.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
        let reason = reason.get(..end.unwrap_or(0)).unwrap_or_default();
        let answer = Message::default().map_properties(|properties| properties.header(ERROR_HEADER, reason));
        self.answers.send(properties, answer).map_err(NotSent)
    }
}

fn what_becomes_of(failed: &Failed<'_>, policy: Option<&FailurePolicy>) -> FailurePolicy {
    let source = error::Error::source(failed.failure).and_then(|source| source.downcast_ref::<NotSent>());
    match (source, policy) {
        // No busy loop: it has waited for room before.
        (Some(NotSent(error)), _) if error.can_retry() => FailurePolicy::Requeue { max: u32::MAX },
        (Some(_), _) => FailurePolicy::Stop,
        (None, Some(policy)) => policy.clone(),
        (None, None) if failed.delivery.properties().is_err() => FailurePolicy::Reject,
        // The requester was told.
        (None, None) => FailurePolicy::AckAndDrop,
    }
}

/// An answer that was not handed over.
#[derive(Debug)]
struct NotSent(Error);

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the answer cannot be sent: {}", self.0)
    }
}

impl error::Error for NotSent {}

/// The channel that answers go out on: an error there, such as a missing permission, does not send requests back that
/// other workers are handling.
struct Answers {
    channel: Channel,
    vanished: AtomicU64,
}

impl Answers {
    /// Hands an answer over, if one is wanted.
    fn send(&self, request: &BasicProperties, answer: Message) -> Result<()> {
        let Some(reply_to) = &request.reply_to else { return Ok(()) };
        let Message { body, mut properties } = answer;
        properties.correlation_id.clone_from(&request.correlation_id);
        // What goes to a direct reply-to counts as matching no queue even if it arrives.
        let mandatory = !reply_to.starts_with(DIRECT);
        let publish = Publish::new(&body).properties(&properties).mandatory(mandatory);
        self.channel.basic_publish("", reply_to, publish)?;
        self.count_vanished();
        Ok(())
    }

    fn count_vanished(&self) {
        for returned in self.channel.returns() {
            log::debug!(target: "leveret::rpc", "a requester has vanished: {returned}");
            self.vanished.fetch_add(1, Ordering::Relaxed);
        }
    }
}
