//! What becomes of messages that handlers cannot deal with, counted at the broker.

use std::{
    collections::HashMap,
    panic,
    sync::{Arc, Mutex, Once, mpsc},
    thread,
    time::Duration,
};

use leveret::{
    BasicProperties, Channel, Connection, Consume, Delivery, Destination, Error, Event, Failed,
    FailurePolicy, HandlerError, Listen, Publish, QueueDeclare, ReplyCode, Result,
};

use crate::common::{
    brokers::on_each_broker,
    peer::{ACK, CONFIRM_SELECT, CONFIRM_SELECT_OK, FLOW, FLOW_OK, Peer, args, eventually},
    proxy::{Cut, Direction},
    queues::{holds, stays_at},
};

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Panics of handlers are part of these tests; hundreds of backtraces are not.
fn quiet_handlers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() != Some("leveret-handler") {
                print(info);
            }
        }));
    });
}

fn to_errors() -> FailurePolicy {
    FailurePolicy::DeadLetter(Destination::queue("errors"))
}

/// `q`, whose rejected messages go to `rejected`; and `errors`.
fn declare(channel: &Channel, quorum: bool) -> Result<()> {
    let mut q = QueueDeclare::new("q").durable(true);
    if quorum {
        q = q.quorum();
    }
    channel.queue_declare(q.dead_letter_exchange("").dead_letter_routing_key("rejected"))?;
    channel.queue_declare("rejected")?;
    channel.queue_declare("errors").map(drop)
}

/// Row 77: a handler that panics on every tenth message, under load, on one thread and on four, with every policy, from
/// both kinds of queues: what was handled, tried again, refused, forwarded and dropped adds up exactly.
#[test]
fn panics_under_load_are_accounted_for_exactly() {
    const MESSAGES: u32 = 600;
    quiet_handlers();
    // The policy; how often a message that fails is tried; how many end in `rejected` and in `errors`.
    let cases = [
        (FailurePolicy::Requeue { max: 2 }, 3, MESSAGES / 10, 0),
        (FailurePolicy::Requeue { max: 0 }, 1, MESSAGES / 10, 0),
        (FailurePolicy::Reject, 1, MESSAGES / 10, 0),
        (to_errors(), 1, 0, MESSAGES / 10),
        (FailurePolicy::AckAndDrop, 1, 0, 0),
    ];
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        for quorum in [false, true] {
            declare(&channel, quorum)?;
            let each = cases.iter().flat_map(|case| [(1, case), (4, case)]);
            for (workers, (policy, tries, rejected, forwarded)) in each {
                let tried = Arc::new(Mutex::new(HashMap::<u32, u32>::new()));
                let attempts = Arc::new(Mutex::new(HashMap::<u32, u32>::new()));
                let (seen, told) = (tried.clone(), attempts.clone());
                let handler = move |delivery: &Delivery| {
                    let number: u32 = delivery.text()?.parse()?;
                    *seen.lock().unwrap().entry(number).or_default() += 1;
                    if number.is_multiple_of(10) {
                        panic!("number {number}");
                    }
                    Ok(())
                };
                let count_attempt = move |failed: &Failed<'_>| {
                    let number = failed.delivery.text().unwrap().parse().unwrap();
                    let before = told.lock().unwrap().insert(number, failed.attempt);
                    assert_eq!(before.unwrap_or(0) + 1, failed.attempt, "one after the other");
                };
                let listen = Listen::new(handler).workers(workers).on_failure(policy.clone());
                let listener = channel.basic_consume("q")?.listen(listen.on_exception(count_attempt))?;
                for number in 0..MESSAGES {
                    channel.basic_publish("", "q", &number.to_string())?;
                }
                holds(&channel, "rejected", *rejected);
                holds(&channel, "errors", *forwarded);
                eventually("all are tried", || {
                    let tried = tried.lock().unwrap();
                    let done = |number: u32| if number.is_multiple_of(10) { *tries } else { 1 };
                    (0..MESSAGES).all(|number| tried.get(&number) == Some(&done(number)))
                });
                assert!(listener.wait_timeout(Duration::ZERO).is_none(), "it lives");
                listener.stop();
                listener.wait()?;
                let attempts = attempts.lock().unwrap();
                assert_eq!(attempts.len() as u32, MESSAGES / 10);
                assert!(attempts.values().all(|attempt| attempt == tries));
                // What is not acked would come back now.
                channel.close()?;
                channel.reopen()?;
                stays_at(&channel, "q", 0);
                stays_at(&channel, "rejected", *rejected);
                stays_at(&channel, "errors", *forwarded);
                channel.queue_purge("rejected")?;
                channel.queue_purge("errors")?;
            }
            channel.queue_delete("q")?;
        }
        Ok(())
    });
}

