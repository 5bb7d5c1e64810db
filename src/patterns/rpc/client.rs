//! The side that calls.
//!
//! A thread takes the answers from the consumer and gives each to its caller. A caller waits for two things at once,
//! its answer and what becomes of its request: a request that matches no queue fails at once.
//!
//! Locks: `Shared::state` is held for a moment and alone.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::ERROR_HEADER;
use crate::{
    BasicProperties, Channel, Connection, Consume, Consumer, Delivery, Error, Outcome, Publish, QueueDeclare,
    Result, Scope, Timeout,
    hooks::{OneShot, Waiter, lock, may_wait, spawn},
};

/// RabbitMQ's name for "the consumer on this channel".
const DIRECT: &str = "amq.rabbitmq.reply-to";

/// What a caller waits for, as an error calls it.
const ANSWER: &str = "the answer to a request";

/// Where a [`Client`]'s requests go and how answers come back. The name of a queue converts into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Service<'a> {
    /// The exchange that requests are published to; empty for the default exchange.
    pub exchange: &'a str,
    /// The routing key of the requests: with the default exchange, the name of the service's queue.
    pub routing_key: &'a str,
    /// How answers come back. Default: through a queue.
    pub replies: Replies,
}

/// How answers come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Replies {
    /// Through a queue of the client's own: the broker names it, and it goes with the client. Every broker can do it.
    #[default]
    Queue,
    /// By RabbitMQ's direct reply-to: without a queue, straight to the client's channel. Cheaper to open, where many
    /// clients come and go. An answer that comes when its client is gone is dropped, and its server cannot know.
    Direct,
}

impl<'a> Service<'a> {
    /// The service that consumes from this queue.
    pub fn new(queue: &'a str) -> Service<'a> {
        Service::at("", queue)
    }

    /// The service behind an exchange.
    pub fn at(exchange: &'a str, routing_key: &'a str) -> Service<'a> {
        Service { exchange, routing_key, replies: Replies::Queue }
    }

    /// Sets [`replies`](Service#structfield.replies).
    pub fn replies(mut self, replies: Replies) -> Service<'a> {
        self.replies = replies;
        self
    }
}

impl<'a> From<&'a str> for Service<'a> {
    fn from(queue: &'a str) -> Service<'a> {
        Service::new(queue)
    }
}

impl<'a> From<&'a String> for Service<'a> {
    fn from(queue: &'a String) -> Service<'a> {
        Service::new(queue)
    }
}

/// Calls a service: sends requests and waits for their answers.
///
/// Any number of threads and coroutines may call at the same time; each gets its own answer, in whatever order they
/// come. Clones are the same client. It has a channel and a thread (`leveret-rpc`) of its own, both of which go with the
/// last clone; it does not keep its connection open.
///
/// A [`shutdown`](Connection::shutdown) of the connection lets handlers that run finish their calls.
///
/// When the connection or the client's channel is lost, every caller learns the cause at once, and so does every later
/// call: open another client then.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    exchange: Arc<str>,
    routing_key: Arc<str>,
    reply_to: Arc<str>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    late: AtomicU64,
    unknown: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the last request; its text is the correlation id. Never used again, so an answer that is late can
    /// reach nobody else.
    last: u64,
    waiting: HashMap<u64, Arc<OneShot<Result<Delivery>>>>,
    /// Why no answers come any more.
    ended: Option<Error>,
}

