//! The hello-world publisher: connect, declare, publish, close.
use leveret::Connection;

fn main() -> leveret::Result<()> {
    let uri = std::env::args().nth(1).unwrap_or("amqp://guest:guest@127.0.0.1:5672".into());
    let connection = Connection::open(uri.as_str())?;
    let channel = connection.channel()?;
    channel.queue_declare("hello")?;
    channel.basic_publish("", "hello", "Hello World!")?;
    channel.close()?;
    connection.close()
}
