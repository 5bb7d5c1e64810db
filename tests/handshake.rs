//! The handshake against a peer that stops, misbehaves or refuses at every step.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use common::{limits::PROMPT, peer::*};
use leveret::{
    Attempt, Config, Connection, Credentials, Error, Mechanism, ReplyCode, SaslMechanism, Scope, Timeout,
};

const PASSWORD: &str = "correct-horse-battery";

/// The peer's side of the usual handshake, in the order of its three turns.
fn server_turns() -> [Vec<u8>; 3] {
    [start("PLAIN"), method(0, TUNE, args![100, 131_072, 0]), method(0, OPEN_OK, args![""])]
}

/// The methods of the client that precede each of the peer's turns.
const CLIENT_TURNS: [&[Method]; 3] = [&[], &[START_OK], &[TUNE_OK, OPEN]];

/// Waits for the client's part before turn `index` of the peer.
fn expect_client_turn(peer: &mut Peer, index: usize) {
    if index == 0 {
        peer.expect_protocol_header();
    }
    for &method in CLIENT_TURNS[index] {
        peer.expect(0, method);
    }
}

/// Shakes hands until `offset` bytes of the peer's side are sent.
fn shake_hands_up_to(peer: &mut Peer, offset: usize) {
    let mut left = offset;
    for (index, turn) in server_turns().iter().enumerate() {
        expect_client_turn(peer, index);
        let sent = left.min(turn.len());
        peer.raw(&turn[..sent]);
        left -= sent;
        if sent < turn.len() {
            return;
        }
    }
}

/// Shakes hands until it is the peer's turn `index`.
fn shake_hands_up_to_turn(peer: &mut Peer, index: usize) {
    shake_hands_up_to(peer, server_turns()[..index].iter().map(Vec::len).sum());
}

/// Opens a connection that must fail in time, without telling the password.
fn failure(config: Config) -> Error {
    let started = Instant::now();
    let error = Connection::open(config.credentials("user", PASSWORD)).expect_err("refused");
    assert!(started.elapsed() < PROMPT, "it took {:?}: {error}", started.elapsed());
    assert!(!format!("{error} {error:?} {error:#?}").contains(PASSWORD), "{error:?}");
    error
}

/// The error of the only address, if that is what the error is about.
fn of_the_address(error: &Error) -> Error {
    match error {
        Error::Connect(failure) => match &failure.attempts[..] {
            [Attempt { error, .. }] => error.clone(),
            attempts => panic!("{attempts:?}"),
        },
        other => other.clone(),
    }
}

/// Runs a script that must make `open` fail.
fn failure_of(script: impl FnOnce(&mut Peer) + Send + 'static) -> Error {
    let peer = Peer::run(script);
    let error = failure(peer.config());
    peer.finish();
    error
}

/// Rows 10, 22: the peer cuts the handshake at every offset, with FIN and with RST: an error about the
/// network at once, and nothing is left behind.
#[test]
fn a_handshake_that_is_cut_anywhere_is_an_error_at_once() {
    let length: usize = server_turns().iter().map(Vec::len).sum();
    for offset in 0..length {
        for end in [Peer::fin, Peer::rst] {
            let error = failure_of(move |peer| {
                shake_hands_up_to(peer, offset);
                end(peer);
            });
            assert!(matches!(of_the_address(&error), Error::Io { .. }), "cut at {offset}: {error:?}");
            assert!(error.is_hard() && error.can_retry(), "{error:?}");
        }
    }
    nothing_is_left();
}

/// The error of a handshake in which the peer falls silent after `offset` bytes.
fn silent_at(offset: usize, limit: Duration) -> Timeout {
    let peer = Peer::run(move |peer| {
        shake_hands_up_to(peer, offset);
        peer.silence();
    });
    let error = of_the_address(&failure(peer.config().handshake_timeout(limit)));
    // A client that gave up before its turn is not what the script expects.
    peer.abandon();
    match error {
        Error::Timeout(timeout) => timeout,
        other => panic!("silent at {offset}: {other:?}"),
    }
}

