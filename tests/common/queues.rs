//! What a queue holds. RabbitMQ counts without waiting for messages and acks that are on their way from a
//! channel to a queue, so a count is asked for until it is right.

use leveret::Channel;

use super::peer::eventually;

/// Waits until a queue has so many messages to deliver.
pub fn holds(channel: &Channel, queue: &str, messages: u32) {
    let mut found = None;
    let right = || {
        found = Some(channel.queue_declare_passive(queue).expect("the queue").message_count);
        found == Some(messages)
    };
    eventually(&format!("{queue} does not come to hold {messages} messages"), right);
}

/// A queue has so many messages and gets no other: not even what was published on this channel before. A
/// message of our own goes the same way behind it, and is taken out again.
pub fn stays_at(channel: &Channel, queue: &str, messages: u32) {
    channel.basic_publish("", queue, "the last one").expect("accepted");
    holds(channel, queue, messages + 1);
    let mut kept = Vec::new();
    loop {
        let message = channel.basic_get(queue).expect("an answer").expect("the last one");
        if message.body() == b"the last one" {
            message.ack().expect("accepted");
            break;
        }
        kept.push(message);
    }
    assert_eq!(kept.len() as u32, messages, "{queue}");
    for message in kept {
        message.nack(leveret::Requeue::Yes).expect("accepted");
    }
    holds(channel, queue, messages);
}
