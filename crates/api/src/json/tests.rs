use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::Digest;

/// Every form that serde knows.
#[derive(serde::Serialize)]
struct Everything<'a> {
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<u8>,
    none: Option<u8>,
    some: Option<&'a str>,
    number: i64,
    large: u128,
    float: f64,
    small: f32,
    yes: bool,
    sign: char,
    unit: (),
    nothing: Nothing,
    tuple: (u8, &'a str),
    wrapped: Wrapped<'a>,
    pair: Pair<'a>,
    variants: Vec<Variant<'a>>,
    tagged: Tagged<'a>,
    map: BTreeMap<&'a str, Vec<u64>>,
    digest: Digest,
    #[serde(flatten)]
    flat: Flat<'a>,
    value: &'a Value,
}

#[derive(serde::Serialize)]
struct Nothing;
#[derive(serde::Serialize)]
struct Wrapped<'a>(&'a str);
#[derive(serde::Serialize)]
struct Pair<'a>(&'a str, i8);
#[derive(serde::Serialize)]
struct Flat<'a> {
    flat: &'a str,
}
#[derive(serde::Serialize)]
enum Variant<'a> {
    Unit,
    New(&'a str),
    Tuple(&'a str, f64),
    Struct { text: &'a str, empty: [u8; 0] },
}
#[derive(serde::Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Tagged<'a> {
    OfMap(BTreeMap<&'a str, f64>),
}

fn same<T: Serialize>(value: &T) {
    let mut ours = b"before ".to_vec();
    append(&mut ours, value).unwrap();
    let theirs = [b"before ", serde_json::to_vec(value).unwrap().as_slice()].concat();
    assert_eq!(String::from_utf8(ours).unwrap(), String::from_utf8(theirs).unwrap());
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[\\x00-\\x7f\u{80}-\u{2030}]{0,70}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..8).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn every_value_is_written_as_the_library_writes_it(value in values()) {
        same(&value);
    }

    #[test]
    fn so_is_every_form_that_a_type_can_have(text in any::<String>(), number: i64, float: f64, small: f32, value in values()) {
        let map = BTreeMap::from([("", vec![]), (&text, vec![1, u64::MAX])]);
        same(&Everything {
            text: &text,
            absent: None,
            none: None,
            some: Some(&text),
            number,
            large: u128::MAX,
            float,
            small,
            yes: number > 0,
            sign: text.chars().next().unwrap_or('"'),
            unit: (),
            nothing: Nothing,
            tuple: (0, &text),
            wrapped: Wrapped(&text),
            pair: Pair(&text, -1),
            variants: vec![
                Variant::Unit,
                Variant::New(&text),
                Variant::Tuple(&text, float),
                Variant::Struct { text: &text, empty: [] },
            ],
            tagged: Tagged::OfMap(BTreeMap::from([(text.as_str(), float)])),
            map,
            digest: Digest::sha256(text.as_bytes()),
            flat: Flat { flat: &text },
            value: &value,
        });
    }
}

#[test]
fn each_byte_that_is_escaped_is_found_wherever_it_stands() {
    for byte in 0..=0x7f_u8 {
        for at in [0, 1, 15, 16, 31, 32, 63, 64] {
            let mut text = "a".repeat(65);
            text.replace_range(at..=at, &char::from(byte).to_string());
            same(&text);
        }
    }
}

#[test]
fn a_key_that_is_no_text_is_an_error() {
    let map = BTreeMap::from([(1, 2)]);
    assert!(append(&mut Vec::new(), &map).is_err());
}
