//! Everything that can be set about a broker, as one plain value.

use std::time::Duration;

use super::model::Emulate;
use crate::{
    error::{Error, Result},
    protocol::{frame::MIN_FRAME_MAX, sasl::Secret},
};

/// How a [`Broker`](super::Broker) behaves, and who may use it.
///
/// It starts with what a fresh RabbitMQ has: the user `guest`, who may do everything, from this machine only, and
/// the virtual host `/`.
///
/// ```
/// use leveret::broker::{BrokerConfig, Permissions, User};
///
/// let config = BrokerConfig::new()
///     .vhost("shop")
///     .user(User::new("billing", "secret").permissions(Permissions::new("shop").write(["invoices"])));
/// let broker = config.listen("127.0.0.1:0")?;
/// # Ok::<(), leveret::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
#[must_use = "a configuration does nothing until a broker is started with it"]
pub struct BrokerConfig {
    /// Who may connect. Default: `guest` with the password `guest`, everything allowed, on loopback only.
    pub users: Vec<User>,

    /// The virtual hosts. Default: `/`.
    pub vhosts: Vec<String>,

    /// Whose behaviour is followed where RabbitMQ's releases differ. Default: 4.0.
    pub emulate: Emulate,

    /// How many bytes messages may [take](super::Broker::memory) before publishers are blocked, as by RabbitMQ's memory
    /// alarm: those that understand it are told so, and no connection that has published is read from until a tenth of it
    /// is free again. Default: 256 MiB.
    pub memory_limit: usize,

    /// The largest message body; larger ones close their channel (406). Default: 128 MiB, as in RabbitMQ 3.
    pub max_message_size: u64,

    /// The largest frame that is proposed to clients. Default: 131072 bytes. Zero is no limit; otherwise at least
    /// 4096.
    pub frame_max: u32,

    /// The number of channels of a connection that is proposed to clients. Default: 2047. Zero is no limit.
    pub channel_max: u16,

    /// The heartbeat interval that is proposed to clients. Default: 60 seconds. Zero is off.
    pub heartbeat: Duration,

    /// How long a client may take for the handshake. Default: 10 seconds.
    pub handshake_timeout: Duration,

    /// How many connections may be open at once; more are closed at once. Default: 10,000, because each needs two
    /// threads.
    pub max_connections: usize,

    /// The user that clients become who connect with the mechanism `ANONYMOUS`; `None` does not offer it. Default:
    /// `guest`, as in RabbitMQ 4.
    pub anonymous_user: Option<String>,

    /// Certificate and key of a listener for TLS. Default: none, plain TCP.
    #[cfg(feature = "tls")]
    pub identity: Option<Identity>,
}

impl Default for BrokerConfig {
    fn default() -> BrokerConfig {
        BrokerConfig {
            users: vec![User::new("guest", "guest").permissions(Permissions::all("/")).loopback_only(true)],
            vhosts: vec!["/".into()],
            emulate: Emulate::default(),
            memory_limit: 256 << 20,
            max_message_size: 128 << 20,
            frame_max: 131_072,
            channel_max: 2047,
            heartbeat: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            max_connections: 10_000,
            anonymous_user: Some("guest".into()),
            #[cfg(feature = "tls")]
            identity: None,
        }
    }
}

/// `name: type` to a setter of the same name.
macro_rules! setters {
    ($($name:ident: $kind:ty),+ $(,)?) => { $(
        #[doc = concat!("Sets [`", stringify!($name), "`](BrokerConfig::", stringify!($name), ").")]
        pub fn $name(mut self, $name: impl Into<$kind>) -> BrokerConfig {
            self.$name = $name.into();
            self
        }
    )+ };
}

impl BrokerConfig {
    /// The defaults.
    pub fn new() -> BrokerConfig {
        BrokerConfig::default()
    }

