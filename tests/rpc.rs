//! Requests and answers: every caller gets its own answer or a cause, and a server survives its clients.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use common::{
    brokers::{Broker, on_each_broker},
    peer::eventually,
    proxy::Cut,
    queues::{holds, stays_at},
};
use leveret::{
    BasicProperties, Channel, Connection, Consumer, Delivery, Error, Event, FailurePolicy, Message, Publish,
    ReplyCode, Result, Scope,
    rpc::{self, Client, Replies, Serve, Server, Service},
};

/// Long enough for every answer that comes.
const SOON: Duration = Duration::from_secs(60);

/// Too short for an answer that is withheld.
const SHORT: Duration = Duration::from_millis(100);

const BOTH: [Replies; 2] = [Replies::Queue, Replies::Direct];

fn service(replies: Replies) -> Service<'static> {
    Service::new("service").replies(replies)
}

fn uppercase(request: &Delivery) -> Result<String, leveret::HandlerError> {
    Ok(request.text()?.to_uppercase())
}

/// A server whose answers the test gives by hand.
struct ByHand {
    requests: Consumer,
    channel: Channel,
    _connection: Connection,
}

impl ByHand {
    fn new(broker: &Broker) -> Result<ByHand> {
        let (connection, channel) = broker.channel();
        channel.queue_declare("service")?;
        Ok(ByHand { requests: channel.basic_consume("service")?, channel, _connection: connection })
    }

    fn next(&mut self) -> Result<Delivery> {
        Ok(self.requests.next_timeout(SOON)?.expect("a request"))
    }

    fn answer(&self, request: &Delivery, body: &str) -> Result<()> {
        self.answer_as(request, request.properties()?.correlation_id, body)
    }

    fn answer_as(&self, request: &Delivery, correlation_id: Option<String>, body: &str) -> Result<()> {
        let mut properties = BasicProperties::new();
        properties.correlation_id = correlation_id;
        let reply_to = request.properties()?.reply_to.expect("where to answer");
        self.channel.basic_publish("", &reply_to, Publish::new(body).properties(&properties))?;
        request.ack()
    }
}

/// Row 79: there and back, with both ways for answers; text, bytes, properties.
#[test]
fn a_request_is_answered() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("service")?;
        let server = Server::serve(&connection, "service", |request: &Delivery| {
            let properties = request.properties()?;
            let given =
                |properties: BasicProperties| properties.message_id("answer").correlation_id("not mine");
            assert_eq!(properties.message_id.as_deref(), Some("request"));
            Ok(Message::text(request.text()?.to_uppercase()).map_properties(given))
        })?;
        for replies in BOTH {
            let client = Client::open(&connection, service(replies))?;
            let request =
                Message::text("hello").map_properties(|properties| properties.message_id("request"));
            for _ in 0..10 {
                let answer = client.call(&request, SOON)?;
                assert_eq!(answer.text()?, "HELLO");
                let properties = answer.properties()?;
                assert_eq!(properties.message_id.as_deref(), Some("answer"));
                assert_eq!(properties.content_type.as_deref(), Some("text/plain; charset=utf-8"));
            }
            assert_eq!((client.late_replies(), client.unknown_replies()), (0, 0));
            client.close()?;
            assert!(matches!(client.call("late", SOON), Err(Error::Closed(_))));
        }
        server.stop();
        server.wait()?;
        stays_at(&channel, "service", 0);
        connection.close()
    });
}

