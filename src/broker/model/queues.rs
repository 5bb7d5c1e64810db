//! Declaring, deleting, purging and binding queues.

use super::{
    ChannelId, Effect, Name, QueueOptions, QueueStatus, Refusal, SessionId,
    arguments::{QueueType, check_equivalence, check_queue_arguments, check_stream_sizes, inequivalent},
    exchange::Destination,
    exchanges::{check_name, stripped},
    message::sorted,
    queue::Queue,
    values::type_name,
    vhost::Vhost,
};
use crate::protocol::value::{FieldTable, FieldValue};

type Result<T> = std::result::Result<T, Refusal>;

/// Queues. An empty name stands for the queue that was declared last on the channel.
impl Vhost {
    /// The name that an empty one stands for: what permissions are to be checked for. Declarations have
    /// [`new_queue_name`](Vhost::new_queue_name).
    pub(crate) fn queue_name(&self, channel: ChannelId, name: &[u8]) -> Result<Name> {
        if !name.is_empty() {
            return Ok(name.into());
        }
        let last = self.channels.get(&channel).and_then(|channel| channel.last_queue.clone());
        last.ok_or_else(|| Refusal::not_found("no previously declared queue"))
    }

    /// A name for a queue that is declared without one: `amq.gen-` and 22 letters.
    pub(crate) fn new_queue_name(&mut self) -> Name {
        format!("amq.gen-{}", self.unique()).into()
    }

    /// An empty name asks for one. A name that [`new_queue_name`](Vhost::new_queue_name) has made is taken
    /// only while no such queue exists.
    pub(crate) fn declare_queue(
        &mut self,
        channel: ChannelId,
        name: &[u8],
        options: &QueueOptions,
    ) -> Result<QueueStatus> {
        self.channel(channel)?;
        let name = stripped(name);
        if name.starts_with(b"amq.rabbitmq.reply-to") {
            return self.check_reply_address(channel, &name);
        }
        let kind = QueueType::of(&options.arguments);
        let name = if name.is_empty() {
            if kind != QueueType::Classic {
                return Err(Refusal::precondition(format!(
                    "Cannot declare a server-named queue for type {}",
                    kind.module()
                )));
            }
            self.new_queue_name()
        } else {
            check_name("queue", &name)?;
            name
        };
        let owner = options.exclusive.then_some(channel.session);
        if let Some(existing) = self.queues.get(&name) {
            self.check_same_queue(&name, existing, options, owner)?;
            self.touch(&name);
        } else {
            self.check_new_queue(&name, options)?;
            let id = self.next_id();
            let queue = Queue::new(id, options, owner, self.now, self.emulate());
            self.queues.insert(name.clone(), queue);
            if let Some(session) = owner.and_then(|owner| self.sessions.get_mut(&owner)) {
                session.queues.insert(name.clone());
            }
            self.schedule(&name);
        }
        self.remember_queue(channel, &name)
    }

    fn remember_queue(&mut self, channel: ChannelId, name: &Name) -> Result<QueueStatus> {
        self.channel(channel)?.last_queue = Some(name.clone());
        Ok(self.status(name))
    }

    fn check_same_queue(
        &self,
        name: &Name,
        existing: &Queue,
        options: &QueueOptions,
        owner: Option<SessionId>,
    ) -> Result<()> {
        if existing.owner != owner {
            return Err(self.locked(name));
        }
        let what = self.queue_text(name);
        let durable = options.durable && !options.exclusive;
        let compared = [
            ("durable", durable, existing.durable),
            ("auto_delete", options.auto_delete, existing.auto_delete),
        ];
        for (field, received, current) in compared {
            if received != current {
                return Err(inequivalent(field, &what, &format!("'{received}'"), &format!("'{current}'")));
            }
        }
        let (old, new) = (&existing.arguments, &options.arguments);
        check_equivalence(&what, old, new, Some(existing.kind), self.emulate())
    }

