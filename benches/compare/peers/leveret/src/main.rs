//! This library as a program of the comparison. `api` is all that knows the library; the jobs below are the same as
//! every other program's: the same calls in the same order, the clock started when connection and channel are up, and
//! stopped when a declare has proved that the server has everything.

use compare_common::*;
use std::sync::{Arc, Barrier};
use std::time::Instant;

const ME: &str = "leveret";

/// Everything that depends on the library: its public API, used as any program would.
mod api {
    use std::{
        cell::{Cell, RefCell},
        collections::VecDeque,
    };

    use leveret::{Ack, BorrowedDelivery, Channel, Confirm, Connection, Consume, Consumer, Outcome, QueueDeclare, Qos};

    use super::Url;

    pub type Conn = Connection;
    pub struct Chan {
        channel: Channel,
        confirms: Option<RefCell<VecDeque<Confirm>>>,
        confirmed: Cell<u64>,
    }
    pub type Sub = Consumer;

    pub fn connect(u: &Url) -> Conn {
        let vhost = u.vhost.replace('/', "%2f");
        let (user, pass, host, port) = (&u.user, &u.pass, &u.host, u.port);
        let uri = format!("amqp://{user}:{pass}@{host}:{port}/{vhost}?max_outstanding_confirms=0");
        Connection::open(uri.as_str()).unwrap()
    }
    pub fn channel(c: &Conn) -> Chan {
        Chan { channel: c.channel().unwrap(), confirms: None, confirmed: Cell::new(0) }
    }
    pub fn declare(ch: &Chan, queue: &str, passive: bool, auto_delete: bool) {
        if passive {
            ch.channel.queue_declare_passive(queue).unwrap();
        } else {
            ch.channel.queue_declare(QueueDeclare::new(queue).auto_delete(auto_delete)).unwrap();
        }
    }
    pub fn publish(ch: &Chan, key: &str, body: &[u8]) {
        match &ch.confirms {
            None => ch.channel.basic_publish("", key, body).unwrap(),
            Some(confirms) => {
                let confirm = ch.channel.deferred().basic_publish("", key, body).unwrap();
                confirms.borrow_mut().push_back(confirm);
            }
        }
    }
    pub fn flush(_: &Chan) {}
    pub fn confirm_select(ch: &mut Chan) {
        ch.channel.confirm_select().unwrap();
        ch.confirms = Some(RefCell::default());
    }
    /// Waits for the oldest, and takes what else is there.
    pub fn wait_confirmed(ch: &Chan) -> u64 {
        let mut confirms = ch.confirms.as_ref().unwrap().borrow_mut();
        let oldest = confirms.pop_front().unwrap();
        assert!(matches!(oldest.wait(), Outcome::Acked));
        let mut confirmed = ch.confirmed.get() + 1;
        while let Some(next) = confirms.front_mut() {
            match next.try_wait() {
                Some(Outcome::Acked) => confirmed += 1,
                None => break,
                other => panic!("{other:?}"),
            }
            confirms.pop_front();
        }
        ch.confirmed.set(confirmed);
        confirmed
    }
    pub fn qos(ch: &Chan, prefetch: u16) {
        ch.channel.basic_qos(Qos::new(prefetch)).unwrap();
    }
    pub fn consume(ch: &Chan, queue: &str, no_ack: bool) -> Sub {
        ch.channel.basic_consume(Consume::new(queue).no_ack(no_ack)).unwrap()
    }
    pub fn next(s: &mut Sub, f: impl FnOnce(u64, &[u8])) {
        let delivery = s.next().unwrap().unwrap();
        f(delivery.delivery_tag(), delivery.body());
    }
    /// Has `n` messages handled on the reader thread; the sizes and the first bytes are added up.
    pub fn consume_inline(ch: &Chan, queue: &str, n: u64) -> (u64, u64) {
        let (done, wait) = std::sync::mpsc::channel();
        let (mut got, mut total, mut first) = (0, 0, 0);
        let consume = Consume::new(queue).no_ack(true);
        let consumer = ch.channel.basic_consume_inline(consume, move |delivery: &BorrowedDelivery<'_>| {
            let body = delivery.body();
            got += 1;
            total += body.len() as u64;
            first += u64::from(body[0]);
            if got == n {
                done.send((total, first))?;
            }
            Ok(())
        });
        let (_consumer, sums) = (consumer.unwrap(), wait.recv().unwrap());
        sums
    }
    pub fn ack(ch: &Chan, tag: u64, multiple: bool) {
        ch.channel.basic_ack(Ack::new(tag).multiple(multiple)).unwrap();
    }
    pub fn close_channel(ch: Chan) {
        ch.channel.close().unwrap();
    }
    pub fn close(c: Conn) {
        c.close().unwrap();
    }
}
use api::*;

