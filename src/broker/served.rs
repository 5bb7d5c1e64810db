//! A virtual host in service: the model behind its lock, and the way out to every session on it.
//!
//! Whoever wants something of the model takes a [`Turn`], in which answers and effects are put into the links of
//! those who are to get them, in the order in which the model made them. When the turn ends, the lock is given up
//! first and then the links are written.
//!
//! The lock is fair, and whoever has much to do [gives it up](Turn::is_over) in between: nobody waits for longer than the
//! turns of those who came before.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    by_number::ByNumber,
    config::User,
    failure::Failure,
    fair::{Fair, Held},
    hub::Hub,
    model::{ChannelId, Effect, Payload, SessionId, Vhost},
    presence::Presence,
};
use crate::{
    error::ReplyCode,
    protocol::{
        content,
        frame::{self, FrameKind},
        spec::{
            BasicAck, BasicCancel, BasicDeliver, BasicNack, BasicRecoverOk, BasicReturn, ChannelClose,
            ConnectionClose, MethodBody, TxCommitOk,
        },
        wire::ShortStr,
    },
};

/// The class of all contents: basic.
const BASIC: u16 = 60;

/// What a frame that RabbitMQ does not cut may grow to.
const ANY_SIZE: usize = usize::MAX;

/// How long a turn may go on while others wait, but for what is begun.
const SLICE: Duration = Duration::from_millis(1);

/// How much more memory the messages may take before it is looked at whether they may: publishers are stopped between
/// two turns.
const GROWTH: usize = 1 << 20;

/// A virtual host and its sessions.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) name: String,
    state: Fair<State>,
}

#[derive(Debug)]
struct State {
    model: Vhost,
    ports: HashMap<SessionId, Port, ByNumber>,
    /// What the model's messages took when it was counted last.
    memory: usize,
    /// How many turns there were.
    turns: u64,
    /// The virtual host was deleted.
    gone: bool,
}

/// The way out to a session.
#[derive(Debug)]
struct Port {
    presence: Arc<Presence>,
    channels: HashMap<u16, ChannelPort, ByNumber>,
    /// The model may deliver to it.
    writable: bool,
    /// The last turn in which something was put into its link, which is written when that turn ends. A number, because a
    /// turn that panics resets nothing.
    touched: u64,
}

#[derive(Debug, Default)]
pub(super) struct ChannelPort {
    /// `channel.close` was sent, and its answer has not come.
    pub(super) closing: bool,
    /// Every publish up to this one is confirmed.
    confirmed: u64,
}

/// Confirms in a row that become one frame.
#[derive(Debug, Clone, Copy)]
struct Run {
    channel: ChannelId,
    last: u64,
    multiple: bool,
}

impl Served {
    pub(super) fn new(name: String, model: Vhost) -> Served {
        let state = State { model, ports: HashMap::default(), memory: 0, turns: 0, gone: false };
        Served { name, state: Fair::new(state) }
    }

    /// Takes the lock, and brings the model's clock forward.
    pub(super) fn turn<'v>(&'v self, hub: &'v Hub) -> Turn<'v> {
        let mut state = self.state.lock();
        let since = hub.clock.now();
        state.turns += 1;
        state.model.tick(since);
        let mut turn = Turn { hub, served: self, state, since, dirty: Vec::new(), run: None };
        turn.effects();
        turn
    }
}

/// One hold of a virtual host's lock. It ends with [`finish`](Turn::finish).
#[must_use]
pub(super) struct Turn<'v> {
    hub: &'v Hub,
    served: &'v Served,
    state: Held<'v, State>,
    /// When it has begun.
    since: Duration,
    dirty: Vec<Arc<Presence>>,
    run: Option<Run>,
}

