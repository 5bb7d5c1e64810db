//! The fuzz functions without a fuzzer: over the kept corpus, over inputs that once failed, and over random
//! input. None of this needs more than `cargo test`.

use std::collections::HashSet;
use std::mem::discriminant;
use std::path::{Path, PathBuf};
use std::{env, fs};

use fastrand::Rng;

use super::*;
#[cfg(feature = "broker")]
use crate::protocol::spec::{
    BasicAck, BasicConsume, BasicNack, BasicPublish, BasicRecover, BasicReject, ChannelOpen, QueueDeclare,
    QueueDelete, TxCommit, TxSelect,
};
use crate::protocol::{
    spec::{
        BasicCancel, BasicDeliver, BasicGetOk, BasicReturn, ChannelClose, ChannelCloseOk, ChannelFlow,
        ConnectionBlocked, ConnectionClose, QueueDeclareOk, tests::random,
    },
    wire::ShortStr,
};

/// How often each seed is damaged.
const ROUNDS: usize = 200;

/// Where the corpora and the regressions are.
fn fuzz_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Names and contents of the files in a directory of `fuzz/`; none when there is no such directory.
fn inputs(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Row 91: whatever a fuzzer found worth keeping, and whatever ever failed, is repeated by every test run.
#[test]
fn the_kept_corpus_and_all_regressions_pass() {
    for Target { name, run } in TARGETS {
        let corpus = inputs(&fuzz_directory().join("corpus").join(name));
        assert!(!corpus.is_empty(), "fuzz/corpus/{name} has inputs");
        let regressions = inputs(&fuzz_directory().join("regressions").join(name));
        for (path, bytes) in corpus.into_iter().chain(regressions) {
            // Shown when the test fails.
            println!("{}", path.display());
            run(&bytes);
        }
    }
}

/// The corpus has a seed for every method, every type of field and every property. With `LEVERET_WRITE_SEEDS=1`
/// in the environment the seeds are written instead.
#[test]
fn the_kept_corpus_has_its_seeds() {
    for (target, name, bytes) in seeds() {
        let path = fuzz_directory().join("corpus").join(target).join(name);
        if env::var_os("LEVERET_WRITE_SEEDS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert!(
            fs::read(&path).is_ok_and(|kept| kept == bytes),
            "{} is missing or out of date: run this test with LEVERET_WRITE_SEEDS=1",
            path.display()
        );
    }
}

/// Target, file name and input. Few and large, since each method, type and property needs one place only: a
/// fuzzer takes them apart by itself.
fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let mut rng = Rng::with_seed(5);
    let mut methods = Vec::new();
    for row in Method::TABLE {
        let payload = random::method(&mut rng, row).payload;
        Method::decode(&payload).unwrap().write_frame(&mut methods, 1, MAX_FRAME).unwrap();
    }
    let mut contents = Vec::new();
    for row in Method::TABLE.iter().filter(|row| row.has_content) {
        let payload = random::method(&mut rng, row).payload;
        Method::decode(&payload).unwrap().write_frame(&mut contents, 1, MAX_FRAME).unwrap();
        contents.extend(random::content(&mut rng, 1, MAX_FRAME));
        frame::write_heartbeat(&mut contents);
    }
    let [whole, sliced] = [0, 7].map(|cut| [&[cut], &conversation(&mut rng)[..]].concat());
    vec![
        #[cfg(feature = "broker")]
        ("broker", "every-method", [&[0], &methods[..]].concat()),
        #[cfg(feature = "broker")]
        ("broker", "client", [&[7], &client(&mut Rng::with_seed(7))[..]].concat()),
        #[cfg(feature = "broker")]
        ("broker", "handshake", [&[0x80], &b"AMQP\x00\x00\x09\x01"[..], &methods[..]].concat()),
        #[cfg(feature = "broker")]
        ("direct", "every-method", [&[0], &methods[..]].concat()),
        #[cfg(feature = "broker")]
        ("direct", "peer", [&[7], &peer(&mut Rng::with_seed(9))[..]].concat()),
        ("connection", "whole", whole),
        ("connection", "sliced", sliced),
        ("uri", "parts", b"amqps://us%65r:p%40ss@host:5671,[::1]:5672/v%2fhost?heartbeat=5".to_vec()),
        ("uri", "absent", b"AMQP:///?verify=verify_none&connection_timeout=100&authMechanism=plain".to_vec()),
        ("frame", "every-method", methods),
        ("frame", "contents", contents),
        ("table", "every-type", every_type(&mut rng)),
        ("properties", "all", all_properties(&mut rng)),
        ("properties", "none", vec![0, 0]),
    ]
}

