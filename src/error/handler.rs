//! Errors of the program's own message handlers.

use std::{
    any::Any,
    error, fmt,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
};

use super::Error;

/// What a message handler fails with: any error, or a text.
///
/// It does not implement [`std::error::Error`] itself, so that `?` turns every error into one.
///
/// ```
/// use leveret::{Delivery, HandlerError};
///
/// fn handle(delivery: &Delivery) -> Result<(), HandlerError> {
///     let count: u64 = delivery.text()?.parse()?;
///     if count > 1000 {
///         return Err("the count is too high".into());
///     }
///     Ok(())
/// }
/// ```
pub struct HandlerError(Box<dyn error::Error + Send + Sync>);

impl<E: Into<Box<dyn error::Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> HandlerError {
        HandlerError(error.into())
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A message that a handler could not deal with, and why.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HandlerFailure {
    /// The consumer.
    pub consumer_tag: Arc<str>,
    /// The delivery.
    pub delivery_tag: u64,
    /// What the handler said, or the message of its panic.
    pub reason: Arc<str>,
    /// It panicked, instead of returning an error.
    pub panicked: bool,
    /// Why the copy for the dead-letter destination was not taken, if there was to be one. The message itself was not
    /// acked then.
    pub not_forwarded: Option<Error>,
    /// The error that the handler returned.
    source: Option<Arc<dyn error::Error + Send + Sync>>,
}

impl HandlerFailure {
    /// The handler returned an error.
    pub(crate) fn error(consumer_tag: &str, delivery_tag: u64, error: HandlerError) -> HandlerFailure {
        HandlerFailure {
            consumer_tag: consumer_tag.into(),
            delivery_tag,
            reason: text_of(&error).into(),
            panicked: false,
            not_forwarded: None,
            source: Some(error.0.into()),
        }
    }

    /// The handler panicked with this payload.
    pub(crate) fn panic(consumer_tag: &str, delivery_tag: u64, payload: &(dyn Any + Send)) -> HandlerFailure {
        HandlerFailure {
            consumer_tag: consumer_tag.into(),
            delivery_tag,
            reason: panic_message(payload).into(),
            panicked: true,
            not_forwarded: None,
            source: None,
        }
    }

    /// Nor was the copy of the message taken.
    pub(crate) fn and_not_forwarded(&self, error: Error) -> HandlerFailure {
        HandlerFailure { not_forwarded: Some(error), ..self.clone() }
    }
}

impl fmt::Display for HandlerFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HandlerFailure { consumer_tag, delivery_tag, reason, .. } = self;
        let how = if self.panicked { "panicked" } else { "failed" };
        write!(f, "the handler of consumer {consumer_tag:?} {how} on delivery {delivery_tag}: {reason}")?;
        match &self.not_forwarded {
            Some(error) => write!(f, "; the copy for the dead-letter destination was not taken: {error}"),
            None => Ok(()),
        }
    }
}

impl error::Error for HandlerFailure {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.source {
            Some(source) => Some(&**source),
            None => None,
        }
    }
}

/// What an error of the program's says of itself; that is code of the program, too.
fn text_of(error: &HandlerError) -> String {
    panic::catch_unwind(AssertUnwindSafe(|| error.to_string()))
        .unwrap_or_else(|_| "an error that panics when it is shown".to_owned())
}

/// The text of a panic.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "a panic without a message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use error::Error as _;

    #[test]
    fn every_error_and_every_text_is_a_handler_error() {
        fn parse(text: &str) -> Result<u32, HandlerError> {
            if text.is_empty() {
                return Err("nothing there".into());
            }
            Ok(text.parse()?)
        }
        assert_eq!(parse("").unwrap_err().to_string(), "nothing there");
        let failure = HandlerFailure::error("t", 7, parse("x").unwrap_err());
        assert_eq!(
            failure.to_string(),
            "the handler of consumer \"t\" failed on delivery 7: invalid digit found in string"
        );
        let source = failure.source().and_then(|source| source.downcast_ref::<std::num::ParseIntError>());
        assert!(source.is_some());
        assert_eq!(HandlerError::from(Error::WouldBlock).to_string(), Error::WouldBlock.to_string());
    }
}
