//! SASL: how the client proves who it is.
//!
//! Owns the credentials and the mechanisms that turn them into the `response` bytes of `connection.start-ok` and
//! `connection.secure-ok`. The handshake asks [`choose`] for a mechanism and carries the bytes.
//!
//! Invariant: this file knows no connection, no clock and no lock. A password leaves a [`Secret`] only through
//! [`Secret::expose`]; nothing that is printed ever calls it.

use std::{fmt, hint::black_box, sync::Arc};

use crate::{Error, Result};

/// One way to authenticate.
///
/// [`Mechanism`] has those that RabbitMQ and LavinMQ know; implement this trait for another one, for example an
/// OAuth token that is fetched when it is needed.
///
/// ```
/// use std::sync::Arc;
/// use leveret::{Config, Credentials, Result, SaslMechanism};
///
/// #[derive(Debug)]
/// struct RabbitDemo;
///
/// impl SaslMechanism for RabbitDemo {
///     fn name(&self) -> &str {
///         "RABBIT-CR-DEMO"
///     }
///
///     fn initial_response(&self, credentials: &Credentials) -> Result<Vec<u8>> {
///         Ok(credentials.username.clone().into_bytes())
///     }
///
///     fn challenge(&self, credentials: &Credentials, _challenge: &[u8]) -> Result<Vec<u8>> {
///         Ok(format!("My password is {}", credentials.password.expose()).into_bytes())
///     }
/// }
///
/// let config = Config::new().auth_mechanism(RabbitDemo);
/// assert_eq!(config.auth_mechanisms.len(), 1);
/// ```
///
/// The `Debug` output of an implementation becomes part of [`Config`](crate::Config)'s; it must not show secrets.
pub trait SaslMechanism: Send + Sync + fmt::Debug {
    /// The registered name, in capitals, as brokers list it: `PLAIN`.
    fn name(&self) -> &str;

    /// The first response, sent together with the name.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if these credentials cannot be expressed in this mechanism. Nothing was sent then.
    fn initial_response(&self, credentials: &Credentials) -> Result<Vec<u8>>;

    /// The answer to one `connection.secure` of the broker. It may be asked several times.
    ///
    /// # Errors
    ///
    /// Unless it is overridden: [`Error::Invalid`], because most mechanisms have no such step.
    fn challenge(&self, credentials: &Credentials, challenge: &[u8]) -> Result<Vec<u8>> {
        let _ = (credentials, challenge);
        Err(Error::invalid(format!(
            "the broker sent a challenge, but the authentication mechanism {} has none to answer",
            self.name()
        )))
    }
}

/// Who connects: a user name and a password (or a token in its place). The default is `guest` / `guest`, which
/// RabbitMQ accepts only from its own machine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Credentials {
    /// The user name. At most 255 bytes.
    pub username: String,
    /// The password. It is never printed.
    pub password: Secret,
}

impl Credentials {
    /// Credentials from a user name and a password.
    pub fn new(username: impl Into<String>, password: impl Into<Secret>) -> Credentials {
        Credentials { username: username.into(), password: password.into() }
    }
}

impl Default for Credentials {
    fn default() -> Credentials {
        Credentials::new("guest", "guest")
    }
}

/// A text that must not be seen: a password or a token.
///
/// `Debug` prints `***`, there is no `Display`, and the memory is overwritten when the value is dropped.
///
/// ```
/// let password = leveret::Secret::from("correct horse");
/// assert_eq!(format!("{password:?}"), "***");
/// assert_eq!(password.expose(), "correct horse");
/// ```
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The secret itself. Do not log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Secret {
        Secret(secret)
    }
}

impl From<&str> for Secret {
    fn from(secret: &str) -> Secret {
        Secret(secret.to_owned())
    }
}

impl From<&String> for Secret {
    fn from(secret: &String) -> Secret {
        Secret(secret.clone())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        drop(Wiped(std::mem::take(&mut self.0).into_bytes()));
    }
}

/// Bytes with a secret among them. They are overwritten when the value is dropped; who appends to them sees to it that
/// they need not move, which would leave a copy behind.
pub(crate) struct Wiped(pub(crate) Vec<u8>);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.fill(0);
        // Without a reader the compiler may leave the writes out.
        black_box(&self.0);
    }
}

