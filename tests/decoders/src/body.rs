//! What a body says: strict JSON, the call inside it, and agent cards.

use aip_policy::{Fact, ProtocolFacts};
use aip_sidecar::proxy::limits::{MAX_JSON_DEPTH, MAX_JSON_MEMORY};
use aip_sidecar::reading;
use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value, json};

use crate::Seeds;
use crate::split::{first, line, lines, with};

/// A body that policy may read.
pub(crate) fn json_body(bytes: &[u8]) -> bool {
    let Some((value, large)) = reading::strict_json(bytes) else {
        return false;
    };
    let usual: Value = serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("the usual parser refuses it: {e}"));
    assert_eq!(usual, value);
    assert!(std::str::from_utf8(bytes).is_ok() && depth(&value) <= MAX_JSON_DEPTH && bytes.len() <= MAX_JSON_MEMORY);
    has_each_key_once(&value);
    if value.is_object() || value.is_array() {
        assert!(reading::may_begin_json(bytes), "it is JSON, and was not taken for it");
        for cut in 0..bytes.len().min(16) {
            assert!(
                reading::may_begin_json(&bytes[..cut]),
                "its first {cut} bytes were not taken for JSON"
            );
        }
    }
    let again = serde_json::to_vec(&value).unwrap();
    assert_eq!(
        reading::strict_json(&again),
        Some((value, large)),
        "written again it says something else"
    );
    true
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn has_each_key_once(value: &Value) {
    match value {
        Value::Array(items) => items.iter().for_each(has_each_key_once),
        Value::Object(members) => {
            for fold in [str::to_lowercase, str::to_uppercase] as [fn(&str) -> String; 2] {
                let mut keys: Vec<String> = members.keys().map(|key| fold(key)).collect();
                keys.sort();
                keys.dedup();
                assert_eq!(keys.len(), members.len(), "a key stands twice, case aside: {value}");
            }
            members.values().for_each(has_each_key_once);
        }
        _ => {}
    }
}

