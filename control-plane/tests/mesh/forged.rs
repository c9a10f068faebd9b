//! What a caller of the admin API writes who has no token that is good, who is a page of somebody else, or who comes at the
//! same moment as others.

use std::collections::BTreeMap;

use aip_api::resource::{KeyPurpose, MeshMode};
use aip_control_plane::admin::auth;
use aip_runtime::signing::Signer;
use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{Admin, Mesh, reason};

fn written(signer: &Signer, head: &str, claims: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(claims));
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signer.sign(message.as_bytes())))
}

#[tokio::test]
async fn no_key_is_taken_from_a_token_and_no_claim_is_written_twice() {
    let mesh = Mesh::dev().await;
    let ours = mesh.plane.api.ca.signer(KeyPurpose::Admin);
    let theirs = Signer::generate(KeyPurpose::Admin).unwrap().0;
    let claims = mesh.admin.token.split('.').nth(1).unwrap();
    let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    let (typ, kid) = (auth::TYP, ours.kid());
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(theirs.public_key().as_bytes())});
    let head = |more: &str| format!(r#"{{"alg":"EdDSA","typ":"{typ}",{more}}}"#);
    // By a key of the caller's own, to which the head points.
    for more in [
        format!(r#""kid":"{kid}","jwk":{jwk}"#),
        format!(r#""kid":"{kid}","jku":"http://127.0.0.1:1/keys""#),
        format!(r#""kid":"{kid}","x5u":"http://127.0.0.1:1/cert","x5c":["AA=="]"#),
        format!(r#""kid":"{}""#, theirs.kid()),
        r#""kid":"../../../../dev/null""#.to_owned(),
        r#""kid":"' or 1=1 --""#.to_owned(),
        r#""kid":"""#.to_owned(),
        format!(r#""kid":"{}","kid":"{kid}""#, theirs.kid()),
        format!(r#""jwk":{jwk}"#),
    ] {
        let token = written(&theirs, &head(&more), &claims);
        let refused = mesh.admin.with(&token).refused("GET", "/v1/mesh", Value::Null).await;
        assert_eq!(refused, (401, "admin_token_invalid".to_owned()), "{more}");
    }
    // By our key, of what has two readings.
    let good = head(&format!(r#""kid":"{kid}""#));
    let admins = claims.replacen('{', r#"{"role":"viewer","#, 1);
    let later = claims.replacen('{', r#"{"exp":1,"#, 1);
    let unended = claims.trim_end_matches('}').to_owned();
    let twice = r#"{"alg":"none","alg":"EdDSA",""#;
    for (head, claims) in [
        (good.clone(), admins),
        (good.clone(), later),
        (good.clone(), unended),
        (good.clone(), "[]".to_owned()),
        (good.replacen("{\"", twice, 1), claims.clone()),
        (good.replace("EdDSA", "eddsa"), claims.clone()),
        (good.replace(typ, "JWT"), claims.clone()),
        (good.replace("EdDSA", "HS256"), claims.clone()),
    ] {
        let token = written(&ours, &head, &claims);
        let refused = mesh.admin.with(&token).refused("GET", "/v1/mesh", Value::Null).await;
        assert_eq!(refused, (401, "admin_token_invalid".to_owned()), "{head} {claims}");
    }
    mesh.admin.with(written(&ours, &good, &claims)).get("/v1/mesh").await;
}

/// Sends a POST that registers an agent, with these headers and no others.
async fn posted(mesh: &Mesh, headers: &[(&str, String)]) -> (u16, String) {
    let body = json!({"name": "forged"}).to_string();
    let host = mesh.plane.run.admin.to_string();
    let mut request = http::Request::post("/v1/agents").header("host", host);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let (status, answer) = mesh.admin.send(request.body(Body::from(body)).unwrap()).await;
    (status.as_u16(), reason(&answer).to_owned())
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing_whatever_form_it_sends() {
    let mesh = Mesh::dev().await;
    let token = ("authorization", format!("Bearer {}", mesh.admin.token));
    let own = format!("http://{}", mesh.plane.run.admin);
    let refused = (403, "origin_refused".to_owned());
    for form in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json",
    ] {
        let form = ("content-type", form.to_owned());
        // A page has no token: nothing that a browser keeps is one.
        let without = posted(
            &mesh,
            &[form.clone(), ("cookie", format!("token={}", mesh.admin.token))],
        )
        .await;
        assert_eq!(without, (401, "credential_missing".to_owned()), "{form:?}");
        for site in ["cross-site", "same-site", "Same-Origin", ""] {
            let from = ("sec-fetch-site", site.to_owned());
            assert_eq!(
                posted(&mesh, &[form.clone(), token.clone(), from]).await,
                refused,
                "{site:?}"
            );
        }
        let foreign = ("origin", "https://evil.example".to_owned());
        assert_eq!(
            posted(&mesh, &[form.clone(), token.clone(), foreign]).await,
            refused,
            "{form:?}"
        );
    }
    let two = posted(&mesh, &[("authorization", "Bearer x".to_owned()), token.clone()]).await;
    assert_eq!(two, (401, "credential_missing".to_owned()), "of two, none counts");
    assert_eq!(mesh.admin.get("/v1/agents").await["items"], json!([]));
    let same = ("sec-fetch-site", "same-origin".to_owned());
    assert_eq!(posted(&mesh, &[token, same, ("origin", own)]).await.0, 201);
}

/// How often each answer came: status and reason.
async fn at_once<F>(count: usize, send: impl Fn(usize) -> F) -> BTreeMap<(u16, String), usize>
where
    F: Future<Output = (http::StatusCode, Value)> + Send + 'static,
{
    let mut all: JoinSet<_> = (0..count).map(send).collect();
    let mut answers = BTreeMap::new();
    while let Some(done) = all.join_next().await {
        let (status, answer) = done.unwrap();
        *answers
            .entry((status.as_u16(), reason(&answer).to_owned()))
            .or_default() += 1;
    }
    answers
}

#[tokio::test]
async fn of_many_that_change_what_they_all_have_seen_one_does() {
    let mesh = Mesh::dev().await;
    mesh.admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    let before = mesh.admin.get("/v1/agents/planner").await["revision"].clone();
    let owned = |admin: Admin, at: usize, revision: Value| async move {
        let body = json!({"name": "planner", "owner": format!("o{at}")});
        let request = admin.request("PUT", "/v1/agents/planner", &body);
        let request = request.header("if-match", format!("\"{revision}\""));
        admin.send(request.body(Body::from(body.to_string())).unwrap()).await
    };
    let answers = at_once(12, |at| owned(mesh.admin.clone(), at, before.clone())).await;
    let expected = BTreeMap::from([((200, String::new()), 1), ((409, "conflict".to_owned()), 11)]);
    assert_eq!(answers, expected);
    for odd in ["x", "1", "*", "\"1\", \"2\"", "-1", "99999999999999999999"] {
        let body = json!({"name": "planner", "owner": "odd"});
        let request = mesh.admin.request("PUT", "/v1/agents/planner", &body);
        let request = request.header("if-match", odd);
        let (status, _) = mesh
            .admin
            .send(request.body(Body::from(body.to_string())).unwrap())
            .await;
        assert!([400, 409].contains(&status.as_u16()), "{odd}: {status}");
    }
    let after = mesh.admin.get("/v1/agents/planner").await["resource"]["owner"].clone();
    assert!(after.as_str().unwrap().starts_with('o') && after != "odd", "{after}");
}

#[tokio::test]
async fn a_key_counts_for_one_person_one_route_and_one_body() {
    let mesh = Mesh::dev().await;
    mesh.admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    let wanted = json!({"sub": "other", "role": "operator"});
    let made = mesh.admin.ok("POST", "/v1/admin-tokens", wanted).await;
    let other = mesh.admin.with(made["token"].as_str().unwrap());
    let keyed = |admin: Admin, path: &'static str, body: Value| async move {
        let request = admin.request("POST", path, &body).header("idempotency-key", "k");
        admin.send(request.body(Body::from(body.to_string())).unwrap()).await
    };
    let token = json!({"agent": "planner"});
    let answers = at_once(12, |_| keyed(mesh.admin.clone(), "/v1/tokens", token.clone())).await;
    let tokens = mesh.admin.get("/v1/tokens").await["items"].as_array().unwrap().len();
    assert_eq!(tokens, 1, "{answers:?}");
    let only = [(201, String::new()), (409, "idempotency_in_progress".to_owned())];
    assert!(answers.keys().all(|answer| only.contains(answer)), "{answers:?}");
    let first = keyed(mesh.admin.clone(), "/v1/tokens", token.clone()).await;

    for (path, body) in [
        ("/v1/tokens", json!({"agent": "planner", "ttl_seconds": 9})),
        ("/v1/agents", token.clone()),
        ("/v1/tokens?x=1", token.clone()),
    ] {
        let (status, answer) = keyed(mesh.admin.clone(), path, body).await;
        assert_eq!(
            (status.as_u16(), reason(&answer)),
            (422, "idempotency_mismatch"),
            "{path}"
        );
    }
    let (status, theirs) = keyed(other, "/v1/tokens", token).await;
    assert_eq!(status, 201);
    assert_ne!(
        theirs["token"], first.1["token"],
        "nobody is handed what another was answered"
    );
}

#[tokio::test]
async fn a_proposal_that_nobody_approved_in_time_is_none() {
    let mesh = Mesh::of(MeshMode::Prod).await;
    let admin = Admin::over(&mesh.plane.run.socket, mesh.admin.token.clone());
    let person = async |sub: &str| {
        let secret = aip_api::Digest::sha256(sub.as_bytes()).to_string();
        let claim = aip_api::Digest::sha256(secret.as_bytes());
        let wanted = json!({"sub": sub, "role": "admin", "claim": claim, "ttl_seconds": 30 * 86_400});
        (admin.call("POST", "/v1/admin-tokens", wanted).await, secret)
    };
    let ((status, _), secret) = person("bob").await;
    assert_eq!(status, 201, "the mesh's second person");
    let claimed = admin
        .ok("POST", "/v1/admin-tokens/claim", json!({"secret": secret}))
        .await;
    let bob = admin.with(claimed["token"].as_str().unwrap());
    let proposed = async |by: &Admin, host: &str| {
        let mut config = bob.get("/v1/mesh-config").await["resource"].clone();
        config["egress"] = json!([{"host": host}]);
        let (status, answer) = by.call("PUT", "/v1/mesh-config", config).await;
        assert_eq!(status, 202, "{answer}");
        format!("/v1/approvals/{}/approve", answer["proposal"].as_str().unwrap())
    };
    let (of_admin, of_bob) = (proposed(&admin, "a.example").await, proposed(&bob, "b.example").await);
    // Neither approves what is their own, whichever of the two asked first.
    for (by, own) in [(&admin, &of_admin), (&bob, &of_bob)] {
        let refused = by.refused("POST", own, Value::Null).await;
        assert_eq!(refused, (403, "second_person_required".to_owned()), "{own}");
    }
    mesh.plane.clock.advance(4 * 86_400 + 1);
    let refused = bob.refused("POST", &of_admin, Value::Null).await;
    assert_eq!(refused, (404, "not_found".to_owned()));
    let egress = bob.get("/v1/mesh-config").await["resource"]["egress"].clone();
    assert_eq!(egress, json!([]), "nothing was changed");
    assert_eq!(bob.get("/v1/approvals").await["items"], json!([]), "and nothing waits");
}
