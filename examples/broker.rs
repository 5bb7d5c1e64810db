//! The in-process broker as a program: any client, in any language, can use it until it is ended with ^C.
//!
//! Takes the address to listen on; without one it is `127.0.0.1:5672`, where clients look for a broker.

use leveret::{Error, broker::Broker};

fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:5672".into());
    let broker = Broker::listen(&*address)?;
    println!("listening on {}", broker.uri()?);
    // A broker lives as long as its value.
    loop {
        std::thread::park();
    }
}
