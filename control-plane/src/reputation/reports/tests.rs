use aip_api::resource::MeshMode;

use super::*;
use crate::testing::mesh;

fn report(n: u8) -> NewReport {
    NewReport {
        agent: "planner".parse().unwrap(),
        finding: Finding::Hallucination,
        severity: Severity::Critical,
        evidence: format!("hop:0198f2f0-7d2b-7c3e-8a11-3b7d5b1f0a{n:02x}")
            .try_into()
            .unwrap(),
        claim: String::new(),
    }
}

async fn proposed(registry: &Registry) -> String {
    let planner = "planner".parse().unwrap();
    match registry.reset_reputation("alice", &planner, "checked").await.unwrap() {
        Outcome::Proposed { id, .. } => id,
        other => panic!("a prod mesh asks a second person: {other:?}"),
    }
}

/// The second person approves what the first one saw: what was reported since is not forgotten unseen.
#[tokio::test]
async fn in_a_prod_mesh_a_reset_takes_a_second_person_who_sees_the_same() {
    let registry = mesh(MeshMode::Prod).await.registry;
    let planner: AgentName = "planner".parse().unwrap();
    let agent = Agent::new(planner.clone());
    registry.create_agent(&Actor::admin("alice"), agent).await.unwrap();
    registry.report_reputation("checker", report(1)).await.unwrap();

    let id = proposed(&registry).await;
    let alone = registry.approve_proposal("alice", &id).await.unwrap_err();
    assert_eq!(alone.reason, Reason::SecondPersonRequired);
    registry.report_reputation("checker", report(2)).await.unwrap();
    let lapsed = registry.approve_proposal("bob", &id).await.unwrap_err();
    assert_eq!(lapsed.reason, Reason::ProposalLapsed);

    let id = proposed(&registry).await;
    // What hops say goes on all the time.
    let mut hops = super::super::observe::Gathered::default();
    let outcome = super::super::observe::Outcome {
        caller: planner.clone(),
        callee: "ledger".parse().unwrap(),
        status: 200,
        blame: String::new(),
        ms: 1,
    };
    hops.take(&outcome, &Default::default());
    registry.observed_reputations(hops).await.unwrap();
    registry.approve_proposal("bob", &id).await.unwrap();
    let settings = registry.reputation_settings().await.unwrap();
    let book = registry.reputation_book(&planner, &settings).await.unwrap();
    let told = registry.existing::<Reputation>("planner").await.unwrap().value;
    assert_eq!((told.score, told.slashes.len()), (settings.prior, 0));
    assert!(
        book.events
            .iter()
            .any(|e| matches!(&e.what, What::Reset { by, .. } if by == "admin:bob"))
    );
}

/// What a drift does, in the transaction that blocks the agent.
#[tokio::test]
async fn a_drift_counts_against_honesty() {
    let registry = mesh(MeshMode::Dev).await.registry;
    let planner: AgentName = "planner".parse().unwrap();
    let agent = Agent::new(planner.clone());
    registry.create_agent(&Actor::admin("alice"), agent).await.unwrap();
    let draft = registry.change(&Actor::sidecar(&planner), "test", "planner");
    let draft = registry.drift_ops(draft, &planner).await.unwrap();
    draft.commit().await.unwrap();
    let settings = registry.reputation_settings().await.unwrap();
    let book = registry.reputation_book(&planner, &settings).await.unwrap();
    let now = book.reputation(&settings, registry.clock.now());
    for factor in aip_api::resource::reputation::Factor::ALL {
        let fell = now.factors[&factor] < settings.prior;
        assert_eq!(fell, factor.as_str() == "honesty", "{factor:?}");
    }
}
