//! What handles messages.

use crate::{Delivery, HandlerError};

/// Handles the messages of a [`Listener`](crate::Listener), one after the other: a closure, a function, or any object
/// with a state of its own.
///
/// It runs on a thread of the listener's, or in a coroutine of its own, so every call of this crate is allowed in it, also those that wait. What it
/// returns decides about the message:
///
/// - `Ok`: it is acked, unless the handler has settled it already, or it needs no ack (`no_ack`);
/// - `Err`, or a panic: the listener's [`FailurePolicy`](crate::FailurePolicy) is applied.
///
/// A handler that passes a message on, to be settled later and elsewhere, cannot return `Ok` without acking it; use the
/// iterator then.
///
/// ```
/// # #[cfg(feature = "broker")] {
/// # let broker = leveret::broker::Broker::start();
/// # let connection = broker.connect()?;
/// # let channel = connection.channel()?;
/// # channel.queue_declare("orders")?;
/// use leveret::{Delivery, Handler, HandlerError};
///
/// struct Counter {
///     count: u64,
/// }
///
/// impl Handler for Counter {
///     fn handle(&mut self, delivery: &Delivery) -> Result<(), HandlerError> {
///         self.count += 1;
///         println!("{}: {}", self.count, delivery.text()?);
///         Ok(())
///     }
/// }
///
/// let listener = channel.basic_consume("orders")?.listen(Counter { count: 0 })?;
/// # }
/// # Ok::<(), leveret::Error>(())
/// ```
pub trait Handler: Send + 'static {
    /// Handles one message.
    ///
    /// # Errors
    /// Why it could not. The listener's [`FailurePolicy`](crate::FailurePolicy) says what becomes of the message.
    fn handle(&mut self, delivery: &Delivery) -> Result<(), HandlerError>;
}

impl<F> Handler for F
where
    F: FnMut(&Delivery) -> Result<(), HandlerError> + Send + 'static,
{
    fn handle(&mut self, delivery: &Delivery) -> Result<(), HandlerError> {
        self(delivery)
    }
}
