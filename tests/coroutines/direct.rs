//! Direct listeners, whose peers and whose senders are coroutines.

use std::{
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use leveret::{
    Config, Connection, Consume, Departure, Error, Result,
    broker::BrokerConfig,
    direct::{Consumer, Listener, Published, Serve, Settled},
    rpc,
};
use may::coroutine::JoinHandle;

use crate::{LONG, run, run_and_cancel, set_up, spawn};

const PEERS: usize = 50;

/// Half of a stack, in words: as much is left to the program.
const HALF: usize = 0x800;

/// A message larger than what is written at once, and many small ones.
const SIZES: [usize; 6] = [1, 100_000, 10, 0, 5000, 7];

fn serving(config: BrokerConfig) -> (Listener, Receiver<Consumer>) {
    let (sender, consumers) = mpsc::channel();
    let serve = Serve::new()
        .config(config)
        .messages(|message: &Published| {
            message.reply(message.text()?.to_uppercase())?;
            Ok(())
        })
        .consumers(move |consumer: Consumer| Ok(sender.send(consumer)?));
    (serve.listen("127.0.0.1:0").unwrap(), consumers)
}

/// Consumes one message after the other until the listener has no more.
fn receiving(connection: Connection) -> JoinHandle<Vec<usize>> {
    spawn(move || {
        let channel = connection.channel().unwrap();
        channel.basic_qos(1).unwrap();
        let mut sizes = Vec::new();
        for delivery in channel.basic_consume("q").unwrap() {
            match delivery {
                Ok(delivery) => {
                    sizes.push(delivery.body().len());
                    delivery.ack().unwrap();
                }
                Err(Error::CancelledByServer { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        sizes
    })
}

/// Sends, waits for room and for the last ack, and cancels the consumer.
fn sending(consumer: Consumer) -> JoinHandle<Settled> {
    let half = may::coroutine::Builder::new().stack_size(HALF);
    let sending = may::go!(half, move || {
        let sent = SIZES.map(|size| consumer.send(vec![7; size]).unwrap());
        sent.last().unwrap().wait(LONG).unwrap()
    });
    sending.unwrap()
}

fn send_to_many(config: BrokerConfig, connect: impl Fn(&Listener) -> Result<Connection>) {
    set_up();
    let (listener, consumers) = serving(config);
    let receivers: Vec<_> = (0..PEERS).map(|_| receiving(connect(&listener).unwrap())).collect();
    let senders: Vec<_> = (0..PEERS).map(|_| sending(consumers.recv_timeout(LONG).unwrap())).collect();
    for sender in senders {
        assert_eq!(sender.join().unwrap(), Settled::Acked);
    }
    for receiver in receivers {
        assert_eq!(receiver.join().unwrap(), SIZES);
    }
    listener.wait_left(LONG).unwrap();
}

/// Row 105: who waits for room at a peer, or for its ack, waits beside the others, all on one thread.
#[test]
fn coroutines_send_to_peers_side_by_side() {
    send_to_many(BrokerConfig::new(), |listener| Connection::open(listener.uri()?));
    send_to_many(BrokerConfig::new(), Listener::connect);
}

/// Row 105: TLS is deeper than a coroutine's stack may be.
#[cfg(feature = "tls")]
#[test]
fn coroutines_send_to_peers_behind_tls() {
    use crate::front::{read, trusting_quickly};
    use leveret::broker::Identity;
    let identity = Identity::from_pem(&read("server.pem"), &read("server.key")).unwrap();
    send_to_many(BrokerConfig::new().identity(identity), |listener| {
        Connection::open(listener.uri()?.parse::<Config>()?.tls(trusting_quickly()))
    });
}

/// Row 105: a wait for a peer has its limit, and its end, in a coroutine too.
#[test]
fn a_wait_for_a_peer_ends_in_a_coroutine() {
    let (listener, consumers) = serving(BrokerConfig::new());
    let connection = listener.connect().unwrap();
    let channel = connection.channel().unwrap();
    channel.basic_qos(1).unwrap();
    let mut received = channel.basic_consume(Consume::new("q").consumer_tag("t")).unwrap();
    let consumer = consumers.recv_timeout(LONG).unwrap();
    let (consumer, sent) = run(move || {
        let sent = consumer.send("one").unwrap();
        assert!(matches!(sent.wait(Duration::from_millis(10)), Err(Error::Timeout(_))));
        assert!(matches!(consumer.wait_ended(Duration::from_millis(10)), Err(Error::Timeout(_))));
        assert!(matches!(consumer.try_send("two"), Err(Error::WouldBlock)));
        (consumer, sent)
    });
    // Cancelled while it waits for room, it has sent nothing, and the consumer is as it was.
    let (begun, has_begun) = mpsc::channel();
    let cancelled = run_and_cancel(
        || {
            begun.send(()).unwrap();
            consumer.send("never").err()
        },
        || has_begun.recv().unwrap(),
    );
    assert!(matches!(cancelled, Some(Some(Error::Cancelled))), "{cancelled:?}");
    received.next().unwrap().unwrap().ack().unwrap();
    assert_eq!(sent.wait(LONG).unwrap(), Settled::Acked);
    let waiting = spawn(move || {
        let sent = consumer.send("two").unwrap();
        (consumer.wait_ended(LONG).unwrap(), sent.wait(LONG).err())
    });
    assert_eq!(received.next().unwrap().unwrap().text().unwrap(), "two");
    connection.close().unwrap();
    let (ended, error) = waiting.join().unwrap();
    assert_eq!(ended, Departure::ConnectionClosed);
    assert!(matches!(error, Some(Error::Departed(Departure::ConnectionClosed))), "{error:?}");
}

/// Row 105: callers in coroutines, and the listener's handlers on its own threads, which wait for nobody's worker.
#[test]
fn coroutines_call_a_direct_server() {
    let (listener, _consumers) = serving(BrokerConfig::new());
    let connection = listener.connect().unwrap();
    let client = rpc::Client::open(&connection, rpc::Service::new("upper")).unwrap();
    let callers: Vec<_> = (0..PEERS)
        .map(|number| {
            let client = client.clone();
            spawn(move || client.call(&format!("a{number}"), LONG).unwrap().text().unwrap().to_owned())
        })
        .collect();
    for (number, caller) in callers.into_iter().enumerate() {
        assert_eq!(caller.join().unwrap(), format!("A{number}"));
    }
}
