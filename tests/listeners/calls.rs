//! What handlers may do: everything.

use std::{
    sync::{Mutex, mpsc},
    time::Duration,
};

use leveret::{Connection, Delivery, Listen};

use crate::common::{
    brokers::on_each_broker,
    calls::{Ready, all_succeeded},
    peer::{CANCEL, CANCEL_OK, Peer, QUEUE_DECLARE, QUEUE_DECLARE_OK, args},
};

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Row 76, promise 5: every call that waits is legal in a handler, on its own connection, on one thread and on several.
#[test]
fn every_blocking_call_is_legal_in_a_handler() {
    on_each_broker(|broker| {
        for workers in [1, 3] {
            let (connection, channel) = broker.channel();
            for queue in ["q", "scratch", "confirmed", "quiet"] {
                channel.queue_declare(queue)?;
            }
            let (done, is_done) = mpsc::channel();
            let (inner, config) = (connection.clone(), broker.config());
            let handler = move |_: &Delivery| {
                let called = Ready::new(&inner, &config)?.call_all();
                let count = called.len();
                all_succeeded(called)?;
                done.send(count)?;
                Ok(())
            };
            let listener = channel.basic_consume("q")?.listen(Listen::new(handler).workers(workers))?;
            channel.basic_publish("", "q", "go")?;
            let count = is_done.recv_timeout(LONG);
            assert!(count.is_ok_and(|count| count >= 45), "{:?}", listener.wait_timeout(LONG));
            listener.stop();
            listener.wait()?;
        }
        Ok(())
    });
}

/// Rows 14, 76: a handler may close its own connection, and gets what every caller gets.
#[test]
fn a_handler_may_close_its_own_connection() {
    on_each_broker(|broker| {
        let (connection, channel) = broker.channel();
        channel.queue_declare("q")?;
        let own = Mutex::new(Some(connection.clone()));
        let listener = channel.basic_consume("q")?.listen(move |delivery: &Delivery| {
            delivery.ack()?;
            own.lock().unwrap().take().expect("once").close()?;
            Ok(())
        })?;
        channel.basic_publish("", "q", "go")?;
        let ended = listener.wait();
        assert!(ended.is_err_and(|error| error.is_closed()));
        assert!(connection.wait_closed().is_closed());
        Ok(())
    });
}

/// Rows 35, 71: RabbitMQ has the queue answer `basic.cancel`, so the answers to later calls of other threads may come
/// before it.
#[test]
fn an_answer_may_overtake_that_to_a_cancel() {
    let (asked, is_asked) = mpsc::channel();
    let peer = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        let tags = [peer.start_consumer(1), {
            let tag = peer.expect(1, crate::common::peer::CONSUME).text(2).to_owned();
            peer.send(1, crate::common::peer::CONSUME_OK, args![&tag]);
            tag
        }];
        for tag in &tags {
            assert_eq!(peer.expect(1, CANCEL).text(0), *tag);
            asked.send(()).unwrap();
        }
        peer.expect(1, QUEUE_DECLARE);
        peer.send(1, QUEUE_DECLARE_OK, args!["declared", 0, 0]);
        for tag in tags.iter().rev() {
            peer.send(1, CANCEL_OK, args![tag]);
        }
        peer.close();
    });
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    let consumers = [channel.basic_consume("q").unwrap(), channel.basic_consume("q").unwrap()];
    std::thread::scope(|scope| {
        let cancelling = consumers.map(|mut consumer| {
            let cancelling = scope.spawn(move || consumer.cancel().map(|()| consumer.has_ended()));
            is_asked.recv_timeout(LONG).unwrap();
            cancelling
        });
        assert_eq!(channel.queue_declare("declared").unwrap().queue, "declared");
        for cancelled in cancelling {
            assert!(cancelled.join().unwrap().unwrap(), "its own answer");
        }
    });
    connection.close().unwrap();
    peer.finish();
}
