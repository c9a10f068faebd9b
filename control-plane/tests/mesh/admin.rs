//! The admin API: documents, pages, idempotency, policies, watch.

use axum::body::Body;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::support::{Mesh, reason};

#[tokio::test]
async fn agents_are_registered_changed_listed_and_removed() {
    let mesh = Mesh::dev().await;
    let admin = &mesh.admin;
    let made = admin
        .ok(
            "POST",
            "/v1/agents",
            json!({"name": "planner", "owner": "ops", "generation": 9}),
        )
        .await;
    assert_eq!(
        made["resource"]["generation"], 1,
        "the generation is the control plane's"
    );
    assert_eq!(
        admin.refused("POST", "/v1/agents", json!({"name": "planner"})).await,
        (409, "agent_exists".into())
    );
    let (status, problem) = admin
        .call("POST", "/v1/agents", json!({"name": "x", "owner": "o".repeat(200)}))
        .await;
    assert_eq!((status.as_u16(), reason(&problem)), (422, "invalid"));
    assert_eq!(problem["errors"][0]["field"], "owner");
    assert_eq!(
        admin.refused("POST", "/v1/agents", json!({"nmae": "x"})).await,
        (400, "malformed".into())
    );
    assert_eq!(
        admin.refused("GET", "/v1/agents/Planner", Value::Null).await,
        (400, "name_invalid".into())
    );
    assert_eq!(
        admin.refused("GET", "/v1/agents/nobody", Value::Null).await,
        (404, "not_found".into())
    );
    assert_eq!(
        admin.refused("GET", "/v1/nothing", Value::Null).await,
        (404, "not_found".into())
    );

    let put = async |revision: u64| {
        let builder = admin
            .request("PUT", "/v1/agents/planner", &json!({}))
            .header("if-match", format!("\"{revision}\""));
        let body = json!({"name": "planner", "owner": "dev"}).to_string();
        admin.send(builder.body(Body::from(body)).unwrap()).await.0.as_u16()
    };
    let revision = made["revision"].as_u64().unwrap();
    assert_eq!(put(revision).await, 200);
    assert_eq!(put(revision).await, 409, "it was changed meanwhile");
    admin.ok("DELETE", "/v1/agents/planner", Value::Null).await;
    let again = admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    assert_eq!(
        again["resource"]["generation"], 2,
        "above what was revoked with its predecessor"
    );
}

