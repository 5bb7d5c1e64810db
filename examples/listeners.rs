//! From "class stompest.async.listener.Listener" of stompest's "Asynchronous Client": an event listener is told what
//! happens on the connection, and an exception listener what handlers fail with.
//!
//! The broker is that of `AMQP_URL`.

use std::{sync::mpsc, time::Duration};

use leveret::{Connection, Consume, Delivery, Error, Event, FailurePolicy, Listen, QueueDeclare};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let (line, lines) = mpsc::channel::<String>();
    let said = line.clone();
    connection.on_event(move |event| {
        let text = match event {
            Event::Connected => "connected".into(),
            Event::HandlerFailed { failure, .. } => format!("handler failed: {}", failure.reason),
            Event::ConsumerCancelled { .. } => "consumer cancelled by the broker".into(),
            Event::Closed { cause } => format!("closed: {cause}"),
            _ => return,
        };
        let _ = said.send(format!("event: {text}"));
    })?;

    let next = || lines.recv_timeout(Duration::from_secs(10)).unwrap_or_default();
    println!("{}", next());

    let channel = connection.channel()?;
    let queue = channel.queue_declare(QueueDeclare::new("").exclusive(true))?.queue;
    let handler = |delivery: &Delivery| Err(format!("cannot do {}", delivery.text()?).into());
    let listen = Listen::new(handler)
        .on_failure(FailurePolicy::Reject)
        .on_exception(move |failed| drop(line.send(format!("exception: {}", failed.failure.reason))));
    let consumer = channel.basic_consume(Consume::new(&queue).consumer_tag("worker"))?;
    let listener = consumer.listen(listen)?;

    channel.basic_publish("", &queue, "this")?;
    // Each of the two listeners has a thread of its own.
    let mut both = [next(), next()];
    both.sort();
    println!("{}", both.join("\n"));

    channel.queue_delete(&queue)?;
    println!("{}", next());
    if let Err(error) = listener.wait() {
        println!("the listener: {error}");
    }
    connection.close()?;
    println!("{}", next());
    Ok(())
}
