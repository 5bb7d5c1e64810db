//! What the user of a session may do.

use std::borrow::Cow;

use crate::broker::{
    config::{Permission, Permissions, User},
    model::{Emulate, Refusal},
};

/// The name that permissions know the default exchange by.
const DEFAULT: &[u8] = b"amq.default";

/// The kind of thing that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Exchange,
    Queue,
}

/// A user's permissions on the session's virtual host, as they were when it was opened.
#[derive(Debug)]
pub(super) struct Access {
    user: String,
    permissions: Permissions,
    emulate: Emulate,
    /// Nearly everybody may do everything.
    everything: bool,
}

impl Access {
    pub(super) fn new(user: &User, permissions: &Permissions, emulate: Emulate) -> Access {
        let all = [&permissions.configure, &permissions.write, &permissions.read];
        let everything = all.into_iter().all(|patterns| patterns.iter().any(|pattern| pattern == "*"));
        Access { user: user.name.clone(), permissions: permissions.clone(), emulate, everything }
    }

    pub(super) fn check(&self, permission: Permission, kind: Kind, name: &[u8]) -> Result<(), Refusal> {
        if self.everything {
            return Ok(());
        }
        let name = if kind == Kind::Exchange && name.is_empty() { DEFAULT } else { name };
        if self.permissions.allow(permission, name) {
            return Ok(());
        }
        let prefix: Cow<'_, str> = match self.emulate {
            Emulate::RabbitMq3 => "".into(),
            _ => format!("{} ", permission.name()).into(),
        };
        Err(Refusal::access_refused(format_args!(
            "{prefix}access to {} '{}' in vhost '{}' refused for user '{}'",
            match kind {
                Kind::Exchange => "exchange",
                Kind::Queue => "queue",
            },
            String::from_utf8_lossy(name),
            self.permissions.vhost,
            self.user
        )))
    }
}
