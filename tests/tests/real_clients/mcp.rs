//! MCP in both eras with the official Python and TypeScript SDKs, and the MCP project's own server.

use serde_json::{Value, json};

use super::{EVERYTHING, MCP, texts};

const MCP_URL: &str = "http://mcp.aip.internal/mcp";

async fn mcp_call(client: &str, mode: &str, version: &str) {
    let turn = MCP.turn().await;
    let got = turn.script(client, &[MCP_URL, "--mode", mode]).await;
    assert_eq!(
        (got["version"].as_str(), texts(&got["text"])),
        (Some(version), vec!["5"]),
        "{got}"
    );
    turn.allowed().await;
    assert_eq!(turn.seen(), [json!({"seen": "add", "a": 2, "b": 3})]);
}

async fn mcp_progress(client: &str, mode: &str) {
    let turn = MCP.turn().await;
    let stream = format!("{client}-{mode}");
    let args = json!({"stream": stream, "steps": 3}).to_string();
    let args = [
        MCP_URL, "--mode", mode, "--tool", "count", "--args", &args, "--stream", &stream,
    ];
    let got = turn.script(client, &args).await;
    let progress: Vec<_> = got["progress"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    assert_eq!(
        (progress, texts(&got["text"])),
        (vec![1.0, 2.0, 3.0], vec!["counted to 3"]),
        "{got}"
    );
    turn.allowed().await;
}

async fn mcp_denied(client: &str, mode: &str) {
    let turn = MCP.turn().await;
    let args = [
        MCP_URL,
        "--mode",
        mode,
        "--tool",
        "forbidden",
        "--args",
        r#"{"what": "harm"}"#,
    ];
    let got = turn.script(client, &args).await;
    let said = format!("{} {}", got["error"], got["error_data"]);
    assert!(
        said.contains("no_forbidden_tool") || said.contains("a test forbids it"),
        "it says why: {got}"
    );
    let refusal = turn.denied("no_forbidden_tool").await;
    assert_ne!(
        refusal.status(),
        400,
        "a 400 makes clients fall back to an older version"
    );
    assert_eq!(turn.seen(), Vec::<Value>::new(), "the agent never saw it");
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_python_modern() {
    mcp_call("mcp_client.py", "2026-07-28", "2026-07-28").await;
    mcp_progress("mcp_client.py", "2026-07-28").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_python_legacy() {
    mcp_call("mcp_client.py", "legacy", "2025-11-25").await;
    mcp_progress("mcp_client.py", "legacy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_python_negotiates_the_modern_era() {
    mcp_call("mcp_client.py", "auto", "2026-07-28").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_python_denied_in_both_eras() {
    mcp_denied("mcp_client.py", "2026-07-28").await;
    mcp_denied("mcp_client.py", "legacy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_typescript_modern() {
    mcp_call("mcp_client.mjs", "2026-07-28", "2026-07-28").await;
    mcp_progress("mcp_client.mjs", "2026-07-28").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_typescript_legacy() {
    mcp_call("mcp_client.mjs", "legacy", "2025-11-25").await;
    mcp_progress("mcp_client.mjs", "legacy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_typescript_denied_in_both_eras() {
    mcp_denied("mcp_client.mjs", "2026-07-28").await;
    mcp_denied("mcp_client.mjs", "legacy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_everything_server_with_the_typescript_client() {
    let turn = EVERYTHING.turn().await;
    let url = "http://everything.aip.internal/mcp";
    // A modern client falls back: the server knows the handshake only.
    let args = [
        url,
        "--mode",
        "auto",
        "--tool",
        "echo",
        "--args",
        r#"{"message": "hi"}"#,
    ];
    let got = turn.script("mcp_client.mjs", &args).await;
    assert_eq!(
        (got["version"].as_str(), texts(&got["text"])),
        (Some("2025-11-25"), vec!["Echo: hi"]),
        "{got}"
    );
    let long = [
        "--tool",
        "trigger-long-running-operation",
        "--args",
        r#"{"duration": 0.3, "steps": 3}"#,
    ];
    let got = turn
        .script("mcp_client.mjs", &[&[url, "--mode", "legacy"][..], &long].concat())
        .await;
    assert_eq!(got["progress"], json!([1, 2, 3]), "{got}");
    turn.allowed().await;
}
