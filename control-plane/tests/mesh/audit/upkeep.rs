//! What stays and what goes: retention, quotas, proofs, the policies of old decisions, and kills in the middle.

use std::path::Path;

use aip_api::Digest;
use aip_api::resource::Retention;
use aip_api::wire::SignedCheckpoint;
use aip_api::wire::audit_response::Message as Answer;
use aip_audit::checkpoint::{LEDGER_BEGINS_TYP, LedgerBegins, RETIRED_TYP, Retired};
use aip_audit::log::RETIRED_FILE;
use aip_audit::merkle;
use aip_audit::record::{Direction, Event};
use serde_json::{Value, json};

use crate::support::audit::{Audit, Log, decision};
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

/// Bytes of records that an agent may keep in these tests.
const MOST: u64 = 16 * 1024 * 1024;
/// What is sent at once, in bytes.
const CHUNK: usize = 1 << 20;

/// Lets each agent keep [`MOST`].
async fn room(mesh: &Mesh) {
    let mut config = mesh.admin.get("/v1/mesh-config").await["resource"].clone();
    config["audit"]["retention"] = serde_json::to_value(Retention { days: 90, bytes: MOST }).unwrap();
    mesh.admin.ok("PUT", "/v1/mesh-config", config).await;
}

/// Fills a segment with some 3 MiB of records with much in them, closes it, signs and sends it.
async fn send_segment(stream: &mut Audit, sidecar: &Sidecar, log: &mut Log, segment: u64) {
    for _ in 0..6 {
        let mut event = decision("planner", "x", Direction::Outbound, None);
        if let Event::Decision(decision) = &mut event {
            decision.facts.kept = std::sync::Arc::new(json!("x".repeat(500_000)));
        }
        log.add(event);
    }
    log.writer.rotate().unwrap();
    stream.checkpoint(log.checkpoint(sidecar)).await.unwrap();
    let bytes = log.bytes(segment);
    for from in (0..bytes.len()).step_by(CHUNK) {
        let to = bytes.len().min(from + CHUNK);
        let chunk = log.chunk(segment, from, to, to == bytes.len());
        stream.chunk(chunk).await.unwrap();
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
async fn what_is_older_than_is_kept_goes_and_what_was_signed_of_it_is_said() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut log = Log::fresh();
    for _ in 0..3 {
        log.fill(5);
        log.writer.rotate().unwrap();
    }
    let (mut stream, _) = Audit::resumed(&sidecar, &log).await;
    send(&mut stream, &sidecar, &log, 0).await;
    let before = mesh.admin.get("/v1/audit/tree-head").await;
    assert!(before["begins"].is_null());
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
    let head = later.get("/v1/audit/tree-head").await;
    assert_eq!(head["statement"], before["statement"], "the log is the same");
    assert!(
        head["begins"].is_string(),
        "and says that its first checkpoint is kept no more"
    );
    assert_eq!(
        later.get("/v1/audit/findings").await["items"],
        json!([]),
        "age is no crime"
    );
}

/// Sidecars greet with finished logs, too, in case this control plane lost them: that keeps retention from nothing.
#[tokio::test]
async fn a_finished_log_that_is_greeted_again_goes_when_it_is_old() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut log = Log::fresh();
    log.fill(5);
    log.writer.rotate().unwrap();
    let (mut stream, _) = Audit::resumed(&sidecar, &log).await;
    send(&mut stream, &sidecar, &log, 0).await;
    drop(stream);
    let (mut held, later) = (None, uuid::Uuid::now_v7().to_string());
    let copy = mesh.data.join("audit/planner").join(log.name());
    eventually("it is greeted again", async || {
        held = Audit::of(&sidecar, &later, vec![log.held()]).await.ok();
        let answer = held.as_mut()?.answer().await;
        matches!(answer, Ok(Answer::Resume(_))).then_some(())
    })
    .await;
    mesh.plane.clock.advance(91 * 86_400);
    eventually("the log goes while the stream is open", async || {
        mesh.plane.audit.sweep().await;
        (!copy.exists()).then_some(())
    })
    .await;
    drop(held);
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
    room(&mesh).await;
    let sidecar = mesh.joined("planner").await;
    let mut log = Log::fresh();
    let (mut stream, _) = Audit::resumed(&sidecar, &log).await;
    let mut kept = u64::MAX;
    // 8 of them are more than may stay.
    for segment in 0..8 {
        send_segment(&mut stream, &sidecar, &mut log, segment).await;
        let shown = mesh.admin.get("/v1/audit/logs").await["items"][0].clone();
        assert!(shown["bytes"].as_u64().unwrap() <= MOST, "{shown}");
        kept = shown["segments"]["first"].as_u64().unwrap();
    }
    assert!(kept > 0, "the oldest went");
    let gone = format!("/v1/audit/logs/{}/segments/0", log.name());
    assert_eq!(mesh.admin.refused("GET", &gone, json!(null)).await.0, 404);
    let copy = mesh.data.join("audit/planner").join(log.name());
    let book = std::fs::read_to_string(copy.join("segments.jsonl")).unwrap();
    assert!(book.contains("\"dropped\""), "and that is said");
    // Signed, too; and if the process ended before that, by the next one that looks.
    let file = copy.join(RETIRED_FILE);
    let said = retired(&mesh, &file);
    assert_eq!(said.log, log.name());
    assert!(said.records > 0 && said.records < log.writer.size());
    std::fs::remove_file(&file).unwrap();
    drop(stream);
    eventually("it is said again", async || {
        mesh.plane.audit.sweep().await;
        file.exists().then_some(())
    })
    .await;
    assert_eq!(retired(&mesh, &file).records, said.records);
}

