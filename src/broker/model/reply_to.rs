//! Direct replies: `amq.rabbitmq.reply-to`, a queue that is none.

use super::{
    ChannelId, Effect, Name, QueueStatus, Refusal, channel::ReplyConsumer, message::Message, vhost::Vhost,
};

impl Vhost {
    pub(super) fn consume_replies(
        &mut self,
        channel: ChannelId,
        tag: Name,
        no_ack: bool,
    ) -> Result<Name, Refusal> {
        if !no_ack {
            return Err(Refusal::precondition("reply consumer cannot acknowledge"));
        }
        if self.channel(channel)?.reply_consumer.is_some() {
            return Err(Refusal::precondition("reply consumer already set"));
        }
        let address = Name::from(format!("amq.rabbitmq.reply-to.{}.{}==", self.unique(), self.unique()));
        self.reply_addresses.insert(address.clone(), channel);
        self.channel(channel)?.reply_consumer = Some(ReplyConsumer { tag: tag.clone(), address });
        Ok(tag)
    }

    /// Declaring an address says whether somebody still waits there.
    pub(super) fn check_reply_address(
        &mut self,
        channel: ChannelId,
        name: &Name,
    ) -> Result<QueueStatus, Refusal> {
        if **name != *b"amq.rabbitmq.reply-to" && !self.reply_addresses.contains_key(name) {
            return Err(self.no_queue(name));
        }
        self.channel(channel)?.last_queue = Some(name.clone());
        Ok(QueueStatus { name: name.clone(), messages: 0, consumers: 1 })
    }

    /// A reply whose receiver is gone is lost.
    pub(super) fn reply(&mut self, address: &Name, message: &Message) {
        let Some(&channel) = self.reply_addresses.get(address) else { return };
        let Some(opened) = self.channels.get_mut(&channel) else { return };
        let Some(consumer) = &opened.reply_consumer else { return };
        let consumer_tag = consumer.tag.clone();
        // It is not counted: there is nothing to settle.
        let delivery_tag = opened.tag_to_come();
        let payload = message.payload();
        self.effects.push(Effect::Deliver {
            channel,
            consumer_tag,
            delivery_tag,
            redelivered: false,
            payload,
        });
    }
}