/// Row 79: many callers on one client, answers in any order: each gets its own.
#[test]
fn callers_get_their_own_answers_in_whatever_order_they_come() {
    const THREADS: usize = 32;
    const CALLS: usize = 50;
    on_each_broker(|broker| {
        for replies in BOTH {
            let mut server = ByHand::new(broker)?;
            let connection = broker.connect();
            let client = Client::open(&connection, service(replies))?;
            let served = thread::spawn(move || -> Result<()> {
                let mut answered = 0;
                while answered < THREADS * CALLS {
                    // As many as there are, and the last one first.
                    let mut batch = vec![server.next()?];
                    while let Some(request) = server.requests.next_timeout(Duration::from_millis(1))? {
                        batch.push(request);
                    }
                    answered += batch.len();
                    for request in batch.iter().rev() {
                        server.answer(request, request.text()?)?;
                    }
                }
                server.channel.close()
            });
            thread::scope(|scope| {
                for caller in 0..THREADS {
                    let client = client.clone();
                    scope.spawn(move || {
                        for number in 0..CALLS {
                            let request = format!("{caller}/{number}");
                            assert_eq!(client.call(&request, SOON).unwrap().text().unwrap(), request);
                        }
                    });
                }
            });
            served.join().unwrap()?;
            assert_eq!((client.late_replies(), client.unknown_replies()), (0, 0));
        }
        Ok(())
    });
}

/// Row 79: an answer that comes too late is counted and given to nobody, and so is one that nobody asked for, or that
/// comes twice.
#[test]
fn a_late_answer_reaches_nobody() {
    on_each_broker(|broker| {
        for replies in BOTH {
            let mut server = ByHand::new(broker)?;
            let connection = broker.connect();
            let client = Client::open(&connection, service(replies))?;
            let error = client.call("first", SHORT).unwrap_err();
            assert!(matches!(&error, Error::Timeout(timeout) if timeout.limit == SHORT), "{error}");
            let first = server.next()?;

            let caller = thread::spawn({
                let client = client.clone();
                move || client.call("second", SOON)
            });
            let second = server.next()?;
            // All of them before the right one, on the same channel: in this order they come.
            server.answer(&first, "too late")?;
            let again = Publish::new("twice");
            let number = first.properties()?.correlation_id;
            let reply_to = first.properties()?.reply_to.unwrap();
            for id in [number, Some("99".into()), Some("x".into()), None] {
                let mut properties = BasicProperties::new();
                properties.correlation_id = id;
                server.channel.basic_publish("", &reply_to, again.properties(&properties))?;
            }
            server.answer(&second, "in time")?;
            assert_eq!(caller.join().unwrap()?.text()?, "in time");
            assert_eq!((client.late_replies(), client.unknown_replies()), (2, 3));
            server.channel.close()?;
        }
        Ok(())
    });
}

/// Row 79: a missing service is an error at once, and the client stays usable; a missing exchange is the first cause of
/// every later call.
#[test]
fn a_missing_service_is_an_error_at_once() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        for replies in BOTH {
            let client = Client::open(&connection, service(replies))?;
            // The watchdog is shorter than this.
            let error = client.call("anybody?", Duration::from_secs(3600)).unwrap_err();
            assert!(matches!(&error, Error::Returned(returned) if returned.body == b"anybody?"), "{error}");

            channel.queue_declare("service")?;
            let server = Server::serve(&connection, "service", uppercase)?;
            assert_eq!(client.call("now", SOON)?.text()?, "NOW");
            drop(server);
            channel.queue_delete("service")?;

            let nowhere = Service::at("no such exchange", "key").replies(replies);
            let client = Client::open(&connection, nowhere)?;
            for _ in 0..3 {
                let error = client.call("anybody?", Duration::from_secs(3600)).unwrap_err();
                assert_eq!(error.reply_code(), Some(ReplyCode::NotFound), "{error}");
            }
        }
        assert!(matches!(Server::serve(&connection, "service", uppercase), Err(Error::Refused(_))));
        connection.close()
    });
}

/// Row 79: the client sets reply_to and correlation_id; a request that has its own is refused.
#[test]
fn a_request_with_its_own_address_is_refused() {
    on_each_broker(|broker| {
        let connection = broker.connect();
        let client = Client::open(&connection, "service")?;
        for properties in [BasicProperties::new().reply_to("x"), BasicProperties::new().correlation_id("x")] {
            let error = client.call(Publish::new("").properties(&properties), SOON).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{error}");
        }
        connection.close()
    });
}

