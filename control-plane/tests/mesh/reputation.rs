//! Reputation against those who would bend it: who may report, about whom, how often; what a statement is worth.

mod evidence;
mod signed;

use aip_api::resource::KeyPurpose;
use aip_api::resource::reputation::{STATEMENT_TYP, Score, Statement};
use aip_audit::record::Direction;
use aip_control_plane::store::Expect;
use aip_runtime::jws;
use serde_json::{Value, json};

use crate::support::audit::{Audit, Log, decision};
use crate::support::{Admin, Mesh, Sidecar, settings};

const REPORTS: &str = "/v1/reputation/planner/reports";
const IMPORT: &str = "/v1/reputation/planner/import";
const RESET: &str = "/v1/reputation/planner/reset";

/// Hops that planner answered, as far as the audit has them.
const HOPS: u32 = 100;

fn hop(n: u32) -> String {
    format!("0198f2f0-7d2b-7c3e-8a11-{n:012x}")
}

fn report(severity: &str, n: u32) -> Value {
    json!({"finding": "hallucination", "severity": severity, "evidence": format!("hop:{}", hop(n))})
}

/// Planner's sidecar records that it let the hops in.
async fn answers_hops(mesh: &Mesh) -> Sidecar {
    let token = mesh.another_token("planner").await;
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    sidecar.join(&token).await.unwrap();
    let mut log = Log::fresh();
    for n in 0..HOPS {
        let hop = hop(n).parse().unwrap();
        log.add(decision("researcher", "planner", Direction::Inbound, Some(hop)));
    }
    Audit::resumed(&sidecar, &log).await.0.all(&sidecar, &log).await;
    sidecar
}

async fn as_role(mesh: &Mesh, sub: &str, role: &str) -> Admin {
    let made = mesh
        .admin
        .ok("POST", "/v1/admin-tokens", json!({"sub": sub, "role": role}))
        .await;
    mesh.admin.with(made["token"].as_str().unwrap())
}

async fn with_planner() -> Mesh {
    let mesh = Mesh::dev().await;
    let planner = json!({"name": "planner", "owner": "team-a"});
    mesh.admin.ok("POST", "/v1/agents", planner).await;
    answers_hops(&mesh).await;
    mesh
}

async fn score(mesh: &Mesh) -> f64 {
    mesh.admin.get("/v1/reputation/planner").await["score"]
        .as_f64()
        .unwrap()
}

#[tokio::test]
async fn every_registered_agent_has_a_reputation_out_of_ten_with_a_level() {
    let mesh = with_planner().await;
    let shown = mesh.admin.get("/v1/reputation/planner").await;
    assert_eq!((&shown["score"], &shown["level"]), (&json!(5.0), &json!("standard")));
    assert_eq!((&shown["below_floor"], &shown["history"]), (&json!(false), &json!([])));
    let list = mesh.admin.get("/v1/reputation").await;
    assert_eq!(list["items"][0]["agent"], "planner");
    assert_eq!(
        mesh.admin.refused("GET", "/v1/reputation/nobody", Value::Null).await.0,
        404
    );
}

#[tokio::test]
async fn only_verifiers_report_and_nobody_on_itself() {
    let mesh = with_planner().await;
    for role in ["operator", "approver", "auditor", "viewer"] {
        let nobody = as_role(&mesh, role, role).await;
        let refused = nobody.refused("POST", REPORTS, report("low", 1)).await;
        assert_eq!(refused, (403, "role_forbidden".into()), "{role}");
    }
    assert_eq!(
        mesh.admin.with("").refused("POST", REPORTS, report("low", 1)).await.0,
        401
    );
    assert_eq!(
        mesh.admin
            .with("forged")
            .refused("POST", REPORTS, report("low", 1))
            .await
            .0,
        401
    );
    let sibling = json!({"name": "sibling", "owner": "team-a"});
    mesh.admin.ok("POST", "/v1/agents", sibling).await;
    for oneself in ["planner", "team-a", "sibling"] {
        let verifier = as_role(&mesh, oneself, "verifier").await;
        let refused = verifier.refused("POST", REPORTS, report("low", 1)).await;
        assert_eq!(refused, (403, "self_report".into()), "{oneself}");
    }
    assert_eq!(score(&mesh).await, 5.0, "nothing was counted");
}

