//! Threads that must never wait, because others wait for what they do: the reader of a connection, on which inline
//! handlers run.

use std::cell::Cell;

use crate::error::{Error, Result};

thread_local! {
    static WAITS_NEVER: Cell<bool> = const { Cell::new(false) };
}

/// From now on no wait is allowed on this thread: each fails with [`Error::WouldDeadlock`].
pub(crate) fn never_wait_here() {
    WAITS_NEVER.set(true);
}

/// This thread must never wait.
pub(crate) fn waits_never() -> bool {
    WAITS_NEVER.get()
}

/// For the beginning of a call that waits, before anything is sent.
///
/// # Errors
/// [`Error::WouldDeadlock`] on a thread that must never wait.
pub(crate) fn may_wait() -> Result<()> {
    if waits_never() { Err(Error::WouldDeadlock) } else { Ok(()) }
}
