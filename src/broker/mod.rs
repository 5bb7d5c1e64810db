//! A broker within the process: AMQP 0-9-1 as RabbitMQ speaks it, with nothing installed.
//!
//! It serves tests and examples: it starts in less than a millisecond, lives as long as its [`Broker`] value, and lets
//! a test see and break everything. Programs use it as they use RabbitMQ; point their URI at RabbitMQ when messages
//! have to survive the process.
//!
//! ```
//! use leveret::broker::Broker;
//!
//! let broker = Broker::start();
//! let connection = broker.connect()?;
//! let channel = connection.channel()?;
//! channel.queue_declare("hello")?;
//! channel.basic_publish("", "hello", "Hello World!")?;
//! let message = channel.basic_get("hello")?.expect("a message");
//! assert_eq!(message.text()?, "Hello World!");
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! [`Broker::listen`] does the same on a TCP port, for any client in any language.
//!
//! It keeps everything in memory and is a single node. What is durable survives [`Broker::restart`], and
//! nothing survives the process.

mod by_number;
mod clock;
mod config;
mod connect;
mod control;
#[doc(hidden)] // Documented at the root of the crate.
pub mod direct;
mod failure;
mod fair;
mod frame_log;
mod hub;
mod inspect;
mod link;
mod listener;
pub(crate) mod model;
mod presence;
mod served;
#[cfg(any(test, fuzzing))]
pub(crate) mod session;
#[cfg(not(any(test, fuzzing)))]
mod session;
mod silence;
mod tamper;
mod timer;
#[cfg(feature = "tls")]
mod tls;

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::{Arc, Mutex},
};

#[cfg(feature = "tls")]
pub use config::Identity;
pub use config::{BrokerConfig, Permissions, User};
pub use control::ConnectionInfo;
pub use frame_log::{Direction, LoggedFrame};
pub use inspect::{BindingInfo, ConsumerInfo, ExchangeInfo, PeekedMessage, QueueInfo};
pub use model::Emulate;
pub use tamper::ConfirmMode;

use crate::{
    error::{Error, Result},
    sync::lock,
};
use hub::Hub;
use listener::Listener;

/// A running broker. Dropping it stops it: connections are closed (320, `CONNECTION_FORCED`), and all its threads have
/// ended when the drop returns, within a second.
///
/// Any number of brokers run beside each other. Each connection costs two threads with small stacks, and the
/// broker itself at most two.
#[derive(Debug)]
pub struct Broker {
    hub: Arc<Hub>,
    listener: Mutex<Option<Listener>>,
    address: Option<SocketAddr>,
}

impl Broker {
    /// A broker that only this process can reach, with [`connect`](Broker::connect). **Does not wait.**
    #[must_use = "it stops when it is dropped"]
    pub fn start() -> Broker {
        Broker { hub: Hub::new(BrokerConfig::new()), listener: Mutex::default(), address: None }
    }

    /// A broker that listens on TCP; port 0 takes any that is free. [`uri`](Broker::uri) says where it is.
    ///
    /// # Errors
    /// [`Error::Io`]: the address cannot be listened on.
    ///
    /// ```
    /// use leveret::{Connection, broker::Broker};
    ///
    /// let broker = Broker::listen("127.0.0.1:0")?;
    /// let connection = Connection::open(broker.uri()?)?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn listen(address: impl ToSocketAddrs) -> Result<Broker> {
        BrokerConfig::new().listen(address)
    }

    /// Where the broker listens; `None` if only its own process can reach it.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// A URI with the credentials of the first user and the virtual host `/`.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the broker does not listen.
    pub fn uri(&self) -> Result<String> {
        let address = self
            .address
            .ok_or_else(|| Error::invalid("a broker that was started without an address has no URI"))?;
        Ok(uri(&self.hub.config, address))
    }

    /// Stops as RabbitMQ does: no new connections, and those that are open are closed with 320. Returns when all of
    /// them have ended, after at most half a second and what clients take to notice that their socket is closed.
    /// [`restart`](Broker::restart) goes on.
    pub fn stop(&self) {
        self.close_listener();
        self.hub.stop_sessions();
    }

    /// Stops without a word to anyone, as a broker does that is killed.
    pub fn crash(&self) {
        self.close_listener();
        self.hub.set_stopped(true);
        self.hub.cut_sessions();
    }

    /// Starts again, on the same port: durable exchanges and queues, and the persistent messages in them, are there
    /// again; all else is lost. [Stops](Broker::stop) first if that has not happened.
    ///
    /// # Errors
    /// [`Error::Io`]: somebody else listens on the port now. The broker stays stopped.
    pub fn restart(&self) -> Result<()> {
        if !self.hub.is_stopped() {
            self.stop();
        }
        self.hub.restart();
        if let Some(address) = self.address {
            *lock(&self.listener) = Some(Listener::start(&self.hub, &[address])?);
        }
        self.hub.set_stopped(false);
        Ok(())
    }

    fn close_listener(&self) {
        // A statement of its own: the lock is not held while the listener's thread is waited for.
        let listener = lock(&self.listener).take();
        drop(listener);
    }
}

/// A URI with the credentials of the first user.
fn uri(config: &BrokerConfig, address: SocketAddr) -> String {
    let user = config.users.first();
    let (name, password) = user.map_or(("", ""), |user| (&*user.name, user.password.expose()));
    #[cfg(feature = "tls")]
    let scheme = if config.identity.is_some() { "amqps" } else { "amqp" };
    #[cfg(not(feature = "tls"))]
    let scheme = "amqp";
    let encode = |text| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
    format!("{scheme}://{}:{}@{address}", encode(name), encode(password))
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop();
        self.hub.timer.stop();
    }
}

impl BrokerConfig {
    /// Starts a broker that only this process can reach.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the setting that is wrong.
    pub fn start(self) -> Result<Broker> {
        self.validate()?;
        Ok(Broker { hub: Hub::new(self), listener: Mutex::default(), address: None })
    }

    /// Starts a broker that listens on TCP, or on TLS if it has an identity.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the setting that is wrong; [`Error::Io`]: the address cannot be listened on.
    pub fn listen(self, address: impl ToSocketAddrs) -> Result<Broker> {
        let failed = |error| Error::io("listening", error);
        let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(failed)?.collect();
        let mut broker = self.start()?;
        let listener = Listener::start(&broker.hub, &addresses)?;
        broker.address = Some(listener.address());
        broker.listener = Mutex::new(Some(listener));
        Ok(broker)
    }
}
