//! The in-process broker behind TLS.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use leveret::{
    Config, Connection, Result,
    broker::{Broker, BrokerConfig, Identity},
};

use super::{
    front::{read, trusting},
    problem,
};

fn broker() -> Broker {
    let identity = Identity::from_pem(&read("server.pem"), &read("server.key")).unwrap();
    BrokerConfig::new().identity(identity).listen("127.0.0.1:0").unwrap()
}

#[test]
fn the_in_process_broker_speaks_tls() -> Result<()> {
    let broker = broker();
    let config: Config = broker.uri()?.parse()?;
    assert!(broker.uri()?.starts_with("amqps://"));
    let connection = Connection::open(config.clone().tls(trusting()))?;
    let channel = connection.channel()?;
    channel.queue_declare("q")?;
    let body: Vec<u8> = (0..3_000_000).map(|number| number as u8).collect();
    channel.basic_publish("", "q", &body)?;
    let message = channel.basic_get("q")?.expect("the message");
    assert!(message.body() == body);
    message.ack()?;
    connection.close()?;
    // Who does not trust it says so, and the broker goes on.
    let failure = problem(config.clone());
    assert_eq!(failure, leveret::TlsProblem::UnknownAuthority);
    Connection::open(config.tls(trusting()))?.close()
}

/// Clients that do not shake hands: they have said nothing, the beginning of a record, that of a ClientHello, and what is
/// neither.
pub(crate) fn silent(address: SocketAddr) -> [TcpStream; 4] {
    let said: [&[u8]; 4] = [b"", &[0x16, 3], &[0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3], b"AMQP\0\0\x09\x01"];
    said.map(|said| {
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(said).unwrap();
        client
    })
}

/// Nobody is at the other end any more.
pub(crate) fn assert_hung_up(mut client: TcpStream) {
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    if let Err(error) = client.read_to_end(&mut Vec::new()) {
        assert_ne!(error.kind(), ErrorKind::WouldBlock, "{error}");
        assert_ne!(error.kind(), ErrorKind::TimedOut, "{error}");
    }
}

/// A client that never shakes hands, or never finishes, holds up nobody, and neither does it hold up the end, after which
/// it is gone; also when it may take longer than a clock can show.
#[test]
fn a_client_that_is_silent_holds_up_nobody() -> Result<()> {
    let identity = Identity::from_pem(&read("server.pem"), &read("server.key")).unwrap();
    let broker =
        BrokerConfig::new().identity(identity).handshake_timeout(Duration::MAX).listen("127.0.0.1:0")?;
    let silent = silent(broker.address().unwrap());
    Connection::open(broker.uri()?.parse::<Config>()?.tls(trusting()))?.close()?;
    drop(broker);
    silent.into_iter().for_each(assert_hung_up);
    Ok(())
}

/// The limit of the handshake is that of TLS too.
#[test]
fn a_client_that_does_not_shake_hands_is_hung_up_on() {
    let identity = Identity::from_pem(&read("server.pem"), &read("server.key")).unwrap();
    let limit = Duration::from_millis(20);
    let broker =
        BrokerConfig::new().identity(identity).handshake_timeout(limit).listen("127.0.0.1:0").unwrap();
    silent(broker.address().unwrap()).into_iter().for_each(assert_hung_up);
}

#[test]
fn a_key_that_does_not_belong_to_the_certificate_is_refused() {
    assert!(Identity::from_pem(&read("server.pem"), b"no key").is_err());
}
