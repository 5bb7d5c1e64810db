//! Peers of a direct listener that die at any point.

use std::{net::SocketAddr, time::Duration};

use leveret::{Connection, Result};

use super::proxy::{Cut, Direction, Proxy};

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Has peers talk to the listener that is there: first one without a fault, then others that are cut after ever more bytes,
/// `step` by `step`, by turns with an end and with a reset. Gives their number. `open` connects one by way of the proxy.
pub fn die_at_any_point(
    listener: SocketAddr,
    step: usize,
    open: impl Fn(&Proxy) -> Result<Connection>,
) -> usize {
    let proxy = Proxy::before(listener);
    open(&proxy).and_then(|connection| converse(&connection)).unwrap();
    let length = proxy.passed(Direction::ToBroker);
    let cuts = (1..length).step_by(step).zip([Cut::Fin, Cut::Reset].into_iter().cycle());
    let mut peers = 1;
    for (cut_at, cut) in cuts {
        let proxy = Proxy::before(listener);
        proxy.cut_at(Direction::ToBroker, cut_at, cut);
        let _ = open(&proxy).and_then(|connection| converse(&connection));
        peers += 1;
    }
    peers
}

/// Consumes a little and publishes `whole`.
fn converse(connection: &Connection) -> Result<()> {
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
}
