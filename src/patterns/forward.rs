//! Copies of failed messages, published to where they are looked at by people.

use std::sync::Mutex;

use crate::{
    BasicProperties, Channel, Delivery, Destination, FieldValue, HandlerFailure, Publish, Result,
    hooks::{Control, lock},
};

/// Headers that a broker takes for further routing keys.
const ROUTING: [&str; 2] = ["CC", "BCC"];

/// How much of the reason stands in a header: it has to fit a frame together with the other headers.
const MAX_REASON: usize = 1024;

/// The channel for copies, opened for the first of them.
#[derive(Debug, Default)]
pub(super) struct Forwarder(Mutex<Option<Channel>>);

impl Forwarder {
    /// Publishes a copy and waits until the broker has confirmed it.
    ///
    /// # Errors
    /// The broker did not take it, or it is not known whether it did.
    pub(super) fn forward(
        &self,
        control: &Control,
        delivery: &Delivery,
        failure: &HandlerFailure,
        destination: &Destination,
    ) -> Result<()> {
        let properties = properties_of_copy(delivery, failure);
        let copy = Publish::new(delivery.body()).properties(&properties).mandatory(true);
        let Destination { exchange, routing_key } = destination;
        self.channel(control)?.publish_confirmed(exchange, routing_key, copy)
    }

    /// Closes the channel; what was published on it has been confirmed.
    pub(super) fn close(&self) {
        let channel = lock(&self.0).take();
        drop(channel);
    }

    fn channel(&self, control: &Control) -> Result<Channel> {
        let open = lock(&self.0).clone().filter(Channel::is_open);
        if let Some(channel) = open {
            return Ok(channel);
        }
        // Two workers may open one each; the one that is replaced is closed when its last copy is confirmed.
        let channel = control.open_channel()?;
        channel.confirm_select()?;
        let before = lock(&self.0).replace(channel.clone());
        drop(before);
        Ok(channel)
    }
}

fn properties_of_copy(delivery: &Delivery, failure: &HandlerFailure) -> BasicProperties {
    // Those that cannot be decoded cannot be sent again either.
    let mut properties = delivery.properties().unwrap_or_else(|error| {
        log::warn!(target: "leveret::handler", "a copy is published without its properties: {error}");
        BasicProperties::new()
    });
    let mut headers = properties.headers.take().unwrap_or_default();
    for name in ROUTING {
        headers.remove(name);
    }
    headers.insert("message-failed", shortened(&failure.reason));
    headers.insert("x-original-exchange", &*delivery.exchange());
    headers.insert("x-original-routing-key", FieldValue::LongString(delivery.routing_key_bytes().to_vec()));
    if let Some(expiration) = properties.expiration.take() {
        headers.insert("x-original-expiration", expiration);
    }
    if let Some(user_id) = properties.user_id.take() {
        headers.insert("x-original-user-id", user_id);
    }
    properties.headers = Some(headers);
    properties
}

fn shortened(reason: &str) -> &str {
    let end = (0..=MAX_REASON.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
    reason.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_letters() {
        assert_eq!(shortened("short"), "short");
        let cut = shortened(&"ä".repeat(MAX_REASON)).to_owned();
        assert_eq!(cut, "ä".repeat(MAX_REASON / 2));
        assert_eq!(shortened(&format!("x{}", "ä".repeat(MAX_REASON))).len(), MAX_REASON - 1);
    }
}
