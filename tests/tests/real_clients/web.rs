//! What HTTP clients are used for, each client in one session, against agents on the usual web frameworks: the same
//! is observed through two sidecars as without them.

use serde_json::{Value, json};

use super::{AIOHTTP, Callee, EXPRESS, FASTAPI, pairs};

const PYTHON: [&str; 4] = ["requests", "httpx", "httpx-async", "aiohttp"];
const NODE: [&str; 3] = ["fetch", "undici", "axios"];

/// What every client sees of every agent.
fn expected() -> Value {
    json!({
        "echo": {"method": "POST", "query": {"q": "a b"}, "body": "hello ✓"},
        "head": [200, "10000", 0],
        "options": [204, "GET, HEAD, OPTIONS, DELETE", 0],
        "delete": [204, 0],
        "not_modified": [304, "\"v1\"", 0],
        "range": [206, "bytes 10-19/10000", "0123456789"],
        "gzip": [200, "gzip", 10_000],
        "cookies": {"session": "s1", "theme": "dark"},
        // The agent named its own address; it leads through the mesh.
        "moved": [200, "/echo", {"moved": "yes"}],
        "posted": [200, "POST", "kept"],
        "upload": {"name": "a.bin", "type": "application/x-test", "sha256": true, "note": "hi"},
        "stream": ["step 1", "step 2", "step 3"],
        "unread": 1000,
        "after": [200, 10_000],
        "denied": [403, "application/problem+json", "policy_denied", "no_forbidden_path"],
    })
}

async fn session(callee: &'static Callee, client: &str) {
    let turn = callee.turn().await;
    let script = if NODE.contains(&client) {
        "web_client.mjs"
    } else {
        "web_client.py"
    };
    let url = format!("http://{}.aip.internal", callee.name);
    let got = turn.script(script, &[&url, client]).await;
    assert_eq!(got, expected(), "{client} with {}", callee.name);
    let refusal = turn.denied("no_forbidden_path").await;
    let (mut outbound, inbound) = turn.records();
    outbound.0.retain(|record| record.hop() != refusal.hop());
    pairs(&outbound, &inbound).unwrap();
    assert!(turn.seen().iter().all(|seen| seen["path"] != "/forbidden"), "{client}");
}

#[tokio::test(flavor = "multi_thread")]
async fn python_clients_see_an_agent_on_fastapi_as_it_is() {
    for client in PYTHON {
        session(&FASTAPI, client).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_clients_see_an_agent_on_fastapi_as_it_is() {
    for client in NODE {
        session(&FASTAPI, client).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_see_an_agent_on_express_as_it_is() {
    for client in ["httpx-async", "fetch"] {
        session(&EXPRESS, client).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_see_an_agent_on_aiohttp_as_it_is() {
    for client in ["aiohttp", "fetch"] {
        session(&AIOHTTP, client).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_comes_back_with_the_last_id_it_heard() {
    let turn = FASTAPI.turn().await;
    let got = turn
        .script("sse_client.mjs", &["http://fastapi.aip.internal/events"])
        .await;
    let heard: Vec<_> = (1..=5).map(|n| json!([n.to_string(), format!("event {n}")])).collect();
    assert_eq!((&got["heard"], &got["opened"]), (&json!(heard), &json!(3)), "{got}");
    assert_eq!(got["code"], 204, "told not to come again: {got}");
    turn.allowed().await;
    let lasts: Vec<_> = turn.seen().iter().filter_map(|seen| seen["last"].as_u64()).collect();
    assert_eq!(lasts, [0, 2, 4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_that_is_refused_says_so_and_gives_up() {
    let turn = FASTAPI.turn().await;
    let got = turn
        .script("sse_client.mjs", &["http://fastapi.aip.internal/forbidden"])
        .await;
    assert_eq!((&got["code"], &got["heard"]), (&json!(403), &json!([])), "{got}");
    turn.denied("no_forbidden_path").await;
    assert_eq!(turn.seen(), Vec::<Value>::new());
}
