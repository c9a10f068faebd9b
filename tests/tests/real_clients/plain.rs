//! Plain HTTP: which clients use the proxy variables (docs/runtimes.md), and how.

use std::process::Command;

use serde_json::{Value, json};

use super::HTTP;

pub(super) fn curl(args: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["-sS", "-N", "--max-time", "30"]).args(args);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_posts_and_streams() {
    let turn = HTTP.turn().await;
    let ran = turn
        .run(curl(&["-d", "hello", "http://http.aip.internal/echo?q=1"]))
        .await;
    let got = ran.observed();
    assert_eq!(
        (&got["body"], &got["path"], &got["method"]),
        (&json!("hello"), &json!("/echo?q=1"), &json!("POST"))
    );
    // In lockstep with a shell: each line that arrives marks its step.
    let url = "http://http.aip.internal/events?stream=curl&steps=3";
    let mut shell = Command::new("sh");
    let script = r#"curl -sS -N --max-time 30 "$1" | while read -r _ word n; do
        if [ "$word" = step ]; then : > "$STEPS/curl.$n"; echo "$n"; fi; done"#;
    shell.args(["-c", script, "sh", url]);
    let ran = turn.run(shell).await;
    assert_eq!(ran.stdout, "1\n2\n3\n", "{ran:?}");
    turn.allowed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_denied_with_a_useful_answer() {
    let turn = HTTP.turn().await;
    let ran = turn.run(curl(&["http://http.aip.internal/forbidden/x"])).await;
    let problem = ran.observed();
    assert_eq!(
        (&problem["status"], &problem["rule"]),
        (&json!(403), &json!("no_forbidden_path")),
        "{problem}"
    );
    let refusal = turn.denied("no_forbidden_path").await;
    assert_eq!(
        problem["decision_id"].as_str(),
        Some(refusal.text("decision")),
        "the answer names its record"
    );
    assert_eq!(turn.seen(), Vec::<Value>::new());
}

async fn plain(script: &str, client: &str) {
    let turn = HTTP.turn().await;
    let url = format!("http://http.aip.internal/{client}");
    let got = turn.script(script, &[&url, client]).await;
    assert_eq!(got["status"], 200, "{client}: {got}");
    let echo: Value = serde_json::from_str(got["body"].as_str().unwrap()).unwrap();
    assert_eq!(echo["path"], format!("/{client}"));
    turn.allowed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_clients_use_the_proxy_variables() {
    for client in ["requests", "httpx", "httpx2", "urllib", "aiohttp-trust-env"] {
        plain("http_client.py", client).await;
    }
}

/// Known, documented, and here so that the documentation stays true.
#[tokio::test(flavor = "multi_thread")]
async fn aiohttp_without_trust_env_does_not_use_the_proxy_variables() {
    let turn = HTTP.turn().await;
    let got = turn
        .script("http_client.py", &["http://http.aip.internal/aiohttp", "aiohttp"])
        .await;
    assert!(got["error"].is_string(), "{got}");
    assert!(turn.seen().is_empty() && turn.records().0.0.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn node_clients_use_the_proxy_variables() {
    plain("http_client.mjs", "fetch").await;
    plain("http_client.mjs", "http").await;
}
