//! "Asynchronous Methods" of nucleon.amqp's "Synchronous/Asynchronous Model": transactions make asynchronous
//! methods synchronous.
//!
//! What is published takes effect with the commit, together or not at all. The broker is that of `AMQP_URL`.

use leveret::{Channel, Connection, Error, QueueDeclare};

fn count(channel: &Channel, queue: &str) -> Result<u32, Error> {
    Ok(channel.queue_declare_passive(queue)?.message_count)
}

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;
    channel.queue_declare(QueueDeclare::new("orders").exclusive(true))?;
    channel.queue_declare(QueueDeclare::new("invoices").exclusive(true))?;

    let transaction = channel.transaction()?;
    channel.basic_publish("", "orders", "order 7")?;
    channel.basic_publish("", "invoices", "invoice 7")?;
    println!("before the commit: {} orders", count(&channel, "orders")?);
    transaction.commit()?;
    println!("after it: {} orders, {} invoices", count(&channel, "orders")?, count(&channel, "invoices")?);

    {
        let _transaction = channel.transaction()?;
        channel.basic_publish("", "orders", "order 8")?;
        // Left without a commit: rolled back.
    }
    println!("after a rollback: {} orders", count(&channel, "orders")?);

    let transaction = channel.transaction()?;
    channel.basic_publish("", "orders", "order 9")?;
    channel.basic_publish("no-such-exchange", "status.update", "amqp is teh cool")?;
    match transaction.commit() {
        Ok(()) => println!("committed"),
        Err(error) => println!("not committed: {error}"),
    }
    channel.reopen()?;
    println!("at the end: {} orders", count(&channel, "orders")?);
    connection.close()
}