/// What a broker may say to the channels of the fixture: deliveries to both consumers, answers to both calls,
/// the end of a consumer, the late answer to a close, and the end of a channel and of the connection.
fn conversation(rng: &mut Rng) -> Vec<u8> {
    let text = |text: &'static str| ShortStr::new("a seed", text).unwrap();
    let mut out = Vec::new();
    let mut say = |channel, method: Method<'_>, has_content: bool| {
        method.write_frame(&mut out, channel, 4096).unwrap();
        if has_content {
            out.extend(random::content(rng, channel, 4096));
        }
    };
    for (delivery_tag, consumer_tag) in [(1, "a"), (2, "a"), (3, "b"), (4, "nobody")] {
        let deliver = BasicDeliver { consumer_tag: text(consumer_tag), delivery_tag, ..Default::default() };
        say(1, deliver.into(), true);
    }
    say(1, QueueDeclareOk { queue: text("q"), ..Default::default() }.into(), false);
    say(1, BasicGetOk { delivery_tag: 5, ..Default::default() }.into(), true);
    say(1, BasicCancel { consumer_tag: text("b"), no_wait: false }.into(), false);
    say(2, ChannelFlow { active: false }.into(), false);
    say(2, BasicReturn { reply_code: 312, ..Default::default() }.into(), true);
    say(3, ChannelCloseOk {}.into(), false);
    say(4, BasicDeliver::default().into(), true);
    say(0, ConnectionBlocked { reason: text("low on memory") }.into(), false);
    say(1, ChannelClose { reply_code: 404, reply_text: text("gone"), ..Default::default() }.into(), false);
    say(0, ConnectionClose { reply_code: 320, reply_text: text("bye"), ..Default::default() }.into(), false);
    out
}

/// What a client may say on the channels of the broker's fixture: messages, some for the consumer of channel 2 and
/// one for nobody, their acks, and a transaction.
#[cfg(feature = "broker")]
fn client(rng: &mut Rng) -> Vec<u8> {
    let text = |text: &'static str| ShortStr::new("a seed", text).unwrap();
    let mut out = Vec::new();
    let mut say = |channel, method: Method<'_>, has_content: bool| {
        method.write_frame(&mut out, channel, 4096).unwrap();
        if has_content {
            out.extend(random::content(rng, channel, 4096));
        }
    };
    for routing_key in ["q", "q", "nobody", "q"] {
        let publish = BasicPublish { routing_key: text(routing_key), mandatory: true, ..Default::default() };
        say(1, publish.into(), true);
    }
    say(2, BasicAck { delivery_tag: 1, multiple: false }.into(), false);
    say(2, BasicNack { delivery_tag: 2, multiple: false, requeue: true }.into(), false);
    say(2, BasicRecover { requeue: true }.into(), false);
    say(3, ChannelOpen::default().into(), false);
    say(3, TxSelect {}.into(), false);
    say(3, BasicPublish { routing_key: text("q"), ..Default::default() }.into(), true);
    say(3, TxCommit {}.into(), false);
    say(3, ChannelClose::default().into(), false);
    say(2, BasicAck { delivery_tag: 99, multiple: false }.into(), false);
    say(2, ChannelCloseOk {}.into(), false);
    say(0, ConnectionClose::default().into(), false);
    out
}

