//! What peers publish: confirms after the handler, order, and handlers that do not keep up.

use super::*;

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