/// The authentication mechanisms that this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mechanism {
    /// `PLAIN`: user name and password as they are. Every broker has it; without TLS the network can read it.
    Plain,
    /// `AMQPLAIN`: the same content as `PLAIN` in an AMQP table, for brokers that offer nothing else.
    AmqPlain,
    /// `EXTERNAL`: the broker takes the identity from elsewhere, usually from the TLS client certificate.
    External,
    /// `ANONYMOUS`: no identity at all; the broker decides which user that is.
    Anonymous,
}

impl Mechanism {
    const ALL: [Mechanism; 4] =
        [Mechanism::Plain, Mechanism::AmqPlain, Mechanism::External, Mechanism::Anonymous];

    /// The mechanism with this name, in capitals or not (URIs have always had it in small letters).
    pub(crate) fn named(name: &str) -> Option<Mechanism> {
        Mechanism::ALL.into_iter().find(|mechanism| mechanism.name().eq_ignore_ascii_case(name))
    }
}

impl SaslMechanism for Mechanism {
    fn name(&self) -> &str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::AmqPlain => "AMQPLAIN",
            Mechanism::External => "EXTERNAL",
            Mechanism::Anonymous => "ANONYMOUS",
        }
    }

    fn initial_response(&self, credentials: &Credentials) -> Result<Vec<u8>> {
        match self {
            Mechanism::Plain => plain(credentials),
            Mechanism::AmqPlain => amqplain(credentials),
            // Empty: no other identity than the one the broker sees, and no trace information.
            Mechanism::External | Mechanism::Anonymous => Ok(Vec::new()),
        }
    }
}

/// `\0user\0password`; the empty text before the first NUL means "act as this same user".
fn plain(credentials: &Credentials) -> Result<Vec<u8>> {
    let (username, password) = (&credentials.username, credentials.password.expose());
    for (part, text) in [("user name", username.as_str()), ("password", password)] {
        if text.contains('\0') {
            return Err(Error::invalid(format!(
                "the {part} contains a NUL, which the authentication mechanism PLAIN cannot express"
            )));
        }
    }
    // One allocation of the final size, so that growing leaves no copies of the password behind.
    let mut response = Vec::with_capacity(2 + username.len() + password.len());
    response.push(0);
    response.extend_from_slice(username.as_bytes());
    response.push(0);
    response.extend_from_slice(password.as_bytes());
    Ok(response)
}

/// A field table without the length that usually precedes one, as RabbitMQ expects it.
fn amqplain(credentials: &Credentials) -> Result<Vec<u8>> {
    // The length and bytes of the key, then `S`: the type of a long string.
    const LOGIN: &[u8] = b"\x05LOGINS";
    const PASSWORD: &[u8] = b"\x08PASSWORDS";
    let (username, password) = (&credentials.username, credentials.password.expose());
    let size = LOGIN.len() + 4 + username.len() + PASSWORD.len() + 4 + password.len();
    let mut table = Vec::with_capacity(size);
    for (key, value) in [(LOGIN, username.as_str()), (PASSWORD, password)] {
        let length = u32::try_from(value.len())
            .map_err(|_| Error::invalid("the user name or the password is longer than 4 GiB"))?;
        table.extend_from_slice(key);
        table.extend_from_slice(&length.to_be_bytes());
        table.extend_from_slice(value.as_bytes());
    }
    Ok(table)
}

/// The first of the `wanted` mechanisms that the broker offers; `offered` is its list, separated by spaces.
pub(crate) fn choose(offered: &str, wanted: &[Arc<dyn SaslMechanism>]) -> Result<Arc<dyn SaslMechanism>> {
    let is_offered = |name: &str| offered.split_ascii_whitespace().any(|offer| offer == name);
    wanted.iter().find(|mechanism| is_offered(mechanism.name())).cloned().ok_or_else(|| {
        let configured: Vec<&str> = wanted.iter().map(|mechanism| mechanism.name()).collect();
        Error::invalid(format!(
            "no common authentication mechanism: the broker offers {}, this client is configured for {}",
            or_nothing(offered.trim()),
            or_nothing(&configured.join(" "))
        ))
    })
}

