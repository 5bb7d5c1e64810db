//! "Asynchronous Methods" of nucleon.amqp's "Synchronous/Asynchronous Model": publish confirmation makes
//! `basic_publish` synchronous.
//!
//! The call returns once the broker has taken the message, or says why it has not. The broker is that of `AMQP_URL`.

use leveret::{Connection, Error, Outcome, Publish, QueueDeclare};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;
    let queue = channel.queue_declare(QueueDeclare::new("status").exclusive(true))?.queue;
    channel.confirm_select()?;

    // One at a time: each is known to be with the broker before the next.
    channel.publish_confirmed("", &queue, "amqp is teh cool")?;
    println!("confirmed");

    // Many on their way at once: their outcomes are collected afterwards.
    let mut handles = Vec::new();
    for number in 1..=3 {
        handles.push(channel.deferred().basic_publish("", &queue, &format!("update {number}"))?);
    }
    for handle in handles {
        let number = handle.sequence_number();
        match handle.wait() {
            Outcome::Acked => println!("number {number}: acked"),
            other => println!("number {number}: {other:?}"),
        }
    }

    // What the broker does not take is an error of its own kind.
    let unroutable = Publish::new("nobody wants it").mandatory(true);
    if let Err(error) = channel.publish_confirmed("", "no-such-queue", unroutable) {
        println!("{error}");
    }
    if let Err(error) = channel.publish_confirmed("no-such-exchange", "status.update", "lost") {
        println!("{error}");
    }
    connection.close()
}
