//! Drift: who may report it, what a report does, and how an agent comes back.

mod restored;

use aip_api::evidence::{DRIFT_TYP, Drift, MAX_DRIFT_BYTES};
use aip_api::resource::Measurement;
use aip_api::wire::issue_request::Credential;
use aip_api::wire::{DriftReport, IssueRequest};
use aip_runtime::grpc::identity_client::IdentityClient;
use aip_runtime::svid::PendingKey;
use aip_runtime::{jws, unix_now};
use serde_json::{Value, json};
use tonic::Status;
use tonic::transport::Channel;

use crate::support::sidecar::{evidence, hello, sign, why};
use crate::support::{Mesh, Sidecar, eventually, settings};

/// As the sidecars of the other tests say it.
const FIRST_RUN: &str = "the first run";

pub(crate) fn drift(sidecar: &Sidecar, code: &[u8]) -> Drift {
    let svid = sidecar.svid.current().unwrap();
    let key = PendingKey::generate().unwrap();
    let found = evidence(&sidecar.agent, &key, b"", code);
    Drift {
        v: 1,
        agent: sidecar.agent.parse().unwrap(),
        generation: svid.result().generation,
        was: svid.result().code,
        found: Some(found.code),
        measurement: Some(Measurement::of(&found)),
        files: 1,
        run: FIRST_RUN.into(),
        paths: vec!["main.py".into()],
        changed: 1,
        at: unix_now(),
        iat: unix_now(),
    }
}

fn signed(sidecar: &Sidecar, drift: &Drift) -> String {
    jws::sign_es256(sidecar.svid.current().unwrap().pkcs8(), DRIFT_TYP, drift).unwrap()
}

async fn say(client: &mut IdentityClient<Channel>, statement: String) -> Result<u64, Status> {
    let answer = client.report_drift(DriftReport { statement }).await?;
    Ok(answer.into_inner().generation)
}

pub(crate) async fn report(sidecar: &Sidecar, drift: &Drift) -> Result<u64, Status> {
    let mut client = IdentityClient::new(sidecar.connected().await.unwrap());
    say(&mut client, signed(sidecar, drift)).await
}

/// What a sidecar of this run that measures this says when it joins.
struct Join<'a> {
    run: &'a str,
    code: &'a [u8],
    drifted: Option<&'a str>,
    of: Option<u64>,
}

async fn join(mesh: &Mesh, agent: &str, with: Join<'_>) -> Result<Sidecar, String> {
    let token = mesh.another_token(agent).await;
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, agent, &token).await;
    let key = PendingKey::generate().unwrap();
    let nonce = sidecar.nonce().await;
    let mut said = evidence(agent, &key, &nonce, with.code);
    said.run = Some(with.run.into());
    said.drifted = with.drifted.map(str::to_owned);
    said.drifted_generation = with.of;
    let request = IssueRequest {
        agent: agent.into(),
        credential: Some(Credential::JoinToken(token)),
        csr: key.csr.clone(),
        evidence: sign(&said, &key),
    };
    let issued = sidecar.issue(request).await.map_err(|status| why(&status))?;
    sidecar.take(key, issued);
    Ok(sidecar)
}

async fn joins(mesh: &Mesh, run: &str, code: &[u8]) -> Result<u64, String> {
    let with = Join {
        run,
        code,
        drifted: None,
        of: None,
    };
    let sidecar = join(mesh, "planner", with).await?;
    Ok(sidecar.svid.current().unwrap().result().generation)
}

async fn waiting(mesh: &Mesh) -> Vec<String> {
    let page = mesh.admin.get("/v1/measurements?state=pending&agent=planner").await;
    let all = page["items"].as_array().unwrap().iter();
    all.map(|m| m["fingerprint"].as_str().unwrap().to_owned()).collect()
}

async fn approve(mesh: &Mesh, fingerprint: &str) {
    let path = format!("/v1/measurements/planner/{fingerprint}/approve");
    mesh.admin.ok("POST", &path, json!({})).await;
}

