//! Peers that talk to the program directly: confirms after the handler, sending within the prefetch, and what becomes of
//! everything when somebody goes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use common::{
    peer::eventually,
    proxy::{Cut, Direction, Proxy},
    watchdog::{LIMIT, Watchdog, test_name},
};
use leveret::{
    BasicProperties, Config, Connection, Consume, Departure, Error, ExchangeDeclare, ExchangeKind, Message,
    Outcome, Publish, QueueDeclare, ReplyCode, Requeue,
    broker::{BrokerConfig, Permissions, User},
    direct::{Consumer, Listener, Published, Serve, Settled},
    rpc,
};

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Long enough for something to happen that must not.
const MOMENT: Duration = Duration::from_millis(50);

fn watched() -> Watchdog {
    Watchdog::new(&test_name(), LIMIT)
}

/// Every message's text goes to the receiver.
fn collecting() -> (Serve, Receiver<String>) {
    let (sender, received) = mpsc::channel();
    let serve = Serve::new().messages(move |message: &Published| {
        sender.send(message.text()?.to_owned())?;
        Ok(())
    });
    (serve, received)
}

/// Every consumer goes to the receiver.
fn offering() -> (Serve, Receiver<Consumer>) {
    let (sender, consumers) = mpsc::channel();
    (Serve::new().consumers(move |consumer: Consumer| Ok(sender.send(consumer)?)), consumers)
}

/// A door that handlers wait at.
fn door() -> (Sender<()>, impl Fn() + Send + Sync + 'static) {
    let (open, closed) = mpsc::channel();
    let closed = Mutex::new(closed);
    (open, move || _ = closed.lock().unwrap().recv())
}

fn publish_on(connection: &Connection) -> leveret::Channel {
    let channel = connection.channel().unwrap();
    channel.confirm_select().unwrap();
    channel
}

#[test]
fn a_message_is_confirmed_after_its_handler() {
    let _watchdog = watched();
    let (open, wait) = door();
    let listener = Serve::new()
        .messages(move |_: &Published| {
            wait();
            Ok(())
        })
        .start()
        .unwrap();
    let connection = listener.connect().unwrap();
    let channel = publish_on(&connection);
    let mut confirms: Vec<_> =
        (0..3).map(|_| channel.deferred().basic_publish("", "q", "m").unwrap()).collect();
    for confirm in &mut confirms {
        assert!(confirm.wait_timeout(MOMENT).is_none(), "confirmed too early");
        open.send(()).unwrap();
        assert!(matches!(confirm.wait_timeout(PATIENCE), Some(Outcome::Acked)));
    }
}

#[test]
fn a_handler_that_fails_or_panics_nacks_its_message_only() {
    let _watchdog = watched();
    let listener = Serve::new()
        .messages(|message: &Published| match message.text()? {
            "panic" => panic!("on purpose"),
            "error" => Err("on purpose".into()),
            _ => Ok(()),
        })
        .workers(1)
        .start()
        .unwrap();
    let connection = listener.connect().unwrap();
    let channel = publish_on(&connection);
    for _ in 0..3 {
        assert!(matches!(channel.publish_confirmed("", "q", "panic"), Err(Error::Nacked)));
        assert!(matches!(channel.publish_confirmed("", "q", "error"), Err(Error::Nacked)));
        channel.publish_confirmed("", "q", "fine").unwrap();
    }
    let bytes: &[u8] = &[0xff];
    assert!(matches!(channel.publish_confirmed("", "q", bytes), Err(Error::Nacked)));
}

/// Without confirms the handler just runs; every message comes, whole and in order, also when its sender leaves at once.
#[test]
fn what_was_published_before_a_goodbye_is_handled() {
    let _watchdog = watched();
    let (sender, received) = mpsc::channel();
    let listener = Serve::new()
        .messages(move |message: &Published| {
            let number = message.properties.message_id.clone();
            sender.send((
                message.exchange.clone(),
                message.routing_key.clone(),
                number,
                message.body.clone(),
            ))?;
            Ok(())
        })
        .start()
        .unwrap();
    let connection = listener.connect().unwrap();
    let channel = connection.channel().unwrap();
    let bodies: Vec<Vec<u8>> = [0, 1, 131_063, 131_064, 131_065, 300_000].map(|size| vec![7; size]).into();
    for round in 0..300 {
        let properties = BasicProperties::new().message_id(round.to_string());
        let body = &bodies[round % bodies.len()];
        channel.basic_publish("x", "k", Publish::new(body).properties(&properties)).unwrap();
    }
    channel.close().unwrap();
    connection.close().unwrap();
    for round in 0..300 {
        let (exchange, key, number, body) = received.recv_timeout(PATIENCE).unwrap();
        assert_eq!((&*exchange, &*key, number), ("x", "k", Some(round.to_string())));
        assert_eq!(*body, *bodies[round % bodies.len()]);
    }
    listener.wait_left(PATIENCE).unwrap();
}

