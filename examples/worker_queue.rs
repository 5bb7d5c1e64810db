//! From "Asynchronous Message Processing Interface" of the AMPS Python client's guide: messages are copied to a queue that
//! several threads work on, straight from the background thread.
//!
//! The inline handler runs on the reader thread, in the reader's own buffer: `to_owned` copies. The guide's second way,
//! with less to write, is `Listen::workers`. The broker is that of `AMQP_URL`.

use std::{
    sync::{Arc, Mutex, mpsc},
    thread,
};

use leveret::{BorrowedDelivery, Connection, Delivery, Error, QueueDeclare};

const MESSAGES: u32 = 100;

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;
    let queue = channel.queue_declare(QueueDeclare::new("work").exclusive(true))?.queue;

    // The prefetch count bounds what waits in it.
    let (work, waiting) = mpsc::channel::<Delivery>();
    let waiting = Arc::new(Mutex::new(waiting));
    let consumer = channel.basic_consume_inline(&queue, move |delivery: &BorrowedDelivery<'_>| {
        work.send(delivery.to_owned())?;
        Ok(())
    })?;

    let (done, results) = mpsc::channel();
    for _ in 0..4 {
        let (waiting, done) = (waiting.clone(), done.clone());
        thread::spawn(move || {
            loop {
                let next = waiting.lock().map(|waiting| waiting.recv());
                let Ok(Ok(delivery)) = next else { return };
                let number = delivery.text().ok().and_then(|text| text.parse::<u32>().ok());
                let result = delivery.ack().map(|()| number.unwrap_or(0));
                if done.send(result).is_err() {
                    return;
                }
            }
        });
    }
    for number in 1..=MESSAGES {
        channel.basic_publish("", &queue, &number.to_string())?;
    }
    let sum: u32 = results.iter().take(MESSAGES as usize).sum::<Result<u32, Error>>()?;
    println!("{MESSAGES} messages, handled by 4 threads, with the sum {sum}");
    consumer.cancel()?;
    connection.close()
}
