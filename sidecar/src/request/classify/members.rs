//! Members of JSON objects that we look into, so that nobody else finds one that we didn't: each is spelled exactly so,
//! has the type that its protocol gives it, and is not contradicted by another.

use serde_json::{Map, Value};

use super::json::fold;

/// The word for what could not be established, as in `docs/errors.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unestablished(pub(super) &'static str);

/// Whether lenient readers take `key` for `name`: in another case, with blanks, or with `_` where `name` has a capital
/// (protobuf's readers take both `taskId` and `task_id`).
pub(super) fn stands_for(key: &str, name: &str) -> bool {
    let words = name.bytes().any(|b| b.is_ascii_uppercase());
    let same = |key: &str| {
        let bare = key.bytes().filter(|b| b.is_ascii_graphic() || !b.is_ascii());
        let bare = bare.filter(|b| !(words && *b == b'_')).map(|b| b.to_ascii_lowercase());
        bare.eq(name.bytes().map(|b| b.to_ascii_lowercase()))
    };
    if key.is_ascii() { same(key) } else { same(&fold(key)) }
}

/// Whether no key of `map` stands for one of `names` that it isn't.
pub(super) fn are_spelled(map: &Map<String, Value>, names: &[&str]) -> Result<(), Unestablished> {
    let otherwise = |key: &String| names.iter().any(|name| key != name && stands_for(key, name));
    if map.keys().any(otherwise) {
        return Err(Unestablished("key_spelling"));
    }
    Ok(())
}

/// The member of this name; null is none.
pub(super) fn present<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    map.get(name).filter(|value| !value.is_null())
}

/// The text of this name; none is an empty one.
pub(super) fn text(map: &Map<String, Value>, name: &str) -> Result<String, Unestablished> {
    match present(map, name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(Unestablished("key_type")),
    }
}

/// The object of this name, taken out; none is an empty one.
pub(super) fn take_object(map: &mut Map<String, Value>, name: &str) -> Result<Map<String, Value>, Unestablished> {
    match map.remove(name) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(found)) => Ok(found),
        Some(_) => Err(Unestablished("key_type")),
    }
}

/// The one that is there; where there are several, they are the same.
pub(super) fn only<const N: usize>(texts: [String; N]) -> Result<String, Unestablished> {
    let mut found = texts.into_iter().filter(|text| !text.is_empty());
    let Some(first) = found.next() else {
        return Ok(String::new());
    };
    if found.any(|other| other != first) {
        return Err(Unestablished("key_conflict"));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lenient_readers_take_for_a_name_stands_for_it() {
        for (key, name) in [
            ("Name", "name"),
            ("NAME", "name"),
            ("name ", "name"),
            ("na\0me", "name"),
            ("param\u{17f}", "params"),
            ("tas\u{212a}Id", "taskId"),
            ("\u{130}d", "id"),
            ("task_id", "taskId"),
            ("TaskID", "taskId"),
            ("name", "name"),
        ] {
            assert!(stands_for(key, name), "{key:?} for {name}");
        }
        for (key, name) in [
            ("names", "name"),
            ("na_me", "name"),
            ("naïme", "name"),
            ("", "id"),
            ("_id", "id"),
        ] {
            assert!(!stands_for(key, name), "{key:?} for {name}");
        }
    }
}
