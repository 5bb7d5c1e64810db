//! From [`TlsOptions`] to transports with TLS around them. Everything is read and checked once, before the first
//! address is tried.
//!
//! Invariant: no error holds anything of a key or a passphrase; files are named, never quoted.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::tls_options::TlsOptions;
use crate::{
    Error, Result,
    transport::{Transport, tap::FilterSlot},
};

/// What puts TLS around transports.
pub(super) struct Security {
    #[cfg(feature = "tls")]
    inner: enabled::Connector,
    #[cfg(not(feature = "tls"))]
    never: std::convert::Infallible,
}

#[cfg(not(feature = "tls"))]
impl Security {
    pub(super) fn new(_: &TlsOptions) -> Result<Security> {
        Err(Error::invalid("amqps needs the feature `tls` of leveret, which this program was built without"))
    }

    pub(super) fn wrap(
        &self,
        _: impl Transport + 'static,
        _: &str,
        _: Instant,
        _: Duration,
        _: Arc<FilterSlot>,
    ) -> Result<Arc<dyn Transport>> {
        match self.never {}
    }
}

#[cfg(feature = "tls")]
impl Security {
    /// # Errors
    /// [`Error::Invalid`] names the setting, and its file.
    pub(super) fn new(options: &TlsOptions) -> Result<Security> {
        enabled::Connector::new(options).map(|inner| Security { inner })
    }

    /// Shakes hands for TLS over `transport` with a broker on `host`.
    pub(super) fn wrap(
        &self,
        transport: impl Transport + 'static,
        host: &str,
        deadline: Instant,
        limit: Duration,
        filter: Arc<FilterSlot>,
    ) -> Result<Arc<dyn Transport>> {
        self.inner.wrap(transport, host, deadline, limit, filter)
    }
}

#[cfg(feature = "tls")]
mod enabled {
    use std::{fs, hint::black_box, path::Path};

    use native_tls::{Certificate, Identity, Protocol, TlsConnector};

    use super::*;
    use crate::{
        connection::tls_options::ServerName,
        protocol::sasl::Secret,
        transport::{
            tap::Tapped,
            tls::{ClientCertificate, Tls},
        },
    };

    const AUTHORITIES: &str = "ca_certificate_file (cacertfile)";
    const CERTIFICATE: &str = "certificate_file (certfile)";
    const KEY: &str = "key_file (keyfile)";

    pub(super) struct Connector {
        connector: TlsConnector,
        certificate: ClientCertificate,
        server_name: ServerName,
    }

    impl Connector {
        pub(super) fn new(options: &TlsOptions) -> Result<Connector> {
            let server_name = options.server_name.clone();
            if let Some(connector) = &options.connector {
                refuse_other_options(options)?;
                let certificate = ClientCertificate::Unknown;
                return Ok(Connector { connector: connector.clone(), certificate, server_name });
            }
            let mut builder = TlsConnector::builder();
            builder.min_protocol_version(Some(Protocol::Tlsv12)).use_sni(server_name != ServerName::Off);
            if let Some(path) = &options.ca_certificate_file {
                builder.disable_built_in_roots(true);
                for authority in authorities(path)? {
                    builder.add_root_certificate(authority);
                }
            }
            if options.danger_accept_any_certificate {
                log::warn!(target: "leveret::connection", "the broker's certificate is not checked: anyone may be there");
                builder.danger_accept_invalid_certs(true).danger_accept_invalid_hostnames(true);
            }
            let identity = identity(options)?;
            let certificate =
                if identity.is_some() { ClientCertificate::Given } else { ClientCertificate::None };
            if let Some(identity) = identity {
                builder.identity(identity);
            }
            let connector = builder.build().map_err(|error| {
                let hint = match certificate {
                    ClientCertificate::Given => ": does the key belong to the certificate?",
                    ClientCertificate::None | ClientCertificate::Unknown => "",
                };
                Error::invalid(format!("TLS cannot be set up{hint} ({error})"))
            })?;
            Ok(Connector { connector, certificate, server_name })
        }

        pub(super) fn wrap(
            &self,
            transport: impl Transport + 'static,
            host: &str,
            deadline: Instant,
            limit: Duration,
            filter: Arc<FilterSlot>,
        ) -> Result<Arc<dyn Transport>> {
            let name = match &self.server_name {
                ServerName::Custom(name) => name,
                // The zone of an IPv6 address concerns this machine only.
                ServerName::Host | ServerName::Off => {
                    host.split_once('%').map_or(host, |(address, _)| address)
                }
            };
            let tls = Tls::establish(transport, &self.connector, name, self.certificate, deadline, limit)?;
            Ok(Arc::new(Tapped::new(tls, filter)))
        }
    }

    fn refuse_other_options(options: &TlsOptions) -> Result<()> {
        let others = [
            (options.ca_certificate_file.is_some(), AUTHORITIES),
            (options.certificate_file.is_some(), CERTIFICATE),
            (options.key_file.is_some(), KEY),
            (options.password.is_some(), "password"),
            (options.danger_accept_any_certificate, "danger_accept_any_certificate"),
            (options.server_name == ServerName::Off, "ServerName::Off"),
        ];
        match others.into_iter().find(|(set, _)| *set) {
            None => Ok(()),
            Some((_, name)) => Err(Error::invalid(format!(
                "{name} has no effect on a TLS connector of your own: set it there"
            ))),
        }
    }

