//! Every example runs, and prints what it is said to print.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
};

use common::brokers::on_each_broker;
use socket2::{Domain, Socket, Type};

/// The example that needs the feature `coroutines`. It is run when the tests have that feature.
const COROUTINES: &str = "parallel_declare_coroutines";

/// Examples that run beside another one, or until they are ended.
const TOGETHER: &[&str] =
    &["broker", "server", "client", "direct_server", "send", "recv", "direct_send", "direct_recv"];

/// What each example prints. What differs from run to run is replaced: the virtual host by `VHOST`, a name that
/// the broker made up by `amq.gen-*`.
const OUTPUTS: &[(&str, &str)] = &[
    ("hello_world", "the broker is that of AMQP_URL\nHello World!\n"),
    ("hello_world_direct", "Hello World!\n"),
    ("async_subscriber", "message 1\nmessage 2\nmessage 3\n"),
    (
        "stateful_handler",
        "An instance (count: 1) got one\nAn instance (count: 2) got two\nAn instance (count: 3) got three\n",
    ),
    ("worker_queue", "100 messages, handled by 4 threads, with the sum 5050\n"),
    (
        "transformer",
        "testOut: {\"count\": 1}\ntestOut: {\"count\": 42}\ntestTransformerError: poison (there is no count)\n",
    ),
    (
        "consumer",
        "Received frame with count 1\nReceived frame with count 2\nReceived frame with count 3\n\
         2 messages in the error queue\n",
    ),
    (
        "listeners",
        "event: connected\nevent: handler failed: cannot do this\nexception: cannot do this\n\
         event: consumer cancelled by the broker\nthe listener: the broker cancelled consumer \"worker\" (was its queue deleted?)\n\
         event: closed: the connection was closed by the application\n",
    ),
    (
        "sync_model",
        "the broker named the queue amq.gen-*\n\
         the broker closed the channel: 404 NOT_FOUND - no exchange 'nosuchexchange' in vhost 'VHOST' \
         (caused by queue.bind)\n",
    ),
    (
        "async_errors",
        "published\n\
         the next publish: the broker closed the channel: 404 NOT_FOUND - no exchange 'no-such-exchange' in \
         vhost 'VHOST' (caused by basic.publish)\n\
         published again\n\
         the end of the scope: the broker closed the channel: 404 NOT_FOUND - no exchange 'no-such-exchange' \
         in vhost 'VHOST' (caused by basic.publish)\n",
    ),
    ("graceful_shutdown", "the connection was closed by the application\nhandled: 5\nleft in the queue: 0\n"),
    ("parallel_declare", "declared foo\ndeclared bar\ndeclared baz\n"),
    (COROUTINES, "declared foo\ndeclared bar\ndeclared baz\n"),
    (
        "confirm",
        "confirmed\nnumber 2: acked\nnumber 3: acked\nnumber 4: acked\n\
         the broker returned a message to exchange \"\" with key \"no-such-queue\": 312 NO_ROUTE\n\
         the broker closed the channel: 404 NOT_FOUND - no exchange 'no-such-exchange' in vhost 'VHOST' \
         (caused by basic.publish)\n",
    ),
    (
        "returned",
        "the broker returned a message to exchange \"\" with key \"no-such-queue\": 312 NO_ROUTE\n\
         update-1: amqp is teh cool\n\
         the end of the scope: the broker returned a message to exchange \"\" with key \"no-such-queue\": \
         312 NO_ROUTE\n",
    ),
    (
        "transaction",
        "before the commit: 0 orders\nafter it: 1 orders, 1 invoices\nafter a rollback: 1 orders\n\
         not committed: the broker closed the channel: 404 NOT_FOUND - no exchange 'no-such-exchange' in \
         vhost 'VHOST' (caused by basic.publish)\nat the end: 1 orders\n",
    ),
    (
        "binary_data",
        "Some(\"application/octet-stream\")\n\
         malformed message: the body is not UTF-8 text: invalid utf-8 sequence of 1 bytes from index 128\n\
         256 bytes, each as it was sent\n\
         Some(\"text/plain; charset=utf-8\")\nGrüße\nNone\nbytes that say nothing of themselves\n",
    ),
    (
        "transport_filter",
        "OUTGOING ---> \\x01\\x00\\x01\\x00\\x00\\x00\\x14\\x002\\x00\\n\\x00\\x00\\x08filtered\\x00\\x00\\x00\\x00\\x00\\xce\n\
         INCOMING ---> \\x01\\x00\\x01\\x00\\x00\\x00\\x15\\x002\\x00\\x0b\\x08filtered\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\xce\n\
         OUT ch=1 basic.publish exchange=\"\" routing_key=\"filtered\"\nOUT ch=1 header body_size=12\n\
         OUT ch=1 body 12 bytes\nOUT ch=1 queue.delete queue=\"filtered\"\n\
         IN  ch=1 queue.delete-ok message_count=1\n",
    ),
    ("three_styles", "callback: Hello world!\npromise: Hello world!\nstraight line: Hello world!\n"),
    (
        "producer",
        "message-0: {\"count\": 0}\nmessage-1: {\"count\": 1}\nmessage-2: {\"count\": 2}\n\
         message-3: {\"count\": 3}\nmessage-4: {\"count\": 4}\nmessage-5: {\"count\": 5}\n\
         message-6: {\"count\": 6}\nmessage-7: {\"count\": 7}\nmessage-8: {\"count\": 8}\n\
         message-9: {\"count\": 9}\nbye\n",
    ),
];

