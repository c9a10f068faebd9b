//! A report is about a hop that happened, with the agent as one of its ends; and a hop counts once.

use aip_api::id::HopId;
use aip_audit::record::{Direction, Event};
use aip_control_plane::registry::{Actor, keys};
use aip_control_plane::reputation::reports::{MAX_REPORTS_OF_ALL_AN_HOUR, Reporting};
use aip_control_plane::store::Expect;
use serde_json::{Value, json};

use super::{REPORTS, as_role, hop, report, score, with_planner};
use crate::support::Mesh;
use crate::support::audit::{Audit, Log, decision, end, now};

/// An agent joins, and its sidecar records these.
async fn records(mesh: &Mesh, agent: &str, events: &[Event]) {
    records_at(mesh, agent, now(), events).await;
}

async fn records_at(mesh: &Mesh, agent: &str, at: u64, events: &[Event]) {
    let sidecar = mesh.joined(agent).await;
    let mut log = Log::fresh();
    for event in events {
        log.writer.append(event.clone(), at).unwrap();
    }
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

/// A decision that was refused by policy, as its sidecar says.
fn refused(mut event: Event) -> Event {
    if let Event::Decision(decision) = &mut event {
        (decision.verdict, decision.reason) = ("deny".into(), "policy_denied".into());
    }
    event
}

/// The end of it, with what its caller was given.
fn gave(decision: &Event, status: u16, blame: &str) -> Event {
    let mut ended = end(decision, b"question", b"answer");
    if let Event::End(end) = &mut ended {
        (end.status, end.blame) = (status, blame.into());
    }
    ended
}

/// What a callee's sidecar says of itself excuses its agent so far as its caller's was not told otherwise.
#[tokio::test]
async fn an_agent_that_answered_is_not_excused_by_the_word_of_its_sidecar_that_it_refused() {
    let mesh = Mesh::dev().await;
    let (mut callee, mut caller, mut hops) = (Vec::new(), Vec::new(), Vec::new());
    // What the callee says that it gave, what the caller says that it got, and whether the callee heard of it.
    for (theirs, ours, heard) in [
        (Some((200, "policy")), Some(200), true),
        (Some((200, "")), None, true),
        (Some((403, "policy")), Some(200), true),
        (None, Some(200), true),
        (Some((403, "policy")), Some(403), false),
        (Some((403, "policy")), None, false),
    ] {
        let hop = HopId::fresh();
        let inbound = refused(decision("caller", "callee", Direction::Inbound, Some(hop)));
        let outbound = decision("caller", "callee", Direction::Outbound, Some(hop));
        callee.extend(theirs.map(|(status, blame)| gave(&inbound, status, blame)));
        caller.extend(ours.map(|status| gave(&outbound, status, "")));
        callee.insert(0, inbound);
        caller.insert(0, outbound);
        hops.push((hop, heard));
    }
    records(&mesh, "callee", &callee).await;
    records(&mesh, "caller", &caller).await;
    for (n, (hop, heard)) in hops.into_iter().enumerate() {
        let about = finding("hallucination", "low", &format!("hop:{hop}"));
        let path = "/v1/reputation/callee/reports";
        if heard {
            mesh.admin.ok("POST", path, about).await;
        } else {
            let said = mesh.admin.refused("POST", path, about).await;
            assert_eq!(said, (422, "hop_of_others".into()), "{n}");
        }
    }
}

/// Whoever fills its own log with the ids of others hides nothing by it.
#[tokio::test]
async fn records_of_others_hide_no_hop_and_no_decision() {
    let mesh = with_planner().await;
    let hop = HopId::fresh();
    let outbound = decision("writer", "planner", Direction::Outbound, Some(hop));
    records(&mesh, "writer", std::slice::from_ref(&outbound)).await;
    let id = match &outbound {
        Event::Decision(decision) => decision.id,
        _ => panic!("not a decision"),
    };
    // Newer than what they hide, and more than are looked through: the same hop, and the same decision under other hops.
    let noise: Vec<Event> = (0..300)
        .map(|n| {
            let (callee, own) = match n % 2 {
                0 => ("somebody", hop),
                _ => ("planner", HopId::fresh()),
            };
            let mut event = decision("zealot", callee, Direction::Outbound, Some(own));
            if let Event::Decision(decision) = &mut event
                && n % 2 == 1
            {
                decision.id = id;
            }
            event
        })
        .collect();
    records_at(&mesh, "zealot", now() + 2_000, &noise).await;
    for (sub, evidence) in [("one", format!("hop:{hop}")), ("other", id_of(&outbound))] {
        let verifier = as_role(&mesh, sub, "verifier").await;
        let about = finding("hallucination", "low", &evidence);
        verifier.ok("POST", REPORTS, about).await;
        let shown = mesh.admin.get("/v1/reputation/planner").await;
        let newest = &shown["history"][0];
        let said = (&newest["hop"], &newest["seen_by"]);
        assert_eq!(said, (&json!(hop.to_string()), &json!(["writer"])), "{evidence}");
    }
}

/// A copy that can't be read hides nothing but what it has itself.
#[tokio::test]
async fn a_log_that_cannot_be_read_stops_no_report() {
    let mesh = with_planner().await;
    std::fs::create_dir_all(mesh.data.join("audit/broken/no-log")).unwrap();
    mesh.admin.ok("POST", REPORTS, report("low", 1)).await;
    let unknown = finding("hallucination", "low", &format!("hop:{}", HopId::fresh()));
    let said = mesh.admin.refused("POST", REPORTS, unknown).await;
    assert_eq!(said, (409, "hop_unknown".into()));
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
    // Before anything is looked up: a hop that nobody recorded, too.
    for n in [1, 5_000] {
        let refused = checker.refused("POST", REPORTS, report("low", n)).await;
        assert_eq!(refused, (429, "rate_exceeded".into()));
    }
    mesh.plane.clock.advance(3_600);
    checker.ok("POST", REPORTS, report("low", 1)).await;
}
