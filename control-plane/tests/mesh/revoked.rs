//! What was revoked, taken back or removed stays so: after a retry, a restart, and in the name of another.

use aip_api::wire::Hello;
use aip_api::wire::issue_request::Credential;
use aip_runtime::grpc::identity_client::IdentityClient;
use aip_runtime::svid::PendingKey;
use serde_json::{Value, json};

use crate::support::sidecar::{evidence, hello, sign, why};
use crate::support::{Mesh, Sidecar, eventually, settings};

async fn joins(mesh: &Mesh, token: &str, key: &PendingKey) -> Result<(), String> {
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "planner", token).await;
    let request = sidecar.good(token, key).await;
    sidecar.issue(request).await.map(|_| ()).map_err(|s| why(&s))
}

#[tokio::test]
async fn a_token_that_was_spent_lets_nobody_back_in_after_a_revocation() {
    let mesh = Mesh::dev().await;
    let token = mesh.token("planner").await;
    let key = PendingKey::generate().unwrap();
    joins(&mesh, &token, &key).await.unwrap();
    joins(&mesh, &token, &key)
        .await
        .expect("a lost reply is answered again");
    let svids = mesh.admin.get("/v1/agents/planner/svids").await;
    let serial = svids["items"][0]["serial"].as_str().unwrap();
    let unspent = mesh.another_token("planner").await;
    mesh.admin
        .ok("POST", "/v1/agents/planner/revoke", json!({"serial": serial}))
        .await;
    assert_eq!(joins(&mesh, &token, &key).await.unwrap_err(), "token_unknown");
    joins(&mesh, &unspent, &PendingKey::generate().unwrap())
        .await
        .expect("one SVID was revoked, not the agent");
}

#[tokio::test]
async fn tokens_end_with_the_generation_and_with_the_agent_that_they_were_made_for() {
    let mesh = Mesh::dev().await;
    let key = PendingKey::generate().unwrap();
    let spent = mesh.token("planner").await;
    joins(&mesh, &spent, &key).await.unwrap();
    let unspent = mesh.another_token("planner").await;
    mesh.admin.ok("POST", "/v1/agents/planner/revoke", json!({})).await;
    for token in [&spent, &unspent] {
        assert_eq!(joins(&mesh, token, &key).await.unwrap_err(), "token_unknown");
    }
    let fresh = mesh.another_token("planner").await;
    joins(&mesh, &fresh, &key).await.unwrap();

    let before = mesh.another_token("planner").await;
    mesh.admin.ok("DELETE", "/v1/agents/planner", Value::Null).await;
    mesh.admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    assert_eq!(
        joins(&mesh, &before, &key).await.unwrap_err(),
        "token_unknown",
        "another planner's"
    );
}

#[tokio::test]
async fn an_approval_that_was_taken_back_takes_along_all_that_it_covered() {
    let mesh = Mesh::dev().await;
    let token = mesh.token("planner").await;
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    let key = PendingKey::generate().unwrap();
    // Whatever its configuration is: any of it is approved.
    let code = evidence("planner", &key, &[], b"code").code;
    let broad = json!({"agent": "planner", "attestor": "files", "code": code});
    mesh.admin.ok("POST", "/v1/measurements", broad).await;
    sidecar.join(&token).await.unwrap();
    let approved = mesh.admin.get("/v1/measurements?agent=planner").await;
    assert_eq!(approved["items"].as_array().unwrap().len(), 1);
    let print = approved["items"][0]["fingerprint"].as_str().unwrap();
    mesh.admin
        .ok("DELETE", &format!("/v1/measurements/planner/{print}"), Value::Null)
        .await;
    assert_eq!(why(&sidecar.renew(b"code").await.unwrap_err()), "measurement_revoked");
    let key = PendingKey::generate().unwrap();
    let mut request = sidecar.renewal(&key, b"other code").await;
    request.credential = Some(Credential::JoinToken(mesh.another_token("planner").await));
    sidecar
        .issue(request)
        .await
        .expect("a dev mesh approves what nobody took back");
}

/// Forgets what has expired, beside the process that does so, too.
async fn swept(mesh: &Mesh) {
    eventually("the sweep", async || mesh.plane.registry.sweep().await.ok()).await;
}

