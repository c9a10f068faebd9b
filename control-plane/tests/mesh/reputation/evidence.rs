//! A report is about a hop that happened, with the agent as one of its ends; and a hop counts once.

use aip_api::id::HopId;
use aip_audit::record::{Direction, Event};
use aip_control_plane::registry::{Actor, keys};
use aip_control_plane::reputation::reports::{MAX_REPORTS_OF_ALL_AN_HOUR, Reporting};
use aip_control_plane::store::Expect;
use serde_json::{Value, json};

use super::{REPORTS, as_role, hop, report, score, with_planner};
use crate::support::Mesh;
use crate::support::audit::{Audit, Log, decision};

/// An agent joins, and its sidecar records these.
async fn records(mesh: &Mesh, agent: &str, events: &[Event]) {
    let sidecar = mesh.joined(agent).await;
    let mut log = Log::fresh();
    events.iter().for_each(|event| log.add(event.clone()));
    Audit::resumed(&sidecar, &log).await.0.all(&sidecar, &log).await;
}

fn id_of(event: &Event) -> String {
    match event {
        Event::Decision(decision) => format!("decision:{}", decision.id),
        _ => panic!("not a decision"),
    }
}

fn finding(finding: &str, severity: &str, evidence: &str) -> Value {
    json!({"finding": finding, "severity": severity, "evidence": evidence})
}

#[tokio::test]
async fn a_report_about_what_never_happened_is_refused() {
    let mesh = with_planner().await;
    for evidence in [format!("hop:{}", hop(5_000)), format!("decision:{}", hop(1))] {
        let made_up = finding("hallucination", "critical", &evidence);
        let refused = mesh.admin.refused("POST", REPORTS, made_up).await;
        assert_eq!(refused, (409, "hop_unknown".into()), "{evidence}");
    }
    assert_eq!(score(&mesh).await, 5.0, "nothing was counted");
}

#[tokio::test]
async fn a_report_about_a_hop_of_others_is_refused() {
    let mesh = with_planner().await;
    let (theirs, forged) = (HopId::fresh(), HopId::fresh());
    let inbound = decision("researcher", "writer", Direction::Inbound, Some(theirs));
    // The writer's sidecar can't say what planner's let in.
    let of_planner = decision("researcher", "planner", Direction::Inbound, Some(forged));
    records(&mesh, "writer", &[inbound, of_planner]).await;
    for (hop, reason, status) in [(theirs, "hop_of_others", 422), (forged, "hop_unknown", 409)] {
        let about = finding("hallucination", "critical", &format!("hop:{hop}"));
        let refused = mesh.admin.refused("POST", REPORTS, about).await;
        assert_eq!(refused, (status, reason.into()));
    }
    assert_eq!(score(&mesh).await, 5.0);
}

/// What its sidecar refused the agent never heard of; as a caller it answers for what it asked.
#[tokio::test]
async fn a_report_about_what_the_agent_never_heard_of_is_refused() {
    let mesh = Mesh::dev().await;
    let refused_at = |direction| {
        let mut event = decision("caller", "callee", direction, Some(HopId::fresh()));
        if let Event::Decision(decision) = &mut event {
            decision.verdict = "deny".into();
            decision.reason = "policy_denied".into();
        }
        event
    };
    let (inbound, outbound) = (refused_at(Direction::Inbound), refused_at(Direction::Outbound));
    records(&mesh, "callee", std::slice::from_ref(&inbound)).await;
    records(&mesh, "caller", std::slice::from_ref(&outbound)).await;
    let of = |agent: &str| format!("/v1/reputation/{agent}/reports");
    for event in [&inbound, &outbound] {
        let about = finding("hallucination", "critical", &id_of(event));
        let refused = mesh.admin.refused("POST", &of("callee"), about).await;
        assert_eq!(refused, (422, "hop_of_others".into()));
    }
    let breach = finding("contract_breach", "low", &id_of(&inbound));
    mesh.admin.ok("POST", &of("caller"), breach).await;
}

#[tokio::test]
async fn a_hop_counts_once_by_whatever_name_and_for_all_reporters_by_the_worst() {
    let mesh = with_planner().await;
    let hop = HopId::fresh();
    let outbound = decision("writer", "planner", Direction::Outbound, Some(hop));
    records(&mesh, "writer", std::slice::from_ref(&outbound)).await;
    let (one, other) = (
        as_role(&mesh, "one", "verifier").await,
        as_role(&mesh, "other", "verifier").await,
    );
    let by_hop = format!("hop:{hop}");
    let first = one
        .ok("POST", REPORTS, finding("hallucination", "medium", &by_hop))
        .await;
    assert_eq!(first["points"], 0.5);
    let again = one
        .ok("POST", REPORTS, finding("false_claim", "critical", &id_of(&outbound)))
        .await;
    assert_eq!((&again["repeated"], &again["points"]), (&json!(true), &json!(0.0)));
    let after = score(&mesh).await;
    let milder = other
        .ok("POST", REPORTS, finding("hallucination", "low", &id_of(&outbound)))
        .await;
    assert_eq!((&milder["repeated"], &milder["points"]), (&json!(false), &json!(0.0)));
    assert_eq!(score(&mesh).await, after, "it had counted already");
    let third = as_role(&mesh, "third", "verifier").await;
    let worse = third
        .ok("POST", REPORTS, finding("hallucination", "high", &by_hop))
        .await;
    assert_eq!(worse["points"], 0.5, "as much as it is worse");
    let shown = mesh.admin.get("/v1/reputation/planner").await;
    let newest = &shown["history"][0];
    assert_eq!(
        (&newest["hop"], &newest["seen_by"]),
        (&json!(hop.to_string()), &json!(["writer"]))
    );
}

/// Praise that comes first does not shield a hop from the report that it deserves, and praise that comes later is none.
#[tokio::test]
async fn of_two_reports_of_a_hop_the_lower_one_holds() {
    let mesh = with_planner().await;
    let (friend, checker) = (
        as_role(&mesh, "friend", "verifier").await,
        as_role(&mesh, "checker", "verifier").await,
    );
    let about = |n: u32, word: &str| finding(word, "critical", &format!("hop:{}", hop(n)));
    friend.ok("POST", REPORTS, about(1, "confirmed")).await;
    assert!(score(&mesh).await > 5.0);
    let taken = checker.ok("POST", REPORTS, about(1, "hallucination")).await;
    assert_eq!(taken["points"], 2.0);
    let before = score(&mesh).await;
    let late = friend.ok("POST", REPORTS, about(1, "confirmed")).await;
    assert_eq!(late["repeated"], true);
    let other = as_role(&mesh, "other", "verifier").await;
    other.ok("POST", REPORTS, about(1, "confirmed")).await;
    assert_eq!(score(&mesh).await, before);
}

#[tokio::test]
async fn a_reporter_has_only_so_many_reports_an_hour_about_all_agents_together() {
    let mesh = with_planner().await;
    let checker = as_role(&mesh, "checker", "verifier").await;
    let registry = &mesh.plane.registry;
    let reporting = Reporting {
        at: registry.clock.steady(),
        count: MAX_REPORTS_OF_ALL_AN_HOUR,
    };
    let draft = registry.change(&Actor::control_plane(), "test", "checker");
    let draft = draft.put(keys::reputation_reporter("checker"), &reporting, Expect::Absent);
    draft.commit().await.unwrap();
    let refused = checker.refused("POST", REPORTS, report("low", 1)).await;
    assert_eq!(refused, (429, "rate_exceeded".into()));
    mesh.plane.clock.advance(3_600);
    checker.ok("POST", REPORTS, report("low", 1)).await;
}
