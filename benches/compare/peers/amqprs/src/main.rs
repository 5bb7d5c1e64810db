//! amqprs 2 on tokio.  `--rt multi` (default) or `--rt current`.

use amqprs::callbacks::ChannelCallback;
use amqprs::channel::*;
use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::{Ack, BasicProperties, Cancel, CloseChannel, Nack, Return};
use compare_common::*;
use std::time::Instant;
use tokio::sync::mpsc;

const ME: &str = "amqprs";

struct Confirms(mpsc::UnboundedSender<(u64, bool)>);

#[async_trait::async_trait]
impl ChannelCallback for Confirms {
    async fn close(&mut self, _: &Channel, _: CloseChannel) -> Result<(), amqprs::error::Error> {
        Ok(())
    }
    async fn cancel(&mut self, _: &Channel, _: Cancel) -> Result<(), amqprs::error::Error> {
        Ok(())
    }
    async fn flow(&mut self, _: &Channel, active: bool) -> Result<bool, amqprs::error::Error> {
        Ok(active)
    }
    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        let _ = self.0.send((ack.delivery_tag(), ack.mutiple()));
    }
    async fn publish_nack(&mut self, _: &Channel, _: Nack) {
        panic!("nack");
    }
    async fn publish_return(&mut self, _: &Channel, _: Return, _: BasicProperties, _: Vec<u8>) {}
}

async fn connect(a: &Args) -> Connection {
    let u = a.parsed_url();
    let mut args = OpenConnectionArguments::new(&u.host, u.port, &u.user, &u.pass);
    args.virtual_host(&u.vhost);
    Connection::open(&args).await.expect("connect")
}

async fn setup(a: &Args) -> (Connection, Channel) {
    let c = connect(a).await;
    let ch = c.open_channel(None).await.unwrap();
    ch.queue_declare(QueueDeclareArguments::new(RPC_QUEUE)).await.unwrap();
    (c, ch)
}

async fn passive(ch: &Channel) {
    let mut q = QueueDeclareArguments::new(RPC_QUEUE);
    q.passive(true);
    ch.queue_declare(q).await.unwrap();
}

async fn publish(ch: &Channel, args: &BasicPublishArguments, body: &[u8]) {
    // the API takes an owned Vec and owned arguments: a caller with a reusable body must copy
    ch.basic_publish(BasicProperties::default(), body.to_vec(), args.clone()).await.unwrap();
}

async fn consume(ch: &Channel, q: &str, tag: &str, no_ack: bool) -> mpsc::UnboundedReceiver<ConsumerMessage> {
    let mut c = BasicConsumeArguments::new(q, tag);
    c.manual_ack(!no_ack);
    ch.basic_consume_rx(c).await.unwrap().1
}

