//! Deferred calls: send now, collect the answer later.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Channel, Confirm, Core, ExchangeBind, ExchangeDeclare, ExchangeDelete, ExchangeUnbind, Publish,
    QueueBind, QueueDeclare, QueueDeclareOk, QueueDelete, QueuePurge, QueueUnbind, call::Coming,
    publish::Checked,
};
use crate::{
    connection::outgoing::Urgency,
    error::Result,
    protocol::{
        frame::write_method,
        spec::{Encode, Method},
    },
};

/// The answer to a call that was sent already.
///
/// Dropping it does not undo the call; its answer is ignored. An error that closed the channel is returned by
/// every later call on it all the same.
#[must_use = "holds the answer, or the error"]
pub struct Pending<T> {
    core: Arc<Core>,
    coming: Coming,
    decode: fn(Method<'_>) -> Option<T>,
    name: &'static str,
    timeout: Duration,
}

impl<T> Pending<T> {
    /// Waits for the answer, at most [`call_timeout`](crate::Config::call_timeout) (see [`Channel::within`]).
    ///
    /// # Errors
    /// Those of the call itself.
    pub fn wait(mut self) -> Result<T> {
        let (name, timeout) = (self.name, self.timeout);
        self.wait_timeout(timeout).unwrap_or_else(|| Err(self.core.too_late(name, timeout)))
    }

    /// Waits at most `timeout`; `None` when the answer has not come yet. The answer is returned once.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<T>> {
        if let Some(answer) = self.try_wait() {
            return Some(answer);
        }
        let _awaiting = match self.core.connection.incoming.awaiting() {
            Ok(awaiting) => awaiting,
            Err(error) => return Some(Err(error)),
        };
        self.core.connection.outgoing.flush();
        match self.coming.wait(Instant::now().checked_add(timeout)) {
            Ok(answer) => Some(answer.and_then(|answer| answer.decode(self.decode))),
            Err(why) => why.forbidden().map(Err),
        }
    }

    /// The answer if it is here. **Does not wait.** It is returned once.
    pub fn try_wait(&mut self) -> Option<Result<T>> {
        let answer = self.coming.take()?;
        Some(answer.and_then(|answer| answer.decode(self.decode)))
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("call", &self.name).finish_non_exhaustive()
    }
}

/// A channel's calls in their deferred form: **asynchronous**, each returns a handle for its answer.
///
/// Each method takes what its counterpart on [`Channel`] takes, and fails as
/// [`basic_publish`](Channel::basic_publish) does; what the broker has to say comes from the handle.
#[derive(Debug, Clone, Copy)]
pub struct Deferred<'c>(&'c Channel);

impl Channel {
    /// The calls whose answers are collected later. A thousand of them cost hardly more than one round trip.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// let declares: Vec<_> = ["foo", "bar", "baz"]
    ///     .into_iter()
    ///     .map(|name| channel.deferred().queue_declare(name))
    ///     .collect::<Result<_, _>>()?;
    /// for declare in declares {
    ///     println!("{} messages", declare.wait()?.message_count);
    /// }
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// and, on a channel in [confirm mode](Channel::confirm_select), publishes whose outcomes are collected later:
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// channel.confirm_select()?;
    /// let first = channel.deferred().basic_publish("", "orders", "order 7")?;
    /// let second = channel.deferred().basic_publish("", "orders", "order 8")?;
    /// first.wait().into_result()?;
    /// second.wait().into_result()?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn deferred(&self) -> Deferred<'_> {
        Deferred(self)
    }

    fn defer<T>(&self, method: &dyn Encode, decode: fn(Method<'_>) -> Option<T>) -> Result<Pending<T>> {
        let core = self.core();
        let (name, expects) = (method.name(), method.replies().into());
        let coming = core.begin(self.timeout, name, expects, Urgency::Stream, &mut |out, channel| {
            write_method(out, channel, core.connection.outgoing.max_frame(), method)
        })?;
        Ok(Pending { core: core.clone(), coming, decode, name, timeout: self.timeout })
    }
}

/// `name(request type) -> answer type, the answer's decoder`
macro_rules! deferred {
    ($($name:ident($request:ident $(, $encoded:ident)?) -> $answer:ty, $decode:expr;)+) => {
        impl Deferred<'_> {
            $(
                #[doc = concat!("See [`Channel::", stringify!($name), "`].")]
                ///
                /// # Errors
                /// See [`Deferred`].
                pub fn $name<'a>(&self, request: impl Into<$request<'a>>) -> Result<Pending<$answer>> {
                    let request = request.into();
                    $(let $encoded = request.arguments.encode()?;)?
                    self.0.defer(&request.method($(&$encoded,)? false)?, $decode)
                }
            )+
        }
    };
}

deferred! {
    queue_declare(QueueDeclare, arguments) -> QueueDeclareOk, QueueDeclareOk::from_method;
    queue_bind(QueueBind, arguments) -> (), |method| matches!(method, Method::QueueBindOk(_)).then_some(());
    queue_purge(QueuePurge) -> u32, |method| match method { Method::QueuePurgeOk(ok) => Some(ok.message_count), _ => None };
    queue_delete(QueueDelete) -> u32, |method| match method { Method::QueueDeleteOk(ok) => Some(ok.message_count), _ => None };
    exchange_declare(ExchangeDeclare, arguments) -> (), |method| matches!(method, Method::ExchangeDeclareOk(_)).then_some(());
    exchange_delete(ExchangeDelete) -> (), |method| matches!(method, Method::ExchangeDeleteOk(_)).then_some(());
    exchange_bind(ExchangeBind, arguments) -> (), |method| matches!(method, Method::ExchangeBindOk(_)).then_some(());
    exchange_unbind(ExchangeUnbind, arguments) -> (), |method| matches!(method, Method::ExchangeUnbindOk(_)).then_some(());
}

impl Deferred<'_> {
    /// See [`Channel::queue_unbind`].
    ///
    /// # Errors
    /// See [`Deferred`].
    pub fn queue_unbind<'a>(&self, unbind: impl Into<QueueUnbind<'a>>) -> Result<Pending<()>> {
        let unbind = unbind.into();
        let arguments = unbind.arguments.encode()?;
        self.0.defer(&unbind.method(&arguments)?, |method| {
            matches!(method, Method::QueueUnbindOk(_)).then_some(())
        })
    }

    /// See [`Channel::publish_confirmed`]: the channel must be in confirm mode, and the handle has the outcome.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) when it is not, and those of
    /// [`basic_publish`](Channel::basic_publish).
    pub fn basic_publish<'a>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Publish<'a>>,
    ) -> Result<Confirm> {
        self.0.confirmable(&Checked::new(exchange, routing_key, message.into())?)
    }
}
