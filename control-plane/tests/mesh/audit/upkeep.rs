//! What stays and what goes: retention, quotas, proofs, the policies of old decisions, and kills in the middle.

use aip_api::Digest;
use aip_api::resource::Retention;
use aip_audit::merkle;
use serde_json::{Value, json};

use crate::support::audit::{Audit, Log};
use crate::support::{Mesh, Process, Sidecar, eventually};

fn digests(list: &Value) -> Vec<Digest> {
    let list = list.as_array().unwrap().iter();
    list.map(|digest| digest.as_str().unwrap().parse().unwrap()).collect()
}

/// Sends what the log's closed segments and its open one hold, from segment `from`.
async fn send(stream: &mut Audit, sidecar: &Sidecar, log: &Log, from: u64) {
    stream.checkpoint(log.checkpoint(sidecar)).await.unwrap();
    let (open, _) = log.writer.segment();
    for segment in from..open {
        assert_eq!(stream.chunk(log.whole(segment, true)).await, Ok((segment + 1, 0)));
    }
}

#[tokio::test]
async fn every_checkpoint_is_proved_to_stand_under_every_later_head() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut log = Log::fresh();
    let (mut stream, _) = Audit::resumed(&sidecar, &log).await;
    let mut heads = Vec::new();
    for index in 0..9 {
        log.fill(1);
        assert_eq!(stream.checkpoint(log.checkpoint(&sidecar)).await, Ok(index));
        heads.push(mesh.admin.get("/v1/audit/tree-head").await["head"].clone());
    }
    let root = |head: &Value| head["root"].as_str().unwrap().parse::<Digest>().unwrap();
    let page = mesh
        .admin
        .get(&format!("/v1/audit/logs/{}/checkpoints", log.name()))
        .await;
    let shown = page["items"].as_array().unwrap();
    for (at, head) in heads.iter().enumerate() {
        let size = at as u64 + 1;
        assert_eq!(head["size"], size);
        for (index, checkpoint) in shown.iter().enumerate().take(at + 1) {
            let path = format!("/v1/audit/inclusion?index={index}&size={size}");
            let proof = mesh.admin.get(&path).await;
            let leaf = merkle::leaf(checkpoint["statement"].as_str().unwrap().as_bytes());
            merkle::verify_inclusion(&leaf, index as u64, size, &digests(&proof["proof"]), &root(head)).unwrap();
        }
        for (before, earlier) in heads.iter().enumerate().take(at) {
            let path = format!("/v1/audit/consistency?from={}&to={size}", before + 1);
            let proof = digests(&mesh.admin.get(&path).await["proof"]);
            merkle::verify_consistency(before as u64 + 1, size, &root(earlier), &root(head), &proof).unwrap();
        }
    }
    assert_eq!(
        mesh.admin
            .refused("GET", "/v1/audit/inclusion?index=9&size=9", json!(null))
            .await
            .0,
        404
    );
    assert_eq!(
        mesh.admin
            .refused("GET", "/v1/audit/consistency?from=1&to=10", json!(null))
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn what_is_older_than_is_kept_goes_and_every_proof_stays() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut log = Log::fresh();
    for _ in 0..3 {
        log.fill(5);
        log.writer.rotate().unwrap();
    }
    let (mut stream, _) = Audit::resumed(&sidecar, &log).await;
    send(&mut stream, &sidecar, &log, 0).await;
    let before = mesh.admin.get("/v1/audit/inclusion?index=0&size=1").await;
    drop(stream);
    mesh.plane.clock.advance(91 * 86_400);
    let copy = mesh.data.join("audit/planner").join(log.name());
    eventually("the log goes", async || {
        mesh.plane.audit.sweep().await;
        (!copy.exists()).then_some(())
    })
    .await;
    let later = mesh.admin.with(fresh_admin(&mesh).await);
    let shown = later.get("/v1/audit/logs").await;
    assert_eq!(shown["items"][0]["broken"]["reason"], "expired");
    assert_eq!(later.get("/v1/audit/inclusion?index=0&size=1").await, before);
    assert_eq!(
        later.get("/v1/audit/findings").await["items"],
        json!([]),
        "age is no crime"
    );
}

