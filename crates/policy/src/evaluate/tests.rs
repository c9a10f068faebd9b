use std::sync::Arc;

use serde_json::json;

use super::Evaluator;
use crate::facts::{Fact, Facts, PeerFacts};
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
