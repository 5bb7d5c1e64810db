//! The real brokers that tests run against, as `tests/run` lists them in the file `LEVERET_TEST_BROKERS`.
//!
//! ```ignore
//! #[test]
//! fn a_queue_can_be_declared() {
//!     on_each_broker(|broker| {
//!         broker.connect().channel()?.queue_declare("q")?;
//!         Ok(())
//!     });
//! }
//! ```
//!
//! Each run of a body has a virtual host of its own, so names may be short, and tests run in parallel.

use std::{
    env, fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{self, Command},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use leveret::{Channel, Config, Connection, Error};

use super::{
    caller::call,
    proxy::Proxy,
    watchdog::{LIMIT, Watchdog, say, test_name},
};

/// The variable that names the file.
pub const VARIABLE: &str = "LEVERET_TEST_BROKERS";

/// guest:guest
const AUTHORIZATION: &str = "Basic Z3Vlc3Q6Z3Vlc3Q=";

/// How long the management API may take.
const MANAGEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// One broker, as a running test sees it: with a virtual host that is the test's own.
#[derive(Debug, Clone)]
pub struct Broker {
    /// For example `rabbitmq-3.10`.
    pub name: String,
    /// For example `3.10.8`.
    pub version: String,
    pub vhost: String,
    address: SocketAddr,
    management: String,
    ctl: String,
}

/// Runs `body` once for each broker. Without brokers it says that it does not, and a broker that was promised
/// and cannot be reached is a failure.
///
/// A body that ends with an error fails, as one that panics does.
pub fn on_each_broker(body: impl Fn(&Broker) -> Result<(), Error> + Sync) {
    on_each_broker_within(LIMIT, body);
}

/// The same for a body that may take longer.
pub fn on_each_broker_within(limit: Duration, body: impl Fn(&Broker) -> Result<(), Error> + Sync) {
    let test = test_name();
    let Some(brokers) = listed() else {
        say_once_what_is_left_out();
        eprintln!("left out, for want of a broker: {test}");
        return;
    };
    for listed in brokers {
        let _watchdog = Watchdog::new(&format!("{test} on {}", listed.name), limit);
        let named = NamedOnPanic(&listed.name);
        let vhost = Vhost::new(listed.clone(), &test);
        call(|| body(&vhost.0)).unwrap_or_else(|error| panic!("on {}: {error} ({error:?})", listed.name));
        drop(vhost);
        drop(named);
    }
}

/// The brokers of the file; `None` when no file is named.
pub fn listed() -> Option<Vec<Broker>> {
    let path = env::var_os(VARIABLE)?;
    let path = Path::new(&path);
    let list = fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{VARIABLE} names {}: {error}", path.display()));
    let brokers: Vec<Broker> = list.lines().map(Broker::from_line).collect();
    assert!(!brokers.is_empty(), "{} lists no broker", path.display());
    Some(brokers)
}

fn say_once_what_is_left_out() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let program = env::args().next().unwrap_or_default();
        let program = Path::new(&program).file_stem().unwrap_or_default().to_string_lossy();
        // Cargo adds a dash and a hash.
        let program = program.rsplit_once('-').map_or(&*program, |(name, _)| name);
        say(&format!("LEFT OUT: what tests/{program}.rs checks with a broker ({VARIABLE} is not set)"));
    });
}

impl Broker {
    fn from_line(line: &str) -> Broker {
        let columns: Vec<&str> = line.split('\t').collect();
        let [name, version, uri, management, ctl] = columns[..] else {
            panic!("not a line of {VARIABLE}: {line:?}")
        };
        let address = uri.rsplit_once('@').expect("credentials in the URI").1;
        Broker {
            name: name.into(),
            version: version.into(),
            vhost: "/".into(),
            address: address.parse().expect("an address in the URI"),
            management: management.trim_start_matches("http://").into(),
            ctl: ctl.into(),
        }
    }

    /// The way to this broker, with all defaults.
    pub fn config(&self) -> Config {
        self.config_through(self.address)
    }

    /// The same by way of a [`Proxy`].
    pub fn config_through(&self, address: SocketAddr) -> Config {
        Config::new().host(address.ip().to_string(), address.port()).vhost(&*self.vhost)
    }

    pub fn uri(&self) -> String {
        self.config().to_uri()
    }

    pub fn connect(&self) -> Connection {
        Connection::open(self.config()).expect("the broker accepts a connection")
    }

    /// A connection and a channel on it.
    pub fn channel(&self) -> (Connection, Channel) {
        let connection = self.connect();
        let channel = connection.channel().expect("a channel");
        (connection, channel)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A proxy in front of this broker.
    pub fn proxy(&self) -> Proxy {
        Proxy::before(self.address)
    }

    /// A user who may do nothing, on no virtual host. Goes with the returned value.
    pub fn user(&self, password: &str) -> User {
        let name = unique("user");
        let body = format!(r#"{{"password":"{password}","tags":""}}"#);
        let status = self.management("PUT", &format!("/api/users/{name}"), &body).map(|(status, _)| status);
        assert_eq!(status.ok(), Some(201));
        User { name, broker: self.clone() }
    }

    /// Runs `rabbitmqctl`; it takes about half a second.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.ctl).args(arguments).output().expect("rabbitmqctl can be run");
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The broker closes all connections to this test's virtual host with 320.
    pub fn close_all_connections(&self, reason: &str) {
        let answer = self.ctl(&["close_all_connections", "--vhost", &self.vhost, reason]);
        assert!(!answer.contains("Closed 0 "), "{answer}");
    }

    /// Asks the management API; gives the status and the body of the answer.
    pub fn management(&self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let mut socket = TcpStream::connect(&self.management)?;
        socket.set_read_timeout(Some(MANAGEMENT_TIMEOUT))?;
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {AUTHORIZATION}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not HTTP: {head:?}")))?;
        Ok((status, body.to_owned()))
    }
}

/// A virtual host that goes with this value, also when the test panics.
struct Vhost(Broker);

impl Vhost {
    fn new(mut broker: Broker, test: &str) -> Vhost {
        broker.vhost = unique(test);
        let path = format!("/api/vhosts/{}", broker.vhost);
        match broker.management("PUT", &path, "") {
            Ok((201, _)) => Vhost(broker),
            other => panic!("no virtual host on {} at {}: {other:?}", broker.name, broker.management),
        }
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        let path = format!("/api/vhosts/{}", self.0.vhost);
        match self.0.management("DELETE", &path, "") {
            Ok((204, _)) => {}
            other if thread::panicking() => eprintln!("the virtual host cannot be deleted: {other:?}"),
            other => panic!("the virtual host cannot be deleted: {other:?}"),
        }
    }
}

/// A user of a broker, for as long as this value lives.
pub struct User {
    pub name: String,
    broker: Broker,
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.broker.management("DELETE", &format!("/api/users/{}", self.name), "");
    }
}

/// Says which broker it was.
struct NamedOnPanic<'a>(&'a str);

impl Drop for NamedOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("this was on {}", self.0);
        }
    }
}

/// A name that nothing else has on this machine, made of letters, digits and `-`, `_`.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let prefix = prefix.replace("::", "-");
    format!("{prefix}-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
