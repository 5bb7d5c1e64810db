//! Why an operation is refused, in RabbitMQ's words.

use std::fmt;

use crate::error::{ReplyCode, Scope};

/// A channel or connection error: what `channel.close` or `connection.close` will say. The class and method
/// ids are the session's to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: ReplyCode,
    /// The whole text, beginning with the code's name.
    pub(crate) text: String,
    /// What has to be closed.
    pub(crate) scope: Scope,
}

impl Refusal {
    /// The scope follows from the code; `explanation` comes after the code's name and a dash.
    pub(crate) fn new(code: ReplyCode, explanation: impl fmt::Display) -> Refusal {
        let scope = match code {
            ReplyCode::ContentTooLarge
            | ReplyCode::NoRoute
            | ReplyCode::NoConsumers
            | ReplyCode::AccessRefused
            | ReplyCode::NotFound
            | ReplyCode::ResourceLocked
            | ReplyCode::PreconditionFailed => Scope::Channel,
            _ => Scope::Connection,
        };
        Refusal { code, text: format!("{} - {explanation}", code.name()), scope }
    }

    pub(crate) fn access_refused(explanation: impl fmt::Display) -> Refusal {
        Refusal::new(ReplyCode::AccessRefused, explanation)
    }

    pub(crate) fn not_found(explanation: impl fmt::Display) -> Refusal {
        Refusal::new(ReplyCode::NotFound, explanation)
    }

    pub(crate) fn locked(explanation: impl fmt::Display) -> Refusal {
        Refusal::new(ReplyCode::ResourceLocked, explanation)
    }

    pub(crate) fn precondition(explanation: impl fmt::Display) -> Refusal {
        Refusal::new(ReplyCode::PreconditionFailed, explanation)
    }

    pub(crate) fn not_allowed(explanation: impl fmt::Display) -> Refusal {
        Refusal::new(ReplyCode::NotAllowed, explanation)
    }

    pub(crate) fn not_implemented(explanation: impl fmt::Display) -> Refusal {
        Refusal::new(ReplyCode::NotImplemented, explanation)
    }

    pub(crate) fn command_invalid(explanation: impl fmt::Display) -> Refusal {
        Refusal::new(ReplyCode::CommandInvalid, explanation)
    }
}
