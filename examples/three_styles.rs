//! The three styles that nucleon.amqp's "Synchronous/Asynchronous Model" compares: callbacks, promises, and synchronous
//! calls; here for the same job.
//!
//! The job: declare a queue, publish a message and know that the broker has it, receive it. The broker is that of
//! `AMQP_URL`.

use std::{sync::mpsc, time::Duration};

use leveret::{Channel, Connection, Delivery, QueueDeclare, Result};

fn main() -> Result<()> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    for style in [callbacks, promises, straight_lines] {
        connection.with_channel(|channel| {
            channel.confirm_select()?;
            style(channel)
        })?;
    }
    connection.close()
}

/// What is to be done with a message is said beforehand, and done on another thread; this one has to be told of the end.
fn callbacks(channel: &Channel) -> Result<()> {
    let queue = channel.queue_declare(QueueDeclare::new("").exclusive(true))?.queue;
    let (done, end) = mpsc::channel();
    let listener = channel.basic_consume(&queue)?.listen(move |delivery: &Delivery| {
        println!("callback: {}", delivery.text()?);
        Ok(done.send(())?)
    })?;
    channel.publish_confirmed("", &queue, "Hello world!")?;
    // The sender is gone when the listener has failed.
    if end.recv().is_err() { listener.wait() } else { Ok(()) }
}

/// Calls are sent at once, and each answer is collected where it is needed: one round trip for both.
fn promises(channel: &Channel) -> Result<()> {
    let declared = channel.deferred().queue_declare(QueueDeclare::new("three-styles").exclusive(true))?;
    let confirm = channel.deferred().basic_publish("", "three-styles", "Hello world!")?;
    let queue = declared.wait()?.queue;
    confirm.wait().into_result()?;
    receive(channel, &queue, "promise")
}

/// Each line is done when the next one begins, and returns its own error.
fn straight_lines(channel: &Channel) -> Result<()> {
    let queue = channel.queue_declare(QueueDeclare::new("").exclusive(true))?.queue;
    channel.publish_confirmed("", &queue, "Hello world!")?;
    receive(channel, &queue, "straight line")
}

fn receive(channel: &Channel, queue: &str, style: &str) -> Result<()> {
    if let Some(delivery) = channel.basic_consume(queue)?.next_timeout(Duration::from_secs(10))? {
        println!("{style}: {}", delivery.text()?);
        delivery.ack()?;
    }
    Ok(())
}
