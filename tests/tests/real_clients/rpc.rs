//! gRPC and WebSocket: clients that open a tunnel even for plain text.

use serde_json::{Value, json};

use super::{GRPC, WS};

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
