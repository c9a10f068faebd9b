//! What hostile or careless policies try, and how each of them ends: refused before it runs, or in a deny. None may hang
//! or end the process, and none may turn an error into permission.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use aip_policy::{Decision, Evaluator, Facts, PolicySet, PolicySource, Verdict, admission};
use serde_json::json;

/// Far above what any of these takes, far below what an unbounded one would.
const PATIENCE: Duration = Duration::from_secs(20);

mod admission_gate;
mod authors;
mod engine_semantics;
mod limits;

/// A module that allows everything and denies when `body` holds; `rules` are further rules.
fn denying(body: &str, rules: &str) -> String {
    format!(
        "package aip.policy.p\n\nrules contains {{\"rule\": \"all\", \"verdict\": \"allow\", \"reason\": \"\"}} if true\n\n\
         rules contains {{\"rule\": \"no\", \"verdict\": \"deny\", \"reason\": \"\"}} if {{\n{body}\n}}\n\n{rules}\n"
    )
}

fn source(rego: String) -> PolicySource {
    let data = json!({"none": [], "one": [1], "text": "x", "null": null});
    PolicySource {
        name: "p".into(),
        rego,
        data,
        tests: None,
    }
}

/// The reason for which the module is refused.
fn refused(rego: String) -> String {
    let start = Instant::now();
    let faults = PolicySet::compile(&[source(rego)], &json!({"k": {"a": 1}})).unwrap_err();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    faults[0].reason.clone()
}

fn decided_on(rego: String, facts: &Facts) -> Decision {
    let start = Instant::now();
    let set = match PolicySet::compile(&[source(rego)], &json!({"k": {"a": 1}})) {
        Ok(set) => Arc::new(set),
        Err(faults) => panic!("{}", faults[0]),
    };
    let mut evaluator = Evaluator::new();
    let decision = evaluator.decide(&set, facts);
    assert_eq!(
        evaluator.decide_uncached(&set, facts),
        decision,
        "the machine is as good as new after an error"
    );
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    decision
}

/// The verdict and the rule on neutral facts.
fn decided(rego: String) -> (Verdict, String) {
    let decision = decided_on(rego, &Facts::default());
    (decision.verdict, decision.rule().to_owned())
}

fn assert_denied_by(rule: &str, rego: String) {
    assert_eq!(decided(rego.clone()), (Verdict::Deny, rule.to_owned()), "{rego}");
}
