//! Every call of the library that waits, to be made from wherever it may or may not be made.

// Every test program uses a part of it.
#![allow(dead_code)]

use std::time::Duration;

use super::limits::AMPLE;

use leveret::{
    BorrowedDelivery, Channel, Config, Connection, Consumer, Delivery, Error, ExchangeBind, ExchangeDeclare,
    ExchangeUnbind, HandlerError, InlineConsumer, Listener, QueueBind, QueueUnbind, Requeue, Result, select,
    select_timeout,
};

/// Long enough for a call, short for a wait that nothing ends.
const SHORT: Duration = Duration::from_millis(20);

/// What the calls are made on, made before.
pub struct Ready {
    config: Config,
    connection: Connection,
    channel: Channel,
    confirming: Channel,
    transacting: Channel,
    consumer: Consumer,
    inline: InlineConsumer,
    listener: Listener,
    closed: Connection,
}

/// What a call is called, and what became of it.
pub type Called = (&'static str, Result<()>);

impl Ready {
    /// Needs the queues `scratch`, `confirmed`, and `quiet`, which stays empty.
    pub fn new(connection: &Connection, config: &Config) -> Result<Ready> {
        let connection = connection.clone();
        let channel = connection.channel()?;
        let confirming = connection.channel()?;
        confirming.confirm_select()?;
        let consumer = channel.basic_consume("quiet")?;
        let inline = channel.basic_consume_inline("quiet", |_: &BorrowedDelivery<'_>| Ok(()))?;
        let listener = channel.basic_consume("quiet")?.listen(|_: &Delivery| Ok(()))?;
        let transacting = connection.channel()?;
        let closed = Connection::open(config.clone())?;
        let config = config.clone();
        Ok(Ready { config, connection, channel, confirming, transacting, consumer, inline, listener, closed })
    }

    /// Makes every call once, in an order in which each succeeds where it is allowed.
    pub fn call_all(self) -> Vec<Called> {
        self.try_call_all().unwrap_or_else(|error| vec![("what does not wait", Err(error))])
    }

    fn try_call_all(self) -> Result<Vec<Called>> {
        let Ready {
            config,
            connection,
            channel,
            confirming,
            transacting,
            mut consumer,
            inline,
            listener,
            closed,
        } = self;
        // Here, so that the reader thread has not seen the answers.
        let purge = || channel.deferred().queue_purge("scratch");
        let [pending, mut waiting] = [purge()?, purge()?];
        let publish = || confirming.deferred().basic_publish("", "scratch", "x");
        let [confirm, mut confirming_late] = [publish()?, publish()?];
        let none = |found: Option<()>| found.map_or(Ok(()), |()| Err(Error::WouldBlock));
        let told = |ended: Option<Result<()>>| ended.unwrap_or(Ok(()));
        let bind = || QueueBind::new("scratch", "amq.direct", "k");
        let unbind = || QueueUnbind::new("scratch", "amq.direct", "k");
        let mut called: Vec<Called> = vec![
            ("Pending::wait", pending.wait().map(drop)),
            (
                "Pending::wait_timeout",
                waiting.wait_timeout(10 * SHORT).map_or(Ok(()), |answer| answer.map(drop)),
            ),
            ("Confirm::wait", confirm.wait().into_result()),
            (
                "Confirm::wait_timeout",
                told(confirming_late.wait_timeout(SHORT).map(leveret::Outcome::into_result)),
            ),
            ("Connection::open", Connection::open(config).map(drop)),
            ("Connection::channel", connection.channel().map(drop)),
            ("Connection::with_channel", connection.with_channel(|_| Ok(()))),
            ("Connection::wait_closed_timeout", connection.wait_closed_timeout(SHORT).map_or(Ok(()), Err)),
            ("queue_declare", channel.queue_declare("made").map(drop)),
            ("queue_declare_passive", channel.queue_declare_passive("made").map(drop)),
            ("queue_bind", channel.queue_bind(bind())),
            ("queue_unbind", channel.queue_unbind(unbind())),
            ("queue_purge", channel.queue_purge("made").map(drop)),
            ("queue_delete", channel.queue_delete("made").map(drop)),
            ("exchange_declare", channel.exchange_declare(ExchangeDeclare::new("made", "direct"))),
            ("exchange_bind", channel.exchange_bind(ExchangeBind::new("made", "amq.direct", "k"))),
            ("exchange_unbind", channel.exchange_unbind(ExchangeUnbind::new("made", "amq.direct", "k"))),
            ("exchange_delete", channel.exchange_delete("made")),
            ("flow", channel.flow(true).map(drop)),
            ("basic_qos", channel.basic_qos(100)),
            ("basic_get", channel.basic_get("quiet").map(drop)),
            ("basic_recover", channel.basic_recover(Requeue::Yes)),
            ("basic_consume", channel.basic_consume("quiet").map(drop)),
            (
                "basic_consume_inline",
                channel.basic_consume_inline("quiet", |_: &BorrowedDelivery<'_>| Ok(())).map(drop),
            ),
            ("Consumer::next_timeout", consumer.next_timeout(SHORT).map(drop)),
            ("select_timeout", {
                let found = select_timeout(&mut [&mut consumer], SHORT);
                found.map_or(Ok(()), |(_, found)| found.map(drop))
            }),
            ("basic_cancel", channel.basic_cancel(consumer.consumer_tag())),
            ("Consumer::cancel", consumer.cancel()),
            ("Consumer::next", consumer.next().map_or(Ok(()), |found| found.map(drop))),
            ("select", select(&mut [&mut consumer]).map_or(Ok(()), |(_, found)| found.map(drop))),
            ("InlineConsumer::wait_timeout", told(inline.wait_timeout(SHORT))),
            ("InlineConsumer::cancel", inline.cancel()),
            ("InlineConsumer::wait", inline.wait()),
            ("Listener::wait_timeout", told(listener.wait_timeout(SHORT))),
            ("Listener::wait", {
                listener.stop();
                listener.wait()
            }),
            ("publish_confirmed", confirming.publish_confirmed("", "confirmed", "3")),
            ("wait_for_confirms", confirming.wait_for_confirms(AMPLE)),
            ("confirm_select", channel.confirm_select()),
            ("transaction", transacting.transaction().map(drop)),
            ("tx_select", transacting.tx_select()),
            ("tx_commit", transacting.tx_commit()),
            ("tx_rollback", transacting.tx_rollback()),
            ("close", channel.close()),
            ("reopen", transacting.close().and_then(|()| transacting.reopen())),
            ("Connection::close", closed.close()),
        ];
        let mut events = connection.events();
        let _ = events.try_next();
        called.push(("Events::next_timeout", none(events.next_timeout(SHORT).map(drop))));
        Ok(called)
    }
}

/// All of them succeeded.
pub fn all_succeeded(called: Vec<Called>) -> Result<(), HandlerError> {
    match called.into_iter().find(|(_, result)| result.is_err()) {
        Some((name, result)) => Err(format!("{name}: {result:?}").into()),
        None => Ok(()),
    }
}
