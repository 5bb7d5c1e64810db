//! Deferred calls: sent now, their answers collected later; and the barrier.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    io::Read,
    thread,
    time::{Duration, Instant},
};

use common::{
    brokers::on_each_broker,
    limits::PROMPT,
    peer::*,
    watchdog::{LIMIT, Watchdog, test_name},
};
use fastrand::Rng;
use leveret::{
    Channel, Config, Connection, Error, ExchangeBind, ExchangeDeclare, ExchangeKind, ExchangeUnbind, Pending,
    QueueBind, QueueDeclare, QueueDeclareOk, QueueUnbind, ReplyCode, Result, Scope,
};

const CALLS: usize = 1000;
const SHORT: Duration = Duration::from_millis(50);

fn name(number: usize) -> String {
    format!("q{number}")
}

fn declare_all(channel: &Channel, names: impl Iterator<Item = String>) -> Vec<Pending<QueueDeclareOk>> {
    names.map(|name| channel.deferred().queue_declare(&*name).unwrap()).collect()
}

fn scripted(config: Config) -> (Connection, Channel) {
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    (connection, channel)
}

fn declare_ok(peer: &mut Peer, queue: &str, messages: u64) {
    peer.send(1, QUEUE_DECLARE_OK, args![queue, messages, 0]);
}

/// Row 39: a thousand calls go out before a single answer has come, in few packets.
#[test]
fn a_thousand_calls_are_sent_before_the_first_answer() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        let (mut bytes, mut names, mut reads) = (Vec::new(), Vec::new(), 0);
        let mut chunk = [0; 64 * 1024];
        while names.len() < CALLS {
            let read = peer.socket().read(&mut chunk).unwrap();
            assert_ne!(read, 0, "the client hung up");
            reads += 1;
            bytes.extend(&chunk[..read]);
            while let Some(frame) = take_frame(&mut bytes) {
                assert_eq!(frame.method(), Some(QUEUE_DECLARE));
                names.push(frame.arguments().text(1).to_owned());
            }
        }
        for (number, name) in names.iter().enumerate() {
            assert_eq!(*name, self::name(number));
            declare_ok(peer, name, number as u64);
        }
        peer.close_channel(1);
        peer.close();
        reads
    });
    let (connection, channel) = scripted(peer.config());
    for (number, pending) in declare_all(&channel, (0..CALLS).map(name)).into_iter().enumerate() {
        let ok = pending.wait().unwrap();
        assert_eq!((ok.queue, ok.message_count as usize), (name(number), number));
    }
    channel.close().unwrap();
    connection.close().unwrap();
    let reads = peer.finish();
    assert!(reads * 4 < CALLS, "{reads} packets for {CALLS} calls");
}

/// Row 39: whatever the order in which the answers are collected, each is that of its own call.
#[test]
fn answers_belong_to_their_calls_in_any_order() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        for (seed, collect) in ["forwards", "backwards", "shuffled"].into_iter().enumerate() {
            let names = (0..100).map(|number| format!("{collect}-{number}"));
            let mut pending: Vec<_> = names.clone().zip(declare_all(&channel, names)).collect();
            match collect {
                "forwards" => {}
                "backwards" => pending.reverse(),
                _ => Rng::with_seed(seed as u64).shuffle(&mut pending),
            }
            for (name, pending) in pending {
                assert_eq!(pending.wait()?.queue, name);
            }
        }
        connection.close()
    });
}

/// Row 39: every kind of call has its deferred form, with its answer.
#[test]
fn every_deferred_call_answers_as_the_call_does() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        let deferred = channel.deferred();
        let exchanges = [
            deferred.exchange_declare(ExchangeDeclare::new("one", ExchangeKind::Topic))?,
            deferred.exchange_declare(ExchangeDeclare::new("two", ExchangeKind::Fanout))?,
            deferred.exchange_bind(ExchangeBind::new("two", "one", "key"))?,
        ];
        let declared = deferred.queue_declare(QueueDeclare::new("q"))?;
        let bound = deferred.queue_bind(QueueBind::new("q", "two", ""))?;
        exchanges.into_iter().chain([bound]).try_for_each(Pending::wait)?;
        assert_eq!(declared.wait()?.queue, "q");
        channel.confirm_select()?;
        for key in ["key", "other", "key"] {
            // Once it is confirmed the queue counts it.
            channel.publish_confirmed("one", key, "message")?;
        }
        let counted = deferred.queue_declare("q")?;
        let purged = deferred.queue_purge("q")?;
        let unbound = deferred.queue_unbind(QueueUnbind::new("q", "two", ""))?;
        let apart = deferred.exchange_unbind(ExchangeUnbind::new("two", "one", "key"))?;
        let deleted = deferred.queue_delete("q")?;
        let gone = [deferred.exchange_delete("one")?, deferred.exchange_delete("two")?];
        [unbound, apart].into_iter().chain(gone).try_for_each(Pending::wait)?;
        assert_eq!((counted.wait()?.message_count, purged.wait()?, deleted.wait()?), (2, 2, 0));
        connection.close()
    });
}

