//! The client's end of a connection within the process. The only file of the broker that knows the client.

use std::sync::Arc;

use super::{Broker, direct::Listener, hub::Hub};
use crate::{
    connection::{Connection, config::Config},
    error::{Error, Result},
    transport::pipe::pipe,
};

/// What may be on its way in each direction: as much as between two sockets.
const CAPACITY: usize = 256 * 1024;

impl Broker {
    /// Connects to this broker within the process, as `guest` on the virtual host `/`. **Waits** at most
    /// [`handshake_timeout`](Config::handshake_timeout).
    ///
    /// # Errors
    /// Those of [`Connection::open`], which here come from the broker only: [`Error::AuthenticationFailed`] when it
    /// has no user `guest` with that password, [`Error::Io`] when it is stopped.
    pub fn connect(&self) -> Result<Connection> {
        self.connect_with(Config::new())
    }

    /// Like [`connect`](Broker::connect), with credentials, a virtual host and limits of one's own. What `config`
    /// says about hosts and sockets does nothing here.
    ///
    /// # Errors
    /// As [`connect`](Broker::connect), and [`Error::Invalid`] for a wrong setting, or one that asks for TLS.
    pub fn connect_with<C>(&self, config: C) -> Result<Connection>
    where
        C: TryInto<Config>,
        Error: From<C::Error>,
    {
        connect(&self.hub, config.try_into()?)
    }
}

impl Listener {
    /// Connects to this listener within the process, as `guest` on the virtual host `/`. **Waits** at most
    /// [`handshake_timeout`](Config::handshake_timeout).
    ///
    /// # Errors
    /// As [`Broker::connect`].
    pub fn connect(&self) -> Result<Connection> {
        self.connect_with(Config::new())
    }

    /// Like [`connect`](Listener::connect), with credentials, a virtual host and limits of one's own.
    ///
    /// # Errors
    /// As [`Broker::connect_with`].
    pub fn connect_with<C>(&self, config: C) -> Result<Connection>
    where
        C: TryInto<Config>,
        Error: From<C::Error>,
    {
        connect(&self.hub, config.try_into()?)
    }
}

fn connect(hub: &Hub, config: Config) -> Result<Connection> {
    if config.tls.is_some() {
        return Err(Error::invalid("a connection within the process has no TLS"));
    }
    let (client, server) = pipe(CAPACITY);
    hub.start(Arc::new(server), None)?;
    Connection::open_transport(client, config)
}
