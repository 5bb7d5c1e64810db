//! The blocking calls, and what the peer sees of each.

use std::{any::Any, collections::VecDeque, sync::mpsc::Sender};

use super::{LONG, common::peer::*};
use leveret::{
    Channel, Connection, Consume, Consumer, Delivery, Error, ExchangeBind, ExchangeDeclare, ExchangeUnbind,
    QueueBind, QueueUnbind, Requeue, Result,
};

/// What a call has to work with. Calls that drop something take it out.
pub struct Stage {
    pub connection: Option<Connection>,
    pub channel: Option<Channel>,
    pub consumer: Option<Consumer>,
    /// What calls have returned that is still to be dropped.
    pub made: Vec<Box<dyn Any + Send>>,
    pub deliveries: VecDeque<Delivery>,
    /// Tells the peer that the call is about to wait.
    pub waiting: Sender<()>,
}

impl Stage {
    pub fn connection(&self) -> &Connection {
        self.connection.as_ref().unwrap()
    }

    pub fn channel(&self) -> &Channel {
        self.channel.as_ref().unwrap()
    }

    pub fn consumer(&mut self) -> &mut Consumer {
        self.consumer.as_mut().unwrap()
    }

    /// Publishes until nothing more is taken.
    fn fill(&self) -> Result<()> {
        loop {
            match self.channel().try_publish("", "key", &[7; 2000]) {
                Err(Error::WouldBlock) => return Ok(()),
                result => result?,
            }
        }
    }
}

/// What the peer sees of a call.
#[derive(Clone, Copy)]
pub enum Seen {
    /// A method on a channel, and its answer, made from the method's arguments.
    Request(u16, Method, fn(&Arguments) -> Vec<u8>),
    /// Nothing; a delivery ends the wait.
    Nothing,
    /// It reads nothing, so that the client's buffers are full.
    Full,
}

/// One blocking call.
#[derive(Clone, Copy)]
pub struct Call {
    pub name: &'static str,
    pub run: fn(&mut Stage) -> Result<()>,
    pub seen: Seen,
    /// What its timeout names.
    pub waiting_for: &'static str,
}

const fn request(
    name: &'static str,
    run: fn(&mut Stage) -> Result<()>,
    channel: u16,
    method: Method,
    answer: fn(&Arguments) -> Vec<u8>,
) -> Call {
    Call { name, run, seen: Seen::Request(channel, method, answer), waiting_for: method.name }
}