#[tokio::test]
async fn who_finds_a_token_that_was_used_has_no_word_in_its_agents_name() {
    let mesh = Mesh::dev().await;
    let token = mesh.token("planner").await;
    Sidecar::new(mesh.plane.run.mesh, "planner", &token)
        .await
        .join(&token)
        .await
        .unwrap();
    let mut thief = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    let key = PendingKey::generate().unwrap();
    let nonce = thief.nonce().await;
    let mut said = evidence("planner", &key, &nonce, b"another code");
    (said.run, said.drifted) = (Some("mine".into()), Some("theirs".into()));
    let request = IssueRequest {
        agent: "planner".into(),
        credential: Some(Credential::JoinToken(token)),
        csr: key.csr.clone(),
        evidence: sign(&said, &key),
    };
    assert_eq!(why(&thief.issue(request).await.unwrap_err()), "token_other_key");
    let agent = mesh.admin.get("/v1/agents/planner").await;
    assert_eq!(agent["resource"]["generation"], 1, "{agent}");
    assert_eq!(mesh.admin.get("/v1/status").await["drifted"], 0);
    assert_eq!(waiting(&mesh).await, [""; 0], "nothing of it waits for an approval");
}

async fn record(mesh: &Mesh) -> Value {
    mesh.admin.get("/v1/drift").await["items"][0].clone()
}

fn blocked<T>(result: Result<T, String>) {
    assert_eq!(result.err().as_deref(), Some("agent_drifted"));
}

#[tokio::test]
async fn a_report_revokes_and_blocks_and_only_approval_and_restart_end_it() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    assert_eq!(report(&sidecar, &drift(&sidecar, b"edited")).await.unwrap(), 2);
    eventually("its SVID to be refused", async || sidecar.open(hello()).await.err()).await;

    // One transaction: the agent, its revocation and the block.
    let agent = mesh.admin.get("/v1/agents/planner").await;
    let revocation = mesh.admin.get("/v1/revocations").await["items"][0].clone();
    assert_eq!(agent["resource"]["generation"], 2);
    assert_eq!(revocation["resource"]["generation"]["below"], 2);
    assert_eq!(agent["revision"], revocation["revision"]);
    let held = record(&mesh).await;
    assert_eq!((&held["paths"][0], &held["generation"]), (&json!("main.py"), &json!(2)));
    assert_eq!(mesh.admin.get("/v1/status").await["drifted"], 1);
    let audit = mesh.admin.get("/v1/audit").await.to_string();
    assert!(
        audit.contains("agent.drift") && audit.contains("sidecar:planner"),
        "{audit}"
    );

    // Also in a dev mesh nothing approves itself, not what was approved before either.
    blocked(joins(&mesh, "another run", b"edited").await);
    blocked(joins(&mesh, "another run", b"code").await);
    let found = Measurement::of(&evidence("planner", &PendingKey::generate().unwrap(), b"", b"edited"));
    assert!(
        waiting(&mesh).await.contains(&found.fingerprint().to_string()),
        "the report says what was found"
    );
    approve(&mesh, &found.fingerprint().to_string()).await;
    blocked(joins(&mesh, FIRST_RUN, b"edited").await);
    blocked(joins(&mesh, "another run", b"code").await);
    assert_eq!(joins(&mesh, "another run", b"edited").await, Ok(2));

    assert!(record(&mesh).await["recovered_at"].is_u64());
    assert_eq!(mesh.admin.get("/v1/status").await["drifted"], 0);
    blocked(joins(&mesh, FIRST_RUN, b"edited").await);
    // From here on it is a dev mesh as before.
    assert_eq!(joins(&mesh, "a third run", b"developed").await, Ok(2));
}

#[tokio::test]
async fn files_that_were_put_back_need_a_person_too() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    report(&sidecar, &drift(&sidecar, b"edited")).await.unwrap();
    blocked(joins(&mesh, "another run", b"code").await);
    let before = Measurement::of(&evidence("planner", &PendingKey::generate().unwrap(), b"", b"code"));
    let approved = mesh.admin.get("/v1/measurements?agent=planner").await.to_string();
    let print = before.fingerprint().to_string();
    assert!(approved.contains(&print), "approved before the drift");
    approve(&mesh, &print).await;
    assert_eq!(joins(&mesh, "another run", b"code").await, Ok(2));
}

