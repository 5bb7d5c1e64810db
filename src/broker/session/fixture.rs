//! A session without threads, for fuzzing: it is fed with bytes, and what it answers is looked at.

// Failing loudly is all that this is for.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{sync::Arc, time::Duration};

use super::{Handshake, Phase, Presence, Session, UNTUNED_FRAME_MAX};
use crate::broker::{BrokerConfig, hub::Hub, model::SessionId};
use crate::{
    protocol::{
        frame::{self, FrameKind, PROTOCOL_HEADER},
        spec::{
            BasicConsume, ChannelOpen, ConfirmSelect, ConnectionOpen, ConnectionStartOk, ConnectionTuneOk,
            Method, QueueDeclare,
        },
        wire::{LongStr, ShortStr},
    },
    transport::{
        Transport,
        pipe::{Pipe, pipe},
    },
};

/// Enough for what is answered to one piece.
const CAPACITY: usize = 1 << 20;

/// What clients usually say first, and two channels: one that publishes, and one that consumes queue `q`.
fn prelude() -> Vec<u8> {
    let text = |text| ShortStr::new("a seed", text).unwrap();
    let mut out = PROTOCOL_HEADER.to_vec();
    let mut say = |channel, method: Method<'_>| method.write_frame(&mut out, channel, 4096).unwrap();
    let start = ConnectionStartOk {
        mechanism: text("PLAIN"),
        response: LongStr(b"\0guest\0guest"),
        locale: text("en_US"),
        ..Default::default()
    };
    say(0, start.into());
    say(0, ConnectionTuneOk { channel_max: 10, frame_max: 4096, heartbeat: 0 }.into());
    say(0, ConnectionOpen { virtual_host: text("/"), ..Default::default() }.into());
    say(1, ChannelOpen::default().into());
    say(1, ConfirmSelect { nowait: true }.into());
    say(2, ChannelOpen::default().into());
    say(2, QueueDeclare { queue: text("q"), ..Default::default() }.into());
    say(2, BasicConsume { queue: text("q"), consumer_tag: text("c"), ..Default::default() }.into());
    out
}

/// Feeds `bytes` in pieces of `piece` bytes to a session, before its handshake or after it. Panics when the session
/// does, when it answers with what is no frame, or when it leaves anything behind.
pub(crate) fn feed(bytes: &[u8], piece: usize, opened: bool) {
    let hub = Hub::new(BrokerConfig::new());
    let (client, server) = pipe(CAPACITY);
    client.set_read_timeout(Some(Duration::ZERO)).unwrap();
    let presence = Arc::new(Presence::new(&hub, SessionId(1), Arc::new(server), None));
    let mut session = Session {
        hub: &hub,
        presence: &presence,
        peer: None,
        phase: Phase::Handshake(Handshake::default()),
        max_payload: UNTUNED_FRAME_MAX,
        deadline: None,
        lost: false,
        paused: false,
    };
    let mut answers = Vec::new();
    if opened {
        let prelude = prelude();
        assert_eq!(session.feed(&prelude), prelude.len());
        assert!(matches!(session.phase, Phase::Running(_)));
    }
    let mut buffer = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        buffer.extend_from_slice(piece);
        let used = session.feed(&buffer);
        buffer.drain(..used);
        drain(&client, &presence, &mut answers);
        if matches!(session.phase, Phase::Ended) {
            break;
        }
    }
    session.leave();
    drain(&client, &presence, &mut answers);
    check(&answers);
    // Whoever leaves takes everything but queues and what is in them along.
    for served in hub.all_vhosts() {
        let mut turn = served.turn(&hub);
        assert!(turn.model().list_consumers().is_empty());
        assert!(turn.model().list_queues().iter().all(|queue| queue.unacked == 0 && !queue.exclusive));
        turn.finish();
    }
    hub.timer.stop();
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
