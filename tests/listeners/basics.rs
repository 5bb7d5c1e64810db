//! How listeners begin, work and end.

use std::{
    collections::HashSet,
    sync::{
        Arc, Barrier, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use leveret::{
    Config, Connection, Consume, Delivery, Error, Handler, HandlerError, Listen, Listener, ReplyCode, Scope,
};

use crate::common::{
    brokers::on_each_broker,
    peer::eventually,
    queues::{holds, stays_at},
};

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A limit that lies beyond what a clock can count is none, and not one that has passed.
#[test]
fn a_wait_may_have_any_limit() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let (begin, begun) = mpsc::channel();
        let (finish, finishing) = mpsc::channel::<()>();
        let listener = channel.basic_consume("q")?.listen(move |_: &Delivery| {
            begin.send(())?;
            let _ = finishing.recv();
            Ok(())
        })?;
        channel.basic_publish("", "q", "x")?;
        begun.recv_timeout(LONG).unwrap();
        listener.stop();
        let ended = thread::scope(|scope| {
            let waiting = scope.spawn(|| listener.wait_timeout(Duration::MAX));
            drop(finish);
            waiting.join().unwrap()
        });
        assert!(matches!(ended, Some(Ok(()))), "{ended:?}");
        Ok(())
    });
}

struct Counter {
    count: usize,
    seen: mpsc::Sender<String>,
}

impl Handler for Counter {
    fn handle(&mut self, delivery: &Delivery) -> Result<(), HandlerError> {
        self.count += 1;
        self.seen.send(format!("{}: {}", self.count, delivery.text()?))?;
        Ok(())
    }
}

/// Row 76: a closure and an object with a state are handlers; what they return `Ok` for is acked, in order, on a thread
/// of the listener's own.
#[test]
fn closures_and_objects_handle_messages_in_order() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        for queue in ["a", "b"] {
            channel.queue_declare(queue)?;
            (0..100).try_for_each(|number| channel.basic_publish("", queue, &number.to_string()))?;
        }
        let (seen, come) = mpsc::channel();
        let by_object = channel.basic_consume("a")?.listen(Counter { count: 0, seen })?;
        for number in 0..100 {
            assert_eq!(come.recv_timeout(LONG).unwrap(), format!("{}: {number}", number + 1));
        }

        let (seen, come) = mpsc::channel();
        let mut count = 0;
        let by_closure = channel.basic_consume("b")?.listen(move |delivery: &Delivery| {
            count += 1;
            seen.send((count, delivery.text()?.to_owned(), thread::current().name().map(str::to_owned)))?;
            Ok(())
        })?;
        for number in 0..100 {
            let expected = (number + 1, number.to_string(), Some("leveret-handler".to_owned()));
            assert_eq!(come.recv_timeout(LONG).unwrap(), expected);
        }
        for listener in [by_object, by_closure] {
            assert!(!listener.has_ended() && listener.wait_timeout(Duration::ZERO).is_none());
            listener.stop();
            listener.wait()?;
            listener.wait()?;
            assert!(listener.has_ended());
        }
        channel.close()?;
        channel.reopen()?;
        holds(&channel, "a", 0);
        holds(&channel, "b", 0);
        Ok(())
    });
}

/// Row 76: a handler may settle a message itself, in whatever way; that stays so.
#[test]
fn what_a_handler_settles_stays_settled_that_way() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        (0..30).try_for_each(|number| channel.basic_publish("", "q", &number.to_string()))?;
        let (seen, come) = mpsc::channel();
        let listener = channel.basic_consume("q")?.listen(move |delivery: &Delivery| {
            match delivery.text()?.parse::<u32>()? % 3 {
                0 => delivery.ack()?,
                1 => delivery.reject(leveret::Requeue::No)?,
                _ => {}
            }
            seen.send(delivery.clone())?;
            Ok(())
        })?;
        let all: Vec<Delivery> = (0..30).map(|_| come.recv_timeout(LONG).unwrap()).collect();
        listener.stop();
        listener.wait()?;
        for delivery in &all {
            assert!(matches!(delivery.ack(), Err(Error::Settled { .. })), "settled once");
        }
        channel.flow(true)?;
        stays_at(&channel, "q", 0);
        Ok(())
    });
}

