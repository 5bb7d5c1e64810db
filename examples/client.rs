//! "Request/Response" of the Proton tutorial, the client: it sends four lines, one after the other, and prints what
//! the example `server` makes of them.
//!
//! Where the tutorial asks for a dynamic address, this client has a queue that the broker names. The broker is that of
//! `AMQP_URL`.

use std::time::Duration;

use leveret::{Connection, Error, rpc};

const REQUESTS: [&str; 4] = [
    "Twas brillig, and the slithy toves",
    "Did gire and gymble in the wabe.",
    "All mimsy were the borogroves,",
    "And the mome raths outgrabe.",
];

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let client = rpc::Client::open(&connection, "examples")?;
    for request in REQUESTS {
        let answer = client.call(request, Duration::from_secs(10))?;
        println!("{request} => {}", answer.text()?);
    }
    client.close()?;
    connection.close()
}
