//! "Working With Binary Data" of the AMPS Python client's advanced topics: the bytes of a body are always there,
//! and reading them as text is a question that can be answered with no.
//!
//! The broker is that of `AMQP_URL`.

use leveret::{Connection, Error, Message, QueueDeclare};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;
    let queue = channel.queue_declare(QueueDeclare::new("").exclusive(true))?.queue;

    // Every byte there is, and most of them are no UTF-8.
    let bytes: Vec<u8> = (0..=255).collect();
    channel.basic_publish("", &queue, &Message::binary(bytes.clone()))?;
    channel.basic_publish("", &queue, &Message::text("Grüße"))?;
    channel.basic_publish("", &queue, "bytes that say nothing of themselves")?;

    for delivery in channel.basic_consume(&queue)?.take(3) {
        let delivery = delivery?;
        println!("{:?}", delivery.properties()?.content_type.as_deref());
        match delivery.text() {
            Ok(text) => println!("{text}"),
            Err(error) => println!("{error}"),
        }
        if delivery.body() == bytes {
            println!("{} bytes, each as it was sent", delivery.body().len());
        }
        delivery.ack()?;
    }
    connection.close()
}
