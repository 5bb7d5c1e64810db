//! Coming together, or not, with a server in this process.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use leveret::{
    Config, Connection, Error, ServerName, TlsOptions, TlsProblem,
    native_tls::{Protocol, TlsConnector},
};
use openssl::ssl::SslVersion;

use crate::{
    common::{
        limits::{PROMPT, ample},
        peer::Peer,
    },
    front::{End, Front, acceptor, acceptor_for, trusting, trusting_quickly},
    problem, refused,
};

/// A way to `front` for the host name `localhost`.
fn config(front: &Front, tls: TlsOptions) -> Config {
    ample(Config::new()).host("127.0.0.1", front.address.port()).heartbeat(Duration::ZERO).tls(tls)
}

/// No byte of AMQP has reached the server.
fn assert_nothing_was_said(front: &Front) {
    let end = front.end();
    assert!(matches!(end, End::Refused(_)), "{end:?}");
}

/// A port where nobody listens.
fn nobody() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Row 7: a certificate that cannot be accepted is a named error, and the server hears no AMQP.
#[test]
fn a_server_that_is_not_who_it_should_be_hears_nothing() {
    for (certificate, expected) in [
        ("server-foreign", TlsProblem::UnknownAuthority),
        ("server-name", TlsProblem::WrongName),
        ("server-expired", TlsProblem::Expired),
    ] {
        for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
            let front = Front::alone(acceptor_for(certificate, Some(version)));
            let failure = refused(config(&front, trusting()));
            assert_eq!(failure.problem, expected, "{certificate}: {failure}");
            assert_nothing_was_said(&front);
            let text = failure.to_string();
            assert!(text.contains("the broker's certificate"), "{text}");
            if expected == TlsProblem::WrongName {
                assert!(text.contains("127.0.0.1"), "{text}");
            }
        }
    }
}

/// Row 7: verification is on by default, against the authorities of the operating system.
#[test]
fn without_settings_an_authority_of_our_own_is_unknown() {
    let front = Front::alone(acceptor("server"));
    let uri = format!("amqps://127.0.0.1:{}", front.address.port());
    assert_eq!(problem(uri.parse().unwrap()), TlsProblem::UnknownAuthority);
    assert_nothing_was_said(&front);
}

/// Row 7: the opt-out, by its field and in a URI.
#[test]
fn any_certificate_is_accepted_only_when_asked_for() {
    for certificate in ["server-foreign", "server-name", "server-expired"] {
        let peer = Peer::run(|peer| {
            peer.handshake();
            peer.close();
        });
        let front = Front::before(peer.port, acceptor(certificate));
        let uri = format!("amqps://127.0.0.1:{}/v?heartbeat=0&verify=verify_none", front.address.port());
        let as_field = TlsOptions::new().danger_accept_any_certificate(true);
        let from_uri = ample(uri.parse().unwrap()).heartbeat(Duration::ZERO);
        assert_eq!(from_uri.to_uri(), config(&front, as_field).vhost("v").to_uri());
        Connection::open(from_uri).unwrap().close().unwrap();
        peer.finish();
    }
}

/// Row 7: the name that is expected can be another one than the host's.
#[test]
fn a_custom_server_name_is_the_one_that_counts() {
    let front = Front::alone(acceptor("server"));
    let failure = refused(config(&front, trusting().server_name("other.example")));
    assert_eq!(failure.problem, TlsProblem::WrongName);
    assert!(failure.details.contains("other.example"), "{failure}");

    for name in [ServerName::Custom("other.example".into()), ServerName::Off] {
        let peer = Peer::run(|peer| {
            peer.handshake();
            peer.close();
        });
        let off = name == ServerName::Off;
        let front = Front::before(peer.port, acceptor(if off { "server" } else { "server-name" }));
        let connection = Connection::open(config(&front, trusting().server_name(name))).unwrap();
        connection.close().unwrap();
        peer.finish();
    }
}

/// What the client hello holds, for whom it may concern.
fn client_hello(server_name: ServerName) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut hello = vec![0; 4096];
        let length = socket.read(&mut hello).unwrap();
        hello.truncate(length);
        hello
    });
    let config = ample(Config::new()).host("localhost", port).tls(TlsOptions::new().server_name(server_name));
    assert!(Connection::open(config).is_err());
    server.join().unwrap()
}

/// Row 7: the server name indication: the host's, another one, or none.
#[test]
fn the_server_name_is_sent_as_it_was_set() {
    let sends = |hello: &[u8], name: &str| hello.windows(name.len()).any(|window| window == name.as_bytes());
    assert!(sends(&client_hello(ServerName::Host), "localhost"));
    let custom = client_hello("mq.example".into());
    assert!(sends(&custom, "mq.example") && !sends(&custom, "localhost"));
    assert!(!sends(&client_hello(ServerName::Off), "localhost"));
}

/// Row 7: TLS 1.2 at least.
#[test]
fn both_versions_work_and_a_server_without_them_is_incompatible() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let peer = Peer::run(|peer| {
            peer.handshake();
            peer.close();
        });
        let front = Front::before(peer.port, acceptor_for("server", Some(version)));
        Connection::open(config(&front, trusting())).unwrap().close().unwrap();
        peer.finish();
        let end = front.end();
        assert!(matches!(end, End::Over { goodbye: true, .. }), "close says goodbye: {end:?}");
    }
    let newest = TlsConnector::builder().min_protocol_version(Some(Protocol::Tlsv13)).build().unwrap();
    let front = Front::alone(acceptor_for("server", Some(SslVersion::TLS1_2)));
    let failure = refused(config(&front, TlsOptions::new().connector(newest)));
    assert_eq!(failure.problem, TlsProblem::Incompatible, "{failure}");
    assert_nothing_was_said(&front);
}