/// What the control plane signed of what its retention took.
fn retired(mesh: &Mesh, file: &Path) -> Retired {
    let audit = mesh.plane.api.ca.signer(aip_api::resource::KeyPurpose::Audit);
    let statement = std::fs::read_to_string(file).unwrap();
    aip_runtime::jws::verify_eddsa(&statement, RETIRED_TYP, |_: &str| Some(audit.public_key())).unwrap()
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
            ..sidecar.another()
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

/// Eleven checkpoints of a log, of which the first six go before the seventh is taken.
async fn six_of_eleven_go(mesh: &Mesh, sidecar: &Sidecar) -> (Log, Audit, Vec<SignedCheckpoint>) {
    let mut log = Log::fresh();
    let (mut stream, _) = Audit::resumed(sidecar, &log).await;
    let mut signed: Vec<SignedCheckpoint> = Vec::new();
    for index in 0..11 {
        if index == 6 {
            let until = crate::support::audit::now() + 10_000;
            assert!(!mesh.plane.audit.ledger.forget(until).await.unwrap());
            // What is gone is the same checkpoint as before, where it was the last of its log.
            assert_eq!(stream.checkpoint(signed[5].clone()).await, Ok(5));
        }
        log.fill(1);
        signed.push(log.checkpoint(sidecar));
        assert_eq!(stream.checkpoint(signed[index as usize].clone()).await, Ok(index));
    }
    (log, stream, signed)
}

/// What the control plane signed of those that are gone.
fn begins(mesh: &Mesh, head: &Value) -> LedgerBegins {
    let audit = mesh.plane.api.ca.signer(aip_api::resource::KeyPurpose::Audit);
    let key = |_: &str| Some(audit.public_key());
    aip_runtime::jws::verify_eddsa(head["begins"].as_str().unwrap(), LEDGER_BEGINS_TYP, key).unwrap()
}

#[tokio::test]
async fn old_checkpoints_go_by_a_signed_word_and_every_later_proof_still_comes_out() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let (log, mut stream, signed) = six_of_eleven_go(&mesh, &sidecar).await;
    let head = mesh.admin.get("/v1/audit/tree-head").await;
    let root: Digest = head["head"]["root"].as_str().unwrap().parse().unwrap();
    let begins = begins(&mesh, &head);
    assert_eq!(begins.from, 6);
    // Who has that and what is left computes the head.
    let mut tree = merkle::Tree::from_peaks(begins.from, begins.subtrees).unwrap();
    assert_eq!(tree.root(), begins.root);
    let left = left(&mesh).await;
    let places: Vec<_> = left.iter().map(|shown| shown["index"].as_u64().unwrap()).collect();
    assert_eq!(places, [6, 7, 8, 9, 10]);
    for (shown, sent) in left.iter().zip(&signed[6..]) {
        assert_eq!(shown["statement"], sent.statement);
        tree.append(merkle::leaf(sent.statement.as_bytes()));
        assert_eq!(shown["chain"], left[0]["chain"], "a chain stands once");
    }
    assert_eq!(tree.root(), root);
    let chain = left[0]["chain"].as_str().unwrap();
    let chain = mesh.admin.get(&format!("/v1/audit/chains/{chain}")).await;
    assert_eq!(chain["certificates"].as_array().unwrap().len(), signed[0].chain.len());
    for index in 6..11 {
        let path = format!("/v1/audit/inclusion?index={index}&size=11");
        let proof = mesh.admin.get(&path).await;
        let leaf = merkle::leaf(signed[index as usize].statement.as_bytes());
        merkle::verify_inclusion(&leaf, index, 11, &digests(&proof["proof"]), &root).unwrap();
    }
    let along = mesh.admin.get("/v1/audit/consistency?from=6&to=11").await;
    merkle::verify_consistency(6, 11, &begins.root, &root, &digests(&along["proof"])).unwrap();
    // Of what is gone there is no proof any more; records that come later are still held against what was signed.
    let path = "/v1/audit/inclusion?index=1&size=11";
    assert_eq!(mesh.admin.refused("GET", path, json!(null)).await.0, 404);
    let length = log.bytes(0).len();
    assert_eq!(stream.chunk(log.whole(0, false)).await, Ok((0, length as u64)));
    assert!(!mesh.plane.audit.ledger.forget(0).await.unwrap());
}

/// The checkpoints that are listed, over two pages.
async fn left(mesh: &Mesh) -> Vec<Value> {
    let page = mesh.admin.get("/v1/audit/checkpoints?limit=3").await;
    let next = page["next"].as_str().unwrap();
    let path = format!("/v1/audit/checkpoints?limit=3&cursor={next}");
    let rest = mesh.admin.get(&path).await;
    let pages = [page, rest];
    pages
        .iter()
        .flat_map(|page| page["items"].as_array().unwrap().clone())
        .collect()
}

/// A process that was restarted sends several logs in one stream: the old ones must give way to the one that grows.
#[tokio::test]
async fn the_older_logs_of_a_stream_make_room_for_the_one_that_grows() {
    let mesh = Mesh::dev().await;
    room(&mesh).await;
    let sidecar = mesh.joined("planner").await;
    let (mut old, mut new) = (Log::fresh(), Log::fresh());
    let (mut stream, _) = Audit::resumed(&sidecar, &old).await;
    for log in [&mut old, &mut new] {
        for segment in 0..5 {
            send_segment(&mut stream, &sidecar, log, segment).await;
        }
    }
    let shown = mesh.admin.get("/v1/audit/logs").await;
    let of = |log: &Log| {
        let items = shown["items"].as_array().unwrap();
        items.iter().find(|item| item["log"] == log.name()).unwrap().clone()
    };
    assert!(of(&old)["segments"]["first"].as_u64() > Some(0), "{shown}");
    assert_eq!(of(&new)["segments"]["last"], 5);
}
