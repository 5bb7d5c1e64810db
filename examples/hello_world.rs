//! "Hello World!" of the Proton tutorial: declare a queue, publish a message, consume it, print it.
//!
//! The broker is that of `AMQP_URL`, or one within this process if that is not set.

use leveret::{Connection, Error, broker::Broker};

fn main() -> Result<(), Error> {
    let broker = Broker::start();
    let connection = match std::env::var("AMQP_URL") {
        Ok(url) => Connection::open(url)?,
        Err(_) => broker.connect()?,
    };
    let product = connection.server_properties().get("platform").and_then(|platform| platform.as_str());
    eprintln!("the broker is {}", product.unwrap_or("unknown"));
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
