//! From facts to the engine's input, to the key of a cached decision, and to JSON: always only what is asked for.

use std::collections::BTreeMap;

use regorus::Value;
use regorus::value::{Array, Object};
use serde_json::Value as Json;

use crate::facts::Facts;
use crate::node::{Fields, Node, finite, multi};
use crate::reads::Reads;

/// The facts as a program sees them: with the list of what is not established.
pub(crate) struct View<'a> {
    facts: &'a Facts,
    unestablished: Vec<String>,
}

impl<'a> View<'a> {
    pub(crate) fn new(facts: &'a Facts, missing: &[(String, &'static str)]) -> Self {
        let mut unestablished: Vec<String> = missing.iter().map(|(path, _)| path.clone()).collect();
        unestablished.extend(facts.unestablished.iter().cloned());
        unestablished.sort();
        unestablished.dedup();
        Self { facts, unestablished }
    }

    pub(crate) fn root(&self) -> Node<'_> {
        Node::Object(self)
    }
}

impl Fields for View<'_> {
    fn names(&self) -> &'static [&'static str] {
        self.facts.names()
    }
    fn field(&self, index: usize) -> Node<'_> {
        if self.names()[index] == "unestablished" {
            Node::Texts(&self.unestablished)
        } else {
            self.facts.field(index)
        }
    }
}

/// Paths of the facts that are not established, with the reasons. Only objects with fixed keys have such facts.
pub(crate) fn unestablished(facts: &Facts) -> Vec<(String, &'static str)> {
    fn visit(object: &dyn Fields, prefix: &str, found: &mut Vec<(String, &'static str)>) {
        for (index, name) in object.names().iter().enumerate() {
            let node = object.field(index);
            match node {
                Node::Unestablished(reason, _) => found.push((join(prefix, name), reason)),
                Node::Object(inner) => visit(inner, &join(prefix, name), found),
                _ => {}
            }
        }
    }
    fn join(prefix: &str, name: &str) -> String {
        if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}.{name}")
        }
    }
    // Most requests have none: look before any path is written.
    fn any(object: &dyn Fields) -> bool {
        (0..object.names().len()).any(|index| match object.field(index) {
            Node::Unestablished(..) => true,
            Node::Object(inner) => any(inner),
            _ => false,
        })
    }
    let mut found = Vec::new();
    if any(facts) {
        visit(facts, "", &mut found);
    }
    found
}

/// The input document, reduced to what `reads` can reach.
pub(crate) fn to_value(node: Node<'_>, reads: &Reads) -> Value {
    let node = node.settled();
    if reads.is_whole() || !node.is_object() {
        return whole_value(node);
    }
    let mut object = Object::new();
    for (key, name, below) in reads.children() {
        if let Node::Multi(pairs) = node {
            let values: Vec<Value> = multi(pairs, name).map(Value::from).collect();
            if !values.is_empty() {
                object.insert(key.clone(), Value::from(values));
            }
        } else if let Some(child) = node.child(name) {
            object.insert(key.clone(), to_value(child, below));
        }
    }
    Value::Object(regorus::Rc::new(object))
}

fn whole_value(node: Node<'_>) -> Value {
    match node.settled() {
        Node::Int(number) => Value::from(number),
        Node::Bool(flag) => Value::from(flag),
        Node::Float(number) => Value::from(finite(number)),
        Node::Text(text) => Value::from(text),
        Node::Json(json) => json_value(json),
        Node::JsonObject(map) => object_value(map.iter().map(|(key, value)| (key.as_str(), json_value(value)))),
        Node::Texts(texts) => array_value(texts.iter().map(|text| Value::from(text.as_str()))),
        Node::Map(map) => object_value(
            map.iter()
                .map(|(key, value)| (key.as_str(), Value::from(value.as_str()))),
        ),
        Node::Scores(map) => object_value(
            map.iter()
                .map(|(key, value)| (key.as_str(), Value::from(finite(*value)))),
        ),
        Node::Multi(pairs) => object_value(
            grouped(pairs)
                .into_iter()
                .map(|(name, values)| (name, array_value(values.into_iter().map(Value::from)))),
        ),
        Node::Object(fields) => object_value(
            fields
                .names()
                .iter()
                .enumerate()
                .map(|(index, name)| (*name, whole_value(fields.field(index)))),
        ),
        Node::List(items) => array_value((0..items.len()).map(|index| whole_value(items.item(index)))),
        Node::Table(table) => object_value(table.rows().into_iter().map(|(key, row)| (key, whole_value(row)))),
        Node::Unestablished(..) => Value::Undefined,
    }
}

