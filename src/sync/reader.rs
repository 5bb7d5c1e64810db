//! Where nobody may wait, because others wait for what is done there: the reader of a connection, on which inline
//! handlers run, and whatever thread runs a tap.

use std::cell::Cell;

use crate::error::{Error, Result};

thread_local! {
    static WAITS_NEVER: Cell<bool> = const { Cell::new(false) };
}

/// From now on no wait is allowed on this thread: each fails with [`Error::WouldDeadlock`].
pub(crate) fn never_wait_here() {
    WAITS_NEVER.set(true);
}

/// Does `work`, in which every wait fails with [`Error::WouldDeadlock`].
pub(crate) fn without_waiting<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            WAITS_NEVER.set(self.0);
        }
    }
    let _restore = Restore(WAITS_NEVER.replace(true));
    work()
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
