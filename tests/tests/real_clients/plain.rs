//! Plain HTTP: which clients use the proxy variables (docs/runtimes.md), and how.

use std::process::Command;

use aip_tests::clients::clients;
use serde_json::{Value, json};

use super::{EXPRESS, FASTAPI, HTTP, Turn, pairs};

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

/// What `curl` writes of each transfer.
async fn written(turn: &Turn, format: &str, args: &[&str]) -> Vec<String> {
    let mut command = curl(&["-o", "/dev/null", "-w", &format!("{format}\n")]);
    command.args(args);
    let ran = turn.run(command).await;
    assert!(ran.success, "{ran:?}");
    ran.stdout.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_keeps_its_connection_in_either_form() {
    let turn = FASTAPI.turn().await;
    let (one, two) = ("http://fastapi.aip.internal/page", "http://fastapi.aip.internal/echo");
    let format = "%{http_code} %{http_version} %{num_connects}";
    for how in ["--http1.1", "--proxytunnel"] {
        let got = written(&turn, format, &[how, one, "-o", "/dev/null", two]).await;
        assert_eq!(got, ["200 1.1 1", "200 1.1 0"], "{how}");
    }
    turn.allowed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_speaks_http_2_with_prior_knowledge() {
    let turn = FASTAPI.turn().await;
    let url = "http://fastapi.aip.internal/page";
    let tunnel = ["--http2-prior-knowledge", "--proxytunnel"];
    let format = "%{http_code} %{http_version} %{size_download}";
    let got = written(&turn, format, &[&tunnel[..], &[url]].concat()).await;
    assert_eq!(got, ["200 2 10000"]);
    turn.allowed().await;
    let url = "http://fastapi.aip.internal/forbidden";
    let got = written(&turn, "%{http_code} %{http_version}", &[&tunnel[..], &[url]].concat()).await;
    assert_eq!(got, ["403 2"]);
    turn.denied("no_forbidden_path").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_told_to_continue_and_hears_a_refusal() {
    let turn = FASTAPI.turn().await;
    let body = "x".repeat(100_000);
    // curl gives up waiting for the word after a second by itself: here it does not.
    let expects = ["-H", "Expect: 100-continue", "--expect100-timeout", "60", "-X", "PUT"];
    let kind = ["-H", "Content-Type: application/octet-stream", "-d", &body];
    let send = async |path: &str, format: &str| {
        let url = format!("http://fastapi.aip.internal/{path}");
        written(&turn, format, &[&expects[..], &kind, &[&*url]].concat()).await
    };
    assert_eq!(send("sink", "%{http_code} %{size_upload}").await, ["200 100000"]);
    turn.allowed().await;
    // How much of the body this curl sends before it reads that is its own affair.
    assert_eq!(send("forbidden", "%{http_code}").await, ["403"]);
    turn.denied("no_forbidden_path").await;
}

/// The bytes and the length of a compressed answer are the agent's own; who asks for it reads it.
#[tokio::test(flavor = "multi_thread")]
async fn compressed_answers_arrive_untouched() {
    let turn = EXPRESS.turn().await;
    for coding in ["gzip", "br"] {
        let url = format!("http://express.aip.internal/{coding}");
        let mut shell = Command::new("sh");
        let script = r#"curl -sS --max-time 30 -D - -o "$1.body" "$2"; sha256sum < "$1.body"; rm "$1.body"
            curl -sS --max-time 30 --compressed "$2" | wc -c"#;
        shell.args(["-c", script, "sh", coding, &url]);
        shell.current_dir(turn.callee.directory());
        let ran = turn.run(shell).await;
        let said = ran.stdout.to_lowercase();
        let header = |name: &str| said.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        assert_eq!(header("content-encoding"), Some(coding), "{ran:?}");
        let digest = header("x-sha256").unwrap();
        assert!(said.contains(&format!("{digest}  -")), "{ran:?}");
        assert!(said.trim_end().ends_with("10000"), "{ran:?}");
    }
    turn.allowed().await;
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

/// In one session, as `tests/clients/reqwest` has it.
#[tokio::test(flavor = "multi_thread")]
async fn reqwest_uses_the_proxy_variables() {
    let turn = HTTP.turn().await;
    let ran = turn
        .run(clients().reqwest(&["session", "http://http.aip.internal"]))
        .await;
    let mut got = ran.observed();
    let decision = got["denied"].as_array_mut().and_then(Vec::pop).unwrap();
    let answered = |path: &str| json!({"status": 200, "version": "HTTP/1.1", "path": path});
    let expected = json!({
        "get": answered("/one"),
        "post": {"method": "POST", "path": "/echo?q=a%20b", "same": true},
        "stream": ["step 1", "step 2", "step 3"],
        "denied": [403, "application/problem+json", "policy_denied", "no_forbidden_path"],
        "after": answered("/two"),
    });
    assert_eq!(got, expected);
    let refusal = turn.denied("no_forbidden_path").await;
    assert_eq!(decision, refusal.text("decision"), "the answer names its record");
    let (mut outbound, inbound) = turn.records();
    outbound.0.retain(|record| record.hop() != refusal.hop());
    assert_eq!(outbound.0.len(), 4);
    pairs(&outbound, &inbound).unwrap();
    let paths: Vec<_> = turn.seen().iter().map(|seen| seen["path"].clone()).collect();
    assert_eq!(
        paths,
        ["/one", "/echo?q=a%20b", "/events?stream=reqwest&steps=3", "/two"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reqwest_speaks_http_2_with_prior_knowledge() {
    let turn = HTTP.turn().await;
    let ran = turn
        .run(clients().reqwest(&["h2", "http://http.aip.internal/two"]))
        .await;
    let got = ran.observed();
    assert_eq!(got, json!({"status": 200, "version": "HTTP/2.0", "path": "/two"}));
    turn.allowed().await;
}
