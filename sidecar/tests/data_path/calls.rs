//! Calls inside requests: how they are refused in their own form, and that none can hide.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::agent::Agent;
use crate::client::{begin_h2, collect, post, send, to_ledger};
use crate::mesh::Pair;
use crate::refuse::{POLICY, is_refused, pair_with};

fn call(method: &str, tool: &str) -> String {
    json!({"jsonrpc": "2.0", "id": "q-1", "method": method, "params": {"name": tool, "arguments": {}}}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_tool_call_is_a_json_rpc_error() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let allowed = call("tools/call", "good");
    let answer = send(pair.caller.outbound, post("/mcp", "application/json", allowed.clone())).await;
    assert_eq!(
        (answer.status, &answer.body),
        (StatusCode::OK, &Bytes::from(allowed)),
        "exactly those bytes went on"
    );
    let answer = send(
        pair.caller.outbound,
        post("/mcp", "application/json", call("tools/call", "harm")),
    )
    .await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (StatusCode::FORBIDDEN, "application/json")
    );
    let body = answer.json();
    assert_eq!(
        (&body["id"], &body["error"]["data"]["rule"]),
        (&json!("q-1"), &json!("no_tool")),
        "{body}"
    );
    assert_eq!(agent.seen().len(), 1);
    let lines = pair.caller.lines(2).await;
    assert!(
        lines
            .iter()
            .all(|l| l["protocol"] == "mcp" && l["call"] == "tools/call"),
        "{lines:?}"
    );
    assert_eq!((&lines[0]["tool"], &lines[1]["tool"]), (&json!("good"), &json!("harm")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_a2a_call_is_refused_in_200_and_rest_in_its_status() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let message = json!({"message": {"text": "harm"}});
    let rpc = json!({"jsonrpc": "2.0", "id": 7, "method": "SendMessage", "params": message});
    let answer = send(pair.caller.outbound, post("/rpc", "application/json", rpc.to_string())).await;
    assert_eq!((answer.status, &answer.json()["id"]), (StatusCode::OK, &json!(7)));
    assert_eq!(answer.json()["error"]["code"], 403);
    let rest = post("/message:send", "application/a2a+json", message.to_string());
    is_refused(&send(pair.caller.outbound, rest).await, 403, "policy_denied");
    assert!(agent.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_without_policy_is_in_json_rpc_too() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    pair.caller.push(|world| world.endpoints.clear());
    let answer = send(
        pair.caller.outbound,
        post("/mcp", "application/json", call("tools/list", "")),
    )
    .await;
    assert_eq!((answer.status.as_u16(), &answer.json()["id"]), (503, &json!("q-1")));
    assert_eq!(answer.json()["error"]["data"]["reason"], "no_endpoint");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_grpc_call_has_a_grpc_status() {
    let agent = Agent::start().await;
    let by_path = POLICY.replace("input.protocol.arguments.message.text", "input.request.path[1]");
    let pair = pair_with(&agent, &by_path).await;
    let request = Request::post("http://ledger.aip.internal/forbidden/Method")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::from("\0\0\0\0\0")))
        .unwrap();
    let answer = collect(begin_h2(pair.caller.outbound, request).await).await;
    assert_eq!((answer.status, answer.header("grpc-status")), (StatusCode::OK, "7"));
    assert!(answer.header("grpc-message").contains("a test forbids it"));
}

/// However a body is dressed, a rule on what it says is not gone around.
#[tokio::test(flavor = "multi_thread")]
async fn a_tool_can_t_hide() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let harm = call("tools/call", "harm");
    for content_type in [
        "application/json; charset=utf-8",
        "text/plain",
        "application/octet-stream",
        "application/mcp+json",
    ] {
        let answer = send(pair.caller.outbound, post("/mcp", content_type, harm.clone())).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{content_type}");
    }
    let untyped = to_ledger("POST", "/mcp")
        .body(Full::new(Bytes::from(harm.clone())))
        .unwrap();
    assert_eq!(send(pair.caller.outbound, untyped).await.status, StatusCode::FORBIDDEN);
    let no_version = harm.replace(r#""jsonrpc":"2.0","#, "");
    let answer = send(pair.caller.outbound, post("/mcp", "application/json", no_version)).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "without a version");
    assert!(agent.seen().is_empty());
    // And what is none passes.
    let answer = send(pair.caller.outbound, post("/x", "application/json", r#"{"a": 1}"#)).await;
    assert_eq!(answer.status, StatusCode::OK);
}

/// What can't be read might be anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_tool_can_t_hide_in_what_nobody_reads() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let harm = call("tools/call", "harm");
    let no_version = harm.replace(r#""jsonrpc":"2.0","#, "");
    let marked = [b"\xef\xbb\xbf", harm.as_bytes()].concat();
    let wide: Vec<u8> = harm.bytes().flat_map(|b| [0, b]).collect();
    let zipped = to_ledger("POST", "/mcp")
        .header("content-type", "text/plain")
        .header("content-encoding", "gzip");
    let unreadable = [
        ("a byte order mark", post("/mcp", "text/plain", marked)),
        ("UTF-16", post("/mcp", "text/plain", wide)),
        (
            "packed text",
            zipped.body(Full::new(Bytes::from_static(b"\x1f\x8b"))).unwrap(),
        ),
        (
            "a batch without versions",
            post("/mcp", "application/json", format!("[{no_version}]")),
        ),
        ("a batch", post("/mcp", "application/json", format!("[{harm}]"))),
        ("lines of JSON", post("/mcp", "application/x-ndjson", harm.clone())),
        (
            "too large",
            post("/mcp", "application/json", harm.replace("harm", &"x".repeat(1_100_000))),
        ),
        ("lenient JSON", post("/mcp", "text/plain", format!("{harm} // comment"))),
    ];
    for (what, request) in unreadable {
        let answer = send(pair.caller.outbound, request).await;
        let problem = if answer.json()["error"].is_object() {
            answer.json()["error"]["data"].clone()
        } else {
            answer.json()
        };
        assert_eq!(
            (&problem["reason"], &problem["rule"]),
            (&json!("policy_denied"), &json!("fact_unestablished")),
            "{what}"
        );
    }
    let encoded = to_ledger("POST", "/mcp")
        .header("content-type", "application/json")
        .header("content-encoding", "gzip");
    let answer = send(pair.caller.outbound, encoded.body(Full::new(Bytes::from("x"))).unwrap()).await;
    assert_eq!(answer.json()["rule"], "fact_unestablished");
    assert!(agent.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_is_read_differently_is_refused_only_where_it_is_read() {
    let agent = Agent::start().await;
    let twice = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"good","name":"harm"}}"#;
    let pair = pair_with(&agent, POLICY).await;
    is_refused(
        &send(pair.caller.outbound, post("/mcp", "application/json", twice)).await,
        400,
        "invalid_json",
    );
    let (refused, _) = pair.caller.audited(1).await.remove(0);
    assert_eq!(
        (refused.reason.as_str(), refused.verdict.as_str()),
        ("invalid_json", "deny")
    );
    assert_eq!(
        refused.policies,
        [],
        "none had a part in it: there is nothing to decide again"
    );
    let blind = Pair::start(agent.address).await;
    let answer = send(blind.caller.outbound, post("/mcp", "application/json", twice)).await;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, twice));
}
