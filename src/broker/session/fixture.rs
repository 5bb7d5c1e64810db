//! A session without threads, for fuzzing, of a broker or of a direct listener: it is fed with bytes, and what it answers is
//! looked at.

// Failing loudly is all that this is for.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{Handshake, Phase, Presence, Session, UNTUNED_FRAME_MAX};
use crate::broker::{
    BrokerConfig,
    direct::{Consumer, Published, Serve},
    hub::Hub,
    model::SessionId,
};
use crate::{
    protocol::{
        frame::{self, FrameKind, PROTOCOL_HEADER},
        spec::{
            BasicConsume, BasicQos, ChannelOpen, ConfirmSelect, ConnectionOpen, ConnectionStartOk,
            ConnectionTuneOk, Method, QueueDeclare,
        },
        value::FieldTable,
        wire::{LongStr, ShortStr, Table},
    },
    transport::{
        Transport,
        pipe::{Pipe, pipe},
    },
};

/// Enough for what is answered to one piece.
const CAPACITY: usize = 1 << 20;

/// What clients usually say first: the handshake, and channel 1, which wants confirms.
fn prelude() -> Vec<u8> {
    let mut capabilities = FieldTable::new();
    capabilities.insert("consumer_cancel_notify", true);
    let mut properties = FieldTable::new();
    properties.insert("capabilities", capabilities);
    let properties = properties.encode().unwrap();
    let start = ConnectionStartOk {
        client_properties: Table(&properties),
        mechanism: text("PLAIN"),
        response: LongStr(b"\0guest\0guest"),
        locale: text("en_US"),
    };
    let mut out = PROTOCOL_HEADER.to_vec();
    say(&mut out, 0, start.into());
    say(&mut out, 0, ConnectionTuneOk { channel_max: 10, frame_max: 4096, heartbeat: 0 }.into());
    say(&mut out, 0, ConnectionOpen { virtual_host: text("/"), ..Default::default() }.into());
    say(&mut out, 1, ChannelOpen::default().into());
    say(&mut out, 1, ConfirmSelect { nowait: true }.into());
    say(&mut out, 2, ChannelOpen::default().into());
    out
}

fn text(text: &str) -> ShortStr<'_> {
    ShortStr::new("a seed", text).unwrap()
}

fn say(out: &mut Vec<u8>, channel: u16, method: Method<'_>) {
    method.write_frame(out, channel, 4096).unwrap();
}

/// Feeds `bytes` in pieces of `piece` bytes to a session, before its handshake or after it: then channel 2 consumes from
/// queue `q`. Panics when the session does, when it answers with what is no frame, or when it leaves anything behind.
pub(crate) fn feed(bytes: &[u8], piece: usize, opened: bool) {
    let hub = Hub::new(BrokerConfig::new());
    let mut before = prelude();
    say(&mut before, 2, QueueDeclare { queue: text("q"), ..Default::default() }.into());
    let consume = BasicConsume { queue: text("q"), consumer_tag: text("c"), ..Default::default() };
    say(&mut before, 2, consume.into());
    converse(&hub, opened.then_some(&before), bytes, piece, || {});
    // Whoever leaves takes everything but queues and what is in them along.
    for served in hub.all_vhosts() {
        let mut turn = served.turn(&hub);
        assert!(turn.model().list_consumers().is_empty());
        assert!(turn.model().list_queues().iter().all(|queue| queue.unacked == 0 && !queue.exclusive));
        turn.finish();
    }
    hub.timer.stop();
}