#[tokio::test]
async fn lists_come_in_pages() {
    let mesh = Mesh::dev().await;
    for i in 0..5 {
        mesh.admin
            .ok("POST", "/v1/agents", json!({"name": format!("a{i}")}))
            .await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = mesh.admin.get(&format!("/v1/agents?limit=2{cursor}")).await;
        seen.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|a| a["resource"]["name"].clone()),
        );
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ["a0", "a1", "a2", "a3", "a4"]);
    for bad in ["limit=0", "limit=501", "cursor=%21"] {
        assert_eq!(
            mesh.admin
                .refused("GET", &format!("/v1/agents?{bad}"), Value::Null)
                .await
                .0,
            422,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn a_repeated_post_with_its_key_is_done_once() {
    let mesh = Mesh::dev().await;
    mesh.admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    let post = async |key: &str, body: Value| {
        let builder = mesh
            .admin
            .request("POST", "/v1/tokens", &body)
            .header("idempotency-key", key);
        mesh.admin
            .send(builder.body(Body::from(body.to_string())).unwrap())
            .await
    };
    let first = post("k1", json!({"agent": "planner"})).await;
    assert_eq!(post("k1", json!({"agent": "planner"})).await, first, "the same token");
    assert_ne!(
        post("k2", json!({"agent": "planner"})).await.1["token"],
        first.1["token"]
    );
    let (status, problem) = post("k1", json!({"agent": "planner", "ttl_seconds": 5})).await;
    assert_eq!((status.as_u16(), reason(&problem)), (422, "idempotency_mismatch"));
    assert_eq!(mesh.admin.get("/v1/tokens").await["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_is_fixed_at_creation_stays() {
    let mesh = Mesh::dev().await;
    let mut config = mesh.admin.get("/v1/mesh-config").await["resource"].clone();
    config["svid_ttl_seconds"] = json!(120);
    mesh.admin.ok("PUT", "/v1/mesh-config", config.clone()).await;
    let sidecar = mesh.joined("planner").await;
    let svid = sidecar.svid.current().unwrap();
    assert_eq!(svid.identity.not_after - svid.identity.not_before, 180);
    for (field, value) in [("mode", "prod"), ("trust_domain", "other.internal")] {
        let changed = json!({"trust_domain": "aip.internal", "mode": "dev", field: value});
        assert_eq!(
            mesh.admin.refused("PUT", "/v1/mesh-config", changed).await,
            (409, "immutable".into()),
            "{field}"
        );
    }
    config["svid_ttl_seconds"] = json!(1);
    assert_eq!(mesh.admin.refused("PUT", "/v1/mesh-config", config).await.0, 422);
}

#[tokio::test]
async fn large_bodies_are_refused() {
    let mesh = Mesh::dev().await;
    let body = json!({"name": "x", "owner": "o".repeat(1 << 20)});
    assert_eq!(
        mesh.admin.refused("POST", "/v1/agents", body).await,
        (413, "too_large".into())
    );
}

#[tokio::test]
async fn a_watch_tells_changes_as_they_happen() {
    let mesh = Mesh::dev().await;
    let from = mesh.admin.get("/v1/mesh").await["revision"].as_u64().unwrap();
    mesh.admin.ok("POST", "/v1/agents", json!({"name": "before"})).await;
    let request = mesh
        .admin
        .request("GET", &format!("/v1/watch?from={from}"), &Value::Null)
        .body(Body::empty());
    let response = mesh.admin.raw(request.unwrap()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    mesh.admin.ok("POST", "/v1/agents", json!({"name": "after"})).await;
    let mut events = response.into_body().into_data_stream();
    let mut text = String::new();
    while !text.contains("\"after\"") {
        let next = tokio::time::timeout(crate::support::DEADLINE, events.next())
            .await
            .expect("an event in time");
        text += std::str::from_utf8(&next.unwrap().unwrap()).unwrap();
    }
    assert!(
        text.contains("event: change") && text.contains("\"before\"") && text.contains("\"kind\":\"Agent\""),
        "{text}"
    );
}

#[tokio::test]
async fn every_change_stands_in_the_audit_with_its_revision() {
    let mesh = Mesh::dev().await;
    let made = mesh.admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    let audit = mesh.admin.get("/v1/audit?limit=1").await;
    let row = &audit["items"][0];
    assert_eq!(
        (&row["revision"], &row["action"], &row["actor"]),
        (&made["revision"], &json!("agent.create"), &json!("admin:admin"))
    );
    assert_eq!(row["subject"], "planner");
    let older = mesh.admin.get(&format!("/v1/audit?before={}", audit["next"])).await;
    assert_eq!(
        older["items"].as_array().unwrap().last().unwrap()["action"],
        "mesh.create"
    );
}

#[tokio::test]
async fn applying_what_is_there_already_changes_nothing() {
    let mesh = Mesh::dev().await;
    let admin = &mesh.admin;
    admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    let rego = "package aip.policy.quiet\n\nrules contains {\"rule\": \"q\", \"verdict\": \"deny\", \"reason\": \"no\"} if {\n\
                \tinput.request.method == \"TRACE\"\n}\n";
    let mut config = admin.get("/v1/mesh-config").await["resource"].clone();
    config["svid_ttl_seconds"] = json!(1_200);
    for (method, path, body) in [
        ("PUT", "/v1/agents/planner", json!({"name": "planner", "owner": "ops"})),
        ("PUT", "/v1/policies/quiet", json!({"name": "quiet", "rego": rego})),
        (
            "PUT",
            "/v1/traffic/planner",
            json!({"agent": "planner", "max_concurrency": 3}),
        ),
        ("PUT", "/v1/mesh-config", config),
        (
            "POST",
            "/v1/measurements",
            json!({"agent": "planner", "attestor": "files", "code": "ab".repeat(32)}),
        ),
    ] {
        let first = admin.ok(method, path, body.clone()).await;
        assert_eq!(first["unchanged"], Value::Null, "{path}");
        let before = admin.get("/v1/mesh").await["revision"].clone();
        let again = admin.ok(method, path, body).await;
        assert_eq!(
            (&again["unchanged"], &again["revision"]),
            (&json!(true), &first["revision"]),
            "{path}"
        );
        assert_eq!(
            admin.get("/v1/mesh").await["revision"],
            before,
            "{path}: nothing was written"
        );
    }
    let versions = admin.get("/v1/policies/quiet/revisions").await;
    assert_eq!(
        versions["items"].as_array().unwrap().len(),
        1,
        "no version that says the same"
    );
    let stale = admin
        .request("PUT", "/v1/agents/planner", &json!({}))
        .header("if-match", "\"1\"")
        .body(Body::from(json!({"name": "planner", "owner": "ops"}).to_string()));
    assert_eq!(
        admin.send(stale.unwrap()).await.0,
        409,
        "what was expected is looked at first"
    );
}

#[tokio::test]
async fn an_agent_is_observed_for_a_week_at_most_and_not_in_the_past() {
    let mesh = Mesh::dev().await;
    let admin = &mesh.admin;
    let now = aip_runtime::unix_now();
    let observing = |name: &str, until: u64| json!({"name": name, "mode": {"kind": "observe", "until": until}});
    admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    for until in [0, now - 1, now + 8 * 86_400, u64::MAX] {
        for (method, path, name) in [
            ("POST", "/v1/agents", "worker"),
            ("PUT", "/v1/agents/planner", "planner"),
        ] {
            let (status, problem) = admin.call(method, path, observing(name, until)).await;
            let field = &problem["errors"][0]["field"];
            assert_eq!(
                (status.as_u16(), field),
                (422, &json!("mode.until")),
                "{method} {until}"
            );
        }
    }
    for (method, path, name) in [
        ("POST", "/v1/agents", "worker"),
        ("PUT", "/v1/agents/planner", "planner"),
    ] {
        admin.ok(method, path, observing(name, now + 7 * 86_400)).await;
    }
    // What is over does not stand in the way of other changes.
    let mut ending = observing("planner", now + 3_600);
    admin.ok("PUT", "/v1/agents/planner", ending.clone()).await;
    mesh.plane.clock.advance(7_200);
    ending["owner"] = json!("ops");
    admin.ok("PUT", "/v1/agents/planner", ending).await;
}

#[tokio::test]
async fn an_alias_leads_to_one_agent() {
    let mesh = Mesh::dev().await;
    let admin = &mesh.admin;
    let with = |name: &str, aliases: &[&str]| json!({"name": name, "aliases": aliases});
    admin.ok("POST", "/v1/agents", with("one", &["bank.example.com"])).await;
    admin
        .ok("POST", "/v1/agents", with("two", &["bank.example.com:8080"]))
        .await;
    for (method, path, document) in [
        ("POST", "/v1/agents", with("three", &["bank.example.com"])),
        ("POST", "/v1/agents", with("three", &["bank.example.com:80"])),
        (
            "PUT",
            "/v1/agents/two",
            with("two", &["shop.example.com", "bank.example.com"]),
        ),
    ] {
        let (status, problem) = admin.call(method, path, document).await;
        assert_eq!(status.as_u16(), 422, "{problem}");
        let message = problem["errors"][0]["message"].as_str().unwrap();
        assert!(message.contains("agent one"), "{message}");
    }
    // Whoever has it gives it up by a change, or by going.
    admin.ok("PUT", "/v1/agents/one", with("one", &[])).await;
    admin
        .ok("PUT", "/v1/agents/two", with("two", &["bank.example.com"]))
        .await;
    admin.ok("DELETE", "/v1/agents/two", Value::Null).await;
    // Of two at a time one has it.
    let (three, four) = tokio::join!(
        admin.call("POST", "/v1/agents", with("three", &["bank.example.com"])),
        admin.call("POST", "/v1/agents", with("four", &["bank.example.com"])),
    );
    let mut statuses = [three.0.as_u16(), four.0.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 422]);
}
