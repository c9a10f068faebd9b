//! From what the program returned to a decision.

use std::sync::Arc;

use regorus::Value;

use crate::limits::{MAX_FIRED_RULES, MAX_REASON_BYTES, MAX_RULE_ID_BYTES};
use crate::obligations::Obligations;
use crate::verdict::{Decision, Rule, Verdict, builtin};

/// The decision for the set of `[policy, rule]` pairs that the entry collected.
pub(crate) fn decision(result: &Value, bundle: &Arc<str>) -> Decision {
    let Value::Set(fired) = result else {
        return Decision::refuse(bundle, builtin::EVALUATION_ERROR, "the policies gave no set of rules");
    };
    if fired.len() > MAX_FIRED_RULES {
        let reason = format!(
            "{} rules fired; one decision has at most {MAX_FIRED_RULES}",
            fired.len()
        );
        return Decision::refuse(bundle, builtin::TOO_MANY_RULES, reason);
    }
    let mut rules = Vec::with_capacity(fired.len());
    let mut obligations = Obligations::default();
    for entry in fired.iter() {
        let (rule, obliges) = rule_of(entry);
        rules.push(rule);
        obligations.join(obliges);
    }
    let Some(strictest) = rules.iter().map(|rule| rule.verdict).min() else {
        return Decision::refuse(bundle, builtin::NO_RULE, "no rule fired");
    };
    rules.retain(|rule| rule.verdict == strictest);
    rules.sort();
    Decision {
        verdict: strictest,
        rules,
        obligations,
        bundle: bundle.clone(),
        cached: false,
    }
}

/// One fired rule. What isn't a rule of ours is a deny by a rule of our own, which names the policy at fault.
fn rule_of(entry: &Value) -> (Rule, Obligations) {
    let pair = match entry {
        Value::Array(pair) => pair.as_slice(),
        _ => &[],
    };
    let (policy, object) = match pair {
        [Value::String(policy), object] => (policy.to_string(), object),
        _ => (String::new(), entry),
    };
    parse(&policy, object).unwrap_or_else(|(rule, reason)| {
        (
            Rule {
                rule: rule.to_owned(),
                policy,
                verdict: Verdict::Deny,
                reason: reason.to_owned(),
            },
            Obligations::default(),
        )
    })
}

type Fault = (&'static str, &'static str);

fn parse(policy: &str, object: &Value) -> Result<(Rule, Obligations), Fault> {
    let malformed = |reason: &'static str| (builtin::MALFORMED_RULE, reason);
    let Value::Object(fields) = object else {
        return Err(malformed("a rule is an object"));
    };
    let (mut rule, mut verdict, mut reason, mut obligations) = (None, None, None, None);
    for (key, value) in fields.iter() {
        let Value::String(key) = key else {
            return Err(malformed("the keys of a rule are strings"));
        };
        match &**key {
            "rule" => rule = text(value),
            "verdict" => verdict = text(value),
            "reason" => reason = text(value),
            "obligations" => obligations = Some(value),
            _ => {
                return Err(malformed(
                    "a rule has the keys rule, verdict, reason and obligations only",
                ));
            }
        }
    }
    let (Some(rule), Some(verdict), Some(reason)) = (rule, verdict, reason) else {
        return Err(malformed("a rule has the texts rule, verdict and reason"));
    };
    if rule.is_empty() || rule.len() > MAX_RULE_ID_BYTES || rule.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(malformed("a rule id is 1 to 128 printable ASCII characters"));
    }
    let Some(verdict) = Verdict::parse(verdict) else {
        return Err((
            builtin::UNSUPPORTED_VERDICT,
            "the policy gave a verdict that this version doesn't know",
        ));
    };
    let obligations = match obligations {
        None => Obligations::default(),
        Some(value) => parse_obligations(value)?,
    };
    if verdict == Verdict::Transform && obligations.redact.is_empty() && obligations.replace.is_empty() {
        return Err(malformed("a transform says what to redact or to replace"));
    }
    let rule = Rule {
        rule: rule.to_owned(),
        policy: policy.to_owned(),
        verdict,
        reason: cut(reason),
    };
    Ok((rule, obligations))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn parse_obligations(value: &Value) -> Result<Obligations, Fault> {
    let unreadable = (builtin::MALFORMED_RULE, "obligations that this version doesn't know");
    let json = serde_json::to_value(value).map_err(|_| unreadable)?;
    if !json.is_object() {
        return Err((builtin::MALFORMED_RULE, "obligations are an object"));
    }
    let obligations: Obligations = serde_json::from_value(json).map_err(|_| unreadable)?;
    match obligations.fault() {
        None => Ok(obligations),
        Some(fault) => Err((builtin::MALFORMED_RULE, fault)),
    }
}

/// The reason without control characters, which would break logs and headers, and not longer than allowed.
fn cut(reason: &str) -> String {
    let mut clean: String = reason
        .chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect();
    if clean.len() > MAX_REASON_BYTES {
        let end = (0..=MAX_REASON_BYTES - '…'.len_utf8())
            .rev()
            .find(|end| clean.is_char_boundary(*end));
        clean.truncate(end.unwrap_or(0));
        clean.push('…');
    }
    clean
}