/// Rows 14, 79: when the connection is lost, all callers and all later calls learn its cause.
#[test]
fn a_lost_connection_wakes_all_callers_with_its_cause() {
    on_each_broker(|broker| {
        for replies in BOTH {
            let (connection, channel) = broker.channel();
            channel.queue_declare("service")?;
            let client = Client::open(&connection, service(replies))?;
            let callers: Vec<_> = (0..8)
                .map(|_| {
                    let client = client.clone();
                    thread::spawn(move || client.call("hello", Duration::from_secs(3600)).unwrap_err())
                })
                .collect();
            holds(&channel, "service", 8);
            broker.close_all_connections("enough");
            let cause = connection.wait_closed().to_string();
            assert!(cause.contains("enough"), "{cause}");
            for caller in callers {
                assert_eq!(caller.join().unwrap().to_string(), cause);
            }
            assert_eq!(client.call("again", SOON).unwrap_err().to_string(), cause);
            broker.connect().channel()?.queue_delete("service")?;
        }
        Ok(())
    });
}

/// Row 79: a server that is lost in the middle of a request: another one answers it; without one the caller's time
/// passes and no more.
#[test]
fn a_server_that_is_lost_does_not_lose_the_request() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("service")?;
        let client = Client::open(&connection, "service")?;

        let proxy = broker.proxy();
        let doomed = Connection::open(broker.config_through(proxy.address))?;
        let (begun, has_begun) = mpsc::channel();
        let (cut, is_cut) = mpsc::channel::<()>();
        let is_cut = Mutex::new(is_cut);
        let server = Server::serve(&doomed, "service", move |_: &Delivery| {
            begun.send(()).unwrap();
            let _ = is_cut.lock().unwrap().recv();
            Ok("from the lost one")
        })?;
        let caller = thread::spawn({
            let client = client.clone();
            move || client.call("hello", SOON)
        });
        has_begun.recv().unwrap();
        proxy.cut(Cut::Reset);
        let _ = doomed.wait_closed();
        drop(cut);
        let error = server.wait().unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "why it ended: {error}");
        let second = Server::serve(&connection, "service", uppercase)?;
        assert_eq!(caller.join().unwrap()?.text()?, "HELLO");
        drop(second);

        let error = client.call("nobody is there", SHORT).unwrap_err();
        assert!(matches!(error, Error::Timeout(_)), "{error}");
        connection.close()
    });
}

/// Row 79: a requester that has vanished, whatever its address was, does not stop the server.
#[test]
fn a_vanished_requester_does_not_stop_the_server() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("service")?;
        let (go, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let (begun, has_begun) = mpsc::channel();
        let server = Server::serve(&connection, "service", move |request: &Delivery| {
            if request.text()? == "wait" {
                begun.send(()).unwrap();
                gate.lock().unwrap().recv()?;
            }
            uppercase(request)
        })?;
        for replies in BOTH {
            let vanishing = broker.connect();
            let client = Client::open(&vanishing, service(replies))?;
            let caller = thread::spawn(move || client.call("wait", SOON));
            has_begun.recv().unwrap();
            vanishing.close()?;
            assert!(matches!(caller.join().unwrap(), Err(Error::Closed(Scope::Connection | Scope::Channel))));
            go.send(()).unwrap();
        }
        for address in ["amq.rabbitmq.reply-to.nonsense", "no such queue", ""] {
            let properties = BasicProperties::new().reply_to(address);
            channel.basic_publish("", "service", Publish::new("hello").properties(&properties))?;
        }
        channel.basic_publish("", "service", "nobody wants to know")?;
        let client = Client::open(&connection, "service")?;
        assert_eq!(client.call("still there?", SOON)?.text()?, "STILL THERE?");
        // The client's queue, the one that does not exist, and the empty name.
        eventually("what came back is counted", || server.vanished_requesters() >= 3);
        server.stop();
        server.wait()?;
        stays_at(&channel, "service", 0);
        connection.close()
    });
}

/// Row 79: two servers share the work: each of two requests waits for the other one to be served as well.
#[test]
fn two_servers_share_the_requests() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("service")?;
        let both = Arc::new(Barrier::new(2));
        let server = |name: &'static str| {
            let both = both.clone();
            Server::serve(&connection, "service", move |_: &Delivery| {
                both.wait();
                Ok(name)
            })
        };
        let _servers = [server("one")?, server("two")?];
        let client = Client::open(&connection, "service")?;
        let mut names = thread::scope(|scope| {
            let callers = [(); 2].map(|()| scope.spawn(|| client.call("who?", SOON)));
            callers.map(|caller| caller.join().unwrap().unwrap().text().unwrap().to_owned())
        });
        names.sort();
        assert_eq!(names, ["one", "two"]);
        connection.close()
    });
}

