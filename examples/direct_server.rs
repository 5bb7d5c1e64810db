//! From "Hello World, Direct!" and "Request/Response" of the Proton tutorial: a server without a broker. It answers every
//! request with its text in capitals. Run it beside the example `client`.
//!
//! Takes the address to listen on; without one it is `127.0.0.1:8888`. The client's `AMQP_URL` is what it prints first.

use leveret::{
    Error,
    direct::{Published, Serve},
};

fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = Serve::new()
        .messages(|request: &Published| {
            request.reply(request.text()?.to_uppercase())?;
            Ok(())
        })
        .listen(&*address)?;
    println!("listening on {}", listener.uri()?);
    // A listener lives as long as its value.
    loop {
        std::thread::park();
    }
}
