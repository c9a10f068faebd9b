//! The admin API against whoever would take it away from the others, or see what is not theirs.

use std::time::Duration;

use aip_api::resource::Policy;
use axum::body::Body;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Admin, DEADLINE, Mesh, reason};

async fn person(mesh: &Mesh, sub: &str, role: &str) -> (Admin, String) {
    let wanted = json!({"sub": sub, "role": role});
    let made = mesh.admin.ok("POST", "/v1/admin-tokens", wanted).await;
    let jti = made["jti"].as_str().unwrap().to_owned();
    (mesh.admin.with(made["token"].as_str().unwrap()), jti)
}

async fn watch(by: &Admin) -> http::Response<Body> {
    let request = by.request("GET", "/v1/watch", &Value::Null).body(Body::empty());
    by.raw(request.unwrap()).await
}

#[tokio::test]
async fn a_watch_ends_with_its_token() {
    let mesh = Mesh::dev().await;
    let (viewer, jti) = person(&mesh, "viewer", "viewer").await;
    let watched = watch(&viewer).await;
    assert_eq!(watched.status(), 200);
    mesh.admin
        .ok("DELETE", &format!("/v1/admin-tokens/{jti}"), Value::Null)
        .await;
    mesh.admin.ok("POST", "/v1/agents", json!({"name": "secret"})).await;
    let mut events = watched.into_body().into_data_stream();
    let mut text = String::new();
    // It ends by itself: a client that stays is shown nothing more.
    while let Some(bytes) = tokio::time::timeout(DEADLINE, events.next())
        .await
        .expect("an end in time")
    {
        text += std::str::from_utf8(&bytes.unwrap()).unwrap();
    }
    assert!(
        text.contains("event: end") && text.contains("admin_token_revoked"),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn one_person_does_not_take_the_watches_of_all() {
    let mesh = Mesh::dev().await;
    let (greedy, _) = person(&mesh, "greedy", "viewer").await;
    let mut open = Vec::new();
    let refused = loop {
        let answer = watch(&greedy).await;
        if answer.status() != 200 {
            break answer;
        }
        open.push(answer);
        assert!(open.len() < 128, "one took the places of all");
    };
    assert_eq!(refused.status(), 503);
    let revision = mesh.admin.get("/v1/mesh").await["revision"].clone();
    let acks = format!("/v1/revisions/{revision}/acks");
    assert_eq!(
        greedy.refused("GET", &format!("{acks}?wait_ms=1"), Value::Null).await.0,
        503
    );
    greedy.get(&acks).await;
    let (other, _) = person(&mesh, "other", "viewer").await;
    assert_eq!(watch(&other).await.status(), 200);
    drop(open);
    crate::support::eventually("the places to be free again", async || {
        (watch(&greedy).await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_page_of_large_things_is_cut_and_nothing_is_left_out() {
    let mesh = Mesh::dev().await;
    let names: Vec<String> = (0..14).map(|i| format!("p{i:02}")).collect();
    for name in &names {
        let rego = format!("package aip.policy.{name}\n");
        let data = json!({"blob": "x".repeat(240 * 1024)});
        let policy: Policy = serde_json::from_value(json!({"name": name, "rego": rego, "data": data})).unwrap();
        mesh.plane.registry.put_policy("admin", policy, None).await.unwrap();
    }
    let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = mesh.admin.get(&format!("/v1/policies?limit=500{cursor}")).await;
        assert!(
            page.to_string().len() < 3 << 20,
            "a page of {} bytes",
            page.to_string().len()
        );
        let items = page["items"].as_array().unwrap();
        seen.extend(items.iter().map(|p| p["resource"]["name"].as_str().unwrap().to_owned()));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert!(pages > 1);
    assert_eq!(seen, [&["baseline".to_owned()], names.as_slice()].concat());
}

#[tokio::test]
async fn the_history_of_a_large_policy_does_not_fill_memory() {
    let mesh = Mesh::dev().await;
    for i in 0..14 {
        let data = json!({"blob": "x".repeat(240 * 1024), "i": i});
        let policy = json!({"name": "large", "rego": "package aip.policy.large\n", "data": data});
        let policy: Policy = serde_json::from_value(policy).unwrap();
        mesh.plane.registry.put_policy("admin", policy, None).await.unwrap();
    }
    let history = mesh.admin.get("/v1/policies/large/revisions").await;
    assert!(history.to_string().len() < 3 << 20);
    let items = history["items"].as_array().unwrap();
    assert_eq!(items.len(), 14);
    assert_eq!(
        (&items[0]["policy"]["data"]["i"], &items[0]["left_out"]),
        (&json!(13), &Value::Null)
    );
    assert_eq!(
        (&items[13]["policy"], &items[13]["left_out"]),
        (&Value::Null, &json!(true))
    );
}

#[tokio::test]
async fn a_refused_request_with_a_key_can_be_repeated() {
    let mesh = Mesh::dev().await;
    mesh.admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    let post = async || {
        let body = json!({"name": "planner"});
        let builder = mesh
            .admin
            .request("POST", "/v1/agents", &body)
            .header("idempotency-key", "k");
        mesh.admin
            .send(builder.body(Body::from(body.to_string())).unwrap())
            .await
    };
    let (status, problem) = post().await;
    assert_eq!((status.as_u16(), reason(&problem)), (409, "agent_exists"));
    mesh.admin.ok("DELETE", "/v1/agents/planner", Value::Null).await;
    let first = post().await;
    assert_eq!(first.0, 201);
    assert_eq!(post().await, first);
}

async fn raw(mesh: &Mesh, head: String) -> String {
    let mut tcp = TcpStream::connect(mesh.plane.run.admin).await.unwrap();
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let read = tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut answer)).await;
    let _ = read.expect("an end in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn heads_are_bounded_and_framing_is_not_ambiguous() {
    let mesh = Mesh::dev().await;
    let many: String = (0..100).map(|i| format!("x-{i}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(64 * 1024));
    for (headers, what) in [(many, "many"), (long, "long")] {
        let answer = raw(
            &mesh,
            format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n"),
        )
        .await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
            "{what}: {answer}"
        );
    }
    let two = "POST /v1/agents HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n";
    let answer = raw(&mesh, two.into()).await;
    assert!(
        !answer.contains(" 200 ") && answer.matches("HTTP/1.1").count() <= 1,
        "{answer}"
    );
    let lengths = "POST /v1/agents HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\ncontent-length: 3\r\nconnection: close\r\n\r\n{}";
    assert!(raw(&mesh, lengths.into()).await.starts_with("HTTP/1.1 400"));
    let names = "GET /v1/mesh HTTP/1.1\r\nhost: localhost\r\nhost: evil.com\r\nconnection: close\r\n\r\n";
    let answer = raw(&mesh, names.into()).await;
    assert!(
        answer.starts_with("HTTP/1.1 421") || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
}

#[tokio::test]
async fn one_person_does_not_take_the_policy_checks_of_all() {
    let mesh = Mesh::dev().await;
    let (verifier, _) = person(&mesh, "verifier", "verifier").await;
    let slow: String = (0..2)
        .map(|i| format!("test_{i} if {{\n\tsome a in numbers.range(1, 60000)\n\tsome b in numbers.range(1, 60000)\n\ta + b == {}\n}}\n\n", -1 - i))
        .collect();
    let rego = "package aip.policy.slow\n\nrules contains {\"rule\": \"q\", \"verdict\": \"deny\", \"reason\": \"no\"} if {\n\
                \tinput.request.method == \"TRACE\"\n}\n";
    let body = json!({"name": "slow", "rego": rego, "tests": format!("package aip.policy.slow_test\n\n{slow}")});
    let mut checks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (by, body) = (verifier.clone(), body.clone());
        checks.spawn(async move { by.call("POST", "/v1/policies/check", body).await });
    }
    // Two of them run, two wait for those; an admin's has a place of its own.
    let quick = rego.replace("slow", "quick");
    let done = mesh
        .admin
        .call("PUT", "/v1/policies/quick", json!({"name": "quick", "rego": quick}));
    let (status, answer) = tokio::time::timeout(Duration::from_secs(15), done)
        .await
        .expect("not behind the others");
    assert_eq!(status, 200, "{answer}");
    checks.shutdown().await;
}
