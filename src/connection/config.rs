//! Everything that can be set about a connection, as one plain value.
//!
//! Owns the fields, their defaults with the reason for each, and the check of their ranges. How a [`Config`] is
//! read from a URI and written as one is the job of `uri`; what the values do is the job of their users.
//!
//! Invariant: nothing here opens a socket, and neither `Debug` nor `Display` shows a password.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use super::{
    tap::{Frame, FrameTap},
    tls_options::TlsOptions,
    uri::{self, Passwords},
};
use crate::{
    Error, Result,
    protocol::sasl::{Credentials, Mechanism, SaslMechanism, Secret},
    transport::tap::{ByteFilter, Direction},
};

/// How to reach a broker and how the connection behaves.
///
/// It starts with defaults that suit a service in a data centre; every field can be set by the method of the
/// same name or in a URI:
///
/// ```
/// use std::time::Duration;
/// use leveret::Config;
///
/// let in_code = Config::new().host("mq1", 5672).credentials("app", "secret").heartbeat(Duration::from_secs(5));
/// let as_text: Config = "amqp://app:secret@mq1/%2F?heartbeat=5".parse()?;
/// assert_eq!(in_code.to_uri(), as_text.to_uri());
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// # The URI
///
/// `amqp://user:password@host:port/vhost?key=value&key=value`, or `amqps:` for TLS, as RabbitMQ's URI
/// specification defines it:
///
/// * Every part may be left out: `amqp://` is `amqp://guest:guest@localhost:5672/%2F`. The port is 5671 for
///   `amqps`.
/// * Empty is not the same as left out: `amqp://:@/` has an empty user, an empty password and an empty virtual
///   host. `amqp://host` means the virtual host `/`, `amqp://host/` the one whose name is empty.
/// * Any character can be written as `%` and two hexadecimal digits; those that are not letters, digits or one of
///   `-._~!$&'()*+;=` must be. A virtual host that contains a slash needs `%2F`. A `+` is a plus.
/// * An IPv6 address stands in brackets: `amqp://[::1]:5672`.
/// * Several hosts, tried in order, are separated by commas: `amqp://mq1,mq2:5673,[::1]/v`. This is an addition
///   of this crate.
///
/// The known keys, each allowed once except `auth_mechanism`:
///
/// | key | or | value | sets |
/// |---|---|---|---|
/// | `heartbeat` | | seconds, 0 = off | `heartbeat` |
/// | `connection_timeout` | `connectionTimeout` | milliseconds | `connect_timeout` |
/// | `handshake_timeout` | `handshakeTimeout` | milliseconds | `handshake_timeout` |
/// | `rpc_timeout` | `rpcTimeout` | milliseconds | `call_timeout` |
/// | `close_timeout` | `closeTimeout` | milliseconds | `close_timeout` |
/// | `drop_timeout` | `dropTimeout` | milliseconds | `drop_timeout` |
/// | `publish_timeout` | `publishTimeout` | milliseconds | `publish_timeout` |
/// | `confirm_timeout` | `confirmTimeout` | milliseconds | `confirm_timeout` |
/// | `max_outstanding_confirms` | `maxOutstandingConfirms` | messages, 0 = no limit | `max_outstanding_confirms` |
/// | `allow_immediate` | `allowImmediate` | `true` or `false` | `allow_immediate` |
/// | `heartbeat_send_percent` | `heartbeatSendPercent` | percent of the interval | `heartbeat_send_percent` |
/// | `heartbeat_dead_percent` | `heartbeatDeadPercent` | percent of the interval | `heartbeat_dead_percent` |
/// | `channel_max` | `channelMax` | channels, 0 = no limit | `channel_max` |
/// | `frame_max` | `frameMax` | bytes, 0 = no limit | `frame_max` |
/// | `prefetch` | | messages, 0 = no limit | `prefetch` |
/// | `outgoing_buffer` | `outgoingBuffer` | bytes | `outgoing_buffer` |
/// | `incoming_buffer` | `incomingBuffer` | bytes | `incoming_buffer` |
/// | `max_message_size` | `maxMessageSize` | bytes | `max_message_size` |
/// | `auth_mechanism` | `authMechanism` | `plain`, `amqplain`, `external` or `anonymous`; repeat it for a list | `auth_mechanisms` |
/// | `connection_name` | `connectionName` | any text | `connection_name` |
/// | `tcp_nodelay` | `tcpNodelay` | `true` or `false` | `tcp_nodelay` |
/// | `keepalive` | | seconds, 0 = off | `keepalive` |
/// | `bind_address` | `bindAddress` | an IP address | `bind_address` |
/// | `send_buffer` | `sendBuffer` | bytes | `send_buffer` |
/// | `receive_buffer` | `receiveBuffer` | bytes | `receive_buffer` |
/// | `cacertfile` | | a path; `amqps` only | `tls` |
/// | `certfile` | | a path; `amqps` only | `tls` |
/// | `keyfile` | | a path; `amqps` only | `tls` |
/// | `password` | | the key's passphrase; `amqps` only | `tls` |
/// | `verify` | | `verify_peer` or `verify_none`; `amqps` only | `tls` |
/// | `server_name_indication` | `serverNameIndication` | a host name, or `disable`; `amqps` only | `tls` |
/// | `recovery` | | `off`; automatic recovery is not available yet | |
///
/// An unknown key, a key given twice and a value out of range are errors, so that a typing mistake does not pass
/// as a setting.
///
/// # Printing
///
/// `Display` is the URI with `***` for the passwords; settings with their default value are left out.
/// [`to_uri`](Config::to_uri) has the passwords.
#[derive(Debug, Clone)]
#[non_exhaustive]
#[must_use = "a configuration does nothing until a connection is opened with it"]
pub struct Config {
    /// The brokers to try, in this order, until one can be connected to. Default: `localhost:5672`, where a
    /// fresh broker listens. At least one.
    pub addresses: Vec<Address>,

