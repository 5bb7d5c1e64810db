//! The in-process broker.

// Until the sessions use all of it.
#[allow(dead_code, unused_imports)]
pub(crate) mod model;

pub use model::Emulate;