/// The same with a session that has the program behind it, and a channel 2 that consumes from `kept` and waits for
/// answers. Handlers answer and fail, and consumers whose name begins with a `k` are sent a message after each piece.
/// Panics also when somebody is left who waits for the peer.
pub(crate) fn feed_direct(bytes: &[u8], piece: usize, opened: bool) {
    let (kept, sent) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let (keep, keep_sent, keep_answered) = (kept.clone(), sent.clone(), sent.clone());
    let serve = Serve::new()
        .send_timeout(Duration::ZERO)
        .messages(move |message: &Published| {
            if message.properties.reply_to.is_some() {
                keep_answered.lock().unwrap().push(message.reply(message.text()?)?);
            }
            if message.body.len().is_multiple_of(2) { Ok(()) } else { Err("odd".into()) }
        })
        .consumers(move |consumer: Consumer| {
            let mut sent = keep_sent.lock().unwrap();
            sent.extend([consumer.try_send("one")?, consumer.try_send(&b"\xff"[..])?]);
            if consumer.queue().starts_with('k') {
                keep.lock().unwrap().push(consumer);
            }
            Ok(())
        });
    let (config, program) = serve.without_workers();
    let hub = Hub::direct(config, program.clone());
    let mut before = prelude();
    say(&mut before, 2, BasicQos { prefetch_count: 3, ..Default::default() }.into());
    for (queue, no_ack) in [("kept", false), ("amq.rabbitmq.reply-to", true)] {
        let consume = BasicConsume { queue: text(queue), no_ack, ..Default::default() };
        say(&mut before, 2, consume.into());
    }
    converse(&hub, opened.then_some(&before), bytes, piece, || {
        program.work_off();
        let again =
            kept.lock().unwrap().iter().filter_map(|kept| kept.try_send("again").ok()).collect::<Vec<_>>();
        sent.lock().unwrap().extend(again);
    });
    program.work_off();
    assert!(program.peers().is_empty());
    assert!(kept.lock().unwrap().iter().all(|consumer| consumer.ended().is_some()));
    assert!(sent.lock().unwrap().iter().all(|sent| sent.try_wait().is_some()));
    hub.timer.stop();
}

/// Runs a session from its beginning to its end; `between` is called after every piece.
fn converse(
    hub: &Arc<Hub>,
    prelude: Option<&Vec<u8>>,
    bytes: &[u8],
    piece: usize,
    mut between: impl FnMut(),
) {
    let (client, server) = pipe(CAPACITY);
    client.set_read_timeout(Some(Duration::ZERO)).unwrap();
    let presence = Arc::new(Presence::new(hub, SessionId(1), Arc::new(server), None));
    let mut session = Session {
        hub,
        presence: &presence,
        peer: None,
        phase: Phase::Handshake(Handshake::default()),
        max_payload: UNTUNED_FRAME_MAX,
        deadline: None,
        lost: false,
        paused: false,
    };
    if let Some(prelude) = prelude {
        assert_eq!(session.feed(prelude), prelude.len());
        assert!(matches!(session.phase, Phase::Running(_)));
    }
    let (mut answers, mut buffer) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            let used = session.feed(&buffer);
            buffer.drain(..used);
            drain(&client, &presence, &mut answers);
            between();
            if !std::mem::take(&mut session.paused) {
                break;
            }
        }
        if matches!(session.phase, Phase::Ended) {
            break;
        }
    }
    session.leave();
    drain(&client, &presence, &mut answers);
    check(&answers);
}

fn drain(client: &Pipe, presence: &Presence, answers: &mut Vec<u8>) {
    let mut chunk = [0; 4096];
    loop {
        presence.link.push();
        match client.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(read) => answers.extend_from_slice(chunk.get(..read).unwrap_or_default()),
        }
    }
}

fn check(answers: &[u8]) {
    // A peer that begins with a wrong header is answered with the right one.
    let mut rest = answers.strip_prefix(&PROTOCOL_HEADER[..]).unwrap_or(answers);
    while !rest.is_empty() {
        let (answer, used) = frame::decode(rest, usize::MAX).unwrap().unwrap_or_else(|| panic!("{rest:?}"));
        if answer.kind == FrameKind::Method && answer.payload.get(..2) != Some(&[0, 30]) {
            Method::decode(answer.payload).unwrap();
        }
        rest = rest.get(used..).unwrap_or_default();
    }
}