    /// How TLS is set up; `None` (the default) means plain TCP, because a fresh broker has no certificate.
    /// `amqps:` in a URI sets it. Note that the port does not change with this field. Needs the feature `tls`, which
    /// is on by default.
    pub tls: Option<TlsOptions>,

    /// User name and password. Default: `guest` / `guest`, the account of a fresh broker.
    pub credentials: Credentials,

    /// The virtual host. Default: `/`, which every broker has. At most 255 bytes.
    pub vhost: String,

    /// The authentication mechanisms that may be used, the favourite first: the first one that the broker offers
    /// is taken. Default: `PLAIN`, then `AMQPLAIN`, because those two need nothing but the credentials and every
    /// broker has one of them. At least one.
    pub auth_mechanisms: Vec<Arc<dyn SaslMechanism>>,

    /// A name for this connection, which the broker shows in its lists and logs. Default: none, because only the
    /// application knows a telling one. Setting it is a good idea.
    pub connection_name: Option<String>,

    /// The heartbeat interval that is proposed to the broker; the smaller of both sides is used. A peer that is
    /// silent for two intervals is given up. Default: 10 seconds, so that a lost peer is noticed within 20, while
    /// a short pause of the network or of a virtual machine does not look like a loss. Zero turns heartbeats off
    /// (a dead peer may then go unnoticed for hours). Otherwise whole seconds, 1 to 65535, because that is
    /// what the protocol can say.
    pub heartbeat: Duration,

    /// How long connecting to *each* address may take. Default: 10 seconds, enough for three lost SYN packets
    /// (they are repeated after 1, 2 and 4 seconds). 1 ms to 49 days.
    pub connect_timeout: Duration,

    /// How long the broker may take for the handshake, from the first byte to the open virtual host, including that
    /// of TLS. Default: 10 seconds, RabbitMQ's own limit. 1 ms to 49 days.
    pub handshake_timeout: Duration,

    /// How long a call (such as `queue_declare`) may wait for the broker's answer. Default: 20 seconds, twice
    /// the heartbeat: a dead connection is then reported as such and not as a slow call. 1 ms to 49 days.
    pub call_timeout: Duration,

    /// How long `close()` may wait for the broker. Default: 5 seconds: nobody waits for the result of a close,
    /// but what was published before it needs time to go out. 1 ms to 49 days.
    pub close_timeout: Duration,

    /// How long dropping the last handle of a connection, or a channel, may wait for the broker. Default: 2
    /// seconds, shorter than `close_timeout` because a Drop cannot say that it is slow. Up to 49 days; zero does
    /// not wait for it at all.
    pub drop_timeout: Duration,

    /// How long a publish may wait for room in the outgoing buffer when the broker takes messages too slowly, or
    /// not at all. Default: 20 seconds, the same patience as for a call. Up to 49 days; zero does not wait at all.
    pub publish_timeout: Duration,

    /// How long to wait for the broker to confirm a published message, where no other limit is given. Default: 30
    /// seconds: a broker that writes to disk or to several nodes answers late, and giving up leaves the outcome
    /// unknown. Up to 49 days.
    pub confirm_timeout: Duration,

    /// How many publishes may be unconfirmed on a channel in confirm mode before the next one waits (as long as
    /// `publish_timeout`). Default: 1000, enough to keep a broker busy, and few to publish again after a loss.
    /// Zero means no limit.
    pub max_outstanding_confirms: usize,

    /// Whether messages may be published with `immediate`. Default: false, because RabbitMQ closes the connection
    /// for it.
    pub allow_immediate: bool,

