//! How TLS is set up, as one plain value. What is done with it is the job of `secure`.
//!
//! Invariant: no file is read here, and `Debug` shows no passphrase.

use std::path::PathBuf;

use super::config::require;
use crate::{Result, protocol::sasl::Secret};

/// How TLS is set up: whom to trust, who we are, and which name to expect. All of it is optional.
///
/// By default the broker's certificate must come from an authority that the operating system trusts and be valid for
/// the host that is connected to, be it a name or an IP address. TLS is at least version 1.2. It is part of the
/// feature `tls`, which is on by default.
///
/// ```no_run
/// use leveret::{Config, Connection, Mechanism, TlsOptions};
///
/// let tls = TlsOptions::new()
///     .ca_certificate_file("/etc/app/ca.pem")
///     .certificate_file("/etc/app/client.pem")
///     .key_file("/etc/app/client.key");
/// let config = Config::new().host("mq.example", 5671).tls(tls).auth_mechanism(Mechanism::External);
/// let connection = Connection::open(config)?;
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// The same in a URI, with the file names percent-encoded where they need it:
/// `amqps://mq.example?cacertfile=/etc/app/ca.pem&certfile=/etc/app/client.pem&keyfile=/etc/app/client.key&auth_mechanism=external`.
///
/// The files are read when a connection is opened, before anything is sent. A file that is missing or holds something
/// else is [`Error::Invalid`](crate::Error::Invalid) and says which. A broker that is not who it should be, or that
/// does not accept us, is [`Error::Tls`](crate::Error::Tls); it gets no credentials.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
#[must_use = "options do nothing until a configuration has them"]
pub struct TlsOptions {
    /// A PEM file with the certificate authorities to trust, one or several, **instead of** those of the operating
    /// system: whoever runs their own authority does not want any other to vouch for the broker. Default: none, the
    /// operating system's count.
    pub ca_certificate_file: Option<PathBuf>,
    /// The client's own certificate: a PEM file with the certificate first and then those between it and the
    /// authority, or a PKCS#12 file (`.p12`, `.pfx`) with certificate and key. Default: none; most brokers do not
    /// ask for one.
    pub certificate_file: Option<PathBuf>,
    /// A PEM file with the key that belongs to the client's certificate. Default: none, which means that the PEM file
    /// of the certificate has the key as well.
    pub key_file: Option<PathBuf>,
    /// The passphrase of that key or PKCS#12 file. It is never printed. Default: none.
    pub password: Option<Secret>,
    /// Accept any certificate: the connection is encrypted, but **anyone may be at its other end**, and gets the
    /// password. Default: false. To trust a certificate that is its own authority, give it as
    /// `ca_certificate_file` instead.
    pub danger_accept_any_certificate: bool,
    /// The name that the broker's certificate must be valid for, and that is sent to it. Default: the host's.
    pub server_name: ServerName,
    /// A connector that the program has built itself, for what is not offered here (versions, further authorities,
    /// keys from other places), or to build it once for many connections: reading the authorities of the system, which
    /// native-tls does for every connector, may take some 20 ms. Default: none. It takes the place of all other options but `server_name`, which must
    /// not be [`ServerName::Off`]: the connector decides that.
    #[cfg(feature = "tls")]
    pub connector: Option<native_tls::TlsConnector>,
}

/// The server name indication of a TLS connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum ServerName {
    /// The name of the host that is connected to. An IP address is never sent, as the protocol wants it.
    #[default]
    Host,
    /// This name instead. The broker's certificate must be valid for it.
    Custom(String),
    /// Send none. The broker's certificate must be valid for the host all the same.
    Off,
}

impl From<&str> for ServerName {
    fn from(name: &str) -> ServerName {
        ServerName::Custom(name.to_owned())
    }
}

impl TlsOptions {
    /// The defaults: check the broker's certificate against the authorities of the operating system.
    pub fn new() -> TlsOptions {
        TlsOptions::default()
    }

    /// Sets the PEM file with the authorities to trust.
    pub fn ca_certificate_file(mut self, path: impl Into<PathBuf>) -> TlsOptions {
        self.ca_certificate_file = Some(path.into());
        self
    }

    /// Sets the file with the client's certificate: PEM or PKCS#12.
    pub fn certificate_file(mut self, path: impl Into<PathBuf>) -> TlsOptions {
        self.certificate_file = Some(path.into());
        self
    }

    /// Sets the PEM file with the client's key.
    pub fn key_file(mut self, path: impl Into<PathBuf>) -> TlsOptions {
        self.key_file = Some(path.into());
        self
    }

    /// Sets the passphrase of the client's key or PKCS#12 file.
    pub fn password(mut self, password: impl Into<Secret>) -> TlsOptions {
        self.password = Some(password.into());
        self
    }

    /// Sets whether any certificate is accepted.
    pub fn danger_accept_any_certificate(mut self, accept: bool) -> TlsOptions {
        self.danger_accept_any_certificate = accept;
        self
    }

    /// Sets the name that the broker's certificate must be valid for.
    pub fn server_name(mut self, name: impl Into<ServerName>) -> TlsOptions {
        self.server_name = name.into();
        self
    }

    /// Sets a connector of the program's own.
    #[cfg(feature = "tls")]
    pub fn connector(mut self, connector: native_tls::TlsConnector) -> TlsOptions {
        self.connector = Some(connector);
        self
    }

    /// Each check concerns one setting only.
    pub(super) fn validate(&self) -> Result<()> {
        let files = [&self.ca_certificate_file, &self.certificate_file, &self.key_file];
        let no_empty_path = files.into_iter().flatten().all(|path| !path.as_os_str().is_empty());
        require(no_empty_path, "the name of a TLS file is empty")?;
        // A URI writes ServerName::Off as "disable".
        let reserved = |name: &str| name.is_empty() || name == "disable";
        let no_name = matches!(&self.server_name, ServerName::Custom(name) if reserved(name));
        require(!no_name, "the TLS server name must be a host name")
    }
}
