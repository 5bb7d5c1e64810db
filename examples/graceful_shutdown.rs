//! The graceful disconnect of stompest's "Asynchronous Client": handlers that are at work complete.
//!
//! Five handlers run at once, and the fifth message asks for the shutdown; all five are acked. The broker is that of
//! `AMQP_URL`.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use leveret::{Connection, Delivery, Listen, Result};

fn main() -> Result<()> {
    let url = std::env::var("AMQP_URL").unwrap_or("amqp://localhost".into());
    let connection = Connection::open(url.as_str())?;
    let channel = connection.channel()?;
    channel.queue_declare("graceful-shutdown")?;
    channel.queue_purge("graceful-shutdown")?;
    for number in 1..=5 {
        channel.basic_publish("", "graceful-shutdown", &format!("message {number}"))?;
    }

    let handled = Arc::new(AtomicU32::new(0));
    let (count, closing) = (handled.clone(), connection.clone());
    let all_at_work = Arc::new(Barrier::new(5));
    let handler = move |delivery: &Delivery| {
        all_at_work.wait();
        if delivery.text()? == "message 5" {
            closing.request_shutdown(Duration::from_secs(10))?;
        }
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let _listener = channel.basic_consume("graceful-shutdown")?.listen(Listen::new(handler).workers(5))?;

    println!("{}", connection.wait_closed());
    println!("handled: {}", handled.load(Ordering::SeqCst));

    let connection = Connection::open(url.as_str())?;
    let channel = connection.channel()?;
    println!("left in the queue: {}", channel.queue_delete("graceful-shutdown")?);
    Ok(())
}
