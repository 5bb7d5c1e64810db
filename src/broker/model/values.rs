//! Field values as RabbitMQ sees them: the names of their types, how they stand in its texts, and when two
//! of them are the same.

use crate::protocol::value::{FieldTable, FieldValue};

/// The name of a value's type in RabbitMQ's texts.
pub(super) fn type_name(value: &FieldValue) -> &'static str {
    match value {
        FieldValue::Void => "void",
        FieldValue::Bool(_) => "bool",
        FieldValue::I8(_) => "byte",
        FieldValue::U8(_) => "unsignedbyte",
        FieldValue::I16(_) => "short",
        FieldValue::U16(_) => "unsignedshort",
        FieldValue::I32(_) => "signedint",
        FieldValue::U32(_) => "unsignedint",
        FieldValue::I64(_) => "long",
        FieldValue::F32(_) => "float",
        FieldValue::F64(_) => "double",
        FieldValue::Decimal { .. } => "decimal",
        FieldValue::LongString(_) => "longstr",
        FieldValue::Bytes(_) => "binary",
        FieldValue::Array(_) => "array",
        FieldValue::Timestamp(_) => "timestamp",
        FieldValue::Table(_) => "table",
    }
}

/// The value of the integer types, and of no other.
pub(super) fn integer(value: &FieldValue) -> Option<i64> {
    if matches!(value, FieldValue::Timestamp(_)) { None } else { value.as_i64() }
}

