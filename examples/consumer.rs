//! From "Consumer" of stompest's "Asynchronous Client": prints the count of each message. One that it cannot read lands in
//! the error queue, and the chain goes on.
//!
//! The broker is that of `AMQP_URL`.

use std::time::Duration;

use leveret::{
    Connection, Delivery, Destination, Error, FailurePolicy, Handler, HandlerError, Listen, QueueDeclare,
};

struct Consumer;

impl Handler for Consumer {
    fn handle(&mut self, delivery: &Delivery) -> Result<(), HandlerError> {
        let count =
            delivery.text()?.trim().strip_prefix("{\"count\":").and_then(|rest| rest.strip_suffix('}'));
        let count: u64 = count.ok_or("there is no count")?.trim().parse()?;
        println!("Received frame with count {count}");
        Ok(())
    }
}

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;
    for queue in ["testOut", "testConsumerError"] {
        channel.queue_declare(QueueDeclare::new(queue).exclusive(true))?;
    }
    for body in ["{\"count\": 1}", "{\"count\": 2}", "poison", "{\"count\": 3}", "more poison"] {
        channel.basic_publish("", "testOut", body)?;
    }

    channel.basic_qos(100)?; // at most so many in work
    let policy = FailurePolicy::DeadLetter(Destination::queue("testConsumerError"));
    let consumer = channel.basic_consume("testOut")?;
    let listener = consumer.listen(Listen::new(Consumer).on_failure(policy))?;

    let mut failed = channel.basic_consume("testConsumerError")?;
    let mut copies = 0;
    while copies < 2 && failed.next_timeout(Duration::from_secs(10))?.is_some() {
        copies += 1;
    }
    listener.stop();
    listener.wait()?;
    println!("{copies} messages in the error queue");
    connection.close()
}
