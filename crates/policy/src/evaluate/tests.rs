use std::sync::Arc;

use serde_json::json;

use super::Evaluator;
use crate::facts::{Fact, Facts, PeerFacts};
use crate::limits::MAX_SETS_PER_WORKER;
use crate::set::PolicySet;
use crate::source::PolicySource;
use crate::verdict::{Decision, Verdict, builtin};

fn policy(name: &str, rules: &str) -> PolicySource {
    let rego = format!("package aip.policy.{}\n\n{rules}\n", name.replace('-', "_"));
    PolicySource {
        name: name.to_owned(),
        rego,
        data: json!(null),
        tests: None,
    }
}

fn set(policies: &[PolicySource]) -> Arc<PolicySet> {
    match PolicySet::compile(policies, &json!({"egress": ["api.example.com"]})) {
        Ok(set) => Arc::new(set),
        Err(faults) => panic!(
            "{}",
            faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        ),
    }
}

fn allow() -> PolicySource {
    policy(
        "base",
        r#"rules contains {"rule": "base/all", "verdict": "allow", "reason": "all"} if true"#,
    )
}

fn from(id: &str) -> Facts {
    Facts {
        source: Arc::new(PeerFacts {
            id: id.to_owned(),
            ..PeerFacts::default()
        }),
        ..Facts::default()
    }
}

fn decide(policies: &[PolicySource], facts: &Facts) -> Decision {
    Evaluator::new().decide(&set(policies), facts)
}

#[test]
fn an_empty_set_denies() {
    let decision = Evaluator::new().decide(&Arc::new(PolicySet::empty()), &Facts::default());
    assert_eq!((decision.verdict, decision.rule()), (Verdict::Deny, builtin::NO_RULE));
    assert_eq!(
        PolicySet::compile(&[], &json!(null)).unwrap().digest(),
        PolicySet::empty().digest()
    );
}

#[test]
fn a_set_of_which_no_rule_fires_denies() {
    let quiet = policy(
        "quiet",
        r#"rules contains {"rule": "q", "verdict": "allow", "reason": ""} if false"#,
    );
    assert_eq!(decide(&[quiet], &Facts::default()).rule(), builtin::NO_RULE);
}

#[test]
fn the_strictest_verdict_wins_and_says_who_gave_it() {
    let deny = policy(
        "no-bob",
        r#"rules contains {"rule": "no-bob/id", "verdict": "deny", "reason": sprintf("not %s", [input.source.id])} if {
            input.source.id == "bob"
        }"#,
    );
    let policies = [allow(), deny];
    assert_eq!(decide(&policies, &from("alice")).verdict, Verdict::Allow);
    let denied = decide(&policies, &from("bob"));
    assert_eq!(denied.verdict, Verdict::Deny);
    assert_eq!((denied.rule(), denied.reason()), ("no-bob/id", "not bob"));
    assert_eq!(denied.rules[0].policy, "no-bob");
}

#[test]
fn a_fact_that_is_not_established_denies_before_negation_sees_it() {
    let deny = policy(
        "reputable",
        r#"rules contains {"rule": "low", "verdict": "deny", "reason": ""} if {
            not input.source.reputation.status == "known"
        }"#,
    );
    let mut facts = Facts::default();
    Arc::make_mut(&mut facts.source).reputation = Fact::Unestablished("registry_unreachable");
    let decision = decide(&[allow(), deny], &facts);
    assert_eq!(decision.rule(), builtin::FACT_UNESTABLISHED);
    assert_eq!(
        decision.reason(),
        "source.reputation could not be established: registry_unreachable"
    );
    assert_eq!(decide(&[allow()], &facts).verdict, Verdict::Allow, "nobody reads it");
}

/// The `version`th version of a policy.
fn version(version: usize) -> PolicySource {
    let rules =
        format!(r#"rules contains {{"rule": "v{version}", "verdict": "allow", "reason": input.source.id}} if true"#);
    policy("changes", &rules)
}

#[test]
fn what_is_no_longer_in_force_leaves_nothing_behind() {
    let mut evaluator = Evaluator::new();
    let (base, kept) = (set(&[allow()]), from("kept"));
    evaluator.decide(&base, &kept);
    for n in 0..3 * MAX_SETS_PER_WORKER {
        let current = set(&[version(n)]);
        for caller in 0..10 {
            let decision = evaluator.decide(&current, &from(&format!("caller {caller}")));
            assert_eq!(decision.rule(), format!("v{n}"));
        }
        // Of this version, and of what else stands.
        assert!(evaluator.loaded.len() <= 2 && evaluator.cache.len() <= 11, "after {n}");
    }
    assert!(evaluator.decide(&base, &kept).cached, "what stands is found");
}

#[test]
fn what_is_compiled_again_is_in_force_as_long_as_the_last_one_is() {
    let mut evaluator = Evaluator::new();
    let facts = from("caller");
    let first = set(&[version(1)]);
    evaluator.decide(&first, &facts);
    let again = set(&[version(1)]);
    assert!(evaluator.decide(&again, &facts).cached);
    drop(first);
    evaluator.decide(&set(&[version(2)]), &facts);
    assert!(evaluator.decide(&again, &facts).cached);
}

#[test]
fn what_stands_is_let_go_of_where_more_stands_than_is_kept() {
    let mut evaluator = Evaluator::new();
    let sets: Vec<_> = (0..=MAX_SETS_PER_WORKER).map(|n| set(&[version(n)])).collect();
    for set in &sets {
        evaluator.decide(set, &from("caller"));
    }
    assert_eq!(evaluator.loaded.len(), MAX_SETS_PER_WORKER);
    assert_eq!(evaluator.cache.len(), MAX_SETS_PER_WORKER);
    assert!(!evaluator.decide(&sets[0], &from("caller")).cached);
}
