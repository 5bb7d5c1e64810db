//! Against real brokers: every listener and every form of a client's identity.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use leveret::{
    Config, Connection, Error, Mechanism, TlsOptions, TlsProblem,
    native_tls::{Certificate, Identity, Protocol, TlsConnector},
};

use crate::{
    common::brokers::{Broker, VARIABLE, on_each_broker, on_each_rabbitmq},
    problem,
};

/// Why these are for RabbitMQ; the in-process broker has its own.
const NODE: &str = "uses the TLS ports, the client certificates and EXTERNAL of a node";

/// The broker's side of TLS, as tests/broker/up has left it beside its rabbitmqctl.
struct Listeners<'a> {
    broker: &'a Broker,
    folder: PathBuf,
}

impl Listeners<'_> {
    fn of(broker: &Broker) -> Listeners<'_> {
        let list = fs::read_to_string(env::var_os(VARIABLE).unwrap()).unwrap();
        let line = list.lines().find(|line| line.starts_with(&format!("{}\t", broker.name))).unwrap();
        let ctl = Path::new(line.split('\t').nth(4).unwrap());
        broker.ctl(&["tls"]);
        Listeners { broker, folder: ctl.parent().unwrap().to_owned() }
    }

    fn port(&self, name: &str) -> u16 {
        let list = fs::read_to_string(self.folder.join("tls")).unwrap();
        let line = list.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
        line.unwrap().parse().unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join("certificates").join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).unwrap()
    }

    fn trusting(&self) -> TlsOptions {
        TlsOptions::new().ca_certificate_file(self.file("ca.pem"))
    }

    /// The way to a listener, by its IP address.
    fn config(&self, listener: &str, tls: TlsOptions) -> Config {
        self.broker.config().host("127.0.0.1", self.port(listener)).tls(tls)
    }

    /// A connector of the test's own, for this version only.
    fn connector(&self, version: Protocol, client: Option<&str>) -> TlsOptions {
        let mut builder = TlsConnector::builder();
        builder.add_root_certificate(Certificate::from_pem(&self.read("ca.pem")).unwrap());
        builder.min_protocol_version(Some(version)).max_protocol_version(Some(version));
        if let Some(name) = client {
            let (certificate, key) = (self.read(&format!("{name}.pem")), self.read(&format!("{name}.key")));
            builder.identity(Identity::from_pkcs8(&certificate, &key).unwrap());
        }
        TlsOptions::new().connector(builder.build().unwrap())
    }
}

/// Sends a message there and back.
fn works(connection: &Connection) -> Result<(), Error> {
    let channel = connection.channel()?;
    channel.queue_declare("works")?;
    channel.basic_publish("", "works", "over TLS")?;
    let delivery = channel.basic_get("works")?.expect("the message");
    assert_eq!(delivery.body(), b"over TLS");
    delivery.ack()?;
    channel.close()?;
    connection.close()
}

/// Row 7: by IP address (which the certificate has), by name, and for both versions of TLS.
#[test]
fn a_trusted_broker_is_reached() {
    on_each_rabbitmq(NODE, |broker| {
        let tls = Listeners::of(broker);
        for listener in ["optional", "1.2", "1.3"] {
            works(&Connection::open(tls.config(listener, tls.trusting()))?)?;
        }
        for version in [Protocol::Tlsv12, Protocol::Tlsv13] {
            works(&Connection::open(tls.config("optional", tls.connector(version, None)))?)?;
        }
        let by_name = tls.config("optional", tls.trusting()).host("localhost", tls.port("optional"));
        works(&Connection::open(by_name)?)
    });
}

/// Row 3: the keys of the URI.
#[test]
fn a_uri_says_it_all() {
    on_each_rabbitmq(NODE, |broker| {
        let tls = Listeners::of(broker);
        let uri = format!(
            "amqps://localhost:{}/{}?cacertfile={}&certfile={}&keyfile={}&password=hare&verify=verify_peer\
             &server_name_indication=localhost&auth_mechanism=external",
            tls.port("required"),
            broker.vhost,
            tls.file("ca.pem").display(),
            tls.file("client.pem").display(),
            tls.file("client-locked.key").display(),
        );
        works(&Connection::open(uri)?)
    });
}

