//! Messages that came back because they matched no queue.

use std::{collections::VecDeque, sync::Arc};

use super::{Channel, Core};
use crate::{
    error::{Error, ReplyCode, Result, Returned},
    protocol::{content::Content, properties::BasicProperties, spec::BasicReturn},
};

/// How many returned messages are kept for a program that does not ask for them, and how many bytes of them.
const KEPT_MESSAGES: usize = 1000;
const KEPT_BYTES: usize = 16 * 1024 * 1024;

/// Returned messages that nobody has asked for yet.
#[derive(Debug, Default)]
pub(super) struct Returns {
    kept: VecDeque<Arc<Returned>>,
    bytes: usize,
}

impl Returns {
    /// Keeps a message; the oldest go when there is no room. Returns those.
    fn keep(&mut self, returned: Arc<Returned>) -> Vec<Arc<Returned>> {
        self.bytes += returned.body.len();
        self.kept.push_back(returned);
        let mut lost = Vec::new();
        while self.kept.len() > KEPT_MESSAGES || (self.bytes > KEPT_BYTES && self.kept.len() > 1) {
            lost.extend(self.take());
        }
        lost
    }

    fn take(&mut self) -> Option<Arc<Returned>> {
        let returned = self.kept.pop_front()?;
        self.bytes -= returned.body.len();
        Some(returned)
    }
}

impl Returned {
    /// The properties that it was published with.
    ///
    /// # Errors
    /// [`Error::Malformed`] if they cannot be decoded.
    pub fn properties(&self) -> Result<BasicProperties> {
        Ok(BasicProperties::decode(&self.raw_properties)?)
    }
}

impl Channel {
    /// Takes the messages that were returned so far and not asked for yet, oldest first. **Does not wait**: after
    /// [`flow(true)`](Channel::flow) everything published before has come back that does.
    ///
    /// Returned messages of a channel in [confirm mode](Channel::confirm_select) are not here, but the outcome of
    /// their publish. At most 1000 messages or 16 MiB are kept; beyond that the oldest are dropped, with a warning
    /// in the log.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// use leveret::Publish;
    ///
    /// channel.basic_publish("", "no such queue", Publish::new("lost?").mandatory(true))?;
    /// channel.flow(true)?;
    /// for returned in channel.returns() {
    ///     println!("{returned}");
    /// }
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[must_use = "the messages are taken"]
    pub fn returns(&self) -> Vec<Returned> {
        let mut state = self.core().lock();
        std::iter::from_fn(|| state.returns.take()).map(Arc::unwrap_or_clone).collect()
    }

    /// Fails with the oldest message that was returned and not asked for yet, and takes it. **Does not wait**, like
    /// [`returns`](Channel::returns).
    ///
    /// # Errors
    /// [`Error::Returned`].
    pub fn check_returned(&self) -> Result<()> {
        let core = self.core();
        let taken = core.lock().returns.take();
        match taken.or_else(|| core.confirms.take_returned()) {
            Some(returned) => Err(Error::Returned(returned)),
            None => Ok(()),
        }
    }
}

impl Core {
    /// The reader's: a message came back.
    pub(super) fn returned(&self, method: BasicReturn<'_>, content: &Content) -> Arc<Returned> {
        let returned = Arc::new(Returned {
            code: ReplyCode::from(method.reply_code),
            text: method.reply_text.to_text(),
            exchange: method.exchange.to_text(),
            routing_key: method.routing_key.to_text(),
            body: content.parts.body(&content.bytes).to_vec(),
            raw_properties: content.parts.properties(&content.bytes).to_vec(),
        });
        if let Some(returned) = self.confirms.returned(returned.clone()) {
            let all_lost = self.lock().returns.keep(returned);
            // A logger is code of the program, which runs under no lock.
            for lost in all_lost {
                log::warn!(target: "leveret::channel", "nobody asked for it, so it is dropped: {lost}");
            }
        }
        returned
    }
}
