use aip_api::resource::reputation::{Finding, Severity};
use aip_api::resource::{Agent, MeshMode, Reputation};

use super::*;
use crate::refusal::Reason;
use crate::reputation::evidence::Seen;
use crate::reputation::observe::{Ended, Gathered, Outcome as HopOutcome};
use crate::reputation::reports::NewReport;
use crate::testing::mesh;

fn report(n: u8) -> NewReport {
    let hop = format!("0198f2f0-7d2b-7c3e-8a11-3b7d5b1f0a{n:02x}");
    NewReport {
        agent: "planner".parse().unwrap(),
        finding: Finding::Hallucination,
        severity: Severity::Critical,
        evidence: format!("hop:{hop}").try_into().unwrap(),
        claim: String::new(),
        seen: Seen { hop, by: Vec::new() },
        signed: None,
    }
}

async fn with_planner() -> Registry {
    let registry = mesh(MeshMode::Prod).await.registry;
    let mut agent = Agent::new("planner".parse().unwrap());
    registry
        .create_agent(&Actor::admin("alice"), agent.clone())
        .await
        .unwrap();
    // What is good of those whom the registry does not know would not count.
    let peer = Agent::new("ledger".parse().unwrap());
    registry.create_agent(&Actor::admin("alice"), peer).await.unwrap();
    agent.owner = "team-a".into();
    let Outcome::Proposed { id, .. } = registry.update_agent("alice", agent, None).await.unwrap() else {
        panic!("a prod mesh asks a second person")
    };
    registry.approve_proposal("bob", &id).await.unwrap();
    registry.report_reputation("checker", report(1)).await.unwrap();
    registry
}

async fn proposed(registry: &Registry) -> String {
    let planner = "planner".parse().unwrap();
    match registry.reset_reputation("alice", &planner, "checked").await.unwrap() {
        Outcome::Proposed { id, .. } => id,
        other => panic!("a prod mesh asks a second person: {other:?}"),
    }
}

async fn a_hop(registry: &Registry) {
    let mut hops = Gathered::default();
    let outcome = HopOutcome {
        caller: "planner".parse().unwrap(),
        callee: "ledger".parse().unwrap(),
        ended: Ended::Answered,
        ms: 1,
    };
    hops.take(&outcome, &Default::default());
    registry.observed_reputations(hops).await.unwrap();
}

/// The second person approves what the first one saw: what was reported since is not forgotten unseen.
#[tokio::test]
async fn in_a_prod_mesh_a_reset_takes_a_second_person_who_sees_the_same() {
    let registry = with_planner().await;
    let planner: AgentName = "planner".parse().unwrap();
    let id = proposed(&registry).await;
    let alone = registry.approve_proposal("alice", &id).await.unwrap_err();
    assert_eq!(alone.reason, Reason::SecondPersonRequired);
    registry.report_reputation("checker", report(2)).await.unwrap();
    let lapsed = registry.approve_proposal("bob", &id).await.unwrap_err();
    assert_eq!(lapsed.reason, Reason::ProposalLapsed);

    let id = proposed(&registry).await;
    a_hop(&registry).await;
    registry.approve_proposal("bob", &id).await.unwrap();
    let settings = registry.reputation_settings().await.unwrap();
    let book = registry.reputation_book(&planner).await.unwrap();
    let told = registry.existing::<Reputation>("planner").await.unwrap().value;
    assert_eq!((told.score, told.slashes.len()), (settings.prior, 0));
    assert!(
        book.events
            .iter()
            .any(|e| matches!(&e.what, What::Reset { by, .. } if by == "admin:bob"))
    );
}

/// Neither of the two people is one whom it helps.
#[tokio::test]
async fn the_owner_does_not_approve_the_reset_of_its_own_agent() {
    let registry = with_planner().await;
    let id = proposed(&registry).await;
    for oneself in ["team-a", "planner"] {
        let refused = registry.approve_proposal(oneself, &id).await.unwrap_err();
        assert_eq!(refused.reason, Reason::SelfReport, "{oneself}");
    }
    registry.approve_proposal("bob", &id).await.unwrap();
}

/// Hops go on while a proposal waits, so many that the events of its time have moved into the base.
#[tokio::test]
async fn a_busy_agents_reset_can_be_approved_and_a_report_still_makes_it_lapse() {
    let registry = with_planner().await;
    let id = proposed(&registry).await;
    for _ in 0..200 {
        a_hop(&registry).await;
    }
    let planner: AgentName = "planner".parse().unwrap();
    let book = registry.reputation_book(&planner).await.unwrap();
    assert!(book.events[0].seq > 2, "the log was compacted on the way");
    registry.approve_proposal("bob", &id).await.unwrap();

    registry.report_reputation("checker", report(2)).await.unwrap();
    let id = proposed(&registry).await;
    registry.report_reputation("checker", report(3)).await.unwrap();
    for _ in 0..200 {
        a_hop(&registry).await;
    }
    let lapsed = registry.approve_proposal("bob", &id).await.unwrap_err();
    assert_eq!(lapsed.reason, Reason::ProposalLapsed);
}