/// The edit is undone and what was approved is approved again, before anything is started: nothing waits then.
#[tokio::test]
async fn what_was_approved_is_approved_again_while_nothing_shows_it() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let before = Measurement::of(&evidence("planner", &PendingKey::generate().unwrap(), b"", b"code"));
    let path = format!("/v1/measurements/planner/{}/approve", before.fingerprint());
    let unchanged = mesh.admin.ok("POST", &path, json!({})).await;
    assert_eq!(unchanged["unchanged"], true, "{unchanged}");
    report(&sidecar, &drift(&sidecar, b"edited")).await.unwrap();
    let approved = mesh.admin.ok("POST", &path, json!({})).await;
    assert!(approved["unchanged"].is_null(), "{approved}");
    blocked(joins(&mesh, FIRST_RUN, b"code").await);
    assert_eq!(joins(&mesh, "another run", b"code").await, Ok(2));
    let unknown = format!("/v1/measurements/planner/{}/approve", "0".repeat(64));
    assert_eq!(mesh.admin.call("POST", &unknown, json!({})).await.0, 404);
}

#[tokio::test]
async fn only_the_agents_own_svid_reports_its_drift() {
    let mesh = Mesh::dev().await;
    let planner = mesh.joined("planner").await;
    let ledger = mesh.joined("ledger").await;
    let mut client = IdentityClient::new(planner.connected().await.unwrap());
    let good = drift(&planner, b"edited");
    let mut refused = async |statement: String| why(&say(&mut client, statement).await.unwrap_err());

    assert_eq!(refused(signed(&ledger, &good)).await, "drift_other_key");
    for (wrong, reason) in reports_that_are_not_so(&good) {
        assert_eq!(refused(signed(&planner, &wrong)).await, reason, "{wrong:?}");
    }
    for statement in [String::new(), "a.b.c".into(), "x".repeat(MAX_DRIFT_BYTES + 1)] {
        assert_eq!(refused(statement).await, "drift_malformed");
    }
    // Evidence by the same key is no report.
    let svid = planner.svid.current().unwrap();
    let foreign = jws::sign_es256(svid.pkcs8(), "aip-evidence+jwt", &good).unwrap();
    assert_eq!(refused(foreign).await, "drift_malformed");

    // Nobody without an SVID.
    let token = mesh.another_token("planner").await;
    let mut stranger = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    let unknown = say(&mut stranger.identity, signed(&planner, &good)).await;
    assert_eq!(why(&unknown.unwrap_err()), "credential_missing");
    // The token is still good: nothing of all that was taken.
    stranger.join(&token).await.unwrap();
    assert_eq!(mesh.admin.get("/v1/drift").await["items"], json!([]));
    assert_eq!(mesh.admin.get("/v1/agents/planner").await["resource"]["generation"], 1);
}

/// Signed by the agent's own key, and not taken: each with the reason.
fn reports_that_are_not_so(good: &Drift) -> Vec<(Drift, &'static str)> {
    let with = |change: fn(&mut Drift)| {
        let mut other = good.clone();
        change(&mut other);
        other
    };
    vec![
        (
            with(|drift| drift.agent = "ledger".parse().unwrap()),
            "drift_other_agent",
        ),
        (with(|drift| drift.generation = 0), "generation_mismatch"),
        (with(|drift| drift.generation = 2), "generation_mismatch"),
        (with(|drift| drift.generation = u64::MAX), "generation_mismatch"),
        (with(|drift| drift.iat -= 86_400), "drift_stale"),
        (with(|drift| drift.iat += 86_400), "drift_stale"),
        (with(|drift| drift.at += 86_400), "drift_stale"),
        (with(|drift| drift.v = 2), "drift_malformed"),
        (with(|drift| drift.run = String::new()), "drift_malformed"),
        (with(|drift| drift.run = "x".repeat(65)), "drift_malformed"),
        (
            with(|drift| (drift.paths, drift.changed) = (vec!["x".into(); 21], 21)),
            "drift_malformed",
        ),
        (with(|drift| drift.changed = 0), "drift_malformed"),
    ]
}

