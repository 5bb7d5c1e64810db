//! `raw`: the physical limit.  No library: pre-encoded frames, large write(2) calls, large reads,
//! frames walked but not decoded.  `--batch 0` (the runner's choice) = as many messages per write
//! as fit 256 KiB; `--batch B` = B messages per write, so `--batch 1` is the limit of a client
//! that hands every publish to the kernel at once.
//!
//! Limits of two designs, for comparison (no peer does these): `rpc-handoff`, `consume-handoff` and
//! `mt-rpc-handoff` have a dedicated reader thread that hands replies or chunks of frames to the
//! callers; `mt-rpc-leader` has no reader thread, one of the waiting callers reads for all.
//!
//! Two extra jobs for the runner: `fill` (publish N messages of S bytes into --queue with
//! confirms, after declaring and purging it) and `drop-queue`.

use compare_common::*;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Instant;

const END: u8 = 0xCE;
const BLOCK: usize = 256 * 1024;

fn ss(b: &mut Vec<u8>, s: &str) {
    b.push(s.len() as u8);
    b.extend_from_slice(s.as_bytes());
}
fn method(b: &mut Vec<u8>, ch: u16, class: u16, id: u16, f: impl FnOnce(&mut Vec<u8>)) {
    b.push(1);
    b.extend_from_slice(&ch.to_be_bytes());
    let at = b.len();
    b.extend_from_slice(&[0; 4]);
    b.extend_from_slice(&class.to_be_bytes());
    b.extend_from_slice(&id.to_be_bytes());
    f(b);
    let n = (b.len() - at - 4) as u32;
    b[at..at + 4].copy_from_slice(&n.to_be_bytes());
    b.push(END);
}
fn publish_head(b: &mut Vec<u8>, ch: u16, key: &str, body_len: usize) {
    method(b, ch, 60, 40, |b| {
        b.extend_from_slice(&[0, 0]);
        ss(b, "");
        ss(b, key);
        b.push(0);
    });
    b.push(2);
    b.extend_from_slice(&ch.to_be_bytes());
    b.extend_from_slice(&14u32.to_be_bytes());
    b.extend_from_slice(&[0, 60, 0, 0]);
    b.extend_from_slice(&(body_len as u64).to_be_bytes());
    b.extend_from_slice(&[0, 0]);
    b.push(END);
}
fn body_head(b: &mut Vec<u8>, ch: u16, n: usize) {
    b.push(3);
    b.extend_from_slice(&ch.to_be_bytes());
    b.extend_from_slice(&(n as u32).to_be_bytes());
}
fn publish(b: &mut Vec<u8>, ch: u16, key: &str, body: &[u8], fmax: usize) {
    publish_head(b, ch, key, body.len());
    for part in body.chunks(fmax - 8) {
        body_head(b, ch, part.len());
        b.extend_from_slice(part);
        b.push(END);
    }
}
fn declare(b: &mut Vec<u8>, ch: u16, q: &str, bits: u8) {
    method(b, ch, 50, 10, |b| {
        b.extend_from_slice(&[0, 0]);
        ss(b, q);
        b.push(bits);
        b.extend_from_slice(&[0; 4]);
    });
}
fn put_ack(b: &mut Vec<u8>, ch: u16, tag: u64, multiple: bool) {
    method(b, ch, 60, 80, |b| {
        b.extend_from_slice(&tag.to_be_bytes());
        b.push(multiple as u8);
    });
}

struct Conn {
    s: TcpStream,
    buf: Vec<u8>,
    pos: usize,
    end: usize,
    fmax: usize,
}

type Frame = (u8, u16, usize, usize); // type, channel, payload range

