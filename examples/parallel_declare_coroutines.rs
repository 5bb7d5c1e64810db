//! "Synchronous Methods" of nucleon.amqp's "Synchronous/Asynchronous Model": several calls at once, each in a
//! coroutine of its own, on one shared channel.
//!
//! The broker is that of `AMQP_URL`.

use std::panic;

use leveret::{Connection, Error, QueueDeclare};

fn main() -> Result<(), Error> {
    // Worker threads that may run anywhere: calls are answered much sooner.
    may::config().set_worker_pin(false);

    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;

    let coroutines = ["foo", "bar", "baz"].map(|name| {
        let channel = channel.clone();
        may::go!(move || channel.queue_declare(QueueDeclare::new(name).exclusive(true)))
    });
    for coroutine in coroutines {
        let declared = coroutine.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked));
        println!("declared {}", declared?.queue);
    }

    connection.close()
}
