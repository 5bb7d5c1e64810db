//! Reading a [`Config`] from a URI and writing it as one.
//!
//! The syntax is RabbitMQ's URI specification (RFC 3986 with the schemes `amqp` and `amqps`) to the letter; several
//! hosts separated by commas are an addition. [`KEYS`] is the one table of the query's keys: parsing, formatting,
//! the list in an error and the test of the documentation (at [`Config`]) all follow it.
//!
//! Invariant: no error contains a password. In a malformed URI any piece may be part of one (`amqp://u:a/b@host`),
//! so only the keys and values of the query are ever quoted, and [`Query::may_quote`] says when.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{
    config::{Address, Config},
    tls_options::{ServerName, TlsOptions},
};
use crate::protocol::sasl::{Credentials, Mechanism, Secret, Wiped};
use crate::{Error, Result};

/// Whether [`format()`] writes the passwords or `***`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Passwords {
    Shown,
    Hidden,
}

pub(super) fn parse(uri: &str) -> Result<Config> {
    let (scheme, rest) = split_scheme(uri)?;
    if rest.contains('#') {
        return Err(malformed("has a fragment, which means nothing here; a '#' is written as %23"));
    }
    let (place, query) = split_optional(rest, '?');
    let (authority, vhost) = split_optional(place, '/');

    let tls = (scheme == Scheme::Amqps).then(TlsOptions::default);
    let mut config = Config { tls, ..Config::default() };
    let (userinfo, hosts) = match authority.rsplit_once('@') {
        Some((userinfo, hosts)) => (Some(userinfo), hosts),
        None => (None, authority),
    };
    if let Some(userinfo) = userinfo {
        apply_userinfo(&mut config.credentials, userinfo)?;
    }
    config.addresses = parse_hosts(hosts, scheme.default_port())?;
    if let Some(vhost) = vhost {
        config.vhost = parse_vhost(vhost)?;
    }
    config.validate()?;
    if let Some(query) = query {
        let at_sign_follows = [Some(query), vhost].into_iter().flatten().any(|part| part.contains('@'));
        Query { config: &mut config, seen: Vec::new(), may_quote: !at_sign_follows }.apply(query)?;
    }
    Ok(config)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Amqp,
    Amqps,
}

impl Scheme {
    fn default_port(self) -> u16 {
        match self {
            Scheme::Amqp => 5672,
            Scheme::Amqps => 5671,
        }
    }
}

fn split_scheme(uri: &str) -> Result<(Scheme, &str)> {
    let (scheme, rest) = uri.split_once("://").unwrap_or_default();
    if scheme.eq_ignore_ascii_case("amqp") {
        Ok((Scheme::Amqp, rest))
    } else if scheme.eq_ignore_ascii_case("amqps") {
        Ok((Scheme::Amqps, rest))
    } else {
        Err(malformed("does not begin with amqp:// or amqps://"))
    }
}

/// Empty is not the same as absent, so what follows the separator is `None` only if there is no separator.
fn split_optional(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

fn apply_userinfo(credentials: &mut Credentials, userinfo: &str) -> Result<()> {
    let (username, password) = split_optional(userinfo, ':');
    credentials.username = decode("user name", username, "")?;
    if let Some(password) = password {
        credentials.password = Secret::from(decode("password", password, "")?);
    }
    Ok(())
}

fn parse_hosts(hosts: &str, default_port: u16) -> Result<Vec<Address>> {
    if hosts.split(',').count() > 1 && hosts.split(',').any(str::is_empty) {
        return Err(malformed("has an empty name in its list of hosts"));
    }
    hosts.split(',').map(|host| parse_address(host, default_port)).collect()
}

fn parse_address(text: &str, default_port: u16) -> Result<Address> {
    let (host, port) = match text.strip_prefix('[') {
        Some(literal) => split_ipv6(literal)?,
        None => {
            let (host, port) = split_optional(text, ':');
            (decode("host", host, "")?, port)
        }
    };
    let host = if host.is_empty() { "localhost".to_owned() } else { host };
    let port = match port {
        None | Some("") => default_port,
        Some(digits) => number(digits).filter(|&port| port != 0).ok_or_else(|| {
            malformed(
                "has a port that is not a number from 1 to 65535 (an IPv6 address needs brackets: [::1])",
            )
        })?,
    };
    Ok(Address { host, port })
}

/// Splits `::1]` or `::1]:port`.
fn split_ipv6(text: &str) -> Result<(String, Option<&str>)> {
    let wrong = || malformed("has brackets around something that is not an IPv6 address");
    let (literal, after) = text.split_once(']').ok_or_else(wrong)?;
    let host = decode("host", literal, ":")?;
    if !(Address { host: host.clone(), port: 0 }.is_ipv6()) {
        return Err(wrong());
    }
    match after.strip_prefix(':') {
        Some(port) => Ok((host, Some(port))),
        None if after.is_empty() => Ok((host, None)),
        None => Err(malformed("has something other than ':' and a port after an IPv6 address")),
    }
}

fn parse_vhost(text: &str) -> Result<String> {
    if text.contains('/') {
        return Err(malformed(
            "has a virtual host with several segments; a slash within its name is written as %2F",
        ));
    }
    decode("virtual host", text, ":@")
}

/// Percent-decodes one part, in which letters, digits, `-._~!$&'()*+,;=` and `extra` need no encoding.
fn decode(part: &str, text: &str, extra: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=%".contains(c) || extra.contains(c);
    if !text.chars().all(plain) {
        return Err(malformed(&format!("has a character in its {part} that must be percent-encoded")));
    }
    let is_escape = |after: &str| after.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if !text.split('%').skip(1).all(is_escape) {
        return Err(malformed(&format!(
            "has a '%' in its {part} that is not followed by two hexadecimal digits"
        )));
    }
    // It may be a password: in one piece of memory, which becomes that of the secret.
    let mut decoded = Vec::with_capacity(text.len());
    decoded.extend(percent_decode_str(text));
    String::from_utf8(decoded).map_err(|error| {
        drop(Wiped(error.into_bytes()));
        malformed(&format!("has a {part} that is not UTF-8"))
    })
}

fn malformed(what: &str) -> Error {
    Error::invalid(format!("the URI {what}"))
}

/// The query's keys are applied one by one; every error names the key that caused it.
struct Query<'a> {
    config: &'a mut Config,
    seen: Vec<&'static str>,
    /// False where a password may have got into the query: a stray `@` shows that one contains a `/` or `?`, and
    /// what follows the key `password` may still belong to it if it contains an `&`.
    may_quote: bool,
}

