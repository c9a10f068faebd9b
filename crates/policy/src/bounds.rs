//! How much one builtin call may produce. The virtual machine counts instructions; a single call that makes a million
//! elements, or a string of a gigabyte, is one instruction.

use regorus::Value;

use crate::limits::{MAX_PRODUCED, MAX_RANGE};

/// Bits that a number may be shifted by.
const MAX_SHIFT: i64 = 63;

/// Builtins that look at the top of a collection only, or at one element of it.
const SHALLOW: &[&str] = &[
    "count",
    "object.get",
    "is_array",
    "is_boolean",
    "is_null",
    "is_number",
    "is_object",
    "is_set",
    "is_string",
    "type_name",
];

/// Bytes and elements that a builtin looks at, counting a part as often as it occurs.
pub(crate) fn examined(name: &str, args: &[Value]) -> usize {
    if SHALLOW.contains(&name) {
        return args.len();
    }
    args.iter()
        .map(|arg| deep_size(arg, MAX_PRODUCED))
        .fold(0, usize::saturating_add)
}

/// Whether the call may be made with these arguments.
pub(crate) fn before(name: &str, args: &[Value], examined: usize) -> Result<(), String> {
    let number = |index: usize| args.get(index).and_then(|value| value.as_i64().ok());
    let within = |size: usize| {
        if size <= MAX_PRODUCED {
            Ok(())
        } else {
            Err(format!("{name} would produce more than {MAX_PRODUCED} bytes"))
        }
    };
    match name {
        "numbers.range" | "numbers.range_step" => match (number(0), number(1)) {
            (Some(from), Some(to)) if from.abs_diff(to) < MAX_RANGE.unsigned_abs() => Ok(()),
            _ => Err(format!("{name} may produce at most {MAX_RANGE} numbers")),
        },
        "bits.lsh" | "bits.rsh" => match number(1) {
            Some(shift) if (0..=MAX_SHIFT).contains(&shift) => Ok(()),
            _ => Err(format!("{name} shifts by 0 to {MAX_SHIFT} bits")),
        },
        "replace" => within(replaced(args)),
        "strings.replace_n" => match args.first() {
            Some(Value::Object(patterns)) => {
                let text = text_len(args.get(1)).saturating_add(1);
                let longest = patterns.iter().map(|(_, new)| text_len(Some(new))).max().unwrap_or(0);
                within(text.saturating_mul(longest.max(1)))
            }
            _ => Ok(()),
        },
        "regex.replace" => within((text_len(args.first()) + 1).saturating_mul(text_len(args.get(2)).max(1))),
        "concat" => {
            let parts = deep_size(args.get(1).unwrap_or(&Value::Null), MAX_PRODUCED);
            let separators = text_len(args.first()).saturating_mul(args.get(1).map_or(0, elements));
            within(parts.saturating_add(separators))
        }
        "sprintf" if args.first().is_some_and(has_width) => {
            Err("sprintf takes no widths or precisions over 99".to_owned())
        }
        // These copy, compare or print all they are given, however often the same part occurs in it.
        _ => within(examined),
    }
}

fn replaced(args: &[Value]) -> usize {
    let (text, old, new) = (text_len(args.first()), text_len(args.get(1)), text_len(args.get(2)));
    (text / old.max(1) + 1).saturating_mul(new).saturating_add(text)
}

fn text_len(value: Option<&Value>) -> usize {
    match value {
        Some(Value::String(text)) => text.len(),
        _ => 0,
    }
}

fn elements(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.len(),
        Value::Set(items) => items.len(),
        Value::Object(entries) => entries.len(),
        _ => 0,
    }
}

/// Three digits in a row after a `%` and its flags.
fn has_width(format: &Value) -> bool {
    let Value::String(format) = format else { return false };
    format.split('%').skip(1).any(|verb| {
        let digits = |part: &str| part.bytes().take_while(u8::is_ascii_digit).count();
        let after_flags = verb.trim_start_matches(['+', '-', '#', ' ', '0']);
        let width = digits(after_flags);
        let precision = after_flags[width..].strip_prefix('.').map_or(0, digits);
        width > 2 || precision > 2 || after_flags.starts_with('*')
    })
}

/// Bytes and elements of a value, counting a part as often as it occurs; stops counting at `enough`.
pub(crate) fn deep_size(value: &Value, enough: usize) -> usize {
    let mut size = 0usize;
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        size = size.saturating_add(shallow_size(value).max(1));
        if size > enough {
            return size;
        }
        match value {
            Value::Array(items) => open.extend(items.iter()),
            Value::Set(items) => open.extend(items.iter()),
            Value::Object(entries) => entries.iter().for_each(|(key, entry)| open.extend([key, entry])),
            _ => {}
        }
    }
    size
}

/// Bytes of a text, elements of a collection.
pub(crate) fn shallow_size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        collection => elements(collection),
    }
}

/// Whether the number fits into 64 bits: larger ones make every operation on them slower without bound.
pub(crate) fn is_plain_number(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            number.as_i64().is_some() || number.as_u64().is_some() || !number.is_integer() || {
                // A float beyond 2^63 is an integer too; what has a big representation is not one.
                number
                    .as_f64()
                    .is_some_and(|float| float.is_finite() && *value == Value::from(float))
            }
        }
        _ => true,
    }
}
