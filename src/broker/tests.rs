//! The broker from a client's side.