/// Row 76: N workers run N handlers at a time; clones of one, or one each.
#[test]
fn workers_handle_messages_at_the_same_time() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        for round in 0..2 {
            (0..40).try_for_each(|number| channel.basic_publish("", "q", &number.to_string()))?;
            // Nobody gets past it alone.
            let meeting = Arc::new(Barrier::new(4));
            let (seen, come) = mpsc::channel();
            let handler = |worker: usize| {
                let (meeting, seen) = (meeting.clone(), seen.clone());
                move |delivery: &Delivery| {
                    meeting.wait();
                    seen.send((worker, delivery.text()?.to_owned()))?;
                    Ok::<(), HandlerError>(())
                }
            };
            let consumer = channel.basic_consume("q")?;
            let listener = match round {
                0 => consumer.listen(Listen::new(handler(0)).workers(4))?,
                _ => consumer.listen(Listen::pool((0..4).map(handler)))?,
            };
            let all: Vec<(usize, String)> = (0..40).map(|_| come.recv_timeout(LONG).unwrap()).collect();
            let workers: HashSet<usize> = all.iter().map(|(worker, _)| *worker).collect();
            assert_eq!(workers.len(), if round == 0 { 1 } else { 4 });
            assert_eq!(all.iter().map(|(_, text)| text).collect::<HashSet<_>>().len(), 40);
            listener.stop();
            listener.wait()?;
        }
        channel.close()?;
        channel.reopen()?;
        holds(&channel, "q", 0);
        let none = channel.basic_consume("q")?.listen(Listen::new(handle).workers(0));
        assert!(matches!(none, Err(Error::Invalid(_))), "{none:?}");
        Ok(())
    });
}

fn handle(_: &Delivery) -> Result<(), HandlerError> {
    Ok(())
}

/// Rows 72, 76: `stop` from within a handler is legal, as is dropping the listener there; the message at hand is
/// acked, and what no handler has begun goes back.
#[test]
fn a_handler_may_stop_its_own_listener() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        for (workers, drops) in [(1, false), (1, true), (3, false), (3, true)] {
            (0..50).try_for_each(|number| channel.basic_publish("", "q", &number.to_string()))?;
            holds(&channel, "q", 50);
            let own = Arc::new(std::sync::Mutex::new(None::<Listener>));
            let (begin, may_begin) = mpsc::channel::<()>();
            let may_begin = Arc::new(std::sync::Mutex::new(Some(may_begin)));
            let handled = Arc::new(AtomicUsize::new(0));
            let (done, is_done) = mpsc::channel();
            let handler = {
                let (own, handled) = (own.clone(), handled.clone());
                move |_: &Delivery| {
                    if let Some(may_begin) = may_begin.lock().unwrap().take() {
                        may_begin.recv()?;
                    }
                    handled.fetch_add(1, Ordering::SeqCst);
                    let mut slot = own.lock().unwrap();
                    if let Some(listener) = slot.as_ref() {
                        assert!(matches!(listener.wait(), Err(Error::WouldDeadlock)));
                        let at_once = listener.wait_timeout(LONG);
                        assert!(matches!(at_once, Some(Err(Error::WouldDeadlock))));
                        listener.stop();
                        if drops {
                            drop(slot.take());
                        }
                        done.send(())?;
                    }
                    Ok(())
                }
            };
            let listener = channel.basic_consume("q")?.listen(Listen::new(handler).workers(workers))?;
            *own.lock().unwrap() = Some(listener);
            begin.send(()).unwrap();
            is_done.recv_timeout(LONG).unwrap();
            if drops {
                eventually("the handlers are gone", || Arc::strong_count(&own) == 1);
            } else {
                let listener = own.lock().unwrap().take().unwrap();
                listener.wait()?;
            }
            let left = 50 - u32::try_from(handled.load(Ordering::SeqCst)).unwrap();
            // The consumer has been cancelled, and what was not begun has gone back.
            eventually("the consumer is cancelled", || {
                channel.queue_declare("q").unwrap().consumer_count == 0
            });
            stays_at(&channel, "q", left);
            channel.queue_purge("q")?;
        }
        Ok(())
    });
}

