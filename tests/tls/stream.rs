//! Streams that the program supplies, with a scripted peer.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use leveret::{Config, Connection, Error, Stream};

use crate::{
    common::{
        limits::{PROMPT, ample},
        peer::{Peer, QUEUE_PURGE, QUEUE_PURGE_OK, args, eventually},
    },
    front::{End, Front, acceptor, trusting},
};

fn plain() -> Config {
    ample(Config::new()).heartbeat(Duration::ZERO)
}

/// A TCP socket as a stream, and whether it was shut down.
fn over_tcp(port: u16) -> (Stream, Arc<AtomicBool>) {
    let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (reader, writer) = (socket.try_clone().unwrap(), socket.try_clone().unwrap());
    let called = Arc::new(AtomicBool::new(false));
    let calling = called.clone();
    let stream = Stream::new(reader, writer, move || {
        calling.store(true, Ordering::SeqCst);
        let _ = socket.shutdown(Shutdown::Both);
    });
    (stream, called)
}

/// Row 7: any pair of halves; at the end it is shut down, after the last words.
#[test]
fn a_conversation_over_a_stream_is_the_same_conversation() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, QUEUE_PURGE);
        peer.send(1, QUEUE_PURGE_OK, args![7]);
        let (_, _, body) = peer.expect_publish(1);
        peer.close_channel(1);
        peer.close();
        body
    });
    let (stream, was_shut_down) = over_tcp(peer.port);
    let connection = Connection::open_stream(stream, plain()).unwrap();
    let channel = connection.channel().unwrap();
    assert_eq!(channel.queue_purge("q").unwrap(), 7);
    let body: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
    channel.basic_publish("", "q", &body).unwrap();
    channel.close().unwrap();
    connection.close().unwrap();
    assert_eq!(peer.finish(), body);
    eventually("the stream is shut down", || was_shut_down.load(Ordering::SeqCst));
}

/// TLS as the configuration says, over the program's stream: the first host names the broker.
#[test]
fn tls_can_be_spoken_over_a_stream() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.close();
    });
    let front = Front::before(peer.port, acceptor("server"));
    let (stream, _) = over_tcp(front.address.port());
    let connection = Connection::open_stream(stream, plain().tls(trusting())).unwrap();
    connection.close().unwrap();
    peer.finish();
    let end = front.end();
    assert!(matches!(end, End::Over { goodbye: true, .. }), "{end:?}");

    let (stream, was_shut_down) = over_tcp(front.address.port());
    let error =
        Connection::open_stream(stream, plain().host("other.example", 1).tls(trusting())).unwrap_err();
    assert!(matches!(error, Error::Tls(_)), "{error:?}");
    eventually("the stream is shut down", || was_shut_down.load(Ordering::SeqCst));
}

/// A half that waits until it is released, for ever if need be.
struct Waits(mpsc::Receiver<()>);

impl Read for Waits {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(0)
    }
}

impl Write for Waits {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Row 10: the limits hold although neither half returns, and even though the shutdown does nothing.
#[test]
fn a_stream_that_never_answers_ends_at_the_handshake_timeout() {
    for tls in [false, true] {
        let ((release_reader, reader), (release_writer, writer)) = (mpsc::channel(), mpsc::channel());
        let stream = Stream::new(Waits(reader), Waits(writer), || {});
        let mut config = plain().handshake_timeout(Duration::from_millis(200));
        config.tls = tls.then(trusting);
        let start = Instant::now();
        let error = Connection::open_stream(stream, config).unwrap_err();
        assert!(matches!(error, Error::Timeout(_)), "{error:?}");
        assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
        drop::<(mpsc::Sender<()>, mpsc::Sender<()>)>((release_reader, release_writer));
    }
}

/// Row 13: closing is bounded, although the stream's halves wait for ever and its shutdown does nothing.
#[test]
fn closing_does_not_depend_on_the_stream() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.silence();
    });
    let socket = TcpStream::connect(("127.0.0.1", peer.port)).unwrap();
    let (reader, writer) = (socket.try_clone().unwrap(), socket.try_clone().unwrap());
    let stream = Stream::new(reader, writer, || {});
    let config = plain().close_timeout(Duration::from_millis(200)).call_timeout(Duration::from_millis(200));
    let connection = Connection::open_stream(stream, config).unwrap();
    let channel = connection.channel().unwrap();
    let start = Instant::now();
    assert!(matches!(channel.queue_purge("q").unwrap_err(), Error::Timeout(_)));
    let publisher = thread::spawn({
        let channel = channel.clone();
        move || while channel.basic_publish("", "q", &[0; 100_000]).is_ok() {}
    });
    assert!(matches!(connection.close().unwrap_err(), Error::Timeout(_)));
    publisher.join().unwrap();
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    socket.shutdown(Shutdown::Both).unwrap();
    drop(channel);
    peer.finish();
}

/// Row 22: what the stream says is the cause.
#[test]
fn the_error_of_the_stream_is_the_cause() {
    struct Breaks(TcpStream, mpsc::Receiver<()>);
    impl Read for Breaks {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.set_read_timeout(Some(Duration::from_millis(5)))?;
            match self.1.try_recv() {
                Err(mpsc::TryRecvError::Empty) => self.0.read(buffer),
                _ => Err(io::Error::other("the tunnel has collapsed")),
            }
        }
    }
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.expect_end();
    });
    let socket = TcpStream::connect(("127.0.0.1", peer.port)).unwrap();
    let (break_it, breaks) = mpsc::channel();
    let reader = Breaks(socket.try_clone().unwrap(), breaks);
    let stream = Stream::new(reader, socket.try_clone().unwrap(), move || {
        let _ = socket.shutdown(Shutdown::Both);
    });
    let connection = Connection::open_stream(stream, plain()).unwrap();
    break_it.send(()).unwrap();
    let cause = connection.wait_closed_timeout(PROMPT).expect("it has ended");
    assert_eq!(cause.to_string(), "reading failed: the tunnel has collapsed");
    drop(connection);
    peer.finish();
}
