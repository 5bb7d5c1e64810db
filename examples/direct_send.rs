//! From "Hello World, Direct!" and "Send" of the Proton tutorial: sends 100 messages to the example `recv`, or to any
//! client that consumes, without a broker between them.
//!
//! Takes the address to listen on; without one it is `127.0.0.1:8888`. The receiver's `AMQP_URL` is what it prints first.

use std::{sync::mpsc, time::Duration};

use leveret::{
    Error,
    direct::{Consumer, Serve, Settled},
};

const LIMIT: Duration = Duration::from_secs(30);

fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let (sender, consumers) = mpsc::channel();
    let listener =
        Serve::new().consumers(move |consumer: Consumer| Ok(sender.send(consumer)?)).listen(&*address)?;
    println!("listening on {}", listener.uri()?);

    // The receiver's prefetch decides how many are on their way at once.
    if let Ok(consumer) = consumers.recv() {
        let sent: Vec<_> =
            (1..=100).map(|number| consumer.send(format!("sequence {number}"))).collect::<Result<_, _>>()?;
        let mut acked = 0;
        for message in &sent {
            acked += usize::from(message.wait(LIMIT)? == Settled::Acked);
        }
        println!("{acked} of {} messages acked", sent.len());
    }
    listener.wait_left(LIMIT)
}