    fn check_new_queue(&self, name: &Name, options: &QueueOptions) -> Result<()> {
        let what = self.queue_text(name);
        let arguments = &options.arguments;
        match arguments.get("x-dead-letter-exchange") {
            None | Some(FieldValue::LongString(_)) => {}
            Some(other) => {
                return Err(Refusal::precondition(format!(
                    "invalid type '{}' for arg 'x-dead-letter-exchange' in {what}",
                    type_name(other)
                )));
            }
        }
        check_queue_arguments(&what, arguments, self.emulate())?;
        if QueueType::of(arguments) == QueueType::Classic {
            return Ok(());
        }
        let wrong = [
            ("auto-delete", options.auto_delete),
            ("exclusive-owner", options.exclusive),
            ("non-durable", !options.durable),
        ];
        match wrong.into_iter().find(|&(_, is_wrong)| is_wrong) {
            Some((property, _)) => {
                Err(Refusal::precondition(format!("invalid property '{property}' for {what}")))
            }
            None if QueueType::of(arguments) == QueueType::Stream => {
                check_stream_sizes(arguments, self.emulate())
            }
            None => Ok(()),
        }
    }

    pub(crate) fn has_queue(&self, name: &[u8]) -> bool {
        self.queues.contains_key(name)
    }

    /// Passive declaration.
    pub(crate) fn check_queue(&mut self, channel: ChannelId, name: &[u8]) -> Result<QueueStatus> {
        let name = stripped(name);
        if name.starts_with(b"amq.rabbitmq.reply-to") {
            return self.check_reply_address(channel, &name);
        }
        self.accessible(channel, &name)?;
        self.touch(&name);
        self.remember_queue(channel, &name)
    }

    /// Gives the number of messages that went with it; zero when there is no such queue.
    pub(crate) fn delete_queue(
        &mut self,
        channel: ChannelId,
        name: &[u8],
        if_unused: bool,
        if_empty: bool,
    ) -> Result<u32> {
        let name = stripped(&self.queue_name(channel, name)?);
        if !self.queues.contains_key(&name) {
            return Ok(0);
        }
        let queue = self.accessible(channel, &name)?;
        let (is_empty, is_unused, kind) = (queue.messages() == 0, queue.consumers.is_empty(), queue.kind);
        let what = self.queue_text(&name);
        if kind == QueueType::Quorum && (if_unused || if_empty) {
            let flag = if if_unused { "if-unused" } else { "if-empty" };
            return Err(Refusal::not_implemented(format!(
                "cannot delete {what}. queue.delete operations with {flag} flag set are not supported by quorum queues"
            )));
        }
        let heeds_conditions = kind != QueueType::Stream;
        if heeds_conditions && if_empty && !is_empty {
            return Err(Refusal::precondition(format!("{what} not empty")));
        }
        if heeds_conditions && if_unused && !is_unused {
            return Err(Refusal::precondition(format!("{what} in use")));
        }
        let messages = self.status(&name).messages;
        self.remove_queue(&name);
        Ok(messages)
    }

    /// Gives the number of messages that were removed.
    pub(crate) fn purge_queue(&mut self, channel: ChannelId, name: &[u8]) -> Result<u32> {
        let name = self.queue_name(channel, name)?;
        let what = self.queue_text(&name);
        let queue = self.accessible(channel, &name)?;
        if queue.stream.is_some() {
            let text = format!("queue.purge not supported by stream queues {what}");
            return Err(Refusal::not_implemented(text));
        }
        let removed = queue.ready.clear();
        queue.watch_limit();
        Ok(u32::try_from(removed).unwrap_or(u32::MAX))
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
        let (queue, exchange, key) = self.binding_names(channel, queue, exchange, routing_key)?;
        if !self.exchanges.contains_key(&exchange) {
            return Err(self.no_exchange(&exchange));
        }
        if !self.queues.contains_key(&queue) {
            return Err(self.no_queue(&queue));
        }
        if let Err(locked) = self.accessible(channel, &queue) {
            // An exchange that cannot understand the binding says so first.
            return Err(self.refuses_binding(&exchange, &arguments).unwrap_or(locked));
        }
        self.bind(&exchange, Destination::Queue(queue), &key, arguments)
    }

