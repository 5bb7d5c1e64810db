//! From "Hello World, Direct!" and "Recv" of the Proton tutorial: takes 100 messages from the example `send`, or from any
//! client that publishes, without a broker between them.
//!
//! Takes the address to listen on; without one it is `127.0.0.1:8888`. The senders' `AMQP_URL` is what it prints first.

use std::{sync::mpsc, time::Duration};

use leveret::{
    Error,
    direct::{Published, Serve},
};

fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let (sender, messages) = mpsc::channel();
    let listener = Serve::new()
        .messages(move |message: &Published| {
            // Once this has returned `Ok` the message counts as taken, and is confirmed.
            sender.send(message.text()?.to_owned())?;
            Ok(())
        })
        .listen(&*address)?;
    println!("listening on {}", listener.uri()?);

    for message in messages.iter().take(100) {
        println!("{message}");
    }
    // The sender still wants its last confirms, and to say goodbye.
    listener.wait_left(Duration::from_secs(10))
}
