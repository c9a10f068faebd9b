//! The call inside a request: JSON-RPC, and of it what MCP and A2A name.

use aip_policy::{Fact, ProtocolFacts};
use http::HeaderMap;
use serde_json::{Map, Value};

use super::json::Parsed;

/// First parts of MCP's methods (all revisions to 2026-07-28), beside those that stand alone.
const MCP_FAMILIES: [&str; 12] = [
    "tools/",
    "resources/",
    "prompts/",
    "completion/",
    "logging/",
    "sampling/",
    "elicitation/",
    "roots/",
    "notifications/",
    "server/",
    "subscriptions/",
    "ui/",
];
/// MCP's methods without a family.
const MCP_ALONE: [&str; 2] = ["initialize", "ping"];
/// A2A's methods: 1.0 in camel case, 0.3 with slashes.
const A2A: [&str; 22] = [
    "SendMessage",
    "SendStreamingMessage",
    "GetTask",
    "ListTasks",
    "CancelTask",
    "SubscribeToTask",
    "CreateTaskPushNotificationConfig",
    "GetTaskPushNotificationConfig",
    "ListTaskPushNotificationConfigs",
    "ListTaskPushNotificationConfig",
    "DeleteTaskPushNotificationConfig",
    "GetExtendedAgentCard",
    "message/send",
    "message/stream",
    "tasks/get",
    "tasks/list",
    "tasks/cancel",
    "tasks/resubscribe",
    "tasks/pushNotificationConfig/set",
    "tasks/pushNotificationConfig/get",
    "tasks/pushNotificationConfig/list",
    "agent/getAuthenticatedExtendedCard",
];