#[tokio::test]
async fn a_report_that_is_said_again_or_replayed_changes_nothing() {
    let mesh = Mesh::dev().await;
    let planner = mesh.joined("planner").await;
    let mut client = IdentityClient::new(planner.connected().await.unwrap());
    let statement = signed(&planner, &drift(&planner, b"edited"));
    assert_eq!(say(&mut client, statement.clone()).await.unwrap(), 2);
    assert_eq!(
        say(&mut client, statement.clone()).await.unwrap(),
        2,
        "the reply was lost"
    );
    let held = record(&mesh).await;
    let print = waiting(&mesh).await[0].clone();
    approve(&mesh, &print).await;
    let with = Join {
        run: "another run",
        code: b"edited",
        drifted: None,
        of: None,
    };
    let back = join(&mesh, "planner", with).await.unwrap();
    // On the old connection, and on the new one: that agent is back.
    let _ = say(&mut client, statement.clone()).await;
    let mut client = IdentityClient::new(back.connected().await.unwrap());
    assert_eq!(why(&say(&mut client, statement).await.unwrap_err()), "drift_other_key");
    assert_eq!(mesh.admin.get("/v1/agents/planner").await["resource"]["generation"], 2);
    assert_eq!(record(&mesh).await["reported_at"], held["reported_at"]);
    assert!(record(&mesh).await["recovered_at"].is_u64());
    back.open(hello()).await.map(|_| ()).unwrap();
}

#[tokio::test]
async fn a_report_that_never_came_is_made_good_by_the_evidence() {
    let mesh = Mesh::dev().await;
    let _before = mesh.joined("planner").await;
    let after = |run| Join {
        run,
        code: b"edited",
        drifted: Some(FIRST_RUN),
        of: Some(1),
    };
    blocked(join(&mesh, "planner", after("another run")).await);
    assert_eq!(mesh.admin.get("/v1/agents/planner").await["resource"]["generation"], 2);
    // Said again, it is the same drift.
    blocked(join(&mesh, "planner", after("another run")).await);
    assert_eq!(mesh.admin.get("/v1/agents/planner").await["resource"]["generation"], 2);
    approve(&mesh, &waiting(&mesh).await[0]).await;
    join(&mesh, "planner", after("another run")).await.unwrap();
    // The answer was lost: the sidecar does not know that it is back, and asks once more.
    join(&mesh, "planner", after("another run")).await.unwrap();
    assert_eq!(mesh.admin.get("/v1/agents/planner").await["resource"]["generation"], 2);
}

#[tokio::test]
async fn a_block_survives_a_restart_and_withdrawing_the_approval_restores_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mesh = Mesh::start(settings(&data)).await;
    let planner = mesh.joined("planner").await;
    report(&planner, &drift(&planner, b"edited")).await.unwrap();
    mesh.plane.kill().await;

    let mesh = Mesh::start(settings(&data)).await;
    blocked(joins(&mesh, "another run", b"edited").await);
    let print = waiting(&mesh).await[0].clone();
    approve(&mesh, &print).await;
    let path = format!("/v1/measurements/planner/{print}");
    mesh.admin.ok("DELETE", &path, Value::Null).await;
    blocked(joins(&mesh, "another run", b"edited").await);
    approve(&mesh, &print).await;
    assert_eq!(joins(&mesh, "another run", b"edited").await, Ok(2));
}

/// Numbers that repeat with their seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// What happens in one step beside a join.
struct Beside {
    report: bool,
    renew: bool,
    approve: bool,
}

impl Dice {
    fn beside(&mut self) -> Beside {
        Beside {
            report: self.roll(3) == 0,
            renew: self.roll(2) == 0,
            approve: self.roll(3) == 0,
        }
    }
}