    setters! {
        emulate: Emulate,
        memory_limit: usize,
        max_message_size: u64,
        frame_max: u32,
        channel_max: u16,
        heartbeat: Duration,
        handshake_timeout: Duration,
        max_connections: usize,
        anonymous_user: Option<String>,
    }

    /// Adds a user, or replaces the one of the same name.
    pub fn user(mut self, user: User) -> BrokerConfig {
        self.users.retain(|known| known.name != user.name);
        self.users.push(user);
        self
    }

    /// Adds a virtual host.
    pub fn vhost(mut self, name: impl Into<String>) -> BrokerConfig {
        self.vhosts.push(name.into());
        self
    }

    /// Has a listener speak TLS, with this certificate.
    #[cfg(feature = "tls")]
    pub fn identity(mut self, identity: Identity) -> BrokerConfig {
        self.identity = Some(identity);
        self
    }

    /// # Errors
    /// [`Error::Invalid`] names the setting.
    pub(super) fn validate(&self) -> Result<()> {
        if self.frame_max != 0 && self.frame_max < MIN_FRAME_MAX {
            let text = format!("frame_max must be 0 or at least {MIN_FRAME_MAX}, not {}", self.frame_max);
            return Err(Error::invalid(text));
        }
        if self.heartbeat.subsec_nanos() != 0 || self.heartbeat.as_secs() > u16::MAX.into() {
            return Err(Error::invalid("heartbeat must be whole seconds, up to 65535"));
        }
        if let Some(name) = self.vhosts.iter().find(|name| name.len() > 255) {
            return Err(Error::invalid(format!(
                "a virtual host's name has {} bytes; AMQP allows 255",
                name.len()
            )));
        }
        Ok(())
    }
}

/// Somebody who may connect.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct User {
    /// The name.
    pub name: String,
    /// The password. It is never printed.
    pub password: Secret,
    /// What the user may do, for each virtual host. A virtual host without an entry cannot be opened.
    pub permissions: Vec<Permissions>,
    /// Whether connections from other machines are refused. Default: false.
    pub loopback_only: bool,
    /// Whether messages may name another user in their property `user_id`. Default: false.
    pub impersonator: bool,
}

impl User {
    /// A user who may do nothing yet.
    #[must_use]
    pub fn new(name: impl Into<String>, password: impl Into<Secret>) -> User {
        User {
            name: name.into(),
            password: password.into(),
            permissions: Vec::new(),
            loopback_only: false,
            impersonator: false,
        }
    }

    /// Adds what the user may do on one virtual host, in place of what was said about it before.
    #[must_use]
    pub fn permissions(mut self, permissions: Permissions) -> User {
        self.permissions.retain(|known| known.vhost != permissions.vhost);
        self.permissions.push(permissions);
        self
    }

    /// Sets [`loopback_only`](User::loopback_only).
    #[must_use]
    pub fn loopback_only(mut self, loopback_only: bool) -> User {
        self.loopback_only = loopback_only;
        self
    }

    /// Sets [`impersonator`](User::impersonator).
    #[must_use]
    pub fn impersonator(mut self, impersonator: bool) -> User {
        self.impersonator = impersonator;
        self
    }
}

/// What a user may do on a virtual host.
///
/// As in RabbitMQ, *configure* is to declare and delete, *write* to publish and to bind to, *read* to consume, purge
/// and bind from. Each is a list of patterns for names of exchanges and queues, in which `*` stands for any
/// characters, also none. (RabbitMQ has regular expressions there.) The default exchange's name is `amq.default`.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Permissions {
    /// The virtual host.
    pub vhost: String,
    /// What may be declared and deleted.
    pub configure: Vec<String>,
    /// What may be published to, and bound.
    pub write: Vec<String>,
    /// What may be consumed from, and bound to.
    pub read: Vec<String>,
}

impl Permissions {
    /// Nothing but opening the virtual host.
    #[must_use]
    pub fn new(vhost: impl Into<String>) -> Permissions {
        Permissions { vhost: vhost.into(), ..Permissions::default() }
    }