fn or_nothing(list: &str) -> &str {
    if list.is_empty() { "nothing" } else { list }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(mechanism: Mechanism, username: &str, password: &str) -> Result<Vec<u8>> {
        mechanism.initial_response(&Credentials::new(username, password))
    }

    fn wanted(mechanisms: &[Mechanism]) -> Vec<Arc<dyn SaslMechanism>> {
        mechanisms.iter().map(|&mechanism| Arc::new(mechanism) as _).collect()
    }

    #[test]
    fn plain_separates_with_nul() {
        assert_eq!(response(Mechanism::Plain, "guest", "gue:st").unwrap(), b"\0guest\0gue:st");
        assert_eq!(response(Mechanism::Plain, "", "").unwrap(), b"\0\0");
        assert_eq!(response(Mechanism::Plain, "ü", "ß").unwrap(), "\0ü\0ß".as_bytes());
    }

    #[test]
    fn plain_refuses_nul_and_does_not_show_the_password() {
        for (username, password) in [("a\0b", "s3cret"), ("ab", "s3cret\0")] {
            let error = response(Mechanism::Plain, username, password).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)));
            assert!(!format!("{error} {error:?}").contains("s3cret"));
        }
    }

    #[test]
    fn amqplain_is_a_table_without_its_length() {
        assert_eq!(
            response(Mechanism::AmqPlain, "guest", "pass").unwrap(),
            b"\x05LOGINS\0\0\0\x05guest\x08PASSWORDS\0\0\0\x04pass"
        );
        let long = "x".repeat(300);
        let table = response(Mechanism::AmqPlain, "", &long).unwrap();
        assert_eq!(table, [b"\x05LOGINS\0\0\0\0\x08PASSWORDS\0\0\x01\x2c", long.as_bytes()].concat());
        assert!(response(Mechanism::AmqPlain, "nul\0", "\0").is_ok(), "lengths, so any byte may occur");
    }

    #[test]
    fn external_and_anonymous_send_nothing() {
        assert_eq!(response(Mechanism::External, "user", "pass").unwrap(), b"");
        assert_eq!(response(Mechanism::Anonymous, "user", "pass").unwrap(), b"");
    }

    #[test]
    fn the_built_in_mechanisms_answer_no_challenge() {
        for mechanism in Mechanism::ALL {
            let error = mechanism.challenge(&Credentials::new("u", "s3cret"), b"why?").unwrap_err();
            assert!(matches!(error, Error::Invalid(_)));
            assert!(error.to_string().contains(mechanism.name()) && !error.to_string().contains("s3cret"));
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        for mechanism in Mechanism::ALL {
            assert_eq!(Mechanism::named(mechanism.name()), Some(mechanism));
            assert_eq!(Mechanism::named(&mechanism.name().to_lowercase()), Some(mechanism));
        }
        assert_eq!(Mechanism::named("PLAI"), None);
        assert_eq!(Mechanism::named(""), None);
    }

    /// Row 8: the order is ours.
    #[test]
    fn the_first_wanted_mechanism_that_is_offered_is_chosen() {
        let both = wanted(&[Mechanism::Plain, Mechanism::AmqPlain]);
        for (offered, chosen) in [
            ("AMQPLAIN PLAIN", "PLAIN"),
            ("PLAIN AMQPLAIN", "PLAIN"),
            ("  AMQPLAIN  EXTERNAL ", "AMQPLAIN"),
            ("XPLAIN PLAINX AMQPLAIN", "AMQPLAIN"),
        ] {
            assert_eq!(choose(offered, &both).unwrap().name(), chosen, "{offered}");
        }
    }

    #[test]
    fn without_a_common_mechanism_both_lists_are_named() {
        let both = wanted(&[Mechanism::Plain, Mechanism::AmqPlain]);
        assert_eq!(
            choose("EXTERNAL SCRAM-SHA-256", &both).unwrap_err().to_string(),
            "no common authentication mechanism: the broker offers EXTERNAL SCRAM-SHA-256, this client is \
             configured for PLAIN AMQPLAIN"
        );
        let nothing = choose(" ", &[]).unwrap_err().to_string();
        assert!(nothing.contains("offers nothing, this client is configured for nothing"), "{nothing}");
    }

    /// Row 4.
    #[test]
    fn secrets_are_not_printed() {
        let credentials = Credentials::new("alice", String::from("s3cret"));
        let copy = credentials.clone();
        drop(credentials);
        assert_eq!(copy.password.expose(), "s3cret");
        assert_eq!(format!("{copy:?}"), r#"Credentials { username: "alice", password: *** }"#);
        assert!(!format!("{copy:#?}").contains("s3cret"));
    }

    #[test]
    fn the_default_credentials_are_those_of_a_fresh_broker() {
        let credentials = Credentials::default();
        assert_eq!((credentials.username.as_str(), credentials.password.expose()), ("guest", "guest"));
    }
}