#[test]
fn a_peer_is_sent_what_its_prefetch_allows() {
    let _watchdog = watched();
    let (serve, consumers) = offering();
    let listener = serve.start().unwrap();
    let connection = listener.connect().unwrap();
    let channel = connection.channel().unwrap();
    channel.basic_qos(3).unwrap();
    let mut received = channel.basic_consume("orders").unwrap();
    let consumer = consumers.recv_timeout(PATIENCE).unwrap();
    assert_eq!((&*consumer.queue(), consumer.no_ack()), ("orders", false));

    let sent: Vec<_> = (0..3).map(|number| consumer.try_send(number.to_string()).unwrap()).collect();
    assert!(matches!(consumer.try_send("too much"), Err(Error::WouldBlock)));
    let waits = thread::scope(|scope| {
        let waits = scope.spawn(|| consumer.send("3").unwrap());
        let first = received.next().unwrap().unwrap();
        assert_eq!((first.text().unwrap(), &*first.routing_key(), &*first.exchange()), ("0", "orders", ""));
        assert_eq!(sent[0].try_wait().map(|outcome| outcome.is_ok()), None, "not settled yet");
        assert!(!waits.is_finished());
        first.ack().unwrap();
        waits.join().unwrap()
    });
    assert_eq!(sent[0].wait(PATIENCE).unwrap(), Settled::Acked);
    received.next().unwrap().unwrap().reject(Requeue::No).unwrap();
    received.next().unwrap().unwrap().nack(Requeue::Yes).unwrap();
    received.next().unwrap().unwrap().ack().unwrap();
    assert_eq!(sent[1].wait(PATIENCE).unwrap(), Settled::Rejected);
    assert_eq!(sent[2].wait(PATIENCE).unwrap(), Settled::Requeued);
    assert_eq!(waits.wait(PATIENCE).unwrap(), Settled::Acked);
}

/// Nothing is settled by a consumer that acknowledges nothing, and nothing limits it but its reading.
#[test]
fn a_peer_that_does_not_read_holds_up_its_sender_only() {
    let _watchdog = watched();
    let (serve, consumers) = offering();
    let listener = serve.send_timeout(Duration::from_millis(200)).listen("127.0.0.1:0").unwrap();
    let proxy = Proxy::before(listener.address().unwrap());
    let slow = connect_through(&proxy);
    let slow_channel = slow.channel().unwrap();
    let mut slow_receives = slow_channel.basic_consume(Consume::new("q").no_ack(true)).unwrap();
    let to_slow = consumers.recv_timeout(PATIENCE).unwrap();
    proxy.stall(Direction::ToClient);

    let body = vec![1; 64 * 1024];
    let mut sent = 0;
    let error = loop {
        match to_slow.send(&*body) {
            Ok(message) => assert_eq!(message.wait(PATIENCE).unwrap(), Settled::Untracked),
            Err(error) => break error,
        }
        sent += 1;
        assert!(sent < 2000, "there is no bound");
    };
    assert!(matches!(error, Error::Timeout(_)), "{error}");

    let quick = listener.connect().unwrap();
    let channel = quick.channel().unwrap();
    let mut received = channel.basic_consume(Consume::new("q").no_ack(true)).unwrap();
    consumers.recv_timeout(PATIENCE).unwrap().send("quick").unwrap();
    assert_eq!(received.next().unwrap().unwrap().text().unwrap(), "quick");

    proxy.resume(Direction::ToClient);
    assert_eq!(slow_receives.by_ref().take(sent).map(Result::unwrap).count(), sent);
    to_slow.send("again").unwrap();
}

fn connect_through(proxy: &Proxy) -> Connection {
    let SocketAddr::V4(address) = proxy.address else { panic!() };
    Connection::open(Config::new().host(address.ip().to_string(), address.port())).unwrap()
}

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