/// The folder of the built examples. `cargo test` builds them, but not when it is asked for this test only.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let program = env::current_exe().unwrap();
        let profile = program.ancestors().nth(2).unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--examples"]);
        if cfg!(feature = "coroutines") {
            build.args(["--features", "coroutines"]);
        }
        build.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the examples do not build");
        profile.join("examples")
    })
}

fn run(example: &str, url: &str) -> Output {
    let output =
        Command::new(built().join(example)).env("AMQP_URL", url).env_remove("RUST_BACKTRACE").output();
    output.unwrap_or_else(|error| panic!("{example}: {error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Replaces the rest of a name that the broker made up.
fn without_made_up_names(text: &str) -> String {
    const PREFIX: &str = "amq.gen-";
    let mut parts = text.split(PREFIX);
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|letter: char| letter.is_alphanumeric() || "-_".contains(letter));
        result.extend([PREFIX, "*", rest]);
    }
    result
}

/// Each example against each broker: its output, and nothing on standard error.
#[test]
fn each_example_prints_what_it_should() {
    on_each_broker(|broker| {
        let here = |example: &str| cfg!(feature = "coroutines") || example != COROUTINES;
        for (example, expected) in OUTPUTS.iter().filter(|(example, _)| here(example)) {
            let output = run(example, &broker.uri());
            let printed = without_made_up_names(&text(&output.stdout)).replace(&broker.vhost, "VHOST");
            assert_eq!((&*printed, &*text(&output.stderr)), (*expected, ""), "{example}");
            assert!(output.status.success(), "{example}: {}", output.status);
        }
        Ok(())
    });
}

/// No example is left out, and none is long.
#[test]
fn every_example_has_its_output_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Those need certificates: tests/tls runs them.
        let with_tls = name == "tls" || name == "tls_custom";
        // They run together, or until they are ended: the tests below.
        let together = TOGETHER.contains(&&*name);
        assert!(
            with_tls || together || OUTPUTS.iter().any(|(example, _)| *example == name),
            "{name} has no expected output"
        );
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 60, "{name} has {lines} lines");
    }
}

/// The first command of the README: nothing is installed, nothing is set.
#[cfg(feature = "broker")]
#[test]
fn hello_world_needs_no_broker() {
    let mut command = Command::new(built().join("hello_world"));
    let output = command.env_remove("AMQP_URL").output().unwrap();
    assert_eq!(text(&output.stdout), "the broker is within this process\nHello World!\n");
    assert_eq!(text(&output.stderr), "");
    assert!(output.status.success());
}

/// The broker as a program serves another program.
#[cfg(feature = "broker")]
#[test]
fn the_broker_serves_other_programs() {
    let mut command = Command::new(built().join("broker"));
    let broker = command.arg("127.0.0.1:0").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut broker = Running(broker);
    let mut said = String::new();
    let mut output = std::io::BufReader::new(broker.0.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut said).unwrap();
    let url = said.trim().strip_prefix("listening on ").unwrap();
    assert_eq!(text(&run("hello_world", url).stdout), "the broker is that of AMQP_URL\nHello World!\n");
}

