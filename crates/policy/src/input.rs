//! From facts to the engine's input, to the key of a cached decision, and to JSON: always only what is asked for.

mod key;

use std::collections::BTreeMap;

pub(crate) use key::{encode, encode_text};
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

/// Paths of the facts that are not established, with the reasons, as far as `reads` can tell: where the list of them is
/// read, all. Only objects with fixed keys have such facts.
pub(crate) fn unestablished(facts: &Facts, reads: &Reads) -> Vec<(String, &'static str)> {
    fn visit(
        object: &dyn Fields,
        reads: &Reads,
        path: &mut Vec<&'static str>,
        found: &mut Vec<(String, &'static str)>,
    ) {
        let mut field = |index: usize, below: &Reads| match object.field(index) {
            Node::Unestablished(reason, _) => {
                path.push(object.names()[index]);
                found.push((path.join("."), reason));
                path.pop();
            }
            Node::Object(inner) => {
                path.push(object.names()[index]);
                visit(inner, below, path, found);
                path.pop();
            }
            _ => {}
        };
        if reads.is_whole() {
            return (0..object.names().len()).for_each(|index| field(index, reads));
        }
        // Few of many are read.
        for (_, name, below) in reads.children() {
            if let Some(index) = object.names().iter().position(|known| *known == name) {
                field(index, below);
            }
        }
    }
    let mut found = Vec::new();
    if reads.touches("unestablished") {
        visit(facts, &Reads::everything(), &mut Vec::new(), &mut found);
    } else {
        visit(facts, reads, &mut Vec::new(), &mut found);
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
    let view = View::new(facts, &unestablished(facts, &Reads::everything()));
    node_json(view.root())
}

pub(crate) fn node_json(node: Node<'_>) -> Json {
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