impl Query<'_> {
    fn apply(&mut self, query: &str) -> Result<()> {
        query.split('&').filter(|item| !item.is_empty()).try_for_each(|item| self.apply_item(item))
    }

    fn apply_item(&mut self, item: &str) -> Result<()> {
        let (name, value) = split_optional(item, '=');
        let name = decode("query", name, QUERY_EXTRA)?;
        let is_named = |key: &&Key| key.name == name || camel_case(key.name) == name;
        let key = KEYS.iter().find(is_named).ok_or_else(|| self.unknown(&name, value))?;
        self.may_quote &= !matches!(key.kind, Kind::Secret);
        let value =
            value.ok_or_else(|| Error::invalid(format!("the URI's key {} has no value", key.name)))?;
        let value = Secret::from(decode(&format!("key {}", key.name), value, QUERY_EXTRA)?);
        self.prepare(key)?;
        match (key.parse)(self.config, value.expose()) {
            Some(()) if self.config.validate().is_ok() => Ok(()),
            _ => Err(self.bad_value(key, value.expose())),
        }
    }

    /// Is this key allowed here, and now?
    fn prepare(&mut self, key: &Key) -> Result<()> {
        if matches!(key.kind, Kind::Tls | Kind::Secret) && self.config.tls.is_none() {
            return Err(Error::invalid(format!("the URI's key {} needs the scheme amqps", key.name)));
        }
        let is_first = !self.seen.contains(&key.name);
        self.seen.push(key.name);
        match key.kind {
            Kind::Repeated(forget_the_default) if is_first => forget_the_default(self.config),
            Kind::Repeated(_) => {}
            _ if is_first => {}
            _ => return Err(Error::invalid(format!("the URI's key {} is given twice", key.name))),
        }
        Ok(())
    }

    fn unknown(&self, name: &str, value: Option<&str>) -> Error {
        let known = KEYS.iter().map(|key| key.name).collect::<Vec<_>>().join(", ");
        // Anything else may be a piece of a password, or `password` itself with its '=' missing.
        let is_word = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        let is_like_a_key = value.is_some() && is_word(name) && !name.starts_with("password");
        let quoted = if self.may_quote && is_like_a_key { format!(" {name:?}") } else { String::new() };
        Error::invalid(format!("the URI has an unknown key{quoted}; the known keys are {known}"))
    }

    fn bad_value(&self, key: &Key, value: &str) -> Error {
        let given = if self.may_quote { format!("is {value:?}") } else { "is not usable".to_owned() };
        Error::invalid(format!("the URI's key {} {given}; expected {}", key.name, key.expects))
    }
}