/// Rows 72, 73: dropping a listener waits for the handler that runs, at most `drop_timeout`; what it handled is acked all
/// the same, and the rest goes back.
#[test]
fn a_dropped_listener_lets_handlers_finish_and_does_not_wait_for_ever() {
    on_each_broker(|broker| {
        let mut config: Config = broker.config();
        config.drop_timeout = Duration::from_millis(200);
        let connection = Connection::open(config)?;
        let channel = connection.channel()?;
        channel.queue_declare("q")?;
        for workers in [1, 2] {
            (0..10).try_for_each(|number| channel.basic_publish("", "q", &number.to_string()))?;
            holds(&channel, "q", 10);
            let (at_work, is_at_work) = mpsc::channel();
            let (go_on, may_go_on) = mpsc::channel::<()>();
            let may_go_on = Arc::new(std::sync::Mutex::new(may_go_on));
            let handler = move |_: &Delivery| {
                at_work.send(())?;
                let _ = may_go_on.lock().unwrap().recv();
                Ok(())
            };
            let listener = channel.basic_consume("q")?.listen(Listen::new(handler).workers(workers))?;
            (0..workers).for_each(|_| is_at_work.recv_timeout(LONG).unwrap());
            let started = Instant::now();
            drop(listener);
            assert!(started.elapsed() >= Duration::from_millis(200), "it waits for the handler");
            // The handlers go on, and are the last.
            drop(go_on);
            eventually("the handlers have ended", || {
                matches!(is_at_work.try_recv(), Err(mpsc::TryRecvError::Disconnected))
            });
            eventually("the consumer is cancelled", || {
                channel.queue_declare("q").unwrap().consumer_count == 0
            });
            stays_at(&channel, "q", 10 - workers as u32);
            channel.queue_purge("q")?;
        }
        Ok(())
    });
}

/// Row 72: the end of the consumer is the end of the listener, with its cause, for all who wait; handlers get what was
/// delivered before a cancel.
#[test]
fn a_listener_tells_why_it_ended() {
    on_each_broker(|broker| {
        for workers in [1, 3] {
            let (connection, channel) = broker.channel();
            let handled = Arc::new(AtomicUsize::new(0));
            let listen = || {
                let handled = handled.clone();
                let handler = move |_: &Delivery| {
                    handled.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                };
                channel.basic_consume("q")?.listen(Listen::new(handler).workers(workers))
            };
            channel.queue_declare("q")?;
            let listener = listen()?;
            (0..100).try_for_each(|_| channel.basic_publish("", "q", "work"))?;
            holds(&channel, "q", 0);
            channel.basic_cancel(listener.consumer_tag())?;
            listener.wait()?;
            assert_eq!(handled.load(Ordering::SeqCst), 100, "all that was delivered");

            let listener = listen()?;
            channel.queue_delete("q")?;
            let ended = listener.wait();
            assert!(matches!(&ended, Err(Error::CancelledByServer { .. })), "{ended:?}");
            channel.queue_declare("q")?;

            let listener = listen()?;
            channel.queue_declare_passive("none").unwrap_err();
            for _ in 0..2 {
                let code = listener.wait().unwrap_err().reply_code();
                assert_eq!(code, Some(ReplyCode::NotFound));
            }
            channel.reopen()?;

            let listener = listen()?;
            let waiting = thread::scope(|scope| {
                let waiting = scope.spawn(|| listener.wait());
                broker.close_all_connections("for the test");
                waiting.join().unwrap()
            });
            assert_eq!(waiting.unwrap_err().reply_code(), Some(ReplyCode::ConnectionForced));
            assert!(connection.close().is_err());
        }

        let (connection, channel) = broker.channel();
        let listener = channel.basic_consume("q")?.listen(handle)?;
        drop(channel);
        assert!(matches!(listener.wait(), Err(Error::Closed(Scope::Channel))));
        connection.close()
    });
}

/// Rows 72, 74: without acks what was delivered is the only copy, and is handled before a stopped listener ends.
#[test]
fn without_acks_all_that_was_delivered_is_handled() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        (0..100).try_for_each(|_| channel.basic_publish("", "q", "only copy"))?;
        holds(&channel, "q", 100);
        for workers in [1, 4] {
            let handled = Arc::new(AtomicUsize::new(0));
            let first = Arc::new(OnceLock::new());
            let (begun, has_begun) = mpsc::channel();
            let handler = {
                let (handled, first) = (handled.clone(), first.clone());
                move |_: &Delivery| {
                    if first.set(()).is_ok() {
                        begun.send(())?;
                    }
                    handled.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                }
            };
            let listener = channel
                .basic_consume(Consume::new("q").no_ack(true))?
                .listen(Listen::new(handler).workers(workers))?;
            if workers == 1 {
                has_begun.recv_timeout(LONG).unwrap();
                holds(&channel, "q", 0);
            }
            listener.stop();
            listener.wait()?;
            if workers == 1 {
                assert_eq!(handled.load(Ordering::SeqCst), 100);
            }
        }
        Ok(())
    });
}