/// Row 7: verification against a real broker.
#[test]
fn an_untrusted_broker_is_refused() {
    on_each_rabbitmq(NODE, |broker| {
        let tls = Listeners::of(broker);
        for listener in ["optional", "1.2", "1.3"] {
            let foreign = TlsOptions::new().ca_certificate_file(tls.file("foreign-ca.pem"));
            assert_eq!(problem(tls.config(listener, foreign)), TlsProblem::UnknownAuthority);
            let other = tls.trusting().server_name("other.example");
            assert_eq!(problem(tls.config(listener, other)), TlsProblem::WrongName);
        }
        let newer = tls.connector(Protocol::Tlsv13, None);
        assert_eq!(problem(tls.config("1.2", newer)), TlsProblem::Incompatible);
        let older = tls.connector(Protocol::Tlsv12, None);
        assert_eq!(problem(tls.config("1.3", older)), TlsProblem::Incompatible);
        Ok(())
    });
}

/// Row 7: a client certificate that is required and missing, wrong, or good, for both versions of TLS; with 1.3 the
/// broker says so only after its handshake.
#[test]
fn a_required_client_certificate_is_asked_for_by_name() {
    on_each_rabbitmq(NODE, |broker| {
        let tls = Listeners::of(broker);
        use TlsProblem::{ClientCertificateRefused as Refused, ClientCertificateRequired as Required};
        for (client, expected) in
            [(None, Required), (Some("client-foreign"), Refused), (Some("client-expired"), Refused)]
        {
            let mut options = tls.trusting();
            if let Some(name) = client {
                options = options
                    .certificate_file(tls.file(&format!("{name}.pem")))
                    .key_file(tls.file(&format!("{name}.key")));
            }
            // Whether an alert or the reset of the socket is seen first is a race that must not show.
            for _ in 0..20 {
                assert_eq!(problem(tls.config("required", options.clone())), expected, "{client:?}");
            }
        }
        for version in [Protocol::Tlsv12, Protocol::Tlsv13] {
            assert_eq!(problem(tls.config("required", tls.connector(version, None))), Required);
            let wrong = problem(tls.config("required", tls.connector(version, Some("client-foreign"))));
            assert!([Refused, Required].contains(&wrong), "{wrong:?}");
            works(&Connection::open(tls.config("required", tls.connector(version, Some("client"))))?)?;
        }
        Ok(())
    });
}

/// Rows 7 and 8: the client's identity in every form, proved by EXTERNAL, for which RabbitMQ takes its name.
#[test]
fn external_authenticates_with_every_form_of_certificate() {
    on_each_rabbitmq(NODE, |broker| {
        let tls = Listeners::of(broker);
        let pem = tls.trusting().certificate_file(tls.file("client.pem"));
        for options in [
            pem.clone().key_file(tls.file("client.key")),
            pem.clone().key_file(tls.file("client-old.key")),
            pem.clone().key_file(tls.file("client-locked.key")).password("hare"),
            tls.trusting().certificate_file(tls.file("client-both.pem")),
            tls.trusting().certificate_file(tls.file("client.p12")).password("hare"),
        ] {
            for listener in ["required", "1.2", "1.3"] {
                let config = tls.config(listener, options.clone()).credentials("nobody", "wrong");
                let connection = Connection::open(config.auth_mechanism(Mechanism::External))?;
                works(&connection)?;
            }
        }
        Ok(())
    });
}

/// Rows 8 and 9: EXTERNAL without a certificate, a wrong password, a missing virtual host.
#[test]
fn authentication_errors_are_those_of_a_plain_connection() {
    on_each_rabbitmq(NODE, |broker| {
        let tls = Listeners::of(broker);
        let config = tls.config("optional", tls.trusting());
        let error = Connection::open(config.clone().auth_mechanism(Mechanism::External)).unwrap_err();
        assert!(matches!(&error, Error::AuthenticationFailed(text) if text.contains("EXTERNAL")), "{error}");
        let error = Connection::open(config.clone().credentials("guest", "wrong")).unwrap_err();
        assert!(
            matches!(&error, Error::AuthenticationFailed(text) if text.contains("ACCESS_REFUSED")),
            "{error}"
        );
        let error = Connection::open(config.vhost("missing")).unwrap_err();
        assert_eq!(error.reply_code(), Some(leveret::ReplyCode::NotAllowed), "{error}");
        Ok(())
    });
}

/// Row 7: each on the other's port, with a hint.
#[test]
fn the_wrong_port_is_hinted_at() {
    on_each_rabbitmq(NODE, |broker| {
        let tls = Listeners::of(broker);
        let plain = broker.config().host("127.0.0.1", tls.port("optional"));
        let error = Connection::open(plain).unwrap_err();
        assert!(error.to_string().contains("amqps"), "{error}");
        let tls_on_plain = broker.config().tls(tls.trusting());
        assert_eq!(problem(tls_on_plain), TlsProblem::NotTls);
        Ok(())
    });
}

