//! Strict JSON: a body that everybody reads alike, or none.
//!
//! Parsers differ on duplicate keys, on keys that differ by case only, on lone surrogates, on depth and on integers
//! past 2^53 (RFC 8259 sections 4, 6, 8 and 9 leave all of them open). Where they differ, policy and agent may differ.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::held::Held;
use crate::proxy::limits::{MAX_JSON_DEPTH, MAX_JSON_MEMORY};
use crate::request::refusal::Refused;

/// The largest integer that a 64-bit float holds exactly, and so every reader: 2^53.
const MAX_INTEGER: u64 = 1 << 53;

/// Bytes of a value, where it lies in a list or a node.
const VALUE: usize = size_of::<Value>();
/// Bytes of an object's first node: eleven entries, and the way up.
const LEAF: usize = 11 * (size_of::<String>() + VALUE) + 16;
/// Bytes of each further node, the share of inner nodes included.
const NODE: usize = LEAF + 12 * size_of::<usize>();
/// Entries of which one fills a further node: the half of a node that a split leaves, at least.
const ENTRIES_PER_NODE: usize = 5;
/// Values for which a list first makes room.
const FIRST_ROOM: usize = 4;
/// What the allocator adds to each piece.
const PIECE: usize = 16;
/// Bytes that are asked for at a time.
const STEP: usize = 4 * 1024;

/// A body that was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parsed {
    pub(crate) value: Value,
    /// Some integer in it is read differently by different parsers.
    pub(crate) large_integer: bool,
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unparsed {
    /// It is not strict JSON.
    #[error(transparent)]
    Invalid(#[from] serde_json::Error),
    /// It would take more memory than one body may.
    #[error("it takes more than {MAX_JSON_MEMORY} bytes of memory")]
    TooComplex,
    /// Nothing is left of what all may take together.
    #[error("{0}")]
    NoRoom(Refused),
}

/// Reads `bytes`, whole. What that takes in memory is asked of `held` before it is taken, where there is one.
///
/// # Errors
/// What is wrong, and where; or that there is no room.
pub(crate) fn parse(bytes: &[u8], held: Option<&mut Held>) -> Result<Parsed, Unparsed> {
    let mut reading = Reading::new(held);
    let value = reading.whole(bytes);
    match (value, reading.room.refused) {
        (_, Some(refused)) => Err(refused),
        (Err(error), None) => Err(error.into()),
        (Ok(value), None) => Ok(Parsed {
            value,
            large_integer: reading.large_integer,
        }),
    }
}

/// What is known of a body while it is read.
struct Reading<'h> {
    large_integer: bool,
    room: Room<'h>,
}

impl<'h> Reading<'h> {
    fn new(held: Option<&'h mut Held>) -> Self {
        Self {
            large_integer: false,
            room: Room {
                taken: 0,
                granted: 0,
                held,
                refused: None,
            },
        }
    }

    fn whole(&mut self, bytes: &[u8]) -> Result<Value, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let strict = Strict {
            depth: 0,
            reading: self,
        };
        let value = strict.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(value)
    }
}

/// Counts what a tree takes while it grows: small values cost many times their bytes (`{"":0},` is 7 bytes and 650).
struct Room<'h> {
    taken: usize,
    granted: usize,
    held: Option<&'h mut Held>,
    refused: Option<Unparsed>,
}

impl Room<'_> {
    fn take<E: Error>(&mut self, bytes: usize) -> Result<(), E> {
        self.taken += bytes;
        if self.taken <= self.granted {
            return Ok(());
        }
        self.ask()
    }

    #[cold]
    fn ask<E: Error>(&mut self) -> Result<(), E> {
        let needed = self.taken.next_multiple_of(STEP);
        let granted = match &mut self.held {
            _ if self.taken > MAX_JSON_MEMORY => Err(Unparsed::TooComplex),
            Some(held) => held.read(needed - self.granted).map_err(Unparsed::NoRoom),
            None => Ok(()),
        };
        self.refused = granted.err();
        if self.refused.is_some() {
            return Err(E::custom("no room"));
        }
        self.granted = needed;
        Ok(())
    }

    fn text<E: Error>(&mut self, bytes: usize) -> Result<(), E> {
        match bytes {
            0 => Ok(()),
            some => self.take(some + PIECE),
        }
    }

    /// Room for one more value in a list of `len`; lists grow by doubling.
    fn item<E: Error>(&mut self, len: usize) -> Result<(), E> {
        match len {
            0 => self.take(FIRST_ROOM * VALUE + PIECE),
            full if full >= FIRST_ROOM && full.is_power_of_two() => self.take(full * VALUE),
            _ => Ok(()),
        }
    }

    /// Room for one more entry in an object of `len`.
    fn entry<E: Error>(&mut self, len: usize) -> Result<(), E> {
        match len {
            0 => self.take(LEAF + PIECE),
            // The first split makes two nodes of one.
            11 => self.take(2 * (NODE + PIECE)),
            more if more > 11 && more % ENTRIES_PER_NODE == 0 => self.take(NODE + PIECE),
            _ => Ok(()),
        }
    }
}

