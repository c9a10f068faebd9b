//! The call inside a request: JSON-RPC, and of it what MCP and A2A name.

use aip_policy::{Fact, ProtocolFacts};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value};

use super::json::{Parsed, fold};
use super::members::{self, Unestablished};

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
/// MCP's methods without a family, or of one that A2A has, too.
const MCP_ALONE: [&str; 4] = ["initialize", "ping", "tasks/result", "tasks/update"];
/// MCP's methods whose `params` are looked into.
const MCP_READ: [&str; 5] = [
    "tools/call",
    "prompts/get",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
];
/// Methods of both, which are whose the headers say.
const SHARED: [&str; 3] = ["tasks/get", "tasks/list", "tasks/cancel"];
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
    /// There is none, or it is one that is never read: gRPC's, a tunnel's.
    #[default]
    Other,
    /// JSON, read whole.
    Json(Parsed),
    /// There is one, and it is no JSON: a form, YAML, an upload. What it passes is known to nobody here.
    NoJson,
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
fn json_rpc_method(body: &Map<String, Value>) -> Result<Option<&str>, Unestablished> {
    members::are_spelled(body, &["jsonrpc", "method", "params"])?;
    let version = match members::present(body, "jsonrpc") {
        None => false,
        Some(Value::String(version)) if version == "2.0" => true,
        Some(_) => return Err(Unestablished("key_type")),
    };
    let method = match members::present(body, "method") {
        None => return Ok(None),
        Some(Value::String(method)) => method.as_str(),
        Some(_) => return Err(Unestablished("key_type")),
    };
    let counts = version || is_mcp(method) || A2A.contains(&method);
    if is_disguised(method) || counts && !is_name(method) {
        return Err(Unestablished("method_name"));
    }
    Ok(counts.then_some(method))
}

fn is_mcp(method: &str) -> bool {
    MCP_ALONE.contains(&method) || MCP_FAMILIES.iter().any(|family| method.starts_with(family))
}

/// Whether it has only what names of methods have: no blanks, nothing that can't be seen, no other script.
fn is_name(method: &str) -> bool {
    !method.is_empty() && method.bytes().all(|b| b.is_ascii_graphic())
}

/// Whether a lenient reader takes it for a method that it isn't: written in another case, or with blanks.
fn is_disguised(method: &str) -> bool {
    let bare: String = fold(method).chars().filter(char::is_ascii_graphic).collect();
    let exact = || MCP_ALONE.iter().chain(&MCP_READ).chain(&A2A);
    if let Some(name) = exact().find(|name| name.eq_ignore_ascii_case(&bare)) {
        return *name != method;
    }
    let family = MCP_FAMILIES.iter().find(|family| bare.starts_with(**family));
    family.is_some_and(|family| !method.starts_with(family))
}

/// The protocol that a JSON-RPC method belongs to. Headers, which a caller adds as it likes, say it of no other method
/// than those of both.
fn protocol_of(method: &str, headers: &HeaderMap) -> Result<&'static str, Unestablished> {
    let a2a_headers = ["a2a-version", "a2a-extensions", "x-a2a-extensions"]
        .iter()
        .any(|name| headers.contains_key(*name));
    if SHARED.contains(&method) {
        return match (mcp_headers(headers), a2a_headers) {
            (true, true) => Err(Unestablished("headers_differ")),
            (true, false) => Ok("mcp"),
            (false, _) => Ok("a2a"),
        };
    }
    if is_mcp(method) {
        Ok("mcp")
    } else if A2A.contains(&method) {
        Ok("a2a")
    } else {
        Ok("jsonrpc")
    }
}

/// Whether `Mcp-Method` and `Mcp-Name`, by which some servers route, say what the body does.
fn headers_agree(headers: &HeaderMap, method: &str, name: Option<&str>) -> Result<(), Unestablished> {
    let is = |header: &HeaderValue, said: &str| match header.as_bytes().strip_prefix(b"=?base64?") {
        Some(coded) => {
            let coded = coded.strip_suffix(b"?=").unwrap_or_default();
            STANDARD.decode(coded).is_ok_and(|plain| plain == said.as_bytes())
        }
        None => header.as_bytes() == said.as_bytes(),
    };
    let methods = headers.get_all("mcp-method").iter().all(|header| is(header, method));
    let names = headers.get_all("mcp-name").iter();
    if methods && name.is_none_or(|name| names.into_iter().all(|header| is(header, name))) {
        return Ok(());
    }
    Err(Unestablished("headers_differ"))
}

/// The id by which a JSON-RPC request is answered, and whether its protocol wants errors in HTTP 200.
pub(crate) fn call_id(parsed: &Parsed, headers: &HeaderMap) -> Option<(Value, bool)> {
    let body = parsed.value.as_object()?;
    let method = body.get("method").and_then(Value::as_str)?;
    let named = body.get("jsonrpc").and_then(Value::as_str) == Some("2.0") || is_mcp(method) || A2A.contains(&method);
    let id = body
        .get("id")
        .filter(|id| named && (id.is_string() || id.is_number()))?;
    Some((id.clone(), protocol_of(method, headers).is_ok_and(|name| name == "a2a")))
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
        // Protobuf, whose schema nobody gave us: what is passed can't be established, nor which task A2A is about.
        Content::Other if carrier == "grpc" => {
            (facts.task, facts.context) = (Fact::Unestablished("body_grpc"), Fact::Unestablished("body_grpc"));
            facts.arguments = Fact::Unestablished("body_grpc");
        }
        Content::Other => {}
        Content::NoJson => facts.arguments = Fact::Unestablished("body_not_json"),
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
            Value::Array(items) if !items.is_empty() => facts.arguments = Fact::Unestablished("positional_arguments"),
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
    let is = |key: &String| ["jsonrpc", "method"].iter().any(|name| members::stands_for(key, name));
    item.as_object().is_some_and(|item| item.keys().any(is))
}

