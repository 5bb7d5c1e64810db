//! From "Asynchronous Message Processing Interface" of the AMPS Python client's guide: a message handler is called for
//! each message, on a thread of the listener's.
//!
//! The broker is that of `AMQP_URL`.

use std::sync::mpsc;

use leveret::{Connection, Delivery, Error, QueueDeclare};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;
    let queue = channel.queue_declare(QueueDeclare::new("messages").exclusive(true))?.queue;

    let (done, is_done) = mpsc::channel();
    let on_message_printer = move |delivery: &Delivery| {
        println!("{}", delivery.text()?);
        if delivery.body() == b"message 3" {
            done.send(())?;
        }
        Ok(()) // acks it
    };
    let listener = channel.basic_consume(&queue)?.listen(on_message_printer)?;

    // The main thread goes on.
    for number in 1..=3 {
        channel.basic_publish("", &queue, &format!("message {number}"))?;
    }
    let _ = is_done.recv();
    listener.stop();
    listener.wait()?; // says why it ended, if not because of `stop`
    connection.close()
}