struct Strict<'a, 'h> {
    depth: usize,
    reading: &'a mut Reading<'h>,
}

impl<'h> Strict<'_, 'h> {
    fn deeper<E: Error>(&mut self) -> Result<Strict<'_, 'h>, E> {
        if self.depth >= MAX_JSON_DEPTH {
            return Err(E::custom(format!(
                "more than {MAX_JSON_DEPTH} nested arrays and objects"
            )));
        }
        Ok(Strict {
            depth: self.depth + 1,
            reading: self.reading,
        })
    }

    fn room(&mut self) -> &mut Room<'h> {
        &mut self.reading.room
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_, '_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_, '_> {
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
        self.reading.large_integer |= value > MAX_INTEGER;
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        self.reading.large_integer |= value.unsigned_abs() > MAX_INTEGER;
        Ok(value.into())
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        // An integer past 64 bits comes as a float, too.
        self.reading.large_integer |= value.abs() > MAX_INTEGER as f64;
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that is none"))
    }
    fn visit_str<E: Error>(mut self, value: &str) -> Result<Value, E> {
        self.room().text(value.len())?;
        Ok(Value::String(value.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.deeper()?)? {
            self.room().item(list.len())?;
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let mut folds = Folds::default();
        while let Some(key) = entries.next_key::<String>()? {
            let twice = |key: &str| A::Error::custom(format!("the key {key:?} stands twice (case aside)"));
            let room = self.room();
            room.entry(object.len())?;
            room.text(key.len())?;
            if !folds.is_new(&key, &object, room)? {
                return Err(twice(&key));
            }
            let value = entries.next_value_seed(self.deeper()?)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// `key` with its case folded as widely as any reader folds it, to lower or to upper case: `ſ` becomes `s` and `ẞ` becomes
/// `ss`; and `İ` loses the dot that lower case would leave beside it (Java's `equalsIgnoreCase`).
pub(super) fn fold(key: &str) -> String {
    if key.is_ascii() {
        return key.to_ascii_lowercase();
    }
    let folded = key.to_lowercase().to_uppercase().to_lowercase();
    folded.replace("i\u{307}", "i")
}

/// Keys of one object that case folding changes, folded. The others are their own folds, and stand in the object.
#[derive(Default)]
struct Folds(HashSet<String>);

impl Folds {
    /// Whether no key of `object` is `key`, case aside.
    fn is_new<E: Error>(&mut self, key: &str, object: &Map<String, Value>, room: &mut Room<'_>) -> Result<bool, E> {
        let own_fold = key.bytes().all(|b| b.is_ascii() && !b.is_ascii_uppercase());
        if own_fold {
            return Ok(!object.contains_key(key) && !self.0.contains(key));
        }
        let fold = fold(key);
        // Twice: a table of strings is half empty.
        room.text(fold.len() + 2 * size_of::<String>())?;
        Ok(!object.contains_key(&fold) && self.0.insert(fold))
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
            (r#"{"A":1,"a":2}"#, "stands twice"),
            (r#"{"aB":1,"Ab":2}"#, "stands twice"),
            (r#"{"x":{"Ä":1,"ä":2}}"#, "stands twice"),
            (r#"{"params":1,"paramſ":2}"#, "stands twice"),
            (r#"{"argumentſ":1,"arguments":2}"#, "stands twice"),
            ("{\"\u{130}d\":1,\"i\u{307}d\":2}", "stands twice"),
            (r#"{"ẞ":1,"ß":2}"#, "stands twice"),
            (r#"{"a":"\ud800"}"#, "hex escape"),
            (r#"{"a":"\udc00x"}"#, "surrogate"),
            (r#"{"a":1} x"#, "trailing"),
            ("{\"a\":\"\u{1}\"}", "control character"),
            ("[1,]", "trailing comma"),
            ("", "EOF"),
            (r"NaN", "expected"),
            (r"1e999", "out of range"),
        ] {
            let error = parse(body.as_bytes(), None).unwrap_err().to_string();
            assert!(error.contains(why), "{body}: {error}");
        }
        assert!(parse(b"\"\xff\"", None).is_err(), "not UTF-8");
        assert!(
            parse(b"\xef\xbb\xbf{}", None).is_err(),
            "a byte order mark (RFC 8259 section 8.1)"
        );
    }

    #[test]
    fn what_is_one_letter_in_either_case_is_one_letter() {
        for c in ('\0'..=char::MAX).map(String::from) {
            for other in [c.to_lowercase(), c.to_uppercase()] {
                assert_eq!(fold(&other), fold(&c), "{c:?}");
            }
        }
    }

    /// `ſ` and `K`, and whatever else some reader takes for a letter of a key.
    #[test]
    fn no_character_that_folds_to_ascii_makes_another_key() {
        let others: Vec<char> = (char::from_u32(0x80).unwrap()..=char::MAX)
            .filter(|c| {
                let folds = |text: String| text.is_ascii() && text.len() == 1;
                folds(c.to_lowercase().collect()) || folds(c.to_uppercase().collect()) || folds(fold(&c.to_string()))
            })
            .collect();
        assert!(others.contains(&'ſ') && others.contains(&'\u{212a}'), "{others:?}");
        for other in others {
            let ascii = fold(&other.to_string());
            assert!(ascii.is_ascii(), "{other} is {ascii:?}");
            for (one, two) in [
                (other.to_string(), ascii.clone()),
                (ascii.to_uppercase(), other.to_string()),
            ] {
                let body = format!(r#"{{"x{one}y":1,"x{two}y":2}}"#);
                assert!(parse(body.as_bytes(), None).is_err(), "{body}");
            }
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(nested(MAX_JSON_DEPTH).as_bytes(), None).is_ok());
        assert!(parse(nested(MAX_JSON_DEPTH + 1).as_bytes(), None).is_err());
        assert!(parse("[".repeat(1_000_000).as_bytes(), None).is_err());
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
            assert_eq!(parse(body.as_bytes(), None).unwrap().large_integer, large, "{body}");
        }
    }

    #[test]
    fn ordinary_bodies_are_read_as_they_are() {
        let value = json!({"jsonrpc": "2.0", "id": "x", "params": {"list": [1, -2, 3.5, null, true, "ü"], "o": {}}});
        assert_eq!(parse(value.to_string().as_bytes(), None).unwrap().value, value);
    }

    /// What a tree takes at least: what its own pieces say.
    fn memory_of(value: &Value) -> usize {
        match value {
            Value::String(text) => text.capacity(),
            Value::Array(items) => items.capacity() * VALUE + items.iter().map(memory_of).sum::<usize>(),
            Value::Object(entries) => {
                let node = if entries.is_empty() { 0 } else { LEAF };
                let keys: usize = entries.keys().map(String::capacity).sum();
                let flat = entries.len() * (size_of::<String>() + VALUE);
                node.max(flat) + keys + entries.values().map(memory_of).sum::<usize>()
            }
            _ => 0,
        }
    }

    /// What was read, and what was asked for it.
    fn counted(bytes: &[u8]) -> (Value, usize) {
        let mut reading = Reading::new(None);
        let value = reading.whole(bytes).unwrap();
        (value, reading.room.granted)
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z]{0,40}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 200, 30, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..30).prop_map(Value::from),
                proptest::collection::btree_map("[a-z]{0,6}", inner, 0..30)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// One MiB of each would take up to 95 MiB.
    #[test]
    fn what_a_tree_takes_is_counted_before_it_is_taken() {
        let flat: Vec<String> = (0..10_000).map(|n| format!("\"k{n}\":0")).collect();
        for body in [
            format!("[{}]", vec![r#"{"":0}"#; 10_000].join(",")),
            format!("[{}]", vec!["[[]]"; 20_000].join(",")),
            format!("[{}]", vec!["0"; 100_000].join(",")),
            format!("{{{}}}", flat.join(",")),
            format!("[\"{}\"]", "x".repeat(100_000)),
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"a":[1]}}}"#.to_owned(),
        ] {
            let (value, asked) = counted(body.as_bytes());
            let least = memory_of(&value);
            let (short, len) = (&body[..20], body.len());
            assert!(
                asked >= least && asked <= 3 * least + STEP,
                "{short}…: {len} bytes, {least} in memory, {asked} counted"
            );
        }
        let worst = format!("[{}]", vec![r#"{"":0}"#; 149_000].join(","));
        let refused = parse(worst.as_bytes(), None).unwrap_err();
        assert!(matches!(refused, Unparsed::TooComplex), "{refused}");
        let text = format!("[\"{}\"]", "x".repeat(1_000_000));
        assert!(parse(text.as_bytes(), None).is_ok(), "text costs its bytes");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes, None);
        }

        /// Whatever the order and the shape, no tree takes more than was counted.
        #[test]
        fn no_tree_takes_more_than_was_counted(value in any_json()) {
            let (read, asked) = counted(value.to_string().as_bytes());
            prop_assert!(memory_of(&read) <= asked);
            prop_assert_eq!(read, value);
        }

        /// Keys are compared as if each had been folded.
        #[test]
        fn a_key_stands_twice_if_its_fold_does(keys in proptest::collection::vec("[abAB]{1,2}|[äÄkK\u{212a}sSſßıİ]", 1..6)) {
            let folds: HashSet<String> = keys.iter().map(|key| fold(key)).collect();
            let pairs: Vec<String> = keys.iter().map(|key| format!("\"{key}\":1")).collect();
            let parsed = parse(format!("{{{}}}", pairs.join(",")).as_bytes(), None);
            prop_assert_eq!(parsed.is_ok(), folds.len() == keys.len(), "{:?}", keys);
        }

        /// What we read, serde_json reads the same.
        #[test]
        fn agrees_with_the_usual_parser(text in "[\\[\\]{}\":,a-c0-9.eE\\- ]{0,32}") {
            if let Ok(parsed) = parse(text.as_bytes(), None) {
                prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), parsed.value);
            }
        }
    }
}
