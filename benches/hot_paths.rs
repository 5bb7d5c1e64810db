//! What a publish, a delivery, an ack, a confirm and a call cost, against a scripted peer in the same process. For
//! looking at one change (the means: most publishes and deliveries are cheap, and some do the work of many); `benches/compare` is for looking at other clients.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    io::{Read, Write},
    time::Duration,
};

use common::peer::*;
use divan::{Bencher, counter::BytesCount};
use leveret::{BasicProperties, Channel, Connection, Consume, Publish};

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

#[divan::bench]
fn call(bencher: Bencher<'_, '_>) {
    let (_script, _connection, channel) = channel(answer);
    bencher.bench_local(|| channel.queue_purge("q").unwrap());
}