/// Row 5: an address whose certificate is wrong is not the last one that is tried.
#[test]
fn other_addresses_are_tried_after_a_wrong_certificate() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.close();
    });
    let wrong = Front::alone(acceptor("server-expired"));
    let right = Front::before(peer.port, acceptor("server"));
    let both = config(&wrong, trusting()).fallback_host("127.0.0.1", right.address.port());
    Connection::open(both).unwrap().close().unwrap();
    peer.finish();
    assert_nothing_was_said(&wrong);

    let error = Connection::open(config(&wrong, trusting()).fallback_host("127.0.0.1", nobody()));
    let Err(Error::Connect(failure)) = error else { panic!("{error:?}") };
    assert_eq!(failure.attempts.len(), 2, "each address once: {failure}");
    let Error::Tls(first) = &failure.attempts[0].error else { panic!("{failure}") };
    assert_eq!(first.problem, TlsProblem::Expired);
    assert!(Error::Connect(failure).can_retry(), "the other address may come back");

    let wrong_again =
        Connection::open(config(&wrong, trusting()).fallback_host("127.0.0.1", wrong.address.port()));
    let error = wrong_again.unwrap_err();
    assert!(matches!(error, Error::Connect(_)) && !error.can_retry(), "{error}");
}

/// A server that answers the first bytes it gets with these and then hangs up, or stays.
fn answering(bytes: &'static [u8], stay: bool) -> (u16, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut hello = [0; 4096];
        let _ = socket.read(&mut hello).unwrap();
        socket.write_all(bytes).unwrap();
        while stay && matches!(socket.read(&mut hello), Ok(1..)) {}
    });
    (port, server)
}

/// Row 7: TLS on a plain port, with a hint.
#[test]
fn a_peer_without_tls_is_called_that() {
    for (answer, expected) in [
        (&b"AMQP\x00\x00\x09\x01"[..], "plain AMQP: is this the port for amqps?"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "plain HTTP"),
        (b"220 mail.example ESMTP\r\n", "does not speak TLS"),
    ] {
        for stay in [false, true] {
            let (port, server) = answering(answer, stay);
            let failure = refused(ample(Config::new()).host("127.0.0.1", port).tls(trusting()));
            assert_eq!(failure.problem, TlsProblem::NotTls, "{failure}");
            assert!(failure.to_string().contains(expected), "{failure}");
            server.join().unwrap();
        }
    }
    let (port, server) = answering(b"", false);
    let error = Connection::open(format!("amqps://127.0.0.1:{port}")).unwrap_err().to_string();
    assert!(error.contains("is this the port for amqps?"), "{error}");
    server.join().unwrap();
}

/// Row 7: AMQP on a port for TLS, with a hint.
#[test]
fn a_peer_that_wants_tls_is_called_that() {
    let front = Front::alone(acceptor("server"));
    let plain = ample(Config::new()).host("127.0.0.1", front.address.port());
    let error = Connection::open(plain).unwrap_err().to_string();
    assert!(error.contains("amqps"), "{error}");
}

/// Lets the first `limit` bytes of the server's through, and then nothing more.
fn silent_after(limit: usize, server: std::net::SocketAddr) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(server).unwrap();
        let up = thread::spawn({
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Both);
            }
        });
        let _ = std::io::copy(&mut (&server).take(limit as u64), &mut &client);
        up.join().unwrap();
    });
    port
}

/// Row 10: a peer that falls silent at any byte of the TLS handshake is given up in time.
#[test]
fn silence_at_every_byte_of_the_handshake_ends_in_time() {
    const LIMIT: Duration = Duration::from_millis(60);
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        // The server's part is shorter than that; what comes later is silence in AMQP.
        let (from, to) = (0, 1400);
        let front = Front::alone(acceptor_for("server", Some(version)));
        let server = front.address;
        let next = &std::sync::atomic::AtomicUsize::new(from);
        thread::scope(|scope| {
            for _ in 0..24 {
                scope.spawn(move || {
                    loop {
                        let bytes = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        if bytes >= to {
                            break;
                        }
                        let port = silent_after(bytes, server);
                        let config = ample(Config::new()).host("127.0.0.1", port).tls(trusting_quickly());
                        let start = Instant::now();
                        let error = Connection::open(config.handshake_timeout(LIMIT)).unwrap_err();
                        assert!(start.elapsed() < PROMPT, "{bytes}: {error}");
                        let Error::Connect(failure) = &error else { panic!("{bytes}: {error:?}") };
                        let inner = &failure.attempts[0].error;
                        assert!(matches!(inner, Error::Timeout(_)), "{bytes}: {error}");
                    }
                });
            }
        });
    }
}

/// The peer's goodbye in the middle of the handshake is not the end of the world, but of the connection.
#[test]
fn a_handshake_that_is_cut_anywhere_is_an_error() {
    let front = Front::alone(acceptor("server"));
    for bytes in [0, 1, 5, 6, 100, 500] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = front.address;
        let cutter = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut hello = [0; 4096];
            let length = client.read(&mut hello).unwrap();
            let mut server = TcpStream::connect(server).unwrap();
            server.write_all(&hello[..length]).unwrap();
            std::io::copy(&mut server.take(bytes), &mut client).unwrap();
        });
        let config = ample(Config::new()).host("127.0.0.1", port).tls(trusting());
        let error = Connection::open(config).unwrap_err();
        assert!(error.to_string().contains("during the TLS handshake"), "{bytes}: {error}");
        cutter.join().unwrap();
    }
}