#[tokio::test]
async fn a_report_counts_once_for_its_reporter_and_evidence() {
    let mesh = with_planner().await;
    let verifier = as_role(&mesh, "checker", "verifier").await;
    let first = verifier.ok("POST", REPORTS, report("critical", 1)).await;
    let after = score(&mesh).await;
    assert!(first["repeated"] == false && after < 3.0, "{first}");
    // The same in other words, or worse, is the same evidence.
    for severity in ["critical", "low"] {
        let again = verifier.ok("POST", REPORTS, report(severity, 1)).await;
        assert_eq!((&again["repeated"], &again["id"]), (&json!(true), &first["id"]));
    }
    assert_eq!(score(&mesh).await, after);
    let shown = mesh.admin.get("/v1/reputation/planner").await;
    assert_eq!(shown["history"].as_array().unwrap().len(), 1);
    assert_eq!(
        shown["reputation"]["slashes"][0]["evidence"],
        report("low", 1)["evidence"]
    );
    assert_eq!(shown["told"], shown["score"], "a slash is told at once");
}

#[tokio::test]
async fn a_verifier_that_floods_is_stopped() {
    let mesh = with_planner().await;
    let verifier = as_role(&mesh, "checker", "verifier").await;
    for n in 0..30 {
        verifier.ok("POST", REPORTS, report("low", n)).await;
    }
    let refused = verifier.refused("POST", REPORTS, report("low", 99)).await;
    assert_eq!(refused, (429, "rate_exceeded".into()));
    let other = as_role(&mesh, "another", "verifier").await;
    other.ok("POST", REPORTS, report("low", 99)).await;
}

#[tokio::test]
async fn a_reporter_counts_what_the_mesh_says_it_does() {
    let mesh = with_planner().await;
    let held = mesh.admin.get("/v1/mesh-config").await;
    let mut config = held["resource"].clone();
    config["reputation"]["reporters"] = json!({"checker": 50, "ignored": 0});
    mesh.admin.ok("PUT", "/v1/mesh-config", config).await;
    let ignored = as_role(&mesh, "ignored", "verifier").await;
    ignored.ok("POST", REPORTS, report("critical", 1)).await;
    assert_eq!(score(&mesh).await, 5.0);
    let half = as_role(&mesh, "checker", "verifier").await;
    half.ok("POST", REPORTS, report("critical", 2)).await;
    let shown = mesh.admin.get("/v1/reputation/planner").await;
    assert_eq!(shown["reputation"]["slashes"][0]["points"], 1.0);
}

#[tokio::test]
async fn a_report_has_bounds_and_must_name_a_hop_or_decision() {
    let mesh = with_planner().await;
    let mut long = report("low", 1);
    long["claim"] = "x".repeat(1_001).into();
    assert_eq!(mesh.admin.refused("POST", REPORTS, long).await.0, 422);
    for (field, value) in [
        ("evidence", "https://example.com"),
        ("finding", "rumour"),
        ("severity", "fatal"),
    ] {
        let mut bad = report("low", 1);
        bad[field] = value.into();
        assert_eq!(
            mesh.admin.refused("POST", REPORTS, bad).await,
            (400, "malformed".into()),
            "{field}"
        );
    }
}

