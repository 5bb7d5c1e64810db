//! The in-process broker behind TLS.

use std::net::TcpStream;

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

/// A client that never shakes hands holds up nobody, and neither does it hold up the end.
#[test]
fn a_client_that_is_silent_holds_up_nobody() -> Result<()> {
    let broker = broker();
    let silent = TcpStream::connect(broker.address().unwrap()).unwrap();
    Connection::open(broker.uri()?.parse::<Config>()?.tls(trusting()))?.close()?;
    drop(broker);
    drop(silent);
    Ok(())
}

#[test]
fn a_key_that_does_not_belong_to_the_certificate_is_refused() {
    assert!(Identity::from_pem(&read("server.pem"), b"no key").is_err());
}
