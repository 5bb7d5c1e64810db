//! Transactions: publishes and acknowledgements that take effect together, or not at all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    panic::{self, AssertUnwindSafe},
    time::{Duration, Instant},
};

use common::{
    brokers::on_each_broker,
    limits::{PROMPT, given_time},
    peer::*,
    proxy::Cut,
    watchdog::{LIMIT, Watchdog, test_name},
};
use leveret::{Channel, Connection, Error, Get, QueueDeclare, ReplyCode, Requeue, Result, Scope};

fn count(channel: &Channel, queue: &str) -> Result<u32> {
    Ok(channel.queue_declare_passive(queue)?.message_count)
}

/// Row 65: what was published and acked becomes real with the commit, and not before.
#[test]
fn a_commit_makes_it_take_effect() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let other = connection.channel()?;
        channel.queue_declare("in")?;
        channel.queue_declare("out")?;
        channel.publish_all("in", &["order"])?;

        let transaction = channel.transaction()?;
        let order = channel.basic_get("in")?.unwrap();
        channel.publish_all("out", &["invoice", "parcel"])?;
        order.ack()?;
        channel.flow(true)?;
        assert_eq!(count(&other, "out")?, 0, "nobody sees it yet");
        transaction.commit()?;
        assert_eq!(count(&other, "out")?, 2);
        assert_eq!(other.basic_get("out")?.unwrap().body(), b"invoice");
        other.close()?;
        channel.close()?;
        let again = connection.channel()?;
        assert_eq!((count(&again, "in")?, count(&again, "out")?), (0, 2), "acked, and not acked");

        // One after the other on the same channel, and without the guard.
        for number in 1..=3 {
            let transaction = again.transaction()?;
            again.publish_all("out", &["more"])?;
            transaction.commit()?;
            again.publish_all("out", &["and more"])?;
            again.tx_commit()?;
            assert_eq!(count(&again, "out")?, 2 + 2 * number);
        }
        connection.close()
    });
}

trait PublishAll {
    fn publish_all(&self, queue: &str, bodies: &[&str]) -> Result<()>;
}

impl PublishAll for Channel {
    fn publish_all(&self, queue: &str, bodies: &[&str]) -> Result<()> {
        bodies.iter().try_for_each(|body| self.basic_publish("", queue, *body))
    }
}

/// How a transaction ends without a commit.
const ENDS: [fn(&Channel) -> Result<()>; 4] = [
    |channel| {
        let transaction = channel.transaction()?;
        channel.publish_all("q", &["lost"])?;
        transaction.rollback()
    },
    |channel| {
        channel.tx_select()?;
        channel.publish_all("q", &["lost"])?;
        channel.tx_rollback()
    },
    |channel| {
        let _transaction = channel.transaction()?;
        channel.publish_all("q", &["lost"])
    },
    |channel| {
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| {
            let _transaction = channel.transaction().unwrap();
            channel.publish_all("q", &["lost"]).unwrap();
            panic::resume_unwind(Box::new("on the way"));
        }));
        assert_eq!(*panicked.unwrap_err().downcast::<&str>().unwrap(), "on the way");
        Ok(())
    },
];

/// Row 65: rolled back by a call, when the guard is dropped, and when a panic unwinds. The channel stays usable.
#[test]
fn without_a_commit_nothing_takes_effect() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        for (number, end) in ENDS.iter().enumerate() {
            end(&channel)?;
            let transaction = channel.transaction()?;
            channel.publish_all("q", &["kept"])?;
            transaction.commit()?;
            assert_eq!(count(&channel, "q")?, number as u32 + 1, "end {number}");
        }
        while let Some(message) = channel.basic_get(Get::new("q").no_ack(true))? {
            assert_eq!(message.body(), b"kept");
        }
        connection.close()
    });
}

/// Row 65: a channel has confirms or transactions; the other is refused with 406.
#[test]
fn transactions_and_confirms_exclude_each_other() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.tx_select()?;
        let refused = channel.confirm_select().unwrap_err();
        assert_eq!((refused.reply_code(), refused.is_soft()), (Some(ReplyCode::PreconditionFailed), true));
        assert!(!channel.is_open());

        channel.reopen()?;
        channel.confirm_select()?;
        let refused = channel.tx_select().unwrap_err();
        assert_eq!(refused.reply_code(), Some(ReplyCode::PreconditionFailed));
        channel.reopen()?;
        channel.confirm_select()?;
        let refused = channel.transaction().unwrap_err();
        assert_eq!(refused.reply_code(), Some(ReplyCode::PreconditionFailed));

        channel.reopen()?;
        for never_selected in [channel.tx_commit(), channel.reopen().and_then(|()| channel.tx_rollback())] {
            assert_eq!(never_selected.unwrap_err().reply_code(), Some(ReplyCode::PreconditionFailed));
        }
        connection.close()
    });
}

/// Row 65: acks that are rolled back do not bring the messages back by themselves; `basic_recover` does.
#[test]
fn rolled_back_acks_need_recover() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        channel.publish_all("q", &["one", "two"])?;
        let mut consumer = channel.basic_consume("q")?;
        let transaction = channel.transaction()?;
        for expected in ["one", "two"] {
            let delivery = consumer.next_timeout(PROMPT)?.unwrap();
            assert_eq!((delivery.text()?, delivery.redelivered()), (expected, false));
            delivery.ack()?;
        }
        transaction.rollback()?;
        // Whatever would have come stands before this answer.
        channel.flow(true)?;
        assert!(consumer.try_next()?.is_none(), "not by themselves");

        channel.basic_recover(Requeue::Yes)?;
        let transaction = channel.transaction()?;
        let mut recovered = Vec::new();
        for _ in 0..2 {
            let delivery = consumer.next_timeout(PROMPT)?.unwrap();
            assert!(delivery.redelivered());
            recovered.push(delivery.text()?.to_owned());
            delivery.ack()?;
        }
        recovered.sort();
        assert_eq!(recovered, ["one", "two"]);
        transaction.commit()?;
        connection.close()?;
        let (connection, channel) = broker.channel();
        assert_eq!(count(&channel, "q")?, 0);
        connection.close()
    });
}

