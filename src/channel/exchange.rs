//! Exchanges: declare, delete, bind and unbind.

use super::Channel;
use crate::{
    error::Result,
    protocol::{
        spec::{self, Method},
        value::{FieldTable, FieldValue},
        wire::{ShortStr, Table},
    },
};

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExchangeKind<'a> {
    /// To queues bound with exactly the routing key.
    Direct,
    /// To all bound queues.
    Fanout,
    /// By patterns of dotted words, where `*` is one word and `#` any number.
    Topic,
    /// By headers.
    Headers,
    /// Of a plugin, such as `x-consistent-hash`.
    Other(&'a str),
}

impl<'a> ExchangeKind<'a> {
    /// The name that the protocol uses.
    pub fn as_str(&self) -> &'a str {
        match self {
            ExchangeKind::Direct => "direct",
            ExchangeKind::Fanout => "fanout",
            ExchangeKind::Topic => "topic",
            ExchangeKind::Headers => "headers",
            ExchangeKind::Other(name) => name,
        }
    }
}

impl<'a> From<&'a str> for ExchangeKind<'a> {
    fn from(name: &'a str) -> ExchangeKind<'a> {
        match name {
            "direct" => ExchangeKind::Direct,
            "fanout" => ExchangeKind::Fanout,
            "topic" => ExchangeKind::Topic,
            "headers" => ExchangeKind::Headers,
            other => ExchangeKind::Other(other),
        }
    }
}

/// Arguments of [`Channel::exchange_declare`]. A pair of name and kind converts into it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct ExchangeDeclare<'a> {
    /// The name.
    pub exchange: &'a str,
    /// How it routes.
    pub kind: ExchangeKind<'a>,
    /// It survives a restart of the broker. Default: no.
    pub durable: bool,
    /// It is deleted when its last binding is. Default: no.
    pub auto_delete: bool,
    /// Nobody may publish to it; only other exchanges route to it. Default: no.
    pub internal: bool,
    /// Further arguments.
    pub arguments: FieldTable,
}

impl<'a> ExchangeDeclare<'a> {
    /// A transient exchange.
    pub fn new(exchange: &'a str, kind: impl Into<ExchangeKind<'a>>) -> ExchangeDeclare<'a> {
        ExchangeDeclare {
            exchange,
            kind: kind.into(),
            durable: false,
            auto_delete: false,
            internal: false,
            arguments: FieldTable::new(),
        }
    }

    /// Sets [`durable`](ExchangeDeclare#structfield.durable).
    pub fn durable(mut self, durable: bool) -> ExchangeDeclare<'a> {
        self.durable = durable;
        self
    }

    /// Sets [`auto_delete`](ExchangeDeclare#structfield.auto_delete).
    pub fn auto_delete(mut self, auto_delete: bool) -> ExchangeDeclare<'a> {
        self.auto_delete = auto_delete;
        self
    }

    /// Sets [`internal`](ExchangeDeclare#structfield.internal).
    pub fn internal(mut self, internal: bool) -> ExchangeDeclare<'a> {
        self.internal = internal;
        self
    }

    /// Adds one argument.
    pub fn argument(mut self, name: &str, value: impl Into<FieldValue>) -> ExchangeDeclare<'a> {
        self.arguments.insert(name, value);
        self
    }

    /// Messages that match no binding go to this exchange instead (`alternate-exchange`).
    pub fn alternate_exchange(self, exchange: &str) -> ExchangeDeclare<'a> {
        self.argument("alternate-exchange", exchange)
    }

    pub(super) fn method<'m>(
        &'m self,
        arguments: &'m [u8],
        no_wait: bool,
    ) -> Result<spec::ExchangeDeclare<'m>> {
        Ok(spec::ExchangeDeclare {
            exchange: exchange_name(self.exchange)?,
            type_: ShortStr::new("the exchange type", self.kind.as_str())?,
            durable: self.durable,
            auto_delete: self.auto_delete,
            internal: self.internal,
            no_wait,
            arguments: Table(arguments),
            ..Default::default()
        })
    }
}