/// Rows 10, 37: a peer that falls silent, at the start of each of its turns or in the middle, is given up
/// after the handshake's timeout, and the error says what was waited for.
#[test]
fn silence_at_any_step_ends_at_the_timeout() {
    let mut offset = 0;
    for (turn, waiting_for) in
        server_turns().iter().zip(["connection.start", "connection.tune", "connection.open-ok"])
    {
        for offset in [offset, offset + 1, offset + 7, offset + turn.len() - 1] {
            // On a machine that is too busy to get that far in this time, it gets more.
            let mut limit = Duration::from_millis(60);
            let mut timeout = silent_at(offset, limit);
            while timeout.waiting_for != waiting_for && limit < PROMPT / 2 {
                limit *= 2;
                timeout = silent_at(offset, limit);
            }
            assert_eq!((timeout.waiting_for, timeout.limit), (waiting_for, limit));
        }
        offset += turn.len();
    }
    nothing_is_left();
}

/// Row 10: a peer that never stops saying something is not waited for longer than a silent one.
#[test]
fn a_peer_that_sends_a_byte_now_and_then_gains_no_time() {
    let limit = Duration::from_millis(100);
    let peer = Peer::run(move |peer| {
        peer.expect_protocol_header();
        while peer.try_raw(&frame(HEARTBEAT, 0, &[])) {}
    });
    let error = of_the_address(&failure(peer.config().handshake_timeout(limit)));
    assert!(matches!(error, Error::Timeout(timeout) if timeout.waiting_for == "connection.start"));
}

/// What a peer may send instead of one of its turns, and the code of the error.
fn misbehaviours(turn: usize) -> Vec<(&'static str, Vec<u8>, ReplyCode)> {
    let right = server_turns()[turn].clone();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = right.clone();
        change(&mut bytes);
        bytes
    };
    let payload = |bytes: &[u8]| bytes[7..bytes.len() - 1].to_vec();
    let wrong = [method(0, OPEN_OK, args![""]), start("PLAIN"), start("PLAIN")][turn].clone();
    vec![
        ("a method of another step", wrong, ReplyCode::CommandInvalid),
        ("the client's own method", method(0, TUNE_OK, args![0, 0, 0]), ReplyCode::CommandInvalid),
        ("another channel", with(&|bytes| bytes[2] = 1), ReplyCode::UnexpectedFrame),
        ("a frame of unknown type", with(&|bytes| bytes[0] = 4), ReplyCode::FrameError),
        ("a header frame", header(0, 0, NO_PROPERTIES), ReplyCode::UnexpectedFrame),
        ("a body frame", frame(BODY, 0, b"x"), ReplyCode::UnexpectedFrame),
        ("an unknown class", with(&|bytes| bytes[8] = 99), ReplyCode::FrameError),
        ("an unknown method", with(&|bytes| bytes[10] = 99), ReplyCode::FrameError),
        ("no end octet", with(&|bytes| *bytes.last_mut().unwrap() = 0), ReplyCode::FrameError),
        ("a frame over the limit", with(&|bytes| bytes[3] = 0x10), ReplyCode::FrameError),
        ("trailing bytes", frame(METHOD, 0, &[&payload(&right)[..], b"x"].concat()), ReplyCode::FrameError),
        (
            "a payload that is too short",
            frame(METHOD, 0, &payload(&right)[..payload(&right).len() - 1]),
            ReplyCode::FrameError,
        ),
        ("an empty payload", frame(METHOD, 0, &[]), ReplyCode::FrameError),
    ]
}

/// Rows 10, 22, 91: whatever the peer does wrong at whichever step is a protocol error with a telling code.
#[test]
fn misbehaviour_at_any_step_is_a_protocol_error() {
    for turn in 0..3 {
        for (name, bytes, code) in misbehaviours(turn) {
            let error = failure_of(move |peer| {
                shake_hands_up_to_turn(peer, turn);
                peer.raw(&bytes);
                peer.silence();
            });
            assert!(matches!(error, Error::Protocol(_)), "{name} at turn {turn}: {error:?}");
            assert_eq!(error.reply_code(), Some(code), "{name} at turn {turn}: {error}");
        }
    }
    nothing_is_left();
}