/// Dropping a consumer tells its peer.
#[test]
fn a_consumer_that_nobody_serves_is_cancelled() {
    let _watchdog = watched();
    let (taken, consumers) = mpsc::channel();
    let listener = Serve::new()
        .consumers(move |consumer: Consumer| match &*consumer.queue() {
            "kept" => Ok(taken.send(consumer)?),
            "dropped" => Ok(()),
            "error" => Err("not this".into()),
            _ => panic!("on purpose"),
        })
        .start()
        .unwrap();
    let connection = listener.connect().unwrap();
    let channel = connection.channel().unwrap();
    for queue in ["dropped", "error", "panic"] {
        let mut received = channel.basic_consume(queue).unwrap();
        assert!(matches!(received.next(), Some(Err(Error::CancelledByServer { .. }))), "{queue}");
    }
    let mut received = channel.basic_consume("kept").unwrap();
    let consumer = consumers.recv_timeout(PATIENCE).unwrap();
    consumer.send("last").unwrap();
    drop(consumer);
    assert_eq!(received.next().unwrap().unwrap().text().unwrap(), "last");
    assert!(matches!(received.next(), Some(Err(Error::CancelledByServer { .. }))));
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
    let converse = |proxy: &Proxy| -> leveret::Result<()> {
        let SocketAddr::V4(address) = proxy.address else { panic!() };
        let connection = Connection::open(Config::new().host(address.ip().to_string(), address.port()))?;
        let channel = connection.channel()?;
        channel.basic_qos(2)?;
        let mut consumer = channel.basic_consume("q")?;
        channel.confirm_select()?;
        channel.publish_confirmed("", "q", "whole")?;
        for _ in 0..3 {
            match consumer.next_timeout(PATIENCE)? {
                Some(delivery) => delivery.ack()?,
                None => break,
            }
        }
        drop(consumer);
        connection.close()
    };
    let proxy = Proxy::before(listener.address().unwrap());
    converse(&proxy).unwrap();
    let length = proxy.passed(Direction::ToBroker);
    let mut whole = 1;
    for (round, cut_at) in (1..length).step_by(7).enumerate() {
        let proxy = Proxy::before(listener.address().unwrap());
        let cut = if round % 2 == 0 { Cut::Fin } else { Cut::Reset };
        proxy.cut_at(Direction::ToBroker, cut_at, cut);
        let _ = converse(&proxy);
        whole += 1;
    }
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
fn many_peers_at_once() {
    let _watchdog = watched();
    const PEERS: usize = 50;
    let listener = Serve::new()
        .messages(|message: &Published| {
            message.reply(message.text()?.to_uppercase())?;
            Ok(())
        })
        .listen("127.0.0.1:0")
        .unwrap();
    let uri = listener.uri().unwrap();
    thread::scope(|scope| {
        for peer in 0..PEERS {
            let uri = &uri;
            scope.spawn(move || {
                let connection = Connection::open(&**uri).unwrap();
                let replies = if peer % 2 == 0 { rpc::Replies::Queue } else { rpc::Replies::Direct };
                let service = rpc::Service::new("upper").replies(replies);
                let client = rpc::Client::open(&connection, service).unwrap();
                for number in 0..10 {
                    let answer = client.call(&format!("a{peer}-{number}"), PATIENCE).unwrap();
                    assert_eq!(answer.text().unwrap(), format!("A{peer}-{number}"));
                }
            });
        }
    });
    listener.wait_left(PATIENCE).unwrap();
    assert!(listener.peers().is_empty());
}

/// Each worker has one peer at a time, and each peer one worker.
#[test]
fn messages_of_one_peer_are_handled_one_after_the_other() {
    let _watchdog = watched();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (sender, numbers) = mpsc::channel();
    let listener = Serve::new()
        .messages({
            let (running, most) = (running.clone(), most.clone());
            move |message: &Published| {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sender.send((message.peer().id(), message.text()?.parse::<u32>()?))?;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        })
        .workers(3)
        .start()
        .unwrap();
    let connections: Vec<_> = (0..6).map(|_| listener.connect().unwrap()).collect();
    thread::scope(|scope| {
        for connection in &connections {
            scope.spawn(move || {
                let channel = publish_on(connection);
                for number in 0..1000 {
                    channel.basic_publish("", "q", &number.to_string()).unwrap();
                }
                channel.wait_for_confirms(PATIENCE).unwrap();
            });
        }
    });
    assert!(most.load(Ordering::SeqCst) <= 3);
    let mut next = std::collections::HashMap::new();
    for (peer, number) in numbers.try_iter() {
        let expected = next.entry(peer).or_insert(0);
        assert_eq!(number, *expected, "out of order");
        *expected += 1;
    }
    assert!(next.len() == 6 && next.values().all(|count| *count == 1000), "{next:?}");
}

/// A handler that does not keep up holds up its peer, not the listener's memory; other peers go on.
#[test]
fn a_slow_handler_holds_up_its_peer() {
    let _watchdog = watched();
    let (open, wait) = door();
    let handled = Arc::new(AtomicUsize::new(0));
    let listener = Serve::new()
        .messages({
            let handled = handled.clone();
            move |message: &Published| {
                if message.routing_key == "slow" {
                    wait();
                    handled.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            }
        })
        .listen("127.0.0.1:0")
        .unwrap();
    let uri = listener.uri().unwrap();
    let config = Config::try_from(&*uri).unwrap().publish_timeout(Duration::from_millis(200));
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    let body = vec![1; 100_000];
    let mut published = 0;
    while channel.try_publish("", "slow", &body).is_ok() || channel.basic_publish("", "slow", &body).is_ok() {
        published += 1;
        assert!(published < 5000, "there is no bound");
    }
    let other = listener.connect().unwrap();
    publish_on(&other).publish_confirmed("", "quick", "m").unwrap();
    drop(open);
    eventually("what was published is handled", || handled.load(Ordering::SeqCst) >= published);
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

/// What needs queues is refused in words, and what is harmless is answered.
#[test]
fn what_makes_no_sense_is_refused() {
    let _watchdog = watched();
    let (serve, _received) = collecting();
    let listener = serve.start().unwrap();
    type Attempt = fn(&leveret::Channel) -> leveret::Result<()>;
    let refused: &[(&str, Attempt)] = &[
        ("basic.get", |channel| channel.basic_get("q").map(drop)),
        ("transactions", |channel| channel.tx_select()),
        ("bindings of queues", |channel| channel.queue_bind(leveret::QueueBind::new("q", "x", "k"))),
        ("bindings of exchanges", |channel| channel.exchange_bind(leveret::ExchangeBind::new("a", "b", "k"))),
        ("nothing to consume", |channel| channel.basic_consume("q").map(drop)),
    ];
    for (what, attempt) in refused {
        let connection = listener.connect().unwrap();
        let channel = connection.channel().unwrap();
        let error = attempt(&channel).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NotImplemented), "{what}: {error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let connection = listener.connect().unwrap();
    let channel = connection.channel().unwrap();
    channel.exchange_declare(ExchangeDeclare::new("x", ExchangeKind::Topic)).unwrap();
    let declared = channel.queue_declare(QueueDeclare::new("q").durable(true)).unwrap();
    assert_eq!((&*declared.queue, declared.message_count, declared.consumer_count), ("q", 0, 0));
    let named = channel.queue_declare(QueueDeclare::new("").exclusive(true)).unwrap().queue;
    let mut answers = channel.basic_consume(&*named).unwrap();
    assert_eq!(channel.queue_purge("q").unwrap(), 0);
    channel.flow(true).unwrap();
    channel.queue_delete(&*named).unwrap();
    assert!(matches!(answers.next(), Some(Err(Error::CancelledByServer { .. }))));
    channel.exchange_delete("x").unwrap();

    let other = connection.channel().unwrap();
    let error = other.basic_consume("").unwrap_err();
    assert!(
        error.is_soft() && error.to_string().contains("NOT_FOUND - no previously declared queue"),
        "{error}"
    );
    let (serve, _consumers) = offering();
    let listener = serve.start().unwrap();
    let connection = listener.connect().unwrap();
    let channel = connection.channel().unwrap();
    channel.basic_publish("", "q", "m").unwrap();
    let error = channel.flow(true).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NotImplemented), "{error}");
}

#[test]
fn users_and_permissions_count() {
    let _watchdog = watched();
    let (serve, received) = collecting();
    let may_write = Permissions::new("/").write(["*"]);
    let config = BrokerConfig::new()
        .user(User::new("writer", "secret").permissions(may_write))
        .user(User::new("nobody", "secret").permissions(Permissions::new("/")));
    let listener = serve.config(config).start().unwrap();
    let connect = |user: &str| {
        let config = Config::new().credentials(user, "secret");
        listener.connect_with(config)
    };
    publish_on(&connect("writer").unwrap()).publish_confirmed("", "q", "m").unwrap();
    assert_eq!(received.recv_timeout(PATIENCE).unwrap(), "m");
    let connection = connect("nobody").unwrap();
    let error = publish_on(&connection).publish_confirmed("", "q", "m").unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::AccessRefused), "{error}");
    assert!(matches!(connect("stranger"), Err(Error::AuthenticationFailed(_))));
}

#[test]
fn wrong_settings_and_answers_to_nobody_are_errors() {
    let _watchdog = watched();
    assert!(matches!(Serve::new().workers(0).start(), Err(Error::Invalid(_))));
    let no_addresses: &[SocketAddr] = &[];
    assert!(matches!(Serve::new().listen(no_addresses), Err(Error::Invalid(_))));
    let (sender, errors) = mpsc::channel();
    let listener = Serve::new()
        .messages(move |message: &Published| {
            sender.send(message.reply("nobody asked").unwrap_err())?;
            Ok(())
        })
        .start()
        .unwrap();
    assert!(matches!(listener.uri(), Err(Error::Invalid(_))));
    let connection = listener.connect().unwrap();
    let channel = publish_on(&connection);
    channel.publish_confirmed("", "q", "m").unwrap();
    let asking = Message::text("m").map_properties(|properties| properties.reply_to("nowhere"));
    channel.publish_confirmed("", "q", &asking).unwrap();
    for expected in ["no reply_to", "does not consume from \"nowhere\""] {
        let error = errors.recv_timeout(PATIENCE).unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
