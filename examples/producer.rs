//! "Producer" of stompest's "Asynchronous Client": ten messages, each confirmed within a second, and a graceful
//! end.
//!
//! The broker is that of `AMQP_URL`.

use std::time::Duration;

use leveret::{BasicProperties, Config, Connection, Error, Publish};

const QUEUE: &str = "testIn";

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let config = Config::try_from(url)?.confirm_timeout(Duration::from_secs(1));
    let connection = Connection::open(config)?;
    let channel = connection.channel()?;
    channel.queue_declare(QUEUE)?;
    channel.confirm_select()?;

    let json = BasicProperties::new().content_type("application/json");
    for count in 0..10 {
        let body = format!("{{\"count\": {count}}}");
        channel.publish_confirmed("", QUEUE, Publish::new(&body).properties(&json))?;
        println!("message-{count}: {body}");
    }

    // Both wait for the broker's answer.
    channel.close()?;
    connection.close()?;
    println!("bye");
    Ok(())
}
