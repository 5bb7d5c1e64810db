//! Shared by every Rust peer: the command line convention, the clock (wall, CPU, context
//! switches, memory) and the one-line JSON report.  No AMQP in here.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct Args {
    pub job: String,
    pub url: String,
    pub messages: u64,
    pub size: usize,
    pub prefetch: u16,
    pub batch: u64,
    pub threads: usize,
    pub inflight: usize,
    pub queue: Option<String>,
    pub rt: String,
    pub warmup: u64,
}

pub const RPC_QUEUE: &str = "compare.rpc";
pub const PUB_KEY: &str = "compare.drop";

fn die(msg: &str) -> ! {
    eprintln!("{msg}");
    std::process::exit(2)
}

impl Args {
    pub fn parse() -> Args {
        let mut it = std::env::args().skip(1);
        let job = it
            .next()
            .unwrap_or_else(|| die("usage: peer-NAME JOB --url U --messages N --size S ..."));
        let mut a = Args {
            job,
            url: "amqp://guest:guest@127.0.0.1:5672/%2f".into(),
            messages: 10_000,
            size: 16,
            prefetch: 1000,
            batch: 1,
            threads: 16,
            inflight: 1000,
            queue: None,
            rt: "multi".into(),
            warmup: 0,
        };
        while let Some(k) = it.next() {
            let v = it.next().unwrap_or_else(|| die(&format!("{k} needs a value")));
            fn num<T: std::str::FromStr>(k: &str, v: &str) -> T {
                v.parse().unwrap_or_else(|_| die(&format!("{k}: bad number {v}")))
            }
            match k.as_str() {
                "--url" => a.url = v,
                "--messages" => a.messages = num(&k, &v),
                "--size" => a.size = num(&k, &v),
                "--prefetch" => a.prefetch = num(&k, &v),
                "--batch" => a.batch = num(&k, &v),
                "--threads" => a.threads = num(&k, &v),
                "--inflight" => a.inflight = num(&k, &v),
                "--warmup" => a.warmup = num(&k, &v),
                "--queue" => a.queue = Some(v),
                "--rt" => a.rt = v,
                _ => die(&format!("unknown option {k}")),
            }
        }
        a
    }

    /// Routing key used by the publishing jobs (default exchange).
    pub fn pub_key(&self) -> String {
        self.queue.clone().unwrap_or_else(|| PUB_KEY.into())
    }

    /// Queue the consuming jobs read: `wire` makes up N messages of S bytes from this name;
    /// on a real broker the runner fills a queue of this name first.
    pub fn src_queue(&self) -> String {
        self.queue
            .clone()
            .unwrap_or_else(|| format!("src.{}.{}", self.messages, self.size))
    }

    pub fn body(&self) -> Vec<u8> {
        (0..self.size).map(|i| (i & 0x7f) as u8).collect()
    }

    pub fn parsed_url(&self) -> Url {
        Url::parse(&self.url)
    }
}

#[derive(Debug, Clone)]
pub struct Url {
    pub user: String,
    pub pass: String,
    pub host: String,
    pub port: u16,
    pub vhost: String,
}

