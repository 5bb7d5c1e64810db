//! Direct listeners behind TLS.

use std::{
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use leveret::{
    Config, Connection, Result, TlsProblem,
    broker::{BrokerConfig, Identity},
    direct::{Consumer, Listener, Published, Serve, Settled},
};

use super::{
    common::direct::die_at_any_point,
    front::{read, trusting_quickly},
    in_process::{assert_hung_up, silent},
    problem,
};

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn config() -> BrokerConfig {
    BrokerConfig::new().identity(Identity::from_pem(&read("server.pem"), &read("server.key")).unwrap())
}

/// Takes messages, and sends each consumer what its peer publishes then.
fn listener(config: BrokerConfig) -> (Listener, Receiver<Vec<u8>>) {
    let (sender, received) = mpsc::channel();
    let listener = Serve::new()
        .config(config)
        .messages(move |message: &Published| Ok(sender.send(message.body.to_vec())?))
        .consumers(|consumer: Consumer| {
            // Not here: the peer's messages would wait for it.
            thread::spawn(move || while consumer.send(vec![7; 40_000]).is_ok() {});
            Ok(())
        })
        .listen("127.0.0.1:0")
        .unwrap();
    (listener, received)
}

fn connect_to(listener: &Listener) -> Result<Connection> {
    Connection::open(listener.uri()?.parse::<Config>()?.tls(trusting_quickly()))
}

/// Messages go both ways at the same time, and larger ones than a record of TLS.
#[test]
fn a_direct_listener_speaks_tls() -> Result<()> {
    let (listener, received) = listener(config());
    assert!(listener.uri()?.starts_with("amqps://"));
    let connection = connect_to(&listener)?;
    let channel = connection.channel()?;
    channel.basic_qos(10)?;
    let mut consumer = channel.basic_consume("q")?;
    channel.confirm_select()?;
    let body: Vec<u8> = (0..1_000_000).map(|number| number as u8).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..10 {
                channel.publish_confirmed("", "q", &body).unwrap();
            }
        });
        for _ in 0..200 {
            let delivery = consumer.next().unwrap().unwrap();
            assert!(delivery.body() == [7; 40_000]);
            delivery.ack().unwrap();
        }
    });
    for _ in 0..10 {
        assert!(received.recv_timeout(PATIENCE).unwrap() == body);
    }
    connection.close()?;
    listener.wait_left(PATIENCE)?;
    assert!(listener.peers().is_empty());
    Ok(())
}

/// Who does not trust it, or never shakes hands, holds up neither others nor the end.
#[test]
fn peers_that_do_not_shake_hands_hold_up_nobody() -> Result<()> {
    let (listener, _received) = listener(config().handshake_timeout(Duration::MAX));
    let silent = silent(listener.address().unwrap());
    assert_eq!(problem(listener.uri()?.parse()?), TlsProblem::UnknownAuthority);
    let connection = connect_to(&listener)?;
    assert_eq!(listener.peers().len(), 1, "the others are no peers yet");
    connection.close()?;
    drop(listener);
    silent.into_iter().for_each(assert_hung_up);
    Ok(())
}

/// The connection is cut in the middle of records, of the handshake's too: the listener lives on, whoever sends to
/// the peer learns it, and only whole messages are handled.
#[test]
fn a_peer_behind_tls_may_die_at_any_point() {
    let (sender, received) = mpsc::channel();
    let (ended, has_ended) = mpsc::channel();
    let listener = Serve::new()
        .config(config())
        .messages(move |message: &Published| Ok(sender.send(message.text()?.to_owned())?))
        .consumers(move |consumer: Consumer| {
            let ended = ended.clone();
            thread::spawn(move || {
                let mut last = None;
                while let Ok(sent) = consumer.send("to you") {
                    last = Some(sent);
                }
                let settled = last.map(|sent| sent.wait(PATIENCE));
                let _ = ended.send((consumer.ended().is_some(), settled));
            });
            Ok(())
        })
        .listen("127.0.0.1:0")
        .unwrap();
    let config = listener.uri().unwrap().parse::<Config>().unwrap().tls(trusting_quickly());
    die_at_any_point(listener.address().unwrap(), 61, |proxy| {
        Connection::open(config.clone().host("127.0.0.1", proxy.address.port()))
    });
    listener.wait_left(PATIENCE).unwrap();
    drop(listener);
    let consumers: Vec<_> = has_ended.iter().collect();
    assert!(consumers.len() > 1);
    for (ended, settled) in consumers {
        assert!(ended);
        assert!(!matches!(settled, Some(Err(leveret::Error::Timeout(_)))), "{settled:?}");
        assert!(!matches!(settled, Some(Ok(Settled::Rejected | Settled::Untracked))), "{settled:?}");
    }
    let texts: Vec<String> = received.iter().collect();
    assert!(!texts.is_empty() && texts.iter().all(|text| text == "whole"), "{texts:?}");
}
