//! Bodies that are text, bytes or JSON: what is sent, what arrives, and what becomes of a message that is not what
//! it should be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{collections::BTreeMap, sync::mpsc};

use common::{brokers::on_each_broker, queues::holds};
use leveret::{
    BasicProperties, BorrowedDelivery, Channel, Delivery, Error, Message, Publish, QueueDeclare, Requeue,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    number: u64,
    items: Vec<String>,
    note: Option<String>,
}

fn order() -> Order {
    Order { number: u64::MAX, items: vec!["carrot \"ä\"\n".into(), "\u{1F407}".into()], note: None }
}

/// Publishes, and fetches what has arrived.
fn there_and_back<'a>(channel: &Channel, message: impl Into<Publish<'a>>) -> Result<Delivery, Error> {
    let queue = channel.queue_declare(QueueDeclare::new("").exclusive(true))?.queue;
    channel.basic_publish("", &queue, message)?;
    holds(channel, &queue, 1);
    Ok(channel.basic_get(&queue)?.expect("the message"))
}

fn content_type(delivery: &Delivery) -> Option<String> {
    delivery.properties().unwrap().content_type
}

/// Row 80: a value arrives as it was sent, with its content type and nothing else.
#[test]
fn a_value_goes_there_and_back() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        let delivery = there_and_back(&channel, &Message::json(&order())?)?;
        assert_eq!(delivery.properties()?, BasicProperties::new().content_type("application/json"));
        assert_eq!(delivery.json::<Order>()?, order());
        // Whoever knows the type only in part takes a part.
        let value = delivery.json::<serde_json::Value>()?;
        assert_eq!(value["items"][1], "\u{1F407}");
        delivery.ack()
    });
}

/// Row 80: texts may be borrowed from the delivery, and the content type is the sender's business.
#[test]
fn json_is_read_in_place_whatever_it_is_called() {
    #[derive(Deserialize)]
    struct Borrowed<'a> {
        name: &'a str,
    }
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        let delivery = there_and_back(&channel, r#"{"name": "leveret", "unknown": [1, 2]}"#)?;
        assert_eq!(content_type(&delivery), None);
        let name = delivery.json::<Borrowed<'_>>()?.name;
        assert_eq!(name, "leveret");
        assert!(delivery.body().as_ptr_range().contains(&name.as_ptr()), "not copied");
        Ok(())
    });
}

/// Rows 76, 80: an inline handler reads JSON where it was received.
#[test]
fn an_inline_handler_reads_json() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        let queue = channel.queue_declare(QueueDeclare::new("").exclusive(true))?.queue;
        let (tell, told) = mpsc::channel();
        let consumer = channel.basic_consume_inline(&*queue, move |delivery: &BorrowedDelivery<'_>| {
            tell.send(delivery.json::<Order>().map_err(|error| error.to_string()))?;
            delivery.ack()?;
            Ok(())
        })?;
        channel.basic_publish("", &queue, &Message::json(&order())?)?;
        assert_eq!(told.recv().unwrap(), Ok(order()));
        channel.basic_publish("", &queue, "no order")?;
        assert!(told.recv().unwrap().unwrap_err().contains("is not the JSON of a"));
        consumer.cancel()
    });
}

/// Rows 80, 90: what is not the JSON that it should be is an error that says so, on this message only, which can
/// still be read otherwise, and rejected.
#[test]
fn a_message_that_is_not_what_it_should_be_can_be_rejected() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        let bodies: [(&[u8], &str); 5] = [
            (b"", "EOF while parsing"),
            (b"order 7", "line 1 column 1"),
            (br#"{"number": 7, "items": [],}"#, "trailing comma"),
            (br#"{"number": 7}"#, "missing field `items`"),
            (&[b'"', 0xFF, b'"'], ""),
        ];
        for (body, reason) in bodies {
            let delivery = there_and_back(&channel, body)?;
            let error = delivery.json::<Order>().unwrap_err();
            assert!(matches!(error, Error::Malformed(_)), "{error}");
            let said = error.to_string();
            assert!(said.contains("Order") && said.contains(reason), "{said}");
            assert_eq!(delivery.body(), body);
            delivery.reject(Requeue::No)?;
            assert!(matches!(delivery.ack(), Err(Error::Settled { .. })));
        }
        // Depth is limited: no body can exhaust the stack.
        let nested = there_and_back(&channel, &"[".repeat(100_000))?;
        let error = nested.json::<serde_json::Value>().unwrap_err();
        assert!(error.to_string().contains("recursion limit"), "{error}");
        channel.flow(true).map(drop)
    });
}

/// Row 80: what JSON cannot express is refused before anything is sent.
#[test]
fn a_value_that_json_cannot_express_is_refused() {
    let error = Message::json(&BTreeMap::from([((1, 2), 3)])).unwrap_err();
    assert!(matches!(&error, Error::Invalid(text) if text.contains("key must be a string")), "{error}");
}

/// Rows 52, 80: text and bytes say what they are; a plain message says nothing; properties are kept together.
#[test]
fn content_types_are_those_that_were_asked_for() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        let text = there_and_back(&channel, &Message::text("Grüße"))?;
        assert_eq!(
            (text.text()?, content_type(&text).as_deref()),
            ("Grüße", Some("text/plain; charset=utf-8"))
        );

        let bytes = [0, 159, 146, 150];
        let binary = there_and_back(&channel, &Message::binary(bytes))?;
        assert_eq!(content_type(&binary).as_deref(), Some("application/octet-stream"));
        assert_eq!(binary.body(), bytes);
        let error = binary.text().unwrap_err();
        assert!(matches!(&error, Error::Malformed(text) if text.contains("UTF-8")), "{error}");

        for plain in [Message::new("x"), "x".into(), String::from("x").into(), vec![b'x'].into()] {
            let delivery = there_and_back(&channel, &plain)?;
            assert_eq!((delivery.body(), delivery.properties()?), (&b"x"[..], BasicProperties::new()));
        }

        let full = Message::json(&7)?.map_properties(|properties| properties.persistent().header("a", 1));
        let delivery = there_and_back(&channel, Publish::from(&full).mandatory(true))?;
        assert_eq!(
            delivery.properties()?,
            BasicProperties::new().content_type("application/json").persistent().header("a", 1)
        );
        Ok(())
    });
}