pub(crate) fn json_body_seeds() -> Seeds {
    let of = |text: &str| text.as_bytes().to_vec();
    vec![
        ("call", tool_call().to_string().into_bytes()),
        (
            "scalars",
            of(r#"[0,-0,1.5,-2e-3,1E+2,true,false,null,"\u00fc\ud83d\ude00\n"]"#),
        ),
        (
            "integers",
            of("[9007199254740992,9007199254740993,18446744073709551616,-9223372036854775809]"),
        ),
        ("twice", of(r#"{"a":1,"A":2}"#)),
        ("folds", of("{\"param\u{17f}\":1,\"\u{130}d\":2,\"\u{212a}\":3}")),
        ("deep", [vec![b'['; 64], vec![b']'; 64]].concat()),
        ("too_deep", [vec![b'['; 65], vec![b']'; 65]].concat()),
        ("surrogate", of(r#"{"a":"\ud800"}"#)),
        ("mark", b"\xef\xbb\xbf{}".to_vec()),
        ("blanks", of(" \t\r\n{ \"a\" : [ ] } ")),
        ("floats", of("[0.1,1e308,5e-324,123456789012345678901234567890.5]")),
    ]
}

/// Which headers stand beside a body: a bit each.
const HEADERS: [(&str, &str); 5] = [
    ("mcp-session-id", "s-1"),
    ("mcp-protocol-version", "2025-06-18"),
    ("a2a-version", "1.0"),
    ("content-type", "application/json"),
    ("a2a-extensions", "x"),
];

/// The call inside a body. First byte: which headers; then a line each for `Mcp-Method` and `Mcp-Name`, where they are not
/// empty; then the body.
pub(crate) fn call(bytes: &[u8]) -> bool {
    let (bits, rest) = first(bytes);
    let (method, rest) = line(rest);
    let (name, body) = line(rest);
    let mut headers = HeaderMap::new();
    for (i, (name, value)) in HEADERS.into_iter().enumerate() {
        if bits & 1 << i != 0 {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    for (header, value) in [("mcp-method", method), ("mcp-name", name)] {
        if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_bytes(value)) {
            headers.insert(header, value);
        }
    }
    let facts = reading::call("http", &headers, body);
    let lenient = serde_json::from_slice::<Value>(body).ok();
    is_not_hidden(&facts, lenient.as_ref());
    is_what_it_says(&facts, lenient.as_ref(), &headers);
    for carrier in ["grpc", "websocket"] {
        is_not_hidden(&reading::call(carrier, &headers, body), lenient.as_ref());
    }
    facts.tool.known().is_some_and(|tool| !tool.is_empty())
}

/// A reader that takes whatever case keys are in, the last of several: what it calls a call of a tool, policy sees as a call of
/// that tool, or knows that it doesn't know.
fn is_not_hidden(facts: &ProtocolFacts, body: Option<&Value>) {
    let calls = match body {
        Some(Value::Array(items)) => items.iter().collect(),
        other => Vec::from_iter(other),
    };
    let batch = matches!(body, Some(Value::Array(_)));
    for (method, params) in calls.into_iter().filter_map(lenient_call) {
        let tool = params.and_then(|params| member(params, "name")).and_then(Value::as_str);
        let (true, Some(tool)) = (method.trim().eq_ignore_ascii_case("tools/call"), tool) else {
            continue;
        };
        let seen = facts.tool.known().is_none_or(|seen| seen == tool && !batch);
        assert!(seen, "a call of {tool:?} is hidden: {facts:?}");
        let method_seen = facts.method.known().is_none_or(|seen| seen == "tools/call");
        assert!(
            method_seen && facts.name != "http",
            "a call of {tool:?} is no call: {facts:?}"
        );
    }
}

fn member<'a>(of: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let mut found = of.iter().filter(|(key, _)| key.to_lowercase() == name);
    found.next_back().map(|(_, value)| value)
}

fn lenient_call(body: &Value) -> Option<(&str, Option<&Map<String, Value>>)> {
    let body = body.as_object()?;
    let params = member(body, "params").and_then(Value::as_object);
    Some((member(body, "method")?.as_str()?, params))
}

/// What policy is told stands in the body.
fn is_what_it_says(facts: &ProtocolFacts, body: Option<&Value>, headers: &HeaderMap) {
    if let Some(tool) = facts.tool.known().filter(|tool| !tool.is_empty()) {
        let body = body.unwrap();
        assert_eq!(
            (body["method"].as_str(), body["params"]["name"].as_str()),
            (Some("tools/call"), Some(tool.as_str()))
        );
        assert_eq!((facts.name.as_str(), &facts.method), ("mcp", &Fact::from("tools/call")));
        if let Fact::Known(arguments) = &facts.arguments {
            let said = body["params"]["arguments"].as_object().cloned().unwrap_or_default();
            assert_eq!(*arguments, said);
        }
        let named = headers
            .get("mcp-name")
            .filter(|name| !name.as_bytes().starts_with(b"=?base64?"));
        assert!(
            named.is_none_or(|named| named.as_bytes() == tool.as_bytes()),
            "the header names another"
        );
    }
    let known =
        [&facts.resource, &facts.prompt, &facts.task].map(|fact| fact.known().is_some_and(|text| !text.is_empty()));
    let names = known.iter().filter(|known| **known).count();
    assert!(names <= 1, "it is about several things at once: {facts:?}");
    if body.is_none() {
        assert!(
            facts.method.known().is_none() && facts.name != "http",
            "nobody read it: {facts:?}"
        );
    }
}

fn tool_call() -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "pay", "arguments": {"amount": 5}}})
}

pub(crate) fn call_seeds() -> Seeds {
    let of = |bits: u8, method: &str, name: &str, body: &str| {
        with(bits, lines(method.as_bytes(), &lines(name.as_bytes(), body.as_bytes())))
    };
    let call = tool_call().to_string();
    let message = json!({"jsonrpc": "2.0", "id": "a", "method": "message/send",
        "params": {"message": {"taskId": "t", "contextId": "c", "parts": []}}});
    let resource = json!({"jsonrpc": "2.0", "id": 2, "method": "resources/read", "params": {"uri": "file:///a"}});
    vec![
        ("tool", of(0, "", "", &call)),
        ("with_headers", of(3, "tools/call", "pay", &call)),
        ("other_name", of(3, "tools/call", "read", &call)),
        ("base64_name", of(1, "", "=?base64?cGF5?=", &call)),
        ("batch", of(0, "", "", &format!("[{call}]"))),
        ("message", of(4, "", "", &message.to_string())),
        ("resource", of(1, "", "", &resource.to_string())),
        (
            "shared",
            of(
                5,
                "",
                "",
                r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"id":"t"}}"#,
            ),
        ),
        (
            "other_case",
            of(
                0,
                "",
                "",
                r#"{"jsonrpc":"2.0","METHOD":"tools/call","params":{"name":"pay"}}"#,
            ),
        ),
        (
            "blank",
            of(
                0,
                "",
                "",
                r#"{"jsonrpc":"2.0","method":"tools/call ","params":{"name":"pay"}}"#,
            ),
        ),
        (
            "no_version",
            of(0, "", "", r#"{"method":"tools/call","params":{"name":"pay"}}"#),
        ),
        (
            "spelled",
            of(0, "", "", r#"{"method":"tools/call","params":{"Name":"pay"},"i d":1}"#),
        ),
        (
            "positional",
            of(0, "", "", r#"{"jsonrpc":"2.0","method":"add","params":[1,2]}"#),
        ),
        ("rest", of(8, "", "", r#"{"query":"x","limit":10}"#)),
        ("not_json", of(0, "", "", "hello")),
        ("large", of(0, "", "", &call.replace('5', "9007199254740993"))),
    ]
}

/// The agent's own address, and its name in the mesh.
const OWN: &str = "127.0.0.1:9000";
const MESH_NAME: &str = "researcher.aip.internal";

/// An agent card on its way out.
pub(crate) fn agent_card(bytes: &[u8]) -> bool {
    let agent = OWN.parse().unwrap();
    let Some(rewritten) = reading::agent_card(bytes, agent, MESH_NAME) else {
        return false;
    };
    let (before, after): (Value, Value) = (
        serde_json::from_slice(bytes).unwrap(),
        serde_json::from_slice(&rewritten).unwrap(),
    );
    let signed = before["signatures"]
        .as_array()
        .is_some_and(|signatures| !signatures.is_empty());
    assert!(!signed, "a signed card was changed");
    assert!(differ_in_urls(&before, &after), "{before} became {after}");
    assert_eq!(
        reading::agent_card(&rewritten, agent, MESH_NAME),
        None,
        "what was rewritten is rewritten again"
    );
    true
}

fn differ_in_urls(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| differ_in_urls(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            let same = |((name, a), (other, b)): ((&String, &Value), (&String, &Value))| {
                let moved = || b.as_str().is_some_and(|url| url.contains(MESH_NAME)) && a.is_string();
                name == other && (differ_in_urls(a, b) || name == "url" && moved())
            };
            a.len() == b.len() && a.iter().zip(b).all(same)
        }
        (a, b) => a == b,
    }
}

pub(crate) fn agent_card_seeds() -> Seeds {
    let card = json!({"name": "x", "url": "http://127.0.0.1:9000/", "documentationUrl": "http://127.0.0.1:9000/docs",
        "supportedInterfaces": [{"url": "http://localhost:9000/rpc"}, {"url": "https://example.com"}]});
    let mut signed = card.clone();
    signed["signatures"] = json!([{"protected": "e30", "signature": "AA"}]);
    let grpc =
        json!({"additionalInterfaces": [{"url": "[::1]:9000", "transport": "GRPC"}, {"url": "ws://0.0.0.0:9000?a#b"}]});
    vec![
        ("card", card.to_string().into_bytes()),
        ("signed", signed.to_string().into_bytes()),
        ("interfaces", grpc.to_string().into_bytes()),
        (
            "other_port",
            br#"{"url":"http://127.0.0.1:90001/","x":{"url":"http://127.0.0.1:9000@evil/"}}"#.to_vec(),
        ),
        ("not_json", b"<html>".to_vec()),
    ]
}