fn array_value(items: impl Iterator<Item = Value>) -> Value {
    Value::from(items.collect::<Vec<_>>())
}

fn object_value<'k>(entries: impl Iterator<Item = (&'k str, Value)>) -> Value {
    let mut object = Object::new();
    for (key, value) in entries {
        object.insert(Value::from(key), value);
    }
    Value::Object(regorus::Rc::new(object))
}

fn grouped(pairs: &[(String, String)]) -> BTreeMap<&str, Vec<&str>> {
    let mut grouped: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in pairs {
        grouped.entry(name).or_default().push(value);
    }
    grouped
}

/// A JSON document as the engine's value. Recursion is bounded by the parser that made the document.
pub(crate) fn json_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => Value::from(number),
            (_, Some(number), _) => Value::from(number),
            (_, _, Some(number)) => Value::from(number),
            _ => Value::Null,
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => array_value(items.iter().map(json_value)),
        Json::Object(map) => object_value(map.iter().map(|(key, value)| (key.as_str(), json_value(value)))),
    }
}

/// The same value in memory of its own. Sharing one between threads makes every evaluation fight for its counters.
pub(crate) fn private_copy(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::from(&**text),
        Value::Array(items) => {
            let mut copy = Array::new();
            items.iter().for_each(|item| copy.push(private_copy(item)));
            Value::Array(regorus::Rc::new(copy))
        }
        Value::Set(items) => Value::from(
            items
                .iter()
                .map(private_copy)
                .collect::<std::collections::BTreeSet<_>>(),
        ),
        Value::Object(entries) => {
            let mut copy = Object::new();
            for (key, entry) in entries.iter() {
                copy.insert(private_copy(key), private_copy(entry));
            }
            Value::Object(regorus::Rc::new(copy))
        }
        plain => plain.clone(),
    }
}

/// The whole input document as JSON.
pub(crate) fn to_json(facts: &Facts) -> Json {
    let view = View::new(facts, &unestablished(facts));
    node_json(view.root())
}

fn node_json(node: Node<'_>) -> Json {
    match node.settled() {
        Node::Int(number) => number.into(),
        Node::Bool(flag) => flag.into(),
        Node::Float(number) => finite(number).into(),
        Node::Text(text) => text.into(),
        Node::Json(json) => json.clone(),
        Node::JsonObject(map) => Json::Object(map.clone()),
        Node::Texts(texts) => texts.iter().map(String::as_str).collect(),
        Node::Map(map) => Json::Object(
            map.iter()
                .map(|(key, value)| (key.clone(), value.as_str().into()))
                .collect(),
        ),
        Node::Scores(map) => Json::Object(
            map.iter()
                .map(|(key, value)| (key.clone(), finite(*value).into()))
                .collect(),
        ),
        Node::Multi(pairs) => Json::Object(
            grouped(pairs)
                .into_iter()
                .map(|(name, values)| (name.to_owned(), values.into_iter().collect()))
                .collect(),
        ),
        Node::Object(fields) => Json::Object(
            fields
                .names()
                .iter()
                .enumerate()
                .map(|(index, name)| ((*name).to_owned(), node_json(fields.field(index))))
                .collect(),
        ),
        Node::List(items) => (0..items.len()).map(|index| node_json(items.item(index))).collect(),
        Node::Table(table) => Json::Object(
            table
                .rows()
                .into_iter()
                .map(|(key, row)| (key.to_owned(), node_json(row)))
                .collect(),
        ),
        Node::Unestablished(..) => Json::Null,
    }
}

/// Appends an unambiguous encoding of what `reads` can reach: two requests with equal bytes give a program equal input.
pub(crate) fn encode(node: Node<'_>, reads: &Reads, out: &mut Vec<u8>) {
    let node = node.settled();
    if reads.is_whole() || !node.is_object() {
        return encode_whole(node, out);
    }
    out.push(tag::PART);
    for (_, name, below) in reads.children() {
        if let Node::Multi(pairs) = node {
            encode_texts(multi(pairs, name), out);
        } else {
            match node.child(name) {
                Some(child) => encode(child, below, out),
                None => out.push(tag::ABSENT),
            }
        }
    }
}

