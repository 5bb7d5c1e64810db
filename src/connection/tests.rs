//! A whole connection over a pipe in memory whose transport misbehaves. Tests against sockets and against
//! RabbitMQ are in `tests/`.

use std::{
    io::IoSlice,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Connection, config::Config, connect::Connected, handshake::shake_hands, state::refusal, tap::Taps,
};
use crate::{
    error::{Error, ReplyCode, Result, Scope},
    protocol::{
        frame::{self, FrameKind, PROTOCOL_HEADER, write_method},
        spec::*,
        wire::LongStr,
    },
    transport::{
        Patience, Transport,
        fault::{Faults, Faulty},
        pipe::{Pipe, pipe},
        tap::Tapped,
    },
};

/// A broker that answers every call it knows, until the connection ends.
fn broker(end: Pipe) -> JoinHandle<Vec<&'static str>> {
    thread::spawn(move || {
        let mut seen = Vec::new();
        let mut received = Vec::new();
        let mut chunk = [0; 1024];
        while let Ok(length @ 1..) = end.read(&mut chunk) {
            received.extend_from_slice(&chunk[..length]);
            if received.starts_with(&PROTOCOL_HEADER) {
                received.drain(..PROTOCOL_HEADER.len());
                say(&end, 0, &ConnectionStart { mechanisms: LongStr(b"PLAIN"), ..Default::default() });
            }
            while let Ok(Some((frame, used))) = frame::decode(&received, 8192) {
                if frame.kind == FrameKind::Method {
                    let method = Method::decode(frame.payload).unwrap();
                    seen.push(method.name());
                    answer(&end, frame.channel, method);
                }
                received.drain(..used);
            }
        }
        seen
    })
}

fn answer(end: &Pipe, channel: u16, method: Method<'_>) {
    match method {
        Method::ConnectionStartOk(_) => {
            say(end, 0, &ConnectionTune { channel_max: 4, frame_max: 8192, heartbeat: 1 });
        }
        Method::ConnectionOpen(_) => say(end, 0, &ConnectionOpenOk::default()),
        Method::ConnectionClose(_) => say(end, 0, &ConnectionCloseOk {}),
        Method::ChannelOpen(_) => say(end, channel, &ChannelOpenOk::default()),
        Method::ChannelClose(_) => say(end, channel, &ChannelCloseOk {}),
        Method::QueueDeclare(declare) => {
            say(end, channel, &QueueDeclareOk { queue: declare.queue, ..Default::default() });
        }
        _ => {}
    }
}

fn say<'m>(end: &Pipe, channel: u16, method: &impl MethodBody<'m>) {
    let mut out = Vec::new();
    write_method(&mut out, channel, 8192, method).unwrap();
    let mut rest = &out[..];
    while !rest.is_empty() {
        match end.write(&[IoSlice::new(rest)], Patience::Quantum) {
            Ok(written) => rest = &rest[written..],
            Err(_) => return,
        }
    }
}

fn open(faults: Faults) -> (Result<Connection>, JoinHandle<Vec<&'static str>>) {
    open_with(faults, Config::new())
}

fn open_with(faults: Faults, config: Config) -> (Result<Connection>, JoinHandle<Vec<&'static str>>) {
    let (ours, theirs) = pipe(64 * 1024);
    let broker = broker(theirs);
    let config = config.handshake_timeout(Duration::from_secs(5));
    let (deadline, taps) = (Instant::now() + config.handshake_timeout, Taps::new(&config));
    let transport: Arc<dyn Transport> = Arc::new(Tapped::new(Faulty::new(ours, faults), taps.filter.clone()));
    let connection = shake_hands(&*transport, &config, deadline, &taps).and_then(|(negotiated, received)| {
        let transport = transport.clone();
        Connection::start(&config, Connected { transport, negotiated, received, taps: taps.clone() })
    });
    drop(transport);
    (connection, broker)
}

#[test]
fn a_conversation_cut_into_single_bytes_both_ways_is_the_same_conversation() {
    for slice in [1, 2, 7, usize::MAX] {
        let (connection, broker) = open(Faults { slice, ..Faults::default() });
        let connection = connection.unwrap();
        let channel = connection.channel().unwrap();
        assert_eq!(channel.queue_declare("q").unwrap().queue, "q");
        channel.basic_publish("", "q", &[7u8; 20_000]).unwrap();
        channel.close().unwrap();
        connection.close().unwrap();
        let expected = [
            "connection.start-ok",
            "connection.tune-ok",
            "connection.open",
            "channel.open",
            "queue.declare",
            "basic.publish",
            "channel.close",
            "connection.close",
        ];
        assert_eq!(broker.join().unwrap(), expected);
    }
}

/// Row 22: one shutdown path, one first cause, wherever the stream ends.
#[test]
fn a_stream_that_ends_at_any_byte_is_an_error_with_one_cause() {
    for cut in 0..400 {
        let (connection, broker) = open(Faults { cut_reading_after: cut, ..Faults::default() });
        let outcome = connection.and_then(|connection| {
            let channel = connection.channel()?;
            channel.queue_declare("q")?;
            let cause = connection.wait_closed();
            assert_eq!(channel.queue_declare("q").unwrap_err().to_string(), cause.to_string());
            assert_eq!(connection.channel().unwrap_err().to_string(), cause.to_string());
            Err::<(), _>(cause)
        });
        broker.join().unwrap();
        if let Err(Error::Timeout(_)) = outcome {
            // The broker had said everything before the cut, and sends no heartbeats.
            assert!(cut > 100);
            return;
        }
        assert!(matches!(outcome, Err(Error::Io { .. })), "cut after {cut}: {outcome:?}");
    }
    panic!("a broker that says no more is noticed");
}