fn unestablish(facts: &mut ProtocolFacts, why: &'static str) {
    let unknown = || Fact::Unestablished(why);
    (facts.method, facts.tool, facts.resource, facts.prompt) = (unknown(), unknown(), unknown(), unknown());
    (facts.skill, facts.task, facts.context) = (unknown(), unknown(), unknown());
    facts.arguments = Fact::Unestablished(why);
}

fn call(facts: &mut ProtocolFacts, headers: &HeaderMap, body: Map<String, Value>, large: bool) {
    if let Err(Unestablished(why)) = read(facts, headers, body) {
        if facts.name == "http" {
            facts.name = "unknown".into();
        }
        unestablish(facts, why);
    } else if large {
        facts.arguments = Fact::Unestablished("integer_past_2_53");
    }
}

fn read(facts: &mut ProtocolFacts, headers: &HeaderMap, mut body: Map<String, Value>) -> Result<(), Unestablished> {
    let Some(method) = json_rpc_method(&body)?.map(str::to_owned) else {
        // Not JSON-RPC (A2A's HTTP+JSON, ACP, any REST call): the body is what is said. A response is JSON-RPC's.
        headers_agree(headers, "", None)?;
        if facts.name == "mcp" && !body.contains_key("jsonrpc") {
            facts.name = "http".into();
        }
        facts.arguments = Fact::Known(body);
        return Ok(());
    };
    facts.name = protocol_of(&method, headers)?.into();
    members::are_spelled(&body, &["id"])?;
    let params = match body.remove("params") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(params)) => params,
        Some(Value::Array(_)) if facts.name == "jsonrpc" => {
            facts.method = Fact::Known(method);
            facts.arguments = Fact::Unestablished("positional_arguments");
            return Ok(());
        }
        Some(Value::Array(_)) => return Err(Unestablished("positional_arguments")),
        Some(_) => return Err(Unestablished("key_type")),
    };
    let arguments = match facts.name.as_str() {
        "mcp" => of_mcp(facts, headers, &method, params)?,
        "a2a" => of_a2a(facts, &method, params)?,
        _ => params,
    };
    if facts.name != "mcp" {
        headers_agree(headers, &method, None)?;
    }
    facts.method = Fact::Known(method);
    facts.arguments = Fact::Known(arguments);
    Ok(())
}

/// What `params` name by this method of MCP; the arguments are what is left.
fn of_mcp(
    facts: &mut ProtocolFacts,
    headers: &HeaderMap,
    method: &str,
    mut params: Map<String, Value>,
) -> Result<Map<String, Value>, Unestablished> {
    members::are_spelled(&params, &["name", "arguments", "uri", "taskId"])?;
    let member = match method {
        "tools/call" | "prompts/get" => "name",
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => "uri",
        _ if method.starts_with("tasks/") => "taskId",
        _ => {
            headers_agree(headers, method, None)?;
            return Ok(params);
        }
    };
    let named = members::text(&params, member)?;
    headers_agree(headers, method, Some(&named))?;
    match (method, member) {
        ("tools/call", _) => facts.tool = Fact::Known(named),
        ("prompts/get", _) => facts.prompt = Fact::Known(named),
        (_, "uri") => facts.resource = Fact::Known(named),
        _ => facts.task = Fact::Known(named),
    }
    match member {
        "name" => members::take_object(&mut params, "arguments"),
        _ => Ok(params),
    }
}

/// The same of A2A.
fn of_a2a(
    facts: &mut ProtocolFacts,
    method: &str,
    params: Map<String, Value>,
) -> Result<Map<String, Value>, Unestablished> {
    members::are_spelled(&params, &["message", "taskId", "contextId", "id"])?;
    let none = Map::new();
    let message = match members::present(&params, "message") {
        None => &none,
        Some(Value::Object(message)) => message,
        Some(_) => return Err(Unestablished("key_type")),
    };
    members::are_spelled(message, &["taskId", "contextId"])?;
    let (id, outer) = (members::text(&params, "id")?, members::text(&params, "taskId")?);
    // Of version 1.0: `id` is the configuration's.
    let configures = method.contains("PushNotificationConfig") && !method.contains('/');
    let tasks = [
        members::text(message, "taskId")?,
        outer,
        if configures { String::new() } else { id },
    ];
    let contexts = [
        members::text(message, "contextId")?,
        members::text(&params, "contextId")?,
    ];
    facts.task = Fact::Known(members::only(tasks)?);
    facts.context = Fact::Known(members::only(contexts)?);
    Ok(params)
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