/// A report, a renewal, a join and an approval at once; whoever joined.
async fn at_once(mesh: &Mesh, last: &Sidecar, run: &str, code: &[u8], beside: &Beside) -> Option<Sidecar> {
    let drifting = Drift {
        run: run.into(),
        ..drift(last, code)
    };
    let mut renewing = Sidecar {
        svid: last.svid.clone(),
        trust: last.trust.clone(),
        identity: last.identity.clone(),
        mesh: last.mesh,
        agent: last.agent.clone(),
    };
    let reported = async {
        if beside.report && last.connected().await.is_ok() {
            let _ = report(last, &drifting).await;
        }
    };
    let renewed = async {
        if beside.renew {
            let _ = renewing.renew(code).await;
        }
    };
    let with = Join {
        run,
        code,
        drifted: None,
        of: None,
    };
    let approved = async {
        for print in waiting(mesh).await.into_iter().filter(|_| beside.approve) {
            let path = format!("/v1/measurements/planner/{print}/approve");
            let _ = mesh.admin.call("POST", &path, json!({})).await;
        }
    };
    let ((), (), joined, ()) = tokio::join!(reported, renewed, join(mesh, "planner", with), approved);
    joined.ok()
}

/// How many SVIDs there are that began with a drift which blocks still.
async fn issued_while_blocked(mesh: &Mesh) -> usize {
    let held = record(mesh).await;
    if !held["generation"].is_u64() || !held["recovered_at"].is_null() {
        return 0;
    }
    let svids = mesh.admin.get("/v1/agents/planner/svids").await;
    let all = svids["items"].as_array().unwrap().iter();
    all.filter(|s| s["generation"].as_u64() >= held["generation"].as_u64())
        .count()
}

/// Reports, joins, renewals and approvals beside each other, in random order: generations never fall, and no SVID of a
/// generation that began with a drift exists while that drift blocks.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_order_generations_never_fall_and_a_blocked_agent_gets_nothing() {
    for seed in 0..4 {
        let mesh = Mesh::dev().await;
        let mut dice = Dice(seed);
        let mut last = mesh.joined("planner").await;
        let (mut highest, mut run) = (1, 0);
        for step in 0..24 {
            let code = [b"a".as_slice(), b"b", b"c"][dice.roll(3) as usize];
            run += dice.roll(2);
            let beside = dice.beside();
            if let Some(joined) = at_once(&mesh, &last, &format!("run {run}"), code, &beside).await {
                last = joined;
            }
            let agent = mesh.admin.get("/v1/agents/planner").await;
            let generation = agent["resource"]["generation"].as_u64().unwrap();
            assert!(
                generation >= highest,
                "seed {seed}, step {step}: {generation} after {highest}"
            );
            highest = generation;
            let issued = issued_while_blocked(&mesh).await;
            assert_eq!(issued, 0, "seed {seed}, step {step}: SVIDs while a drift blocks");
        }
        assert!(highest > 1, "seed {seed} reported nothing");
    }
}

/// One edit reaches all sidecars of an agent: the second to say so knocks out nobody, and comes back by approval alone.
#[tokio::test]
async fn sidecars_of_one_agent_that_drift_together_come_back_one_by_one() {
    let mesh = Mesh::dev().await;
    let first = mesh.joined("planner").await;
    let beside = Join {
        run: "beside",
        code: b"code",
        drifted: None,
        of: None,
    };
    let _beside = join(&mesh, "planner", beside).await.unwrap();
    report(&first, &drift(&first, b"edited")).await.unwrap();
    approve(&mesh, &waiting(&mesh).await[0]).await;
    assert_eq!(joins(&mesh, "first again", b"edited").await, Ok(2));

    // Its own report can't get through any more: its SVID is of the generation that was revoked.
    let later = |code| Join {
        run: "beside again",
        code,
        drifted: Some("beside"),
        of: Some(1),
    };
    blocked(join(&mesh, "planner", later(b"other")).await);
    let back = join(&mesh, "planner", later(b"edited")).await.unwrap();
    assert_eq!(
        back.svid.current().unwrap().result().generation,
        2,
        "nobody was knocked out"
    );
    assert_eq!(joins(&mesh, "first again", b"edited").await, Ok(2));
    blocked(joins(&mesh, "beside", b"edited").await);
}
