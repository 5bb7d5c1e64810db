//! Bytes to values and back: the codec of AMQP 0-9-1 with RabbitMQ's extensions.
//!
//! Invariant: this layer does no I/O, knows no clock, no thread and no lock, and has no role: a client and a
//! broker use the same code. Decoding borrows from the received bytes and never allocates by a number that
//! came from the wire.

pub(crate) mod content;
pub(crate) mod frame;
pub(crate) mod properties;
pub(crate) mod sasl;
pub(crate) mod spec;
pub(crate) mod value;
pub(crate) mod wire;