/// An admin token of now: the clock of the mesh was moved past the end of the first one.
async fn fresh_admin(mesh: &Mesh) -> String {
    use aip_control_plane::admin::auth;
    let signer = mesh.plane.api.ca.signer(aip_api::resource::KeyPurpose::Admin);
    let claims = mesh.admin.token.split('.').nth(1).unwrap();
    use base64::Engine as _;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let mut claims: auth::Claims = serde_json::from_slice(&claims).unwrap();
    claims.exp = mesh.plane.clock.now() + 3_600;
    claims.jti = "later".into();
    let record = json!({"jti": "later", "sub": claims.sub, "role": "admin", "issued_at": 0, "expires_at": claims.exp, "issued_by": "test"});
    let change = mesh
        .plane
        .registry
        .change(&aip_control_plane::registry::Actor::control_plane(), "test", "later");
    let key = aip_control_plane::registry::keys::admin_token("later");
    change
        .put(key, &record, aip_control_plane::store::Expect::Any)
        .commit()
        .await
        .unwrap();
    aip_runtime::jws::sign_eddsa(&signer, auth::TYP, &claims).unwrap()
}

#[tokio::test]
async fn an_agent_takes_no_more_room_than_it_may() {
    let mesh = Mesh::dev().await;
    let mut config = mesh.admin.get("/v1/mesh-config").await["resource"].clone();
    config["audit"]["retention"] = serde_json::to_value(Retention {
        days: 90,
        bytes: 16 * 1024 * 1024,
    })
    .unwrap();
    mesh.admin.ok("PUT", "/v1/mesh-config", config).await;
    let sidecar = mesh.joined("planner").await;
    let mut log = Log::fresh();
    let (mut stream, _) = Audit::resumed(&sidecar, &log).await;
    let (mut kept, mut segment) = (u64::MAX, 0);
    // Some 3 MiB a segment, of records with long paths: 8 of them are more than may stay.
    for _ in 0..8 {
        for _ in 0..6 {
            let mut event =
                crate::support::audit::decision("planner", "x", aip_audit::record::Direction::Outbound, None);
            if let aip_audit::record::Event::Decision(decision) = &mut event {
                decision.facts.kept = json!("x".repeat(500_000));
            }
            log.add(event);
        }
        log.writer.rotate().unwrap();
        stream.checkpoint(log.checkpoint(&sidecar)).await.unwrap();
        let bytes = log.bytes(segment);
        for from in (0..bytes.len()).step_by(1 << 20) {
            let to = bytes.len().min(from + (1 << 20));
            stream
                .chunk(log.chunk(segment, from, to, to == bytes.len()))
                .await
                .unwrap();
        }
        segment += 1;
        let shown = mesh.admin.get("/v1/audit/logs").await["items"][0].clone();
        assert!(shown["bytes"].as_u64().unwrap() <= 16 * 1024 * 1024, "{shown}");
        kept = shown["segments"]["first"].as_u64().unwrap();
    }
    assert!(kept > 0, "the oldest went");
    let gone = format!("/v1/audit/logs/{}/segments/0", log.name());
    assert_eq!(mesh.admin.refused("GET", &gone, json!(null)).await.0, 404);
    let book = mesh.data.join("audit/planner").join(log.name()).join("segments.jsonl");
    assert!(
        std::fs::read_to_string(book).unwrap().contains("\"dropped\""),
        "and that is said"
    );
}