    fn refuses_binding(&self, exchange: &Name, arguments: &FieldTable) -> Option<Refusal> {
        let is_headers =
            self.exchanges.get(exchange).is_some_and(|found| found.kind == super::exchange::Kind::Headers);
        if is_headers { super::headers::check_binding(arguments).err() } else { None }
    }

    pub(crate) fn unbind_queue(
        &mut self,
        channel: ChannelId,
        queue: &[u8],
        exchange: &[u8],
        routing_key: &[u8],
        arguments: &FieldTable,
    ) -> Result<()> {
        let (queue, exchange, key) = self.binding_names(channel, queue, exchange, routing_key)?;
        let destination = Destination::Queue(queue.clone());
        let sorted = sorted(arguments.clone());
        if self.exchanges.get(&exchange).is_some_and(|found| found.has(&destination, &key, &sorted)) {
            self.accessible(channel, &queue)?;
            self.unbind(&exchange, &destination, &key, arguments);
        }
        Ok(())
    }

    fn binding_names(
        &self,
        channel: ChannelId,
        queue: &[u8],
        exchange: &[u8],
        routing_key: &[u8],
    ) -> Result<(Name, Name, Name)> {
        let name = self.queue_name(channel, queue)?;
        let key = if queue.is_empty() && routing_key.is_empty() { name.clone() } else { routing_key.into() };
        let exchange = stripped(exchange);
        if exchange.is_empty() {
            return Err(Refusal::access_refused("operation not permitted on the default exchange"));
        }
        Ok((stripped(&name), exchange, key))
    }

    pub(super) fn no_queue(&self, name: &Name) -> Refusal {
        Refusal::not_found(format!("no {}", self.queue_text(name)))
    }

    fn locked(&self, name: &Name) -> Refusal {
        Refusal::locked(format!(
            "cannot obtain exclusive access to locked {}. It could be originally declared on another connection \
             or the exclusive property value does not match that of the original declaration.",
            self.queue_text(name)
        ))
    }

    /// A queue that exists and that is not exclusive to somebody else.
    pub(super) fn accessible(&mut self, channel: ChannelId, name: &Name) -> Result<&mut Queue> {
        match self.queues.get(name) {
            None => return Err(self.no_queue(name)),
            Some(queue) if queue.owner.is_some_and(|owner| owner != channel.session) => {
                return Err(self.locked(name));
            }
            Some(_) => {}
        }
        let missing = Refusal::not_found("");
        self.queues.get_mut(name).ok_or(missing)
    }

    /// The queue was used: it does not expire for a while.
    pub(super) fn touch(&mut self, name: &Name) {
        if let Some(queue) = self.queues.get_mut(name) {
            queue.used = self.now;
        }
        self.schedule(name);
    }

    /// Deletes a queue with its bindings and messages; its consumers are told.
    pub(super) fn remove_queue(&mut self, name: &Name) {
        let Some(mut queue) = self.queues.remove(name) else { return };
        if let Some(session) = queue.owner.and_then(|owner| self.sessions.get_mut(&owner)) {
            session.queues.remove(name);
        }
        for publisher in queue.publishers.keys() {
            if let Some(channel) = self.channels.get_mut(publisher) {
                channel.publishes_to.remove(name);
            }
        }
        for consumer in queue.consumers.clear() {
            if let Some(channel) = self.channels.get_mut(&consumer.channel) {
                channel.consumers.remove(&consumer.tag);
                self.effects.push(Effect::Cancel { channel: consumer.channel, consumer_tag: consumer.tag });
            }
        }
        self.unbind_destination(&Destination::Queue(name.clone()));
    }
}