/// Row 10: a broker of another version answers with its own header.
#[test]
fn another_version_is_named() {
    let error = failure_of(|peer| {
        peer.expect_protocol_header();
        peer.raw(b"AMQP\x00\x01\x00\x00");
        peer.fin();
    });
    assert!(matches!(error, Error::ProtocolVersion { offered: [0, 1, 0, 0] }), "{error:?}");
    assert!(error.to_string().contains("0-1-0-0") && error.is_hard(), "{error}");
}

/// Rows 7, 10: what is no AMQP at all is refused with a hint of what it may be.
#[test]
fn a_peer_that_speaks_something_else_is_recognised() {
    for (answer, hint) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ""),
        (b"\x00", ""),
    ] {
        let error = failure_of(move |peer| {
            peer.expect_protocol_header();
            peer.raw(answer);
            peer.silence();
        });
        assert!(matches!(error, Error::Protocol(_)), "{error:?}");
        assert!(error.to_string().contains(hint), "{error}");
    }
}

/// Row 11: values below the protocol's minimum are refused.
#[test]
fn a_tiny_frame_max_is_refused() {
    for frame_max in [1, 100, 4095] {
        let error = failure_of(move |peer| {
            shake_hands_up_to_turn(peer, 1);
            peer.send_tune(Tune { frame_max, ..Tune::default() });
            peer.silence();
        });
        assert_eq!(error.reply_code(), Some(ReplyCode::NotAllowed), "{error:?}");
        assert!(error.to_string().contains(&frame_max.to_string()), "{error}");
    }
}

/// Row 9: a refusal while authenticating is an error of its own, with the broker's text; it comes at once.
#[test]
fn refused_credentials_are_told_with_the_brokers_text() {
    let error = failure_of(|peer| {
        peer.expect_protocol_header();
        peer.raw(&start("PLAIN"));
        let start_ok = peer.expect(0, START_OK);
        assert_eq!(start_ok.text(2), format!("\0user\0{PASSWORD}"));
        peer.send(0, CLOSE, args![403, "ACCESS_REFUSED - Login was refused", 0, 0]);
        peer.expect(0, CLOSE_OK);
        peer.expect_end();
    });
    assert!(
        matches!(&error, Error::AuthenticationFailed(text) if **text == *"ACCESS_REFUSED - Login was refused"),
        "{error:?}"
    );
    assert_eq!(error.reply_code(), Some(ReplyCode::AccessRefused));
    assert!(error.is_hard() && !error.can_retry());
}

/// Row 9: other refusals at that step keep their code.
#[test]
fn another_refusal_while_authenticating_is_no_matter_of_credentials() {
    let error = failure_of(|peer| {
        shake_hands_up_to_turn(peer, 1);
        peer.send(0, CLOSE, args![320, "CONNECTION_FORCED - node is going down", 0, 0]);
        peer.expect(0, CLOSE_OK);
        peer.silence();
    });
    assert_eq!(error.reply_code(), Some(ReplyCode::ConnectionForced), "{error:?}");
    assert!(error.can_retry());
}

/// Row 10: a virtual host that does not exist, or is forbidden.
#[test]
fn a_refused_virtual_host_is_told_with_the_brokers_text() {
    let peer = Peer::run(|peer| {
        shake_hands_up_to_turn(peer, 2);
        let text = "NOT_ALLOWED - vhost shop not found";
        peer.send(0, CLOSE, args![530, text, 10, 40]);
        peer.expect(0, CLOSE_OK);
        peer.expect_end();
    });
    let error = failure(peer.config().vhost("shop"));
    let Error::Refused(refusal) = &error else { panic!("{error:?}") };
    assert_eq!((refusal.scope, refusal.code), (Scope::Connection, ReplyCode::NotAllowed));
    assert_eq!((&*refusal.text, &*refusal.method), ("NOT_ALLOWED - vhost shop not found", "connection.open"));
}

/// Row 8: no common mechanism names both lists, and nothing is sent.
#[test]
fn no_common_mechanism_names_both_lists() {
    let error = failure_of(|peer| {
        peer.expect_protocol_header();
        peer.raw(&start("EXTERNAL GSSAPI"));
        peer.expect_end();
    });
    let text = error.to_string();
    for name in ["EXTERNAL", "GSSAPI", "PLAIN", "AMQPLAIN"] {
        assert!(text.contains(name), "{name}: {text}");
    }
}