    /// After how much of the heartbeat interval without other traffic a heartbeat is sent, in percent. Default: 50,
    /// so that one may be late or lost on its way before the broker gives up. From 1 to 100.
    pub heartbeat_send_percent: u16,

    /// After how much of the heartbeat interval without a byte from the broker, or without being able to write one,
    /// the connection is given up, in percent. Default: 200, the protocol's own. From 100 to 1000.
    pub heartbeat_dead_percent: u16,

    /// The largest number of channels to ask the broker for; the smaller of both sides is used. Default: 2047,
    /// RabbitMQ's own. Zero accepts what the broker proposes.
    pub channel_max: u16,

    /// The largest frame in bytes to ask the broker for; the smaller of both sides is used. Longer messages are
    /// cut into several frames. Default: 131072 (128 KiB), RabbitMQ's own: larger ones gain little, and delay
    /// other channels. Zero accepts what the broker proposes; otherwise at least 4096, the protocol's minimum
    /// (RabbitMQ 4.3 hangs up on less than 8192).
    pub frame_max: u32,

    /// How many bytes may wait to be written before publishers are made to wait. Default: 16 MiB: a second's
    /// worth of a fast publisher, little for a server's memory. At least 4096.
    pub outgoing_buffer: usize,

    /// How many bytes of messages may wait for slow consumers before reading from the socket pauses. Default:
    /// 16 MiB, as for the other direction. At least 4096.
    pub incoming_buffer: usize,

    /// The largest message body in bytes that is accepted from the broker; a larger one ends the connection.
    /// Default: 128 MiB, the limit of RabbitMQ up to version 3 (version 4 has 16 MiB), so that a broken or
    /// hostile peer cannot fill the memory. At least 1.
    pub max_message_size: u64,

    /// How many messages the broker may deliver ahead of their acks. It is set on a channel before its first
    /// consumer with acks, unless the program has set one itself. Default: 250, which keeps a consumer busy in a
    /// usual network but leaves the rest of a long queue to others. Zero means no limit: the whole queue may then
    /// arrive at the first consumer.
    pub prefetch: u16,

    /// Whether small packets are sent at once (TCP_NODELAY). Default: true. This crate collects small writes
    /// itself, so the kernel's delay would only slow down calls.
    pub tcp_nodelay: bool,

    /// How long the connection may be idle before TCP probes whether the peer still exists. Default: 60 seconds;
    /// this is for connections with heartbeats turned off, and keeps the entries of firewalls alive. `None` turns
    /// it off. 1 to 32767 whole seconds, the kernel's limit.
    pub keepalive: Option<Duration>,

    /// The local address to connect from. Default: `None`, the operating system chooses.
    pub bind_address: Option<IpAddr>,

    /// The size of the kernel's send buffer in bytes. Default: `None`, because the kernel adapts the size itself
    /// as long as nobody sets it. 1 to 2147483647.
    pub send_buffer: Option<usize>,

    /// The size of the kernel's receive buffer in bytes. Default: `None`, as for `send_buffer`.
    pub receive_buffer: Option<usize>,

    /// What sees the bytes of the connection, from the first one on; see
    /// [`Connection::set_byte_filter`](crate::Connection::set_byte_filter). **It sees the credentials.** Default: none.
    pub byte_filter: Option<ByteFilter>,

    /// What sees the frames of the connection, from the first one on; see
    /// [`Connection::set_frame_tap`](crate::Connection::set_frame_tap). Default: none.
    pub frame_tap: Option<FrameTap>,
}

/// One broker's host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Address {
    /// A name or an IP address; an IPv6 address without brackets.
    pub host: String,
    /// The TCP port. Not zero.
    pub port: u16,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            addresses: vec![Address::new("localhost", 5672)],
            tls: None,
            credentials: Credentials::default(),
            vhost: "/".to_owned(),
            auth_mechanisms: vec![Arc::new(Mechanism::Plain), Arc::new(Mechanism::AmqPlain)],
            connection_name: None,
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(20),
            close_timeout: Duration::from_secs(5),
            drop_timeout: Duration::from_secs(2),
            publish_timeout: Duration::from_secs(20),
            confirm_timeout: Duration::from_secs(30),
            max_outstanding_confirms: 1000,
            allow_immediate: false,
            heartbeat_send_percent: 50,
            heartbeat_dead_percent: 200,
            channel_max: 2047,
            frame_max: 131_072,
            outgoing_buffer: 16 << 20,
            incoming_buffer: 16 << 20,
            max_message_size: 128 << 20,
            prefetch: 250,
            tcp_nodelay: true,
            keepalive: Some(Duration::from_secs(60)),
            bind_address: None,
            send_buffer: None,
            receive_buffer: None,
            byte_filter: None,
            frame_tap: None,
        }
    }
}