impl Conn {
    fn connect(u: &Url) -> Conn {
        let s = TcpStream::connect((u.host.as_str(), u.port)).expect("connect");
        s.set_nodelay(true).unwrap();
        let mut c = Conn { s, buf: vec![0; 512 * 1024], pos: 0, end: 0, fmax: 131072 };
        c.write(b"AMQP\x00\x00\x09\x01");
        c.expect(10, 10);
        let mut b = Vec::new();
        method(&mut b, 0, 10, 11, |b| {
            b.extend_from_slice(&[0; 4]);
            ss(b, "PLAIN");
            let r = format!("\0{}\0{}", u.user, u.pass);
            b.extend_from_slice(&(r.len() as u32).to_be_bytes());
            b.extend_from_slice(r.as_bytes());
            ss(b, "en_US");
        });
        c.write(&b);
        let p = c.expect(10, 30);
        let chmax = u16::from_be_bytes([p[4], p[5]]);
        let fmax = u32::from_be_bytes([p[6], p[7], p[8], p[9]]);
        c.fmax = fmax as usize;
        b.clear();
        method(&mut b, 0, 10, 31, |b| {
            b.extend_from_slice(&chmax.to_be_bytes());
            b.extend_from_slice(&fmax.to_be_bytes());
            b.extend_from_slice(&[0, 0]);
        });
        method(&mut b, 0, 10, 40, |b| {
            ss(b, &u.vhost);
            ss(b, "");
            b.push(0);
        });
        c.write(&b);
        c.expect(10, 41);
        c
    }
    fn write(&mut self, b: &[u8]) {
        self.s.write_all(b).expect("write");
    }
    fn fill(&mut self) {
        if self.pos == self.end {
            self.pos = 0;
            self.end = 0;
        } else if self.end == self.buf.len() || self.pos >= BLOCK {
            self.buf.copy_within(self.pos..self.end, 0);
            self.end -= self.pos;
            self.pos = 0;
        }
        let n = self.s.read(&mut self.buf[self.end..]).expect("read");
        assert!(n > 0, "server closed the connection");
        self.end += n;
    }
    /// A complete frame already in the buffer.
    fn ready(&mut self) -> Option<Frame> {
        let h = &self.buf[self.pos..self.end];
        if h.len() < 8 {
            return None;
        }
        let n = u32::from_be_bytes([h[3], h[4], h[5], h[6]]) as usize;
        if h.len() < n + 8 {
            return None;
        }
        debug_assert_eq!(h[7 + n], END);
        let at = self.pos + 7;
        self.pos += n + 8;
        Some((h[0], u16::from_be_bytes([h[1], h[2]]), at, at + n))
    }
    fn frame(&mut self) -> Frame {
        loop {
            if let Some(f) = self.ready() {
                return f;
            }
            self.fill();
        }
    }
    fn mid(&self, f: &Frame) -> (u16, u16) {
        let p = &self.buf[f.2..f.3];
        (u16::from_be_bytes([p[0], p[1]]), u16::from_be_bytes([p[2], p[3]]))
    }
    fn expect(&mut self, class: u16, id: u16) -> Vec<u8> {
        loop {
            let f = self.frame();
            if f.0 != 1 {
                continue;
            }
            let m = self.mid(&f);
            if m == (class, id) {
                return self.buf[f.2..f.3].to_vec();
            }
            if m == (10, 50) || m == (20, 40) {
                panic!("closed: {}", String::from_utf8_lossy(&self.buf[f.2..f.3]));
            }
        }
    }
    fn open(&mut self, ch: u16) {
        let mut b = Vec::new();
        method(&mut b, ch, 20, 10, |b| b.push(0));
        self.write(&b);
        self.expect(20, 11);
    }
    fn declare(&mut self, ch: u16, q: &str, bits: u8) {
        let mut b = Vec::new();
        declare(&mut b, ch, q, bits);
        self.write(&b);
        self.expect(50, 11);
    }
    fn barrier(&mut self, ch: u16) {
        self.declare(ch, RPC_QUEUE, 1);
    }
    fn confirm(&mut self, ch: u16) {
        let mut b = Vec::new();
        method(&mut b, ch, 85, 10, |b| b.push(0));
        self.write(&b);
        self.expect(85, 11);
    }
    fn qos(&mut self, ch: u16, n: u16) {
        let mut b = Vec::new();
        method(&mut b, ch, 60, 10, |b| {
            b.extend_from_slice(&[0; 4]);
            b.extend_from_slice(&n.to_be_bytes());
            b.push(0);
        });
        self.write(&b);
        self.expect(60, 11);
    }
    fn consume(&mut self, ch: u16, q: &str, tag: &str, no_ack: bool) {
        let mut b = Vec::new();
        method(&mut b, ch, 60, 20, |b| {
            b.extend_from_slice(&[0, 0]);
            ss(b, q);
            ss(b, tag);
            b.push(if no_ack { 2 } else { 0 });
            b.extend_from_slice(&[0; 4]);
        });
        self.write(&b);
        self.expect(60, 21);
    }
    fn close(&mut self) {
        let mut b = Vec::new();
        method(&mut b, 0, 10, 50, |b| b.extend_from_slice(&[0, 200, 0, 0, 0, 0, 0]));
        self.write(&b);
        self.expect(10, 51);
    }
    /// Body frames carry the payload; counts complete messages by body size.
    /// Returns the number of frames acked (basic.ack) up to now, for confirm mode.
    fn read_acks(&mut self, done: &mut u64) {
        let mut any = false;
        loop {
            while let Some(f) = self.ready() {
                if f.0 == 1 && self.mid(&f) == (60, 80) {
                    let p = &self.buf[f.2..f.3];
                    let tag = u64::from_be_bytes(p[4..12].try_into().unwrap());
                    if p[12] & 1 != 0 {
                        *done = (*done).max(tag);
                    } else {
                        *done += 1;
                    }
                    any = true;
                }
            }
            if any {
                return;
            }
            self.fill();
        }
    }
}