impl Client {
    /// Opens a client. Waits for the broker.
    ///
    /// # Errors
    /// - Those of [`Connection::channel`] and of every call.
    /// - [`Error::Refused`] with 403: this user may not declare a queue.
    /// - [`Error::Io`] if a thread cannot be started.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # connection.channel()?.queue_declare("uppercase")?;
    /// use leveret::rpc;
    ///
    /// let client = rpc::Client::open(&connection, "uppercase")?;
    /// let direct = rpc::Service::at("services", "eu.uppercase").replies(rpc::Replies::Direct);
    /// let client = rpc::Client::open(&connection, direct)?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn open<'a>(connection: &Connection, service: impl Into<Service<'a>>) -> Result<Client> {
        let Service { exchange, routing_key, replies } = service.into();
        let channel = connection.channel()?;
        let reply_to = match replies {
            Replies::Queue => {
                channel.queue_declare(QueueDeclare::new("").exclusive(true).auto_delete(true))?.queue
            }
            Replies::Direct => DIRECT.to_owned(),
        };
        let consumer = channel.basic_consume(Consume::new(&reply_to).no_ack(true))?;
        consumer.control().serve_handlers();
        channel.confirm_select()?;
        let client = Client {
            channel,
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            reply_to: reply_to.into(),
            shared: Arc::default(),
        };
        let shared = client.shared.clone();
        spawn("leveret-rpc", move || shared.take_answers(consumer))?;
        Ok(client)
    }

    /// Sends a request and waits for its answer, at most `timeout`.
    ///
    /// The request is published as mandatory, with `reply_to` and `correlation_id`. Under back-pressure, publishing may
    /// take up to [`publish_timeout`](crate::Config::publish_timeout), which counts as well.
    ///
    /// # Errors
    /// - [`Error::Returned`]: the service's queue does not exist. At once, not after the timeout.
    /// - [`Error::Nacked`]: the broker did not take the request.
    /// - [`Error::Remote`]: the server could not handle it, and says why.
    /// - [`Error::Timeout`]: no answer came in time. One that comes later is dropped, and
    ///   [counted](Client::late_replies). Nobody takes the request back: set its `expiration` property if it is of no
    ///   use after that time.
    /// - [`Error::Invalid`]: the request has a `reply_to` or a `correlation_id` already. Nothing was sent.
    /// - [`Error::WouldDeadlock`]: in an inline handler or a tap. Nothing was sent.
    /// - Those of [`basic_publish`](Channel::basic_publish), and the reason why the channel or the connection was lost.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # connection.with_channel(|channel| channel.queue_declare("uppercase"))?;
    /// # let server = leveret::rpc::Server::serve(&connection, "uppercase", |request: &leveret::Delivery| {
    /// #     Ok(request.text()?.to_uppercase())
    /// # })?;
    /// # let client = leveret::rpc::Client::open(&connection, "uppercase")?;
    /// use std::time::Duration;
    /// use leveret::Message;
    ///
    /// let answer = client.call("hello", Duration::from_secs(5))?;
    /// println!("{}", answer.text()?);
    ///
    /// let request = Message::text("hello").map_properties(|properties| properties.expiration("5000"));
    /// let answer = client.call(&request, Duration::from_secs(5))?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn call<'a>(&self, request: impl Into<Publish<'a>>, timeout: Duration) -> Result<Delivery> {
        self.send(request.into(), timeout)
    }

    fn send(&self, request: Publish<'_>, timeout: Duration) -> Result<Delivery> {
        may_wait()?;
        let deadline = Instant::now().checked_add(timeout);
        let properties = request.properties.cloned().unwrap_or_default();
        if properties.reply_to.is_some() || properties.correlation_id.is_some() {
            return Err(Error::Invalid(
                "reply_to and correlation_id of a request are the client's to set".into(),
            ));
        }
        let call = Call::begin(&self.shared)?;
        let properties = properties.reply_to(&*self.reply_to).correlation_id(call.number.to_string());
        let request = request.properties(&properties).mandatory(true);
        let mut confirm =
            self.channel.deferred().basic_publish(&self.exchange, &self.routing_key, request)?;

        let waiter = Waiter::new();
        let mut confirmed = false;
        loop {
            if let Some(answer) = call.coming.poll(&waiter) {
                return answer.and_then(|answer| remote_error(&answer).map_or(Ok(answer), Err));
            }
            if !confirmed {
                match confirm.poll(&waiter) {
                    Some(Outcome::Acked) => confirmed = true,
                    Some(failed) => failed.into_result()?,
                    None => {}
                }
            }
            let expecting = confirm.expecting()?;
            let parked = waiter.park(deadline);
            drop(expecting);
            if let Err(why) = parked {
                let error = why.forbidden();
                let error = error.unwrap_or(Error::Timeout(Timeout { waiting_for: ANSWER, limit: timeout }));
                return call.coming.take().unwrap_or(Err(error));
            }
        }
    }

    /// How many answers came after their callers had given up, or a second time.
    pub fn late_replies(&self) -> u64 {
        self.shared.late.load(Ordering::Relaxed)
    }

    /// How many messages came that answer no request of this client: their correlation id is missing, or was never
    /// given out.
    pub fn unknown_replies(&self) -> u64 {
        self.shared.unknown.load(Ordering::Relaxed)
    }

    /// Closes the client for all its clones, and waits for the broker, at most
    /// [`close_timeout`](crate::Config::close_timeout). Callers that wait get [`Error::Closed`].
    ///
    /// # Errors
    /// Those of [`Channel::close`].
    pub fn close(&self) -> Result<()> {
        self.channel.close()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("reply_to", &self.reply_to)
            .finish_non_exhaustive()
    }
}

