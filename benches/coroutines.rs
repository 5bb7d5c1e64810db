//! Ten thousand callers on shared channels: coroutines beside threads, in time and memory.
//!
//! ```sh
//! tests/broker/with 4.0 -- cargo bench --bench coroutines --features coroutines
//! ```
//!
//! Each caller makes a few calls on one of a hundred channels of one connection. All of them are there, and wait, at
//! the same time. Every measurement is a process of its own, so that its peak of memory is its own as well.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    env, fs,
    process::Command,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Instant,
};

use leveret::{Channel, Connection, QueueDeclare};

const CHANNELS: usize = 100;
const CALLS: usize = 10;
const SIZES: [usize; 3] = [100, 1_000, 10_000];

fn main() {
    let arguments: Vec<String> = env::args().filter(|argument| !argument.starts_with("--")).collect();
    match &arguments[1..] {
        [kind, size] => measure(kind, size.parse().unwrap()),
        _ => {
            println!("{CALLS} calls each | callers | seconds | calls/s | peak KiB | KiB per caller");
            for size in SIZES {
                for kind in ["threads", "coroutines"] {
                    let itself =
                        Command::new(env::current_exe().unwrap()).arg(kind).arg(size.to_string()).status();
                    assert!(itself.unwrap().success());
                }
            }
        }
    }
}

fn measure(kind: &str, size: usize) {
    let url = env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());
    let connection = Connection::open(url).unwrap();
    let channels: Vec<Channel> = (0..CHANNELS).map(|_| connection.channel().unwrap()).collect();
    let queue = channels[0].queue_declare(QueueDeclare::new("").exclusive(true)).unwrap().queue;
    let queue: Arc<str> = queue.into();
    let before = peak();
    let started = Instant::now();
    let work = |number: usize| {
        let (channel, queue) = (channels[number % CHANNELS].clone(), queue.clone());
        move || {
            for _ in 0..CALLS {
                channel.queue_declare_passive(&queue).unwrap();
            }
        }
    };
    match kind {
        "threads" => in_threads((0..size).map(work)),
        _ => in_coroutines((0..size).map(work)),
    }
    let took = started.elapsed().as_secs_f64();
    let rate = (size * CALLS) as f64 / took;
    let peak = peak();
    let each = (peak - before) as f64 / size as f64;
    println!("{kind:>13} | {size:>7} | {took:>7.2} | {rate:>7.0} | {peak:>8} | {each:>7.1}");
    connection.close().unwrap();
}

/// All begin when all are there.
fn in_threads<W: FnOnce() + Send + 'static>(works: impl Iterator<Item = W>) {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let threads: Vec<_> = works
        .map(|work| {
            let gate = gate.clone();
            let run = move || {
                let open = gate.0.lock().unwrap();
                drop(gate.1.wait_while(open, |open| !*open).unwrap());
                work();
            };
            thread::Builder::new().stack_size(64 * 1024).spawn(run).expect("a thread")
        })
        .collect();
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn in_coroutines<W: FnOnce() + Send + 'static>(works: impl Iterator<Item = W>) {
    may::config().set_worker_pin(env::var_os("PINNED").is_some());
    let gate = Arc::new(may::sync::Barrier::new(works.size_hint().0));
    let coroutines: Vec<_> = works
        .map(|work| {
            let gate = gate.clone();
            may::go!(move || {
                gate.wait();
                work();
            })
        })
        .collect();
    coroutines.into_iter().for_each(|coroutine| coroutine.join().unwrap());
}

/// The most memory that this process has had, in KiB.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