/// One row of the table of query keys.
struct Key {
    /// As it is written and documented. [`camel_case`] makes the second spelling from it.
    name: &'static str,
    /// Completes "expected ...".
    expects: &'static str,
    kind: Kind,
    /// Sets the field. `None`: the value cannot be understood. Ranges are left to [`Config::validate`].
    parse: fn(&mut Config, &str) -> Option<()>,
    /// Shows the values to write: none if the field is not set. Values equal to the default's are left out anyway.
    format: fn(&Config, Show<'_>),
}

type Show<'a> = &'a mut dyn FnMut(&dyn fmt::Display);

enum Kind {
    /// May be given once.
    Once,
    /// May be repeated; the function forgets the default before the first value is added.
    Repeated(fn(&mut Config)),
    /// May be given once, with `amqps` only.
    Tls,
    /// As `Tls`, and the value is never printed.
    Secret,
}

const fn key(
    name: &'static str,
    expects: &'static str,
    parse: fn(&mut Config, &str) -> Option<()>,
    format: fn(&Config, Show<'_>),
) -> Key {
    Key { name, expects, kind: Kind::Once, parse, format }
}

impl Key {
    const fn kind(mut self, kind: Kind) -> Key {
        self.kind = kind;
        self
    }

    fn values(&self, config: &Config) -> Vec<String> {
        let mut values = Vec::new();
        (self.format)(config, &mut |value| values.push(value.to_string()));
        values
    }
}

const MILLISECONDS: &str = "milliseconds from 1 to 4294967295";
const MILLISECONDS_OR_ZERO: &str = "milliseconds from 0 to 4294967295";
const BYTES: &str = "a number of bytes, at least 4096";
const SOCKET_BYTES: &str = "a number of bytes from 1 to 2147483647";
const PATH: &str = "the path of a file";

#[rustfmt::skip] // one entry, a few short lines
static KEYS: &[Key] = &[
    key("heartbeat", "seconds from 0 (off) to 65535",
        |config, text| set(&mut config.heartbeat, number(text).map(Duration::from_secs)),
        |config, show| show(&config.heartbeat.as_secs())),
    key("connection_timeout", MILLISECONDS,
        |config, text| set(&mut config.connect_timeout, number(text).map(Duration::from_millis)),
        |config, show| show(&milliseconds(config.connect_timeout))),
    key("handshake_timeout", MILLISECONDS,
        |config, text| set(&mut config.handshake_timeout, number(text).map(Duration::from_millis)),
        |config, show| show(&milliseconds(config.handshake_timeout))),
    key("rpc_timeout", MILLISECONDS,
        |config, text| set(&mut config.call_timeout, number(text).map(Duration::from_millis)),
        |config, show| show(&milliseconds(config.call_timeout))),
    key("close_timeout", MILLISECONDS,
        |config, text| set(&mut config.close_timeout, number(text).map(Duration::from_millis)),
        |config, show| show(&milliseconds(config.close_timeout))),
    key("drop_timeout", MILLISECONDS_OR_ZERO,
        |config, text| set(&mut config.drop_timeout, number(text).map(Duration::from_millis)),
        |config, show| show(&milliseconds(config.drop_timeout))),
    key("publish_timeout", MILLISECONDS_OR_ZERO,
        |config, text| set(&mut config.publish_timeout, number(text).map(Duration::from_millis)),
        |config, show| show(&milliseconds(config.publish_timeout))),
    key("confirm_timeout", MILLISECONDS,
        |config, text| set(&mut config.confirm_timeout, number(text).map(Duration::from_millis)),
        |config, show| show(&milliseconds(config.confirm_timeout))),
    key("max_outstanding_confirms", "a number of messages, 0 for no limit",
        |config, text| set(&mut config.max_outstanding_confirms, number(text)),
        |config, show| show(&config.max_outstanding_confirms)),
    key("allow_immediate", "true or false",
        |config, text| set(&mut config.allow_immediate, text.parse().ok()),
        |config, show| show(&config.allow_immediate)),
    key("heartbeat_send_percent", "a percentage from 1 to 100",
        |config, text| set(&mut config.heartbeat_send_percent, number(text)),
        |config, show| show(&config.heartbeat_send_percent)),
    key("heartbeat_dead_percent", "a percentage from 100 to 1000",
        |config, text| set(&mut config.heartbeat_dead_percent, number(text)),
        |config, show| show(&config.heartbeat_dead_percent)),
    key("channel_max", "a number of channels from 0 (no limit) to 65535",
        |config, text| set(&mut config.channel_max, number(text)),
        |config, show| show(&config.channel_max)),
    key("frame_max", "a number of bytes: 0 (no limit), or 4096 to 4294967295",
        |config, text| set(&mut config.frame_max, number(text)),
        |config, show| show(&config.frame_max)),
    key("prefetch", "a number of messages from 0 (no limit) to 65535",
        |config, text| set(&mut config.prefetch, number(text)),
        |config, show| show(&config.prefetch)),
    key("outgoing_buffer", BYTES,
        |config, text| set(&mut config.outgoing_buffer, number(text)),
        |config, show| show(&config.outgoing_buffer)),
    key("incoming_buffer", BYTES,
        |config, text| set(&mut config.incoming_buffer, number(text)),
        |config, show| show(&config.incoming_buffer)),
    key("max_message_size", "a number of bytes, at least 1",
        |config, text| set(&mut config.max_message_size, number(text)),
        |config, show| show(&config.max_message_size)),
    key("auth_mechanism", "plain, amqplain, external or anonymous",
        |config, text| {
            config.auth_mechanisms.push(Arc::new(Mechanism::named(text)?));
            Some(())
        },
        |config, show| config.auth_mechanisms.iter().for_each(|mechanism| show(&mechanism.name().to_lowercase())))
        .kind(Kind::Repeated(|config| config.auth_mechanisms.clear())),
    key("connection_name", "any text",
        |config, text| set(&mut config.connection_name, Some(Some(text.to_owned()))),
        |config, show| optional(config.connection_name.as_ref(), show)),
    key("tcp_nodelay", "true or false",
        |config, text| set(&mut config.tcp_nodelay, text.parse().ok()),
        |config, show| show(&config.tcp_nodelay)),
    key("keepalive", "seconds from 0 (off) to 32767",
        |config, text| {
            let seconds: u64 = number(text)?;
            set(&mut config.keepalive, Some((seconds != 0).then_some(Duration::from_secs(seconds))))
        },
        |config, show| show(&config.keepalive.unwrap_or_default().as_secs())),
    key("bind_address", "an IP address",
        |config, text| set(&mut config.bind_address, text.parse().ok().map(Some)),
        |config, show| optional(config.bind_address, show)),
    key("send_buffer", SOCKET_BYTES,
        |config, text| set(&mut config.send_buffer, number(text).map(Some)),
        |config, show| optional(config.send_buffer, show)),
    key("receive_buffer", SOCKET_BYTES,
        |config, text| set(&mut config.receive_buffer, number(text).map(Some)),
        |config, show| optional(config.receive_buffer, show)),
    key("cacertfile", PATH,
        |config, text| set(&mut config.tls.as_mut()?.ca_certificate_file, Some(Some(text.into()))),
        |config, show| optional(config.tls.as_ref().and_then(|tls| tls.ca_certificate_file.as_ref().map(|path| path.display())), show))
        .kind(Kind::Tls),
    key("certfile", PATH,
        |config, text| set(&mut config.tls.as_mut()?.certificate_file, Some(Some(text.into()))),
        |config, show| optional(config.tls.as_ref().and_then(|tls| tls.certificate_file.as_ref().map(|path| path.display())), show))
        .kind(Kind::Tls),
    key("keyfile", PATH,
        |config, text| set(&mut config.tls.as_mut()?.key_file, Some(Some(text.into()))),
        |config, show| optional(config.tls.as_ref().and_then(|tls| tls.key_file.as_ref().map(|path| path.display())), show))
        .kind(Kind::Tls),
    key("password", "the passphrase of the key file",
        |config, text| set(&mut config.tls.as_mut()?.password, Some(Some(text.into()))),
        |config, show| optional(config.tls.as_ref().and_then(|tls| tls.password.as_ref().map(Secret::expose)), show))
        .kind(Kind::Secret),
    key("verify", "verify_peer or verify_none",
        |config, text| {
            let accept_any = match text {
                "verify_peer" => false,
                "verify_none" => true,
                _ => return None,
            };
            set(&mut config.tls.as_mut()?.danger_accept_any_certificate, Some(accept_any))
        },
        |config, show| optional(config.tls.as_ref().and_then(|tls| tls.danger_accept_any_certificate.then_some("verify_none")), show))
        .kind(Kind::Tls),
    key("server_name_indication", "a host name, or disable",
        |config, text| {
            let name = match text {
                "disable" => ServerName::Off,
                name => ServerName::Custom(name.to_owned()),
            };
            set(&mut config.tls.as_mut()?.server_name, Some(name))
        },
        |config, show| match config.tls.as_ref().map(|tls| &tls.server_name) {
            None | Some(ServerName::Host) => {}
            Some(ServerName::Custom(name)) => show(name),
            Some(ServerName::Off) => show(&"disable"),
        })
        .kind(Kind::Tls),
    key("recovery", "off (automatic recovery is not available yet)",
        |_, text| (text == "off").then_some(()),
        |_, _| {}),
];

/// `frame_max` becomes `frameMax`, the spelling of some other clients.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (initial, rest) = word.split_at_checked(1).unwrap_or_default();
        name + &initial.to_ascii_uppercase() + rest
    })
}

