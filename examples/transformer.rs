//! From "Transformer" of stompest's "Asynchronous Client": takes messages with a count, adds one, and passes them on. One
//! that it cannot read lands in the error queue, with the reason, and the chain goes on.
//!
//! The new message is confirmed before the old one is acked, so none is lost. The broker is that of `AMQP_URL`.

use std::time::Duration;

use leveret::{
    Connection, Delivery, Destination, Error, FailurePolicy, HandlerError, Listen, Publish, QueueDeclare,
};

/// `{"count": 7}` becomes `{"count": 8}`.
fn add_one(text: &str) -> Result<String, HandlerError> {
    let count = text.trim().strip_prefix("{\"count\":").and_then(|rest| rest.strip_suffix('}'));
    let count: u64 = count.ok_or("there is no count")?.trim().parse()?;
    Ok(format!("{{\"count\": {}}}", count + 1))
}

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url)?;
    let channel = connection.channel()?;
    for queue in ["testIn", "testOut", "testTransformerError"] {
        channel.queue_declare(QueueDeclare::new(queue).exclusive(true))?;
    }
    for body in ["{\"count\": 0}", "poison", "{\"count\": 41}"] {
        channel.basic_publish("", "testIn", body)?;
    }

    channel.basic_qos(100)?; // at most so many in work
    let out = connection.channel()?;
    out.confirm_select()?;
    let transform = move |delivery: &Delivery| {
        let transformed = add_one(delivery.text()?)?;
        Ok(out.publish_confirmed("", "testOut", Publish::new(&transformed).mandatory(true))?)
    };
    let policy = FailurePolicy::DeadLetter(Destination::queue("testTransformerError"));
    let consumer = channel.basic_consume("testIn")?;
    let listener = consumer.listen(Listen::new(transform).on_failure(policy))?;

    let mut results = channel.basic_consume("testOut")?;
    let mut failed = channel.basic_consume("testTransformerError")?;
    for _ in 0..2 {
        if let Some(result) = results.next_timeout(Duration::from_secs(10))? {
            println!("testOut: {}", result.text()?);
        }
    }
    if let Some(copy) = failed.next_timeout(Duration::from_secs(10))? {
        let reason =
            copy.headers()?.get("message-failed").and_then(|value| value.as_str()).map(str::to_owned);
        println!("testTransformerError: {} ({})", copy.text()?, reason.unwrap_or_default());
    }
    listener.stop();
    listener.wait()?;
    connection.close()
}