impl Url {
    pub fn parse(u: &str) -> Url {
        let r = u.strip_prefix("amqp://").unwrap_or_else(|| die("url must be amqp://"));
        let (auth, rest) = r.split_once('@').unwrap_or(("guest:guest", r));
        let (user, pass) = auth.split_once(':').unwrap_or((auth, ""));
        let (hp, vh) = rest.split_once('/').unwrap_or((rest, "%2f"));
        let (host, port) = hp.split_once(':').unwrap_or((hp, "5672"));
        Url {
            user: user.into(),
            pass: pass.into(),
            host: host.into(),
            port: port.parse().unwrap_or_else(|_| die("bad port")),
            vhost: vh.replace("%2f", "/").replace("%2F", "/"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    pub at: Instant,
    pub user: f64,
    pub sys: f64,
    pub cpu: f64,
    pub nvcsw: i64,
    pub nivcsw: i64,
    pub minflt: i64,
}

pub fn snapshot() -> Snapshot {
    // SAFETY: plain libc queries writing into zeroed local structs.
    unsafe {
        let mut ru: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut ru);
        let mut ts: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut ts);
        let tv = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
        Snapshot {
            at: Instant::now(),
            user: tv(ru.ru_utime),
            sys: tv(ru.ru_stime),
            cpu: ts.tv_sec as f64 + ts.tv_nsec as f64 / 1e9,
            nvcsw: ru.ru_nvcsw,
            nivcsw: ru.ru_nivcsw,
            minflt: ru.ru_minflt,
        }
    }
}

fn status_kb(key: &str) -> u64 {
    let s = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    s.lines()
        .find(|l| l.starts_with(key))
        .and_then(|l| l.split_whitespace().nth(1))
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

pub fn rss_kb() -> u64 {
    status_kb("VmRSS:")
}
pub fn peak_rss_kb() -> u64 {
    status_kb("VmHWM:")
}

/// One measured job: `Run::start` after the connection and channels are up, `finish` when the
/// peer has proof that the server has everything (or that everything arrived).
pub struct Run {
    peer: &'static str,
    job: String,
    start: Snapshot,
    rss_start: u64,
    extra: String,
}

impl Run {
    pub fn start(peer: &'static str, a: &Args) -> Run {
        let rss_start = rss_kb();
        Run {
            peer,
            job: a.job.clone(),
            rss_start,
            extra: String::new(),
            start: snapshot(),
        }
    }

    pub fn extra(&mut self, key: &str, val: f64) {
        let _ = write!(self.extra, ",\"{key}\":{val}");
    }

    /// Latencies in nanoseconds.
    pub fn latencies(&mut self, mut l: Vec<u64>) {
        if l.is_empty() {
            return;
        }
        l.sort_unstable();
        let q = |p: f64| l[((l.len() - 1) as f64 * p) as usize] as f64 / 1e3;
        let mean = l.iter().sum::<u64>() as f64 / l.len() as f64 / 1e3;
        for (k, v) in [
            ("p50_us", q(0.50)),
            ("p90_us", q(0.90)),
            ("p99_us", q(0.99)),
            ("p999_us", q(0.999)),
            ("mean_us", mean),
        ] {
            let _ = write!(self.extra, ",\"{k}\":{v:.3}");
        }
    }

    pub fn stop(&self) -> Stopped {
        let e = snapshot();
        Stopped {
            end: e,
            rss_end: rss_kb(),
            peak: peak_rss_kb(),
        }
    }

    pub fn finish(self, messages: u64, bytes: u64) {
        let s = self.stop();
        self.finish_at(s, messages, bytes)
    }

    pub fn finish_at(self, s: Stopped, messages: u64, bytes: u64) {
        let (a, b) = (self.start, s.end);
        println!(
            "{{\"peer\":\"{}\",\"job\":\"{}\",\"messages\":{},\"bytes\":{},\"wall_s\":{:.6},\"user_s\":{:.6},\"sys_s\":{:.6},\"cpu_s\":{:.6},\"max_rss_kb\":{},\"rss_start_kb\":{},\"rss_end_kb\":{},\"nvcsw\":{},\"nivcsw\":{},\"minflt\":{}{}}}",
            self.peer,
            self.job,
            messages,
            bytes,
            (b.at - a.at).as_secs_f64(),
            b.user - a.user,
            b.sys - a.sys,
            b.cpu - a.cpu,
            s.peak,
            self.rss_start,
            s.rss_end,
            b.nvcsw - a.nvcsw,
            b.nivcsw - a.nivcsw,
            b.minflt - a.minflt,
            self.extra
        );
    }
}

pub struct Stopped {
    pub end: Snapshot,
    pub rss_end: u64,
    pub peak: u64,
}

pub fn ns(d: Duration) -> u64 {
    d.as_nanos() as u64
}

/// A peer that cannot do a job says so with exit status 3: the runner records "n/a".
pub fn unsupported(why: &str) -> ! {
    eprintln!("unsupported: {why}");
    std::process::exit(3)
}