/// What a peer may say to a direct listener on the channels of its fixture: messages, one of which wants an answer, acks of
/// what it was sent, and consumers that come and go.
#[cfg(feature = "broker")]
fn peer(rng: &mut Rng) -> Vec<u8> {
    let text = |text: &'static str| ShortStr::new("a seed", text).unwrap();
    let say =
        |out: &mut Vec<u8>, channel, method: Method<'_>| method.write_frame(out, channel, 4096).unwrap();
    let mut out = Vec::new();
    say(&mut out, 2, BasicAck { delivery_tag: 1, multiple: false }.into());
    say(&mut out, 2, BasicReject { delivery_tag: 2, requeue: true }.into());
    say(&mut out, 2, BasicNack { delivery_tag: 0, multiple: true, requeue: false }.into());
    say(&mut out, 3, ChannelOpen::default().into());
    say(&mut out, 3, QueueDeclare::default().into());
    say(&mut out, 3, BasicConsume { no_ack: true, ..Default::default() }.into());
    say(
        &mut out,
        3,
        BasicConsume { queue: text("kin"), consumer_tag: text("k"), ..Default::default() }.into(),
    );
    say(&mut out, 3, BasicConsume { queue: text("other"), ..Default::default() }.into());
    say(&mut out, 3, BasicCancel { consumer_tag: text("k"), no_wait: false }.into());
    say(&mut out, 2, BasicRecover { requeue: true }.into());
    say(&mut out, 2, QueueDelete { queue: text("kept"), ..Default::default() }.into());
    for asks in [false, true] {
        say(
            &mut out,
            2,
            BasicPublish { routing_key: text("q"), mandatory: true, ..Default::default() }.into(),
        );
        let properties = BasicProperties::new().reply_to("amq.rabbitmq.reply-to");
        write_header(&mut out, 2, 4096, 4, asks.then_some(&properties)).unwrap();
        frame::write(&mut out, FrameKind::Body, 2, 4096, |out| {
            out.extend_from_slice(b"body");
            Ok(())
        })
        .unwrap();
        say(&mut out, 1, BasicPublish::default().into());
        out.extend(random::content(rng, 1, 4096));
    }
    say(&mut out, 3, ChannelClose::default().into());
    say(&mut out, 2, BasicAck { delivery_tag: 99, multiple: false }.into());
    say(&mut out, 2, ChannelCloseOk {}.into());
    say(&mut out, 0, ConnectionClose::default().into());
    out
}

fn every_type(rng: &mut Rng) -> Vec<u8> {
    let several = |rng: &mut Rng| (0..8).flat_map(|_| random::table(rng, 3).1).collect::<Vec<u8>>();
    let has_every_type = |bytes: &Vec<u8>| {
        let table = FieldTable::decode(bytes).unwrap();
        let types: HashSet<_> = table.iter().map(|(_, value)| discriminant(value)).collect();
        types.len() == random::FIELD_TYPES && bytes.len() < 3000
    };
    (0..10_000).map(|_| several(rng)).find(has_every_type).expect("every type comes together some time")
}

fn all_properties(rng: &mut Rng) -> Vec<u8> {
    let all = |bytes: &Vec<u8>| bytes.starts_with(&[0xff, 0xfc]) && bytes.len() < 3000;
    (0..10_000).map(|_| random::properties(rng).1).find(all).expect("all properties come together some time")
}

/// Row 91: random bytes, and valid input with random changes, make no decoder panic, accept what it does not
/// encode the same way, or allocate much more than it was given.
#[test]
fn random_and_damaged_input_is_survived() {
    let mut rng = Rng::with_seed(6);
    for round in 0..3000 {
        let noise = random::bytes(&mut rng, 600);
        let row = &Method::TABLE[rng.usize(..Method::TABLE.len())];
        let mut frames = Vec::new();
        framed(&mut frames, FrameKind::Method, &random::method(&mut rng, row).payload);
        let row_with_content = Method::TABLE.iter().find(|row| row.has_content).unwrap();
        framed(&mut frames, FrameKind::Method, &random::method(&mut rng, row_with_content).payload);
        frames.extend(random::content(&mut rng, 1, MAX_FRAME));
        let (_, table_bytes) = random::table(&mut rng, 3);
        let (_, properties_bytes) = random::properties(&mut rng);
        for input in [noise, frames, table_bytes, properties_bytes] {
            let damaged = random::mutated(&mut rng, &input);
            for bytes in [&input, &damaged] {
                // A broker, and a listener, is made anew for each input.
                let targets = TARGETS
                    .iter()
                    .filter(|target| round % 8 == 0 || !["broker", "direct"].contains(&target.name));
                targets.for_each(|target| (target.run)(bytes));
            }
            // Damage inside of intact frames goes deeper than damaged frames do.
            for kind in [FrameKind::Method, FrameKind::Header, FrameKind::Body] {
                let mut intact = Vec::new();
                framed(&mut intact, kind, &damaged);
                frame(&intact);
            }
        }
        damaged_payloads(&mut rng);
    }
}