/// Row 77: by default the first failure ends the listener, which says why; the message and all behind it go back.
#[test]
fn a_failure_stops_the_listener_by_default() {
    quiet_handlers();
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        for (workers, panics) in [(1, false), (1, true), (3, true)] {
            declare(&channel, false)?;
            let mut events = connection.events();
            let (told, exceptions) = mpsc::channel();
            let handler = move |delivery: &Delivery| match delivery.text()? {
                "5" if panics => panic!("five"),
                "5" => Err(HandlerError::from(std::fmt::Error)),
                _ => Ok(()),
            };
            let listen = Listen::new(handler).workers(workers).on_exception(move |failed| {
                told.send((failed.attempt, failed.failure.to_string())).unwrap();
            });
            (0..10).try_for_each(|number| channel.basic_publish("", "q", &number.to_string()))?;
            holds(&channel, "q", 10);
            let listener = channel.basic_consume("q")?.listen(listen)?;
            let Err(Error::Handler(failure)) = listener.wait() else { panic!("no failure") };
            assert_eq!((failure.panicked, &*failure.consumer_tag), (panics, listener.consumer_tag()));
            assert!(failure.not_forwarded.is_none());
            let source = std::error::Error::source(&*failure);
            assert_eq!(source.and_then(|source| source.downcast_ref::<std::fmt::Error>()).is_some(), !panics);
            if panics {
                assert_eq!(&*failure.reason, "five");
            }
            assert_eq!(exceptions.try_iter().collect::<Vec<_>>(), [(1, failure.to_string())]);
            let told = events.find(|event| matches!(event, Event::HandlerFailed { .. }));
            let Some(Event::HandlerFailed { channel: id, failure: told }) = told else { panic!() };
            assert_eq!((id, told.to_string()), (channel.id(), failure.to_string()));
            // Of several workers the others may have handled some behind it.
            assert_eq!(channel.queue_declare_passive("q")?.consumer_count, 0);
            channel.close()?;
            channel.reopen()?;
            if workers == 1 {
                stays_at(&channel, "q", 5);
            }
            let left = channel.basic_get("q")?;
            let left = left.expect("at least the one that failed");
            assert!(workers > 1 || (left.text()? == "5" && left.redelivered()));
            // With all that may still come back to it.
            channel.queue_delete("q")?;
        }
        Ok(())
    });
}