/// The log is compacted on the way, and the control plane is killed: what is read afterwards is what was there.
#[tokio::test]
async fn a_long_history_is_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mesh = Mesh::start(settings(&data)).await;
    mesh.admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    answers_hops(&mesh).await;
    for reporter in 0..6 {
        let verifier = as_role(&mesh, &format!("v{reporter}"), "verifier").await;
        for n in 0..25 {
            let severity = if n == 0 { "low" } else { "medium" };
            verifier.ok("POST", REPORTS, report(severity, n)).await;
        }
        // By other rules from now on: what was taken in stays what it was, also where it moves into the base later.
        let mut config = mesh.admin.get("/v1/mesh-config").await["resource"].clone();
        config["reputation"]["half_life_days"] = (reporter + 1).into();
        config["reputation"]["reporter_cap"] = (4 - reporter % 3).into();
        mesh.admin.ok("PUT", "/v1/mesh-config", config).await;
    }
    let before = mesh.admin.get("/v1/reputation/planner").await;
    let kept = before["history"].as_array().unwrap().len();
    assert!((64..128).contains(&kept), "{kept} of 150 events are kept");
    mesh.plane.kill().await;
    let mesh = Mesh::start(settings(&data)).await;
    let after = mesh.admin.get("/v1/reputation/planner").await;
    for field in ["score", "level", "history", "told", "revision", "confidence"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    for field in ["factors", "slashes", "events"] {
        assert_eq!(before["reputation"][field], after["reputation"][field], "{field}");
    }
}

/// With another signature. Not at its end: the last byte of Ed25519's has 17 values, so that a new end may be the old one.
fn flipped(mut statement: String) -> String {
    let middle = statement.len() - 43;
    let other = if statement.as_bytes()[middle] == b'A' { "B" } else { "A" };
    statement.replace_range(middle..=middle, other);
    statement
}

#[tokio::test]
async fn of_two_statements_the_lower_one_holds_until_a_reset() {
    let mesh = with_planner().await;
    let ca = mesh.plane.api.ca.clone();
    let text = mesh.admin.get("/v1/reputation/planner").await["statement"]
        .as_str()
        .unwrap()
        .to_owned();
    let signer = ca.signer(KeyPurpose::Attestation);
    let key = |kid: &str| (kid == signer.kid()).then(|| signer.public_key());
    let said: Statement = jws::verify_eddsa(&text, STATEMENT_TYP, key).unwrap();
    assert_eq!(said.sub.to_string(), "spiffe://aip.internal/agent/planner");
    let with = |score: f64, change: &dyn Fn(&mut Statement)| {
        let mut other = said.clone();
        other.reputation.score = Score::clamped(score);
        other.reputation.level = other.reputation.score.level();
        other.reputation.events = 7;
        change(&mut other);
        jws::sign_eddsa(&ca.signer(KeyPurpose::Attestation), STATEMENT_TYP, &other).unwrap()
    };
    let import = async |statement: String| mesh.admin.ok("POST", IMPORT, json!({"statement": statement})).await;
    assert_eq!(
        import(with(9.0, &|_| ())).await["adopted"],
        false,
        "a higher one changes nothing"
    );
    assert_eq!(score(&mesh).await, 5.0);
    assert_eq!(import(with(3.5, &|_| ())).await["adopted"], true);
    assert_eq!(score(&mesh).await, 3.5);
    assert_eq!(import(with(3.5, &|_| ())).await["adopted"], false, "again");
    assert_eq!(import(with(4.5, &|_| ())).await["adopted"], false);
    assert_eq!(
        import(with(1.0, &|s| s.reputation.events = 0)).await["adopted"],
        false,
        "history"
    );
    assert_eq!(score(&mesh).await, 3.5);

    let expired = with(0.0, &|s| s.exp = 1);
    let of_another = with(0.0, &|s| s.sub = "spiffe://aip.internal/agent/ledger".parse().unwrap());
    let elsewhere = with(0.0, &|s| s.iss = "spiffe://other.mesh/control-plane".into());
    let by_config = jws::sign_eddsa(&ca.signer(KeyPurpose::Config), STATEMENT_TYP, &said).unwrap();
    let other_type = jws::sign_eddsa(&ca.signer(KeyPurpose::Attestation), "aip-ar+jwt", &said).unwrap();
    let flipped = flipped(with(0.0, &|_| ()));
    for forged in [
        expired,
        of_another,
        elsewhere,
        by_config,
        other_type,
        flipped,
        "x".repeat(20_000),
    ] {
        let refused = mesh.admin.refused("POST", IMPORT, json!({"statement": forged})).await;
        assert_eq!(refused, (422, "statement_invalid".into()));
    }
    mesh.admin.ok("POST", RESET, json!({"reason": "checked"})).await;
    assert_eq!(score(&mesh).await, 5.0);
}