/// A block of identical encoded messages: (bytes, messages in it, bytes per message).
fn block(ch: u16, key: &str, body: &[u8], fmax: usize, batch: u64, n: u64) -> (Vec<u8>, u64, usize) {
    let mut one = Vec::new();
    publish(&mut one, ch, key, body, fmax);
    let k = if batch == 0 { (BLOCK / one.len()).max(1) as u64 } else { batch };
    let k = k.min(n.max(1));
    let mut b = Vec::with_capacity(one.len() * k as usize);
    for _ in 0..k {
        b.extend_from_slice(&one);
    }
    (b, k, one.len())
}

/// One large message straight from the caller's slice, no copy: writev of headers and parts.
fn publish_vectored(c: &mut Conn, ch: u16, key: &str, body: &[u8]) {
    let mut heads: Vec<Vec<u8>> = Vec::new();
    let parts: Vec<&[u8]> = body.chunks(c.fmax - 8).collect();
    for (i, p) in parts.iter().enumerate() {
        let mut h = Vec::new();
        if i == 0 {
            publish_head(&mut h, ch, key, body.len());
        } else {
            h.push(END);
        }
        body_head(&mut h, ch, p.len());
        heads.push(h);
    }
    let mut iov: Vec<IoSlice> = Vec::new();
    for (h, p) in heads.iter().zip(&parts) {
        iov.push(IoSlice::new(h));
        iov.push(IoSlice::new(p));
    }
    let tail = [END];
    iov.push(IoSlice::new(&tail));
    let mut rest = &mut iov[..];
    while !rest.is_empty() {
        let k = rest.len().min(1000);
        let n = c.s.write_vectored(&rest[..k]).expect("writev");
        IoSlice::advance_slices(&mut rest, n);
    }
}

/// One large message assembled in place: payload bytes are read straight into `body`.
fn consume_big(c: &mut Conn, body: &mut Vec<u8>) -> u64 {
    // deliver + header through the ordinary buffer
    loop {
        let f = c.frame();
        if f.0 == 2 {
            let p = &c.buf[f.2..f.3];
            let n = u64::from_be_bytes(p[4..12].try_into().unwrap()) as usize;
            body.clear();
            body.resize(n, 0);
            break;
        }
    }
    let mut got = 0;
    while got < body.len() {
        // frame header from the buffer or the socket
        while c.end - c.pos < 7 {
            c.fill();
        }
        let h = &c.buf[c.pos..];
        let n = u32::from_be_bytes([h[3], h[4], h[5], h[6]]) as usize;
        c.pos += 7;
        let k = n.min(c.end - c.pos);
        body[got..got + k].copy_from_slice(&c.buf[c.pos..c.pos + k]);
        c.pos += k;
        let mut at = k;
        while at < n {
            c.pos = 0;
            c.end = 0;
            // the rest of the payload in place, then a little of what follows (end octet, next header)
            let m = {
                let mut v = [
                    IoSliceMut::new(&mut body[got + at..got + n]),
                    IoSliceMut::new(&mut c.buf[..8]),
                ];
                c.s.read_vectored(&mut v).expect("readv")
            };
            assert!(m > 0);
            let inplace = m.min(n - at);
            at += inplace;
            c.end = m - inplace;
        }
        while c.end - c.pos < 1 {
            c.fill();
        }
        assert_eq!(c.buf[c.pos], END);
        c.pos += 1;
        got += n;
    }
    got as u64
}