impl Config {
    /// The defaults: `amqp://guest:guest@localhost:5672/%2F`.
    pub fn new() -> Config {
        Config::default()
    }

    /// The complete URI, **including the passwords**: for storing it or handing it to another program, not for a
    /// log. Use `Display` for that. Settings with their default value are left out.
    ///
    /// Parsing the result gives this configuration again, except for what a URI cannot say: mechanisms that are
    /// not [`Mechanism`]s, paths that are not UTF-8, filters and taps, and fractions of a millisecond (rounded up).
    ///
    /// ```
    /// let config = leveret::Config::new().credentials("app", "p/w").vhost("shop");
    /// assert_eq!(config.to_uri(), "amqp://app:p%2Fw@localhost:5672/shop");
    /// assert_eq!(config.to_string(), "amqp://app:***@localhost:5672/shop");
    /// ```
    #[must_use]
    pub fn to_uri(&self) -> String {
        uri::format(self, Passwords::Shown)
    }

    /// Sets the only address, instead of the default one. See [`fallback_host`](Config::fallback_host) for more.
    pub fn host(mut self, host: impl Into<String>, port: u16) -> Config {
        self.addresses = vec![Address::new(host, port)];
        self
    }

    /// Adds an address that is tried when those before it cannot be connected to.
    pub fn fallback_host(mut self, host: impl Into<String>, port: u16) -> Config {
        self.addresses.push(Address::new(host, port));
        self
    }

    /// Turns TLS on. The port stays as it is; brokers usually have TLS on 5671.
    pub fn tls(mut self, tls: TlsOptions) -> Config {
        self.tls = Some(tls);
        self
    }

    /// Sets user name and password (or a token in its place).
    pub fn credentials(mut self, username: impl Into<String>, password: impl Into<Secret>) -> Config {
        self.credentials = Credentials::new(username, password);
        self
    }

    /// Sets the virtual host.
    pub fn vhost(mut self, vhost: impl Into<String>) -> Config {
        self.vhost = vhost.into();
        self
    }

    /// Allows this authentication mechanism and no other. For a list, set the field `auth_mechanisms`.
    pub fn auth_mechanism(mut self, mechanism: impl SaslMechanism + 'static) -> Config {
        self.auth_mechanisms = vec![Arc::new(mechanism)];
        self
    }

    /// Sets the name under which the broker shows this connection.
    pub fn connection_name(mut self, name: impl Into<String>) -> Config {
        self.connection_name = Some(name.into());
        self
    }

    /// Sets the heartbeat interval: whole seconds, or zero to turn heartbeats off.
    pub fn heartbeat(mut self, interval: Duration) -> Config {
        self.heartbeat = interval;
        self
    }

    /// Sets how long connecting to each address may take.
    pub fn connect_timeout(mut self, limit: Duration) -> Config {
        self.connect_timeout = limit;
        self
    }

    /// Sets how long the handshake may take.
    pub fn handshake_timeout(mut self, limit: Duration) -> Config {
        self.handshake_timeout = limit;
        self
    }

    /// Sets how long a call may wait for the broker's answer.
    pub fn call_timeout(mut self, limit: Duration) -> Config {
        self.call_timeout = limit;
        self
    }

    /// Sets how long `close()` may wait for the broker.
    pub fn close_timeout(mut self, limit: Duration) -> Config {
        self.close_timeout = limit;
        self
    }

    /// Sets how long dropping a handle may wait for the broker; zero does not wait.
    pub fn drop_timeout(mut self, limit: Duration) -> Config {
        self.drop_timeout = limit;
        self
    }

    /// Sets how long a publish may wait for room in the outgoing buffer; zero does not wait.
    pub fn publish_timeout(mut self, limit: Duration) -> Config {
        self.publish_timeout = limit;
        self
    }

    /// Sets how long to wait for a confirm.
    pub fn confirm_timeout(mut self, limit: Duration) -> Config {
        self.confirm_timeout = limit;
        self
    }

    /// Sets how many publishes may be unconfirmed on a channel; zero means no limit.
    pub fn max_outstanding_confirms(mut self, publishes: usize) -> Config {
        self.max_outstanding_confirms = publishes;
        self
    }

    /// Sets whether messages may be published with `immediate`.
    pub fn allow_immediate(mut self, allow: bool) -> Config {
        self.allow_immediate = allow;
        self
    }

    /// Sets after how much of the interval a heartbeat is sent, in percent.
    pub fn heartbeat_send_percent(mut self, percent: u16) -> Config {
        self.heartbeat_send_percent = percent;
        self
    }