/// All of them.
pub fn calls() -> Vec<Call> {
    vec![
        request(
            "connection.channel",
            |stage| {
                let channel = stage.connection().channel()?;
                stage.made.push(Box::new(channel));
                Ok(())
            },
            2,
            CHANNEL_OPEN,
            |_| method(2, CHANNEL_OPEN_OK, args![""]),
        ),
        request(
            "connection.close",
            |stage| stage.connection().close(),
            0,
            CLOSE,
            |_| method(0, CLOSE_OK, &[]),
        ),
        request(
            "drop of the connection",
            |stage| {
                drop(stage.connection.take());
                Ok(())
            },
            0,
            CLOSE,
            |_| method(0, CLOSE_OK, &[]),
        ),
        request(
            "channel.close",
            |stage| stage.channel().close(),
            1,
            CHANNEL_CLOSE,
            |_| method(1, CHANNEL_CLOSE_OK, &[]),
        ),
        request(
            "drop of the channel",
            |stage| {
                drop(stage.channel.take());
                Ok(())
            },
            1,
            CHANNEL_CLOSE,
            |_| method(1, CHANNEL_CLOSE_OK, &[]),
        ),
        request(
            "flow",
            |stage| stage.channel().flow(true).map(drop),
            1,
            FLOW,
            |_| method(1, FLOW_OK, args![1]),
        ),
        request(
            "exchange_declare",
            |stage| stage.channel().exchange_declare(ExchangeDeclare::new("e", "topic")),
            1,
            EXCHANGE_DECLARE,
            |_| method(1, EXCHANGE_DECLARE_OK, &[]),
        ),
        request(
            "exchange_declare_passive",
            |stage| stage.channel().exchange_declare_passive("e"),
            1,
            EXCHANGE_DECLARE,
            |_| method(1, EXCHANGE_DECLARE_OK, &[]),
        ),
        request(
            "exchange_delete",
            |stage| stage.channel().exchange_delete("e"),
            1,
            EXCHANGE_DELETE,
            |_| method(1, EXCHANGE_DELETE_OK, &[]),
        ),
        request(
            "exchange_bind",
            |stage| stage.channel().exchange_bind(ExchangeBind::new("e", "f", "k")),
            1,
            EXCHANGE_BIND,
            |_| method(1, EXCHANGE_BIND_OK, &[]),
        ),
        request(
            "exchange_unbind",
            |stage| stage.channel().exchange_unbind(ExchangeUnbind::new("e", "f", "k")),
            1,
            EXCHANGE_UNBIND,
            |_| method(1, EXCHANGE_UNBIND_OK, &[]),
        ),
        request(
            "queue_declare",
            |stage| stage.channel().queue_declare("q").map(drop),
            1,
            QUEUE_DECLARE,
            |_| method(1, QUEUE_DECLARE_OK, args!["q", 1, 2]),
        ),
        request(
            "queue_declare_passive",
            |stage| stage.channel().queue_declare_passive("q").map(drop),
            1,
            QUEUE_DECLARE,
            |_| method(1, QUEUE_DECLARE_OK, args!["q", 1, 2]),
        ),
        request(
            "queue_bind",
            |stage| stage.channel().queue_bind(QueueBind::new("q", "e", "k")),
            1,
            QUEUE_BIND,
            |_| method(1, QUEUE_BIND_OK, &[]),
        ),
        request(
            "queue_unbind",
            |stage| stage.channel().queue_unbind(QueueUnbind::new("q", "e", "k")),
            1,
            QUEUE_UNBIND,
            |_| method(1, QUEUE_UNBIND_OK, &[]),
        ),
        request(
            "queue_purge",
            |stage| stage.channel().queue_purge("q").map(drop),
            1,
            QUEUE_PURGE,
            |_| method(1, QUEUE_PURGE_OK, args![3]),
        ),
        request(
            "queue_delete",
            |stage| stage.channel().queue_delete("q").map(drop),
            1,
            QUEUE_DELETE,
            |_| method(1, QUEUE_DELETE_OK, args![3]),
        ),
        request("basic_qos", |stage| stage.channel().basic_qos(5), 1, QOS, |_| method(1, QOS_OK, &[])),
        request(
            "basic_get",
            |stage| stage.channel().basic_get("q").map(drop),
            1,
            GET,
            |_| method(1, GET_EMPTY, args![""]),
        ),
        request(
            "basic_get of a message",
            |stage| {
                stage.channel().basic_get("q").map(|message| assert_eq!(message.unwrap().body(), b"body"))
            },
            1,
            GET,
            |_| content(1, GET_OK, args![9, 0, "", "q", 0], NO_PROPERTIES, b"body", 2),
        ),
        request(
            "basic_consume",
            |stage| {
                let consumer = stage.channel().basic_consume(Consume::new("q").consumer_tag("new"))?;
                stage.made.push(Box::new(consumer));
                Ok(())
            },
            1,
            CONSUME,
            |arguments| method(1, CONSUME_OK, args![arguments.bytes(2)]),
        ),
        request("basic_cancel", |stage| stage.channel().basic_cancel("tag"), 1, CANCEL, cancelled),
        request("consumer.cancel", |stage| stage.consumer().cancel(), 1, CANCEL, cancelled),
        request(
            "drop of the consumer",
            |stage| {
                drop(stage.consumer.take());
                Ok(())
            },
            1,
            CANCEL,
            cancelled,
        ),
        request(
            "basic_recover",
            |stage| stage.channel().basic_recover(Requeue::Yes),
            1,
            RECOVER,
            |_| method(1, RECOVER_OK, &[]),
        ),
        request(
            "confirm_select",
            |stage| stage.channel().confirm_select(),
            1,
            CONFIRM_SELECT,
            |_| method(1, CONFIRM_SELECT_OK, &[]),
        ),
        request(
            "tx_select",
            |stage| stage.channel().tx_select(),
            1,
            TX_SELECT,
            |_| method(1, TX_SELECT_OK, &[]),
        ),
        request(
            "tx_commit",
            |stage| stage.channel().tx_commit(),
            1,
            TX_COMMIT,
            |_| method(1, TX_COMMIT_OK, &[]),
        ),
        request(
            "tx_rollback",
            |stage| stage.channel().tx_rollback(),
            1,
            TX_ROLLBACK,
            |_| method(1, TX_ROLLBACK_OK, &[]),
        ),
        request(
            "a deferred queue_declare",
            |stage| stage.channel().deferred().queue_declare("q")?.wait().map(drop),
            1,
            QUEUE_DECLARE,
            |_| method(1, QUEUE_DECLARE_OK, args!["q", 1, 2]),
        ),
        request(
            "update_secret",
            |stage| stage.connection().update_secret("new", "old"),
            0,
            UPDATE_SECRET,
            |_| method(0, UPDATE_SECRET_OK, &[]),
        ),
        Call {
            name: "consumer.next",
            run: |stage| stage.consumer().next().transpose().map(drop),
            seen: Seen::Nothing,
            waiting_for: "",
        },
        Call {
            name: "consumer.next_timeout",
            run: |stage| stage.consumer().next_timeout(LONG).map(|delivery| assert!(delivery.is_some())),
            seen: Seen::Nothing,
            waiting_for: "",
        },
        Call {
            name: "select",
            run: |stage| match leveret::select(&mut [stage.consumer()]) {
                Some((0, delivery)) => delivery.map(drop),
                other => panic!("{other:?}"),
            },
            seen: Seen::Nothing,
            waiting_for: "",
        },
        Call {
            name: "connection.wait_closed",
            run: |stage| Err(stage.connection().wait_closed()),
            seen: Seen::Nothing,
            waiting_for: "",
        },
        Call {
            name: "basic_publish",
            run: |stage| {
                stage.fill()?;
                stage.waiting.send(()).unwrap();
                loop {
                    stage.channel().basic_publish("", "key", &[7; 2000])?;
                }
            },
            seen: Seen::Full,
            waiting_for: "publishing",
        },
        Call {
            name: "basic_publish of a large body",
            run: |stage| {
                stage.waiting.send(()).unwrap();
                stage.channel().basic_publish("", "key", &vec![7; 8 << 20])
            },
            seen: Seen::Full,
            waiting_for: "sending the rest of a message",
        },
        Call {
            name: "ack",
            run: |stage| {
                stage.waiting.send(()).unwrap();
                loop {
                    stage.fill()?;
                    stage.deliveries.pop_front().unwrap().ack()?;
                }
            },
            seen: Seen::Full,
            waiting_for: "sending an acknowledgement",
        },
        Call {
            name: "queue_purge into a full buffer",
            run: |stage| {
                stage.fill()?;
                stage.waiting.send(()).unwrap();
                stage.channel().queue_purge("q").map(drop)
            },
            seen: Seen::Full,
            waiting_for: "queue.purge",
        },
    ]
}

fn cancelled(cancel: &Arguments) -> Vec<u8> {
    method(1, CANCEL_OK, args![cancel.bytes(0)])
}
