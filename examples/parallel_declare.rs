//! "Synchronous Methods" of nucleon.amqp's "Synchronous/Asynchronous Model": several calls at once, each in a
//! thread of its own, on one shared channel.
//!
//! The broker is that of `AMQP_URL`.

use std::{panic, thread};

use leveret::{Connection, Error, QueueDeclare};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;

    let declared = thread::scope(|scope| {
        let threads = ["foo", "bar", "baz"].map(|name| {
            let channel = &channel;
            scope.spawn(move || channel.queue_declare(QueueDeclare::new(name).exclusive(true)))
        });
        threads.map(|thread| thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked)))
    });
    for declared in declared {
        println!("declared {}", declared?.queue);
    }

    connection.close()
}
