//! A message that a peer has published.

use std::{fmt, sync::Arc};

use super::{Peer, PeerState, Sent, inbox};
use crate::{
    Message,
    error::{Error, Result},
    protocol::properties::BasicProperties,
};

/// A message that a peer has published, as a [handler](super::Serve::messages) gets it.
#[non_exhaustive]
pub struct Published {
    /// The exchange that it was published to; usually empty.
    pub exchange: String,
    /// The routing key: with the default exchange, the name of the queue that the peer has in mind.
    pub routing_key: String,
    /// The peer wants it back when nobody takes it. A listener returns nothing: it takes a message or nacks it.
    pub mandatory: bool,
    /// Its properties.
    pub properties: BasicProperties,
    /// Its body. Cheap to clone.
    pub body: Arc<[u8]>,
    peer: Arc<PeerState>,
    channel: u16,
}

impl Published {
    pub(super) fn new(message: inbox::Message, peer: Arc<PeerState>, channel: u16) -> Published {
        let inbox::Message { payload, mandatory } = message;
        Published {
            exchange: payload.exchange.to_string(),
            routing_key: payload.routing_key.to_string(),
            mandatory,
            // They were decoded once when they came.
            properties: BasicProperties::decode(&payload.properties).unwrap_or_default(),
            body: payload.body,
            peer,
            channel,
        }
    }

    /// The body as text.
    ///
    /// # Errors
    /// [`Error::Malformed`]: it is not UTF-8.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.body)
            .map_err(|error| Error::malformed(format!("the body is not UTF-8 text: {error}")))
    }

    /// The body as a value (feature `json`).
    ///
    /// # Errors
    /// [`Error::Malformed`]: it is not JSON, or not of such a value.
    #[cfg(feature = "json")]
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::malformed(format!("the body is not the expected JSON: {error}")))
    }

    /// Who has published it.
    pub fn peer(&self) -> Peer {
        Peer(self.peer.clone())
    }

    /// Sends an answer to the peer's consumer that the property `reply_to` names, with the message's `correlation_id` unless
    /// it has its own. **Waits** as [`Consumer::send`](super::Consumer::send).
    ///
    /// # Errors
    /// Those of [`Consumer::send`](super::Consumer::send), and [`Error::Invalid`]: the message has no `reply_to`, or the peer
    /// does not consume from there.
    ///
    /// ```
    /// use std::time::Duration;
    /// use leveret::{direct::{Published, Serve}, rpc};
    ///
    /// let listener = Serve::new()
    ///     .messages(|request: &Published| {
    ///         request.reply(request.text()?.to_uppercase())?;
    ///         Ok(())
    ///     })
    ///     .start()?;
    /// let connection = listener.connect()?;
    /// let client = rpc::Client::open(&connection, "uppercase")?;
    /// assert_eq!(client.call("hello", Duration::from_secs(5))?.text()?, "HELLO");
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn reply(&self, answer: impl Into<Message>) -> Result<Sent> {
        let mut answer = answer.into();
        let Some(to) = &self.properties.reply_to else {
            return Err(Error::invalid("the message has no reply_to: its sender waits for no answer"));
        };
        if answer.properties.correlation_id.is_none() {
            answer.properties.correlation_id.clone_from(&self.properties.correlation_id);
        }
        let subscription = self
            .peer
            .find_consumer(self.channel, to.as_bytes())
            .ok_or_else(|| Error::invalid(format!("the peer does not consume from {to:?}")))?;
        self.peer.send(&subscription, answer, true)
    }
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("properties", &self.properties)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}
