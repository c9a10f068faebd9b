use aip_api::id::{DecisionId, HopId};
use aip_api::resource::MeshMode;
use aip_audit::record::{Direction, End, Passed};

use super::*;
use crate::testing::mesh;

fn outcome(ended: Ended, ms: u64) -> Outcome {
    Outcome {
        caller: "planner".parse().unwrap(),
        callee: "ledger".parse().unwrap(),
        ended,
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
fn each_outcome_says_what_it_says_and_no_more() {
    let good = ["callee+reliability", "caller+cooperativeness", "callee+responsiveness"];
    assert_eq!(words(&outcome(Ended::Answered, 5_000)), good);
    assert_eq!(
        words(&outcome(Ended::Answered, 5_001)),
        good[..2],
        "a long stream is not slow"
    );
    assert_eq!(words(&outcome(Ended::Failed, 1)), ["callee-reliability"]);
    assert_eq!(
        words(&outcome(Ended::TooLate, 1)),
        ["callee-reliability", "callee-responsiveness"]
    );
    assert_eq!(
        words(&outcome(Ended::Denied, 1)),
        ["caller-cooperativeness"],
        "no failure of the callee"
    );
    let itself = Outcome {
        callee: "planner".parse().unwrap(),
        ..outcome(Ended::Answered, 1)
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

fn matched(caller_end: End, callee_end: End) -> Matched {
    Matched {
        hop: HopId::fresh(),
        caller: "planner".parse().unwrap(),
        callee: "ledger".parse().unwrap(),
        agreed: caller_end.end == COMPLETE && callee_end.end == COMPLETE,
        caller_end: HopEnd::of(&caller_end),
        callee_end: HopEnd::of(&callee_end),
        denied: false,
        contradicts: Vec::new(),
        at: 1,
    }
}

/// What the callee's sidecar says of how it ended; the caller's passed on what it was answered.
fn said_by_callee(status: u16, word: &str, blame: &str) -> Matched {
    let mut callee = end(Direction::Inbound, status);
    (callee.end, callee.blame) = (word.into(), blame.into());
    matched(end(Direction::Outbound, status), callee)
}

fn ended(matched: &Matched) -> Option<Ended> {
    Outcome::of(matched).map(|outcome| outcome.ended)
}

#[test]
fn what_its_own_sidecar_says_of_an_agent_counts_by_its_reason() {
    assert_eq!(ended(&said_by_callee(200, "complete", "")), Some(Ended::Answered));
    assert_eq!(ended(&said_by_callee(500, "complete", "")), Some(Ended::Failed));
    assert_eq!(
        ended(&said_by_callee(404, "complete", "")),
        None,
        "no answer to a question"
    );
    for status in [504, 200] {
        // An answer in the form of JSON-RPC or gRPC has the status 200.
        let late = said_by_callee(status, "response_timeout", "agent");
        assert_eq!(ended(&late), Some(Ended::TooLate));
    }
    for down in ["agent_unreachable", "connection_broken", "upgrade_failed"] {
        assert_eq!(
            ended(&said_by_callee(502, down, "agent")),
            Some(Ended::Failed),
            "{down}"
        );
    }
    for (reason, blame) in [
        ("overloaded", "agent"),
        ("audit_unavailable", "agent"),
        ("drifted", "agent"),
        ("killed", "policy"),
        ("interrupted", "policy"),
        ("no_endpoint", "callee"),
        ("lease_lost", "control_plane"),
        ("aborted", "caller"),
        ("drained", ""),
    ] {
        assert_eq!(ended(&said_by_callee(503, reason, blame)), None, "{reason}");
    }
}

/// Every reason that counts is one for which the agent is to blame, and both pages say so.
#[test]
fn the_reasons_that_count_are_in_the_docs() {
    let read = |page: &str| {
        let path = format!("{}/../docs/{page}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    };
    let (errors, reputation) = (read("errors.md"), read("reputation.md"));
    for (reason, _) in AGENT_FAILED {
        let row = errors.lines().find(|line| line.starts_with(&format!("| `{reason}` |")));
        assert!(row.unwrap().contains("| agent |"), "{reason}");
        assert!(reputation.contains(&format!("`{reason}`")), "{reason}");
    }
    assert!(reputation.contains("`policy_denied`"));
}

#[test]
fn only_what_policy_refused_is_the_callers_violation() {
    let mut denied = said_by_callee(403, "complete", "policy");
    assert_eq!(ended(&denied), None, "another refusal: below the floor, say");
    denied.denied = true;
    assert_eq!(ended(&denied), Some(Ended::Denied));
    // Its sidecar's word for it is not enough: both ends saw an answer.
    for (status, blame) in [(200, "policy"), (200, ""), (403, "")] {
        let mut answered = said_by_callee(status, "complete", blame);
        answered.denied = true;
        assert_eq!(ended(&answered), None, "{status} {blame:?}");
    }
}

#[test]
fn an_answer_that_the_agent_broke_off_is_a_failure_where_both_saw_it() {
    let mut broke = said_by_callee(200, "aborted", "agent");
    assert_eq!(ended(&broke), None, "the caller has it whole");
    (broke.caller_end.end, broke.caller_end.blame) = (Mark::of("aborted"), Mark::of("callee"));
    assert_eq!(ended(&broke), Some(Ended::Failed));
    broke.callee_end.blame = Mark::of("caller");
    assert_eq!(ended(&broke), None, "its caller hung up");
}

#[test]
fn where_the_ends_differ_nothing_counts() {
    let mut digests = said_by_callee(200, "complete", "");
    digests.contradicts = vec!["response_digest"];
    assert_eq!(ended(&digests), None);
    let mut late = said_by_callee(504, "response_timeout", "agent");
    late.contradicts = vec!["response_bytes"];
    assert_eq!(ended(&late), None);
    let status = matched(end(Direction::Outbound, 200), end(Direction::Inbound, 500));
    assert_eq!(ended(&status), None, "one end says that it failed");
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
    let book = registry.reputation_book(&agent.parse().unwrap()).await.unwrap();
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
        &[
            outcome(Ended::Answered, 1),
            outcome(Ended::Answered, 1),
            outcome(Ended::Failed, 1),
        ],
    )
    .await;
    let settings = ReputationSettings::default();
    let book = registry.reputation_book(&"ledger".parse().unwrap()).await.unwrap();
    assert_eq!(book.events.len(), 1);
    let factors = book.reputation(&settings, registry.clock.now()).factors;
    assert!(factors[&Factor::Responsiveness] > settings.prior);
    assert!(score(&registry, "planner").await > 5.0, "it kept to what policy allows");
}

#[tokio::test]
async fn agents_of_one_owner_do_not_vouch_for_each_other_and_may_complain() {
    let registry = with_agents("team").await;
    told(&registry, &[outcome(Ended::Answered, 1)]).await;
    assert!((score(&registry, "ledger").await - 5.0).abs() < f64::EPSILON);
    told(&registry, &[outcome(Ended::Failed, 1)]).await;
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
        seen: super::super::evidence::Seen {
            hop: "0198f2f0-7d2b-7c3e-8a11-3b7d5b1f0a42".into(),
            by: Vec::new(),
        },
        signed: None,
    };
    registry.report_reputation("checker", slash).await.unwrap();
    told(&registry, &[outcome(Ended::Denied, 1)]).await;
    assert!((score(&registry, "planner").await - 5.0).abs() < f64::EPSILON);
}

/// Friends of one owner are made no strangers by being many, or by leaving.
#[tokio::test]
async fn many_friends_of_one_owner_do_not_vouch_either() {
    let registry = with_agents("team").await;
    let mut all = Vec::new();
    for n in 0..=MAX_REPORTERS {
        let name: AgentName = format!("friend{n}").parse().unwrap();
        let mut friend = Agent::new(name.clone());
        friend.owner = "team".into();
        registry.create_agent(&Actor::admin("a"), friend).await.unwrap();
        all.push(Outcome {
            caller: name,
            ..outcome(Ended::Answered, 1)
        });
    }
    let gone = "friend0".parse().unwrap();
    registry.delete_agent(&Actor::admin("a"), &gone).await.unwrap();
    told(&registry, &all).await;
    assert!((score(&registry, "ledger").await - 5.0).abs() < f64::EPSILON);
}

/// Whoever praises in masses takes no place from who complains.
#[test]
fn praise_does_not_crowd_out_complaints_before_they_are_written() {
    let mut gathered = Gathered::default();
    let settings = ReputationSettings::default();
    let mut from = |name: &str, ended| {
        let outcome = Outcome {
            caller: name.parse().unwrap(),
            ..outcome(ended, 1)
        };
        gathered.take(&outcome, &settings);
    };
    for n in 0..2 * MAX_REPORTERS {
        from(&format!("friend{n}"), Ended::Answered);
    }
    from("honest", Ended::Failed);
    let peers = &gathered.0[&"ledger".parse::<AgentName>().unwrap()];
    assert!(peers.contains_key("honest") && peers.len() <= MAX_REPORTERS + 1);
    let good: u32 = peers
        .values()
        .filter_map(|(good, _)| good.get(&Factor::Reliability))
        .sum();
    assert_eq!(good as usize, 2 * MAX_REPORTERS, "nothing of the praise is lost");
}
