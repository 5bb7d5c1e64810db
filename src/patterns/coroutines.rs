//! Handlers that run in coroutines.

use std::sync::Arc;

use super::{
    listen::{Dispatch, start_dispatcher},
    running::Running,
};
use crate::{Consumer, Handler, Listen, Result, hooks::spawn_coroutine};

/// The stack of one handler, in bytes. Far more than what `may` gives by default: a panic that prints a backtrace
/// takes 20 KiB, publishing a dead letter 15, and what the handler itself needs nobody knows. Only the pages that are
/// used take memory.
const STACK: usize = 256 * 1024;

impl<H: Handler + Clone> Listen<H> {
    /// So many clones of the handler instead of one, each in a coroutine of the crate `may`. (Feature `coroutines`.)
    ///
    /// What [`workers`](Listen::workers) says holds here too; but a coroutine costs a few KiB of memory, so there may be
    /// thousands. All calls of this crate are allowed in them, and a call that waits lets the others go on. What blocks a
    /// thread by other means holds up the other coroutines of the program. Each has a stack of 256 KiB, of which what it
    /// does not use takes no memory.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # for queue in ["questions", "answers"] {
    /// #     channel.queue_declare(queue)?;
    /// # }
    /// use leveret::{Delivery, Listen};
    ///
    /// let answers = connection.channel()?;
    /// answers.confirm_select()?;
    /// let handler = move |delivery: &Delivery| {
    ///     answers.publish_confirmed("", "answers", delivery.body())?; // waits for the broker
    ///     Ok(())
    /// };
    /// channel.basic_qos(1000)?;
    /// let listener = channel.basic_consume("questions")?.listen(Listen::new(handler).coroutines(1000))?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn coroutines(self, count: usize) -> Listen<H> {
        let mut listen = self.workers(count);
        listen.dispatch = Dispatch::Coroutines;
        listen
    }
}

/// A thread takes the deliveries, and hands them to coroutines.
pub(super) fn start<H: Handler>(running: &Arc<Running>, handlers: Vec<H>, consumer: Consumer) -> Result<()> {
    let mut coroutines = Vec::new();
    for (number, handler) in handlers.into_iter().enumerate() {
        let shared = running.clone();
        match spawn_coroutine(STACK, move || shared.work(number, handler)) {
            Ok(coroutine) => coroutines.push(coroutine),
            Err(error) => {
                running.handoff.close();
                return Err(error);
            }
        }
    }
    start_dispatcher(running, consumer, move || {
        coroutines.into_iter().for_each(|coroutine| drop(coroutine.join()));
    })
}
