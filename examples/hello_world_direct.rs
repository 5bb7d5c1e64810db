//! "Hello World, Direct!" of the Proton tutorial: a sender and a receiver that talk without a broker between them.
//!
//! Where the tutorial listens on a port, this listener is reached within the process; `listen` instead of `start`
//! takes connections of any client.

use leveret::{
    Error,
    direct::{Published, Serve},
};

fn main() -> Result<(), Error> {
    // The receiver.
    let listener = Serve::new()
        .messages(|message: &Published| {
            println!("{}", message.text()?);
            Ok(())
        })
        .start()?;

    // The sender: an ordinary connection.
    let connection = listener.connect()?;
    let channel = connection.channel()?;
    channel.confirm_select()?;
    channel.publish_confirmed("", "examples", "Hello World!")?; // it was printed
    channel.close()?;
    connection.close()
}
