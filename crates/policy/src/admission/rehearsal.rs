//! A policy is run before it is admitted: one that fails on whatever it is asked would deny every request.

use std::sync::Arc;

use crate::Evaluator;
use crate::facts::{AttestationFacts, AttestationStatus, Direction, Facts, PeerFacts, PeerKind, ProtocolFacts};
use crate::set::PolicySet;
use crate::source::{Diagnostic, PolicySource};
use crate::verdict::{Rule, builtin};

/// Asks the set about a hop with nothing in it and about an ordinary one, at both ends. What ends at a limit, or in a rule
/// that isn't one, is a fault; so is an error, if both hops of an end get one. An error on one of them is a warning: it
/// denies, which may be meant.
pub(super) fn run(set: &Arc<PolicySet>, source: &PolicySource) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
    let file = format!("{}.rego", source.name);
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    // What the mesh configures isn't known here, and a reason may well name it.
    let reads_mesh = source.rego.contains("mesh");
    let mut evaluator = Evaluator::new();
    for direction in [Direction::Inbound, Direction::Outbound] {
        let mut errors = Vec::new();
        let hops = [
            ("a request with nothing in it", neutral(direction)),
            ("an ordinary request", ordinary(direction)),
        ];
        let asked = hops.len();
        for (what, facts) in hops {
            let decision = evaluator.decide_uncached(set, &facts);
            let Some(rule) = decision.rules.iter().find(|rule| fails(rule)) else {
                continue;
            };
            let said = if rule.verdict.in_this_version() {
                rule.rule.as_str()
            } else {
                builtin::UNSUPPORTED_VERDICT
            };
            let message = format!("{what} ({}) is denied as `{said}`: {}", direction.as_str(), rule.reason);
            if rule.rule == builtin::EVALUATION_ERROR {
                errors.push(message);
            } else {
                faults.push(Diagnostic::new(&*file, "rehearsal", message));
            }
        }
        let always = errors.len() == asked && !reads_mesh;
        let (reason, to) = if always {
            ("rehearsal", &mut faults)
        } else {
            ("rehearsal_error", &mut warnings)
        };
        to.extend(
            errors
                .into_iter()
                .map(|message| Diagnostic::new(&*file, reason, message)),
        );
    }
    (faults, warnings)
}

/// Whether the rule denies because of a mistake, and not because it or nothing says so.
fn fails(rule: &Rule) -> bool {
    let by_us = rule.policy.is_empty() && rule.rule != builtin::NO_RULE;
    let misshapen = [builtin::MALFORMED_RULE, builtin::UNSUPPORTED_VERDICT].contains(&rule.rule.as_str());
    by_us || misshapen || !rule.verdict.in_this_version()
}

fn neutral(direction: Direction) -> Facts {
    Facts {
        direction,
        ..Facts::default()
    }
}

/// A tool call between two agents.
fn ordinary(direction: Direction) -> Facts {
    let agent = |name: &str| {
        Arc::new(PeerFacts {
            kind: PeerKind::Agent,
            id: format!("spiffe://aip.internal/agent/{name}"),
            name: name.to_owned(),
            trust_domain: "aip.internal".to_owned(),
            owner: "owner".to_owned(),
            attestation: AttestationFacts {
                status: AttestationStatus::Valid,
                code: "0".repeat(64),
                config: "0".repeat(64),
                ..AttestationFacts::default()
            }
            .into(),
            ..PeerFacts::default()
        })
    };
    let mut facts = Facts {
        direction,
        source: agent("caller"),
        destination: agent("callee"),
        protocol: ProtocolFacts {
            name: "mcp".to_owned(),
            version: "2025-06-18".to_owned(),
            method: "tools/call".into(),
            tool: "tool".into(),
            ..ProtocolFacts::default()
        },
        // 2026-01-05T12:00:00Z, a Monday.
        time: 1_767_614_400,
        ..Facts::default()
    };
    facts.request.method = "POST".to_owned();
    facts.request.raw_path = "/mcp".to_owned();
    facts.request.path = vec!["mcp".to_owned()];
    facts.request.headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    facts.trace.id = "0".repeat(32);
    facts.trace.hops = 1;
    facts
}
