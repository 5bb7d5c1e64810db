//! The virtual host: the operations that a session may call.

use std::time::Duration;

use super::*;
use crate::protocol::value::FieldTable;

/// A virtual host with everything in it.
#[derive(Debug)]
pub(crate) struct Vhost {
    settings: Settings,
    effects: Vec<Effect>,
    now: Duration,
}

type Result<T> = std::result::Result<T, Refusal>;

/// Life of the virtual host, its sessions and channels.
impl Vhost {
    /// A virtual host with the predeclared exchanges, and nothing else.
    pub(crate) fn new(settings: Settings) -> Vhost {
        Vhost { settings, effects: Vec::new(), now: Duration::ZERO }
    }

    /// Brings the virtual clock forward to `now`; expires what is due.
    pub(crate) fn tick(&mut self, now: Duration) {
        self.now = now;
    }

    /// When [`tick`](Vhost::tick) should be called again, if nothing else happens before.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        None
    }

    /// What is to be sent, in order.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// A broker that stops and starts again: what is not durable is lost, and so are all sessions.
    pub(crate) fn restart(&mut self) {}

    /// The bytes of all messages that are held, each counted once.
    pub(crate) fn memory(&self) -> usize {
        0
    }

    /// A connection was opened by `user` (for `user-id`).
    pub(crate) fn open_session(&mut self, session: SessionId, user: &str) {
        let _ = (session, user);
    }

    /// The connection is gone: its channels, exclusive queues and consumers go, what was unacked is requeued.
    pub(crate) fn close_session(&mut self, session: SessionId) {
        let _ = session;
    }

    /// A session that cannot be written to gets no deliveries until it can.
    pub(crate) fn set_writable(&mut self, session: SessionId, writable: bool) {
        let _ = (session, writable);
    }

    /// The channel must not exist.
    pub(crate) fn open_channel(&mut self, channel: ChannelId) {
        let _ = channel;
    }

    /// The channel's consumers go, what was unacked is requeued.
    pub(crate) fn close_channel(&mut self, channel: ChannelId) {
        let _ = channel;
    }
}

/// Exchanges.
impl Vhost {
    pub(crate) fn declare_exchange(&mut self, name: &[u8], options: &ExchangeOptions) -> Result<()> {
        let _ = (name, options);
        Ok(())
    }

    /// Passive declaration.
    pub(crate) fn check_exchange(&mut self, name: &[u8]) -> Result<()> {
        let _ = name;
        Ok(())
    }

    pub(crate) fn delete_exchange(&mut self, name: &[u8], if_unused: bool) -> Result<()> {
        let _ = (name, if_unused);
        Ok(())
    }

    pub(crate) fn bind_exchange(
        &mut self,
        destination: &[u8],
        source: &[u8],
        routing_key: &[u8],
        arguments: FieldTable,
    ) -> Result<()> {
        let _ = (destination, source, routing_key, arguments);
        Ok(())
    }

    pub(crate) fn unbind_exchange(
        &mut self,
        destination: &[u8],
        source: &[u8],
        routing_key: &[u8],
        arguments: &FieldTable,
    ) -> Result<()> {
        let _ = (destination, source, routing_key, arguments);
        Ok(())
    }
}

/// Queues. An empty name stands for the queue that was declared last on the channel.
impl Vhost {
    /// The name that an empty one stands for: what permissions are to be checked for. Declarations have
    /// [`new_queue_name`](Vhost::new_queue_name).
    pub(crate) fn queue_name(&self, channel: ChannelId, name: &[u8]) -> Result<Name> {
        let _ = channel;
        Ok(name.into())
    }

    /// A name for a queue that is declared without one: `amq.gen-` and 22 letters.
    pub(crate) fn new_queue_name(&mut self) -> Name {
        "amq.gen-".into()
    }

    pub(crate) fn declare_queue(
        &mut self,
        channel: ChannelId,
        name: &[u8],
        options: &QueueOptions,
    ) -> Result<QueueStatus> {
        let _ = (channel, options);
        Ok(QueueStatus { name: name.into(), messages: 0, consumers: 0 })
    }

    /// Passive declaration.
    pub(crate) fn check_queue(&mut self, channel: ChannelId, name: &[u8]) -> Result<QueueStatus> {
        let _ = channel;
        Ok(QueueStatus { name: name.into(), messages: 0, consumers: 0 })
    }