#[tokio::test]
async fn what_decisions_were_made_on_is_kept_as_long_as_they_are() {
    let mesh = Mesh::dev().await;
    let rego = |rule: &str| {
        let text = "package aip.policy.extra\nimport rego.v1\nrules contains {\"rule\": \"RULE\", \"verdict\": \"allow\", \"reason\": \"x\"} if { true }\n";
        json!({"name": "extra", "rego": text.replace("RULE", rule)})
    };
    let mut revisions = Vec::new();
    for version in 0..3 {
        let done = mesh
            .admin
            .ok("PUT", "/v1/policies/extra", rego(&format!("r{version}")))
            .await;
        revisions.push(done["revision"].as_u64().unwrap());
    }
    let settings = mesh.admin.get("/v1/mesh-config").await;
    let mut other = settings["resource"].clone();
    other["svid_ttl_seconds"] = json!(600);
    mesh.admin.ok("PUT", "/v1/mesh-config", other).await;
    mesh.admin.ok("DELETE", "/v1/policies/extra", json!(null)).await;
    for (version, revision) in revisions.iter().enumerate() {
        let held = mesh
            .admin
            .get(&format!("/v1/policies/extra/revisions/{revision}"))
            .await;
        assert_eq!(held["revision"], *revision);
        assert!(
            held["resource"]["rego"]
                .as_str()
                .unwrap()
                .contains(&format!("\"r{version}\""))
        );
    }
    let path = format!("/v1/mesh-config/revisions/{}", settings["revision"]);
    assert_eq!(mesh.admin.get(&path).await, settings);
    // A recovery gives everything a new revision: the old ones are still named by records.
    let now = mesh.admin.get("/v1/mesh-config").await;
    mesh.admin.ok("POST", "/v1/mesh/lift", json!({"above": 10_000})).await;
    let path = format!("/v1/mesh-config/revisions/{}", now["revision"]);
    assert_eq!(mesh.admin.get(&path).await, now);
    assert_eq!(mesh.plane.registry.sweep_history().await.unwrap(), 0);
    mesh.plane.clock.advance(93 * 86_400);
    assert!(mesh.plane.registry.sweep_history().await.unwrap() > 4);
}

/// A sidecar of the mesh that this process serves.
async fn joined(process: &Process) -> Sidecar {
    let admin = process.admin();
    admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    let made = admin.ok("POST", "/v1/tokens", json!({"agent": "planner"})).await;
    let token = made["token"].as_str().unwrap();
    let mut sidecar = Sidecar::new(process.mesh(), "planner", token).await;
    sidecar.join(token).await.unwrap();
    sidecar
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut process = Process::start(&data, &[]).await;
    let sidecar = joined(&process).await;
    let mut log = Log::fresh();
    let (mut taken, mut head) = (Vec::new(), Value::Null);
    for _ in 0..4 {
        let sidecar = Sidecar {
            mesh: process.mesh(),
            agent: sidecar.agent.clone(),
            identity: sidecar.identity.clone(),
            svid: sidecar.svid.clone(),
            trust: sidecar.trust.clone(),
        };
        let (mut stream, place) = Audit::resumed(&sidecar, &log).await;
        for _ in 0..5 {
            log.fill(3);
            let signed = log.checkpoint(&sidecar);
            taken.push((stream.checkpoint(signed.clone()).await.unwrap(), signed.statement));
        }
        head = process.admin().get("/v1/audit/tree-head").await;
        let bytes = log.bytes(0);
        stream
            .chunk(log.chunk(0, place.1 as usize, bytes.len(), false))
            .await
            .unwrap();
        // Something is on its way while the process dies.
        log.fill(1);
        let signed = aip_api::wire::audit_request::Message::Checkpoint(log.checkpoint(&sidecar));
        stream.say(signed).await;
        drop(process);
        process = Process::start(&data, &[]).await;
    }
    let size = process.admin().get("/v1/audit/tree-head").await["head"]["size"].clone();
    let size = size.as_u64().unwrap();
    assert!(size >= head["head"]["size"].as_u64().unwrap() && size >= 20);
    let root: Digest = {
        let head = process.admin().get("/v1/audit/tree-head").await;
        head["head"]["root"].as_str().unwrap().parse().unwrap()
    };
    for (index, statement) in taken {
        let proof = process
            .admin()
            .get(&format!("/v1/audit/inclusion?index={index}&size={size}"))
            .await;
        let leaf = merkle::leaf(statement.as_bytes());
        merkle::verify_inclusion(&leaf, index, size, &digests(&proof["proof"]), &root).unwrap();
    }
}