/// Row 21: a write that cannot progress for two intervals is a dead peer, though it still sends.
#[test]
fn a_peer_that_takes_no_more_bytes_is_given_up() {
    let (ours, theirs) = pipe(64 * 1024);
    let talkative = theirs;
    let transport: Arc<dyn Transport> =
        Arc::new(Faulty::new(ours, Faults { stall_writing_after: 0, ..Faults::default() }));
    let negotiated = super::Negotiated {
        channel_max: 4,
        frame_max: 8192,
        heartbeat: Duration::from_secs(1),
        server_properties: Default::default(),
    };
    let config = Config::new();
    let taps = Taps::new(&config);
    let connected = Connected { transport, negotiated, received: Vec::new(), taps };
    let connection = Connection::start(&config, connected).unwrap();
    let call = thread::spawn({
        let connection = connection.clone();
        move || connection.channel().unwrap_err()
    });
    let cause = loop {
        let mut heartbeat = Vec::new();
        frame::write_heartbeat(&mut heartbeat);
        let _ = talkative.write(&[IoSlice::new(&heartbeat)], Patience::None);
        if let Some(cause) = connection.wait_closed_timeout(Duration::from_millis(200)) {
            break cause;
        }
    };
    assert!(
        matches!(&cause, Error::Timeout(timeout) if timeout.waiting_for == "writing to the peer"),
        "{cause}"
    );
    assert_eq!(call.join().unwrap().to_string(), cause.to_string());
}

/// More than a conversation takes up to its first publish.
const A_BEGINNING: usize = 4000;

fn dribbling(config: Config) -> (Result<Connection>, JoinHandle<Vec<&'static str>>) {
    let faults = Faults { dribble_after: A_BEGINNING, ..Faults::default() };
    // The broker sends no heartbeats.
    open_with(faults, config.heartbeat(Duration::ZERO))
}

/// Rows 13, 14, 22: a peer that takes next to nothing at a time cannot keep the writer thread from ending the
/// connection. All that is to be written would take hours.
#[test]
fn a_peer_that_takes_little_at_a_time_holds_up_no_end() {
    let (connection, broker) = dribbling(Config::new());
    let connection = connection.unwrap();
    let channel = connection.channel().unwrap();
    while channel.try_publish("", "q", &[7; 8000]).is_ok() {}
    let close = ConnectionClose { reply_code: 320, ..Default::default() };
    connection.shared().fail(refusal(Scope::Connection, &close.into()));
    // The broker sees the end of the stream when the last words have had their time.
    broker.join().unwrap();
    assert_eq!(connection.close().unwrap_err().reply_code(), Some(ReplyCode::ConnectionForced));
}

/// Rows 50, 53: nor does it keep a caller longer than its limit, whoever has appended what is written, and whether or not
/// a filter (or TLS, which does the same) has taken it first.
#[test]
fn a_peer_that_takes_little_at_a_time_holds_up_no_caller() {
    let config = Config::new().publish_timeout(Duration::from_millis(50));
    for config in [config.clone(), config.byte_filter(|_, _| {})] {
        let (connection, broker) = dribbling(config);
        let connection = connection.unwrap();
        let channel = connection.channel().unwrap();
        // Small and large ones; they would all be written otherwise, half a minute later.
        channel.basic_publish("", "q", &[7; 30_000]).unwrap();
        assert!(connection.shared().outgoing.has_unsent());
        let large = channel.basic_publish("", "q", &[7; 60_000]);
        // Behind a filter the turn to write may be free: then what the peer does not take is left to the writer thread.
        let left = large.is_ok() && connection.shared().outgoing.has_unsent();
        assert!(left || matches!(large, Err(Error::Timeout(_))), "{large:?}");
        connection.shutdown(Duration::ZERO).unwrap_err();
        broker.join().unwrap();
    }
}

/// How much a peer takes at once that is slower than those who publish, and after what pause.
const SIP: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(3);

/// Row 36: others who publish without end, as fast as the peer takes it, do not keep a large message from getting through.
#[test]
fn a_large_message_gets_through_among_small_ones_without_end() {
    let (ours, theirs) = pipe(4 * SIP);
    let peer = thread::spawn(move || {
        let mut chunk = vec![0; SIP];
        for channel in 1..=3 {
            theirs.read(&mut chunk).unwrap();
            say(&theirs, channel, &ChannelOpenOk::default());
        }
        while let Ok(1..) = theirs.read(&mut chunk) {
            thread::sleep(PAUSE);
        }
    });
    let negotiated = super::Negotiated {
        channel_max: 4,
        frame_max: 131_072,
        heartbeat: Duration::ZERO,
        server_properties: Default::default(),
    };
    let config = Config::new().publish_timeout(Duration::from_secs(60));
    let taps = Taps::new(&config);
    let connected = Connected { transport: Arc::new(ours), negotiated, received: Vec::new(), taps };
    let connection = Connection::start(&config, connected).unwrap();
    let [large, small, other] = [(); 3].map(|()| connection.channel().unwrap());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for channel in [&small, &other] {
            let done = &done;
            let publish = || channel.basic_publish("", "q", &[7; 1000]);
            scope.spawn(move || while !done.load(Ordering::Relaxed) && publish().is_ok() {});
        }
        let published = large.basic_publish("", "q", &vec![7; 24 << 20]);
        done.store(true, Ordering::Relaxed);
        published.unwrap();
    });
    connection.shutdown(Duration::ZERO).unwrap_err();
    peer.join().unwrap();
}
