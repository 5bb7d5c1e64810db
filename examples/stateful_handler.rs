//! From "Using an Instance Method as a Message Handler" of the AMPS Python client's guide: an object that keeps a state
//! is a handler as well, wherever one is taken.
//!
//! The broker is that of `AMQP_URL`.

use std::sync::mpsc;

use leveret::{Connection, Delivery, Error, Handler, HandlerError, QueueDeclare};

struct StatefulHandler {
    name: String,
    count: u32,
    handled: mpsc::Sender<()>,
}

impl Handler for StatefulHandler {
    fn handle(&mut self, delivery: &Delivery) -> Result<(), HandlerError> {
        self.count += 1;
        println!("{} (count: {}) got {}", self.name, self.count, delivery.text()?);
        Ok(self.handled.send(())?)
    }
}

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;
    let queue = channel.queue_declare(QueueDeclare::new("topic").exclusive(true))?.queue;
    for word in ["one", "two", "three"] {
        channel.basic_publish("", &queue, word)?;
    }

    let (handled, is_handled) = mpsc::channel();
    let handler = StatefulHandler { name: "An instance".into(), count: 0, handled };
    let listener = channel.basic_consume(&queue)?.listen(handler)?;

    // Three messages.
    let _ = (is_handled.recv(), is_handled.recv(), is_handled.recv());
    listener.stop();
    listener.wait()?;
    connection.close()
}
