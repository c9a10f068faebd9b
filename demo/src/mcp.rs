//! The part of the Model Context Protocol that a tool server needs: JSON-RPC 2.0 over one `POST`.

use crate::agent::Agent;
use crate::http::{Request, Response};
use crate::json::Json;

/// The protocol version that is answered to a client that names none.
const PROTOCOL_VERSION: &str = "2025-06-18";

/// Answers one JSON-RPC message. `call` runs a tool that the agent has declared.
pub fn answer(agent: &Agent, request: &Request, call: impl Fn(&str, &Json) -> Result<Json, String>) -> Response {
    if request.method != "POST" {
        return Response::error(405, "MCP messages are posted");
    }
    let message = match request.json() {
        Ok(message) => message,
        Err(why) => return Response::json(400, &failure(&Json::Null, -32700.0, &why)),
    };
    let (id, params) = (message.get("id"), message.get("params"));
    let Some(method) = message.get("method").as_str() else {
        return Response::json(400, &failure(id, -32600.0, "a request names its method"));
    };
    if *id == Json::Null {
        // A notification: taken, never answered.
        return Response::empty(202);
    }
    let result = match method {
        "initialize" => initialize(agent, params),
        "ping" => Json::Object(Vec::new()),
        "tools/list" => Json::object([("tools", agent.declared.get("tools").clone())]),
        "prompts/list" => Json::object([("prompts", agent.declared.get("prompts").clone())]),
        "tools/call" => {
            let name = params.get("name").as_str().unwrap_or_default();
            if !agent.declares_tool(name) {
                return Response::json(200, &failure(id, -32602.0, &format!("no tool is called {name:?}")));
            }
            agent.count_tool(name);
            match call(name, params.get("arguments")) {
                Ok(structured) => content(&structured.to_string(), Some(structured), false),
                Err(why) => content(&why, None, true),
            }
        }
        other => return Response::json(200, &failure(id, -32601.0, &format!("no method is called {other:?}"))),
    };
    Response::json(
        200,
        &Json::object([("jsonrpc", "2.0".into()), ("id", id.clone()), ("result", result)]),
    )
}

fn initialize(agent: &Agent, params: &Json) -> Json {
    let version = params.get("protocolVersion").as_str().unwrap_or(PROTOCOL_VERSION);
    let server = Json::object([
        ("name", agent.name.as_str().into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
    ]);
    let empty = || Json::Object(Vec::new());
    Json::object([
        ("protocolVersion", version.into()),
        ("capabilities", Json::object([("tools", empty()), ("prompts", empty())])),
        ("serverInfo", server),
    ])
}

fn content(text: &str, structured: Option<Json>, is_error: bool) -> Json {
    let block = Json::object([("type", "text".into()), ("text", text.into())]);
    let mut members = vec![("content".to_owned(), Json::Array(vec![block]))];
    members.extend(structured.map(|s| ("structuredContent".to_owned(), s)));
    members.push(("isError".to_owned(), is_error.into()));
    Json::Object(members)
}

fn failure(id: &Json, code: f64, message: &str) -> Json {
    let error = Json::object([("code", code.into()), ("message", message.into())]);
    Json::object([("jsonrpc", "2.0".into()), ("id", id.clone()), ("error", error)])
}

/// A `tools/call` request as a client sends it.
pub fn call_request(id: f64, tool: &str, arguments: &Json) -> Json {
    let params = Json::object([("name", tool.into()), ("arguments", arguments.clone())]);
    Json::object([
        ("jsonrpc", "2.0".into()),
        ("id", id.into()),
        ("method", "tools/call".into()),
        ("params", params),
    ])
}
