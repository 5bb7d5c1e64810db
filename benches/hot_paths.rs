//! What a publish, a delivery, an ack, a confirm, a call, and the codec of properties cost, against a scripted peer in the
//! same process. For looking at one change (the means: most publishes and deliveries are cheap, and some do the work of
//! many); `benches/compare` is for looking at other clients.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    io::{Read, Write},
    time::Duration,
};

use common::peer::*;
use divan::{
    Bencher,
    counter::{BytesCount, ItemsCount},
};
use leveret::{BasicProperties, Channel, Connection, Consume, FieldTable, Outcome, Publish};

fn main() {
    divan::main();
}

/// A channel at a peer that does this after the handshake. The peer comes first, so that it is dropped last: it ends when
/// the connection does.
fn channel(script: impl FnOnce(&mut Peer) + Send + 'static) -> (Script<()>, Connection, Channel) {
    let script = Peer::run(move |peer| {
        peer.handshake();
        peer.open_channel(1);
        script(peer);
    });
    let quick = Duration::from_millis(50);
    let config = script.config().close_timeout(quick).drop_timeout(quick);
    let connection = Connection::open(config).unwrap();
    let channel = connection.channel().unwrap();
    (script, connection, channel)
}

/// Reads all there is and says nothing, until the client hangs up.
fn swallow(peer: &mut Peer) {
    let mut chunk = vec![0; 256 * 1024];
    while peer.socket().read(&mut chunk).is_ok_and(|read| read > 0) {}
}

/// Answers every purge.
fn answer(peer: &mut Peer) {
    while let Some(frame) = peer.next_frame_or_end() {
        if let Some(answer) = usual_answer(&frame) {
            peer.raw(&answer);
        }
    }
}

/// Sends the same messages for ever, whatever the client says.
fn deliver(peer: &mut Peer, size: usize) {
    peer.expect(1, CONSUME);
    peer.send(1, CONSUME_OK, args!["tag"]);
    let one = content(1, DELIVER, args!["tag", 1, 0, "", "key"], NO_PROPERTIES, &vec![0; size], 131_064);
    let many = one.repeat((256 * 1024 / one.len()).max(1));
    while peer.socket().write_all(&many).is_ok() {}
}

#[divan::bench(args = [16, 1024, 64 * 1024], sample_size = 2000, sample_count = 20)]
fn publish(bencher: Bencher<'_, '_>, size: usize) {
    let (_script, _connection, channel) = channel(swallow);
    let body = vec![0; size];
    bencher
        .counter(BytesCount::new(size))
        .bench_local(|| channel.basic_publish("", "key", &body[..]).unwrap());
}

#[divan::bench(sample_size = 2000, sample_count = 20)]
fn publish_with_properties(bencher: Bencher<'_, '_>) {
    let (_script, _connection, channel) = channel(swallow);
    let properties = BasicProperties::new().content_type("text/plain").persistent();
    let publish = Publish::new("sixteen bytes...").properties(&properties);
    bencher.bench_local(|| channel.basic_publish("", "key", publish).unwrap());
}

#[divan::bench(args = [16, 1024, 64 * 1024], sample_size = 2000, sample_count = 20)]
fn next(bencher: Bencher<'_, '_>, size: usize) {
    let (_script, _connection, channel) = channel(move |peer| deliver(peer, size));
    let mut consumer = channel.basic_consume(Consume::new("q").consumer_tag("tag").no_ack(true)).unwrap();
    bencher.counter(BytesCount::new(size)).bench_local(|| consumer.next().unwrap().unwrap().body().len());
}

/// Sends messages for ever to as many consumers, whose tags are numbers, in turn.
fn deliver_in_turn(peer: &mut Peer, consumers: usize) {
    for number in 0..consumers {
        peer.expect(1, CONSUME);
        peer.send(1, CONSUME_OK, args![&*number.to_string()]);
    }
    let one = |number: usize| {
        content(1, DELIVER, args![&*number.to_string(), 1, 0, "", "key"], NO_PROPERTIES, &[0; 16], 131_064)
    };
    let all: Vec<u8> = (0..consumers).flat_map(one).collect();
    let many = all.repeat((256 * 1024 / all.len()).max(1));
    while peer.socket().write_all(&many).is_ok() {}
}

#[divan::bench(args = [1, 10, 100, 1000], sample_size = 10_000, sample_count = 20)]
fn next_in_turn(bencher: Bencher<'_, '_>, consumers: usize) {
    let (_script, connection, channel) = channel(move |peer| deliver_in_turn(peer, consumers));
    let mut consumers: Vec<_> = (0..consumers)
        .map(|number| {
            let tag = number.to_string();
            channel.basic_consume(Consume::new("q").consumer_tag(&tag).no_ack(true)).unwrap()
        })
        .collect();
    let (mut turn, number) = (0, consumers.len());
    bencher.bench_local(|| {
        turn = (turn + 1) % number;
        consumers.get_mut(turn).unwrap().next().unwrap().unwrap().body().len()
    });
    // The peer answers no cancel.
    drop(connection.close());
}