impl<'a, K: Into<ExchangeKind<'a>>> From<(&'a str, K)> for ExchangeDeclare<'a> {
    fn from((exchange, kind): (&'a str, K)) -> ExchangeDeclare<'a> {
        ExchangeDeclare::new(exchange, kind)
    }
}

/// Arguments of [`Channel::exchange_delete`]. A bare name converts into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct ExchangeDelete<'a> {
    /// The name.
    pub exchange: &'a str,
    /// Only if nothing is bound to it; otherwise 406. Default: no.
    pub if_unused: bool,
}

impl<'a> ExchangeDelete<'a> {
    /// Whether it is in use or not.
    pub fn new(exchange: &'a str) -> ExchangeDelete<'a> {
        ExchangeDelete { exchange, if_unused: false }
    }

    /// Sets [`if_unused`](ExchangeDelete#structfield.if_unused).
    pub fn if_unused(mut self, if_unused: bool) -> ExchangeDelete<'a> {
        self.if_unused = if_unused;
        self
    }

    pub(super) fn method(&self, no_wait: bool) -> Result<spec::ExchangeDelete<'a>> {
        Ok(spec::ExchangeDelete {
            exchange: exchange_name(self.exchange)?,
            if_unused: self.if_unused,
            no_wait,
            ..Default::default()
        })
    }
}

impl<'a> From<&'a str> for ExchangeDelete<'a> {
    fn from(exchange: &'a str) -> ExchangeDelete<'a> {
        ExchangeDelete::new(exchange)
    }
}

macro_rules! exchange_binding {
    ($(#[$doc:meta])+ $name:ident) => {
        $(#[$doc])+
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        #[must_use]
        pub struct $name<'a> {
            /// The exchange that messages go to.
            pub destination: &'a str,
            /// The exchange that they come from.
            pub source: &'a str,
            /// The routing key, or pattern.
            pub routing_key: &'a str,
            /// Arguments, for example those of a headers exchange.
            pub arguments: FieldTable,
        }

        impl<'a> $name<'a> {
            /// From `source` to `destination`.
            pub fn new(destination: &'a str, source: &'a str, routing_key: &'a str) -> $name<'a> {
                $name { destination, source, routing_key, arguments: FieldTable::new() }
            }

            /// Adds one argument.
            pub fn argument(mut self, name: &str, value: impl Into<FieldValue>) -> $name<'a> {
                self.arguments.insert(name, value);
                self
            }

            pub(super) fn method<'m>(&'m self, arguments: &'m [u8], no_wait: bool) -> Result<spec::$name<'m>> {
                Ok(spec::$name {
                    destination: exchange_name(self.destination)?,
                    source: exchange_name(self.source)?,
                    routing_key: ShortStr::new("the routing key", self.routing_key)?,
                    no_wait,
                    arguments: Table(arguments),
                    ..Default::default()
                })
            }
        }

        impl<'a> From<(&'a str, &'a str, &'a str)> for $name<'a> {
            fn from((destination, source, routing_key): (&'a str, &'a str, &'a str)) -> $name<'a> {
                $name::new(destination, source, routing_key)
            }
        }
    };
}

exchange_binding! {
    /// Arguments of [`Channel::exchange_bind`]. A triple of destination, source and routing key converts into it.
    ExchangeBind
}
exchange_binding! {
    /// Arguments of [`Channel::exchange_unbind`]: those of the binding.
    ExchangeUnbind
}

fn exchange_name(name: &str) -> Result<ShortStr<'_>> {
    ShortStr::new("the exchange name", name)
}

impl Channel {
    /// Makes sure that an exchange exists.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused): 406 when it exists with other arguments, 403 for names that
    /// begin with `amq.`, 406 for a type that the broker does not know (RabbitMQ before 4.0: 503, which closes the
    /// connection). Those of every call: see [`Channel`].
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// # let channel = connection.channel()?;
    /// use leveret::{ExchangeDeclare, ExchangeKind};
    /// channel.exchange_declare(ExchangeDeclare::new("shop", ExchangeKind::Topic).durable(true))?;
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn exchange_declare<'a>(&self, declare: impl Into<ExchangeDeclare<'a>>) -> Result<()> {
        let declare = declare.into();
        let arguments = declare.arguments.encode()?;
        self.call(&declare.method(&arguments, false)?, |method| {
            matches!(method, Method::ExchangeDeclareOk(_)).then_some(())
        })
    }

    /// Checks that an exchange exists, whatever its arguments.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) with 404 when it does not; the channel is closed then. Those
    /// of every call: see [`Channel`].
    pub fn exchange_declare_passive(&self, exchange: &str) -> Result<()> {
        let method =
            spec::ExchangeDeclare { exchange: exchange_name(exchange)?, passive: true, ..Default::default() };
        self.call(&method, |method| matches!(method, Method::ExchangeDeclareOk(_)).then_some(()))
    }

    /// Deletes an exchange and its bindings. RabbitMQ does not mind if there is none.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused): 406 with `if_unused` when it is in use. Those of every call:
    /// see [`Channel`].
    pub fn exchange_delete<'a>(&self, delete: impl Into<ExchangeDelete<'a>>) -> Result<()> {
        self.call(&delete.into().method(false)?, |method| {
            matches!(method, Method::ExchangeDeleteOk(_)).then_some(())
        })
    }

    /// Has messages of one exchange routed to another (an extension of RabbitMQ's).
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused): 404 when one of them does not exist. Those of every call:
    /// see [`Channel`].
    pub fn exchange_bind<'a>(&self, bind: impl Into<ExchangeBind<'a>>) -> Result<()> {
        let bind = bind.into();
        let arguments = bind.arguments.encode()?;
        self.call(&bind.method(&arguments, false)?, |method| {
            matches!(method, Method::ExchangeBindOk(_)).then_some(())
        })
    }

    /// Removes a binding between exchanges. RabbitMQ does not mind if there is none.
    ///
    /// # Errors
    /// Those of every call: see [`Channel`].
    pub fn exchange_unbind<'a>(&self, unbind: impl Into<ExchangeUnbind<'a>>) -> Result<()> {
        let unbind = unbind.into();
        let arguments = unbind.arguments.encode()?;
        self.call(&unbind.method(&arguments, false)?, |method| {
            matches!(method, Method::ExchangeUnbindOk(_)).then_some(())
        })
    }
}