fn set<T>(field: &mut T, value: Option<T>) -> Option<()> {
    *field = value?;
    Some(())
}

/// Digits only: `FromStr` would accept a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn optional(value: Option<impl fmt::Display>, show: Show<'_>) {
    value.iter().for_each(|value| show(value));
}

/// Rounded up, so that a short wait does not become no wait.
fn milliseconds(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000)
}

/// What needs no encoding in a query besides what needs none anywhere.
const QUERY_EXTRA: &str = ":@/?";

/// What is encoded when writing: everything that RFC 3986 does not call unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Paths stay readable in the query, and so do IPv6 addresses there and between brackets.
const RESERVED_IN_QUERY: &AsciiSet = &RESERVED.remove(b'/').remove(b':');

pub(super) fn format(config: &Config, passwords: Passwords) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
    let password = match passwords {
        Passwords::Shown => encoded(config.credentials.password.expose()),
        Passwords::Hidden => "***".to_owned(),
    };
    let hosts: Vec<String> = config.addresses.iter().map(format_address).collect();
    format!(
        "{scheme}://{username}:{password}@{hosts}/{vhost}{query}",
        scheme = if config.tls.is_some() { "amqps" } else { "amqp" },
        username = encoded(&config.credentials.username),
        hosts = hosts.join(","),
        vhost = encoded(&config.vhost),
        query = format_query(config, passwords),
    )
}

fn format_address(address: &Address) -> String {
    let Address { host, port } = address;
    if address.is_ipv6() {
        format!("[{}]:{port}", utf8_percent_encode(host, RESERVED_IN_QUERY))
    } else {
        format!("{}:{port}", utf8_percent_encode(host, RESERVED))
    }
}