fn setup(a: &Args) -> (Conn, Chan) {
    let c = connect(&a.parsed_url());
    let ch = channel(&c);
    declare(&ch, RPC_QUEUE, false, false);
    (c, ch)
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
                publish(&ch, &key, &body);
            }
            declare(&ch, RPC_QUEUE, true, false);
            run.finish(n, bytes);
            close(c);
        }
        "confirm-sync" => {
            let (c, mut ch) = setup(&a);
            confirm_select(&mut ch);
            let body = a.body();
            let mut lat = Vec::with_capacity(n as usize);
            let mut run = Run::start(ME, &a);
            for i in 0..n {
                let t = Instant::now();
                publish(&ch, &key, &body);
                while wait_confirmed(&ch) <= i {}
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, bytes);
            close(c);
        }
        "confirm-window" => {
            let (c, mut ch) = setup(&a);
            confirm_select(&mut ch);
            let body = a.body();
            let run = Run::start(ME, &a);
            let (mut sent, mut done) = (0u64, 0u64);
            while done < n {
                while sent < n && sent - done < a.inflight as u64 {
                    publish(&ch, &key, &body);
                    sent += 1;
                }
                done = wait_confirmed(&ch);
            }
            run.finish(n, bytes);
            close(c);
        }
        "consume" if a.rt == "inline" => {
            let (c, ch) = setup(&a);
            let run = Run::start(ME, &a);
            let (total, first) = consume_inline(&ch, &a.src_queue(), n);
            std::hint::black_box(first);
            assert_eq!(total, bytes);
            run.finish(n, bytes);
            close(c);
        }
        "consume" | "consume-ack" => {
            let (c, ch) = setup(&a);
            let no_ack = a.job == "consume";
            if !no_ack {
                qos(&ch, a.prefetch);
            }
            let run = Run::start(ME, &a);
            let mut sub = consume(&ch, &a.src_queue(), no_ack);
            let (mut total, mut first) = (0u64, 0u64);
            for got in 1..=n {
                let mut tag = 0;
                next(&mut sub, |t, body| {
                    tag = t;
                    total += body.len() as u64;
                    first += body[0] as u64;
                });
                if !no_ack && (a.batch <= 1 || got % a.batch == 0 || got == n) {
                    ack(&ch, tag, a.batch > 1);
                }
            }
            std::hint::black_box(first);
            if !no_ack {
                declare(&ch, RPC_QUEUE, true, false);
            }
            assert_eq!(total, bytes);
            run.finish(n, bytes);
            drop(sub);
            close(c);
        }
        "rpc" => {
            let (c, ch) = setup(&a);
            let mut lat = Vec::with_capacity(n as usize);
            let mut run = Run::start(ME, &a);
            for _ in 0..n {
                let t = Instant::now();
                declare(&ch, RPC_QUEUE, true, false);
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, 0);
            close(c);
        }
        "mt-publish" | "mt-rpc" => {
            let (c, ch) = setup(&a);
            let t = a.threads;
            let per = n / t as u64;
            let rpc = a.job == "mt-rpc";
            let go = Arc::new(Barrier::new(t + 1));
            let hs: Vec<_> = (0..t)
                .map(|_| {
                    let ch = channel(&c);
                    let (go, key, body) = (go.clone(), key.clone(), a.body());
                    std::thread::spawn(move || {
                        let mut lat = Vec::with_capacity(if rpc { per as usize } else { 0 });
                        go.wait();
                        for _ in 0..per {
                            if rpc {
                                let t = Instant::now();
                                declare(&ch, RPC_QUEUE, true, false);
                                lat.push(ns(t.elapsed()));
                            } else {
                                publish(&ch, &key, &body);
                            }
                        }
                        if !rpc {
                            declare(&ch, RPC_QUEUE, true, false);
                        }
                        (ch, lat)
                    })
                })
                .collect();
            let mut run = Run::start(ME, &a);
            go.wait();
            let (mut lat, mut keep) = (Vec::new(), Vec::new());
            for h in hs {
                let (ch, l) = h.join().unwrap();
                lat.extend(l);
                keep.push(ch);
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, per * t as u64, per * t as u64 * if rpc { 0 } else { a.size as u64 });
            drop((ch, keep));
            close(c);
        }
        "pingpong" => {
            let total = n + a.warmup;
            let open = |q: &str| {
                let c = connect(&a.parsed_url());
                let ch = channel(&c);
                declare(&ch, q, false, true);
                let s = consume(&ch, q, true);
                (c, ch, s)
            };
            let (c1, ch1, mut s1) = open("loop.pong");
            let (c2, ch2, mut s2) = open("loop.ping");
            let body = a.body();
            let body2 = body.clone();
            let h = std::thread::spawn(move || {
                for _ in 0..total {
                    next(&mut s2, |_, _| {});
                    publish(&ch2, "loop.pong", &body2);
                    flush(&ch2);
                }
                drop(s2);
                close(c2);
            });
            let mut once = || {
                publish(&ch1, "loop.ping", &body);
                flush(&ch1);
                next(&mut s1, |_, _| {});
            };
            for _ in 0..a.warmup {
                once();
            }
            let mut lat = Vec::with_capacity(n as usize);
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
            drop(s1);
            close(c1);
        }
        "churn" => {
            let mut lat = Vec::with_capacity(n as usize);
            let mut run = Run::start(ME, &a);
            for _ in 0..n {
                let t = Instant::now();
                let c = connect(&a.parsed_url());
                let ch = channel(&c);
                close_channel(ch);
                close(c);
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, 0);
        }
        "idle-channels" => {
            let (c, _ch) = setup(&a);
            let run = Run::start(ME, &a);
            let v: Vec<_> = (0..n).map(|_| channel(&c)).collect();
            run.finish(n, 0);
            drop(v);
            close(c);
        }
        "idle-consumers" => {
            let (c, ch) = setup(&a);
            declare(&ch, "idle.q", false, true);
            let run = Run::start(ME, &a);
            let v: Vec<_> = (0..n).map(|_| consume(&ch, "idle.q", true)).collect();
            run.finish(n, 0);
            drop(v);
            close(c);
        }
        _ => unsupported("job"),
    }
}
