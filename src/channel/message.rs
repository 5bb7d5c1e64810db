//! Messages that own their body: text, bytes, and with the feature `json` values.

use std::fmt;

use super::Publish;
use crate::protocol::properties::BasicProperties;

/// A message that owns its body and its properties. Publish it by reference:
///
/// ```
/// # #[cfg(feature = "broker")] {
/// # let broker = leveret::broker::Broker::start();
/// # let connection = broker.connect()?;
/// # let channel = connection.channel()?;
/// # channel.queue_declare("orders")?;
/// use leveret::{Message, Publish};
///
/// let order = Message::text("order 7").map_properties(|properties| properties.persistent());
/// channel.basic_publish("", "orders", &order)?;
/// channel.basic_publish("", "orders", Publish::from(&order).mandatory(true))?;
/// # }
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// [`Publish`] borrows everything, so that a message which is refused is still the caller's and can be published
/// again. Where there is nothing to borrow from (a value that becomes JSON, the answer to a request), this type
/// is what owns it. A body and its content type are set together here; apart from that nothing is added to what
/// you set, and a `Message::new` has no properties at all.
#[derive(Clone, Default, PartialEq)]
#[non_exhaustive]
#[must_use = "a message does nothing until it is published"]
pub struct Message {
    /// The body.
    pub body: Vec<u8>,
    /// The properties.
    pub properties: BasicProperties,
}

impl Message {
    /// A message without properties.
    pub fn new(body: impl Into<Vec<u8>>) -> Message {
        Message { body: body.into(), properties: BasicProperties::new() }
    }

    /// A text, with the content type `text/plain; charset=utf-8`.
    pub fn text(text: impl Into<String>) -> Message {
        Message::with_content_type("text/plain; charset=utf-8", text.into().into_bytes())
    }

    /// Bytes of any kind, with the content type `application/octet-stream`.
    pub fn binary(bytes: impl Into<Vec<u8>>) -> Message {
        Message::with_content_type("application/octet-stream", bytes.into())
    }

    pub(super) fn with_content_type(content_type: &str, body: Vec<u8>) -> Message {
        Message { body, properties: BasicProperties::new().content_type(content_type) }
    }

    /// Changes the properties, keeping those that are set already.
    ///
    /// ```
    /// use leveret::Message;
    ///
    /// let message = Message::text("hello").map_properties(|properties| properties.message_id("7").priority(3));
    /// assert_eq!(message.properties.content_type.as_deref(), Some("text/plain; charset=utf-8"));
    /// assert_eq!(message.properties.priority, Some(3));
    /// ```
    pub fn map_properties(self, change: impl FnOnce(BasicProperties) -> BasicProperties) -> Message {
        Message { properties: change(self.properties), ..self }
    }
}

impl<'a> From<&'a Message> for Publish<'a> {
    fn from(message: &'a Message) -> Publish<'a> {
        Publish::new(&message.body).properties(&message.properties)
    }
}

/// Without properties, as by [`Message::new`].
macro_rules! from_body {
    ($($body:ty)+) => { $(
        impl From<$body> for Message {
            fn from(body: $body) -> Message {
                Message::new(body)
            }
        }
    )+ };
}
from_body!(&str String &[u8] Vec<u8>);

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("body_bytes", &self.body.len())
            .field("properties", &self.properties)
            .finish()
    }
}
