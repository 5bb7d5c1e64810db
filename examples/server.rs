//! "Request/Response" of the Proton tutorial, the server: it answers every request with its text in capitals. Run it
//! beside the example `client`.
//!
//! The broker is that of `AMQP_URL`.

use leveret::{Connection, Delivery, Error, QueueDeclare, rpc};

const QUEUE: &str = "examples";

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    // It goes when its last server has gone.
    let queue = QueueDeclare::new(QUEUE).auto_delete(true);
    connection.with_channel(|channel| channel.queue_declare(queue))?;

    let server =
        rpc::Server::serve(&connection, QUEUE, |request: &Delivery| Ok(request.text()?.to_uppercase()))?;
    println!("serving {QUEUE}");
    // For ever, or until the connection is lost.
    server.wait()
}
