//! The key of a cached decision: the facts that the program reads, one after the other, in an encoding that two different
//! inputs never share.

use serde_json::Value as Json;

use crate::node::{Node, finite, multi};
use crate::reads::Reads;

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
        Node::JsonObject(map) => encode_object(map.iter(), encode_json, out),
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
        Json::Object(map) => encode_object(map.iter(), encode_json, out),
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

/// Appends a text so that no other one begins alike.
pub(crate) fn encode_text(text: &str, out: &mut Vec<u8>) {
    encode_number(tag::TEXT, text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

fn encode_number(tag: u8, number: u64, out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(&number.to_le_bytes());
}
