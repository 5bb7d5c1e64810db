//! What becomes of everything when somebody goes: a peer, or the listener.

use super::*;

/// Whoever waits for a peer learns why it left, and so does every later call.
#[test]
fn every_way_to_leave_has_its_name() {
    let _watchdog = watched();
    let (serve, consumers) = offering();
    let listener = serve.listen("127.0.0.1:0").unwrap();
    let proxy = Proxy::before(listener.address().unwrap());
    let departed = |error: Error| match error {
        Error::Departed(why) => why,
        other => panic!("{other}"),
    };
    for expected in [
        Departure::Cancelled,
        Departure::ChannelClosed,
        Departure::ChannelFailed,
        Departure::ConnectionClosed,
        Departure::ConnectionFailed,
        Departure::Lost,
        Departure::Ended,
    ] {
        let connection = connect_through(&proxy);
        let channel = connection.channel().unwrap();
        channel.basic_qos(1).unwrap();
        let mut received = channel.basic_consume("q").unwrap();
        let consumer = Arc::new(consumers.recv_timeout(PATIENCE).unwrap());
        let sent = consumer.send("unacked").unwrap();
        // This one waits for room until there is an end to it.
        let waits = thread::spawn({
            let consumer = consumer.clone();
            move || consumer.send("never")
        });
        match expected {
            Departure::Cancelled => received.cancel().unwrap(),
            Departure::ChannelClosed => channel.close().unwrap(),
            Departure::ChannelFailed => assert!(channel.basic_consume("").is_err()),
            Departure::ConnectionClosed => connection.close().unwrap(),
            Departure::ConnectionFailed => assert!(channel.basic_get("q").is_err()),
            Departure::Lost => proxy.cut(Cut::Reset),
            _ => consumer.peer().close(ReplyCode::ConnectionForced, "enough"),
        }
        assert_eq!(departed(waits.join().unwrap().unwrap_err()), expected);
        assert_eq!(consumer.wait_ended(PATIENCE).unwrap(), expected);
        assert_eq!(departed(consumer.send("later").unwrap_err()), expected);
        if expected == Departure::Cancelled {
            // What was delivered can still be settled.
            received.next().unwrap().unwrap().ack().unwrap();
            assert_eq!(sent.wait(PATIENCE).unwrap(), Settled::Acked);
        } else {
            assert_eq!(departed(sent.wait(PATIENCE).unwrap_err()), expected);
        }
    }
}

/// The connection is cut after every number of bytes of a conversation: the listener lives on, and only whole messages are
/// handled.
#[test]
fn a_peer_may_die_at_any_point() {
    let _watchdog = watched();
    let (serve, received) = collecting();
    let listener = serve
        .consumers(|consumer: Consumer| {
            // Not here: the peer's messages would wait for it.
            thread::spawn(move || while consumer.send("to you").is_ok() {});
            Ok(())
        })
        .listen("127.0.0.1:0")
        .unwrap();
    let whole = die_at_any_point(listener.address().unwrap(), 7, |proxy| {
        Connection::open(Config::new().host("127.0.0.1", proxy.address.port()))
    });
    listener.wait_left(PATIENCE).unwrap();
    let connection = listener.connect().unwrap();
    publish_on(&connection).publish_confirmed("", "q", "the last").unwrap();
    let mut texts: Vec<String> = Vec::new();
    while texts.last().is_none_or(|text| text != "the last") {
        texts.push(received.recv_timeout(PATIENCE).unwrap());
    }
    assert!(
        texts.len() <= whole + 1 && texts[..texts.len() - 1].iter().all(|text| text == "whole"),
        "{texts:?}"
    );
}

#[test]
fn stopping_lets_handlers_finish_and_tells_peers() {
    let _watchdog = watched();
    let (entered, inside) = mpsc::channel();
    let (sender, consumers) = mpsc::channel();
    let (open, wait) = door();
    let listener = Serve::new()
        .messages(move |_: &Published| {
            entered.send(())?;
            wait();
            Ok(())
        })
        .consumers(move |consumer: Consumer| Ok(sender.send(consumer)?))
        .workers(1)
        .listen("127.0.0.1:0")
        .unwrap();
    let connection = Connection::open(listener.uri().unwrap()).unwrap();
    let channel = publish_on(&connection);
    let _received = channel.basic_consume("q").unwrap();
    let consumer = consumers.recv_timeout(PATIENCE).unwrap();
    let mut first = channel.deferred().basic_publish("", "q", "running").unwrap();
    let mut second = channel.deferred().basic_publish("", "q", "not begun").unwrap();
    inside.recv_timeout(PATIENCE).unwrap();
    let stopping = thread::spawn(move || drop(listener));
    // No handler is started any more once waits for peers have ended.
    assert_eq!(consumer.wait_ended(PATIENCE).unwrap(), Departure::Ended);
    assert!(!stopping.is_finished());
    open.send(()).unwrap();
    stopping.join().unwrap();
    assert!(matches!(first.wait_timeout(PATIENCE), Some(Outcome::Acked)));
    assert!(matches!(second.wait_timeout(PATIENCE), Some(Outcome::Unknown(_))));
    let closed = connection.wait_closed_timeout(PATIENCE).unwrap();
    assert_eq!(closed.reply_code(), Some(ReplyCode::ConnectionForced));
}

/// A handler may stop its own listener, and one that waits for a peer ends when its listener does.
#[test]
fn stopping_ends_every_wait() {
    let _watchdog = watched();
    let (sender, error) = mpsc::channel();
    let listener = Serve::new()
        .consumers(move |consumer: Consumer| {
            consumer.send("one")?;
            sender.send(None)?;
            sender.send(consumer.send("two").err())?;
            Ok(())
        })
        .start()
        .unwrap();
    let connection = listener.connect().unwrap();
    let channel = connection.channel().unwrap();
    channel.basic_qos(1).unwrap();
    let _received = channel.basic_consume("q").unwrap();
    assert!(error.recv_timeout(PATIENCE).unwrap().is_none());
    drop(listener);
    let error = error.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(error, Some(Error::Departed(Departure::Ended))), "{error:?}");

    let place: Arc<Mutex<Option<Listener>>> = Arc::default();
    let listener = Serve::new()
        .messages({
            let place = place.clone();
            move |_: &Published| {
                drop(place.lock().unwrap().take());
                Ok(())
            }
        })
        .start()
        .unwrap();
    let connection = listener.connect().unwrap();
    let channel = publish_on(&connection);
    *place.lock().unwrap() = Some(listener);
    let _ = channel.publish_confirmed("", "q", "stop");
    connection.wait_closed_timeout(PATIENCE).unwrap();
    eventually("the handler's listener is gone", || place.lock().unwrap().is_none());
}
