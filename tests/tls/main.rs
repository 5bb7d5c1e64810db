//! TLS (rows 5, 7, 8, 9, 21, 22), and streams that the program supplies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "broker")]
mod direct;
mod front;
mod handshake;
#[cfg(feature = "broker")]
mod in_process;
mod session;
mod settings;
mod stream;
mod with_broker;

use std::sync::Arc;

use leveret::{Config, Connection, Error, TlsFailure, TlsProblem};

/// The one TLS error that opening ended with, at once (row 7): it is no timeout.
fn refused(config: Config) -> Arc<TlsFailure> {
    let error = Connection::open(config).unwrap_err();
    match &error {
        Error::Tls(failure) => failure.clone(),
        other => panic!("{other} ({other:?})"),
    }
}

fn problem(config: Config) -> TlsProblem {
    refused(config).problem
}