impl Turn<'_> {
    pub(super) fn model(&mut self) -> &mut Vhost {
        &mut self.state.model
    }

    /// Whoever has more to do than one thing is to take another turn for the rest.
    pub(super) fn is_over(&self) -> bool {
        let grown = self.state.model.memory().saturating_sub(self.state.memory) > GROWTH;
        grown || self.served.state.is_awaited() && self.hub.clock.now().saturating_sub(self.since) >= SLICE
    }

    /// The virtual host was deleted meanwhile.
    pub(super) fn is_gone(&self) -> bool {
        self.state.gone
    }

    pub(super) fn set_gone(&mut self) {
        self.state.gone = true;
    }

    pub(super) fn sessions(&self) -> Vec<Arc<Presence>> {
        self.state.ports.values().map(|port| port.presence.clone()).collect()
    }

    pub(super) fn has_session(&self, session: SessionId) -> bool {
        self.state.ports.contains_key(&session)
    }

    pub(super) fn open_session(&mut self, presence: &Arc<Presence>, user: &User) {
        let port =
            Port { presence: presence.clone(), channels: HashMap::default(), writable: true, touched: 0 };
        self.state.model.open_session(presence.id, &user.name, user.impersonator);
        self.state.ports.insert(presence.id, port);
    }

    /// Ends a session: nothing more is sent to it.
    pub(super) fn close_session(&mut self, session: SessionId) {
        if self.state.ports.contains_key(&session) {
            self.end_run();
            if let Some(port) = self.state.ports.remove(&session) {
                port.presence.link.close();
            }
            self.state.model.close_session(session);
            self.effects();
        }
    }

    /// Answers on channel 0, and ends the session.
    pub(super) fn close_session_with<'m>(&mut self, session: SessionId, answer: &impl MethodBody<'m>) {
        self.method(ChannelId { session, number: 0 }, answer);
        self.close_session(session);
    }

    /// Tells a client why its connection is closed, and ends its session.
    pub(super) fn fail_session(&mut self, session: SessionId, failure: &Failure) {
        let text = failure.text();
        let (class_id, method_id) = failure.method;
        if !failure.silent {
            self.method(
                ChannelId { session, number: 0 },
                &ConnectionClose {
                    reply_code: failure.refusal.code.into(),
                    reply_text: ShortStr::truncated(&text),
                    class_id,
                    method_id,
                },
            );
        }
        self.close_session(session);
    }

    /// Closes a channel, or the connection if that is what the failure calls for; true in the latter case.
    pub(super) fn fail_channel(&mut self, channel: ChannelId, failure: &Failure) -> bool {
        if failure.closes_connection() || channel.number == 0 {
            self.fail_session(channel.session, failure);
            return true;
        }
        self.close_channel(channel, failure);
        self.state.model.close_channel(channel);
        self.effects();
        false
    }

    /// Says that a channel is closed, which the model knows already.
    fn close_channel(&mut self, channel: ChannelId, failure: &Failure) {
        if let Some(port) = self.channel(channel) {
            port.closing = true;
        }
        let text = failure.text();
        let (class_id, method_id) = failure.method;
        self.method(
            channel,
            &ChannelClose {
                reply_code: failure.refusal.code.into(),
                reply_text: ShortStr::truncated(&text),
                class_id,
                method_id,
            },
        );
    }

    pub(super) fn channel(&mut self, channel: ChannelId) -> Option<&mut ChannelPort> {
        self.state.ports.get_mut(&channel.session)?.channels.get_mut(&channel.number)
    }

    pub(super) fn open_channels(&self, session: SessionId) -> usize {
        self.state.ports.get(&session).map_or(0, |port| port.channels.len())
    }

    pub(super) fn add_channel(&mut self, channel: ChannelId) {
        if let Some(port) = self.state.ports.get_mut(&channel.session) {
            port.channels.insert(channel.number, ChannelPort::default());
        }
    }

    pub(super) fn remove_channel(&mut self, channel: ChannelId) {
        if let Some(port) = self.state.ports.get_mut(&channel.session) {
            port.channels.remove(&channel.number);
        }
    }

    /// Sends a method.
    pub(super) fn method<'m>(&mut self, channel: ChannelId, method: &impl MethodBody<'m>) {
        self.end_run();
        self.append(channel.session, |_, out| {
            // A method of ours always fits: its texts are short strings, its tables the broker's own.
            let _ = frame::write_method(out, channel.number, ANY_SIZE, method);
        });
    }

    /// Sends a method that the table of methods does not have.
    pub(super) fn payload(&mut self, channel: ChannelId, payload: &[u8]) {
        self.end_run();
        self.append(channel.session, |_, out| {
            let _ = frame::write(out, FrameKind::Method, channel.number, ANY_SIZE, |out| {
                out.extend_from_slice(payload);
                Ok(())
            });
        });
    }

    /// Sends a method with content.
    pub(super) fn content<'m>(
        &mut self,
        channel: ChannelId,
        method: &impl MethodBody<'m>,
        payload: &Payload,
    ) {
        self.end_run();
        self.append(channel.session, |presence, out| {
            let start = out.len();
            out.reserve(payload.body.len() + payload.properties.len() + 128);
            let written = frame::write_method(out, channel.number, ANY_SIZE, method).and_then(|()| {
                frame::write(out, FrameKind::Header, channel.number, ANY_SIZE, |out| {
                    out.extend_from_slice(&BASIC.to_be_bytes());
                    out.extend_from_slice(&[0; 2]);
                    out.extend_from_slice(&(payload.body.len() as u64).to_be_bytes());
                    out.extend_from_slice(&payload.properties);
                    Ok(())
                })
            });
            match written {
                Ok(()) => content::write_body(out, channel.number, presence.max_frame(), &payload.body),
                Err(_) => out.truncate(start),
            }
        });
    }

    /// Puts something into a session's link.
    pub(super) fn append(&mut self, session: SessionId, write: impl FnOnce(&Presence, &mut Vec<u8>)) {
        let state = &mut *self.state;
        let Some(port) = state.ports.get_mut(&session) else { return };
        let presence = &port.presence;
        presence.link.append(|out| write(presence, out));
        if port.writable && presence.link.is_full() {
            port.writable = false;
            state.model.set_writable(session, false);
        }
        if std::mem::replace(&mut port.touched, state.turns) != state.turns {
            self.dirty.push(port.presence.clone());
        }
    }

    /// Sends what the model wants to be sent.
    pub(super) fn effects(&mut self) {
        loop {
            let effects = self.state.model.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.effect(effect);
            }
            for session in self.state.model.take_sated() {
                let State { model, ports, .. } = &mut *self.state;
                let Some(port) = ports.get_mut(&session) else { continue };
                port.writable = !port.presence.link.is_full();
                model.set_writable(session, port.writable);
            }
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Deliver { channel, consumer_tag, delivery_tag, redelivered, payload } => self.content(
                channel,
                &BasicDeliver {
                    consumer_tag: ShortStr::from_bytes(&consumer_tag),
                    delivery_tag,
                    redelivered,
                    exchange: ShortStr::from_bytes(&payload.exchange),
                    routing_key: ShortStr::from_bytes(&payload.routing_key),
                },
                &payload,
            ),
            Effect::Return { channel, code, payload } => self.content(
                channel,
                &BasicReturn {
                    reply_code: code.into(),
                    reply_text: ShortStr::truncated(code.name()),
                    exchange: ShortStr::from_bytes(&payload.exchange),
                    routing_key: ShortStr::from_bytes(&payload.routing_key),
                },
                &payload,
            ),
            Effect::Confirm { channel, delivery_tag, accepted } => {
                self.confirm(channel, delivery_tag, accepted)
            }
            Effect::Recovered { channel } => self.method(channel, &BasicRecoverOk {}),
            Effect::Committed { channel } => self.method(channel, &TxCommitOk {}),
            Effect::Cancel { channel, consumer_tag } => {
                let port = self.state.ports.get(&channel.session);
                if port.is_some_and(|port| port.presence.takes_cancels()) {
                    let consumer_tag = ShortStr::from_bytes(&consumer_tag);
                    self.method(channel, &BasicCancel { consumer_tag, no_wait: true });
                }
            }
        }
    }

    /// Confirms in their order become one frame, as long as nothing else comes between them.
    pub(super) fn confirm(&mut self, channel: ChannelId, tag: u64, accepted: bool) {
        let Some(accepted) = self.hub.confirms.decide(channel, tag, accepted) else { return };
        let Some(port) = self.channel(channel) else { return };
        let next = tag == port.confirmed + 1;
        if next {
            port.confirmed = tag;
        }
        if !accepted {
            self.method(channel, &BasicNack { delivery_tag: tag, multiple: false, requeue: false });
            return;
        }
        match &mut self.run {
            Some(run) if run.channel == channel && next && run.last + 1 == tag => {
                run.last = tag;
                run.multiple = true;
            }
            _ => {
                self.end_run();
                if next {
                    self.run = Some(Run { channel, last: tag, multiple: false });
                } else {
                    self.method(channel, &BasicAck { delivery_tag: tag, multiple: false });
                }
            }
        }
    }

    pub(super) fn end_run(&mut self) {
        if let Some(Run { channel, last, multiple }) = self.run.take() {
            self.method(channel, &BasicAck { delivery_tag: last, multiple });
        }
    }

    /// A client whose link was full has taken enough.
    fn resume(&mut self, session: SessionId) {
        if let Some(program) = &self.hub.program {
            program.resumed(session);
        }
        if let Some(port) = self.state.ports.get_mut(&session)
            && !port.writable
            && !port.presence.link.is_full()
        {
            port.writable = true;
            self.state.model.set_writable(session, true);
            self.effects();
        }
    }

    /// Gives the lock up and writes what is to be written, as far as clients take it at once.
    pub(super) fn finish(mut self) {
        self.effects();
        self.end_run();
        loop {
            let memory = self.state.model.memory();
            let before = std::mem::replace(&mut self.state.memory, memory);
            self.hub.count_memory(before, memory);
            let deadline = self.state.model.next_deadline();
            let Turn { hub, served, state, dirty, .. } = self;
            drop(state);
            if memory != before {
                hub.watch_memory();
            }
            hub.timer.set(hub, served, deadline);
            let resumed: Vec<SessionId> =
                dirty.iter().filter(|presence| presence.link.flush()).map(|presence| presence.id).collect();
            if resumed.is_empty() {
                return;
            }
            self = served.turn(hub);
            for session in resumed {
                self.resume(session);
            }
            self.end_run();
        }
    }
}

