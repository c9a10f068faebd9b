//! A clock that is a day off: what depends on the time of day is refused and says so, what does not goes on, and all is well
//! once the clock is right.

use aip_api::wire::issue_request::Credential;
use aip_api::wire::{IssueRequest, audit_response};
use aip_audit::Closing;
use aip_runtime::svid::PendingKey;
use serde_json::{Value, json};

use crate::kills::{Stream, fresh};
use crate::support::audit::{Audit, Log, sign as checkpoint};
use crate::support::sidecar::{evidence, hello, sign, why};
use crate::support::{Mesh, Sidecar};

const DAY: u64 = 86_400;

/// The time of day of a clock that is a day ahead, and of one that is a day behind.
fn wrong() -> [u64; 2] {
    let now = aip_runtime::unix_now();
    [now + DAY, now - DAY]
}

/// A request to join by a sidecar whose clock says `iat`.
async fn joining(sidecar: &mut Sidecar, token: &str, key: &PendingKey, iat: u64) -> IssueRequest {
    let nonce = sidecar.nonce().await;
    let mut evidence = evidence(&sidecar.agent, key, &nonce, b"code");
    evidence.iat = iat;
    IssueRequest {
        agent: sidecar.agent.clone(),
        credential: Some(Credential::JoinToken(token.into())),
        csr: key.csr.clone(),
        evidence: sign(&evidence, key),
    }
}

#[tokio::test]
async fn a_join_is_refused_by_a_reason_that_names_the_clock_and_spends_no_token() {
    let mesh = Mesh::dev().await;
    let token = mesh.token("planner").await;
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    let key = PendingKey::generate().unwrap();
    for iat in wrong() {
        let request = joining(&mut sidecar, &token, &key, iat).await;
        let refused = sidecar.issue(request).await.unwrap_err();
        assert_eq!(why(&refused), "evidence_stale");
        assert!(
            refused.message().contains("compare the clocks"),
            "{}",
            refused.message()
        );
    }
    let right = joining(&mut sidecar, &token, &key, aip_runtime::unix_now()).await;
    let issued = sidecar.issue(right).await.unwrap();
    sidecar.take(key, issued);
}

#[tokio::test]
async fn checkpoints_of_another_day_are_refused_and_taken_when_the_clock_is_right() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut log = Log::fresh();
    log.fill(3);
    let (mut stream, _) = Audit::resumed(&sidecar, &log).await;
    for at in wrong() {
        let mut claims = log.unsigned(&sidecar, Closing::Periodic);
        claims.at = at * 1_000;
        stream
            .say(aip_api::wire::audit_request::Message::Checkpoint(checkpoint(
                &sidecar, &claims,
            )))
            .await;
        match stream.answer().await.unwrap() {
            audit_response::Message::Refused(refused) => {
                assert_eq!(refused.reason, "checkpoint_time");
                assert!(refused.detail.contains("compare the clocks"), "{}", refused.detail);
            }
            other => panic!("taken: {other:?}"),
        }
    }
    // The same records, signed anew: nothing is lost, and nothing is held against the log.
    stream.all(&sidecar, &log).await;
    let findings = mesh.admin.get("/v1/audit/findings").await;
    assert_eq!(findings["items"], json!([]));
}

#[tokio::test]
async fn a_control_plane_that_is_a_day_ahead_serves_nobody_by_svids_that_it_takes_for_expired() {
    let mesh = Mesh::dev().await;
    let mut sidecar = mesh.joined("planner").await;
    sidecar.open(hello()).await.unwrap();
    mesh.plane.clock.advance(DAY);
    let refused = sidecar.open(hello()).await.err().expect("no stream");
    assert_eq!(why(&refused), "svid_expired");
    let refused = sidecar.renew(b"code").await.unwrap_err();
    let reason = why(&refused);
    assert!(
        ["svid_expired", "evidence_stale"].contains(&reason.as_str()),
        "{reason}: {}",
        refused.message()
    );
}

/// What an order says of who has not heard it, and the SVIDs that are known of.
async fn told(mesh: &Mesh, order: &Value) -> (Value, Value) {
    let (term, epoch) = (&order["term"], &order["epoch"]);
    let path = format!("/v1/kills/progress?term={term}&epoch={epoch}&wait_ms=0");
    let shown = mesh.admin.get(&path).await;
    let svids = mesh.admin.get("/v1/agents/planner/svids").await;
    (
        json!([shown["missing"], shown["vanished"], shown["away"]]),
        svids["items"].clone(),
    )
}

#[tokio::test]
async fn a_clock_that_is_a_day_ahead_stops_and_forgets_nobody() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let stream = Stream::open(&sidecar, &fresh(), None).await.unwrap();
    let _cut_off = stream.broken();
    let scope = json!({"kind": "agent", "agent": "planner"});
    let order = json!({"scope": scope, "mode": "kill", "reason": "a test"});
    let order = mesh.admin.ok("POST", "/v1/kills", order).await;
    mesh.plane.clock.step(DAY);
    mesh.plane.registry.sweep().await.unwrap();
    let ahead = told(&mesh, &order).await;
    mesh.plane.clock.step(0);
    let right = told(&mesh, &order).await;
    for (unheard, svids) in [ahead, right] {
        assert!(unheard.to_string().contains("planner"), "it may serve still: {unheard}");
        assert_eq!(svids.as_array().map(Vec::len), Some(1), "its SVID is known of: {svids}");
    }
}
