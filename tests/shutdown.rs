//! The graceful end of a connection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use common::{brokers::on_each_broker, limits::given_time, peer::*};
use leveret::{Connection, Delivery, Error, Listen, ReplyCode, Scope};

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A limit that is meant to pass.
const SHORT: Duration = Duration::from_millis(100);

/// Row 103: a handler asks for the shutdown; all that are at work finish and are acked, what no handler has begun
/// with stays in the queue, and the main thread learns of the end.
#[test]
fn handlers_finish_when_one_of_them_asks_for_the_shutdown() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let channel = connection.channel()?;
        channel.queue_declare("q")?;
        for number in 0..20 {
            channel.basic_publish("", "q", &format!("{number}"))?;
        }
        let (entered, at_work) = mpsc::channel();
        let (finish, finishing) = mpsc::channel::<()>();
        let finishing = Arc::new(Mutex::new(finishing));
        let (closing, working) = (connection.clone(), channel.clone());
        let handled = Arc::new(AtomicUsize::new(0));
        let count = handled.clone();
        let handler = move |delivery: &Delivery| {
            if delivery.text()? == "0" {
                closing.request_shutdown(LONG)?;
            }
            entered.send(()).unwrap();
            let _ = finishing.lock().unwrap().recv();
            // Still possible while the shutdown waits for this handler.
            working.flow(true)?;
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let listener = channel.basic_consume("q")?.listen(Listen::new(handler).workers(3))?;
        at_work.recv().unwrap();
        channel.queue_declare("quiet")?;
        // New work is refused from now on, though everything else goes on.
        eventually("consumers are refused", || {
            let consumer = channel.basic_consume("quiet");
            let listener =
                channel.basic_consume("quiet").and_then(|consumer| consumer.listen(|_: &Delivery| Ok(())));
            [consumer.map(drop), listener.map(drop)].iter().all(|it| matches!(it, Err(Error::Closed(_))))
        });
        assert!(connection.is_open() && channel.is_open());
        channel.queue_purge("quiet")?;
        assert!(connection.wait_closed_timeout(SHORT).is_none(), "a handler is at work");
        drop(finish);
        assert!(connection.wait_closed().is_closed());
        assert!(matches!(listener.wait(), Ok(()) | Err(Error::Closed(_))));
        let handled = handled.load(Ordering::SeqCst);
        assert!((1..=3).contains(&handled), "{handled}");
        let left = broker.connect().channel()?.queue_declare_passive("q")?.message_count;
        assert_eq!(left as usize, 20 - handled);
        Ok(())
    });
}

/// Row 103: a shutdown waits for confirms and refuses new consumers; another one has nothing to do.
#[test]
fn confirms_are_awaited() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let channel = connection.channel()?;
        channel.confirm_select()?;
        channel.queue_declare("q")?;
        for _ in 0..1000 {
            channel.basic_publish("", "q", "confirmed")?;
        }
        connection.shutdown(LONG)?;
        assert_eq!(channel.unconfirmed(), 0);
        assert!(connection.wait_closed().is_closed());
        assert!(matches!(channel.basic_consume("q"), Err(Error::Closed(_))));
        connection.shutdown(LONG)?;
        connection.close()?;
        assert_eq!(broker.connect().channel()?.queue_purge("q")?, 1000);
        Ok(())
    });
}