#[tokio::test]
async fn a_reset_says_why_and_is_not_for_whom_it_helps() {
    let mesh = with_planner().await;
    mesh.admin.ok("POST", REPORTS, report("critical", 1)).await;
    assert_eq!(mesh.admin.refused("POST", RESET, json!({"reason": " "})).await.0, 422);
    let verifier = as_role(&mesh, "checker", "verifier").await;
    assert_eq!(verifier.refused("POST", RESET, json!({"reason": "x"})).await.0, 403);
    let owner = as_role(&mesh, "team-a", "operator").await;
    let refused = owner.refused("POST", RESET, json!({"reason": "x"})).await;
    assert_eq!(refused, (403, "self_report".into()));
    mesh.admin.ok("POST", RESET, json!({"reason": "checked by hand"})).await;
    let audit = mesh.admin.get("/v1/audit?limit=1").await;
    let entry = &audit["items"][0];
    assert_eq!(
        (&entry["action"], &entry["subject"]),
        (&json!("reputation.reset"), &json!("planner"))
    );
    assert!(entry["detail"].as_str().unwrap().contains("checked by hand"), "{entry}");
    // What was reported before the reset can't be told again.
    let again = mesh.admin.ok("POST", REPORTS, report("critical", 1)).await;
    assert_eq!(again["repeated"], true);
    assert_eq!(score(&mesh).await, 5.0);
}

/// An agent that is below the floor recovers with time, and sidecars are told when it does.
#[tokio::test]
async fn recovery_is_slow_and_told() {
    let mesh = with_planner().await;
    mesh.admin.ok("POST", REPORTS, report("critical", 1)).await;
    let told = |shown: &Value| shown["reputation"]["score"].as_f64().unwrap();
    mesh.plane.clock.advance(7 * 86_400);
    mesh.plane.registry.review_reputations().await.unwrap();
    let week = mesh.admin.get("/v1/reputation/planner").await;
    assert!(week["below_floor"] == true && told(&week) > 2.9, "{week}");
    mesh.plane.clock.advance(40 * 86_400);
    assert_eq!(mesh.plane.registry.review_reputations().await.unwrap(), 1);
    let (shown, _) = mesh
        .plane
        .registry
        .reputation_statement(&mesh.plane.api.ca, &"planner".parse().unwrap())
        .await
        .unwrap();
    assert!(shown.reputation.score >= Score::clamped(4.1));
}

/// A store of an earlier version has agents without a reputation: each is given one, so that its peers are not refused.
#[tokio::test]
async fn agents_of_an_earlier_store_are_given_one() {
    let mesh = with_planner().await;
    let registry = &mesh.plane.registry;
    let draft = registry.change(&aip_control_plane::registry::Actor::control_plane(), "test", "planner");
    let gone = draft.delete_resource(aip_api::resource::Kind::Reputation, "planner", Expect::Any);
    gone.commit().await.unwrap();
    assert_eq!(
        mesh.admin.refused("GET", "/v1/reputation/planner", Value::Null).await.0,
        404
    );
    assert_eq!(registry.review_reputations().await.unwrap(), 1);
    assert_eq!(score(&mesh).await, 5.0);
}
