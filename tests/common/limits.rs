//! How long tests wait. The machine may be slow, and busy with other things: no test fails because something took
//! long, unless it would have taken for ever.
//!
//! - A call that is to succeed has [`AMPLE`] limits.
//! - What must not wait for such a limit has ended long before it, and is [`PROMPT`].
//! - What hangs without a limit is ended by the [`watchdog`](super::watchdog).
//! - A test about times is given ever more of it: [`given_time`].

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use leveret::Config;

use super::watchdog::{say, test_name};

/// Every limit of a connection, unless the test is about that limit.
pub const AMPLE: Duration = Duration::from_secs(120);

/// Far more than anything takes that does not wait for an [`AMPLE`] limit.
pub const PROMPT: Duration = Duration::from_secs(60);

/// The same configuration with limits that nothing reaches but what hangs.
pub fn ample(config: Config) -> Config {
    config
        .connect_timeout(AMPLE)
        .handshake_timeout(AMPLE)
        .call_timeout(AMPLE)
        .close_timeout(AMPLE)
        .drop_timeout(AMPLE)
        .publish_timeout(AMPLE)
        .confirm_timeout(AMPLE)
        .heartbeat(AMPLE / 2)
}

/// Runs a test about times, which is to multiply all of its times by what it is given. A busy machine may add
/// seconds to any of them; a defect is as large as they are, and stays.
pub fn given_time(test: impl Fn(u32)) {
    for factor in [1, 4, 16] {
        match catch_unwind(AssertUnwindSafe(|| test(factor))) {
            Ok(()) => return,
            Err(_) => say(&format!("{}: once more, given more than {factor} times its time", test_name())),
        }
    }
    test(32);
}