/// Rows 32, 65: a publish to an exchange that does not exist is an error at the commit at the latest, and nothing
/// of the transaction takes effect.
#[test]
fn a_missing_exchange_surfaces_at_the_commit() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let transaction = channel.transaction()?;
        channel.publish_all("q", &["lost"])?;
        channel.basic_publish("missing", "key", "lost as well")?;
        let refused = transaction.commit().unwrap_err();
        assert_eq!(
            (refused.reply_code(), refused.is_soft()),
            (Some(ReplyCode::NotFound), true),
            "{refused:?}"
        );
        channel.reopen()?;
        assert_eq!(count(&channel, "q")?, 0);

        // The guard of a channel that is gone asks for nothing.
        let transaction = channel.transaction()?;
        channel.basic_publish("missing", "key", "lost")?;
        assert_eq!(channel.flow(true).unwrap_err().reply_code(), Some(ReplyCode::NotFound));
        let started = Instant::now();
        drop(transaction);
        assert!(started.elapsed() < PROMPT);
        connection.close()
    });
}

/// Rows 14, 65: with the connection lost in the middle, the commit says so, and nothing has taken effect.
#[test]
fn a_connection_that_is_lost_in_the_middle_rolls_back() {
    on_each_broker(|broker| {
        let (control_connection, control) = broker.channel();
        control.queue_declare(QueueDeclare::new("q"))?;
        for dropped in [false, true] {
            let proxy = broker.proxy();
            let connection = Connection::open(broker.config_through(proxy.address))?;
            let channel = connection.channel()?;
            let transaction = channel.transaction()?;
            channel.publish_all("q", &["lost"])?;
            channel.flow(true)?;
            proxy.cut(Cut::Reset);
            let started = Instant::now();
            if dropped {
                drop(transaction);
            } else {
                let error = transaction.commit().unwrap_err();
                assert!(error.is_hard() && error.can_retry(), "{error:?}");
            }
            assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
            assert!(connection.close().is_err() || dropped);
        }
        assert_eq!(count(&control, "q")?, 0);
        control_connection.close()
    });
}

/// Rows 37, 65: the guard waits for its rollback no longer than it may; one that was committed asks for nothing.
#[test]
fn dropping_the_guard_is_bounded() {
    given_time(|times| {
        let _watchdog = Watchdog::new(&test_name(), LIMIT);
        let peer = Peer::run(|peer| {
            peer.handshake();
            peer.open_channel(1);
            for _ in 0..2 {
                peer.expect(1, TX_SELECT);
                peer.send(1, TX_SELECT_OK, &[]);
            }
            peer.expect(1, TX_COMMIT);
            peer.send(1, TX_COMMIT_OK, &[]);
            peer.expect(1, TX_ROLLBACK);
            peer.expect(1, CHANNEL_CLOSE);
            peer.send(1, TX_ROLLBACK_OK, &[]);
            peer.send(1, CHANNEL_CLOSE_OK, &[]);
            peer.close();
        });
        let connection =
            Connection::open(peer.config().drop_timeout(times * Duration::from_millis(50))).unwrap();
        let channel = connection.channel().unwrap();
        let committed = channel.transaction().unwrap();
        let dropped = channel.transaction().unwrap();
        committed.commit().unwrap();
        let started = Instant::now();
        drop(dropped);
        assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
        channel.close().unwrap();
        connection.close().unwrap();
    });
}

/// Rows 14, 65: a commit whose answer is lost fails with the cause: it is not known whether it took effect.
#[test]
fn a_commit_without_an_answer_fails_with_the_cause() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, TX_SELECT);
        peer.send(1, TX_SELECT_OK, &[]);
        peer.expect(1, TX_COMMIT);
        peer.send(0, CLOSE, args![320, "CONNECTION_FORCED", 0, 0]);
        peer.expect(0, CLOSE_OK);
        peer.expect_end();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    let error = channel.transaction().unwrap().commit().unwrap_err();
    let Error::Refused(refusal) = &error else { panic!("{error:?}") };
    assert_eq!((refusal.code, &*refusal.text), (ReplyCode::ConnectionForced, "CONNECTION_FORCED"));
}

/// Rows 33, 65: a guard is about the channel as it was: it says nothing to one that was opened again since.
#[test]
fn a_channel_that_was_opened_again_knows_of_no_transaction() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let lost = || {
            let transaction = channel.transaction()?;
            channel.basic_publish("missing", "key", "lost")?;
            let refused = transaction_is_refused(&channel);
            assert_eq!(refused.reply_code(), Some(ReplyCode::NotFound), "{refused}");
            channel.reopen()?;
            Ok::<_, Error>(transaction)
        };
        drop(lost()?);
        channel.flow(true)?;
        lost()?.rollback()?;
        channel.flow(true)?;
        let committed = lost()?.commit();
        assert!(matches!(committed, Err(Error::Closed(Scope::Channel))), "{committed:?}");
        channel.flow(true)?;
        connection.close()
    });
}

/// The error that the publish to a missing exchange has caused: at once, or at the commit.
fn transaction_is_refused(channel: &Channel) -> Error {
    channel.flow(true).and_then(|_| channel.tx_commit()).unwrap_err()
}