/// One request and the place for its answer. Dropped, its number is forgotten.
struct Call<'a> {
    shared: &'a Shared,
    number: u64,
    coming: Arc<OneShot<Result<Delivery>>>,
}

impl<'a> Call<'a> {
    /// Before the request is sent: its answer may be fast.
    fn begin(shared: &'a Shared) -> Result<Call<'a>> {
        let coming = OneShot::new();
        let mut state = lock(&shared.state);
        if let Some(ended) = &state.ended {
            return Err(ended.clone());
        }
        state.last += 1;
        let number = state.last;
        state.waiting.insert(number, coming.clone());
        Ok(Call { shared, number, coming })
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let forgotten = lock(&self.shared.state).waiting.remove(&self.number);
        drop(forgotten);
    }
}

impl Shared {
    fn take_answers(&self, mut consumer: Consumer) {
        let ended = loop {
            match consumer.next() {
                Some(Ok(answer)) => self.give(answer),
                Some(Err(error)) => break error,
                None => break Error::Closed(Scope::Channel),
            }
        };
        let mut state = lock(&self.state);
        state.ended = Some(ended.clone());
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for coming in waiting.into_values() {
            coming.put(Err(ended.clone()));
        }
    }

    fn give(&self, answer: Delivery) {
        let number = answer.properties().ok().and_then(|properties| number_of(&properties));
        let mut state = lock(&self.state);
        let waiting = number.and_then(|number| state.waiting.remove(&number));
        let was_asked = number.is_some_and(|number| (1..=state.last).contains(&number));
        drop(state);
        match waiting {
            Some(coming) => coming.put(Ok(answer)),
            None if was_asked => _ = self.late.fetch_add(1, Ordering::Relaxed),
            None => {
                log::debug!(target: "leveret::rpc", "an answer that nobody asked for: {answer:?}");
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The number of the request, written as this client writes it.
fn number_of(properties: &BasicProperties) -> Option<u64> {
    let text = properties.correlation_id.as_deref()?;
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

fn remote_error(answer: &Delivery) -> Option<Error> {
    let headers = answer.headers().ok()?;
    let text = headers.get(ERROR_HEADER)?.as_str().unwrap_or("(not a text)");
    Some(Error::Remote(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_as_it_was_given_out_is_one() {
        let number = |text: &str| number_of(&BasicProperties::new().correlation_id(text));
        assert_eq!(number("17"), Some(17));
        for other in ["", "017", "+17", "17 ", "-1", "18446744073709551616", "x"] {
            assert_eq!(number(other), None, "{other:?}");
        }
        assert_eq!(number_of(&BasicProperties::new()), None);
    }
}