fn main() {
    let a = Args::parse();
    let u = a.parsed_url();
    let n = a.messages;
    let bytes = n * a.size as u64;
    match a.job.as_str() {
        "publish" => {
            let mut c = Conn::connect(&u);
            c.open(1);
            c.declare(1, RPC_QUEUE, 0);
            let body = a.body();
            if a.size > 1 << 20 {
                let run = Run::start("raw", &a);
                for _ in 0..n {
                    publish_vectored(&mut c, 1, &a.pub_key(), &body);
                }
                c.barrier(1);
                run.finish(n, bytes);
                return c.close();
            }
            let (b, k, one) = block(1, &a.pub_key(), &body, c.fmax, a.batch, n);
            let run = Run::start("raw", &a);
            let mut left = n;
            while left > 0 {
                let m = left.min(k);
                c.write(&b[..m as usize * one]);
                left -= m;
            }
            c.barrier(1);
            run.finish(n, bytes);
            c.close();
        }
        "confirm-sync" | "confirm-window" | "fill" => {
            let mut c = Conn::connect(&u);
            c.open(1);
            c.declare(1, RPC_QUEUE, 0);
            let body = a.body();
            let mut window = if a.job == "confirm-sync" { 1 } else { a.inflight as u64 };
            if a.job == "fill" {
                let q = a.src_queue();
                c.declare(1, &q, 0);
                let mut b = Vec::new();
                method(&mut b, 1, 50, 30, |b| {
                    b.extend_from_slice(&[0, 0]);
                    ss(b, &q);
                    b.push(0);
                });
                c.write(&b);
                c.expect(50, 31);
                window = ((8 << 20) / (a.size as u64 + 64)).clamp(1, 5000);
            }
            c.confirm(1);
            let key = if a.job == "fill" { a.src_queue() } else { a.pub_key() };
            let (b, k, one) = block(1, &key, &body, c.fmax, window.min(((1 << 20) / (a.size as u64 + 64)).max(1)), n);
            let mut lat = Vec::with_capacity(if window == 1 { n as usize } else { 0 });
            let run = Run::start("raw", &a);
            let (mut sent, mut done) = (0u64, 0u64);
            while done < n {
                let mut m = (window - (sent - done)).min(n - sent);
                let t = Instant::now();
                while m > 0 {
                    let w = m.min(k);
                    c.write(&b[..w as usize * one]);
                    sent += w;
                    m -= w;
                }
                c.read_acks(&mut done);
                if window == 1 {
                    lat.push(ns(t.elapsed()));
                }
            }
            let mut run = run;
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, bytes);
            c.close();
        }
        "consume" | "consume-ack" => {
            let mut c = Conn::connect(&u);
            c.open(1);
            let no_ack = a.job == "consume";
            if !no_ack {
                c.qos(1, a.prefetch);
            }
            c.declare(1, RPC_QUEUE, 0);
            let q = a.src_queue();
            if a.size > 1 << 20 {
                let run = Run::start("raw", &a);
                c.consume(1, &q, "raw", no_ack);
                let mut body = Vec::new();
                let mut got = 0;
                for _ in 0..n {
                    got += consume_big(&mut c, &mut body);
                }
                assert_eq!(got, bytes);
                run.finish(n, bytes);
                return c.close();
            }
            let run = Run::start("raw", &a);
            c.consume(1, &q, "raw", no_ack);
            let (mut got, mut left, mut total) = (0u64, 0usize, 0u64);
            let mut acks = Vec::with_capacity(64 * 1024);
            let mut first = 0u64;
            while got < n {
                while let Some(f) = c.ready() {
                    match f.0 {
                        2 => {
                            let p = &c.buf[f.2..f.3];
                            left = u64::from_be_bytes(p[4..12].try_into().unwrap()) as usize;
                        }
                        3 => {
                            first += c.buf[f.2] as u64;
                            left -= f.3 - f.2;
                            total += (f.3 - f.2) as u64;
                            if left == 0 {
                                got += 1;
                                if !no_ack && (got % a.batch.max(1) == 0 || got == n) {
                                    put_ack(&mut acks, 1, got, a.batch > 1);
                                }
                            }
                        }
                        _ => {}
                    }
                }
                if !acks.is_empty() {
                    c.s.write_all(&acks).expect("write");
                    acks.clear();
                }
                if got < n {
                    c.fill();
                }
            }
            std::hint::black_box(first);
            if !no_ack {
                c.barrier(1);
            }
            assert_eq!(total, bytes);
            run.finish(n, bytes);
            c.close();
        }
        "rpc" => {
            let mut c = Conn::connect(&u);
            c.open(1);
            c.declare(1, RPC_QUEUE, 0);
            let mut b = Vec::new();
            declare(&mut b, 1, RPC_QUEUE, 1);
            let mut lat = Vec::with_capacity(n as usize);
            let mut run = Run::start("raw", &a);
            for _ in 0..n {
                let t = Instant::now();
                c.write(&b);
                let f = c.frame();
                assert_eq!(c.mid(&f), (50, 11));
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, 0);
            c.close();
        }
        "mt-publish" => {
            let mut c = Conn::connect(&u);
            let t = a.threads;
            for ch in 1..=t as u16 {
                c.open(ch);
            }
            c.declare(1, RPC_QUEUE, 0);
            let per = n / t as u64;
            let body = a.body();
            let w = Arc::new(Mutex::new(c.s.try_clone().unwrap()));
            let go = Arc::new(Barrier::new(t + 1));
            let hs: Vec<_> = (1..=t as u16)
                .map(|ch| {
                    let (w, go) = (w.clone(), go.clone());
                    let batch = if a.batch == 0 { ((64 * 1024) / (a.size as u64 + 64)).max(1) } else { a.batch };
                    let (b, k, one) = block(ch, &a.pub_key(), &body, c.fmax, batch, per);
                    std::thread::spawn(move || {
                        go.wait();
                        let mut left = per;
                        while left > 0 {
                            let m = left.min(k);
                            w.lock().unwrap().write_all(&b[..m as usize * one]).unwrap();
                            left -= m;
                        }
                    })
                })
                .collect();
            let run = Run::start("raw", &a);
            go.wait();
            for h in hs {
                h.join().unwrap();
            }
            for ch in 1..=t as u16 {
                c.barrier(ch);
            }
            run.finish(per * t as u64, per * t as u64 * a.size as u64);
            c.close();
        }
        "mt-rpc" => {
            // the limit: `threads` requests in flight from one thread, no wake-ups
            let mut c = Conn::connect(&u);
            let t = a.threads as u64;
            let mut b = Vec::new();
            for ch in 1..=t as u16 {
                c.open(ch);
                declare(&mut b, ch, RPC_QUEUE, 1);
            }
            c.declare(1, RPC_QUEUE, 0);
            let rounds = n / t;
            let mut lat = Vec::with_capacity(rounds as usize);
            let mut run = Run::start("raw", &a);
            for _ in 0..rounds {
                let at = Instant::now();
                c.write(&b);
                for _ in 0..t {
                    c.frame();
                }
                lat.push(ns(at.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, rounds * t, 0);
            c.close();
        }
        "rpc-handoff" | "mt-rpc-handoff" | "mt-rpc-leader" => design::rpc(&a, &u),
        "consume-handoff" => design::consume(&a, &u),
        "pingpong" => {
            let open = |q: &str| {
                let mut c = Conn::connect(&u);
                c.open(1);
                c.declare(1, q, 8);
                c.consume(1, q, "raw", true);
                c
            };
            let mut ping = open("loop.pong");
            let mut pong = open("loop.ping");
            let body = a.body();
            let wait = |c: &mut Conn| loop {
                let f = c.frame();
                if f.0 == 3 {
                    return;
                }
            };
            let total = n + a.warmup;
            let back = {
                let mut b = Vec::new();
                publish(&mut b, 1, "loop.pong", &body, pong.fmax);
                b
            };
            let h = std::thread::spawn(move || {
                for _ in 0..total {
                    wait(&mut pong);
                    pong.write(&back);
                }
                pong
            });
            let mut b = Vec::new();
            publish(&mut b, 1, "loop.ping", &body, ping.fmax);
            for _ in 0..a.warmup {
                ping.write(&b);
                wait(&mut ping);
            }
            let mut lat = Vec::with_capacity(n as usize);
            let mut run = Run::start("raw", &a);
            for _ in 0..n {
                let t = Instant::now();
                ping.write(&b);
                wait(&mut ping);
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, bytes);
            h.join().unwrap().close();
            ping.close();
        }
        "churn" => {
            let mut lat = Vec::with_capacity(n as usize);
            let mut run = Run::start("raw", &a);
            for _ in 0..n {
                let t = Instant::now();
                let mut c = Conn::connect(&u);
                c.open(1);
                let mut b = Vec::new();
                method(&mut b, 1, 20, 40, |b| b.extend_from_slice(&[0, 200, 0, 0, 0, 0, 0]));
                c.write(&b);
                c.expect(20, 41);
                c.close();
                drop(c);
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, 0);
        }
        "idle-channels" => {
            let mut c = Conn::connect(&u);
            let run = Run::start("raw", &a);
            for ch in 1..=n as u16 {
                c.open(ch);
            }
            run.finish(n, 0);
            c.close();
        }
        "idle-consumers" => {
            let mut c = Conn::connect(&u);
            c.open(1);
            c.declare(1, "idle.q", 8);
            let run = Run::start("raw", &a);
            for i in 0..n {
                c.consume(1, "idle.q", &format!("c{i}"), true);
            }
            run.finish(n, 0);
            c.close();
        }
        "drop-queue" => {
            let mut c = Conn::connect(&u);
            c.open(1);
            let mut b = Vec::new();
            method(&mut b, 1, 50, 40, |b| {
                b.extend_from_slice(&[0, 0]);
                ss(b, &a.src_queue());
                b.push(0);
            });
            c.write(&b);
            c.expect(50, 41);
            c.close();
        }
        _ => unsupported("job"),
    }
}

/// What a library's thread design costs when everything else is free.
mod design {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};
    use std::sync::Condvar;
    use std::thread::Thread;

    struct Slot {
        done: AtomicU32,
        waiting: AtomicBool,
        who: Mutex<Option<Thread>>,
    }

    pub fn rpc(a: &Args, u: &Url) {
        let mut c = Conn::connect(u);
        let t = if a.job == "rpc-handoff" { 1 } else { a.threads };
        let leader_mode = a.job == "mt-rpc-leader";
        for ch in 1..=t as u16 {
            c.open(ch);
        }
        c.declare(1, RPC_QUEUE, 0);
        let per = a.messages / t as u64;
        let w = Arc::new(Mutex::new(c.s.try_clone().unwrap()));
        let slots: Arc<Vec<Slot>> =
            Arc::new((0..=t).map(|_| Slot { done: AtomicU32::new(0), waiting: AtomicBool::new(false), who: Mutex::new(None) }).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let rd = Arc::new(Mutex::new(c));
        let go = Arc::new(Barrier::new(t + 1));
        let reader = (!leader_mode).then(|| {
            let (rd, slots, stop) = (rd.clone(), slots.clone(), stop.clone());
            let total = per * t as u64;
            std::thread::spawn(move || {
                let mut c = rd.lock().unwrap();
                for _ in 0..total {
                    let f = c.frame();
                    let s = &slots[f.1 as usize];
                    s.done.fetch_add(1, Release);
                    if let Some(t) = s.who.lock().unwrap().as_ref() {
                        t.unpark();
                    }
                }
                let _ = stop;
            })
        });
        let hs: Vec<_> = (1..=t as u16)
            .map(|ch| {
                let (w, slots, rd, go) = (w.clone(), slots.clone(), rd.clone(), go.clone());
                std::thread::spawn(move || {
                    let me = &slots[ch as usize];
                    *me.who.lock().unwrap() = Some(std::thread::current());
                    let mut b = Vec::new();
                    super::declare(&mut b, ch, RPC_QUEUE, 1);
                    let mut lat = Vec::with_capacity(per as usize);
                    go.wait();
                    for i in 1..=per as u32 {
                        let at = Instant::now();
                        w.lock().unwrap().write_all(&b).unwrap();
                        while me.done.load(Acquire) < i {
                            let lead = if leader_mode { rd.try_lock().ok() } else { None };
                            match lead {
                                Some(mut c) => {
                                    while me.done.load(Acquire) < i {
                                        let f = c.frame();
                                        let mut next = Some(f);
                                        while let Some(f) = next {
                                            let s = &slots[f.1 as usize];
                                            s.waiting.store(false, SeqCst);
                                            s.done.fetch_add(1, Release);
                                            if f.1 != ch {
                                                if let Some(t) = s.who.lock().unwrap().as_ref() {
                                                    t.unpark();
                                                }
                                            }
                                            next = c.ready();
                                        }
                                    }
                                    drop(c);
                                    // somebody may be waiting without a reader: hand the role on
                                    if let Some(s) = slots.iter().find(|s| s.waiting.load(SeqCst)) {
                                        if let Some(t) = s.who.lock().unwrap().as_ref() {
                                            t.unpark();
                                        }
                                    }
                                }
                                None => {
                                    me.waiting.store(true, SeqCst);
                                    // re-check after publishing `waiting`: the role may be free
                                    let free = leader_mode && rd.try_lock().is_ok();
                                    if !free && me.done.load(Acquire) < i {
                                        std::thread::park();
                                    }
                                    me.waiting.store(false, SeqCst);
                                }
                            }
                        }
                        lat.push(ns(at.elapsed()));
                    }
                    lat
                })
            })
            .collect();
        let mut run = Run::start("raw", a);
        go.wait();
        let mut lat = Vec::new();
        for h in hs {
            lat.extend(h.join().unwrap());
        }
        let s = run.stop();
        run.latencies(lat);
        run.finish_at(s, per * t as u64, 0);
        if let Some(r) = reader {
            r.join().unwrap();
        }
        rd.lock().unwrap().close();
    }

    /// Reader thread: copies whole frames into a chunk per read and queues the chunk.
    pub fn consume(a: &Args, u: &Url) {
        let mut c = Conn::connect(u);
        c.open(1);
        let q = a.src_queue();
        let n = a.messages;
        let shared = Arc::new((Mutex::new(VecDeque::<Vec<u8>>::new()), Condvar::new()));
        let run = Run::start("raw", a);
        c.consume(1, &q, "raw", true);
        let sh = shared.clone();
        let h = std::thread::spawn(move || {
            let mut got = 0;
            while got < n {
                let from = c.pos;
                while let Some(f) = c.ready() {
                    // one body frame per message at these sizes
                    got += (f.0 == 3) as u64;
                }
                if c.pos > from {
                    let v = c.buf[from..c.pos].to_vec();
                    let mut g = sh.0.lock().unwrap();
                    g.push_back(v);
                    let wake = g.len() == 1;
                    drop(g);
                    if wake {
                        sh.1.notify_one();
                    }
                }
                if got < n {
                    c.fill();
                }
            }
            c
        });
        let (mut got, mut first) = (0u64, 0u64);
        while got < n {
            let mut g = shared.0.lock().unwrap();
            while g.is_empty() {
                g = shared.1.wait(g).unwrap();
            }
            let batch = std::mem::take(&mut *g);
            drop(g);
            for v in batch {
                let mut at = 0;
                while at < v.len() {
                    let len = u32::from_be_bytes(v[at + 3..at + 7].try_into().unwrap()) as usize;
                    if v[at] == 3 {
                        got += 1;
                        first += v[at + 7] as u64;
                    }
                    at += len + 8;
                }
            }
        }
        std::hint::black_box(first);
        run.finish(n, n * a.size as u64);
        h.join().unwrap().close();
    }
}
