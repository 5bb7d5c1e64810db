//! "Error Handling" of nucleon.amqp's "Synchronous/Asynchronous Model": `basic.return`, the pseudo-error of a
//! mandatory message that no queue takes.
//!
//! It comes back after the publish has succeeded. The broker is that of `AMQP_URL`.

use leveret::{BasicProperties, Connection, Error, Publish};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;

    // Asked for: after the barrier everything has come back that does.
    let channel = connection.channel()?;
    let properties = BasicProperties::new().message_id("update-1");
    let message = Publish::new("amqp is teh cool").properties(&properties).mandatory(true);
    channel.basic_publish("", "no-such-queue", message)?;
    channel.flow(true)?;
    for returned in channel.returns() {
        println!("{returned}");
        let id = returned.properties()?.message_id.unwrap_or_default();
        println!("{id}: {}", String::from_utf8_lossy(&returned.body));
    }
    channel.close()?;

    // Not asked for: an error where the scope ends.
    let left = connection.with_channel(|channel| {
        channel.basic_publish("", "no-such-queue", Publish::new("and this?").mandatory(true))
    });
    match left {
        Err(Error::Returned(returned)) => println!("the end of the scope: {returned}"),
        other => println!("{other:?}"),
    }
    connection.close()
}
