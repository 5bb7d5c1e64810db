//! "Send" of the Proton tutorial's "The Basics": publishes 100 messages, and is done when each of them is confirmed. Run
//! the example `recv` before or after it, or `direct_recv`, which needs no broker.
//!
//! The broker is that of `AMQP_URL`.

use std::time::Duration;

use leveret::{Connection, Error};

const QUEUE: &str = "examples";

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;
    channel.queue_declare(QUEUE)?;
    channel.confirm_select()?;
    for number in 1..=100 {
        channel.basic_publish("", QUEUE, &format!("sequence {number}"))?;
    }
    channel.wait_for_confirms(Duration::from_secs(30))?;
    println!("all 100 messages confirmed");
    channel.close()?;
    connection.close()
}