/// What the body of a request said. It is there while policy is asked, and no longer: what was read takes many times
/// what its bytes do.
#[derive(Debug, PartialEq, Default)]
pub(crate) enum Content {
    /// There is none, or it is none that a policy reads.
    #[default]
    Other,
    /// JSON, read whole.
    Json(Parsed),
    /// It may be JSON, and could not be read.
    Unread(&'static str),
}

/// Whether this is MCP by its headers alone.
fn mcp_headers(headers: &HeaderMap) -> bool {
    ["mcp-protocol-version", "mcp-session-id", "mcp-method"]
        .iter()
        .any(|name| headers.contains_key(*name))
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers
        .get(name)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

/// The method of a JSON-RPC 2.0 request or notification. A method of MCP or A2A counts without the version, too:
/// lenient servers don't look at it.
fn json_rpc_method(body: &Map<String, Value>) -> Option<&str> {
    let version = body.get("jsonrpc").and_then(Value::as_str) == Some("2.0");
    let known = |method: &&str| version || is_mcp(method) || A2A.contains(method);
    body.get("method").and_then(Value::as_str).filter(known)
}

fn is_mcp(method: &str) -> bool {
    MCP_ALONE.contains(&method) || MCP_FAMILIES.iter().any(|family| method.starts_with(family))
}

/// The protocol that a JSON-RPC method belongs to.
fn protocol_of(method: &str, headers: &HeaderMap) -> &'static str {
    // `tasks/get` and `tasks/cancel` are names of both.
    if is_mcp(method) || mcp_headers(headers) {
        "mcp"
    } else if A2A.contains(&method) {
        "a2a"
    } else {
        "jsonrpc"
    }
}

/// The id by which a JSON-RPC request is answered, and whether its protocol wants errors in HTTP 200.
pub(crate) fn call_id(parsed: &Parsed, headers: &HeaderMap) -> Option<(Value, bool)> {
    let body = parsed.value.as_object()?;
    let method = json_rpc_method(body)?;
    let id = body.get("id").filter(|id| id.is_string() || id.is_number())?;
    Some((id.clone(), protocol_of(method, headers) == "a2a"))
}

/// The call, as policy sees it. `carrier` is what carries it: `http`, `grpc`, `websocket` or `tunnel`.
pub(crate) fn facts(carrier: &'static str, headers: &HeaderMap, content: Content) -> ProtocolFacts {
    let mut facts = ProtocolFacts {
        name: carrier.to_owned(),
        ..ProtocolFacts::default()
    };
    if carrier == "http" && mcp_headers(headers) {
        facts.name = "mcp".into();
    }
    match content {
        // Protobuf, whose schema nobody gave us: what is passed can't be established.
        Content::Other if carrier == "grpc" => facts.arguments = Fact::Unestablished("body_grpc"),
        Content::Other => {}
        Content::Unread(why) => {
            if facts.name == "http" {
                // Not "http": that would be a claim, and a rule for plain HTTP would take it.
                facts.name = "unknown".into();
            }
            unestablish(&mut facts, why);
        }
        Content::Json(parsed) => match parsed.value {
            Value::Object(body) => call(&mut facts, headers, body, parsed.large_integer),
            // Several calls at once: one set of facts can't speak for all of them.
            Value::Array(items) if items.iter().any(is_call) => {
                facts.name = "jsonrpc".into();
                unestablish(&mut facts, "batch");
            }
            _ => {}
        },
    }
    if facts.name == "mcp" {
        facts.session = Fact::Known(header(headers, "mcp-session-id"));
        facts.version = header(headers, "mcp-protocol-version");
    } else if facts.name == "a2a" {
        facts.version = header(headers, "a2a-version");
    }
    facts
}

fn is_call(item: &Value) -> bool {
    item.as_object()
        .is_some_and(|item| item.contains_key("jsonrpc") || item.contains_key("method"))
}

fn unestablish(facts: &mut ProtocolFacts, why: &'static str) {
    let unknown = || Fact::Unestablished(why);
    (facts.method, facts.tool, facts.resource, facts.prompt) = (unknown(), unknown(), unknown(), unknown());
    (facts.skill, facts.task, facts.context) = (unknown(), unknown(), unknown());
    facts.arguments = Fact::Unestablished(why);
}

fn call(facts: &mut ProtocolFacts, headers: &HeaderMap, mut body: Map<String, Value>, large: bool) {
    let method = json_rpc_method(&body).map(str::to_owned);
    let positional = method.as_ref().is_some_and(|method| !method.is_empty());
    let positional = positional && body.get("params").is_some_and(Value::is_array);
    let arguments = match method {
        // Not JSON-RPC (A2A's HTTP+JSON, ACP, any REST call): the body is what is said.
        None => body,
        Some(method) => {
            facts.name = protocol_of(&method, headers).into();
            let params = object(&mut body, "params");
            let arguments = named(facts, &method, params);
            facts.method = Fact::Known(method);
            arguments
        }
    };
    facts.arguments = match (large, positional) {
        (true, _) => Fact::Unestablished("integer_past_2_53"),
        (_, true) => Fact::Unestablished("positional_arguments"),
        _ => Fact::Known(arguments),
    };
}

/// What `params` name by this method; the arguments are what is left.
fn named(facts: &mut ProtocolFacts, method: &str, mut params: Map<String, Value>) -> Map<String, Value> {
    match (facts.name.as_str(), method) {
        ("mcp", "tools/call") => {
            facts.tool = Fact::Known(text(&params, "name"));
            object(&mut params, "arguments")
        }
        ("mcp", "prompts/get") => {
            facts.prompt = Fact::Known(text(&params, "name"));
            object(&mut params, "arguments")
        }
        ("mcp", "resources/read" | "resources/subscribe" | "resources/unsubscribe") => {
            facts.resource = Fact::Known(text(&params, "uri"));
            params
        }
        ("a2a", _) => {
            let message = params.get("message").and_then(Value::as_object);
            let in_message = |name: &str| message.map(|message| text(message, name)).unwrap_or_default();
            let either = |name: &str, alone: &str| match in_message(name) {
                found if found.is_empty() => text(&params, alone),
                found => found,
            };
            facts.task = Fact::Known(either("taskId", "id"));
            facts.context = Fact::Known(either("contextId", "contextId"));
            params
        }
        _ => params,
    }
}

/// The object of this name, taken out; none is an empty one.
fn object(map: &mut Map<String, Value>, name: &str) -> Map<String, Value> {
    match map.remove(name) {
        Some(Value::Object(found)) => found,
        _ => Map::new(),
    }
}

fn text(map: &Map<String, Value>, name: &str) -> String {
    map.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;
    use serde_json::json;

    fn of(body: &Value, headers: &HeaderMap) -> ProtocolFacts {
        facts(
            "http",
            headers,
            Content::Json(parse(body.to_string().as_bytes(), None).unwrap()),
        )
    }

    #[test]
    fn a_tool_call_has_tool_and_arguments() {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "pay", "arguments": {"amount": 5}}});
        let facts = of(&body, &HeaderMap::new());
        assert_eq!(
            (facts.name.as_str(), facts.method, facts.tool),
            ("mcp", "tools/call".into(), "pay".into())
        );
        assert_eq!(facts.arguments.known().unwrap()["amount"], 5);
    }

    #[test]
    fn a2a_methods_of_both_eras_are_a2a() {
        let message = json!({"message": {"taskId": "t", "contextId": "c", "parts": [{"text": "x"}]}});
        for method in ["SendMessage", "message/send"] {
            let body = json!({"jsonrpc": "2.0", "id": "i", "method": method, "params": message});
            let facts = of(&body, &HeaderMap::new());
            assert_eq!(
                (facts.name.as_str(), facts.task, facts.context),
                ("a2a", "t".into(), "c".into())
            );
            assert_eq!(facts.arguments.known().unwrap()["message"]["parts"][0]["text"], "x");
            let parsed = parse(body.to_string().as_bytes(), None).unwrap();
            assert_eq!(call_id(&parsed, &HeaderMap::new()), Some((json!("i"), true)));
        }
    }

    #[test]
    fn a_task_belongs_to_whoever_the_headers_say() {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"id": "t"}});
        assert_eq!(of(&body, &HeaderMap::new()).name, "a2a");
        let mut headers = HeaderMap::new();
        headers.insert("mcp-session-id", "s".parse().unwrap());
        let facts = of(&body, &headers);
        assert_eq!((facts.name.as_str(), facts.session), ("mcp", "s".into()));
    }

    #[test]
    fn a_body_that_is_no_json_rpc_is_its_own_arguments() {
        let facts = of(&json!({"message": {"parts": []}}), &HeaderMap::new());
        assert_eq!((facts.name.as_str(), facts.method), ("http", "".into()));
        assert!(facts.arguments.known().unwrap().contains_key("message"));
    }

    #[test]
    fn what_can_t_be_read_is_not_established() {
        let batch = json!([{"jsonrpc": "2.0", "id": 1, "method": "tools/call"}]);
        assert_eq!(of(&batch, &HeaderMap::new()).tool, Fact::Unestablished("batch"));
        let unread = facts("http", &HeaderMap::new(), Content::Unread("body_too_large"));
        assert_eq!(
            (unread.name.as_str(), unread.tool),
            ("unknown", Fact::Unestablished("body_too_large"))
        );
        let large = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "t", "arguments": {"n": u64::MAX}}});
        assert_eq!(
            of(&large, &HeaderMap::new()).arguments,
            Fact::Unestablished("integer_past_2_53")
        );
    }
}
