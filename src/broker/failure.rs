//! What ends a channel or a connection, as RabbitMQ says it.

use std::fmt;

use super::model::Refusal;
use crate::error::{ReplyCode, Scope};

/// A refusal, and the method that it is blamed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) refusal: Refusal,
    /// Class and method id; zeros when it was no method's fault.
    pub(super) method: (u16, u16),
    /// The client is not told: RabbitMQ has no answer to a method that it does not know, and hangs up.
    pub(super) silent: bool,
}

impl From<Refusal> for Failure {
    /// One that no method is blamed for.
    fn from(refusal: Refusal) -> Failure {
        Failure { refusal, method: (0, 0), silent: false }
    }
}

impl Failure {
    /// One that no method is blamed for.
    pub(super) fn new(code: ReplyCode, explanation: impl fmt::Display) -> Failure {
        Refusal::new(code, explanation).into()
    }

    pub(super) fn of(method: (u16, u16), code: ReplyCode, explanation: impl fmt::Display) -> Failure {
        Failure { method, ..Failure::new(code, explanation) }
    }

    /// An error that RabbitMQ has no words for, and closes the connection.
    pub(super) fn internal() -> Failure {
        Refusal { code: ReplyCode::InternalError, text: "INTERNAL_ERROR".into(), scope: Scope::Connection }
            .into()
    }

    /// One that the client is not told of.
    pub(super) fn silent() -> Failure {
        Failure { silent: true, ..Failure::internal() }
    }

    /// 501 for a frame of this type: `problem` is a term of Erlang.
    pub(super) fn frame(kind: u8, payload: &[u8], problem: impl fmt::Display) -> Failure {
        Failure::new(ReplyCode::FrameError, format_args!("type {kind}, {}: {problem}", Snippet(payload)))
    }

    /// 505 for a frame where none of its type may come.
    pub(super) fn unexpected(kind: u8, payload: &[u8]) -> Failure {
        Failure::new(ReplyCode::UnexpectedFrame, format_args!("type {kind}, {}", Snippet(payload)))
    }

    /// The text, cut to what a short string holds in RabbitMQ's way.
    pub(super) fn text(&self) -> String {
        let text = &self.refusal.text;
        if text.len() <= 255 {
            return text.clone();
        }
        let end = (0..=252).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        format!("{}...", text.get(..end).unwrap_or_default())
    }

    pub(super) fn closes_connection(&self) -> bool {
        self.refusal.scope == Scope::Connection
    }
}

/// The beginning of a payload.
struct Snippet<'a>(&'a [u8]);

impl fmt::Display for Snippet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..16) {
            Some(first) if self.0.len() > 16 => write!(f, "first 16 octets = {}", Binary(first)),
            _ => write!(f, "all octets = {}", Binary(self.0)),
        }
    }
}

/// Bytes as Erlang prints them.
pub(super) struct Binary<'a>(pub(super) &'a [u8]);

impl fmt::Display for Binary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let printable = |byte: &u8| matches!(byte, 32..=126 | 8..=13 | 27 | 160..=255);
        if !self.0.is_empty() && self.0.iter().all(printable) {
            f.write_str("<<\"")?;
            for byte in self.0 {
                match byte {
                    b'"' => f.write_str("\\\"")?,
                    b'\\' => f.write_str("\\\\")?,
                    8 => f.write_str("\\b")?,
                    9 => f.write_str("\\t")?,
                    10 => f.write_str("\\n")?,
                    11 => f.write_str("\\v")?,
                    12 => f.write_str("\\f")?,
                    13 => f.write_str("\\r")?,
                    27 => f.write_str("\\e")?,
                    &byte => write!(f, "{}", char::from(byte))?,
                }
            }
            return f.write_str("\">>");
        }
        f.write_str("<<")?;
        for (place, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte}", if place == 0 { "" } else { "," })?;
        }
        f.write_str(">>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_look_as_in_erlang() {
        assert_eq!(Binary(b"").to_string(), "<<>>");
        assert_eq!(Binary(b"a\"b").to_string(), "<<\"a\\\"b\">>");
        assert_eq!(Binary(&[0, 60, 1]).to_string(), "<<0,60,1>>");
    }

    #[test]
    fn a_long_text_ends_in_dots() {
        let failure = Failure::new(ReplyCode::NotFound, "é".repeat(200));
        assert!(failure.text().len() <= 255 && failure.text().ends_with("..."));
        assert!(!failure.closes_connection());
        assert!(Failure::internal().closes_connection());
    }

    #[test]
    fn a_frame_is_described_by_its_beginning() {
        let failure = Failure::frame(1, &[7; 20], "{frame_too_large,20,10}");
        assert_eq!(
            failure.text(),
            "FRAME_ERROR - type 1, first 16 octets = <<7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7>>: {frame_too_large,20,10}"
        );
    }
}
