//! lapin 4 on tokio.  `--rt multi` (default: tokio's default, one worker per core) or
//! `--rt current` (single-threaded executor; lapin's own I/O thread is there in both).

use compare_common::*;
use futures_util::StreamExt;
use lapin::{options::*, types::FieldTable, BasicProperties, Channel, Connection, ConnectionProperties};
use std::collections::VecDeque;
use std::time::Instant;

const ME: &str = "lapin";

async fn connect(a: &Args) -> Connection {
    Connection::connect(&a.url, ConnectionProperties::default()).await.expect("connect")
}

async fn setup(a: &Args) -> (Connection, Channel) {
    let c = connect(a).await;
    let ch = c.create_channel().await.unwrap();
    ch.queue_declare(RPC_QUEUE.into(), QueueDeclareOptions::default(), FieldTable::default())
        .await
        .unwrap();
    (c, ch)
}

async fn passive(ch: &Channel) {
    let o = QueueDeclareOptions { passive: true, ..Default::default() };
    ch.queue_declare(RPC_QUEUE.into(), o, FieldTable::default()).await.unwrap();
}

async fn publish(ch: &Channel, key: &str, body: &[u8]) -> lapin::PublisherConfirm {
    ch.basic_publish("".into(), key.into(), BasicPublishOptions::default(), body, BasicProperties::default())
        .await
        .unwrap()
}

async fn consume(ch: &Channel, q: &str, no_ack: bool) -> lapin::Consumer {
    ch.basic_consume(q.into(), "".into(), BasicConsumeOptions { no_ack, ..Default::default() }, FieldTable::default())
        .await
        .unwrap()
}

