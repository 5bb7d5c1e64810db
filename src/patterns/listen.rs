//! Starting a listener.

use std::{fmt, sync::Arc};

use super::{
    listener::Listener,
    policy::{Failed, FailurePolicy, Policy},
    running::{OnException, Running, guarded},
};
use crate::{
    Consumer, Error, Handler, Result,
    hooks::{Job, spawn},
};

/// How messages are listened to. A bare handler converts into it.
///
/// ```
/// # #[cfg(feature = "broker")] {
/// # let broker = leveret::broker::Broker::start();
/// # let connection = broker.connect()?;
/// # let channel = connection.channel()?;
/// # channel.queue_declare("orders")?;
/// use leveret::{Delivery, Destination, FailurePolicy, Listen};
///
/// let handler = |delivery: &Delivery| {
///     println!("{}", delivery.text()?);
///     Ok(())
/// };
/// let listener = channel.basic_consume("orders")?.listen(
///     Listen::new(handler)
///         .workers(4)
///         .on_failure(FailurePolicy::DeadLetter(Destination::queue("orders.failed"))),
/// )?;
/// # }
/// # Ok::<(), leveret::Error>(())
/// ```
#[must_use = "does nothing until it is given to `Consumer::listen`"]
pub struct Listen<H> {
    handlers: Vec<H>,
    pub(super) dispatch: Dispatch,
    policy: Policy,
    on_exception: Option<OnException>,
}

/// Where handlers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dispatch {
    /// Each on a thread of its own; a single one on the thread that takes the deliveries.
    Threads,
    /// Each in a coroutine of its own.
    #[cfg(feature = "coroutines")]
    Coroutines,
}

impl<H: Handler> Listen<H> {
    /// With one handler, on a thread of its own: messages are handled one at a time, in their order.
    pub fn new(handler: H) -> Listen<H> {
        Listen::pool([handler])
    }

    /// With several handlers, each on a thread of its own: as many messages are handled at a time, in no certain order.
    ///
    /// For handlers that are [`Clone`], [`workers`](Listen::workers) is shorter.
    pub fn pool(handlers: impl IntoIterator<Item = H>) -> Listen<H> {
        Listen {
            handlers: handlers.into_iter().collect(),
            dispatch: Dispatch::Threads,
            policy: Policy::Always(FailurePolicy::Stop),
            on_exception: None,
        }
    }

    /// So many clones of the handler instead of one, each on a thread of its own.
    ///
    /// What a closure has captured is cloned with it: capture an `Arc` to share it. The channel's prefetch count
    /// ([`Channel::basic_qos`](crate::Channel::basic_qos)) should not be smaller.
    pub fn workers(mut self, count: usize) -> Listen<H>
    where
        H: Clone,
    {
        let handler = self.handlers.pop();
        self.handlers = handler.into_iter().flat_map(|handler| std::iter::repeat_n(handler, count)).collect();
        self
    }

    /// What becomes of a message whose handler fails. Default: [`FailurePolicy::Stop`].
    pub fn on_failure(mut self, policy: FailurePolicy) -> Listen<H> {
        self.policy = Policy::Always(policy);
        self
    }

