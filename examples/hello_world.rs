//! "Hello World!" of the Proton tutorial: declare a queue, publish a message, consume it, print it.
//!
//! The broker is that of `AMQP_URL`.

use leveret::{Connection, Error};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;

    channel.queue_declare("hello")?;
    channel.basic_publish("", "hello", "Hello World!")?;

    let mut consumer = channel.basic_consume("hello")?;
    if let Some(delivery) = consumer.next() {
        let delivery = delivery?;
        println!("{}", delivery.text()?);
        delivery.ack()?;
    }

    channel.queue_delete("hello")?;
    connection.close()
}