/// The bytes of the two kinds of strings.
fn bytes(value: &FieldValue) -> Option<&[u8]> {
    match value {
        FieldValue::LongString(bytes) | FieldValue::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

/// Any number, timestamps too, for comparisons.
fn number(value: &FieldValue) -> Option<i128> {
    match value {
        FieldValue::Timestamp(seconds) => Some((*seconds).into()),
        other => other.as_i64().map(i128::from),
    }
}

fn float(value: &FieldValue) -> Option<f64> {
    match value {
        FieldValue::F32(value) => Some((*value).into()),
        FieldValue::F64(value) => Some(*value),
        _ => None,
    }
}

/// The same value, whatever its type on the wire: 5 is 5 in every integer type, and a string is its bytes.
/// With `mixed`, 5 is 5.0 too.
pub(super) fn same_value(one: &FieldValue, other: &FieldValue, mixed: bool) -> bool {
    if let (Some(one), Some(other)) = (bytes(one), bytes(other)) {
        return one == other;
    }
    match (number(one), number(other), float(one), float(other)) {
        (Some(one), Some(other), ..) => return one == other,
        (_, _, Some(one), Some(other)) => return one == other,
        (Some(whole), _, _, Some(float)) | (_, Some(whole), Some(float), _) => {
            return mixed && whole as f64 == float;
        }
        _ => {}
    }
    match (one, other) {
        (FieldValue::Void, FieldValue::Void) => true,
        (FieldValue::Bool(one), FieldValue::Bool(other)) => one == other,
        (FieldValue::Array(one), FieldValue::Array(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .zip(other)
                    .all(|(one, other)| type_name(one) == type_name(other) && same_value(one, other, mixed))
        }
        (FieldValue::Table(one), FieldValue::Table(other)) => {
            one.len() == other.len()
                && one.iter().zip(other.iter()).all(|((name, one), (other_name, other))| {
                    name == other_name && type_name(one) == type_name(other) && same_value(one, other, mixed)
                })
        }
        (one, other) => one == other,
    }
}

/// Types between which RabbitMQ converts when it compares arguments.
fn class(value: &FieldValue) -> &'static str {
    match value {
        FieldValue::F32(_) | FieldValue::F64(_) => "float",
        FieldValue::Decimal { .. } => "int",
        value if integer(value).is_some() => "int",
        value => type_name(value),
    }
}

/// How a value stands in a text, without quotes around strings.
fn shown(value: &FieldValue) -> String {
    match value {
        FieldValue::LongString(bytes) | FieldValue::Bytes(bytes) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
        other => term(other),
    }
}

/// A value as Erlang prints it.
pub(super) fn term(value: &FieldValue) -> String {
    match value {
        FieldValue::Void => "undefined".into(),
        FieldValue::Bool(value) => value.to_string(),
        FieldValue::F32(value) => float_term((*value).into()),
        FieldValue::F64(value) => float_term(*value),
        FieldValue::Decimal { scale, value } => format!("{{{scale},{value}}}"),
        FieldValue::LongString(bytes) | FieldValue::Bytes(bytes) => binary_term(bytes),
        FieldValue::Timestamp(seconds) => seconds.to_string(),
        FieldValue::Array(items) => {
            let items: Vec<_> =
                items.iter().map(|item| format!("{{{},{}}}", type_name(item), term(item))).collect();
            format!("[{}]", items.join(","))
        }
        FieldValue::Table(table) => table_term(table),
        other => other.as_i64().unwrap_or_default().to_string(),
    }
}

fn table_term(table: &FieldTable) -> String {
    let entries: Vec<_> = table
        .iter()
        .map(|(name, value)| {
            format!("{{{},{},{}}}", binary_term(name.as_bytes()), type_name(value), term(value))
        })
        .collect();
    format!("[{}]", entries.join(","))
}

fn binary_term(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok("") => "<<>>".into(),
        Ok(text) if bytes.iter().all(|byte| (0x20..0x7f).contains(byte)) => {
            format!("<<\"{}\">>", text.replace('\\', "\\\\").replace('"', "\\\""))
        }
        _ => {
            let numbers: Vec<_> = bytes.iter().map(u8::to_string).collect();
            format!("<<{}>>", numbers.join(","))
        }
    }
}

/// The shortest digits, with a point always, and with an exponent where that is shorter.
fn float_term(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (sign, unsigned) = match scientific.strip_prefix('-') {
        Some(unsigned) => ("-", unsigned),
        None => ("", &*scientific),
    };
    let Some((mantissa, exponent)) = unsigned.split_once('e') else { return scientific };
    let digits = mantissa.replace('.', "");
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (length, place) = (i32::try_from(digits.len()).unwrap_or(i32::MAX), exponent + 1);
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    let cost = exponent.to_string().len() as i32 + if length == 1 { 3 } else { 2 };
    let with_point = match place {
        ..0 if 2 - place <= cost => Some(format!("0.{}{digits}", zeros(-place))),
        0 => Some(format!("0.{digits}")),
        place if place >= length && place - length + 2 <= cost => {
            Some(format!("{digits}{}.0", zeros(place - length)))
        }
        place if (1..length).contains(&place) => {
            let (whole, fraction) = digits.split_at_checked(place as usize).unwrap_or((&digits, "0"));
            Some(format!("{whole}.{fraction}"))
        }
        _ => None,
    };
    let with_exponent = || {
        let fraction = mantissa.split_once('.').map_or("0", |(_, fraction)| fraction);
        let whole = mantissa.split_once('.').map_or(mantissa, |(whole, _)| whole);
        format!("{whole}.{fraction}e{exponent}")
    };
    format!("{sign}{}", with_point.unwrap_or_else(with_exponent))
}

/// Refuses when an argument of what exists differs from that of a new declaration. Gives how the new and the
/// existing one stand in the text.
pub(super) fn difference(
    existing: Option<&FieldValue>,
    new: Option<&FieldValue>,
) -> Option<(String, String)> {
    let typed = |value: Option<&FieldValue>| match value {
        None => "none".to_owned(),
        Some(value) => format!("the value '{}' of type '{}'", shown(value), type_name(value)),
    };
    match (existing, new) {
        (None, None) => None,
        (Some(existing), Some(new)) => {
            if same_value(existing, new, class(existing) == class(new)) {
                return None;
            }
            Some((format!("'{}'", shown(new)), format!("'{}'", shown(existing))))
        }
        (existing, new) => Some((typed(new), typed(existing))),
    }
}