    /// Gives the number of messages that went with it; zero when there is no such queue.
    pub(crate) fn delete_queue(
        &mut self,
        channel: ChannelId,
        name: &[u8],
        if_unused: bool,
        if_empty: bool,
    ) -> Result<u32> {
        let _ = (channel, name, if_unused, if_empty);
        Ok(0)
    }

    /// Gives the number of messages that were removed.
    pub(crate) fn purge_queue(&mut self, channel: ChannelId, name: &[u8]) -> Result<u32> {
        let _ = (channel, name);
        Ok(0)
    }

    /// With both names empty the routing key too stands for the queue that was declared last.
    pub(crate) fn bind_queue(
        &mut self,
        channel: ChannelId,
        queue: &[u8],
        exchange: &[u8],
        routing_key: &[u8],
        arguments: FieldTable,
    ) -> Result<()> {
        let _ = (channel, queue, exchange, routing_key, arguments);
        Ok(())
    }

    pub(crate) fn unbind_queue(
        &mut self,
        channel: ChannelId,
        queue: &[u8],
        exchange: &[u8],
        routing_key: &[u8],
        arguments: &FieldTable,
    ) -> Result<()> {
        let _ = (channel, queue, exchange, routing_key, arguments);
        Ok(())
    }
}

/// Messages, as a channel sees them.
impl Vhost {
    /// Routes a message, or keeps it for the commit. Confirms and returns are effects.
    pub(crate) fn publish(&mut self, channel: ChannelId, publish: Publish<'_>) -> Result<()> {
        let _ = (channel, publish);
        Ok(())
    }

    /// Gives the consumer's tag.
    pub(crate) fn consume(&mut self, channel: ChannelId, options: ConsumeOptions<'_>) -> Result<Name> {
        let _ = channel;
        Ok(options.tag.into())
    }

    /// An unknown tag is no error. What was delivered stays unacked.
    pub(crate) fn cancel(&mut self, channel: ChannelId, tag: &[u8]) -> Result<()> {
        let _ = (channel, tag);
        Ok(())
    }

    pub(crate) fn get(&mut self, channel: ChannelId, queue: &[u8], no_ack: bool) -> Result<Option<Got>> {
        let _ = (channel, queue, no_ack);
        Ok(None)
    }

    pub(crate) fn ack(&mut self, channel: ChannelId, delivery_tag: u64, multiple: bool) -> Result<()> {
        let _ = (channel, delivery_tag, multiple);
        Ok(())
    }

    /// `basic.nack`, and `basic.reject` with `multiple` false.
    pub(crate) fn nack(
        &mut self,
        channel: ChannelId,
        delivery_tag: u64,
        multiple: bool,
        requeue: bool,
    ) -> Result<()> {
        let _ = (channel, delivery_tag, multiple, requeue);
        Ok(())
    }

    /// `basic.recover` and `basic.recover-async`.
    pub(crate) fn recover(&mut self, channel: ChannelId, requeue: bool) -> Result<()> {
        let _ = (channel, requeue);
        Ok(())
    }

    pub(crate) fn qos(&mut self, channel: ChannelId, size: u32, count: u16, global: bool) -> Result<()> {
        let _ = (channel, size, count, global);
        Ok(())
    }

    /// `channel.flow`.
    pub(crate) fn flow(&mut self, channel: ChannelId, active: bool) -> Result<()> {
        let _ = (channel, active);
        Ok(())
    }

    pub(crate) fn select_confirms(&mut self, channel: ChannelId) -> Result<()> {
        let _ = channel;
        Ok(())
    }

    pub(crate) fn select_transactions(&mut self, channel: ChannelId) -> Result<()> {
        let _ = channel;
        Ok(())
    }

    /// Effects of a commit are to be sent before its answer.
    pub(crate) fn commit(&mut self, channel: ChannelId) -> Result<()> {
        let _ = channel;
        Ok(())
    }

    pub(crate) fn rollback(&mut self, channel: ChannelId) -> Result<()> {
        let _ = channel;
        Ok(())
    }
}

/// What tests may look at and do, beside what a client can.
impl Vhost {
    /// Routes a message that no channel published. Says whether any queue took it.
    pub(crate) fn inject(&mut self, publish: Publish<'_>) -> Result<bool> {
        let _ = publish;
        Ok(false)
    }

    /// Cancels a consumer as if its queue had gone: gives whether there was one.
    pub(crate) fn cancel_by_server(&mut self, channel: ChannelId, tag: &[u8]) -> bool {
        let _ = (channel, tag);
        false
    }
}