async fn job(a: Args) {
    let n = a.messages;
    let bytes = n * a.size as u64;
    let args = BasicPublishArguments::new("", &a.pub_key());
    match a.job.as_str() {
        "publish" => {
            let (c, ch) = setup(&a).await;
            let body = a.body();
            let run = Run::start(ME, &a);
            for _ in 0..n {
                publish(&ch, &args, &body).await;
            }
            passive(&ch).await;
            run.finish(n, bytes);
            ch.close().await.unwrap();
            c.close().await.unwrap();
        }
        "confirm-sync" | "confirm-window" => {
            let (c, ch) = setup(&a).await;
            let (tx, mut rx) = mpsc::unbounded_channel();
            ch.register_callback(Confirms(tx)).await.unwrap();
            ch.confirm_select(ConfirmSelectArguments::new(false)).await.unwrap();
            let body = a.body();
            let sync = a.job == "confirm-sync";
            let window = if sync { 1 } else { a.inflight as u64 };
            let mut lat = Vec::with_capacity(if sync { n as usize } else { 0 });
            let mut run = Run::start(ME, &a);
            let (mut sent, mut done) = (0u64, 0u64);
            let add = |done: &mut u64, m: (u64, bool)| {
                *done = if m.1 { (*done).max(m.0) } else { *done + 1 };
            };
            while done < n {
                if sent < n && sent - done < window {
                    let t = Instant::now();
                    publish(&ch, &args, &body).await;
                    sent += 1;
                    if sync {
                        add(&mut done, rx.recv().await.unwrap());
                        lat.push(ns(t.elapsed()));
                    }
                } else {
                    add(&mut done, rx.recv().await.unwrap());
                    while let Ok(m) = rx.try_recv() {
                        add(&mut done, m);
                    }
                }
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, bytes);
            ch.close().await.unwrap();
            c.close().await.unwrap();
        }
        "consume" | "consume-ack" => {
            let (c, ch) = setup(&a).await;
            let no_ack = a.job == "consume";
            if !no_ack {
                ch.basic_qos(BasicQosArguments::new(0, a.prefetch, false)).await.unwrap();
            }
            let run = Run::start(ME, &a);
            let mut rx = consume(&ch, &a.src_queue(), "t", no_ack).await;
            let (mut got, mut total, mut first) = (0u64, 0u64, 0u64);
            while got < n {
                let d = rx.recv().await.unwrap();
                let body = d.content.unwrap();
                got += 1;
                total += body.len() as u64;
                first += body[0] as u64;
                if !no_ack {
                    let tag = d.deliver.unwrap().delivery_tag();
                    if a.batch <= 1 {
                        ch.basic_ack(BasicAckArguments::new(tag, false)).await.unwrap();
                    } else if got % a.batch == 0 || got == n {
                        ch.basic_ack(BasicAckArguments::new(tag, true)).await.unwrap();
                    }
                }
            }
            std::hint::black_box(first);
            if !no_ack {
                passive(&ch).await;
            }
            assert_eq!(total, bytes);
            run.finish(n, bytes);
            ch.close().await.unwrap();
            c.close().await.unwrap();
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
            ch.close().await.unwrap();
            c.close().await.unwrap();
        }
        "mt-publish" | "mt-rpc" => {
            let (c, _ch) = setup(&a).await;
            let t = a.threads;
            let per = n / t as u64;
            let rpc = a.job == "mt-rpc";
            let mut chans = Vec::new();
            for _ in 0..t {
                chans.push(c.open_channel(None).await.unwrap());
            }
            let mut run = Run::start(ME, &a);
            let hs: Vec<_> = chans
                .into_iter()
                .map(|ch| {
                    let (args, body) = (args.clone(), a.body());
                    tokio::spawn(async move {
                        let mut lat = Vec::with_capacity(if rpc { per as usize } else { 0 });
                        for _ in 0..per {
                            if rpc {
                                let t = Instant::now();
                                passive(&ch).await;
                                lat.push(ns(t.elapsed()));
                            } else {
                                publish(&ch, &args, &body).await;
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
            c.close().await.unwrap();
        }
        "pingpong" => {
            let total = n + a.warmup;
            let open = |q: &'static str, a: Args| async move {
                let c = connect(&a).await;
                let ch = c.open_channel(None).await.unwrap();
                let mut d = QueueDeclareArguments::new(q);
                d.auto_delete(true);
                ch.queue_declare(d).await.unwrap();
                let rx = consume(&ch, q, "t", true).await;
                (c, ch, rx)
            };
            let (c1, ch1, mut rx1) = open("loop.pong", a.clone()).await;
            let (c2, ch2, mut rx2) = open("loop.ping", a.clone()).await;
            let body = a.body();
            let body2 = body.clone();
            let h = tokio::spawn(async move {
                let args = BasicPublishArguments::new("", "loop.pong");
                for _ in 0..total {
                    rx2.recv().await.unwrap();
                    publish(&ch2, &args, &body2).await;
                }
                ch2.close().await.unwrap();
                c2.close().await.unwrap();
            });
            let args = BasicPublishArguments::new("", "loop.ping");
            let mut lat = Vec::with_capacity(n as usize);
            for _ in 0..a.warmup {
                publish(&ch1, &args, &body).await;
                rx1.recv().await.unwrap();
            }
            let mut run = Run::start(ME, &a);
            for _ in 0..n {
                let t = Instant::now();
                publish(&ch1, &args, &body).await;
                rx1.recv().await.unwrap();
                lat.push(ns(t.elapsed()));
            }
            let s = run.stop();
            run.latencies(lat);
            run.finish_at(s, n, bytes);
            h.await.unwrap();
            ch1.close().await.unwrap();
            c1.close().await.unwrap();
        }
        "churn" => {
            let mut lat = Vec::with_capacity(n as usize);
            let mut run = Run::start(ME, &a);
            for _ in 0..n {
                let t = Instant::now();
                let c = connect(&a).await;
                let ch = c.open_channel(None).await.unwrap();
                ch.close().await.unwrap();
                c.close().await.unwrap();
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
                v.push(c.open_channel(None).await.unwrap());
            }
            run.finish(n, 0);
            c.close().await.unwrap();
        }
        "idle-consumers" => {
            let (c, ch) = setup(&a).await;
            let mut d = QueueDeclareArguments::new("idle.q");
            d.auto_delete(true);
            ch.queue_declare(d).await.unwrap();
            let run = Run::start(ME, &a);
            let mut v = Vec::new();
            for i in 0..n {
                v.push(consume(&ch, "idle.q", &format!("c{i}"), true).await);
            }
            run.finish(n, 0);
            ch.close().await.unwrap();
            c.close().await.unwrap();
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
    rt.block_on(async move { tokio::spawn(job(a)).await.unwrap() });
}
