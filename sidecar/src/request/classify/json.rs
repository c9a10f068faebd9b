//! Strict JSON: a body that everybody reads alike, or none.
//!
//! Parsers differ on duplicate keys, on keys that differ by case only, on lone surrogates, on depth and on integers
//! past 2^53 (RFC 8259 sections 4, 6, 8 and 9 leave all of them open). Where they differ, policy and agent may differ.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::proxy::limits::MAX_JSON_DEPTH;

/// The largest integer that a 64-bit float holds exactly, and so every reader: 2^53.
const MAX_INTEGER: u64 = 1 << 53;

/// A body that was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parsed {
    pub(crate) value: Value,
    /// Some integer in it is read differently by different parsers.
    pub(crate) large_integer: bool,
}

/// Reads `bytes`, whole.
///
/// # Errors
/// What is wrong, and where.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, serde_json::Error> {
    let mut large_integer = false;
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let strict = Strict {
        depth: 0,
        large: &mut large_integer,
    };
    let value = strict.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(Parsed { value, large_integer })
}

struct Strict<'a> {
    depth: usize,
    large: &'a mut bool,
}

impl Strict<'_> {
    fn deeper<E: Error>(&mut self) -> Result<Strict<'_>, E> {
        if self.depth >= MAX_JSON_DEPTH {
            return Err(E::custom(format!(
                "more than {MAX_JSON_DEPTH} nested arrays and objects"
            )));
        }
        Ok(Strict {
            depth: self.depth + 1,
            large: self.large,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        *self.large |= value > MAX_INTEGER;
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        *self.large |= value.unsigned_abs() > MAX_INTEGER;
        Ok(value.into())
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        // An integer past 64 bits comes as a float, too.
        *self.large |= value.abs() > MAX_INTEGER as f64;
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that is none"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.deeper()?)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let mut folded = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if !folded.insert(key.to_lowercase()) {
                return Err(A::Error::custom(format!("the key {key:?} stands twice (case aside)")));
            }
            let value = entries.next_value_seed(self.deeper()?)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn what_parsers_read_differently_is_refused() {
        for (body, why) in [
            (r#"{"a":1,"a":2}"#, "stands twice"),
            (r#"{"a":1,"A":2}"#, "stands twice"),
            (r#"{"x":{"Ä":1,"ä":2}}"#, "stands twice"),
            (r#"{"a":"\ud800"}"#, "hex escape"),
            (r#"{"a":"\udc00x"}"#, "surrogate"),
            (r#"{"a":1} x"#, "trailing"),
            ("{\"a\":\"\u{1}\"}", "control character"),
            ("[1,]", "trailing comma"),
            ("", "EOF"),
            (r"NaN", "expected"),
            (r"1e999", "out of range"),
        ] {
            let error = parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{body}: {error}");
        }
        assert!(parse(b"\"\xff\"").is_err(), "not UTF-8");
        assert!(
            parse(b"\xef\xbb\xbf{}").is_err(),
            "a byte order mark (RFC 8259 section 8.1)"
        );
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(nested(MAX_JSON_DEPTH).as_bytes()).is_ok());
        assert!(parse(nested(MAX_JSON_DEPTH + 1).as_bytes()).is_err());
        assert!(parse("[".repeat(1_000_000).as_bytes()).is_err());
    }

    #[test]
    fn large_integers_are_noticed() {
        for (body, large) in [
            ("9007199254740992", false),
            ("9007199254740993", true),
            ("-9007199254740993", true),
            ("[18446744073709551616]", true),
            ("1.5", false),
        ] {
            assert_eq!(parse(body.as_bytes()).unwrap().large_integer, large, "{body}");
        }
    }

    #[test]
    fn ordinary_bodies_are_read_as_they_are() {
        let value = json!({"jsonrpc": "2.0", "id": "x", "params": {"list": [1, -2, 3.5, null, true, "ü"], "o": {}}});
        assert_eq!(parse(value.to_string().as_bytes()).unwrap().value, value);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }

        /// What we read, serde_json reads the same.
        #[test]
        fn agrees_with_the_usual_parser(text in "[\\[\\]{}\":,a-c0-9.eE\\- ]{0,32}") {
            if let Ok(parsed) = parse(text.as_bytes()) {
                prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), parsed.value);
            }
        }
    }
}
