//! The brokers that tests run against: the one in this process, and the RabbitMQ nodes that `tests/run` lists in the
//! file `LEVERET_TEST_BROKERS`.
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
    limits::ample,
    proxy::Proxy,
    watchdog::{LIMIT, Watchdog, say, test_name},
};

/// The variable that names the file.
pub const VARIABLE: &str = "LEVERET_TEST_BROKERS";

/// guest:guest
const AUTHORIZATION: &str = "Basic Z3Vlc3Q6Z3Vlc3Q=";

/// How long the management API may take.
const MANAGEMENT_TIMEOUT: Duration = Duration::from_secs(120);

/// One broker, as a running test sees it: with a virtual host that is the test's own.
#[derive(Debug, Clone)]
pub struct Broker {
    /// For example `rabbitmq-3.10`, or [`IN_PROCESS`].
    pub name: String,
    /// For example `3.10.8`; that of the RabbitMQ whose behaviour it has.
    pub version: String,
    pub vhost: String,
    address: SocketAddr,
    way: Way,
}

/// The name of the broker in this process.
pub const IN_PROCESS: &str = "in-process";

/// What can be done to a broker beside AMQP.
#[derive(Debug, Clone)]
enum Way {
    RabbitMq {
        management: String,
        ctl: String,
    },
    #[cfg(feature = "broker")]
    InProcess(std::sync::Arc<leveret::broker::Broker>),
}

/// Runs `body` once for each broker: the one in this process, and every RabbitMQ there is. One that was promised
/// and cannot be reached is a failure.
///
/// A body that ends with an error fails, as one that panics does.
pub fn on_each_broker(body: impl Fn(&Broker) -> Result<(), Error> + Sync) {
    on_each_broker_within(LIMIT, body);
}

/// The same for a body that may take longer.
pub fn on_each_broker_within(limit: Duration, body: impl Fn(&Broker) -> Result<(), Error> + Sync) {
    let test = test_name();
    let Some(rabbits) = listed() else {
        say_once_what_is_left_out();
        if in_process().is_empty() {
            eprintln!("left out, for want of a broker: {test}");
        }
        return run(&test, limit, in_process(), body);
    };
    run(&test, limit, in_process().into_iter().chain(rabbits).collect(), body);
}

/// Runs `body` on RabbitMQ only, for the reason that is said in the output.
pub fn on_each_rabbitmq(reason: &str, body: impl Fn(&Broker) -> Result<(), Error> + Sync) {
    on_each_rabbitmq_within(reason, LIMIT, body);
}

/// The same for a body that may take longer.
pub fn on_each_rabbitmq_within(
    reason: &str,
    limit: Duration,
    body: impl Fn(&Broker) -> Result<(), Error> + Sync,
) {
    let test = test_name();
    say(&format!("RABBITMQ ONLY: {test}: {reason}"));
    let Some(rabbits) = listed() else {
        say_once_what_is_left_out();
        return;
    };
    run(&test, limit, rabbits, body);
}

fn run(
    test: &str,
    limit: Duration,
    brokers: Vec<Broker>,
    body: impl Fn(&Broker) -> Result<(), Error> + Sync,
) {
    for broker in brokers {
        let _watchdog = Watchdog::new(&format!("{test} on {}", broker.name), limit);
        // Watched as well: a broker in this process stops when it is dropped.
        let listed = broker;
        let named = NamedOnPanic(&listed.name);
        let vhost = Vhost::new(listed.clone(), test);
        call(|| body(&vhost.0)).unwrap_or_else(|error| panic!("on {}: {error} ({error:?})", listed.name));
        drop(vhost);
        drop(named);
    }
}

/// A new broker in this process, so that tests that break it break nothing else.
fn in_process() -> Vec<Broker> {
    #[cfg(feature = "broker")]
    {
        let broker = leveret::broker::Broker::listen("127.0.0.1:0").expect("the in-process broker starts");
        vec![Broker {
            name: IN_PROCESS.into(),
            version: "4.0.5".into(),
            vhost: "/".into(),
            address: broker.address().expect("an address"),
            way: Way::InProcess(std::sync::Arc::new(broker)),
        }]
    }
    #[cfg(not(feature = "broker"))]
    Vec::new()
}