    /// Everything on the virtual host.
    #[must_use]
    pub fn all(vhost: impl Into<String>) -> Permissions {
        Permissions::new(vhost).configure(["*"]).write(["*"]).read(["*"])
    }

    /// Sets [`configure`](Permissions::configure).
    #[must_use]
    pub fn configure<P: Into<String>>(mut self, patterns: impl IntoIterator<Item = P>) -> Permissions {
        self.configure = patterns.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`write`](Permissions::write).
    #[must_use]
    pub fn write<P: Into<String>>(mut self, patterns: impl IntoIterator<Item = P>) -> Permissions {
        self.write = patterns.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`read`](Permissions::read).
    #[must_use]
    pub fn read<P: Into<String>>(mut self, patterns: impl IntoIterator<Item = P>) -> Permissions {
        self.read = patterns.into_iter().map(Into::into).collect();
        self
    }
}

/// One of the three things that a user may do to an exchange or a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    Configure,
    Write,
    Read,
}

impl Permission {
    pub(super) fn name(self) -> &'static str {
        match self {
            Permission::Configure => "configure",
            Permission::Write => "write",
            Permission::Read => "read",
        }
    }
}

impl Permissions {
    pub(super) fn allow(&self, permission: Permission, name: &[u8]) -> bool {
        let patterns = match permission {
            Permission::Configure => &self.configure,
            Permission::Write => &self.write,
            Permission::Read => &self.read,
        };
        patterns.iter().any(|pattern| matches(pattern.as_bytes(), name))
    }
}

/// Compares from both ends of the pattern's stars; in between each part is looked for where it comes first.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut parts = pattern.split(|byte| *byte == b'*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    let Some(middle) = rest.strip_suffix(last) else { return false };
    rest = middle;
    for part in parts.filter(|part| !part.is_empty()) {
        let Some(at) = rest.windows(part.len()).position(|window| window == part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    true
}

/// Certificate and private key of a broker that listens for TLS.
#[cfg(feature = "tls")]
#[derive(Clone)]
pub struct Identity {
    pub(super) acceptor: native_tls::TlsAcceptor,
}

#[cfg(feature = "tls")]
impl Identity {
    /// From PEM: the certificate, followed by those that lead to its authority, and its key in PKCS #8 form.
    ///
    /// # Errors
    /// [`Error::Invalid`] says what the TLS library does not like.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Identity> {
        let invalid =
            |error| Error::invalid(format!("the broker's certificate or key cannot be used ({error})"));
        let identity = native_tls::Identity::from_pkcs8(certificate, key).map_err(invalid)?;
        let mut builder = native_tls::TlsAcceptor::builder(identity);
        builder.min_protocol_version(Some(native_tls::Protocol::Tlsv12));
        Ok(Identity { acceptor: builder.build().map_err(invalid)? })
    }
}

#[cfg(feature = "tls")]
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*", "anything", true),
            ("", "", true),
            ("", "x", false),
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("orders-*", "orders-eu", true),
            ("orders-*", "order", false),
            ("*-eu", "orders-eu", true),
            ("a*b*c", "aXbXc", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("amq.default", "amqXdefault", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn nothing_is_allowed_unless_it_is_said() {
        let permissions = Permissions::new("/").write(["q"]);
        assert!(permissions.allow(Permission::Write, b"q"));
        assert!(!permissions.allow(Permission::Read, b"q"));
        assert!(!permissions.allow(Permission::Configure, b"q"));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(BrokerConfig::new().frame_max(4095u32).validate().is_err());
        assert!(BrokerConfig::new().heartbeat(Duration::from_millis(1500)).validate().is_err());
        assert!(BrokerConfig::new().vhost("v".repeat(256)).validate().is_err());
        assert!(BrokerConfig::new().validate().is_ok());
    }
}
