//! TLS by other means: a connector that the program has built, and a stream that another TLS library encrypts.
//!
//! From "Loading a Different SSL Implementation" of the AMPS Python client's advanced topics. The broker is that of
//! `AMQPS_URL`, which must not have a `cacertfile`; the authority to trust is in the file `CA_FILE`.

use std::{
    env, error, fs, io,
    net::TcpStream,
    sync::{Arc, Mutex, PoisonError},
};

use leveret::{
    Config, Connection, Stream, TlsOptions,
    native_tls::{Certificate, Protocol, TlsConnector, TlsStream},
};

fn main() -> Result<(), Box<dyn error::Error>> {
    let mut config: Config = env::var("AMQPS_URL")?.parse()?;
    let connector = TlsConnector::builder()
        .add_root_certificate(Certificate::from_pem(&fs::read(env::var("CA_FILE")?)?)?)
        .min_protocol_version(Some(Protocol::Tlsv12))
        .build()?;

    config = config.tls(TlsOptions::new().connector(connector.clone()));
    let connection = Connection::open(config.clone())?;
    println!("with a connector of our own: {}", connection.is_open());
    connection.close()?;

    // The stream does the encryption now, so for the connection it is a plain one.
    config.tls = None;
    let address = config.addresses.first().ok_or("no host")?;
    let socket = TcpStream::connect((address.host.as_str(), address.port))?;
    let tls = connector.connect(&address.host, socket.try_clone()?)?;
    // Reading and writing share the library's object: nobody may keep it while he waits.
    socket.set_nonblocking(true)?;
    let half = Half(Arc::new(Mutex::new(tls)));
    let stream = Stream::new(half.clone(), half, move || _ = socket.shutdown(std::net::Shutdown::Both));
    let connection = Connection::open_stream(stream, config)?;
    println!("with a stream of our own: {}", connection.is_open());
    Ok(connection.close()?)
}

#[derive(Clone)]
struct Half(Arc<Mutex<TlsStream<TcpStream>>>);

impl io::Read for Half {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(buffer)
    }
}

impl io::Write for Half {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}
