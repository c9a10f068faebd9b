//! A2A 1.0 with the official Python SDK, over both of its HTTP bindings.

use serde_json::Value;

use super::{A2A, texts};

#[tokio::test(flavor = "multi_thread")]
async fn a2a_message_over_json_rpc() {
    a2a_message("JSONRPC", "http://a2a.aip.internal/rpc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a2a_message_over_http_json() {
    a2a_message("HTTP+JSON", "http://a2a.aip.internal/rest").await;
}

async fn a2a_message(binding: &str, address: &str) {
    let turn = A2A.turn().await;
    let got = turn
        .script("a2a_client.py", &["http://a2a.aip.internal", "--binding", binding])
        .await;
    assert_eq!(
        texts(&got["dialled"]),
        [address],
        "the card advertises the mesh address"
    );
    assert_eq!(got["answer"], "echo: hello", "{got}");
    let (outbound, _) = turn.allowed().await;
    assert!(outbound.0.len() >= 2, "the card and the call: {outbound:?}");
    assert_eq!(turn.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a2a_stream_over_json_rpc() {
    a2a_stream("JSONRPC", "rpc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a2a_stream_over_http_json() {
    a2a_stream("HTTP+JSON", "rest").await;
}

async fn a2a_stream(binding: &str, name: &str) {
    let turn = A2A.turn().await;
    let stream = format!("a2a-{name}");
    let args = [
        "http://a2a.aip.internal",
        "--binding",
        binding,
        "--stream",
        &stream,
        "3",
    ];
    let got = turn.script("a2a_client.py", &args).await;
    let working = texts(&got["states"])
        .iter()
        .filter(|s| **s == "TASK_STATE_WORKING")
        .count();
    assert_eq!((working, got["answer"].as_str()), (3, Some("counted to 3")), "{got}");
    turn.allowed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a2a_denied_over_json_rpc() {
    a2a_denied("JSONRPC").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a2a_denied_over_http_json() {
    a2a_denied("HTTP+JSON").await;
}

async fn a2a_denied(binding: &str) {
    let turn = A2A.turn().await;
    let args = ["http://a2a.aip.internal", "--binding", binding, "--text", "forbidden"];
    let got = turn.script("a2a_client.py", &args).await;
    assert!(got["error"].is_string(), "the SDK reports an error of the call: {got}");
    turn.denied("no_forbidden_text").await;
    assert_eq!(turn.seen(), Vec::<Value>::new(), "the agent never saw it");
}
