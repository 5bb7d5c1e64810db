//! A client that hides nothing: it sends methods as they are told, and gives every frame that comes back.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::{Target, common::peer::*};

/// How long a broker may think.
const PATIENCE: Duration = Duration::from_secs(20);

/// A method that came, with its content if it has one.
#[derive(Debug, Clone)]
pub struct Received {
    pub channel: u16,
    pub method: Method,
    pub arguments: Arguments,
    pub properties: Vec<u8>,
    pub body: Vec<u8>,
}

/// One connection.
pub struct Wire {
    socket: TcpStream,
    /// What is to be sent before anything is waited for.
    out: Vec<u8>,
    buffer: Vec<u8>,
    /// Contents that are not complete: the message, and how much is missing once the header came.
    partial: HashMap<u16, (Received, Option<usize>)>,
}

impl Wire {
    /// The password is the name.
    pub fn open(target: &Target, user: &str) -> Wire {
        let socket = TcpStream::connect(target.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut wire = Wire { socket, out: Vec::new(), buffer: Vec::new(), partial: HashMap::new() };
        wire.write(&PROTOCOL_HEADER);
        wire.expect(0, START);
        let capabilities = table(&[("consumer_cancel_notify", 't', &[1])]);
        let properties = table(&[("capabilities", 'F', &capabilities)]);
        let secret = format!("\0{user}\0{user}");
        wire.send(0, START_OK, args![&*properties, "PLAIN", &secret, "en_US"]);
        wire.expect(0, TUNE);
        wire.send(0, TUNE_OK, args![2047, 131_072, 0]);
        wire.send(0, OPEN, args![&*target.vhost, "", 0]);
        wire.expect(0, OPEN_OK);
        wire
    }

    pub fn send(&mut self, channel: u16, sent: Method, arguments: &[Value]) {
        self.write(&method(channel, sent, arguments));
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Sends at once. A broker that has closed the connection shows in what is read.
    pub fn flush(&mut self) {
        let _ = self.socket.write_all(&std::mem::take(&mut self.out));
    }

    /// The next method that is complete; `None` when the connection has ended.
    pub fn receive(&mut self) -> Option<Received> {
        self.flush();
        loop {
            while let Some(frame) = take_frame(&mut self.buffer) {
                if let Some(received) = self.take(frame) {
                    return Some(received);
                }
            }
            let mut piece = [0; 65536];
            match self.socket.read(&mut piece) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Option<Received> {
        match frame.kind {
            HEARTBEAT => None,
            METHOD => {
                let method = frame.method().expect("a known method");
                let arguments = frame.arguments();
                let channel = frame.channel;
                let received =
                    Received { channel, method, arguments, properties: Vec::new(), body: Vec::new() };
                if ![DELIVER, GET_OK, RETURN].contains(&method) {
                    return Some(received);
                }
                self.partial.insert(channel, (received, None));
                None
            }
            kind => {
                let (mut received, missing) = self.partial.remove(&frame.channel).expect("a content");
                let missing = if kind == HEADER {
                    let size = u64::from_be_bytes(frame.payload[4..12].try_into().unwrap());
                    received.properties = frame.payload[12..].to_vec();
                    size as usize
                } else {
                    received.body.extend_from_slice(&frame.payload);
                    missing.expect("a header first") - frame.payload.len()
                };
                if missing == 0 {
                    return Some(received);
                }
                self.partial.insert(frame.channel, (received, Some(missing)));
                None
            }
        }
    }

    fn expect(&mut self, channel: u16, wanted: Method) {
        let received = self.receive().expect("an open connection");
        assert_eq!((received.channel, received.method), (channel, wanted), "{received:?}");
    }
}