#[tokio::test]
async fn revocations_survive_a_restart_and_generations_never_fall() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mesh = Mesh::start(settings(&data)).await;
    let by_serial = mesh.joined("planner").await;
    let by_generation = mesh.joined("ledger").await;
    let serial = by_serial.svid.current().unwrap().identity.serial.clone();
    mesh.admin
        .ok("POST", "/v1/agents/planner/revoke", json!({"serial": serial}))
        .await;
    mesh.admin.ok("POST", "/v1/agents/ledger/revoke", json!({})).await;
    let lower = json!({"name": "ledger", "owner": "ops", "generation": 1});
    let put = mesh.admin.ok("PUT", "/v1/agents/ledger", lower).await;
    assert_eq!(put["resource"]["generation"], 2, "no document lowers it");
    mesh.plane.kill().await;

    let mesh = Mesh::start(settings(&data)).await;
    assert_eq!(mesh.admin.get("/v1/agents/ledger").await["resource"]["generation"], 2);
    for old in [by_serial, by_generation] {
        let old = Sidecar {
            mesh: mesh.plane.run.mesh,
            ..old
        };
        assert!(old.open(hello()).await.is_err(), "{}", old.agent);
    }
    // Long after: the revocation is forgotten when everything that it revoked has expired, not before.
    mesh.plane.clock.advance(86_000);
    swept(&mesh).await;
    let left = mesh.admin.get("/v1/revocations").await;
    let names: Vec<_> = left["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["resource"].as_object().unwrap().keys().next().unwrap().clone())
        .collect();
    assert_eq!(names, ["generation"]);
    mesh.plane.clock.advance(1_000);
    swept(&mesh).await;
    assert_eq!(mesh.admin.get("/v1/revocations").await["items"], json!([]));
}

#[tokio::test]
async fn nobody_speaks_serves_or_renews_in_the_name_of_another() {
    let mesh = Mesh::dev().await;
    let mut ledger = mesh.joined("ledger").await;
    let mut planner = mesh.joined("planner").await;
    let mut theirs = ledger.stream().await;
    theirs.synced().await;
    theirs.lease("127.0.0.1:15006").await;
    let endpoints = async || {
        mesh.admin.get("/v1/endpoints").await["items"]
            .as_array()
            .unwrap()
            .clone()
    };
    eventually("the endpoint", async || (endpoints().await.len() == 1).then_some(())).await;

    // The same instance, and the same address: it is still planner's own endpoint that planner leases.
    let mut ours = planner
        .open(Hello {
            instance: theirs.instance.clone(),
            ..hello()
        })
        .await
        .unwrap();
    ours.synced().await;
    ours.lease("127.0.0.1:15006").await;
    let both = eventually("two endpoints", async || {
        let all = endpoints().await;
        (all.len() == 2).then_some(all)
    })
    .await;
    assert_eq!(both[0]["resource"]["agent"], "ledger");
    assert_eq!(both[1]["resource"]["agent"], "planner");
    ours.lease("").await;
    eventually("planner's to go", async || (endpoints().await.len() == 1).then_some(())).await;
    assert_eq!(endpoints().await[0]["resource"]["agent"], "ledger", "its own alone");
    theirs.subscribe(aip_api::resource::Kind::Agent, &["planner"]).await;
    theirs.push().await.expect("the other stream was not taken over");

    // An SVID, a token, a nonce and evidence are each for one agent and one key.
    let key = PendingKey::generate().unwrap();
    let mut client = IdentityClient::new(planner.connected().await.unwrap());
    let foreign = ledger.nonce().await;
    let mut request = planner.renewal(&key, b"code").await;
    request.evidence = sign(&evidence("planner", &key, &foreign, b"code"), &key);
    assert_eq!(why(&client.issue(request).await.unwrap_err()), "nonce_unknown");
    let other = PendingKey::generate().unwrap();
    let mut request = planner.renewal(&key, b"code").await;
    request.csr = other.csr.clone();
    assert_eq!(why(&client.issue(request).await.unwrap_err()), "evidence_other_key");
    let token = mesh.another_token("ledger").await;
    let mut request = planner.renewal(&key, b"code").await;
    request.credential = Some(Credential::JoinToken(token));
    assert_eq!(why(&client.issue(request).await.unwrap_err()), "token_wrong_agent");
}

#[tokio::test]
async fn one_process_has_one_name() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let plain = hello().instance;
    for other in [
        plain.to_uppercase(),
        format!("{{{plain}}}"),
        format!("urn:uuid:{plain}"),
        plain.replace('-', ""),
    ] {
        let refused = sidecar
            .open(Hello {
                instance: other,
                ..hello()
            })
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(why(&refused), "instance_invalid");
    }
}
