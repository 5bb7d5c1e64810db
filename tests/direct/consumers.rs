//! Sending to consumers of peers, within what they take.

use super::*;

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