    /// The same, decided for each message. It runs where the handler ran. If it panics, the listener stops.
    ///
    /// ```
    /// use leveret::{Delivery, Failed, FailurePolicy, HandlerError, Listen};
    ///
    /// fn handle(delivery: &Delivery) -> Result<(), HandlerError> {
    ///     delivery.text()?;
    ///     Ok(())
    /// }
    /// let listen = Listen::new(handle).on_failure_with(|failed: &Failed<'_>| match failed.failure.panicked {
    ///     true => FailurePolicy::Reject,
    ///     false => FailurePolicy::Requeue { max: 3 },
    /// });
    /// ```
    pub fn on_failure_with(
        mut self,
        decide: impl Fn(&Failed<'_>) -> FailurePolicy + Send + Sync + 'static,
    ) -> Listen<H> {
        self.policy = Policy::ByMessage(Box::new(decide));
        self
    }

    /// Has `listener` called for every error and panic of a handler, where the handler ran, before the failure policy is
    /// applied.
    pub fn on_exception(mut self, listener: impl Fn(&Failed<'_>) + Send + Sync + 'static) -> Listen<H> {
        self.on_exception = Some(Box::new(listener));
        self
    }

    fn start(self, consumer: Consumer) -> Result<Listener> {
        if self.handlers.is_empty() {
            return Err(Error::Invalid("a listener needs at least one handler".into()));
        }
        let running = Arc::new(Running::new(&consumer, self.handlers.len(), self.policy, self.on_exception));
        let job: Arc<dyn Job> = running.clone();
        running.control.register(Arc::downgrade(&job))?;
        match self.dispatch {
            Dispatch::Threads => start_threads(&running, self.handlers, consumer)?,
            #[cfg(feature = "coroutines")]
            Dispatch::Coroutines => super::coroutines::start(&running, self.handlers, consumer)?,
        }
        Ok(Listener { running })
    }
}

impl<H: Handler> From<H> for Listen<H> {
    fn from(handler: H) -> Listen<H> {
        Listen::new(handler)
    }
}

impl Consumer {
    /// Has a [`Handler`] called for every delivery, on a thread that is started for it. **Does not wait.**
    ///
    /// Takes a handler, or a [`Listen`] with more settings.
    ///
    /// # Errors
    /// - [`Error::Closed`]: the connection is being shut down.
    /// - [`Error::Io`] if a thread cannot be started.
    /// - [`Error::Invalid`]: there is no handler.
    ///
    /// The consumer is dropped then.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// use leveret::Delivery;
    ///
    /// let mut count = 0;
    /// let listener = channel.basic_consume("orders")?.listen(move |delivery: &Delivery| {
    ///     count += 1;
    ///     println!("{count}: {}", delivery.text()?);
    ///     Ok(()) // acks it
    /// })?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn listen<H: Handler>(self, listen: impl Into<Listen<H>>) -> Result<Listener> {
        listen.into().start(self)
    }
}

/// One handler runs on the thread that takes the deliveries, several on threads of their own.
fn start_threads<H: Handler>(running: &Arc<Running>, handlers: Vec<H>, consumer: Consumer) -> Result<()> {
    let shared = running.clone();
    if handlers.len() == 1 {
        return spawn("leveret-handler", move || {
            let mut handlers = handlers;
            shared.begin_work(0);
            let result = shared.dispatch(consumer, |delivery| {
                if let Some(handler) = handlers.first_mut() {
                    shared.handle(0, handler, delivery);
                }
            });
            guarded("dropping a handler", || drop(handlers));
            shared.finish(result);
        })
        .map(drop);
    }
    let mut threads = Vec::new();
    for (number, handler) in handlers.into_iter().enumerate() {
        let shared = running.clone();
        let worker = spawn("leveret-handler", move || shared.work(number, handler));
        match worker {
            Ok(worker) => threads.push(worker),
            Err(error) => {
                running.handoff.close();
                return Err(error);
            }
        }
    }
    start_dispatcher(running, consumer, move || threads.into_iter().for_each(|worker| drop(worker.join())))
}

/// Starts the thread that takes the deliveries and hands them to several workers; `join` waits for these.
pub(super) fn start_dispatcher(
    running: &Arc<Running>,
    consumer: Consumer,
    join: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let shared = running.clone();
    let dispatcher = spawn("leveret-listen", move || {
        let result = shared.dispatch(consumer, |delivery| {
            if let Err(delivery) = shared.handoff.put(delivery) {
                shared.gives_back(delivery);
            }
        });
        shared.handoff.close();
        join();
        shared.finish(result);
    });
    dispatcher.map(drop).inspect_err(|_| running.handoff.close())
}

impl<H> fmt::Debug for Listen<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listen")
            .field("handlers", &self.handlers.len())
            .field("dispatch", &self.dispatch)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
