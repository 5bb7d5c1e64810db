//! Declarations that the broker does not answer.

use super::{
    Channel, ExchangeBind, ExchangeDeclare, ExchangeDelete, ExchangeUnbind, QueueBind, QueueDeclare,
    QueueDelete, QueuePurge,
};
use crate::error::Result;

/// A channel's declarations in their `no-wait` form: sent, and not answered. **Asynchronous**: an error that
/// the broker sends back is returned by a later call on the channel.
///
/// Each method takes what its counterpart on [`Channel`] takes, and fails as
/// [`basic_publish`](Channel::basic_publish) does.
#[derive(Debug, Clone, Copy)]
pub struct NoWait<'c>(&'c Channel);

impl Channel {
    /// The declarations that are not waited for.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// for name in ["foo", "bar", "baz"] {
    ///     channel.no_wait().queue_declare(name)?;
    /// }
    /// channel.flow(true)?; // a barrier: an error of the three is returned here
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn no_wait(&self) -> NoWait<'_> {
        NoWait(self)
    }
}

impl NoWait<'_> {
    /// See [`Channel::queue_declare`]. The name must not be empty: nobody would learn the broker's.
    ///
    /// # Errors
    /// See [`NoWait`].
    pub fn queue_declare<'a>(&self, declare: impl Into<QueueDeclare<'a>>) -> Result<()> {
        let declare = declare.into();
        let arguments = declare.arguments.encode()?;
        self.0.send(&declare.method(&arguments, true)?)
    }

    /// See [`Channel::queue_bind`].
    ///
    /// # Errors
    /// See [`NoWait`].
    pub fn queue_bind<'a>(&self, bind: impl Into<QueueBind<'a>>) -> Result<()> {
        let bind = bind.into();
        let arguments = bind.arguments.encode()?;
        self.0.send(&bind.method(&arguments, true)?)
    }

    /// See [`Channel::queue_purge`].
    ///
    /// # Errors
    /// See [`NoWait`].
    pub fn queue_purge<'a>(&self, purge: impl Into<QueuePurge<'a>>) -> Result<()> {
        self.0.send(&purge.into().method(true)?)
    }

    /// See [`Channel::queue_delete`].
    ///
    /// # Errors
    /// See [`NoWait`].
    pub fn queue_delete<'a>(&self, delete: impl Into<QueueDelete<'a>>) -> Result<()> {
        self.0.send(&delete.into().method(true)?)
    }

    /// See [`Channel::exchange_declare`].
    ///
    /// # Errors
    /// See [`NoWait`].
    pub fn exchange_declare<'a>(&self, declare: impl Into<ExchangeDeclare<'a>>) -> Result<()> {
        let declare = declare.into();
        let arguments = declare.arguments.encode()?;
        self.0.send(&declare.method(&arguments, true)?)
    }

    /// See [`Channel::exchange_delete`].
    ///
    /// # Errors
    /// See [`NoWait`].
    pub fn exchange_delete<'a>(&self, delete: impl Into<ExchangeDelete<'a>>) -> Result<()> {
        self.0.send(&delete.into().method(true)?)
    }

    /// See [`Channel::exchange_bind`].
    ///
    /// # Errors
    /// See [`NoWait`].
    pub fn exchange_bind<'a>(&self, bind: impl Into<ExchangeBind<'a>>) -> Result<()> {
        let bind = bind.into();
        let arguments = bind.arguments.encode()?;
        self.0.send(&bind.method(&arguments, true)?)
    }

    /// See [`Channel::exchange_unbind`].
    ///
    /// # Errors
    /// See [`NoWait`].
    pub fn exchange_unbind<'a>(&self, unbind: impl Into<ExchangeUnbind<'a>>) -> Result<()> {
        let unbind = unbind.into();
        let arguments = unbind.arguments.encode()?;
        self.0.send(&unbind.method(&arguments, true)?)
    }
}