/// Rows 31, 103: what was refused while the connection was shut down is told: a message, and a channel's late error.
#[test]
fn late_errors_are_told() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.open_channel(2);
        peer.expect(1, CONFIRM_SELECT);
        peer.send(1, CONFIRM_SELECT_OK, &[]);
        let tag = peer.start_consumer(1);
        peer.expect_publish(1);
        peer.expect_publish(2);
        // Both are refused while the shutdown cancels consumers.
        peer.expect(1, CANCEL);
        peer.send(1, CANCEL_OK, args![&*tag]);
        peer.send(2, CHANNEL_CLOSE, args![404, "NOT_FOUND - no exchange", 60, 40]);
        peer.send(1, NACK, args![1, 0]);
        peer.expect(2, CHANNEL_CLOSE_OK);
        peer.expect(1, CHANNEL_CLOSE);
        peer.send(1, CHANNEL_CLOSE_OK, &[]);
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let (confirming, failing) = (connection.channel().unwrap(), connection.channel().unwrap());
    confirming.confirm_select().unwrap();
    let _consumer = confirming.basic_consume("q").unwrap();
    confirming.basic_publish("", "full", "refused").unwrap();
    failing.basic_publish("missing", "", "lost").unwrap();
    let error = connection.shutdown(LONG).unwrap_err();
    let Error::Unfinished(unfinished) = &error else { panic!("{error:?}") };
    assert!(!unfinished.timed_out && unfinished.at_work.is_empty(), "{error}");
    let [(1, Error::Unconfirmed(refused)), (2, late)] = &unfinished.errors[..] else { panic!("{error}") };
    assert!(matches!(refused.failures[..], [(1, Error::Nacked)]), "{error}");
    assert_eq!(late.reply_code(), Some(ReplyCode::NotFound));
    assert!(connection.wait_closed().is_closed());
    peer.finish();
}

/// Rows 31, 103: also when the broker does not answer the close of the connection afterwards.
#[test]
fn late_errors_are_told_though_the_last_answer_does_not_come() {
    given_time(|times| {
        let peer = Peer::run(|peer| {
            peer.handshake();
            peer.open_channel(1);
            peer.expect_publish(1);
            peer.expect(1, CHANNEL_CLOSE);
            peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND - no exchange", 60, 40]);
            peer.until(0, CLOSE);
            peer.silence();
        });
        let connection = Connection::open(peer.config()).unwrap();
        let failing = connection.channel().unwrap();
        failing.basic_publish("missing", "", "lost").unwrap();
        let error = connection.shutdown(times * SHORT).unwrap_err();
        let Error::Unfinished(unfinished) = &error else { panic!("{error:?}") };
        let [(1, late), (0, Error::Timeout(_))] = &unfinished.errors[..] else { panic!("{error}") };
        assert!(unfinished.timed_out && late.reply_code() == Some(ReplyCode::NotFound), "{error}");
    });
}

/// Row 103: an iterator returns what was delivered before the shutdown, which can still be acked, and ends. Its
/// consumer is cancelled first, and the channels are closed when all is confirmed.
#[test]
fn iterators_return_what_was_delivered() {
    let (cancelled, is_cancelled) = mpsc::channel();
    let (done, is_done) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.open_channel(2);
        peer.expect(2, CONFIRM_SELECT);
        peer.send(2, CONFIRM_SELECT_OK, &[]);
        let tag = peer.start_consumer(1);
        (1..=3).for_each(|number| peer.deliver(1, &tag, number, b"delivered"));
        peer.expect_publish(2);
        peer.expect(1, CANCEL);
        peer.send(1, CANCEL_OK, args![&*tag]);
        cancelled.send(()).unwrap();
        (1..=3).for_each(|number| assert_eq!(peer.expect(1, ACK).number(0), number));
        is_done.recv().unwrap();
        // The shutdown has waited for this.
        peer.send(2, ACK, args![1, 0]);
        for _ in 0..2 {
            let close = peer.next_frame();
            assert_eq!(close.method(), Some(CHANNEL_CLOSE));
            peer.send(close.channel, CHANNEL_CLOSE_OK, &[]);
        }
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let (channel, confirming) = (connection.channel().unwrap(), connection.channel().unwrap());
    confirming.confirm_select().unwrap();
    let mut consumer = channel.basic_consume("q").unwrap();
    confirming.basic_publish("", "q", "confirmed late").unwrap();
    let iterating = thread::spawn(move || {
        is_cancelled.recv().unwrap();
        let count = consumer.by_ref().map(|delivery| delivery.unwrap().ack().unwrap()).count();
        assert!(consumer.has_ended());
        done.send(()).unwrap();
        count
    });
    connection.shutdown(LONG).unwrap();
    assert_eq!(iterating.join().unwrap(), 3);
    peer.finish();
}

/// Row 103: an iterator that waits ends as well.
#[test]
fn iterators_that_wait_end() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let channel = connection.channel()?;
        channel.queue_declare("q")?;
        channel.basic_publish("", "q", "one")?;
        let mut consumer = channel.basic_consume("q")?;
        let first = consumer.next().unwrap()?;
        first.ack()?;
        let reading = thread::spawn(move || consumer.next());
        connection.shutdown(LONG)?;
        let end = reading.join().unwrap();
        assert!(matches!(end, None | Some(Err(Error::Closed(_)))), "{end:?}");
        Ok(())
    });
}