/// A program that is ended with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server of the examples answers their client, more than once.
#[test]
fn the_server_answers_the_client() {
    on_each_broker(|broker| {
        let mut server = Command::new(built().join("server"));
        let server = server.env("AMQP_URL", broker.uri()).stdout(Stdio::piped()).spawn().unwrap();
        let mut server = Running(server);
        let mut line = String::new();
        BufReader::new(server.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "serving examples\n");
        for _ in 0..2 {
            let output = run("client", &broker.uri());
            assert_eq!((&*text(&output.stdout), &*text(&output.stderr)), (ANSWERED, ""));
        }
        Ok(())
    });
}

/// What the client prints.
const ANSWERED: &str = "Twas brillig, and the slithy toves => TWAS BRILLIG, AND THE SLITHY TOVES\n\
                        Did gire and gymble in the wabe. => DID GIRE AND GYMBLE IN THE WABE.\n\
                        All mimsy were the borogroves, => ALL MIMSY WERE THE BOROGROVES,\n\
                        And the mome raths outgrabe. => AND THE MOME RATHS OUTGRABE.\n";

const CONFIRMED: &str = "all 100 messages confirmed\n";

/// 100 messages as they are printed.
fn sequence() -> String {
    (1..=100).map(|number| format!("sequence {number}\n")).collect()
}

/// By way of a broker.
#[test]
fn the_sender_and_the_receiver() {
    on_each_broker(|broker| {
        for (example, expected) in [("send", CONFIRMED), ("recv", &sequence())] {
            let output = run(example, &broker.uri());
            assert_eq!((&*text(&output.stdout), &*text(&output.stderr)), (expected, ""), "{example}");
        }
        Ok(())
    });
}

/// An example that listens for others: the program, and the URI that it has printed.
#[cfg(feature = "broker")]
fn listening(example: &str) -> (Child, String) {
    let mut command = Command::new(built().join(example));
    let mut child = command.arg("127.0.0.1:0").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = Vec::new();
    let output = child.stdout.as_mut().unwrap();
    // Byte by byte: the rest is for whoever reads on.
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        std::io::Read::read_exact(output, &mut byte).unwrap();
        line.push(byte[0]);
    }
    let uri = text(&line).trim_start_matches("listening on ").trim_end().to_owned();
    (child, uri)
}

/// Without one: each of the ordinary programs has a listener on the other side.
#[test]
#[cfg(feature = "broker")]
fn ordinary_programs_and_direct_ones() {
    let _watchdog =
        common::watchdog::Watchdog::new("ordinary_programs_and_direct_ones", common::watchdog::LIMIT);
    let all = sequence();
    for (direct, its, ordinary, expected) in [
        ("direct_recv", &*all, "send", CONFIRMED),
        ("direct_send", "100 of 100 messages acked\n", "recv", &all),
    ] {
        let (child, uri) = listening(direct);
        let output = run(ordinary, &uri);
        assert_eq!((&*text(&output.stdout), &*text(&output.stderr)), (expected, ""), "{ordinary}");
        let output = child.wait_with_output().unwrap();
        assert_eq!((&*text(&output.stdout), output.status.code()), (its, Some(0)), "{direct}");
    }
    let (server, uri) = listening("direct_server");
    let _server = Running(server);
    for _ in 0..2 {
        let output = run("client", &uri);
        assert_eq!((&*text(&output.stdout), &*text(&output.stderr)), (ANSWERED, ""));
    }
}

/// Without a broker each example says whom it tried to reach and what went wrong, and fails.
#[test]
fn without_a_broker_an_example_says_what_is_wrong() {
    // Bound, but not listening: nobody else gets the port.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let here = |example: &str| cfg!(feature = "coroutines") || example != COROUTINES;
    let alone =
        OUTPUTS.iter().map(|(example, _)| *example).filter(|example| *example != "hello_world_direct");
    let examples: Vec<&str> =
        alone.filter(|example| here(example)).chain(["server", "client", "send", "recv"]).collect();
    assert!(examples.len() > 20, "{examples:?}");
    for example in examples {
        let output = run(example, &format!("amqp://{address}"));
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), &*text(&output.stdout)), (Some(1), ""), "{example}: {said}");
        let expected =
            format!("Error: cannot connect: {address} ({address}): connecting failed: Connection refused");
        assert!(said.starts_with(&expected) && said.lines().count() == 1, "{example}: {said}");
    }
}
