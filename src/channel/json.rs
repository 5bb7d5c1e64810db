//! JSON bodies (feature `json`).

use std::any::type_name;

use serde::{Deserialize, Serialize};

use super::{BorrowedDelivery, Delivery, Message};
use crate::error::{Error, Result};

impl Message {
    /// A value as JSON, with the content type `application/json`. Needs the feature `json`.
    ///
    /// # Errors
    /// [`Error::Invalid`]: JSON cannot express the value (a map whose keys are no texts, or an error of the type's
    /// own), and serde's reason.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// use leveret::Message;
    ///
    /// #[derive(serde::Serialize)]
    /// struct Order {
    ///     number: u64,
    ///     items: Vec<String>,
    /// }
    ///
    /// let order = Order { number: 7, items: vec!["carrot".into()] };
    /// channel.basic_publish("", "orders", &Message::json(&order)?)?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Message> {
        let body = serde_json::to_vec(value).map_err(|error| {
            Error::invalid(format!("{} cannot be written as JSON: {error}", type_name::<T>()))
        })?;
        Ok(Message::with_content_type("application/json", body))
    }
}

impl Delivery {
    /// The body, read as JSON. Needs the feature `json`.
    ///
    /// The content type is not looked at: it is what the sender says, and many say nothing. Texts in `T` may be
    /// borrowed from the delivery (`&str`).
    ///
    /// # Errors
    /// [`Error::Malformed`] if the body is not JSON, or not that of a `T`; says what is wrong and where. The
    /// delivery stays as it was, and can be [rejected](Delivery::reject):
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("orders")?;
    /// # channel.basic_publish("", "orders", r#"{"number": 7}"#)?;
    /// use leveret::Requeue;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Order {
    ///     number: u64,
    /// }
    ///
    /// for delivery in channel.basic_consume("orders")? {
    ///     let delivery = delivery?;
    ///     match delivery.json::<Order>() {
    ///         Ok(order) => {
    ///             println!("order {}", order.number);
    ///             delivery.ack()?;
    ///         }
    ///         Err(error) => {
    ///             eprintln!("{error}");
    ///             delivery.reject(Requeue::No)?;
    ///         }
    ///     }
    /// #     break;
    /// }
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        read(self.body())
    }
}

impl BorrowedDelivery<'_> {
    /// The body, read as JSON where it lies: see [`Delivery::json`]. Needs the feature `json`.
    ///
    /// # Errors
    /// Those of [`Delivery::json`].
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// # channel.queue_declare("prices")?;
    /// use leveret::{BorrowedDelivery, Consume};
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Price<'a> {
    ///     item: &'a str, // borrowed from the message
    ///     cents: u64,
    /// }
    ///
    /// let consumer = channel.basic_consume_inline(
    ///     Consume::new("prices").no_ack(true),
    ///     |delivery: &BorrowedDelivery<'_>| {
    ///         let price = delivery.json::<Price<'_>>()?;
    ///         println!("{}: {}", price.item, price.cents);
    ///         Ok(())
    ///     },
    /// )?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        read(self.body())
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        Error::malformed(format!("the body is not the JSON of a {}: {error}", type_name::<T>()))
    })
}
