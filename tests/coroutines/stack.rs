//! Stacks: 32 KiB by default, and an overflow ends the coroutine without unwinding.

use std::sync::mpsc;

use leveret::{BasicProperties, Config, Connection, Error, Publish, Result};

use crate::{calls::*, common::peer::*, obliging, run, serve, set_stage, set_up, stage};

/// Half of the default, in words: what a call may take, so that as much is left to the program.
const HALF: usize = 0x800;

/// Runs `work` with half of a stack.
fn run_in_half<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    set_up();
    let coroutine = may::go!(may::coroutine::Builder::new().stack_size(HALF), work).unwrap();
    coroutine.join().unwrap_or_else(|_| panic!("{what} failed in {} bytes of stack", 8 * HALF))
}

/// Row 105: every call of the table, and the closing of everything after it.
#[test]
fn every_call_does_with_half_of_a_stack() {
    for call in calls().into_iter().filter(|call| !matches!(call.seen, Seen::Full)) {
        let name = call.name;
        let (waiting, client_waits) = mpsc::channel();
        let peer = Peer::run(move |peer| {
            set_stage(peer);
            if let Seen::Nothing = call.seen {
                client_waits.recv().unwrap();
                peer.deliver(1, "tag", DELIVERIES_AND_ONE, b"late");
            }
            match call.name {
                "connection.wait_closed" => {
                    peer.send(0, CLOSE, args![320, "CONNECTION_FORCED - bye", 0, 0]);
                    peer.silence();
                }
                _ => serve(peer, &call),
            }
        });
        let config = crate::config_of(&peer, crate::LONG);
        let mut stage = stage(config, waiting);
        run_in_half(name, move || {
            stage.waiting.send(()).unwrap();
            match (call.run)(&mut stage) {
                Ok(()) => {}
                Err(Error::Refused(_)) if name == "connection.wait_closed" => {}
                Err(error) => panic!("{name}: {error}"),
            }
        });
        peer.finish();
    }
}

const DELIVERIES_AND_ONE: u64 = crate::DELIVERIES + 1;

/// Row 105: publishing in all forms, large bodies too, and what else is on the way of a message.
#[test]
fn publishing_does_with_half_of_a_stack() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        let mut next = 1;
        while let Some(frame) = peer.next_frame_or_end() {
            if frame.method() == Some(PUBLISH) {
                peer.send(1, ACK, args![next, 0]);
                next += 1;
            } else if let Some(answer) = usual_answer(&frame) {
                peer.raw(&answer);
            }
        }
    });
    // Boxed: a configuration is no small value, and goes from hand to hand here.
    let config = Box::new(peer.config());
    run_in_half("publishing", move || publish_in_all_forms(config)).unwrap();
    peer.finish();
}

fn publish_in_all_forms(config: Box<Config>) -> Result<()> {
    let connection = Connection::open(*config)?;
    let channel = connection.channel()?;
    channel.confirm_select()?;
    let properties = BasicProperties::new().persistent().content_type("text/plain").header("n", 1);
    let message = Publish::new("small").properties(&properties).mandatory(true);
    channel.publish_confirmed("", "q", message)?;
    let large = vec![7; 3 << 20];
    channel.publish_confirmed("", "q", Publish::new(&large).properties(&properties).mandatory(true))?;
    let confirm = channel.deferred().basic_publish("", "q", &large)?;
    channel.try_publish("", "q", "small")?;
    confirm.wait().into_result()?;
    channel.wait_for_confirms(crate::LONG)?;
    channel.close()?;
    connection.close()
}

/// Connecting where nobody listens: names are resolved and errors are made on another stack.
#[test]
fn a_failure_to_connect_does_with_half_of_a_stack() {
    let peer = Peer::run(Peer::fin);
    let uri = format!("amqp://localhost:{}", peer.port);
    let error = run_in_half("connecting", move || Connection::open(&*uri).unwrap_err());
    assert!(matches!(error, Error::Connect(_)), "{error}");
    peer.finish();
}

/// The default is what the other tests have.
#[test]
fn a_coroutine_does_what_a_thread_does() {
    let peer = Peer::run(obliging);
    let config = peer.config();
    let result: Result<()> = run(move || {
        let connection = Connection::open(config)?;
        let mut events = connection.events();
        let channel = connection.channel()?;
        channel.queue_declare("q")?;
        channel.basic_publish("", "q", "small")?;
        channel.basic_publish("", "q", &vec![1; 1 << 20])?;
        assert!(channel.basic_get("q")?.is_none());
        let transaction = channel.transaction()?;
        drop(transaction);
        connection.with_channel(|channel| channel.queue_purge("q"))?;
        channel.close()?;
        connection.close()?;
        assert_eq!(events.by_ref().count(), 2, "connected and closed");
        Ok(())
    });
    result.unwrap();
    peer.finish();
}

/// Properties whose headers nest so deep: tables, or lists, in each other.
fn nested_headers(levels: usize, letter: u8) -> Vec<u8> {
    let mut inner = Vec::new();
    for level in 0..levels {
        let is_list = letter == b'A' && level + 1 < levels;
        let mut outer = if is_list { Vec::new() } else { b"\x01n".to_vec() };
        outer.push(letter);
        outer.extend((inner.len() as u32).to_be_bytes());
        outer.extend(&inner);
        inner = outer;
    }
    let mut properties = vec![0x20, 0x00];
    properties.extend((inner.len() as u32).to_be_bytes());
    properties.extend(inner);
    properties
}

/// Rows 90, 105: who looks at headers as deep as a peer may send them needs no more either.
#[test]
fn the_deepest_headers_do_with_half_of_a_stack() {
    for letter in *b"FA" {
        let peer = Peer::run(move |peer| {
            set_stage(peer);
            let properties = nested_headers(32, letter);
            let arguments = args!["tag", DELIVERIES_AND_ONE, 0, "x", "k"];
            peer.raw(&content(1, DELIVER, arguments, &properties, b"body", 10));
            while let Some(frame) = peer.next_frame_or_end() {
                usual_answer(&frame).into_iter().for_each(|answer| peer.raw(&answer));
            }
        });
        let (waiting, _client_waits) = mpsc::channel();
        let mut stage = stage(crate::config_of(&peer, crate::LONG), waiting);
        let delivery = stage.consumer.as_mut().unwrap().next().unwrap().unwrap();
        run_in_half("reading headers", move || {
            assert_eq!(delivery.headers().unwrap().len(), 1);
            assert!(delivery.properties().unwrap().headers.is_some());
        });
        drop(stage);
        peer.finish();
    }
}