/// Row 79: one server with several workers handles as many requests at a time.
#[test]
fn workers_handle_requests_at_the_same_time() {
    const WORKERS: usize = 4;
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("service")?;
        let all = Barrier::new(WORKERS);
        let _server =
            Server::serve(&connection, Serve::new("service").workers(WORKERS), move |_: &Delivery| {
                all.wait();
                Ok("together")
            })?;
        let client = Client::open(&connection, service(Replies::Direct))?;
        thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| assert_eq!(client.call("go", SOON).unwrap().body(), b"together"));
            }
        });
        let none = Server::serve(&connection, Serve::new("service").workers(0), uppercase);
        assert!(matches!(none, Err(Error::Invalid(_))), "{none:?}");
        connection.close()
    });
}

/// Rows 77, 79: a handler that fails or panics: the caller is told, the failure is reported, the request is done with,
/// and the server goes on.
#[test]
fn a_failure_is_told_to_the_caller() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("service")?;
        let mut events = connection.events();
        let server = Server::serve(&connection, "service", |request: &Delivery| match request.text()? {
            "panic" => panic!("a secret of the server"),
            "fail" => Err("no such thing".into()),
            "long" => Err("ä".repeat(4000).into()),
            "unsendable" => {
                let too_long = "x".repeat(300);
                Ok(Message::text("").map_properties(|properties| properties.message_id(too_long)))
            }
            other => Ok(Message::text(other)),
        })?;
        let client = Client::open(&connection, "service")?;
        let told = |request: &str| match client.call(request, SOON) {
            Err(Error::Remote(reason)) => reason.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(told("fail"), "no such thing");
        assert_eq!(told("panic"), "the server panicked");
        assert_eq!(told("long"), "ä".repeat(512));
        assert!(told("unsendable").contains("message_id is 300 bytes long"));
        assert_eq!(client.call("fine", SOON)?.text()?, "fine");
        let failures = std::iter::from_fn(|| events.next_timeout(SOON))
            .filter(|event| matches!(event, Event::HandlerFailed { .. }))
            .take(4);
        assert_eq!(failures.count(), 4);
        server.stop();
        server.wait()?;
        stays_at(&channel, "service", 0);
        connection.close()
    });
}

/// Rows 77, 79: with a policy the request is dealt with like every message, and the caller gets an answer when a later
/// try succeeds.
#[test]
fn a_policy_takes_the_place_of_telling() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("service")?;
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = tries.clone();
        let serve = Serve::new("service").on_failure(FailurePolicy::Requeue { max: 5 });
        let _server = Server::serve(&connection, serve, move |request: &Delivery| {
            if counted.fetch_add(1, Ordering::SeqCst) < 2 {
                return Err("not yet".into());
            }
            uppercase(request)
        })?;
        let client = Client::open(&connection, "service")?;
        assert_eq!(client.call("at last", SOON)?.text()?, "AT LAST");
        assert_eq!(tries.load(Ordering::SeqCst), 3);
        connection.close()
    });
}

/// Rows 79, 103: stopped, a server answers what it has begun and leaves the rest in the queue.
#[test]
fn a_stopped_server_finishes_what_it_has_begun() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("service")?;
        let (go, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let (begun, has_begun) = mpsc::channel();
        let server = Server::serve(&connection, "service", move |request: &Delivery| {
            begun.send(()).unwrap();
            gate.lock().unwrap().recv()?;
            uppercase(request)
        })?;
        let client = Client::open(&connection, "service")?;
        let caller = thread::spawn({
            let client = client.clone();
            move || client.call("begun", SOON)
        });
        has_begun.recv().unwrap();
        channel.basic_publish("", "service", "left")?;
        server.stop();
        assert!(server.wait_timeout(Duration::ZERO).is_none(), "a handler runs");
        go.send(()).unwrap();
        server.wait()?;
        assert_eq!(caller.join().unwrap()?.text()?, "BEGUN");
        holds(&channel, "service", 1);
        connection.close()
    });
}

