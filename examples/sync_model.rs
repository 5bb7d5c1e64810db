//! "Synchronous Methods" of nucleon.amqp's "Synchronous/Asynchronous Model": a call returns what the broker
//! answers, and an error comes back at the call that caused it.
//!
//! The broker is that of `AMQP_URL`.

use leveret::{Connection, Error, QueueDeclare};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;

    // Without a name: the broker makes one up, and it is part of the answer.
    let declared =
        connection.with_channel(|channel| channel.queue_declare(QueueDeclare::new("").exclusive(true)))?;
    println!("the broker named the queue {}", declared.queue);

    let bound = connection.with_channel(|channel| {
        channel.queue_bind(("nosuchqueue", "nosuchexchange", "key"))?;
        println!("this line is not reached");
        Ok::<_, Error>(())
    });
    if let Err(error) = bound {
        println!("{error}");
    }
    connection.close()
}