/// Sends messages in ascending order for ever, and reads whatever the client says.
fn deliver_to_be_acked(peer: &mut Peer) {
    let tag = peer.start_consumer(1);
    let mut acks = peer.socket().try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut chunk = vec![0; 64 * 1024];
        while acks.read(&mut chunk).is_ok_and(|read| read > 0) {}
    });
    let mut next = 1u64;
    loop {
        let one = |number: u64| {
            content(1, DELIVER, args![&*tag, number, 0, "", "key"], NO_PROPERTIES, &[0; 16], 131_064)
        };
        let many: Vec<u8> = (next..next + 1000).flat_map(one).collect();
        next += 1000;
        if peer.socket().write_all(&many).is_err() {
            break;
        }
    }
    reading.join().unwrap();
}

#[divan::bench(sample_size = 2000, sample_count = 20)]
fn next_and_ack(bencher: Bencher<'_, '_>) {
    let (_script, _connection, channel) = channel(deliver_to_be_acked);
    let mut consumer = channel.basic_consume("q").unwrap();
    bencher.bench_local(|| consumer.next().unwrap().unwrap().ack().unwrap());
}

const WINDOW: usize = 500;

/// Confirms every publish of sixteen bytes, each by itself.
fn confirm(peer: &mut Peer) {
    peer.expect(1, CONFIRM_SELECT);
    peer.send(1, CONFIRM_SELECT_OK, &[]);
    let size = content(1, PUBLISH, args![0, "", "key", 0], NO_PROPERTIES, &[0; 16], 131_064).len();
    let mut chunk = vec![0; 256 * 1024];
    let (mut received, mut confirmed) = (0, 0);
    while let Ok(read @ 1..) = peer.socket().read(&mut chunk) {
        received += read;
        let published = (received / size) as u64;
        let acks = (confirmed + 1..=published).flat_map(|number| method(1, ACK, args![number, 0]));
        if peer.socket().write_all(&acks.collect::<Vec<u8>>()).is_err() {
            break;
        }
        confirmed = published;
    }
}

#[divan::bench(sample_size = 10, sample_count = 20)]
fn a_window_of_confirms(bencher: Bencher<'_, '_>) {
    let (_script, _connection, channel) = channel(confirm);
    channel.confirm_select().unwrap();
    let mut handles = Vec::with_capacity(WINDOW);
    bencher.counter(ItemsCount::new(WINDOW)).bench_local(|| {
        for _ in 0..WINDOW {
            handles.push(channel.deferred().basic_publish("", "key", &[0; 16]).unwrap());
        }
        assert!(handles.drain(..).all(|handle| matches!(handle.wait(), Outcome::Acked)));
    });
}

/// All that programs usually set, and four headers.
fn properties() -> BasicProperties {
    let headers: FieldTable =
        ["one", "two", "three", "four"].into_iter().map(|name| (name, "value")).collect();
    BasicProperties::new().content_type("text/plain").persistent().message_id("a-message-id").headers(headers)
}

#[divan::bench(sample_size = 2000, sample_count = 20)]
fn publish_with_headers(bencher: Bencher<'_, '_>) {
    let (_script, _connection, channel) = channel(swallow);
    let properties = properties();
    let publish = Publish::new("sixteen bytes...").properties(&properties);
    bencher.bench_local(|| channel.basic_publish("", "key", publish).unwrap());
}

/// Sends back the first publish, as a delivery.
fn echo(peer: &mut Peer) {
    peer.expect(1, CONSUME);
    peer.send(1, CONSUME_OK, args!["tag"]);
    peer.expect(1, PUBLISH);
    let (header, body) = (peer.next_frame(), peer.next_frame());
    peer.send(1, DELIVER, args!["tag", 1, 0, "", "key"]);
    peer.raw(&frame(2, 1, &header.payload));
    peer.raw(&frame(3, 1, &body.payload));
    swallow(peer);
}

#[divan::bench(sample_size = 2000, sample_count = 20)]
fn decode_properties(bencher: Bencher<'_, '_>) {
    let (_script, _connection, channel) = channel(echo);
    let mut consumer = channel.basic_consume(Consume::new("q").consumer_tag("tag").no_ack(true)).unwrap();
    channel.basic_publish("", "key", Publish::new("sixteen bytes...").properties(&properties())).unwrap();
    let delivery = consumer.next().unwrap().unwrap();
    bencher.bench_local(|| delivery.properties().unwrap());
}

#[divan::bench]
fn call(bencher: Bencher<'_, '_>) {
    let (_script, _connection, channel) = channel(answer);
    bencher.bench_local(|| channel.queue_purge("q").unwrap());
}
