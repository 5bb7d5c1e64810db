//! amiquip 0.4: synchronous, one I/O thread per connection (mio), channels usable from threads.
//! Opened on a stream with TCP_NODELAY, which insecure_open(url) does not set: without it one
//! publish at a time costs a 40 ms delayed-ack stall (`PERF_AMIQUIP_DEFAULT=1` shows it).
//! `PERF_AMIQUIP_BOUND=N` sets ConnectionTuning::mem_channel_bound (default 16, the library's).

use amiquip::*;
use compare_common::*;
use std::sync::{Arc, Barrier};
use std::time::Instant;

const ME: &str = "amiquip";

fn connect(a: &Args) -> Connection {
    let mut t = ConnectionTuning::default();
    if let Ok(v) = std::env::var("PERF_AMIQUIP_BOUND") {
        t = t.mem_channel_bound(v.parse().unwrap());
    }
    if std::env::var("PERF_AMIQUIP_DEFAULT").is_ok() {
        return Connection::insecure_open_tuned(&a.url, t).expect("connect");
    }
    let u = a.parsed_url();
    let addr = std::net::ToSocketAddrs::to_socket_addrs(&(u.host.as_str(), u.port)).unwrap().next().unwrap();
    let s = mio::net::TcpStream::connect(&addr).expect("connect");
    s.set_nodelay(true).unwrap();
    let o = ConnectionOptions::default()
        .auth(Auth::Plain { username: u.user, password: u.pass })
        .virtual_host(u.vhost);
    Connection::insecure_open_stream(s, o, t).expect("connect")
}

fn setup(a: &Args) -> (Connection, Channel) {
    let mut c = connect(a);
    let ch = c.open_channel(None).expect("channel");
    ch.queue_declare(RPC_QUEUE, QueueDeclareOptions::default()).unwrap();
    (c, ch)
}

fn passive(ch: &Channel) {
    ch.queue_declare_passive(RPC_QUEUE).unwrap();
}

fn tag_of(c: &Confirm) -> (u64, bool) {
    match c {
        Confirm::Ack(p) => (p.delivery_tag, p.multiple),
        Confirm::Nack(_) => panic!("nack"),
    }
}