    /// Sets after how much of the interval a silent broker is given up, in percent.
    pub fn heartbeat_dead_percent(mut self, percent: u16) -> Config {
        self.heartbeat_dead_percent = percent;
        self
    }

    /// Sets the largest number of channels to ask for; zero accepts what the broker proposes.
    pub fn channel_max(mut self, channels: u16) -> Config {
        self.channel_max = channels;
        self
    }

    /// Sets the largest frame in bytes to ask for; zero accepts what the broker proposes.
    pub fn frame_max(mut self, bytes: u32) -> Config {
        self.frame_max = bytes;
        self
    }

    /// Sets how many bytes may wait to be written.
    pub fn outgoing_buffer(mut self, bytes: usize) -> Config {
        self.outgoing_buffer = bytes;
        self
    }

    /// Sets how many bytes of messages may wait for slow consumers.
    pub fn incoming_buffer(mut self, bytes: usize) -> Config {
        self.incoming_buffer = bytes;
        self
    }

    /// Sets the largest message body in bytes that is accepted from the broker.
    pub fn max_message_size(mut self, bytes: u64) -> Config {
        self.max_message_size = bytes;
        self
    }

    /// Sets how many messages may be delivered ahead of their acks; zero means no limit.
    pub fn prefetch(mut self, messages: u16) -> Config {
        self.prefetch = messages;
        self
    }

    /// Sets whether small packets are sent at once.
    pub fn tcp_nodelay(mut self, nodelay: bool) -> Config {
        self.tcp_nodelay = nodelay;
        self
    }

    /// Sets after how much idle time TCP probes the peer; `None` never.
    pub fn keepalive(mut self, idle: impl Into<Option<Duration>>) -> Config {
        self.keepalive = idle.into();
        self
    }

    /// Sets the local address to connect from.
    pub fn bind_address(mut self, address: impl Into<IpAddr>) -> Config {
        self.bind_address = Some(address.into());
        self
    }

    /// Sets the size of the kernel's send buffer in bytes.
    pub fn send_buffer(mut self, bytes: usize) -> Config {
        self.send_buffer = Some(bytes);
        self
    }

    /// Sets the size of the kernel's receive buffer in bytes.
    pub fn receive_buffer(mut self, bytes: usize) -> Config {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Sets the filter that sees the bytes of the connection, **the credentials included**.
    pub fn byte_filter(mut self, filter: impl Fn(Direction, &mut [u8]) + Send + Sync + 'static) -> Config {
        self.byte_filter = Some(ByteFilter::new(filter));
        self
    }

    /// Sets the tap that sees the frames of the connection.
    pub fn frame_tap(mut self, tap: impl Fn(&Frame<'_>) + Send + Sync + 'static) -> Config {
        self.frame_tap = Some(FrameTap::new(tap));
        self
    }

    /// Checks every range that is written at the fields.
    ///
    /// Each check concerns one setting only: the URI parser blames the key that it has just applied.
    pub(crate) fn validate(&self) -> Result<()> {
        self.validate_identity()?;
        self.validate_limits()?;
        self.validate_socket()
    }

    fn validate_identity(&self) -> Result<()> {
        require(!self.addresses.is_empty(), "there is no address to connect to")?;
        let complete = |address: &Address| !address.host.is_empty() && address.port != 0;
        require(self.addresses.iter().all(complete), "an address has an empty host or the port 0")?;
        require(self.credentials.username.len() <= 255, "the user name is longer than 255 bytes")?;
        require(self.vhost.len() <= 255, "the name of the virtual host is longer than 255 bytes")?;
        require(!self.auth_mechanisms.is_empty(), "there is no authentication mechanism")?;
        self.tls.as_ref().map_or(Ok(()), TlsOptions::validate)
    }

    fn validate_limits(&self) -> Result<()> {
        let heartbeat = self.heartbeat;
        require(
            is_whole_seconds(heartbeat) && heartbeat.as_secs() <= 65535,
            format_args!("the heartbeat must be 0 or 1 to 65535 whole seconds, not {heartbeat:?}"),
        )?;
        let (send, dead) = (self.heartbeat_send_percent, self.heartbeat_dead_percent);
        require(
            (1..=100).contains(&send),
            format_args!("heartbeat_send_percent must be from 1 to 100, not {send}"),
        )?;
        require(
            (100..=1000).contains(&dead),
            format_args!("heartbeat_dead_percent must be from 100 to 1000, not {dead}"),
        )?;
        let timeouts = [
            ("connect_timeout", self.connect_timeout, SHORTEST_WAIT),
            ("handshake_timeout", self.handshake_timeout, SHORTEST_WAIT),
            ("call_timeout", self.call_timeout, SHORTEST_WAIT),
            ("close_timeout", self.close_timeout, SHORTEST_WAIT),
            ("drop_timeout", self.drop_timeout, Duration::ZERO),
            ("publish_timeout", self.publish_timeout, Duration::ZERO),
            ("confirm_timeout", self.confirm_timeout, SHORTEST_WAIT),
        ];
        for (name, limit, shortest) in timeouts {
            require(
                (shortest..=LONGEST_WAIT).contains(&limit),
                format_args!("{name} must be from {shortest:?} to {LONGEST_WAIT:?}, not {limit:?}"),
            )?;
        }
        let frame_max = self.frame_max;
        require(
            frame_max == 0 || frame_max >= 4096,
            format_args!("frame_max must be 0 or at least 4096 bytes, not {frame_max}"),
        )?;
        for (name, bytes) in
            [("outgoing_buffer", self.outgoing_buffer), ("incoming_buffer", self.incoming_buffer)]
        {
            require(bytes >= 4096, format_args!("{name} must be at least 4096 bytes, not {bytes}"))?;
        }
        require(self.max_message_size > 0, "max_message_size must be at least 1 byte")
    }

    fn validate_socket(&self) -> Result<()> {
        let idle = self.keepalive.unwrap_or(Duration::from_secs(1));
        require(
            is_whole_seconds(idle) && (1..=32767).contains(&idle.as_secs()),
            format_args!("keepalive must be 1 to 32767 whole seconds or none, not {idle:?}"),
        )?;
        for (name, size) in [("send_buffer", self.send_buffer), ("receive_buffer", self.receive_buffer)] {
            require(
                size.is_none_or(|bytes| (1..=LARGEST_SOCKET_BUFFER).contains(&bytes)),
                format_args!("{name} must be from 1 to {LARGEST_SOCKET_BUFFER} bytes"),
            )?;
        }
        Ok(())
    }
}

/// Zero would give up before it has begun.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// 49 days: far beyond any sensible wait, and small enough that adding it to a clock cannot overflow.
const LONGEST_WAIT: Duration = Duration::from_millis(u32::MAX as u64);

/// The kernel takes the size as a C `int`.
const LARGEST_SOCKET_BUFFER: usize = i32::MAX as usize;

fn is_whole_seconds(duration: Duration) -> bool {
    duration.subsec_nanos() == 0
}

pub(super) fn require(holds: bool, complaint: impl fmt::Display) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::invalid(complaint.to_string())) }
}

