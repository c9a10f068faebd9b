//! gRPC and WebSocket: clients that open a tunnel even for plain text.

use aip_tests::wait;
use serde_json::{Value, json};

use super::{FASTAPI, GRPC, Turn, WS};

const GRPC_TARGET: &str = "grpc.aip.internal:80";

#[tokio::test(flavor = "multi_thread")]
async fn grpc_all_four_kinds_of_calls() {
    let turn = GRPC.turn().await;
    let unary = turn.script("grpc_client.py", &[GRPC_TARGET, "unary"]).await;
    let expected = json!({"code": "OK", "answer": "echo: hello", "initial": "yes", "trailing": "tagged"});
    assert_eq!(unary, expected, "metadata goes both ways, trailers too");
    let download = turn
        .script("grpc_client.py", &[GRPC_TARGET, "download", "--stream", "grpc"])
        .await;
    assert_eq!(download["messages"], json!(["step 1", "step 2", "step 3"]));
    let upload = turn.script("grpc_client.py", &[GRPC_TARGET, "upload"]).await;
    assert_eq!(upload["answer"], "one two three");
    let chat = turn.script("grpc_client.py", &[GRPC_TARGET, "chat"]).await;
    assert_eq!(
        (&chat["messages"], &chat["ended"]),
        (&json!(["echo: one", "echo: two", "echo: three"]), &json!(true))
    );
    let (outbound, inbound) = turn.allowed().await;
    assert_eq!(
        (outbound.0.len(), inbound.0.len()),
        (4, 4),
        "one record a call: {outbound:?}"
    );
    assert!(outbound.0.iter().all(|r| r.text("protocol") == "grpc"), "{outbound:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_errors_arrive_as_they_were_sent() {
    let turn = GRPC.turn().await;
    let got = turn.script("grpc_client.py", &[GRPC_TARGET, "fail"]).await;
    assert_eq!(
        got,
        json!({"code": "FAILED_PRECONDITION", "details": "not in this state"})
    );
    turn.allowed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_metadata_and_large_messages_arrive_whole() {
    let turn = GRPC.turn().await;
    let got = turn.script("grpc_client.py", &[GRPC_TARGET, "metadata"]).await;
    assert_eq!(
        got,
        json!({"code": "OK", "arrived": [true, true]}),
        "twice the same name, and bytes"
    );
    let got = turn.script("grpc_client.py", &[GRPC_TARGET, "large"]).await;
    assert_eq!(got, json!({"code": "OK", "bytes": 16 << 20, "same": [true, true]}));
    turn.allowed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_deadline_and_cancel_reach_the_agent() {
    let turn = GRPC.turn().await;
    let gone = |turn: &Turn| turn.seen().iter().filter(|seen| seen["seen"] == "Gone").count();
    let got = turn.script("grpc_client.py", &[GRPC_TARGET, "deadline"]).await;
    assert_eq!(got["code"], "DEADLINE_EXCEEDED", "{got}");
    wait::until("the agent learns of it", async || (gone(&turn) == 1).then_some(())).await;
    assert_eq!(turn.seen()[0]["seconds"], 2, "and knew how long it had");
    let got = turn
        .script("grpc_client.py", &[GRPC_TARGET, "cancel", "--stream", "cancelled"])
        .await;
    assert_eq!(got, json!({"code": "OK", "first": "step 1", "cancelled": true}));
    wait::until("the agent learns of it", async || (gone(&turn) == 2).then_some(())).await;
    turn.allowed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_denied_in_native_form() {
    let turn = GRPC.turn().await;
    let got = turn.script("grpc_client.py", &[GRPC_TARGET, "forbidden"]).await;
    assert_eq!(got["code"], "PERMISSION_DENIED", "{got}");
    turn.denied("no_forbidden_method").await;
    assert_eq!(turn.seen(), Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_both_ways() {
    let turn = WS.turn().await;
    let got = turn.script("ws_client.py", &["ws://ws.aip.internal/echo?x=1"]).await;
    let expected =
        json!({"text": "echo: hello", "binary": "00ff", "large": 300_000, "subprotocol": "echo.v1", "close": 1000});
    assert_eq!(got, expected);
    turn.allowed().await;
    assert_eq!(turn.seen()[0]["path"], "/echo?x=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_frames_arrive_as_they_were_sent() {
    let turn = WS.turn().await;
    let got = turn
        .script("ws_client.py", &["ws://ws.aip.internal/echo", "frames"])
        .await;
    let expected = json!({
        "joined": "echo: in three frames", "fragments": ["one ", "two ", "three", ""], "pinged": "you answered", "huge": true,
        "closed": [4001, "as the server likes"],
    });
    assert_eq!(got, expected);
    turn.allowed().await;
    let seen = turn.seen();
    let fragments = json!({"seen": "frames", "frames": 4});
    assert!(
        seen.contains(&fragments),
        "what was fragmented arrives in fragments: {seen:?}"
    );
    let closed = json!({"seen": "closed", "code": 4002, "reason": "the client is done"});
    assert!(seen.contains(&closed), "{seen:?}");
}

/// Node's own client opens a tunnel; aiohttp's asks for the upgrade in absolute form, with the scheme that it was given.
#[tokio::test(flavor = "multi_thread")]
async fn websocket_clients_of_node_and_aiohttp() {
    for (client, scheme) in [
        ("ws_client.mjs", "ws"),
        ("ws_aiohttp.py", "ws"),
        ("ws_aiohttp.py", "http"),
    ] {
        let turn = FASTAPI.turn().await;
        let got = turn
            .script(client, &[&format!("{scheme}://fastapi.aip.internal/ws")])
            .await;
        let said = (&got["heard"], &got["protocol"], &got["code"], &got["reason"]);
        let expected = (
            &json!(["echo: hello"]),
            &json!("echo.v1"),
            &json!(4001),
            &json!("as asked"),
        );
        assert_eq!(said, expected, "{client}: {got}");
        turn.allowed().await;
        let got = turn
            .script(client, &[&format!("{scheme}://fastapi.aip.internal/forbidden")])
            .await;
        assert!(got["error"].is_string() || got["status"] == 403, "{client}: {got}");
        turn.denied("no_forbidden_path").await;
        assert_eq!(turn.seen(), [json!({"seen": "websocket"})], "{client}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_denied_before_the_handshake() {
    let turn = WS.turn().await;
    let got = turn.script("ws_client.py", &["ws://ws.aip.internal/forbidden"]).await;
    assert_eq!(got["status"], 403, "{got}");
    assert!(
        got["body"].as_str().unwrap().contains("policy"),
        "a useful answer: {got}"
    );
    turn.denied("no_forbidden_path").await;
    assert_eq!(turn.seen(), Vec::<Value>::new());
}
