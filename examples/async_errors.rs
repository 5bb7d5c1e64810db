//! "Asynchronous Methods" of nucleon.amqp's "Synchronous/Asynchronous Model": publishing does not wait for the
//! broker, so an error comes back later, from the next call on the channel or at the end of its scope.
//!
//! The broker is that of `AMQP_URL`.

use std::{thread, time::Duration};

use leveret::{Connection, Error};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;

    let channel = connection.channel()?;
    channel.basic_publish("no-such-exchange", "status.update", "AMQP is great")?;
    println!("published");
    // The broker closes the channel for it, in its own time.
    while channel.is_open() {
        thread::sleep(Duration::from_millis(1));
    }
    match channel.basic_publish("amq.topic", "status.update", "AMQP is great") {
        Ok(()) => println!("this line is not reached"),
        Err(error) => println!("the next publish: {error}"),
    }

    // Closing is synchronous, so at the latest the end of the scope knows.
    let result = connection.with_channel(|channel| {
        channel.basic_publish("no-such-exchange", "status.update", "AMQP is great")?;
        println!("published again");
        Ok::<_, Error>(())
    });
    match result {
        Ok(()) => println!("this line is not reached"),
        Err(error) => println!("the end of the scope: {error}"),
    }
    connection.close()
}