/// Row 50 and on: large bodies over TLS are the same bytes, both ways.
#[test]
fn sixty_four_mebibytes_there_and_back_are_the_same() {
    on_each_rabbitmq(NODE, |broker| {
        let tls = Listeners::of(broker);
        // RabbitMQ 4 takes 16 MiB at most.
        let (size, count) = if broker.version.starts_with("3.") { (64 << 20, 1) } else { (16 << 20, 4) };
        let mut random = fastrand::Rng::with_seed(7);
        let body: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(size).collect();
        let connection = Connection::open(tls.config("optional", tls.trusting()))?;
        let channel = connection.channel()?;
        channel.queue_declare("large")?;
        for number in 0..count {
            let mut body = body.clone();
            body[0] = number;
            channel.basic_publish("", "large", &body)?;
        }
        for number in 0..count {
            let delivery = channel.basic_get("large")?.expect("the message");
            assert!(delivery.body()[0] == number && delivery.body()[1..] == body[1..], "message {number}");
            delivery.ack()?;
        }
        connection.close()
    });
}

/// Row 7: a Unix socket, through a relay to the broker's port.
#[cfg(unix)]
#[test]
fn a_unix_socket_is_a_stream() {
    use std::{
        net::{Shutdown, TcpStream},
        os::unix::net::{UnixListener, UnixStream},
        thread,
    };

    use leveret::Stream;

    on_each_broker(|broker| {
        let path = env::temp_dir().join(format!("{}.socket", broker.vhost));
        let listener = UnixListener::bind(&path).unwrap();
        let address = broker.address();
        let relay = thread::spawn(move || {
            let (local, _) = listener.accept().unwrap();
            let remote = TcpStream::connect(address).unwrap();
            let (mut from, mut to) = (local.try_clone().unwrap(), remote.try_clone().unwrap());
            let up = thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let _ = std::io::copy(&mut &remote, &mut &local);
            let _ = local.shutdown(Shutdown::Both);
            up.join().unwrap();
        });
        let socket = UnixStream::connect(&path).unwrap();
        let (reader, writer) = (socket.try_clone().unwrap(), socket.try_clone().unwrap());
        let stream = Stream::new(reader, writer, move || _ = socket.shutdown(Shutdown::Both));
        let connection = Connection::open_stream(stream, broker.config())?;
        let channel = connection.channel()?;
        channel.queue_declare("large")?;
        let body: Vec<u8> = (0..5_000_000u32).map(|number| (number / 3) as u8).collect();
        channel.basic_publish("", "large", &body)?;
        let delivery = channel.basic_get("large")?.expect("the message");
        assert!(delivery.body() == body);
        delivery.ack()?;
        connection.close()?;
        relay.join().unwrap();
        fs::remove_file(&path).unwrap();
        Ok(())
    });
}

/// Runs an example of this name; gives what it prints.
fn example(name: &str, variables: &[(&str, &str)]) -> String {
    let this = env::current_exe().unwrap();
    let profile = this.ancestors().nth(2).unwrap();
    // Cargo builds the examples for all tests, but not when it is asked for this one only.
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--example", name]);
    build.arg("--target-dir").arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "{name} does not build");
    let output = Command::new(profile.join("examples").join(name)).envs(variables.iter().copied()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_examples_print_what_they_promise() {
    on_each_rabbitmq(NODE, |broker| {
        let tls = Listeners::of(broker);
        let uri = format!("amqps://localhost:{}/{}", tls.port("optional"), broker.vhost);
        let ca = tls.file("ca.pem").display().to_string();
        let with_ca = format!("{uri}?cacertfile={ca}");
        assert_eq!(example("tls", &[("AMQPS_URL", &with_ca)]), "nobody reads this on its way\n");
        assert_eq!(
            example("tls", &[("AMQPS_URL", &uri)]),
            "not the broker that it should be: the broker's certificate is not from an authority that is trusted\n"
        );
        assert_eq!(
            example("tls_custom", &[("AMQPS_URL", &uri), ("CA_FILE", &ca)]),
            "with a connector of our own: true\nwith a stream of our own: true\n"
        );
        // What it prints is compared by tests/examples: here, it is plaintext.
        let filtered = example("transport_filter", &[("AMQP_URL", &with_ca)]);
        let lines: Vec<&str> = filtered.lines().collect();
        assert!(lines[0].starts_with("OUTGOING ---> ") && lines[0].contains("filtered"), "{filtered}");
        assert!(lines[1].starts_with("INCOMING ---> ") && lines[1].contains("filtered"), "{filtered}");
        Ok(())
    });
}