fn main() {
    let a = Args::parse();
    let n = a.messages;
    let bytes = n * a.size as u64;
    let key = a.pub_key();
    match a.job.as_str() {
        "publish" => {
            let (c, ch) = setup(&a);
            let body = a.body();
            let run = Run::start(ME, &a);
            for _ in 0..n {
                ch.basic_publish("", Publish::new(&body, key.as_str())).unwrap();
            }
            passive(&ch);
            run.finish(n, bytes);
            c.close().unwrap();
        }
        "confirm-sync" | "confirm-window" => {
            let (c, ch) = setup(&a);
            let rx = ch.listen_for_publisher_confirms().unwrap();
            ch.enable_publisher_confirms().unwrap();
            let body = a.body();
            let sync = a.job == "confirm-sync";
            let window = if sync { 1 } else { a.inflight as u64 };
            let mut lat = Vec::with_capacity(if sync { n as usize } else { 0 });
            let mut run = Run::start(ME, &a);
            let (mut sent, mut done) = (0u64, 0u64);
            let recv = |done: &mut u64, block: bool| -> bool {
                let m = if block { rx.recv().ok() } else { rx.try_recv().ok() };
                match m {
                    Some(m) => {
                        let (t, mult) = tag_of(&m);
                        *done = if mult { (*done).max(t) } else { *done + 1 };
                        true
                    }
                    None => false,
                }
            };
            while done < n {
                if sent < n && sent - done < window {
                    let t = Instant::now();
                    ch.basic_publish("", Publish::new(&body, key.as_str())).unwrap();
                    sent += 1;
                    if sync {
                        recv(&mut done, true);
                        lat.push(ns(t.elapsed()));
                    }
                } else {
                    recv(&mut done, true);
                    while recv(&mut done, false) {}
                }
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, bytes);
            c.close().unwrap();
        }
        "consume" | "consume-ack" => {
            let (c, ch) = setup(&a);
            let no_ack = a.job == "consume";
            if !no_ack {
                ch.qos(0, a.prefetch, false).unwrap();
            }
            let run = Run::start(ME, &a);
            let consumer = ch
                .basic_consume(a.src_queue(), ConsumerOptions { no_ack, ..Default::default() })
                .unwrap();
            let (mut got, mut total, mut first) = (0u64, 0u64, 0u64);
            while got < n {
                match consumer.receiver().recv().unwrap() {
                    ConsumerMessage::Delivery(d) => {
                        got += 1;
                        total += d.body.len() as u64;
                        first += d.body[0] as u64;
                        if !no_ack {
                            if a.batch <= 1 {
                                d.ack(&ch).unwrap();
                            } else if got % a.batch == 0 || got == n {
                                d.ack_multiple(&ch).unwrap();
                            }
                        }
                    }
                    o => panic!("{o:?}"),
                }
            }
            std::hint::black_box(first);
            if !no_ack {
                passive(&ch);
            }
            assert_eq!(total, bytes);
            run.finish(n, bytes);
            drop(consumer);
            c.close().unwrap();
        }
        "rpc" => {
            let (c, ch) = setup(&a);
            let mut lat = Vec::with_capacity(n as usize);
            let mut run = Run::start(ME, &a);
            for _ in 0..n {
                let t = Instant::now();
                passive(&ch);
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, 0);
            c.close().unwrap();
        }
        "mt-publish" | "mt-rpc" => {
            let (mut c, ch) = setup(&a);
            let t = a.threads;
            let per = n / t as u64;
            let rpc = a.job == "mt-rpc";
            let go = Arc::new(Barrier::new(t + 1));
            let hs: Vec<_> = (0..t)
                .map(|_| {
                    let ch = c.open_channel(None).unwrap();
                    let (go, key, body) = (go.clone(), key.clone(), a.body());
                    std::thread::spawn(move || {
                        let mut lat = Vec::with_capacity(if rpc { per as usize } else { 0 });
                        go.wait();
                        for _ in 0..per {
                            if rpc {
                                let t = Instant::now();
                                passive(&ch);
                                lat.push(ns(t.elapsed()));
                            } else {
                                ch.basic_publish("", Publish::new(&body, key.as_str())).unwrap();
                            }
                        }
                        if !rpc {
                            passive(&ch);
                        }
                        (ch, lat)
                    })
                })
                .collect();
            let mut run = Run::start(ME, &a);
            go.wait();
            let mut lat = Vec::new();
            let mut keep = Vec::new();
            for h in hs {
                let (ch, l) = h.join().unwrap();
                lat.extend(l);
                keep.push(ch);
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, per * t as u64, per * t as u64 * if rpc { 0 } else { a.size as u64 });
            drop((ch, keep));
            c.close().unwrap();
        }
        "pingpong" => {
            let total = n + a.warmup;
            let side = |mine: &'static str, other: &'static str, a: Args, pinger: bool| {
                let mut c = connect(&a);
                let ch = c.open_channel(None).unwrap();
                let opt = QueueDeclareOptions { auto_delete: true, ..Default::default() };
                ch.queue_declare(mine, opt).unwrap();
                let body = a.body();
                (c, ch, mine, other, body, pinger)
            };
            let (c1, ch1, q1, o1, body1, _) = side("loop.pong", "loop.ping", a.clone(), true);
            let (c2, ch2, q2, o2, body2, _) = side("loop.ping", "loop.pong", a.clone(), false);
            let ready = Arc::new(Barrier::new(2));
            let r2 = ready.clone();
            let h = std::thread::spawn(move || {
                let cons = ch2.basic_consume(q2, ConsumerOptions { no_ack: true, ..Default::default() }).unwrap();
                r2.wait();
                for _ in 0..total {
                    match cons.receiver().recv().unwrap() {
                        ConsumerMessage::Delivery(_) => {}
                        o => panic!("{o:?}"),
                    }
                    ch2.basic_publish("", Publish::new(&body2, o2)).unwrap();
                }
                drop(cons);
                c2.close().unwrap();
            });
            let cons = ch1.basic_consume(q1, ConsumerOptions { no_ack: true, ..Default::default() }).unwrap();
            ready.wait();
            let mut lat = Vec::with_capacity(n as usize);
            let once = || {
                ch1.basic_publish("", Publish::new(&body1, o1)).unwrap();
                match cons.receiver().recv().unwrap() {
                    ConsumerMessage::Delivery(_) => {}
                    o => panic!("{o:?}"),
                }
            };
            for _ in 0..a.warmup {
                once();
            }
            let mut run = Run::start(ME, &a);
            for _ in 0..n {
                let t = Instant::now();
                once();
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, bytes);
            h.join().unwrap();
            drop(cons);
            c1.close().unwrap();
        }
        "churn" => {
            let mut lat = Vec::with_capacity(n as usize);
            let mut run = Run::start(ME, &a);
            for _ in 0..n {
                let t = Instant::now();
                let mut c = connect(&a);
                let ch = c.open_channel(None).unwrap();
                ch.close().unwrap();
                c.close().unwrap();
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, 0);
        }
        "idle-channels" => {
            let (mut c, ch0) = setup(&a);
            let run = Run::start(ME, &a);
            let v: Vec<_> = (0..n).map(|_| c.open_channel(None).unwrap()).collect();
            run.finish(n, 0);
            drop((v, ch0));
            c.close().unwrap();
        }
        "idle-consumers" => {
            let (c, ch) = setup(&a);
            ch.queue_declare("idle.q", QueueDeclareOptions { auto_delete: true, ..Default::default() }).unwrap();
            let run = Run::start(ME, &a);
            let v: Vec<_> = (0..n)
                .map(|_| ch.basic_consume("idle.q", ConsumerOptions { no_ack: true, ..Default::default() }).unwrap())
                .collect();
            run.finish(n, 0);
            drop(v);
            c.close().unwrap();
        }
        _ => unsupported("job"),
    }
}
