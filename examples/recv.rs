//! "Recv" of the Proton tutorial's "The Basics": consumes 100 messages and prints them. Run the example `send` before or
//! after it, or `direct_send`, which needs no broker.
//!
//! The broker is that of `AMQP_URL`.

use leveret::{Connection, Error};

const QUEUE: &str = "examples";

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;
    channel.queue_declare(QUEUE)?;
    let consumer = channel.basic_consume(QUEUE)?;
    for delivery in consumer.take(100) {
        let delivery = delivery?;
        println!("{}", delivery.text()?);
        delivery.ack()?;
    }
    channel.close()?;
    connection.close()
}
