//! Headers exchanges: which messages match the arguments of a binding.

use super::{
    Emulate, Refusal,
    values::{same_value, term, type_name},
};
use crate::protocol::value::{FieldTable, FieldValue};

/// Refuses an `x-match` that means nothing.
pub(super) fn check_binding(arguments: &FieldTable) -> Result<(), Refusal> {
    let Some(value) = arguments.get("x-match") else { return Ok(()) };
    match (value, value.as_str()) {
        (_, Some("all" | "any" | "all-with-x" | "any-with-x")) => Ok(()),
        (FieldValue::LongString(_), _) => Err(Refusal::precondition(format!(
            "Invalid x-match field value {}; expected all, any, all-with-x, or any-with-x",
            term(value)
        ))),
        _ => Err(Refusal::precondition(format!(
            "Invalid x-match field type {} (value {}); expected longstr",
            type_name(value),
            term(value)
        ))),
    }
}

/// Whether a message with these headers matches a binding with these arguments.
///
/// Without `-with-x`, arguments whose names begin with `x-` count for nothing; `x-match` never does. An
/// argument without a value asks only for the header's presence.
pub(super) fn matches(arguments: &FieldTable, headers: &FieldTable, emulate: Emulate) -> bool {
    let mode = arguments.get("x-match").and_then(FieldValue::as_str).unwrap_or("all");
    let with_x = mode.ends_with("-with-x");
    let counts = |name: &str| if with_x { name != "x-match" } else { !name.starts_with("x-") };
    let mut wanted = arguments.iter().filter(|(name, _)| counts(name));
    let fits = |(name, value): (&str, &FieldValue)| fits(headers.get(name), value, emulate);
    if mode.starts_with("any") { wanted.any(fits) } else { wanted.all(fits) }
}

fn fits(header: Option<&FieldValue>, wanted: &FieldValue, emulate: Emulate) -> bool {
    let Some(header) = header else { return false };
    match emulate {
        Emulate::RabbitMq3 => *wanted == FieldValue::Void || same_value(header, wanted, true),
        Emulate::RabbitMq4 => {
            // It counts the time of a header in milliseconds, and not that of a binding.
            let milliseconds = match header {
                FieldValue::Timestamp(seconds) => &FieldValue::Timestamp(seconds.saturating_mul(1000)),
                other => other,
            };
            *wanted == FieldValue::Void || same_value(milliseconds, wanted, false)
        }
    }
}

#[cfg(test)]
mod tests;