async fn job(a: Args) {
    let n = a.messages;
    let bytes = n * a.size as u64;
    let key = a.pub_key();
    match a.job.as_str() {
        "publish" => {
            let (c, ch) = setup(&a).await;
            let body = a.body();
            let run = Run::start(ME, &a);
            for _ in 0..n {
                publish(&ch, &key, &body).await;
            }
            passive(&ch).await;
            run.finish(n, bytes);
            c.close(200, "".into()).await.unwrap();
        }
        "confirm-sync" | "confirm-window" => {
            let (c, ch) = setup(&a).await;
            ch.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
            let body = a.body();
            let sync = a.job == "confirm-sync";
            let mut lat = Vec::with_capacity(if sync { n as usize } else { 0 });
            let mut run = Run::start(ME, &a);
            if sync {
                for _ in 0..n {
                    let t = Instant::now();
                    assert!(publish(&ch, &key, &body).await.await.unwrap().is_ack());
                    lat.push(ns(t.elapsed()));
                }
            } else {
                let mut w = VecDeque::with_capacity(a.inflight);
                for _ in 0..n {
                    if w.len() == a.inflight {
                        let p: lapin::PublisherConfirm = w.pop_front().unwrap();
                        assert!(p.await.unwrap().is_ack());
                    }
                    w.push_back(publish(&ch, &key, &body).await);
                }
                for p in w {
                    assert!(p.await.unwrap().is_ack());
                }
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, bytes);
            c.close(200, "".into()).await.unwrap();
        }
        "consume" | "consume-ack" => {
            let (c, ch) = setup(&a).await;
            let no_ack = a.job == "consume";
            if !no_ack {
                ch.basic_qos(a.prefetch, BasicQosOptions::default()).await.unwrap();
            }
            let run = Run::start(ME, &a);
            let mut cons = consume(&ch, &a.src_queue(), no_ack).await;
            let (mut got, mut total, mut first) = (0u64, 0u64, 0u64);
            while got < n {
                let d = cons.next().await.unwrap().unwrap();
                got += 1;
                total += d.data.len() as u64;
                first += d.data[0] as u64;
                if !no_ack {
                    if a.batch <= 1 {
                        d.ack(BasicAckOptions::default()).await.unwrap();
                    } else if got % a.batch == 0 || got == n {
                        d.ack(BasicAckOptions { multiple: true }).await.unwrap();
                    }
                }
            }
            std::hint::black_box(first);
            if !no_ack {
                passive(&ch).await;
            }
            assert_eq!(total, bytes);
            run.finish(n, bytes);
            c.close(200, "".into()).await.unwrap();
        }
        "rpc" => {
            let (c, ch) = setup(&a).await;
            let mut lat = Vec::with_capacity(n as usize);
            let mut run = Run::start(ME, &a);
            for _ in 0..n {
                let t = Instant::now();
                passive(&ch).await;
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, 0);
            c.close(200, "".into()).await.unwrap();
        }
        "mt-publish" | "mt-rpc" => {
            let (c, _ch) = setup(&a).await;
            let t = a.threads;
            let per = n / t as u64;
            let rpc = a.job == "mt-rpc";
            let mut chans = Vec::new();
            for _ in 0..t {
                chans.push(c.create_channel().await.unwrap());
            }
            let mut run = Run::start(ME, &a);
            let hs: Vec<_> = chans
                .into_iter()
                .map(|ch| {
                    let (key, body) = (key.clone(), a.body());
                    tokio::spawn(async move {
                        let mut lat = Vec::with_capacity(if rpc { per as usize } else { 0 });
                        for _ in 0..per {
                            if rpc {
                                let t = Instant::now();
                                passive(&ch).await;
                                lat.push(ns(t.elapsed()));
                            } else {
                                publish(&ch, &key, &body).await;
                            }
                        }
                        if !rpc {
                            passive(&ch).await;
                        }
                        (lat, ch)
                    })
                })
                .collect();
            let mut lat = Vec::new();
            let mut keep = Vec::new();
            for h in hs {
                let (l, ch) = h.await.unwrap();
                lat.extend(l);
                keep.push(ch);
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, per * t as u64, per * t as u64 * if rpc { 0 } else { a.size as u64 });
            c.close(200, "".into()).await.unwrap();
        }
        "pingpong" => {
            let total = n + a.warmup;
            let auto = QueueDeclareOptions { auto_delete: true, ..Default::default() };
            let c1 = connect(&a).await;
            let ch1 = c1.create_channel().await.unwrap();
            ch1.queue_declare("loop.pong".into(), auto, FieldTable::default()).await.unwrap();
            let mut cons1 = consume(&ch1, "loop.pong", true).await;
            let c2 = connect(&a).await;
            let ch2 = c2.create_channel().await.unwrap();
            ch2.queue_declare("loop.ping".into(), auto, FieldTable::default()).await.unwrap();
            let mut cons2 = consume(&ch2, "loop.ping", true).await;
            let body = a.body();
            let body2 = body.clone();
            let h = tokio::spawn(async move {
                for _ in 0..total {
                    cons2.next().await.unwrap().unwrap();
                    publish(&ch2, "loop.pong", &body2).await;
                }
                c2.close(200, "".into()).await.unwrap();
            });
            let mut lat = Vec::with_capacity(n as usize);
            for _ in 0..a.warmup {
                publish(&ch1, "loop.ping", &body).await;
                cons1.next().await.unwrap().unwrap();
            }
            let mut run = Run::start(ME, &a);
            for _ in 0..n {
                let t = Instant::now();
                publish(&ch1, "loop.ping", &body).await;
                cons1.next().await.unwrap().unwrap();
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, bytes);
            h.await.unwrap();
            c1.close(200, "".into()).await.unwrap();
        }
        "churn" => {
            let mut lat = Vec::with_capacity(n as usize);
            let mut run = Run::start(ME, &a);
            for _ in 0..n {
                let t = Instant::now();
                let c = connect(&a).await;
                let ch = c.create_channel().await.unwrap();
                ch.close(200, "".into()).await.unwrap();
                c.close(200, "".into()).await.unwrap();
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, 0);
        }
        "idle-channels" => {
            let (c, _ch) = setup(&a).await;
            let run = Run::start(ME, &a);
            let mut v = Vec::new();
            for _ in 0..n {
                v.push(c.create_channel().await.unwrap());
            }
            run.finish(n, 0);
            c.close(200, "".into()).await.unwrap();
        }
        "idle-consumers" => {
            let (c, ch) = setup(&a).await;
            let auto = QueueDeclareOptions { auto_delete: true, ..Default::default() };
            ch.queue_declare("idle.q".into(), auto, FieldTable::default()).await.unwrap();
            let run = Run::start(ME, &a);
            let mut v = Vec::new();
            for _ in 0..n {
                v.push(consume(&ch, "idle.q", true).await);
            }
            run.finish(n, 0);
            c.close(200, "".into()).await.unwrap();
        }
        _ => unsupported("job"),
    }
}

fn main() {
    let a = Args::parse();
    let rt = if a.rt == "current" {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()
    }
    .unwrap();
    // in a task, as an application's code would be, not on the blocking main thread
    rt.block_on(async move { tokio::spawn(job(a)).await.unwrap() });
}
