//! Send and receive over TLS, which needs nothing but `amqps` in the URI.
//!
//! From "Using SSL" of the AMPS Python client's advanced topics. The broker is that of `AMQPS_URL`, for example
//! `amqps://user:password@mq.example/%2F?cacertfile=/etc/app/ca.pem`; without `cacertfile` the authorities of the
//! operating system count.

use leveret::{Connection, Error};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQPS_URL").unwrap_or_else(|_| "amqps://localhost".into());
    let connection = match Connection::open(url) {
        Ok(connection) => connection,
        Err(Error::Tls(failure)) => {
            println!("not the broker that it should be: {}", failure.problem);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let channel = connection.channel()?;

    let queue = channel.queue_declare("encrypted")?.queue;
    channel.basic_publish("", &queue, "nobody reads this on its way")?;
    if let Some(delivery) = channel.basic_get(&queue)? {
        println!("{}", delivery.text()?);
        delivery.ack()?;
    }

    channel.queue_delete(&queue)?;
    connection.close()
}