/// `?key=value&key=value` for every setting that differs from its default, or nothing.
fn format_query(config: &Config, passwords: Passwords) -> String {
    static DEFAULTS: LazyLock<Vec<Vec<String>>> = LazyLock::new(|| {
        let default = Config::default();
        KEYS.iter().map(|key| key.values(&default)).collect()
    });
    let mut query = String::new();
    for (key, default) in KEYS.iter().zip(&*DEFAULTS) {
        let values = key.values(config);
        if values == *default {
            continue;
        }
        for value in values {
            let is_hidden = matches!(key.kind, Kind::Secret) && passwords == Passwords::Hidden;
            let value = if is_hidden {
                "***".into()
            } else {
                utf8_percent_encode(&value, RESERVED_IN_QUERY).to_string()
            };
            query.push(if query.is_empty() { '?' } else { '&' });
            query.push_str(&format!("{}={value}", key.name));
        }
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(uri: &str) -> String {
        match parse(uri) {
            Err(Error::Invalid(text)) => text.to_string(),
            other => panic!("{uri}: {other:?}"),
        }
    }

    /// User, password, host, port and virtual host.
    fn parts(uri: &str) -> (String, String, String, u16, String) {
        let Config { credentials, mut addresses, vhost, .. } = parse(uri).expect(uri);
        assert_eq!(addresses.len(), 1, "{uri}");
        let Address { host, port } = addresses.remove(0);
        (credentials.username.clone(), credentials.password.expose().to_owned(), host, port, vhost)
    }

    /// Everything that can be compared, passwords included.
    fn image(config: &Config) -> String {
        let passwords =
            (&config.credentials.password, config.tls.as_ref().and_then(|tls| tls.password.as_ref()));
        format!("{config:?} {} {:?}", passwords.0.expose(), passwords.1.map(Secret::expose))
    }

    /// Row 2: what the specification itself gives as examples.
    #[test]
    fn the_examples_of_the_specification() {
        for (uri, username, password, host, port, vhost) in [
            ("amqp://user:pass@host:10000/vhost", "user", "pass", "host", 10000, "vhost"),
            ("amqp://user%61:%61pass@ho%61st:10000/v%2fhost", "usera", "apass", "hoast", 10000, "v/host"),
            ("amqp://", "guest", "guest", "localhost", 5672, "/"),
            ("amqp://:@/", "", "", "localhost", 5672, ""),
            ("amqp://user@", "user", "guest", "localhost", 5672, "/"),
            ("amqp://user:pass@", "user", "pass", "localhost", 5672, "/"),
            ("amqp://host", "guest", "guest", "host", 5672, "/"),
            ("amqp://:10000", "guest", "guest", "localhost", 10000, "/"),
            ("amqp:///vhost", "guest", "guest", "localhost", 5672, "vhost"),
            ("amqp://host/", "guest", "guest", "host", 5672, ""),
            ("amqp://host/%2F", "guest", "guest", "host", 5672, "/"),
            ("amqp://host/%2f", "guest", "guest", "host", 5672, "/"),
            ("amqp://[::1]", "guest", "guest", "::1", 5672, "/"),
        ] {
            let expected = (username.into(), password.into(), host.into(), port, vhost.into());
            assert_eq!(parts(uri), expected, "{uri}");
        }
    }

    /// Row 2: every part may be left out or encoded; empty is not absent.
    #[test]
    fn more_that_is_allowed() {
        for (uri, username, password, host, port, vhost) in [
            ("AmQp://h", "guest", "guest", "h", 5672, "/"),
            ("amqps://h", "guest", "guest", "h", 5671, "/"),
            ("AMQPS://h:5672", "guest", "guest", "h", 5672, "/"),
            ("amqp://h:", "guest", "guest", "h", 5672, "/"),
            ("amqp://h:1", "guest", "guest", "h", 1, "/"),
            ("amqp://h:65535?", "guest", "guest", "h", 65535, "/"),
            ("amqp://[2001:db8::7]:5673/v", "guest", "guest", "2001:db8::7", 5673, "v"),
            ("amqp://[fe80::1%25eth0]", "guest", "guest", "fe80::1%eth0", 5672, "/"),
            ("amqp://a-._~!$&'()*+,;=b:p+q@h", "a-._~!$&'()*+,;=b", "p+q", "h", 5672, "/"),
            ("amqp://u:%40%3A%2F%3f%23%25@h", "u", "@:/?#%", "h", 5672, "/"),
            ("amqp://%C3%BC:%00@h/%E2%82%AC", "ü", "\0", "h", 5672, "€"),
            ("amqp://h/a:b@c", "guest", "guest", "h", 5672, "a:b@c"),
            ("amqp://h%2Cx", "guest", "guest", "h,x", 5672, "/"),
            ("amqp://:p@h/", "", "p", "h", 5672, ""),
            ("amqp://@h", "", "guest", "h", 5672, "/"),
        ] {
            let expected = (username.into(), password.into(), host.into(), port, vhost.into());
            assert_eq!(parts(uri), expected, "{uri}");
        }
        assert!(parse("amqps://").unwrap().tls.is_some() && parse("amqp://").unwrap().tls.is_none());
    }

    /// Row 6: several hosts, in their order.
    #[test]
    fn several_hosts() {
        let addresses = |uri| parse(uri).unwrap().addresses;
        let expected = [Address::new("a", 5672), Address::new("b", 5673), Address::new("::1", 5674)];
        assert_eq!(addresses("amqp://a,b:5673,[::1]:5674/v"), expected);
        assert_eq!(addresses("amqps://u:p@a,b:1"), [Address::new("a", 5671), Address::new("b", 1)]);
        assert_eq!(addresses("amqp://a,:1"), [Address::new("a", 5672), Address::new("localhost", 1)]);
        for uri in ["amqp://a,", "amqp://,a", "amqp://a,,b", "amqp://,", "amqp://u:p@a,/v"] {
            assert!(error(uri).contains("an empty name in its list of hosts"), "{uri}");
        }
    }

    /// Row 2: what is malformed is an error that says what, and never a panic.
    #[test]
    fn what_is_malformed_is_named() {
        let scheme = "does not begin with amqp:// or amqps://";
        let port = "a port that is not a number from 1 to 65535";
        let brackets = "brackets around something that is not an IPv6 address";
        for (uri, expected) in [
            ("", scheme),
            ("amqp", scheme),
            ("amqp:", scheme),
            ("amqp:/h", scheme),
            ("://h", scheme),
            ("http://h", scheme),
            (" amqp://h", scheme),
            ("amqp://h:0", port),
            ("amqp://h:65536", port),
            ("amqp://h:99999999999999999999", port),
            ("amqp://h:+1", port),
            ("amqp://h:-1", port),
            ("amqp://h:x/v", port),
            ("amqp://h:1%31", port),
            ("amqp://::1", port),
            ("amqp://[::1", brackets),
            ("amqp://[]", brackets),
            ("amqp://[::g]", brackets),
            ("amqp://[127.0.0.1]", brackets),
            ("amqp://[::1%25]", brackets),
            ("amqp://[::1]5672", "something other than ':' and a port after an IPv6 address"),
            ("amqp://a[::1]", "a character in its host that must"),
            ("amqp://h/a/b", "several segments"),
            ("amqp://h//", "several segments"),
            ("amqp://h/#", "a fragment"),
            ("amqp://h?heartbeat=1#x", "a fragment"),
            ("amqp://a b@h", "a character in its user name that must be percent-encoded"),
            ("amqp://u:p:q@h", "a character in its password that must"),
            ("amqp://u:p@q@h", "a character in its password that must"),
            ("amqp://u:ü@h", "a character in its password that must"),
            ("amqp://h/ü", "a character in its virtual host that must"),
            ("amqp://h%2", "a '%' in its host that is not followed by two hexadecimal digits"),
            ("amqp://%%41@h", "a '%' in its user name that is not"),
            ("amqp://u:%+1@h", "a '%' in its password that is not"),
            ("amqp://h/%", "a '%' in its virtual host that is not"),
            ("amqp://h?connection_name=%f", "a '%' in its key connection_name that is not"),
            ("amqp://%ff@h", "a user name that is not UTF-8"),
            ("amqp://u:%C3@h", "a password that is not UTF-8"),
            ("amqp://%80", "a host that is not UTF-8"),
            ("amqp://h/%e2%82", "a virtual host that is not UTF-8"),
            ("amqp://h?connection_name=%80", "a key connection_name that is not UTF-8"),
        ] {
            assert!(error(uri).contains(expected), "{uri}: {}", error(uri));
        }
        assert!(error(&format!("amqp://h/{}", "v".repeat(256))).contains("longer than 255"));
        assert!(error(&format!("amqp://{}@h", "u".repeat(256))).contains("longer than 255"));
    }

    /// A value for every key that is not its default, and the field's `Debug` text afterwards.
    const VALUES: &[(&str, &str, &str)] = &[
        ("heartbeat", "5", "heartbeat: 5s"),
        ("connection_timeout", "1500", "connect_timeout: 1.5s"),
        ("handshake_timeout", "1", "handshake_timeout: 1ms"),
        ("rpc_timeout", "4294967295", "call_timeout: 4294967.295s"),
        ("close_timeout", "7", "close_timeout: 7ms"),
        ("drop_timeout", "0", "drop_timeout: 0ns"),
        ("publish_timeout", "0", "publish_timeout: 0ns"),
        ("confirm_timeout", "9", "confirm_timeout: 9ms"),
        ("max_outstanding_confirms", "0", "max_outstanding_confirms: 0"),
        ("allow_immediate", "true", "allow_immediate: true"),
        ("heartbeat_send_percent", "90", "heartbeat_send_percent: 90"),
        ("heartbeat_dead_percent", "300", "heartbeat_dead_percent: 300"),
        ("channel_max", "0", "channel_max: 0"),
        ("frame_max", "4096", "frame_max: 4096"),
        ("prefetch", "65535", "prefetch: 65535"),
        ("outgoing_buffer", "4096", "outgoing_buffer: 4096"),
        ("incoming_buffer", "65536", "incoming_buffer: 65536"),
        ("max_message_size", "18446744073709551615", "max_message_size: 18446744073709551615"),
        ("auth_mechanism", "external", "auth_mechanisms: [External]"),
        ("connection_name", "a%20b%26", "connection_name: Some(\"a b&\")"),
        ("tcp_nodelay", "false", "tcp_nodelay: false"),
        ("keepalive", "0", "keepalive: None"),
        ("bind_address", "::1", "bind_address: Some(::1)"),
        ("send_buffer", "65536", "send_buffer: Some(65536)"),
        ("receive_buffer", "1", "receive_buffer: Some(1)"),
        ("cacertfile", "/etc/ca.pem", "ca_certificate_file: Some(\"/etc/ca.pem\")"),
        ("certfile", "c.p12", "certificate_file: Some(\"c.p12\")"),
        ("keyfile", "a%20key", "key_file: Some(\"a key\")"),
        ("password", "s3cret", "password: Some(***)"),
        ("verify", "verify_none", "danger_accept_any_certificate: true"),
        ("server_name_indication", "mq", "server_name: Custom(\"mq\")"),
        ("recovery", "off", "Config"),
    ];

    /// Rows 2, 3: every key in both spellings, there and back.
    #[test]
    fn every_key_sets_its_field_and_is_written_again() {
        let names: Vec<&str> = VALUES.iter().map(|row| row.0).collect();
        assert_eq!(names, KEYS.iter().map(|key| key.name).collect::<Vec<_>>(), "one sample per key");
        for &(name, value, field) in VALUES {
            for spelling in [name, &camel_case(name)] {
                let config = parse(&format!("amqps://h?{spelling}={value}")).unwrap();
                assert!(format!("{config:?}").contains(field), "{name}: {config:?}");
                let written = format(&config, Passwords::Shown);
                if name != "recovery" {
                    assert!(written.ends_with(&format!("/%2F?{name}={value}")), "{written}");
                }
                assert_eq!(image(&parse(&written).unwrap()), image(&config));
            }
        }
        let all: Vec<String> = VALUES.iter().map(|(name, value, _)| format!("{name}={value}")).collect();
        let config = parse(&format!("amqps://h/v?{}", all.join("&"))).unwrap();
        assert_eq!(image(&parse(&config.to_uri()).unwrap()), image(&config));
    }

    #[test]
    fn the_documentation_lists_every_key() {
        let documented: Vec<(&str, Option<&str>)> = include_str!("config.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("/// | `"))
            .map(|row| {
                let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`'));
                (cells.next().unwrap(), cells.next().filter(|alias| !alias.is_empty()))
            })
            .collect();
        let aliases: Vec<String> = KEYS.iter().map(|key| camel_case(key.name)).collect();
        let with_alias =
            |(key, alias): (&Key, &'static str)| (key.name, (alias != key.name).then_some(alias));
        let aliases = aliases.into_iter().map(|alias| &*alias.leak());
        assert_eq!(documented, KEYS.iter().zip(aliases).map(with_alias).collect::<Vec<_>>());
    }

    #[test]
    fn camel_case_is_the_other_spelling() {
        for (name, other) in [
            ("heartbeat", "heartbeat"),
            ("connection_timeout", "connectionTimeout"),
            ("server_name_indication", "serverNameIndication"),
        ] {
            assert_eq!(camel_case(name), other);
        }
    }

    /// Row 3: the one key that may be repeated.
    #[test]
    fn authentication_mechanisms_may_be_repeated() {
        let names = |uri| -> Vec<String> {
            parse(uri).unwrap().auth_mechanisms.iter().map(|mechanism| mechanism.name().to_owned()).collect()
        };
        assert_eq!(names("amqp://"), ["PLAIN", "AMQPLAIN"]);
        assert_eq!(names("amqp://?auth_mechanism=plain"), ["PLAIN"]);
        assert_eq!(
            names(
                "amqp://?auth_mechanism=EXTERNAL&heartbeat=1&authMechanism=anonymous&auth_mechanism=amqplain"
            ),
            ["EXTERNAL", "ANONYMOUS", "AMQPLAIN"]
        );
        let config = parse("amqp://?auth_mechanism=amqplain&auth_mechanism=plain").unwrap();
        assert!(config.to_uri().ends_with("?auth_mechanism=amqplain&auth_mechanism=plain"));
    }

    /// Row 3: a value that is out of range or no value at all.
    #[test]
    fn a_bad_value_is_quoted_and_the_right_ones_are_told() {
        for (query, given, expected) in [
            ("heartbeat=abc", "abc", "seconds from 0 (off) to 65535"),
            ("heartbeat=65536", "65536", "seconds from 0"),
            ("heartbeat=1.5", "1.5", "seconds from 0"),
            ("heartbeat=-1", "-1", "seconds from 0"),
            ("heartbeat=%2B1", "+1", "seconds from 0"),
            ("heartbeat=", "", "seconds from 0"),
            ("connection_timeout=0", "0", "milliseconds from 1"),
            ("rpcTimeout=4294967296", "4294967296", "milliseconds from 1"),
            ("drop_timeout=x", "x", "milliseconds from 0"),
            ("frame_max=4095", "4095", "0 (no limit), or 4096"),
            ("channel_max=65536", "65536", "0 (no limit) to 65535"),
            ("prefetch=99999", "99999", "0 (no limit) to 65535"),
            ("outgoing_buffer=1", "1", "at least 4096"),
            ("max_message_size=0", "0", "at least 1"),
            ("auth_mechanism=gssapi", "gssapi", "plain, amqplain, external or anonymous"),
            ("tcp_nodelay=1", "1", "true or false"),
            ("keepalive=32768", "32768", "0 (off) to 32767"),
            ("bind_address=localhost", "localhost", "an IP address"),
            ("send_buffer=0", "0", "from 1 to 2147483647"),
            ("verify=no", "no", "verify_peer or verify_none"),
            ("cacertfile=", "", "the path of a file"),
            ("server_name_indication=", "", "a host name, or disable"),
            ("recovery=on", "on", "off (automatic recovery is not available yet)"),
        ] {
            let text = error(&format!("amqps://h?{query}"));
            assert!(text.contains(&format!("is {given:?}; expected ")), "{text}");
            assert!(text.contains(expected), "{text}");
        }
        assert_eq!(
            error("amqp://?heartbeat=abc"),
            "the URI's key heartbeat is \"abc\"; expected seconds from 0 (off) to 65535"
        );
    }

    /// Row 3: an unknown key is named, and the known ones are listed; so is one that is given twice.
    #[test]
    fn unknown_duplicate_and_misplaced_keys_are_named() {
        let unknown = error("amqp://h?heart_beat=5");
        assert!(unknown.contains("unknown key \"heart_beat\""), "{unknown}");
        assert!(KEYS.iter().all(|key| unknown.contains(key.name)), "{unknown}");
        for (query, expected) in [
            ("Heartbeat=1", "unknown key \"Heartbeat\""),
            ("=1", "unknown key \"\""),
            ("heartbeat=1&heartbeat=1", "key heartbeat is given twice"),
            ("frame_max=0&heartbeat=1&frameMax=0", "key frame_max is given twice"),
            ("heartbeat", "key heartbeat has no value"),
            ("cacertfile=a", "key cacertfile needs the scheme amqps"),
            ("verify=verify_peer", "key verify needs the scheme amqps"),
            ("password=s3cret", "key password needs the scheme amqps"),
        ] {
            let text = error(&format!("amqp://h?{query}"));
            assert!(text.contains(expected) && !text.contains("s3cret"), "{text}");
        }
        for harmless in ["", "&", "heartbeat=1&", "&&heartbeat=1", "%68eartbeat=1"] {
            assert!(parse(&format!("amqp://h?{harmless}")).is_ok(), "{harmless}");
        }
    }

    /// Row 4: whatever is wrong, and wherever.
    #[test]
    fn no_error_contains_a_password() {
        const MARK: &str = "s3cret";
        let passwords = [
            "s3cret",
            "a/s3cret",
            "a?s3cret",
            "a?s3cret=1",
            "a#s3cret",
            "a@s3cret",
            "a:s3cret",
            "a,s3cret",
            "a&s3cret",
            "%s3cret",
            "s3cret%",
            "s3cret%ff",
            "[s3cret",
            "a]s3cret",
            "s3cret ü",
            "1/s3cret/b",
            "1?s3cret=b",
            "1?heartbeat=s3cret",
            "1?x/s3cret",
            "a=s3cret&b=s3cret",
            "s3cret\n",
            "s3cret\0",
        ];
        let places = [
            "amqp://u:{}@h:x",
            "amqp://u:{}@h:0/v",
            "amqp://u:{}@h/v/w",
            "amqp://u:{}@[::1/v",
            "amqp://u:{}@h/%",
            "amqp://u:{}@h?heartbeat=x",
            "amqp://u:{}@h?nonsense=1",
            "amqp://u:{}@h#f",
            "amqp://u:{}@a,,b",
            "u:{}@h",
            "//u:{}@h",
            "http://u:{}@h",
            "amqp:u:{}@h",
            "{}",
            "{}://u:p@h",
            "amqp://u:{}:@h",
            "amqp://%:{}@h",
            "amqp://u:{}",
            "amqp://u:{}/v",
            "amqp://u:{}@h:1:2",
            "amqps://h?password={}&heartbeat=x",
            "amqps://h?password={}&password=b",
            "amqps://h?password={}&x",
            "amqps://h?passwort={}",
            "amqps://h?password{}",
            "amqps://h?password={}%",
            "amqp://h?password={}",
            "amqps://u:p@h?password={}&nonsense=1",
            "amqps://u:p@h?password={}#",
        ];
        let mut refused = 0;
        for (place, password) in
            places.iter().flat_map(|place| passwords.iter().map(move |word| (place, word)))
        {
            let uri = place.replace("{}", password);
            // Here the host is missing, and what remains is a proper URI of the host `u` with a wrong key.
            let is_ambiguous = uri.starts_with("amqp://u:1?") && !uri.contains('@');
            if let (Err(error), false) = (parse(&uri), is_ambiguous) {
                refused += 1;
                assert!(!format!("{error} {error:?} {error:#?}").contains(MARK), "{uri}: {error}");
            }
        }
        assert!(refused > places.len() * passwords.len() * 9 / 10, "{refused}");
        assert!(error("amqps://h?password=a&s3cret=1").contains("an unknown key; the known keys"));
        assert!(error("amqps://h?password=a&heartbeat=s3cret").contains("heartbeat is not usable; expected"));
        assert!(error("amqp://u:1?heartbeat=s3cret@h").contains("heartbeat is not usable; expected"));
        let config = parse("amqps://u:s3cret@h/v?password=s3cret").unwrap();
        assert!(!format!("{config} {config:?} {config:#?}").contains(MARK));
    }

    /// A small pseudo-random generator (xorshift), so that every run tries the same.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 16) as usize % limit
        }

        fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
            choices[self.below(choices.len())]
        }

        fn text(&mut self, shortest: usize) -> String {
            let letters = [
                "a", "Z", "0", "/", ":", "@", "?", "#", "%", "&", "=", ",", "+", " ", "[", "]", "ü", "€",
                "\0", "%2F", "*", "~",
            ];
            (0..shortest + self.below(8)).map(|_| self.pick(&letters)).collect()
        }
    }

    /// Row 2: any configuration round-trips.
    #[test]
    fn any_configuration_survives_its_uri() {
        let mut random = Random(0x5eed);
        for _ in 0..2_000 {
            let mut config = Config::new().credentials(random.text(0), random.text(0)).vhost(random.text(0));
            config.addresses = (0..=random.below(3))
                .map(|_| match random.below(3) {
                    0 => Address::new(random.pick(&["::1", "fe80::1%eth0", "2001:db8::1%a,b]"]), 5672),
                    _ => Address { host: random.text(1), port: 1 + random.below(65535) as u16 },
                })
                .collect();
            config.connection_name = Some(random.text(0));
            config.heartbeat = Duration::from_secs(random.below(65536) as u64);
            config.call_timeout = Duration::from_millis(1 + random.below(100_000) as u64);
            config.tls = (random.below(2) == 0).then(|| TlsOptions {
                ca_certificate_file: Some(random.text(1).into()),
                password: Some(random.text(0).into()),
                server_name: ServerName::Custom(random.text(1)),
                ..TlsOptions::default()
            });
            let uri = config.to_uri();
            let parsed = parse(&uri).expect(&uri);
            assert_eq!(image(&parsed), image(&config), "{uri}");
            assert_eq!(parsed.to_uri(), uri);
        }
    }

    /// Rows 2, 4: whatever is done to a URI.
    #[test]
    fn no_input_panics_and_no_mutation_shows_the_password() {
        let seeds = [
            "amqp://user:s3cret@host:10000/vhost?heartbeat=5&frameMax=8192&auth_mechanism=plain",
            "amqps://us%65r:s3cret@[fe80::1%25a]:5671,b/%2f?password=s3cret&verify=verify_none&keyfile=/k",
            "amqp:///v?recovery=off&bind_address=::1&keepalive=0&connection_name=%C3%BC",
        ];
        let pieces = [
            "%", "/", ":", "@", "?", "#", "[", "]", ",", "&", "=", "\0", "ü", "9", "%ff", "://", "", "", "-",
        ];
        let mut random = Random(0xf022);
        let mut accepted = 0;
        for round in 0..100_000 {
            let mut letters: Vec<String> = seeds[round % seeds.len()].chars().map(String::from).collect();
            for _ in 0..=random.below(4) {
                let place = random.below(letters.len());
                letters[place] = random.pick(&pieces).to_owned();
            }
            let uri = letters.concat();
            match parse(&uri) {
                Ok(config) => {
                    accepted += 1;
                    assert_eq!(image(&parse(&config.to_uri()).expect(&uri)), image(&config), "{uri}");
                }
                Err(error) => assert!(!error.to_string().contains("s3cret"), "{uri}: {error}"),
            }
        }
        assert!((1_000..99_000).contains(&accepted), "{accepted} of the mutations were accepted");
    }
}