/// A mechanism as a user may write one: it proves that it knows the password, once for each challenge.
#[derive(Debug)]
struct Riddle;

impl SaslMechanism for Riddle {
    fn name(&self) -> &str {
        "RIDDLE"
    }

    fn initial_response(&self, credentials: &Credentials) -> leveret::Result<Vec<u8>> {
        Ok(credentials.username.clone().into_bytes())
    }

    fn challenge(&self, credentials: &Credentials, challenge: &[u8]) -> leveret::Result<Vec<u8>> {
        Ok([challenge, credentials.password.expose().len().to_string().as_bytes()].concat())
    }
}

/// Row 8: a user's own mechanism answers any number of challenges.
#[test]
fn a_users_mechanism_answers_challenges() {
    let peer = Peer::run(|peer| {
        peer.expect_protocol_header();
        peer.raw(&start("PLAIN RIDDLE"));
        let start_ok = peer.expect(0, START_OK);
        assert_eq!((start_ok.text(1), start_ok.text(2)), ("RIDDLE", "user"));
        for challenge in ["one", "two", ""] {
            peer.send(0, SECURE, args![challenge]);
            assert_eq!(peer.expect(0, SECURE_OK).text(0), format!("{challenge}21"));
        }
        peer.send_tune(Tune::default());
        peer.expect(0, TUNE_OK);
        peer.expect(0, OPEN);
        peer.send(0, OPEN_OK, args![""]);
        peer.close();
    });
    let config = peer.config().credentials("user", PASSWORD).auth_mechanism(Riddle);
    Connection::open(config).unwrap().close().unwrap();
    peer.finish();
}

/// Row 8: each mechanism of the library, as the peer hears it: by its name, with what proves who it is.
#[test]
fn each_mechanism_says_what_it_has_to_say() {
    let amqplain = format!("\x05LOGINS\0\0\0\x04user\x08PASSWORDS\0\0\0\x15{PASSWORD}");
    for (mechanism, name, response) in [
        (Mechanism::Plain, "PLAIN", format!("\0user\0{PASSWORD}")),
        (Mechanism::AmqPlain, "AMQPLAIN", amqplain),
        (Mechanism::External, "EXTERNAL", String::new()),
        (Mechanism::Anonymous, "ANONYMOUS", String::new()),
    ] {
        let peer = Peer::run(|peer| {
            peer.expect_protocol_header();
            peer.raw(&start("AMQPLAIN ANONYMOUS EXTERNAL PLAIN"));
            let start_ok = peer.expect(0, START_OK);
            peer.send_tune(Tune::default());
            peer.expect(0, TUNE_OK);
            peer.expect(0, OPEN);
            peer.send(0, OPEN_OK, args![""]);
            peer.close();
            start_ok
        });
        let config = peer.config().credentials("user", PASSWORD).auth_mechanism(mechanism);
        Connection::open(config).unwrap().close().unwrap();
        let start_ok = peer.finish();
        assert_eq!((start_ok.text(1), start_ok.text(2)), (name, &*response));
    }
}

/// Row 16: the socket is bound to the address that was chosen.
#[cfg(target_os = "linux")] // Where all of 127.0.0.0/8 is this machine.
#[test]
fn the_local_address_can_be_chosen() {
    let peer = Peer::run(|peer| {
        let from = peer.socket().peer_addr().unwrap().ip();
        peer.handshake();
        peer.close();
        from
    });
    Connection::open(peer.config().bind_address([127, 0, 0, 9])).unwrap().close().unwrap();
    assert_eq!(peer.finish(), std::net::IpAddr::from([127, 0, 0, 9]));
}

/// Row 8: a challenge to a mechanism that knows none is an error that names it.
#[test]
fn an_unexpected_challenge_is_an_error() {
    let error = failure_of(|peer| {
        shake_hands_up_to_turn(peer, 1);
        peer.send(0, SECURE, args!["riddle me this"]);
        peer.expect_end();
    });
    assert!(error.to_string().contains("PLAIN"), "{error}");
}