impl Address {
    /// An address from a host name or IP address and a port. Brackets around an IPv6 address are removed.
    pub fn new(host: impl Into<String>, port: u16) -> Address {
        let host = host.into();
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        Address { host: bracketed.map(str::to_owned).unwrap_or(host), port }
    }

    /// An IPv6 address, possibly with a zone as in `fe80::1%eth0`, needs brackets when a port follows it.
    pub(crate) fn is_ipv6(&self) -> bool {
        match self.host.split_once('%') {
            Some((address, zone)) => !zone.is_empty() && address.parse::<Ipv6Addr>().is_ok(),
            None => self.host.parse::<Ipv6Addr>().is_ok(),
        }
    }
}

/// `host:port`, or `[host]:port` for an IPv6 address.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { host, port } = self;
        if self.is_ipv6() { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The URI with `***` in place of the passwords.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&uri::format(self, Passwords::Hidden))
    }
}

/// Reads a URI. The error is always [`Error::Invalid`]; it says what is wrong and never contains a password.
impl FromStr for Config {
    type Err = Error;

    fn from_str(uri: &str) -> Result<Config> {
        uri::parse(uri)
    }
}

impl From<&Config> for Config {
    fn from(config: &Config) -> Config {
        config.clone()
    }
}

impl TryFrom<&str> for Config {
    type Error = Error;

    fn try_from(uri: &str) -> Result<Config> {
        uri::parse(uri)
    }
}

impl TryFrom<&String> for Config {
    type Error = Error;

    fn try_from(uri: &String) -> Result<Config> {
        uri::parse(uri)
    }
}

impl TryFrom<String> for Config {
    type Error = Error;