/// Row 77: the copy says why and from where, and nothing in it sends it elsewhere or has it refused.
#[test]
fn a_dead_letter_says_why_and_goes_nowhere_else() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        declare(&channel, false)?;
        channel.queue_declare("elsewhere")?;
        let properties = BasicProperties::new()
            .content_type("text/plain")
            .persistent()
            .user_id("guest")
            .expiration("600000")
            .message_id("m-1")
            .header("x", 7)
            .header("CC", vec![leveret::FieldValue::from("elsewhere")]);
        let listen = Listen::new(|_: &Delivery| Err("it is poison".into())).on_failure(to_errors());
        let listener = channel.basic_consume("q")?.listen(listen)?;
        channel.basic_publish("", "q", Publish::new("body").properties(&properties))?;
        holds(&channel, "errors", 1);
        let copy = channel.basic_get("errors")?.expect("the copy");
        copy.ack()?;
        assert_eq!(copy.text()?, "body");
        let found = copy.properties()?;
        let kept = (found.content_type.as_deref(), found.message_id.as_deref(), found.delivery_mode);
        assert_eq!(kept, (Some("text/plain"), Some("m-1"), properties.delivery_mode));
        assert_eq!((&found.user_id, &found.expiration), (&None, &None));
        let headers = copy.headers()?;
        for (name, value) in [
            ("message-failed", "it is poison"),
            ("x-original-exchange", ""),
            ("x-original-routing-key", "q"),
            ("x-original-expiration", "600000"),
            ("x-original-user-id", "guest"),
        ] {
            assert_eq!(headers.get(name).and_then(|value| value.as_str()), Some(value), "{name}");
        }
        assert_eq!(headers.get("x").and_then(leveret::FieldValue::as_i64), Some(7));
        assert!(headers.get("CC").is_none());
        // The message itself had gone there; its copy has not.
        stays_at(&channel, "elsewhere", 1);
        listener.stop();
        listener.wait()?;
        channel.close()?;
        channel.reopen()?;
        stays_at(&channel, "q", 0);
        Ok(())
    });
}

/// Row 77: a copy that the broker does not take leaves the message where it is, and the listener says so.
#[test]
fn a_copy_that_is_not_taken_is_no_reason_to_ack() {
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        declare(&channel, false)?;
        let full = QueueDeclare::new("full").max_length(1).overflow(leveret::Overflow::RejectPublish);
        channel.queue_declare(full)?;
        channel.basic_publish("", "full", "full")?;
        holds(&channel, "full", 1);
        let destinations =
            [Destination::queue("missing"), Destination::new("missing", "key"), Destination::queue("full")];
        channel.basic_publish("", "q", "kept")?;
        for destination in destinations {
            let listen = Listen::new(|_: &Delivery| Err("no".into()))
                .on_failure(FailurePolicy::DeadLetter(destination.clone()));
            let listener = channel.basic_consume("q")?.listen(listen)?;
            let Err(Error::Handler(failure)) = listener.wait() else { panic!("no failure") };
            let why = failure.not_forwarded.clone().expect("the copy was not taken");
            let right = match (&*destination.exchange, &*destination.routing_key) {
                ("", "missing") => matches!(why, Error::Returned(_)),
                ("", _) => matches!(why, Error::Nacked),
                _ => why.reply_code() == Some(ReplyCode::NotFound),
            };
            assert!(right, "{destination:?}: {why:?}");
            assert!(failure.to_string().contains(&why.to_string()), "{failure}");
            stays_at(&channel, "q", 1);
        }
        Ok(())
    });
}

/// Row 77: cut between the copy and the ack, before and after its confirm has come: the message is there twice, never
/// not at all.
#[test]
fn a_cut_between_copy_and_ack_makes_two_of_it_and_never_none() {
    on_each_broker(|broker| {
        let observer = broker.connect();
        let observer = observer.channel()?;
        for confirmed in [false, true] {
            declare(&observer, false)?;
            let proxy = Arc::new(broker.proxy());
            let connection = Connection::open(broker.config_through(proxy.address))?;
            let channel = connection.channel()?;
            let stalling = proxy.clone();
            let listen = Listen::new(|_: &Delivery| Err("poison".into())).on_failure_with(move |failed| {
                // The first one opens the channel for copies.
                if failed.delivery.body() == b"second" {
                    stalling.stall(Direction::ToClient);
                }
                to_errors()
            });
            let listener = channel.basic_consume("q")?.listen(listen)?;
            observer.basic_publish("", "q", "first")?;
            holds(&observer, "errors", 1);
            let mut events = connection.events();
            observer.basic_publish("", "q", "second")?;
            holds(&observer, "errors", 2);
            if confirmed {
                proxy.stall(Direction::ToBroker);
                proxy.resume(Direction::ToClient);
                let confirmed = |event: &Event| matches!(event, Event::Confirmed { sequence_number: 2, .. });
                assert!(events.any(|event| confirmed(&event)), "the confirm comes");
            }
            proxy.cut(Cut::Reset);
            let cause = match listener.wait() {
                Err(Error::Handler(failure)) if !confirmed => failure.not_forwarded.clone(),
                other => other.err(),
            };
            assert!(cause.as_ref().is_some_and(Error::is_hard), "{cause:?}");
            stays_at(&observer, "q", 1);
            stays_at(&observer, "errors", 2);
            observer.queue_purge("q")?;
            observer.queue_purge("errors")?;
        }
        Ok(())
    });
}