/// Rows 79, 103: while the connection shuts down, a handler that runs can still make its calls.
#[test]
fn a_handler_calls_while_the_connection_shuts_down() {
    on_each_broker(|broker| {
        let (elsewhere, watching) = broker.channel();
        watching.queue_declare("service")?;
        watching.queue_declare("jobs")?;
        let server = Server::serve(&elsewhere, "service", uppercase)?;
        let connection = broker.connect();
        // First: its consumer would be cancelled before the listener's.
        let client = Client::open(&connection, "service")?;
        let channel = connection.channel()?;
        let (closing, answers) = (connection.clone(), mpsc::channel());
        let answered = answers.0;
        let _listener = channel.basic_consume("jobs")?.listen(move |_: &Delivery| {
            closing.request_shutdown(SOON)?;
            eventually("the listener is cancelled", || {
                watching.queue_declare_passive("jobs").unwrap().consumer_count == 0
            });
            answered.send(client.call("still there?", SOON).map(Delivery::into_body))?;
            Ok(())
        })?;
        channel.basic_publish("", "jobs", "go")?;
        assert_eq!(answers.1.recv_timeout(SOON).expect("the handler's answer")?, b"STILL THERE?");
        let end = connection.wait_closed();
        assert!(end.is_closed(), "{end}");
        server.stop();
        server.wait()?;
        elsewhere.close()
    });
}

/// Row 79: a dropped client takes its queue with it.
#[test]
fn a_dropped_client_leaves_nothing_behind() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("service")?;
        let mut by_hand = channel.basic_consume("service")?;
        let client = Client::open(&connection, "service")?;
        assert!(matches!(client.call("hello", SHORT), Err(Error::Timeout(_))));
        let request = by_hand.next_timeout(SOON)?.expect("the request");
        let reply_to = request.properties()?.reply_to.unwrap();
        assert_eq!(channel.queue_declare_passive(&reply_to)?.consumer_count, 1);
        drop(client);
        eventually("the queue is gone", || {
            connection.with_channel(|channel| channel.queue_declare_passive(&reply_to)).is_err()
        });
        connection.close()
    });
}

/// Row 79: the header that tells of a failure is one that any server may set.
#[test]
fn the_error_header_is_understood() {
    on_each_broker(|broker| {
        let mut server = ByHand::new(broker)?;
        let connection = broker.connect();
        let client = Client::open(&connection, "service")?;
        let caller = thread::spawn(move || client.call("hello", SOON));
        let request = server.next()?;
        let asked = request.properties()?;
        let properties = BasicProperties::new()
            .correlation_id(asked.correlation_id.unwrap())
            .header(rpc::ERROR_HEADER, "not today");
        server.channel.basic_publish(
            "",
            &asked.reply_to.unwrap(),
            Publish::new("").properties(&properties),
        )?;
        assert!(matches!(caller.join().unwrap(), Err(Error::Remote(reason)) if &*reason == "not today"));
        connection.close()
    });
}

/// Rows 79, 105: coroutines call as threads do.
#[cfg(feature = "coroutines")]
#[test]
fn coroutines_call_as_well() {
    on_each_broker(|broker| {
        may::config().set_worker_pin(false);
        let (connection, channel) = broker.channel();
        channel.queue_declare("service")?;
        let _server = Server::serve(&connection, Serve::new("service").workers(4), uppercase)?;
        for replies in BOTH {
            let client = Client::open(&connection, service(replies))?;
            let callers: Vec<_> = (0..200)
                .map(|number| {
                    let client = client.clone();
                    may::go!(move || {
                        let answer = client.call(&format!("call {number}"), SOON)?;
                        assert_eq!(answer.text()?, format!("CALL {number}"));
                        Ok::<_, Error>(())
                    })
                })
                .collect();
            for caller in callers {
                caller.join().unwrap()?;
            }
        }
        connection.close()
    });
}