/// Row 103: at the deadline the socket is closed, and what is at work is named, to everyone.
#[test]
fn a_handler_that_does_not_finish_is_named() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let channel = connection.channel()?;
        channel.queue_declare("q")?;
        channel.basic_publish("", "q", "endless")?;
        let (entered, at_work) = mpsc::channel();
        let (finish, finishing) = mpsc::channel::<()>();
        let finishing = Mutex::new(finishing);
        let consumer = channel.basic_consume(leveret::Consume::new("q").consumer_tag("slow"))?;
        let listener = consumer.listen(move |_: &Delivery| {
            entered.send(()).unwrap();
            let _ = finishing.lock().unwrap().recv();
            Ok(())
        })?;
        at_work.recv().unwrap();
        let error = connection.shutdown(SHORT).unwrap_err();
        let Error::Unfinished(unfinished) = &error else { panic!("{error:?}") };
        assert!(unfinished.timed_out, "{error}");
        assert_eq!(unfinished.at_work.len(), 1, "{error}");
        assert!(unfinished.at_work[0].contains("\"slow\""), "{error}");
        assert_eq!(connection.wait_closed().to_string(), error.to_string());
        assert_eq!(channel.queue_purge("q").unwrap_err().to_string(), error.to_string());
        drop(finish);
        let _ = listener.wait();
        // It was not acked, so it is there again.
        let looking = broker.connect();
        let channel = looking.channel()?;
        eventually("the message is back", || channel.queue_declare_passive("q").unwrap().message_count == 1);
        Ok(())
    });
}

/// Row 103: a handler that shuts down itself is not waited for, and its message goes back.
#[test]
fn a_handler_is_not_waited_for_by_itself() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let channel = connection.channel()?;
        channel.queue_declare("q")?;
        channel.basic_publish("", "q", "stop")?;
        let closing = connection.clone();
        let (told, outcome) = mpsc::channel();
        let listener = channel.basic_consume("q")?.listen(move |_: &Delivery| {
            told.send(closing.shutdown(LONG)).unwrap();
            Ok(())
        })?;
        outcome.recv().unwrap()?;
        assert!(connection.wait_closed().is_closed());
        let _ = listener.wait();
        let left = broker.connect().channel()?.queue_declare_passive("q")?.message_count;
        assert_eq!(left, 1);
        Ok(())
    });
}

/// Rows 13, 103: a peer that answers nothing cannot hold a shutdown up.
#[test]
fn a_silent_peer_does_not_hold_it_up() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args!["tag"]);
        peer.expect(1, CANCEL);
        peer.silence();
    });
    let connection = Connection::open(peer.config().prefetch(0)).unwrap();
    let channel = connection.channel().unwrap();
    let consumer = channel.basic_consume(leveret::Consume::new("q").consumer_tag("tag")).unwrap();
    let error = connection.shutdown(SHORT).unwrap_err();
    let Error::Unfinished(unfinished) = &error else { panic!("{error:?}") };
    assert!(unfinished.timed_out, "{error}");
    assert!(unfinished.errors.iter().any(|(_, error)| matches!(error, Error::Timeout(_))), "{error}");
    assert_eq!(connection.wait_closed().to_string(), error.to_string());
    drop(consumer);
}

/// Row 103: any limit is a limit.
#[test]
fn a_shutdown_may_have_all_the_time_there_is() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let channel = connection.channel()?;
        connection.shutdown(Duration::MAX)?;
        assert!(!channel.is_open() && connection.wait_closed().is_closed());
        Ok(())
    });
}

/// Rows 3, 103: a connection that was lost before says so, and a closed one is closed.
#[test]
fn a_lost_connection_says_why() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.rst();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let cause = connection.wait_closed();
    assert!(!cause.is_closed());
    assert_eq!(connection.shutdown(LONG).unwrap_err().to_string(), cause.to_string());
    assert!(!matches!(cause, Error::Closed(Scope::Connection)));
}
