//! Transactions: publishes and acknowledgements that take effect together.

use std::time::Duration;

use super::{Channel, Core, call::Coming};
use crate::{
    connection::outgoing::Urgency,
    error::{Error, Result, Scope},
    protocol::{
        frame::write_method,
        spec::{Method, MethodBody, TxCommit, TxRollback, TxSelect},
    },
};

impl Channel {
    /// Puts the channel into transaction mode: publishes and acknowledgements take effect with
    /// [`tx_commit`](Channel::tx_commit). [`transaction`](Channel::transaction) is the safer form.
    ///
    /// It stays in this mode until it is closed. Confirm mode is not possible on it.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) with 406 on a channel in confirm mode. Those of every call: see
    /// [`Channel`].
    pub fn tx_select(&self) -> Result<()> {
        self.call(&TxSelect {}, |method| matches!(method, Method::TxSelectOk(_)).then_some(()))
    }

    /// Makes what was published and acknowledged since the last commit or rollback take effect.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused): 406 without [`tx_select`](Channel::tx_select); 404 and others
    /// for a publish in the transaction. Those of every call: see [`Channel`].
    pub fn tx_commit(&self) -> Result<()> {
        self.call(&TxCommit {}, |method| matches!(method, Method::TxCommitOk(_)).then_some(()))
    }

    /// Forgets what was published and acknowledged since the last commit or rollback.
    ///
    /// Deliveries whose acknowledgement is rolled back are outstanding again at the broker, but RabbitMQ does not
    /// deliver them again by itself: [`basic_recover`](Channel::basic_recover) makes it do so. They can no longer
    /// be settled one by one here.
    ///
    /// # Errors
    /// Those of every call: see [`Channel`].
    pub fn tx_rollback(&self) -> Result<()> {
        rollback(self)
    }

    /// Begins a transaction, which is rolled back unless it is [committed](Transaction::commit).
    ///
    /// # Errors
    /// Those of [`tx_select`](Channel::tx_select).
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # for queue in ["orders", "invoices"] {
    /// #     channel.queue_declare(queue)?;
    /// # }
    /// let transaction = channel.transaction()?;
    /// channel.basic_publish("", "orders", "order 7")?;
    /// channel.basic_publish("", "invoices", "invoice 7")?;
    /// transaction.commit()?; // both, or, without this line, none
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn transaction(&self) -> Result<Transaction> {
        let epoch = self.core().lock().epoch;
        self.tx_select()?;
        Ok(Transaction { channel: Some(self.clone()), epoch })
    }
}

fn rollback(channel: &Channel) -> Result<()> {
    channel.call(&TxRollback {}, |method| matches!(method, Method::TxRollbackOk(_)).then_some(()))
}

/// A transaction on a channel: everything published and acknowledged on that channel while it lasts.
///
/// Dropping it rolls back, also when a panic unwinds, and waits for the broker's answer at most
/// [`drop_timeout`](crate::Config::drop_timeout); an error is logged then.
#[derive(Debug)]
#[must_use = "dropping it rolls back"]
pub struct Transaction {
    /// `None` once it has ended.
    channel: Option<Channel>,
    /// The channel may be closed and opened again meanwhile: then it knows of no transaction.
    epoch: u32,
}

impl Transaction {
    /// Makes it take effect. Waits for the broker's answer.
    ///
    /// # Errors
    /// Those of [`Channel::tx_commit`]; [`Error::Closed`](crate::Error::Closed) if the channel was closed, and opened
    /// again, meanwhile. It has not taken effect then, except after a [timeout](crate::Error::Timeout) or the loss of the
    /// connection, where that is not known.
    pub fn commit(mut self) -> Result<()> {
        self.take_channel().unwrap_or(Err(Error::Closed(Scope::Channel)))?.tx_commit()
    }

    /// Forgets it. Waits for the broker's answer.
    ///
    /// # Errors
    /// Those of every call: see [`Channel`].
    pub fn rollback(mut self) -> Result<()> {
        match self.take_channel() {
            Some(Ok(channel)) => rollback(&channel),
            // It was rolled back with the old channel.
            Some(Err(_)) | None => Ok(()),
        }
    }

    fn take_channel(&mut self) -> Option<Result<Channel>> {
        let channel = self.channel.take()?;
        let is_same = channel.core().lock().epoch == self.epoch;
        Some(if is_same { Ok(channel) } else { Err(Error::Closed(Scope::Channel)) })
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let Some(Ok(channel)) = self.take_channel() else { return };
        if !channel.is_open() {
            return;
        }
        let core = channel.core().clone();
        let channel = channel.within(core.connection.limits.drop_timeout);
        match core.call_once_sent(channel.timeout, &TxRollback {}) {
            // It was sent.
            Ok(Ok(_) | Err(Error::Cancelled)) => {}
            Ok(Err(error)) => log_failed_rollback(&error),
            // It was not, for want of room or because the answer must not be waited for here. But nothing that follows on
            // the channel may become a part of this transaction, so it goes beyond the limit.
            Err(why) => match core.begin_rollback() {
                Ok(_) if matches!(why, Error::Cancelled | Error::WouldDeadlock) => {}
                Ok(_) => log_failed_rollback(&why),
                // In the middle of a large message.
                Err(Error::Timeout(_) | Error::Blocked { .. }) => {
                    let channel = channel.within(core.connection.limits.call_timeout);
                    let rest = Transaction { channel: Some(channel), epoch: self.epoch };
                    core.connection.errands.leave(move || {
                        if let Err(error) = rest.rollback() {
                            log_failed_rollback(&error);
                        }
                    });
                }
                Err(error) => log_failed_rollback(&error),
            },
        }
    }
}

impl Core {
    /// Sends it although there is no room. **Does not wait.**
    fn begin_rollback(&self) -> Result<Coming> {
        let expects = TxRollback::REPLIES.into();
        self.begin(Duration::ZERO, TxRollback::NAME, expects, Urgency::Writer, &mut |out, channel| {
            write_method(out, channel, self.connection.outgoing.max_frame(), &TxRollback {})
        })
    }
}

fn log_failed_rollback(error: &Error) {
    log::warn!(target: "leveret::channel", "rolling back on drop: {error}");
}