/// Row 77: the ack goes out after the confirm has come, and not before.
#[test]
fn the_ack_waits_for_the_confirm_of_the_copy() {
    let (published, is_published) = mpsc::channel();
    let (tidy, may_end) = mpsc::channel::<()>();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        let tag = peer.start_consumer(1);
        peer.deliver(1, &tag, 1, b"poison");
        peer.open_channel(2);
        peer.expect(2, CONFIRM_SELECT);
        peer.send(2, CONFIRM_SELECT_OK, &[]);
        let (arguments, _, body) = peer.expect_publish(2);
        assert_eq!((arguments.text(2), arguments.number(3), &body[..]), ("errors", 1, &b"poison"[..]));
        published.send(()).unwrap();
        // An ack would have been before it.
        peer.expect(1, FLOW);
        peer.send(1, FLOW_OK, args![1]);
        peer.send(2, ACK, args![1, 0]);
        assert_eq!(peer.expect(1, ACK).number(0), 1);
        may_end.recv().unwrap();
        peer.rst();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    let listen = Listen::new(|_: &Delivery| Err("poison".into())).on_failure(to_errors());
    let listener = channel.basic_consume("q").unwrap().listen(listen).unwrap();
    is_published.recv_timeout(LONG).unwrap();
    channel.flow(true).unwrap();
    tidy.send(()).unwrap();
    assert!(listener.wait().is_err_and(|error| error.is_hard()));
    peer.finish();
}

/// Row 77: the policy may be chosen for each message; a choice that panics stops the listener. An exception listener that
/// panics harms nobody.
#[test]
fn the_policy_may_be_chosen_by_message() {
    quiet_handlers();
    on_each_broker(|broker| {
        let (_connection, channel) = broker.channel();
        declare(&channel, false)?;
        let listen = Listen::new(|_: &Delivery| Err("always".into()))
            .on_exception(|_| panic!("an exception listener"))
            .on_failure_with(|failed| match failed.delivery.body() {
                b"refuse" => FailurePolicy::Reject,
                b"forward" => to_errors(),
                b"drop" => FailurePolicy::AckAndDrop,
                b"settle" => {
                    failed.delivery.reject(leveret::Requeue::No).unwrap();
                    FailurePolicy::AckAndDrop
                }
                _ => panic!("a policy"),
            });
        let listener = channel.basic_consume("q")?.listen(listen)?;
        for body in ["refuse", "forward", "drop", "settle"] {
            channel.basic_publish("", "q", body)?;
        }
        holds(&channel, "rejected", 2);
        holds(&channel, "errors", 1);
        channel.basic_publish("", "q", "panic")?;
        assert!(matches!(listener.wait(), Err(Error::Handler(_))));
        stays_at(&channel, "q", 1);

        // Without acks there is nothing to be refused; failures are told, and copies made, all the same.
        channel.queue_purge("q")?;
        for policy in [FailurePolicy::Reject, FailurePolicy::Requeue { max: 5 }, to_errors()] {
            let (told, exceptions) = mpsc::channel();
            let listen = Listen::new(|_: &Delivery| Err("always".into()))
                .on_failure(policy)
                .on_exception(move |failed| told.send(failed.attempt).unwrap());
            let listener = channel.basic_consume(Consume::new("q").no_ack(true))?.listen(listen)?;
            channel.basic_publish("", "q", "only copy")?;
            assert_eq!(exceptions.recv_timeout(LONG), Ok(1));
            listener.stop();
            listener.wait()?;
        }
        holds(&channel, "errors", 2);
        Ok(())
    });
}