/// Rows 11, 12: the client says who it is, its connection's name, and exactly the capabilities that it
/// implements; tune-ok carries what is used.
#[test]
fn the_client_says_who_it_is_and_what_is_used() {
    let peer = Peer::run(|peer| {
        let greeting = peer.handshake_with(Tune { channel_max: 100, frame_max: 0, heartbeat: 30 });
        peer.close();
        greeting
    });
    let config = peer.config().connection_name("billing").frame_max(8192).heartbeat(Duration::from_secs(20));
    let connection = Connection::open(config.vhost("shop")).unwrap();
    assert_eq!(connection.channel_max(), 100);
    assert_eq!(connection.frame_max(), 8192);
    assert_eq!(connection.heartbeat(), Duration::from_secs(20));
    let product = connection.server_properties().get("product").and_then(|value| value.as_str());
    assert_eq!(product, Some("scripted peer"));
    connection.close().unwrap();

    let greeting = peer.finish();
    assert_eq!(greeting.tune_ok, Arguments(args![100, 8192, 20].to_vec()));
    assert_eq!(greeting.open.text(0), "shop");
    let properties = greeting.start_ok.bytes(0);
    let platform = concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"), " or later");
    for entry in [
        table(&[("platform", 'S', platform.as_bytes())]),
        table(&[("product", 'S', b"leveret")]),
        table(&[("version", 'S', env!("CARGO_PKG_VERSION").as_bytes())]),
        table(&[("connection_name", 'S', b"billing")]),
        table(&[("capabilities", 'F', &capabilities())]),
    ] {
        assert!(properties.windows(entry.len()).any(|window| window == entry), "{properties:?}");
    }
}

/// Exactly these, in any order; the library sorts them.
fn capabilities() -> Vec<u8> {
    let names = [
        "authentication_failure_close",
        "basic.nack",
        "connection.blocked",
        "consumer_cancel_notify",
        "exchange_exchange_bindings",
        "per_consumer_qos",
        "publisher_confirms",
    ];
    names.iter().flat_map(|name| table(&[(name, 't', &[1])])).collect()
}

/// Rows 11, 20: no limits on either side, and heartbeats off.
#[test]
fn zero_means_no_limit() {
    let peer = Peer::run(|peer| {
        let greeting = peer.handshake_with(Tune { channel_max: 0, frame_max: 0, heartbeat: 60 });
        peer.close();
        greeting.tune_ok
    });
    let connection = Connection::open(peer.config().channel_max(0).frame_max(0)).unwrap();
    assert_eq!((connection.channel_max(), connection.frame_max()), (65535, 0));
    assert_eq!(connection.heartbeat(), Duration::ZERO);
    connection.close().unwrap();
    assert_eq!(peer.finish(), Arguments(args![65535, 0, 0].to_vec()));
}

/// Rows 1, 91: packets cut anywhere make no difference, and what comes together with open-ok is not lost.
#[test]
fn a_handshake_in_slices_works() {
    for slice in [1, 2, 7, 8] {
        let peer = Peer::run(move |peer| {
            for (index, turn) in server_turns().iter().enumerate() {
                expect_client_turn(peer, index);
                peer.sliced(turn, slice);
            }
            peer.expect(1, CHANNEL_OPEN);
            peer.sliced(&method(1, CHANNEL_OPEN_OK, args![""]), slice);
            peer.close_channel(1);
            peer.close();
        });
        let connection = Connection::open(peer.config()).unwrap();
        connection.channel().unwrap().close().unwrap();
        connection.close().unwrap();
        peer.finish();
    }
    let peer = Peer::run(|peer| {
        shake_hands_up_to_turn(peer, 2);
        let open_ok = method(0, OPEN_OK, args![""]);
        peer.raw(&[open_ok, method(0, CLOSE, args![320, "bye", 0, 0])].concat());
        peer.expect(0, CLOSE_OK);
        peer.expect_end();
    });
    let connection = Connection::open(peer.config()).unwrap();
    assert_eq!(connection.wait_closed().reply_code(), Some(ReplyCode::ConnectionForced));
}

/// Row 5: an address that misbehaves is not the last word while there is another.
#[test]
fn the_next_address_is_tried() {
    let broken = Peer::run(Peer::fin);
    let good = Peer::run(|peer| {
        peer.handshake();
        peer.close();
    });
    let config = broken.config().fallback_host("127.0.0.1", good.port);
    Connection::open(config).unwrap().close().unwrap();
}