impl Served {
    /// A client whose link was full has taken enough.
    pub(super) fn resume(&self, hub: &Hub, session: SessionId) {
        let mut turn = self.turn(hub);
        turn.resume(session);
        turn.finish();
    }

    /// Answers with 320 for everyone, and ends all sessions.
    pub(super) fn close_sessions(&self, hub: &Hub, reason: &str) {
        let mut turn = self.turn(hub);
        let failure = Failure::new(ReplyCode::ConnectionForced, reason);
        for presence in turn.sessions() {
            turn.fail_session(presence.id, &failure);
        }
        turn.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{self, AssertUnwindSafe};

    use super::*;
    use crate::{
        broker::BrokerConfig,
        protocol::spec::BasicQosOk,
        transport::{Transport, pipe::pipe},
    };

    /// Whoever has something to be sent in a turn that panics is sent it, at the latest with what follows.
    #[test]
    fn a_turn_that_panics_keeps_nobody_from_being_written_to() {
        let config = BrokerConfig::new();
        let user = config.users[0].clone();
        let hub = Hub::new(config);
        let served = hub.vhost("/").unwrap();
        let (client, server) = pipe(4096);
        client.set_read_timeout(Some(Duration::ZERO)).unwrap();
        let presence = Arc::new(Presence::new(&hub, SessionId(1), Arc::new(server), None));
        let channel = ChannelId { session: presence.id, number: 0 };
        let mut turn = served.turn(&hub);
        turn.open_session(&presence, &user);
        turn.finish();
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut turn = served.turn(&hub);
            turn.method(channel, &BasicQosOk {});
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        let mut turn = served.turn(&hub);
        turn.method(channel, &BasicQosOk {});
        turn.finish();
        let mut bytes = [0; 64];
        assert_eq!(client.read(&mut bytes).unwrap(), 2 * 12);
    }
}