mod tag {
    pub(super) const ABSENT: u8 = 0;
    pub(super) const NULL: u8 = 1;
    pub(super) const FALSE: u8 = 2;
    pub(super) const TRUE: u8 = 3;
    pub(super) const INT: u8 = 4;
    pub(super) const FLOAT: u8 = 5;
    pub(super) const TEXT: u8 = 6;
    pub(super) const LIST: u8 = 7;
    pub(super) const OBJECT: u8 = 8;
    pub(super) const PART: u8 = 9;
    pub(super) const NEGATIVE: u8 = 10;
    pub(super) const END: u8 = 11;
}

fn encode_whole(node: Node<'_>, out: &mut Vec<u8>) {
    match node.settled() {
        Node::Int(number) => encode_number(tag::INT, number, out),
        Node::Bool(flag) => out.push(if flag { tag::TRUE } else { tag::FALSE }),
        Node::Float(number) => encode_number(tag::FLOAT, finite(number).to_bits(), out),
        Node::Text(text) => encode_text(text, out),
        Node::Json(json) => encode_json(json, out),
        Node::JsonObject(map) => encode_object(map.iter(), |value, out| encode_json(value, out), out),
        Node::Texts(texts) => encode_texts(texts.iter().map(String::as_str), out),
        Node::Map(map) => encode_object(map.iter(), |value, out| encode_text(value, out), out),
        Node::Scores(map) => encode_object(
            map.iter(),
            |value, out| encode_number(tag::FLOAT, finite(*value).to_bits(), out),
            out,
        ),
        Node::Multi(pairs) => {
            out.push(tag::OBJECT);
            for (name, value) in pairs {
                encode_text(name, out);
                encode_text(value, out);
            }
            out.push(tag::END);
        }
        Node::Object(fields) => {
            out.push(tag::LIST);
            (0..fields.names().len()).for_each(|index| encode_whole(fields.field(index), out));
            out.push(tag::END);
        }
        Node::List(items) => {
            out.push(tag::LIST);
            (0..items.len()).for_each(|index| encode_whole(items.item(index), out));
            out.push(tag::END);
        }
        Node::Table(table) => {
            out.push(tag::OBJECT);
            for (key, row) in table.rows() {
                encode_text(key, out);
                encode_whole(row, out);
            }
            out.push(tag::END);
        }
        Node::Unestablished(..) => out.push(tag::ABSENT),
    }
}

fn encode_json(json: &Json, out: &mut Vec<u8>) {
    match json {
        Json::Null => out.push(tag::NULL),
        Json::Bool(flag) => out.push(if *flag { tag::TRUE } else { tag::FALSE }),
        Json::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => encode_number(tag::INT, number, out),
            (_, Some(number), _) => encode_number(tag::NEGATIVE, number.unsigned_abs(), out),
            (_, _, Some(number)) => encode_number(tag::FLOAT, number.to_bits(), out),
            _ => out.push(tag::NULL),
        },
        Json::String(text) => encode_text(text, out),
        Json::Array(items) => {
            out.push(tag::LIST);
            items.iter().for_each(|item| encode_json(item, out));
            out.push(tag::END);
        }
        Json::Object(map) => encode_object(map.iter(), |value, out| encode_json(value, out), out),
    }
}

fn encode_object<'a, V: 'a>(
    entries: impl Iterator<Item = (&'a String, &'a V)>,
    encode_value: impl Fn(&V, &mut Vec<u8>),
    out: &mut Vec<u8>,
) {
    out.push(tag::OBJECT);
    for (key, value) in entries {
        encode_text(key, out);
        encode_value(value, out);
    }
    out.push(tag::END);
}

fn encode_texts<'a>(texts: impl Iterator<Item = &'a str>, out: &mut Vec<u8>) {
    out.push(tag::LIST);
    texts.for_each(|text| encode_text(text, out));
    out.push(tag::END);
}

fn encode_text(text: &str, out: &mut Vec<u8>) {
    encode_number(tag::TEXT, text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

fn encode_number(tag: u8, number: u64, out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(&number.to_le_bytes());
}