/// Rows 33, 39: the refusal comes from the call that caused it; those before have their answers, and those after
/// fail with the same cause.
#[test]
fn a_refusal_comes_from_its_own_handle() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        for refused in [0, 5, 9] {
            let mut declares: Vec<_> =
                declare_all(&channel, (0..refused).map(name)).into_iter().map(Ok).collect();
            let purge = channel.deferred().queue_purge("missing")?;
            // The refusal may come before all of these are sent; it is their error then as well.
            declares.extend((refused + 1..10).map(|number| channel.deferred().queue_declare(&*name(number))));
            // The last first: an answer is not taken for another's.
            let mut results: Vec<_> = declares
                .into_iter()
                .rev()
                .map(|sent| sent.and_then(Pending::wait).map(|ok| ok.queue))
                .collect();
            results.reverse();
            results.insert(refused, purge.wait().map(|count| format!("{count} messages")));
            for (number, result) in results.into_iter().enumerate() {
                match result {
                    Ok(queue) => assert!(number < refused && queue == name(number), "{number}: {queue}"),
                    Err(error) => {
                        assert!(number >= refused, "{number}: {error:?}");
                        assert_eq!(error.reply_code(), Some(ReplyCode::NotFound));
                        assert!(error.to_string().contains("missing"), "{error}");
                    }
                }
            }
            let later = channel.deferred().queue_declare("later").unwrap_err();
            assert_eq!(later.reply_code(), Some(ReplyCode::NotFound));
            channel.reopen()?;
        }
        connection.close()
    });
}

/// Row 39: a handle that is dropped neither undoes its call nor disturbs the others, and an error that only it
/// would have told is told by the next call.
#[test]
fn dropped_handles_are_harmless() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        for number in 0..100 {
            let pending = channel.deferred().queue_declare(&*name(number))?;
            if number % 10 == 3 {
                assert_eq!(pending.wait()?.queue, name(number));
            }
        }
        assert_eq!(channel.queue_declare_passive("q99")?.queue, "q99");
        drop(channel.deferred().queue_purge("missing")?);
        let error = channel.flow(true).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NotFound));
        connection.close()
    });
}

/// Rows 37, 39: what waits no longer than so long; a late answer is still the handle's own, and never another's.
#[test]
fn waiting_for_a_deferred_answer_is_bounded() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        for _ in 0..3 {
            peer.expect(1, QUEUE_DECLARE);
        }
        peer.expect(1, FLOW);
        for number in 0..3 {
            declare_ok(peer, &name(number), 0);
        }
        peer.send(1, FLOW_OK, args![1]);
        peer.close_channel(1);
        peer.close();
    });
    let (connection, channel) = scripted(peer.config());
    let mut first = channel.deferred().queue_declare("q0").unwrap();
    assert!(first.try_wait().is_none());
    assert!(first.wait_timeout(SHORT).is_none());
    let second = channel.within(SHORT).deferred().queue_declare("q1").unwrap();
    let third = channel.deferred().queue_declare("q2").unwrap();
    let Err(Error::Timeout(timeout)) = second.wait() else { panic!("the peer says nothing") };
    assert_eq!((timeout.waiting_for, timeout.limit), ("queue.declare", SHORT));
    assert!(channel.flow(true).unwrap());
    assert_eq!(first.try_wait().unwrap().unwrap().queue, "q0");
    assert_eq!(third.wait().unwrap().queue, "q2");
    channel.close().unwrap();
    connection.close().unwrap();
}

/// Rows 14, 22, 39: handles that wait, and handles that nobody waits for yet, learn why the connection ended.
#[test]
fn pending_answers_end_with_the_connection() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        for _ in 0..3 {
            peer.expect(1, QUEUE_DECLARE);
        }
        declare_ok(peer, "q0", 7);
        peer.send(0, CLOSE, args![320, "CONNECTION_FORCED - maintenance", 0, 0]);
        peer.expect(0, CLOSE_OK);
        peer.expect_end();
    });
    let (connection, channel) = scripted(peer.config());
    let mut pending = declare_all(&channel, (0..3).map(name)).into_iter();
    let (answered, second, third) =
        (pending.next().unwrap(), pending.next().unwrap(), pending.next().unwrap());
    let expected = "CONNECTION_FORCED - maintenance";
    let told = |result: Result<QueueDeclareOk>| result.unwrap_err().to_string();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || told(second.wait()));
        assert_eq!(connection.wait_closed().reply_code(), Some(ReplyCode::ConnectionForced));
        assert!(waiting.join().unwrap().contains(expected));
    });
    assert!(told(third.wait()).contains(expected));
    assert_eq!(answered.wait().unwrap().message_count, 7, "what came before the end counts");
}

/// Rows 13, 39: closing the channel ends what is pending as closed by the application.
#[test]
fn pending_answers_end_with_the_channel() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(1, QUEUE_DECLARE);
        peer.close_channel(1);
        peer.close();
    });
    let (connection, channel) = scripted(peer.config());
    let pending = channel.deferred().queue_declare("q").unwrap();
    channel.close().unwrap();
    let ended = pending.wait();
    assert!(matches!(ended, Err(Error::Closed(Scope::Channel))), "{ended:?}");
    connection.close().unwrap();
}

