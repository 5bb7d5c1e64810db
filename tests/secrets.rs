//! Passwords: in no memory that was given back, and in no line of the log. A program of its own with one test: it looks
//! at the memory of the whole process.

#![allow(unsafe_code)] // An allocator that looks at what it gets back cannot be had without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{
    peer::*,
    watchdog::{LIMIT, Watchdog, test_name},
};
use leveret::{Config, Connection, Credentials, Error, Mechanism, SaslMechanism, Secret};

/// No other memory has these bytes in a row.
const PASSWORD: &[u8] = b"correct-horse-battery-staple";

/// Counts blocks that are given back with the password in them, by all threads but those that are left out.
struct Looking;

static LEFT_BEHIND: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static LEFT_OUT: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: everything is passed on to the system's allocator as it came; looking allocates nothing. A block that is to
// grow is given back as well: that is how the trait grows them.
unsafe impl GlobalAlloc for Looking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // So that no byte that was never written is looked at. SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if LEFT_OUT.try_with(Cell::get) == Ok(false) {
            // SAFETY: the block is the caller's, who gives it up; all of it was written, with zeros at least.
            let block = unsafe { std::slice::from_raw_parts(pointer, layout.size()) };
            if block.windows(PASSWORD.len()).any(|window| window == PASSWORD) {
                LEFT_BEHIND.fetch_add(1, Ordering::SeqCst);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static LOOKING: Looking = Looking;

/// Keeps every line.
struct Kept;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl log::Log for Kept {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).push(record.args().to_string());
    }
    fn flush(&self) {}
}

/// A text with the password in it, in memory that has never moved.
fn with_password(before: &str, after: &str) -> String {
    let mut text = String::with_capacity(1000);
    for part in [before, std::str::from_utf8(PASSWORD).unwrap(), after] {
        text.push_str(part);
    }
    text
}

fn password() -> Secret {
    with_password("", "").into()
}

/// The peer is in this process, and knows the password as well: it is left out.
fn peer<T: Send + 'static>(script: impl FnOnce(&mut Peer) -> T + Send + 'static) -> Script<T> {
    Peer::run(|peer| {
        LEFT_OUT.set(true);
        script(peer)
    })
}

/// Nothing has been left behind until now.
fn check(what: &str) {
    assert_eq!(LEFT_BEHIND.load(Ordering::SeqCst), 0, "blocks with the password, after {what}");
}

/// Sends the password when it is asked for it.
#[derive(Debug)]
struct Asked;

impl SaslMechanism for Asked {
    fn name(&self) -> &str {
        "ASKED"
    }
    fn initial_response(&self, _: &Credentials) -> leveret::Result<Vec<u8>> {
        Ok(Vec::new())
    }
    fn challenge(&self, credentials: &Credentials, _: &[u8]) -> leveret::Result<Vec<u8>> {
        Ok(credentials.password.expose().as_bytes().to_vec())
    }
}

/// Row 4: a password is overwritten wherever it was, and stands in no error and no line of the log: not of a connection
/// that works, not of one that is refused or lost, and not of a new secret.
#[test]
fn passwords_are_left_nowhere() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    log::set_logger(&Kept).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    drop(password());
    check("a secret");

    // As settings, and in a URI, encoded or not.
    for mechanism in [Mechanism::Plain, Mechanism::AmqPlain] {
        let serving = peer(|peer| {
            peer.handshake();
            peer.close();
        });
        let config = serving.config().credentials("user", password()).auth_mechanism(mechanism);
        let connection = Connection::open(config).unwrap();
        connection.close().unwrap();
        drop(connection);
        serving.finish();
        check(&format!("a connection with {mechanism:?}"));
    }
    for place in ["", "%2F"] {
        let serving = peer(|peer| {
            peer.handshake();
            peer.close();
        });
        let uri = with_password("amqp://user:", &format!("{place}@127.0.0.1:{}/?heartbeat=0", serving.port));
        Connection::open(uri).unwrap().close().unwrap();
        serving.finish();
        check("a connection by a URI");
    }
    let asking = peer(|peer| {
        peer.expect_protocol_header();
        peer.raw(&start("ASKED"));
        peer.expect(0, START_OK);
        peer.send(0, SECURE, args!["?"]);
        assert_eq!(peer.expect(0, SECURE_OK).text(0).as_bytes(), PASSWORD);
        peer.send_tune(Tune::default());
        peer.expect(0, TUNE_OK);
        peer.expect(0, OPEN);
        peer.send(0, OPEN_OK, args![""]);
        peer.close();
    });
    let config = asking.config().credentials("user", password()).auth_mechanism(Asked);
    Connection::open(config).unwrap().close().unwrap();
    asking.finish();
    check("a challenge");

    // Refused, lost, and never begun.
    let refusing = peer(|peer| {
        peer.expect_protocol_header();
        peer.raw(&start("PLAIN"));
        peer.expect(0, START_OK);
        peer.send(0, CLOSE, args![403, "ACCESS_REFUSED - no", 0, 0]);
        peer.expect(0, CLOSE_OK);
        peer.expect_end();
    });
    let mut errors = vec![open(refusing.config())];
    refusing.finish();
    let hanging_up = peer(|peer| {
        peer.expect_protocol_header();
        peer.raw(&start("PLAIN"));
        peer.expect(0, START_OK);
        peer.rst();
    });
    errors.push(open(hanging_up.config()));
    hanging_up.finish();
    errors.push(open(Config::new().heartbeat(std::time::Duration::from_millis(1))));
    errors.push(Connection::open(with_password("amqp://user:", "@host/?nonsense=1")).unwrap_err());
    check("connections that could not be opened");

    // A new one.
    let serving = peer(|peer| {
        peer.handshake();
        peer.expect(0, UPDATE_SECRET);
        peer.send(0, UPDATE_SECRET_OK, &[]);
        peer.expect(0, UPDATE_SECRET);
        peer.send(0, CLOSE, args![530, "NOT_ALLOWED - no", 10, 70]);
        peer.expect(0, CLOSE_OK);
        peer.expect_end();
    });
    let connection = Connection::open(serving.config()).unwrap();
    connection.update_secret(password(), "the old one expires").unwrap();
    errors.push(connection.update_secret(password(), "again").unwrap_err());
    drop(connection);
    serving.finish();
    check("a new secret");

    let password = std::str::from_utf8(PASSWORD).unwrap();
    for error in errors {
        assert!(!format!("{error} {error:?} {error:#?}").contains(password), "{error}");
    }
    let lines = LINES.lock().unwrap();
    assert!(!lines.is_empty(), "something was logged");
    assert!(!lines.iter().any(|line| line.contains(password)), "{lines:#?}");
}

fn open(config: Config) -> Error {
    Connection::open(config.credentials("user", password())).unwrap_err()
}