    fn authorities(path: &Path) -> Result<Vec<Certificate>> {
        let pem = read(path, AUTHORITIES)?;
        let found = Certificate::stack_from_pem(&pem.0).unwrap_or_default();
        if found.is_empty() {
            return Err(unusable(path, AUTHORITIES, "holds no certificate in PEM form"));
        }
        Ok(found)
    }

    fn identity(options: &TlsOptions) -> Result<Option<Identity>> {
        let Some(path) = &options.certificate_file else {
            return match (&options.key_file, &options.password) {
                (None, None) => Ok(None),
                (Some(_), _) => Err(Error::invalid(format!("{KEY} is set, but {CERTIFICATE} is not"))),
                (None, Some(_)) => {
                    Err(Error::invalid(format!("the TLS password is set, but {CERTIFICATE} is not")))
                }
            };
        };
        let certificate = read(path, CERTIFICATE)?;
        let password = options.password.as_ref().map_or("", Secret::expose);
        if !certificate.is_pem() {
            if options.key_file.is_some() {
                let text = format!("is not in PEM form; a PKCS#12 file has its own key, without {KEY}");
                return Err(unusable(path, CERTIFICATE, &text));
            }
            return match Identity::from_pkcs12(&certificate.0, password) {
                Ok(identity) => Ok(Some(identity)),
                Err(error) => {
                    let text = format!("is neither PEM nor PKCS#12 that the password opens: {error}");
                    Err(unusable(path, CERTIFICATE, &text))
                }
            };
        }
        if Certificate::stack_from_pem(&certificate.0).is_ok_and(|found| found.is_empty()) {
            return Err(unusable(path, CERTIFICATE, "holds no certificate in PEM form"));
        }
        let (key_path, setting) = match &options.key_file {
            Some(key_path) => (key_path, KEY),
            None => (path, CERTIFICATE),
        };
        let key = pkcs8(&read(key_path, setting)?.0, password)
            .map_err(|text| unusable(key_path, setting, &text))?;
        match Identity::from_pkcs8(&certificate.0, &key.0) {
            Ok(identity) => Ok(Some(identity)),
            Err(error) => Err(unusable(path, CERTIFICATE, &format!("cannot be used: {error}"))),
        }
    }

    /// A private key in any PEM form, as the one form that native-tls takes.
    #[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
    fn pkcs8(pem: &[u8], password: &str) -> Result<Wiped, String> {
        // With a passphrase at hand, even an empty one, OpenSSL does not ask for it on the terminal.
        let key = openssl::pkey::PKey::private_key_from_pem_passphrase(pem, password.as_bytes());
        let pkcs8 = key.and_then(|key| key.private_key_to_pem_pkcs8());
        // OpenSSL's own words may be about any of the forms that it has tried.
        pkcs8.map(Wiped).map_err(|_| "holds no private key in PEM form that the password opens".to_owned())
    }

    /// A private key in the one form that native-tls takes on this system.
    #[cfg(any(target_os = "windows", target_vendor = "apple"))]
    fn pkcs8(pem: &[u8], _password: &str) -> Result<Wiped, String> {
        const BEGIN: &[u8] = b"-----BEGIN PRIVATE KEY-----";
        let begin = pem.windows(BEGIN.len()).position(|window| window == BEGIN);
        let key = begin.and_then(|begin| pem.get(begin..)).map(|key| Wiped(key.to_vec()));
        key.ok_or_else(|| {
            "holds no unencrypted private key in PKCS#8 form; a PKCS#12 file may have a password".to_owned()
        })
    }

    fn read(path: &Path, setting: &str) -> Result<Wiped> {
        fs::read(path)
            .map(Wiped)
            .map_err(|error| unusable(path, setting, &format!("cannot be read: {error}")))
    }

    fn unusable(path: &Path, setting: &str, what: &str) -> Error {
        Error::invalid(format!("the file {} of {setting} {what}", path.display()))
    }

    /// What may be a key: overwritten when it is dropped.
    struct Wiped(Vec<u8>);

    impl Wiped {
        fn is_pem(&self) -> bool {
            const BEGIN: &[u8] = b"-----BEGIN ";
            self.0.windows(BEGIN.len()).any(|window| window == BEGIN)
        }
    }

    impl Drop for Wiped {
        fn drop(&mut self) {
            self.0.fill(0);
            // Without a reader the compiler may leave the writes out.
            black_box(&self.0);
        }
    }
}

#[cfg(all(test, not(feature = "tls")))]
mod tests {
    use super::*;

    /// A program without the feature hears so, before anything is sent.
    #[test]
    fn without_the_feature_amqps_is_refused_by_name() {
        let error = crate::connection::Connection::open("amqps://localhost").unwrap_err();
        assert!(matches!(&error, Error::Invalid(text) if text.contains("feature `tls`")), "{error:?}");
    }
}
