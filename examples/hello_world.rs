//! "Hello World!" of the Proton tutorial: declare a queue, publish a message, consume it, print it.
//!
//! The broker is that of `AMQP_URL`, or one within this process if that is not set.

use leveret::{Connection, Error, broker::Broker};

fn main() -> Result<(), Error> {
    let broker = Broker::start();
    let (connection, which) = match std::env::var("AMQP_URL") {
        Ok(url) => (Connection::open(url)?, "that of AMQP_URL"),
        Err(_) => (broker.connect()?, "within this process"),
    };
    println!("the broker is {which}");
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
