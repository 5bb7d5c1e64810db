//! A limit for every test: one that hangs ends the whole run, with its name, instead of holding it up.

use std::{
    io::Write,
    process,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

/// Far more than any test takes, also beside others on a slow machine; and more than the [`AMPLE`](super::limits::AMPLE)
/// limit of a call, whose error says more.
pub const LIMIT: Duration = Duration::from_secs(300);

/// Ends the process when it is not dropped in time.
pub struct Watchdog {
    _released: Sender<()>,
}

impl Watchdog {
    pub fn new(test: &str, limit: Duration) -> Watchdog {
        let (released, watched) = mpsc::channel();
        let test = test.to_owned();
        let watch = move || {
            if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                say(&format!("the test {test} hangs: it took longer than {limit:?}; giving up"));
                process::exit(101);
            }
        };
        thread::Builder::new().name("watchdog".into()).spawn(watch).expect("a thread");
        Watchdog { _released: released }
    }
}

/// The name of the running test: libtest gives it to the thread.
pub fn test_name() -> String {
    match thread::current().name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => "of this program".to_owned(),
    }
}

/// Writes a line that is seen although the test succeeds: only the output of the macros is captured.
pub fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
