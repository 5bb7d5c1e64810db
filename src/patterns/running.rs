//! A listener at work: takes deliveries, runs handlers, settles what they leave.
//!
//! # Locks
//!
//! Each is taken alone and for a moment. A handler, a policy and an exception listener run under none.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::{
    forward::Forwarder,
    handoff::Handoff,
    policy::{Failed, Policy},
    tries::{Tries, counted_by_queue},
};
use crate::{
    Consumer, Delivery, Error, FailurePolicy, Handler, HandlerFailure, Requeue, Result,
    hooks::{Caller, Control, Job, Latch, Waiter, lock},
};

/// Gets to know of every failure.
pub(super) type OnException = Box<dyn Fn(&Failed<'_>) + Send + Sync>;

/// What a listener, its threads and the connection share.
pub(super) struct Running {
    pub(super) control: Control,
    pub(super) consumer_tag: Arc<str>,
    policy: Policy,
    on_exception: Option<OnException>,
    forwarder: Forwarder,
    tries: Tries,
    /// Between the dispatcher and several workers.
    pub(super) handoff: Handoff,
    workers: Vec<Worker>,
    /// No further handler is begun.
    stopping: AtomicBool,
    /// The consumer is to be cancelled, and what was delivered to be handled: it is the only copy.
    draining: AtomicBool,
    /// Why it stops, if not because it was asked to.
    cause: Mutex<Option<Error>>,
    /// To go back to their queue once the consumer is cancelled.
    going_back: Mutex<Vec<Delivery>>,
    waiting_for_idle: Mutex<Vec<Waiter>>,
    pub(super) ended: Latch<Result<()>>,
}

/// One handler at a time.
#[derive(Default)]
pub(super) struct Worker {
    at_work: AtomicBool,
    /// Whoever runs its handlers.
    who: Mutex<Option<Caller>>,
}

impl Worker {
    fn is_caller(&self) -> bool {
        *lock(&self.who) == Some(Caller::current())
    }
}

impl Running {
    pub(super) fn new(
        consumer: &Consumer,
        workers: usize,
        policy: Policy,
        on_exception: Option<OnException>,
    ) -> Running {
        Running {
            control: consumer.control(),
            consumer_tag: consumer.consumer_tag().into(),
            policy,
            on_exception,
            forwarder: Forwarder::default(),
            tries: Tries::default(),
            handoff: Handoff::new(workers),
            workers: (0..workers).map(|_| Worker::default()).collect(),
            stopping: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            cause: Mutex::default(),
            going_back: Mutex::default(),
            waiting_for_idle: Mutex::default(),
            ended: Latch::default(),
        }
    }

    /// Takes deliveries and has each served, until the consumer ends or the listener is stopped; then cancels the
    /// consumer. Returns why it ended.
    pub(super) fn dispatch(&self, mut consumer: Consumer, mut serve: impl FnMut(Delivery)) -> Result<()> {
        let mut cancelled = false;
        while !self.is_stopping() {
            if self.draining.load(Ordering::SeqCst) && !cancelled {
                cancelled = true;
                consumer.cancel()?;
            }
            match consumer.next() {
                Some(delivery) => serve(delivery?),
                None if consumer.has_ended() => break,
                // Interrupted: there is something to look at.
                None => {}
            }
        }
        Ok(())
    }

    /// Everything is over but for what has to be tidied up. Called once, when no handler runs any more.
    pub(super) fn finish(&self, result: Result<()>) {
        self.forwarder.close();
        for delivery in std::mem::take(&mut *lock(&self.going_back)) {
            // If the channel is gone, it has gone back with it.
            let _ = delivery.nack(Requeue::Yes);
        }
        let cause = lock(&self.cause).take();
        let result = cause.map_or(result, Err);
        match &result {
            Ok(()) => log::debug!(target: "leveret::handler", "listener {:?} has ended", self.consumer_tag),
            Err(error) if error.is_closed() => {
                log::debug!(target: "leveret::handler", "listener {:?} has ended: {error}", self.consumer_tag);
            }
            Err(error) => {
                log::warn!(target: "leveret::handler", "listener {:?} has ended: {error}", self.consumer_tag);
            }
        }
        self.ended.put(result);
        self.wake_those_waiting_for_idle();
    }

    /// The caller runs this worker's handlers from now on.
    pub(super) fn begin_work(&self, worker: usize) {
        if let Some(worker) = self.workers.get(worker) {
            *lock(&worker.who) = Some(Caller::current());
        }
    }

    /// Handles what is handed over until nothing comes any more.
    pub(super) fn work(&self, worker: usize, mut handler: impl Handler) {
        self.begin_work(worker);
        while let Some(delivery) = self.handoff.take() {
            self.handle(worker, &mut handler, delivery);
        }
        guarded("dropping a handler", || drop(handler));
    }

    /// Handles one delivery and settles it; once the listener stops, gives it back instead.
    pub(super) fn handle(&self, worker: usize, handler: &mut dyn Handler, delivery: Delivery) {
        let Some(worker) = self.workers.get(worker) else { return };
        worker.at_work.store(true, Ordering::SeqCst);
        if self.is_stopping() {
            self.gives_back(delivery);
        } else {
            self.run(handler, &delivery);
        }
        worker.at_work.store(false, Ordering::SeqCst);
        if self.is_stopping() || self.draining.load(Ordering::SeqCst) {
            self.wake_those_waiting_for_idle();
        }
    }

    fn run(&self, handler: &mut dyn Handler, delivery: &Delivery) {
        let before = self.tries.come(delivery);
        let handled = panic::catch_unwind(AssertUnwindSafe(|| handler.handle(delivery)));
        let tag = delivery.delivery_tag();
        let failure = match handled {
            Ok(Ok(())) => return self.note(self.ack(delivery)),
            Ok(Err(error)) => HandlerFailure::error(&self.consumer_tag, tag, error),
            Err(panic) => HandlerFailure::panic(&self.consumer_tag, tag, &*panic),
        };
        self.failed(delivery, Arc::new(failure), before);
    }

    fn failed(&self, delivery: &Delivery, failure: Arc<HandlerFailure>, before: u32) {
        self.control.report(&failure);
        let before = counted_by_queue(delivery).unwrap_or(before);
        let failed = Failed { delivery, failure: &failure, attempt: before.saturating_add(1) };
        if let Some(on_exception) = &self.on_exception {
            guarded("the exception listener", || on_exception(&failed));
        }
        let policy = guarded("the failure policy", || self.policy.decide(&failed)).unwrap_or_default();
        let settled = match policy {
            FailurePolicy::Stop => {
                self.stop_failing(failure, delivery);
                Ok(())
            }
            FailurePolicy::Requeue { max } if before < max && !self.control.no_ack() => {
                self.tries.goes_back(delivery, before + 1);
                settled(delivery.nack(Requeue::Yes))
            }
            FailurePolicy::Requeue { .. } | FailurePolicy::Reject if self.control.no_ack() => Ok(()),
            FailurePolicy::Requeue { .. } | FailurePolicy::Reject => settled(delivery.reject(Requeue::No)),
            FailurePolicy::AckAndDrop => self.ack(delivery),
            FailurePolicy::DeadLetter(destination) => {
                match self.forwarder.forward(&self.control, delivery, &failure, &destination) {
                    Ok(()) => self.ack(delivery),
                    Err(error) => {
                        self.stop_failing(Arc::new(failure.and_not_forwarded(error)), delivery);
                        Ok(())
                    }
                }
            }
        };
        self.note(settled);
    }

    fn stop_failing(&self, failure: Arc<HandlerFailure>, delivery: &Delivery) {
        self.gives_back(delivery.clone());
        self.stop_because(Some(Error::Handler(failure)));
    }

    fn ack(&self, delivery: &Delivery) -> Result<()> {
        if self.control.no_ack() { Ok(()) } else { settled(delivery.ack()) }
    }

    /// What cannot be settled ends the listener: the channel is gone, or takes nothing more.
    fn note(&self, settled: Result<()>) {
        if let Err(error) = settled {
            self.stop_because(Some(error));
        }
    }

    /// Begins no further handler. The first cause is kept.
    pub(super) fn stop_because(&self, cause: Option<Error>) {
        let mut kept = lock(&self.cause);
        if !self.stopping.swap(true, Ordering::SeqCst) {
            *kept = cause;
        }
        drop(kept);
        self.control.interrupt();
        self.handoff.close();
    }

    /// A delivery that no handler has begun goes back.
    pub(super) fn gives_back(&self, delivery: Delivery) {
        lock(&self.going_back).push(delivery);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The caller is one of the handlers.
    pub(super) fn is_called_by_handler(&self) -> bool {
        self.workers.iter().any(|worker| worker.at_work.load(Ordering::SeqCst) && worker.is_caller())
    }

    fn others_at_work(&self) -> usize {
        let at_work = |worker: &&Worker| worker.at_work.load(Ordering::SeqCst) && !worker.is_caller();
        self.workers.iter().filter(at_work).count()
    }

    /// Nothing runs and nothing will, except for what waits for the caller.
    fn is_idle(&self) -> bool {
        let stopped = self.is_stopping() || self.draining.load(Ordering::SeqCst);
        let over = self.ended.get().is_some() || (stopped && self.is_called_by_handler());
        over && self.others_at_work() == 0
    }

    fn wake_those_waiting_for_idle(&self) {
        let waiting = std::mem::take(&mut *lock(&self.waiting_for_idle));
        waiting.into_iter().for_each(Waiter::wake);
    }
}

impl Job for Running {
    fn stop(&self) {
        if self.control.no_ack() {
            self.draining.store(true, Ordering::SeqCst);
            self.control.interrupt();
        } else {
            self.stop_because(None);
        }
    }

    fn wait_idle(&self, deadline: Option<Instant>) -> bool {
        let waiter = Waiter::new();
        loop {
            lock(&self.waiting_for_idle).push(waiter.clone());
            // Looked at after it was left: who becomes idle now sees it.
            let idle = self.is_idle();
            if idle || waiter.park(deadline).is_err() {
                lock(&self.waiting_for_idle).retain(|other| !other.is(&waiter));
                return idle || self.is_idle();
            }
        }
    }

    fn describe(&self) -> String {
        let count = self.others_at_work();
        let handlers = if count == 1 { "handler" } else { "handlers" };
        format!("listener {:?}: {count} {handlers} at work", self.consumer_tag)
    }
}

/// A message that is settled already stays so.
fn settled(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::Settled { .. }) => Ok(()),
        other => other,
    }
}

/// Runs code of the program; `None` and a line in the log if it panics.
pub(super) fn guarded<T>(what: &str, run: impl FnOnce() -> T) -> Option<T> {
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    if result.is_err() {
        log::error!(target: "leveret::handler", "{what} panicked");
    }
    result.ok()
}