/// The RabbitMQ nodes of the file; `None` when no file is named.
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
        say(&format!("LEFT OUT: what tests/{program}.rs checks with RabbitMQ ({VARIABLE} is not set)"));
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
            way: Way::RabbitMq {
                management: management.trim_start_matches("http://").into(),
                ctl: ctl.into(),
            },
        }
    }

    /// The way to this broker, with limits that only catch what hangs.
    pub fn config(&self) -> Config {
        self.config_through(self.address)
    }

    /// The same by way of a [`Proxy`].
    pub fn config_through(&self, address: SocketAddr) -> Config {
        ample(Config::new()).host(address.ip().to_string(), address.port()).vhost(&*self.vhost)
    }

    /// The way to this broker with all defaults, for a program that shows them.
    pub fn usual_config(&self) -> Config {
        Config::new().host(self.address.ip().to_string(), self.address.port()).vhost(&*self.vhost)
    }

    pub fn uri(&self) -> String {
        self.usual_config().to_uri()
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
        self.named_user(unique("user"), password)
    }

    /// The same, with the name as the password.
    pub fn user_with_own_name_as_password(&self) -> User {
        let name = unique("user");
        self.named_user(name.clone(), &name)
    }

    fn named_user(&self, name: String, password: &str) -> User {
        match &self.way {
            Way::RabbitMq { .. } => {
                let body = format!(r#"{{"password":"{password}","tags":""}}"#);
                let status = self.management("PUT", &format!("/api/users/{name}"), &body);
                assert_eq!(status.expect("the management API answers").0, 201);
            }
            #[cfg(feature = "broker")]
            Way::InProcess(broker) => broker.set_user(leveret::broker::User::new(&name, password)),
        }
        User { name, broker: self.clone() }
    }

    /// A virtual host that `guest` may do everything on.
    pub fn create_vhost(&self, name: &str) {
        match &self.way {
            Way::RabbitMq { management, .. } => {
                match self.management("PUT", &format!("/api/vhosts/{name}"), "") {
                    Ok((201, _)) => {}
                    other => panic!("no virtual host on {} at {management}: {other:?}", self.name),
                }
            }
            #[cfg(feature = "broker")]
            Way::InProcess(broker) => {
                assert!(broker.add_vhost(name), "{name} is there already");
                assert!(broker.set_permissions("guest", leveret::broker::Permissions::all(name)));
            }
        }
    }

    pub fn delete_vhost(&self, name: &str) -> Result<(), String> {
        match &self.way {
            Way::RabbitMq { .. } => match self.management("DELETE", &format!("/api/vhosts/{name}"), "") {
                Ok((204, _)) => Ok(()),
                other => Err(format!("the virtual host cannot be deleted: {other:?}")),
            },
            #[cfg(feature = "broker")]
            Way::InProcess(broker) if broker.remove_vhost(name) => Ok(()),
            #[cfg(feature = "broker")]
            Way::InProcess(_) => Err(format!("{name} is not there")),
        }
    }

    pub fn has_vhost(&self, name: &str) -> bool {
        match &self.way {
            Way::RabbitMq { .. } => {
                let path = format!("/api/vhosts/{name}");
                match self.management("GET", &path, "").expect("the management API answers").0 {
                    200 => true,
                    404 => false,
                    other => panic!("{path}: {other}"),
                }
            }
            #[cfg(feature = "broker")]
            Way::InProcess(broker) => broker.vhosts().iter().any(|known| known == name),
        }
    }

    /// Runs `rabbitmqctl`; it takes about half a second. For tests on RabbitMQ only.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let ctl = match &self.way {
            Way::RabbitMq { ctl, .. } => ctl,
            #[cfg(feature = "broker")]
            Way::InProcess(_) => panic!("{} has no rabbitmqctl", self.name),
        };
        let output = Command::new(ctl).args(arguments).output().expect("rabbitmqctl can be run");
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The broker closes all connections to this test's virtual host with 320.
    pub fn close_all_connections(&self, reason: &str) {
        match &self.way {
            Way::RabbitMq { .. } => {
                let answer = self.ctl(&["close_all_connections", "--vhost", &self.vhost, reason]);
                assert!(!answer.contains("Closed 0 "), "{answer}");
            }
            #[cfg(feature = "broker")]
            Way::InProcess(broker) => {
                // As RabbitMQ words it.
                let closed =
                    broker.close_connections(&self.vhost, &format!("CLOSED_BY_MANAGEMENT - {reason}"));
                assert_ne!(closed, 0, "no connection to {}", self.vhost);
            }
        }
    }

    /// Raises the memory alarm of the whole broker, or clears it.
    pub fn set_alarm(&self, alarm: bool) {
        match &self.way {
            Way::RabbitMq { .. } => {
                self.ctl(&["set_vm_memory_high_watermark", if alarm { "0.0000001" } else { "0.4" }]);
            }
            #[cfg(feature = "broker")]
            Way::InProcess(broker) => broker.block(alarm),
        }
    }

    /// Stops the broker and starts it again, on the same ports.
    pub fn restart(&self) {
        match &self.way {
            Way::RabbitMq { .. } => drop(self.ctl(&["restart"])),
            #[cfg(feature = "broker")]
            Way::InProcess(broker) => broker.restart().expect("the in-process broker starts again"),
        }
    }

    /// A queue's arguments as JSON, without the braces.
    pub fn arguments_of(&self, queue: &str) -> String {
        match &self.way {
            Way::RabbitMq { .. } => {
                let path = format!("/api/queues/{}/{queue}", self.vhost);
                let (status, body) = self.management("GET", &path, "").expect("the management API answers");
                assert_eq!(status, 200, "{body}");
                let (_, arguments) = body.split_once("\"arguments\":{").expect("arguments");
                arguments.split('}').next().unwrap_or_default().to_owned()
            }
            #[cfg(feature = "broker")]
            Way::InProcess(broker) => {
                let queues = broker.queues(&self.vhost);
                let queue = queues.iter().find(|known| known.name == queue).expect("the queue is there");
                let value = |value: &leveret::FieldValue| match (value.as_str(), value.as_bool()) {
                    (Some(text), _) => format!("{text:?}"),
                    (_, Some(truth)) => truth.to_string(),
                    _ => value.as_i64().expect("an integer").to_string(),
                };
                let each: Vec<_> =
                    queue.arguments.iter().map(|(name, it)| format!("{name:?}:{}", value(it))).collect();
                each.join(",")
            }
        }
    }

    /// Asks the management API; gives the status and the body of the answer. For tests on RabbitMQ only.
    pub fn management(&self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let management = match &self.way {
            Way::RabbitMq { management, .. } => management,
            #[cfg(feature = "broker")]
            Way::InProcess(_) => panic!("{} has no management API", self.name),
        };
        let mut socket = TcpStream::connect(management)?;
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
        broker.create_vhost(&broker.vhost);
        Vhost(broker)
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        match self.0.delete_vhost(&self.0.vhost) {
            Ok(()) => {}
            Err(error) if thread::panicking() => eprintln!("{error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A user of a broker, for as long as this value lives.
pub struct User {
    pub name: String,
    broker: Broker,
}

impl User {
    /// Gives permissions on the virtual host of the test: patterns of names, in which a star stands for anything.
    pub fn allow(&self, configure: &[&str], write: &[&str], read: &[&str]) {
        let vhost = &self.broker.vhost;
        match &self.broker.way {
            Way::RabbitMq { .. } => {
                let expression = |patterns: &[&str]| {
                    format!("^({})$", patterns.join("|").replace('.', "[.]").replace('*', ".*"))
                };
                let [configure, write, read] = [configure, write, read].map(expression);
                let body = format!(r#"{{"configure":"{configure}","write":"{write}","read":"{read}"}}"#);
                let path = format!("/api/permissions/{vhost}/{}", self.name);
                let (status, answer) = self.broker.management("PUT", &path, &body).expect("it answers");
                assert_eq!(status, 201, "{answer}");
            }
            #[cfg(feature = "broker")]
            Way::InProcess(broker) => {
                let [configure, write, read] =
                    [configure, write, read].map(|patterns| patterns.iter().copied().map(String::from));
                let permissions = leveret::broker::Permissions::new(vhost);
                let permissions = permissions.configure(configure).write(write).read(read);
                assert!(broker.set_permissions(&self.name, permissions));
            }
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        match &self.broker.way {
            Way::RabbitMq { .. } => {
                let _ = self.broker.management("DELETE", &format!("/api/users/{}", self.name), "");
            }
            #[cfg(feature = "broker")]
            Way::InProcess(broker) => _ = broker.remove_user(&self.name),
        }
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