    fn try_from(uri: String) -> Result<Config> {
        // The text may hold a password and nobody needs it any more: wipe it.
        uri::parse(Secret::from(uri).expose())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::tls_options::ServerName;
    use std::path::PathBuf;

    fn complaint(config: Config) -> String {
        match config.validate().unwrap_err() {
            Error::Invalid(text) => text.to_string(),
            other => panic!("{other:?}"),
        }
    }

    const SECONDS: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn the_defaults_are_those_that_are_promised() {
        let config = Config::new();
        assert_eq!(config.to_uri(), "amqp://guest:guest@localhost:5672/%2F");
        assert_eq!(config.heartbeat, SECONDS(10));
        assert_eq!((config.connect_timeout, config.handshake_timeout), (SECONDS(10), SECONDS(10)));
        assert_eq!((config.call_timeout, config.publish_timeout), (SECONDS(20), SECONDS(20)));
        assert_eq!((config.close_timeout, config.drop_timeout), (SECONDS(5), SECONDS(2)));
        assert_eq!((config.confirm_timeout, config.max_outstanding_confirms), (SECONDS(30), 1000));
        assert_eq!((config.heartbeat_send_percent, config.heartbeat_dead_percent), (50, 200));
        assert!(!config.allow_immediate);
        assert_eq!((config.channel_max, config.frame_max, config.prefetch), (2047, 131_072, 250));
        assert_eq!((config.outgoing_buffer, config.incoming_buffer), (16_777_216, 16_777_216));
        assert_eq!(config.max_message_size, 134_217_728);
        assert!(config.tcp_nodelay && config.keepalive == Some(SECONDS(60)));
        let names: Vec<&str> = config.auth_mechanisms.iter().map(|mechanism| mechanism.name()).collect();
        assert_eq!(names, ["PLAIN", "AMQPLAIN"]);
        config.validate().unwrap();
    }

    #[test]
    fn setters_set_their_field() {
        let config = Config::new()
            .host("a", 1)
            .fallback_host("[::1]", 2)
            .tls(TlsOptions::default())
            .credentials("user", "password")
            .vhost("v")
            .auth_mechanism(Mechanism::External)
            .connection_name("name")
            .heartbeat(SECONDS(1))
            .connect_timeout(SECONDS(2))
            .handshake_timeout(SECONDS(3))
            .call_timeout(SECONDS(4))
            .close_timeout(SECONDS(6))
            .drop_timeout(SECONDS(7))
            .publish_timeout(SECONDS(8))
            .confirm_timeout(SECONDS(12))
            .max_outstanding_confirms(13)
            .allow_immediate(true)
            .heartbeat_send_percent(14)
            .heartbeat_dead_percent(150)
            .channel_max(9)
            .frame_max(5000)
            .outgoing_buffer(5001)
            .incoming_buffer(5002)
            .max_message_size(5003)
            .prefetch(10)
            .tcp_nodelay(false)
            .keepalive(SECONDS(11))
            .bind_address([127, 0, 0, 1])
            .send_buffer(5004)
            .receive_buffer(5005);
        config.validate().unwrap();
        assert_eq!(
            config.to_uri(),
            "amqps://user:password@a:1,[::1]:2/v?heartbeat=1&connection_timeout=2000&handshake_timeout=3000\
             &rpc_timeout=4000&close_timeout=6000&drop_timeout=7000&publish_timeout=8000\
             &confirm_timeout=12000&max_outstanding_confirms=13&allow_immediate=true\
             &heartbeat_send_percent=14&heartbeat_dead_percent=150&channel_max=9&frame_max=5000&prefetch=10&outgoing_buffer=5001&incoming_buffer=5002&max_message_size=5003\
             &auth_mechanism=external&connection_name=name&tcp_nodelay=false&keepalive=11\
             &bind_address=127.0.0.1&send_buffer=5004&receive_buffer=5005"
        );
        assert_eq!(config.keepalive(None).keepalive, None);
    }

    #[test]
    fn host_replaces_and_fallback_host_adds() {
        let config = Config::new().host("a", 1).fallback_host("b", 2);
        assert_eq!(config.addresses, [Address::new("a", 1), Address::new("b", 2)]);
        assert_eq!(config.host("c", 3).addresses, [Address::new("c", 3)]);
    }

    #[test]
    fn addresses_print_with_brackets_where_needed() {
        for (host, printed) in [
            ("mq1", "mq1:5672"),
            ("127.0.0.1", "127.0.0.1:5672"),
            ("::1", "[::1]:5672"),
            ("[::1]", "[::1]:5672"),
            ("fe80::1%eth0", "[fe80::1%eth0]:5672"),
            ("fe80::1%", "fe80::1%:5672"),
        ] {
            assert_eq!(Address::new(host, 5672).to_string(), printed);
        }
    }

    /// Row 4.
    #[test]
    fn neither_debug_nor_display_show_a_password() {
        let tls = TlsOptions { password: Some("s3cret2".into()), ..TlsOptions::default() };
        let config = Config::new().credentials("alice", "s3cret1").tls(tls);
        for printed in [format!("{config:?}"), format!("{config:#?}"), config.to_string()] {
            assert!(!printed.contains("s3cret"), "{printed}");
            assert!(printed.contains("alice"), "{printed}");
        }
        assert_eq!(config.to_string(), "amqps://alice:***@localhost:5672/%2F?password=***");
        assert_eq!(config.to_uri(), "amqps://alice:s3cret1@localhost:5672/%2F?password=s3cret2");
    }

    #[test]
    fn every_text_type_can_be_parsed() {
        let uri = String::from("amqp://h/v");
        let parsed: Vec<Config> = vec![
            uri.parse().unwrap(),
            Config::try_from(uri.as_str()).unwrap(),
            Config::try_from(&uri).unwrap(),
            Config::try_from(uri).unwrap(),
        ];
        for config in parsed {
            assert_eq!(config.to_string(), "amqp://guest:***@h:5672/v");
        }
    }

    #[test]
    fn limits_are_inclusive() {
        for config in [
            Config::new().heartbeat(Duration::ZERO),
            Config::new().heartbeat(SECONDS(1)),
            Config::new().heartbeat(SECONDS(65535)),
            Config::new().frame_max(0),
            Config::new().frame_max(4096),
            Config::new().frame_max(u32::MAX),
            Config::new().vhost("v".repeat(255)),
            Config::new().vhost(""),
            Config::new().credentials("u".repeat(255), ""),
            Config::new().connect_timeout(Duration::from_millis(1)),
            Config::new().call_timeout(LONGEST_WAIT),
            Config::new().drop_timeout(Duration::ZERO).publish_timeout(Duration::ZERO),
            Config::new().channel_max(0).prefetch(0),
            Config::new().keepalive(SECONDS(1)),
            Config::new().keepalive(SECONDS(32767)),
            Config::new().keepalive(None),
            Config::new().max_message_size(1),
            Config::new().send_buffer(1).receive_buffer(LARGEST_SOCKET_BUFFER),
        ] {
            config.validate().unwrap();
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        let mut nowhere = Config::new();
        nowhere.addresses.clear();
        let mut no_mechanism = Config::new();
        no_mechanism.auth_mechanisms.clear();
        let server_name = |name: &str| {
            let server_name = ServerName::Custom(name.into());
            Config::new().tls(TlsOptions { server_name, ..TlsOptions::default() })
        };
        let empty_file = TlsOptions { key_file: Some(PathBuf::new()), ..TlsOptions::default() };
        for (config, expected) in [
            (nowhere, "no address"),
            (no_mechanism, "no authentication mechanism"),
            (Config::new().host("", 1), "empty host"),
            (Config::new().host("a", 1).fallback_host("b", 0), "port 0"),
            (Config::new().vhost("v".repeat(256)), "virtual host is longer than 255"),
            (Config::new().credentials("u".repeat(256), ""), "user name is longer than 255"),
            (Config::new().heartbeat(Duration::from_millis(999)), "not 999ms"),
            (Config::new().heartbeat(Duration::from_millis(1500)), "not 1.5s"),
            (Config::new().heartbeat(SECONDS(65536)), "heartbeat must be 0 or 1 to 65535"),
            (Config::new().connect_timeout(Duration::ZERO), "connect_timeout must be from 1ms"),
            (Config::new().handshake_timeout(Duration::MAX), "handshake_timeout must be from 1ms"),
            (Config::new().call_timeout(Duration::from_micros(999)), "call_timeout must be from 1ms"),
            (Config::new().close_timeout(Duration::ZERO), "close_timeout must be from 1ms"),
            (Config::new().drop_timeout(Duration::MAX), "drop_timeout must be from 0ns"),
            (Config::new().publish_timeout(Duration::MAX), "publish_timeout must be from 0ns"),
            (Config::new().frame_max(1), "frame_max must be 0 or at least 4096"),
            (Config::new().frame_max(4095), "not 4095"),
            (Config::new().outgoing_buffer(4095), "outgoing_buffer must be at least 4096"),
            (Config::new().incoming_buffer(0), "incoming_buffer must be at least 4096"),
            (Config::new().max_message_size(0), "max_message_size"),
            (Config::new().keepalive(Duration::ZERO), "keepalive must be 1 to 32767"),
            (Config::new().keepalive(SECONDS(32768)), "keepalive must be 1 to 32767"),
            (Config::new().send_buffer(0), "send_buffer must be from 1"),
            (Config::new().receive_buffer(usize::MAX), "receive_buffer must be from 1"),
            (server_name(""), "TLS server name"),
            (server_name("disable"), "TLS server name"),
            (Config::new().tls(empty_file), "TLS file is empty"),
        ] {
            let complaint = complaint(config);
            assert!(complaint.contains(expected), "{complaint:?} does not contain {expected:?}");
        }
    }

    #[test]
    fn a_configuration_can_be_shared() {
        fn shareable<T: Send + Sync + Clone + 'static>() {}
        shareable::<Config>();
    }
}