/// Row 91: conversations with random changes, which go deeper than random bytes do, are survived by both sides.
#[test]
fn damaged_conversations_are_survived() {
    let mut rng = Rng::with_seed(8);
    for (name, _, seed) in seeds() {
        let Some(target) = TARGETS.iter().find(|target| target.name == name) else { continue };
        for _ in 0..ROUNDS {
            (target.run)(&random::mutated(&mut rng, &seed));
            if ["broker", "connection", "direct"].contains(&name) {
                (target.run)(&out_of_order(&mut rng, &seed));
            }
        }
    }
}

/// The same frames, but for some that are missing, come twice, or come at another time.
fn out_of_order(rng: &mut Rng, conversation: &[u8]) -> Vec<u8> {
    let (first, mut rest) = conversation.split_at(1);
    let mut frames = Vec::new();
    while let Ok(Some((_, used))) = frame::decode(rest, MAX_FRAME) {
        let (frame, behind) = rest.split_at(used);
        frames.push(frame);
        rest = behind;
    }
    for _ in 0..rng.usize(1..6) {
        if frames.is_empty() {
            break;
        }
        let [place, other] = [(); 2].map(|()| rng.usize(..frames.len()));
        match rng.u8(..3) {
            0 => frames.insert(place, frames[other]),
            1 => drop(frames.remove(place)),
            _ => frames.swap(place, other),
        }
    }
    [first, &frames.concat(), rest].concat()
}

/// A content whose frames are intact and whose payloads are damaged, one after the other.
fn damaged_payloads(rng: &mut Rng) {
    let row = &Method::TABLE[rng.usize(..Method::TABLE.len())];
    let method = random::method(rng, row).payload;
    let mut header = [0, 60, 0, 0].to_vec();
    let (limit, near) = (rng.choice([0u64, 1 << 31, 1 << 32, 1 << 63]).unwrap(), rng.u64(..1000));
    let sizes = [rng.u64(..), near, limit.wrapping_add(near), limit.wrapping_sub(near)];
    header.extend(rng.choice(sizes).unwrap().to_be_bytes());
    header.extend(random::properties(rng).1);
    let mut frames = Vec::new();
    for (kind, payload) in
        [(FrameKind::Method, method), (FrameKind::Header, header), (FrameKind::Body, random::bytes(rng, 300))]
    {
        framed(&mut frames, kind, &payload);
        framed(&mut frames, kind, &random::mutated(rng, &payload));
    }
    frame(&frames);
}

fn framed(out: &mut Vec<u8>, kind: FrameKind, payload: &[u8]) {
    frame::write(out, kind, 1, MAX_FRAME, |out| {
        out.extend_from_slice(payload);
        Ok(())
    })
    .unwrap();
}

/// Row 91: the worst that a table can ask for is in proportion to what was received.
#[test]
fn the_worst_tables_allocate_in_proportion() {
    let array = |items: &[u8]| {
        let mut bytes = b"\0A".to_vec();
        bytes.extend(u32::try_from(items.len()).unwrap().to_be_bytes());
        bytes.extend(items);
        bytes
    };
    let many_voids = array(&[b'V'; 65537]);
    let many_entries = b"\0V".repeat(32769);
    let many_tables = array(&b"F\0\0\0\x02\0V".repeat(9000));
    let many_arrays = array(&b"A\0\0\0\x01V".repeat(9000));
    for bytes in [b"\0V".to_vec(), many_voids, many_entries, many_tables, many_arrays] {
        assert!(FieldTable::decode(&bytes).is_ok());
        table(&bytes);
    }
}