/// Rows 35, 39: several threads defer on one channel, beside others that call and publish.
#[test]
fn several_threads_defer_on_one_channel() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        thread::scope(|scope| {
            let work = |thread: usize| -> Result<()> {
                for round in 0..5 {
                    let names: Vec<_> = (0..20).map(|number| format!("{thread}-{round}-{number}")).collect();
                    let pending = declare_all(&channel, names.iter().cloned());
                    channel.basic_publish("", &names[0], "message")?;
                    assert_eq!(channel.queue_declare(&*names[0])?.queue, names[0]);
                    for (name, pending) in names.iter().zip(pending) {
                        assert_eq!(pending.wait()?.queue, *name);
                    }
                }
                Ok(())
            };
            let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || work(thread))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap())
        })?;
        connection.close()
    });
}

/// Rows 38, 83: the barrier waits until everything before it has been looked at, and says what was wrong.
#[test]
fn the_barrier_surfaces_a_pending_error() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        assert!(channel.flow(true)?);
        for _ in 0..100 {
            channel.basic_publish("missing", "key", "lost")?;
            let error = channel.flow(true).unwrap_err();
            assert_eq!(error.reply_code(), Some(ReplyCode::NotFound), "{error:?}");
            channel.reopen()?;
        }
        channel.no_wait().queue_purge("missing")?;
        let error = channel.flow(true).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NotFound), "{error:?}");
        channel.reopen()?;

        // A delivery tag that another client settled behind our back does not exist; a tag of ours, sent
        // twice, is caught before it is sent.
        channel.queue_declare("q")?;
        channel.basic_publish("", "q", "message")?;
        let message = channel.basic_get("q")?.unwrap();
        message.ack()?;
        assert!(matches!(message.ack(), Err(Error::Settled { .. })));
        assert!(channel.flow(true)?, "nothing was sent that could be wrong");
        connection.close()
    });
}

/// Row 83: an ack that the broker does not accept is an error at the barrier.
#[test]
fn the_barrier_surfaces_a_bad_ack() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        let tag = peer.start_consumer(1);
        peer.deliver(1, &tag, 1, b"message");
        assert_eq!(peer.expect(1, ACK).number(0), 1);
        peer.expect(1, FLOW);
        peer.send(1, CHANNEL_CLOSE, args![406, "PRECONDITION_FAILED - unknown delivery tag 1", 60, 80]);
        peer.expect(1, CHANNEL_CLOSE_OK);
        peer.close();
    });
    let (connection, channel) = scripted(peer.config());
    let mut consumer = channel.basic_consume("q").unwrap();
    consumer.next_timeout(PROMPT).unwrap().unwrap().ack().unwrap();
    let error = channel.flow(true).unwrap_err();
    let Error::Refused(refusal) = &error else { panic!("{error:?}") };
    assert_eq!((refusal.code, &*refusal.method), (ReplyCode::PreconditionFailed, "basic.ack"));
    connection.close().unwrap();
}

/// Row 38: the broker's own flow stops publishing on its channel and nothing else; it is answered, and what waits
/// goes on when it is lifted.
#[test]
fn a_stopped_flow_holds_back_one_channel() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        peer.expect(2, CHANNEL_OPEN);
        peer.send(1, FLOW, args![0]);
        // The client has read the flow when it reads this.
        peer.send(2, CHANNEL_OPEN_OK, args![""]);
        assert_eq!(peer.expect(1, FLOW_OK).number(0), 0);
        assert_eq!(peer.expect_publish(2).2, b"another channel");
        peer.expect(1, QUEUE_DECLARE);
        declare_ok(peer, "q", 0);
        // The client has tried in vain by now.
        peer.expect(2, FLOW);
        peer.send(2, FLOW_OK, args![1]);
        peer.send(1, FLOW, args![1]);
        assert_eq!(peer.expect(1, FLOW_OK).number(0), 1);
        assert_eq!(peer.expect_publish(1).2, b"held back");
        peer.close();
    });
    let connection = Connection::open(peer.config().publish_timeout(SHORT)).unwrap();
    let (stopped, other) = (connection.channel().unwrap(), connection.channel().unwrap());
    assert!(matches!(stopped.try_publish("", "key", "never"), Err(Error::WouldBlock)));
    let started = Instant::now();
    let refused = stopped.basic_publish("", "key", "never");
    let Err(Error::Timeout(timeout)) = refused else { panic!("{refused:?}") };
    assert_eq!((timeout.waiting_for, timeout.limit), ("publishing", SHORT));
    assert!(started.elapsed() >= SHORT);
    other.basic_publish("", "key", "another channel").unwrap();
    assert_eq!(stopped.queue_declare("q").unwrap().queue, "q", "calls are not held back");
    other.flow(true).unwrap();
    while stopped.basic_publish("", "key", "held back").is_err() {}
    connection.close().unwrap();
}
