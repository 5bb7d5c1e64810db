//! "Transport Filtering" of the AMPS Python client's advanced topics: a filter prints the bytes that are sent and
//! received, plaintext also when the connection is encrypted.
//!
//! A second one, of whole frames, prints what they mean. The broker is that of `AMQP_URL`, which may be `amqps:`.

use leveret::{Connection, Direction, Error};

fn printing_filter(direction: Direction, bytes: &mut [u8]) {
    // `OUTGOING` or `INCOMING`.
    println!("{direction} ---> {}", bytes.escape_ascii());
}

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;

    connection.set_byte_filter(printing_filter);
    channel.queue_declare("filtered")?;
    connection.remove_byte_filter();

    connection.set_frame_tap(|frame| println!("{frame}"));
    channel.basic_publish("", "filtered", "Hello World!")?;
    channel.queue_delete("filtered")?;
    connection.remove_frame_tap();

    connection.close()
}
