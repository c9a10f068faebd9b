use aip_api::id::{DecisionId, HopId};
use aip_api::resource::MeshMode;
use aip_audit::record::{Direction, End, Passed};

use super::*;
use crate::testing::mesh;

fn outcome(status: u16, blame: &str, ms: u64) -> Outcome {
    Outcome {
        caller: "planner".parse().unwrap(),
        callee: "ledger".parse().unwrap(),
        status,
        blame: blame.into(),
        ms,
    }
}

fn words(outcome: &Outcome) -> Vec<String> {
    let all = said(outcome, &ReputationSettings::default());
    let word = |s: Said| {
        let (of, sign) = (
            if s.of_caller { "caller" } else { "callee" },
            if s.good { '+' } else { '-' },
        );
        format!("{of}{sign}{}", s.factor.as_str())
    };
    all.into_iter().map(word).collect()
}

#[test]
fn a_refusal_by_the_callees_policy_is_no_failure_of_the_callee() {
    for status in [403, 503] {
        assert_eq!(words(&outcome(status, "policy", 1)), ["caller-cooperativeness"]);
    }
}

#[test]
fn each_outcome_says_what_it_says_and_no_more() {
    let good = ["callee+reliability", "caller+cooperativeness", "callee+responsiveness"];
    assert_eq!(words(&outcome(200, "", 5_000)), good);
    assert_eq!(words(&outcome(200, "", 5_001)), good[..2], "a long stream is not slow");
    assert_eq!(words(&outcome(500, "", 1)), ["callee-reliability"]);
    assert_eq!(words(&outcome(502, "agent", 1)), ["callee-reliability"]);
    assert_eq!(
        words(&outcome(504, "agent", 1)),
        ["callee-reliability", "callee-responsiveness"]
    );
    for blame in ["caller", "callee", "control_plane"] {
        assert!(words(&outcome(502, blame, 1)).is_empty(), "{blame}");
    }
    assert!(words(&outcome(404, "", 1)).is_empty(), "a question that has no answer");
    let itself = Outcome {
        callee: "planner".parse().unwrap(),
        ..outcome(200, "", 1)
    };
    assert!(words(&itself).is_empty());
}

fn end(direction: Direction, status: u16) -> End {
    End {
        id: DecisionId::fresh(),
        hop: None,
        direction,
        status,
        end: "complete".into(),
        blame: String::new(),
        other: String::new(),
        ms: 3,
        salt: String::new(),
        request_in: Passed::default(),
        request_out: Passed::default(),
        response_in: Passed::default(),
        response_out: Passed::default(),
    }
}

#[test]
fn where_the_ends_differ_nothing_counts() {
    let matched = |agreed, status| Matched {
        hop: HopId::fresh(),
        caller: "planner".parse().unwrap(),
        callee: "ledger".parse().unwrap(),
        caller_end: end(Direction::Outbound, 200),
        callee_end: end(Direction::Inbound, status),
        agreed,
        contradicts: Vec::new(),
        at: 1,
    };
    assert!(Outcome::of(&matched(true, 200)).is_some());
    assert!(Outcome::of(&matched(false, 200)).is_none(), "digests differ");
    assert!(
        Outcome::of(&matched(true, 500)).is_none(),
        "one end says that it failed"
    );
}

async fn with_agents(owner: &str) -> Registry {
    let registry = mesh(MeshMode::Dev).await.registry;
    for name in ["planner", "ledger"] {
        let mut agent = Agent::new(name.parse().unwrap());
        agent.owner = owner.into();
        registry.create_agent(&Actor::admin("a"), agent).await.unwrap();
    }
    registry
}

async fn score(registry: &Registry, agent: &str) -> f64 {
    let settings = ReputationSettings::default();
    let book = registry
        .reputation_book(&agent.parse().unwrap(), &settings)
        .await
        .unwrap();
    book.reputation(&settings, registry.clock.now()).score.value()
}

async fn told(registry: &Registry, outcomes: &[Outcome]) {
    let mut gathered = Gathered::default();
    for outcome in outcomes {
        gathered.take(outcome, &ReputationSettings::default());
    }
    registry.observed_reputations(gathered).await.unwrap();
}

#[tokio::test]
async fn what_hops_say_becomes_one_event_an_agent() {
    let registry = with_agents("").await;
    told(
        &registry,
        &[outcome(200, "", 1), outcome(200, "", 1), outcome(500, "", 1)],
    )
    .await;
    let settings = ReputationSettings::default();
    let book = registry
        .reputation_book(&"ledger".parse().unwrap(), &settings)
        .await
        .unwrap();
    assert_eq!(book.events.len(), 1);
    let factors = book.reputation(&settings, registry.clock.now()).factors;
    assert!(factors[&Factor::Responsiveness] > settings.prior);
    assert!(score(&registry, "planner").await > 5.0, "it kept to what policy allows");
}

#[tokio::test]
async fn agents_of_one_owner_do_not_vouch_for_each_other_and_may_complain() {
    let registry = with_agents("team").await;
    told(&registry, &[outcome(200, "", 1)]).await;
    assert!((score(&registry, "ledger").await - 5.0).abs() < f64::EPSILON);
    told(&registry, &[outcome(500, "", 1)]).await;
    assert!(score(&registry, "ledger").await < 5.0);
}

/// Its peers refuse an agent below the floor: that must not push it, or whoever still calls it, further down.
#[tokio::test]
async fn what_the_floor_refuses_counts_against_nobody() {
    let registry = with_agents("").await;
    let slash = super::super::reports::NewReport {
        agent: "ledger".parse().unwrap(),
        finding: aip_api::resource::reputation::Finding::Hallucination,
        severity: aip_api::resource::reputation::Severity::Critical,
        evidence: "hop:0198f2f0-7d2b-7c3e-8a11-3b7d5b1f0a42"
            .to_owned()
            .try_into()
            .unwrap(),
        claim: String::new(),
    };
    registry.report_reputation("checker", slash).await.unwrap();
    told(&registry, &[outcome(403, "policy", 1)]).await;
    assert!((score(&registry, "planner").await - 5.0).abs() < f64::EPSILON);
}
