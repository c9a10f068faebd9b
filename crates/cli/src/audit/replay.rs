//! `aip audit replay`: a recorded decision, decided again with the policies and settings that it names.

use std::process::ExitCode;
use std::sync::Arc;

use aip_api::resource::{MeshConfig, Policy};
use aip_audit::record::{Decision, Event, Record};
use aip_audit::seal;
use aip_policy::{Evaluator, Facts, PolicySet, PolicySource};
use serde::Serialize;
use serde_json::Value;

use super::{Replay, Wanted, files, keygen, records};
use crate::Globals;
use crate::client::{Admin, encoded};
use crate::exit::{Exit, Failure};
use crate::output;

/// How it came out the second time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Replayed {
    pub(super) decision: String,
    /// As recorded: verdict and rule.
    pub(super) recorded: Outcome,
    /// As decided now; none where policy had not been asked.
    pub(super) replayed: Option<Outcome>,
    /// Whether both are equal; none where policy had not been asked.
    pub(super) same: Option<bool>,
    /// Facts that policy read and that are not here: the replay was made without them.
    pub(super) not_kept: Vec<String>,
    /// Facts that were sealed and could be opened.
    pub(super) opened: bool,
}

/// A verdict and the rule that gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Outcome {
    pub(super) verdict: String,
    pub(super) rule: String,
}

/// What of then is needed.
pub(super) struct Then {
    pub(super) policies: Vec<PolicySource>,
    pub(super) mesh: Value,
}

pub(super) async fn perform(globals: &Globals, verb: &Replay) -> anyhow::Result<ExitCode> {
    let admin = Admin::open(globals)?;
    let decision = find(&admin, verb).await?;
    let key = verb.auditor_key.as_deref().map(keygen::read).transpose()?;
    let opened = open(&decision, key.as_deref())?;
    let replayed = match asked(&decision) {
        false => unasked(&decision),
        true => replay(&decision, &then(&admin, &decision).await?, opened)?,
    };
    if globals.json() {
        output::json(&replayed);
    } else {
        print(&replayed, &decision);
    }
    Ok(match replayed.same {
        Some(false) => ExitCode::from(Exit::Failed as u8),
        Some(true) | None => ExitCode::SUCCESS,
    })
}

/// Records that one decision's id finds: itself and its end, with room to spare.
const MOST_FOUND: usize = 10;

/// The record of the decision.
async fn find(admin: &Admin, verb: &Replay) -> Result<Decision, Failure> {
    let wanted = Wanted {
        decision: Some(verb.decision.to_string()),
        ..Wanted::default()
    };
    let mut items = Vec::new();
    match &verb.dir {
        Some(dir) => items = files::found(dir, &wanted, MOST_FOUND)?,
        None => {
            records::found(admin, &wanted, MOST_FOUND, |item| items.push(item.clone())).await?;
        }
    }
    let decision = items.into_iter().find_map(|mut item| {
        let record: Record = serde_json::from_value(item["record"].take()).ok()?;
        match record.event {
            Event::Decision(decision) => Some(*decision),
            _ => None,
        }
    });
    decision.ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("decision {} is not recorded", verb.decision))
            .why("there is no record of it here (yet)")
            .next("a sidecar's newest records come up within seconds; `aip audit query` lists what is there")
    })
}

/// Policy was asked: a request that was refused before names no policies.
fn asked(decision: &Decision) -> bool {
    !decision.policies.is_empty() || !decision.rule.is_empty()
}

fn recorded(decision: &Decision) -> Outcome {
    Outcome {
        verdict: decision.verdict.clone(),
        rule: decision.rule.clone(),
    }
}

fn unasked(decision: &Decision) -> Replayed {
    Replayed {
        decision: decision.id.to_string(),
        recorded: recorded(decision),
        replayed: None,
        same: None,
        not_kept: Vec::new(),
        opened: false,
    }
}

/// The policies and settings that the record names, at the revisions of then.
async fn then(admin: &Admin, decision: &Decision) -> Result<Then, Failure> {
    let gone = |what: String| {
        Failure::new(Exit::NotFound, "the decision can't be decided again")
            .why(format!("{what} is not kept any more"))
            .next("revisions are kept as long as records that name them")
    };
    let mut policies = Vec::new();
    for policy in &decision.policies {
        let held = revision(
            admin,
            &format!("/v1/policies/{}", encoded(&policy.name)),
            policy.revision,
        )
        .await?;
        let held = held.ok_or_else(|| gone(format!("policy {} of revision {}", policy.name, policy.revision)))?;
        let policy: Policy = read(&held, "a policy")?;
        policies.push(PolicySource {
            name: policy.name.to_string(),
            rego: policy.rego,
            data: policy.data,
            tests: None,
        });
    }
    let held = revision(admin, "/v1/mesh-config", decision.mesh_revision).await?;
    let held = held.ok_or_else(|| gone(format!("the mesh's settings of revision {}", decision.mesh_revision)))?;
    let mesh: MeshConfig = read(&held, "the mesh's settings")?;
    // As sidecars give it to policies: with every default written out.
    let mesh = serde_json::to_value(&mesh).map_err(|e| unreadable("the mesh's settings", &e))?;
    Ok(Then { policies, mesh })
}

/// A document as it was at a revision: the one that is in force, or one that is kept.
async fn revision(admin: &Admin, path: &str, revision: u64) -> Result<Option<Value>, Failure> {
    let current = admin.find(path).await?;
    if let Some(current) = current.filter(|held| held["revision"].as_u64() == Some(revision)) {
        return Ok(Some(current["resource"].clone()));
    }
    let kept = admin.find(&format!("{path}/revisions/{revision}")).await?;
    Ok(kept.map(|held| held["resource"].clone()))
}

fn read<T: serde::de::DeserializeOwned>(document: &Value, what: &str) -> Result<T, Failure> {
    serde_json::from_value(document.clone()).map_err(|e| unreadable(what, &e))
}

fn unreadable(what: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("{what} of then can't be read")).why(why.to_string())
}

/// The sealed facts, opened.
fn open(decision: &Decision, key: Option<&[u8; seal::KEY_BYTES]>) -> Result<Option<Value>, Failure> {
    let (Some(sealed), Some(key)) = (&decision.facts.sealed, key) else {
        return Ok(None);
    };
    seal::open(key, &decision.id.to_string(), sealed)
        .map(Some)
        .map_err(|e| {
            Failure::new(Exit::NotAuthorized, "the sealed facts can't be opened")
                .why(e.to_string())
                .next(format!("they were sealed to the key {}", sealed.key))
        })
}

/// Decides again. `opened` are the facts that were sealed.
pub(super) fn replay(decision: &Decision, then: &Then, opened: Option<Value>) -> Result<Replayed, Failure> {
    let wrong = |why: String| Failure::new(Exit::Failed, "the decision can't be decided again").why(why);
    let set = if then.policies.is_empty() {
        PolicySet::empty()
    } else {
        PolicySet::compile(&then.policies, &then.mesh).map_err(|diagnostics| {
            let all: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
            wrong(format!("the policies of then do not compile: {}", all.join("; ")))
        })?
    };
    let mut document = match decision.facts.kept.as_ref() {
        Value::Null => Value::Object(serde_json::Map::new()),
        kept => kept.clone(),
    };
    let is_open = opened.is_some();
    if let Some(opened) = opened {
        merge(&mut document, opened);
    }
    let facts = Facts::from_json(document).map_err(|e| wrong(e.to_string()))?;
    let decided = Evaluator::new().decide_uncached(&Arc::new(set), &facts);
    let replayed = Outcome {
        verdict: decided.verdict.as_str().to_owned(),
        rule: decided.rule().to_owned(),
    };
    let recorded = recorded(decision);
    Ok(Replayed {
        decision: decision.id.to_string(),
        same: Some(replayed == recorded),
        recorded,
        replayed: Some(replayed),
        not_kept: if is_open {
            Vec::new()
        } else {
            decision.facts.dropped.clone()
        },
        opened: is_open,
    })
}

/// Adds what `more` has and `document` has not.
fn merge(document: &mut Value, more: Value) {
    match (document, more) {
        (Value::Object(held), Value::Object(more)) => {
            for (key, value) in more {
                match held.get_mut(&key) {
                    Some(held) => merge(held, value),
                    None => {
                        held.insert(key, value);
                    }
                }
            }
        }
        (held @ Value::Null, more) => *held = more,
        _ => {}
    }
}

fn print(replayed: &Replayed, decision: &Decision) {
    let words = |outcome: &Outcome| match outcome.rule.as_str() {
        "" => outcome.verdict.clone(),
        rule => format!("{} by {rule}", outcome.verdict),
    };
    output::line(format!("recorded   {}", words(&replayed.recorded)));
    let Some(again) = &replayed.replayed else {
        output::line(format!(
            "replayed   - (refused before policy was asked: {})",
            decision.reason
        ));
        return;
    };
    output::line(format!("replayed   {}", words(again)));
    if replayed.opened {
        output::line("opened     the facts that were sealed");
    }
    if !replayed.not_kept.is_empty() {
        output::line(format!("not kept   {}", replayed.not_kept.join(", ")));
    }
    output::line(match (replayed.same == Some(true), replayed.not_kept.is_empty()) {
        (true, true) => "the same",
        (true, false) => "the same, without the facts that were not kept",
        (false, true) => "NOT THE SAME",
        (false, false) => "not the same; the facts that were not kept may be why",
    });
}

#[cfg(test)]
mod tests {
    use aip_audit::record;
    use serde_json::json;

    use super::*;

    fn then() -> Then {
        let rego = "package aip.policy.books\n\
            rules contains {\"rule\": \"calls\", \"verdict\": \"allow\", \"reason\": \"ok\"} if input.request.method == \"POST\"\n\
            rules contains {\"rule\": \"large\", \"verdict\": \"deny\", \"reason\": \"too much\"} if input.protocol.arguments.amount > 100\n";
        let policies = vec![PolicySource {
            name: "books".into(),
            rego: rego.into(),
            data: Value::Null,
            tests: None,
        }];
        Then {
            policies,
            mesh: json!({}),
        }
    }

    fn decision(kept: Value, dropped: &[&str], verdict: &str, rule: &str) -> Decision {
        let id = aip_api::id::DecisionId::fresh();
        let text = json!({
            "id": id, "direction": "inbound", "source": {"id": "a"}, "destination": {"id": "b"}, "method": "POST",
            "path": "/", "protocol": "mcp", "verdict": verdict, "rule": rule, "mesh_revision": 1, "revision": 1,
            "policies": [{"name": "books", "revision": 3}],
            "facts": {"kept": kept, "dropped": dropped},
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn what_was_kept_decides_alike_and_what_was_not_is_said() {
        let kept = json!({"request": {"method": "POST"}, "protocol": {"arguments": {"amount": 500}}});
        let same = replay(&decision(kept.clone(), &[], "deny", "large"), &then(), None).unwrap();
        assert!(same.same == Some(true) && same.not_kept.is_empty(), "{same:?}");
        let other = replay(&decision(kept, &[], "allow", "calls"), &then(), None).unwrap();
        assert_eq!(other.same, Some(false), "a record that says otherwise is found out");
        let without = json!({"request": {"method": "POST"}});
        let unsure = replay(
            &decision(without, &["protocol.arguments.amount"], "deny", "large"),
            &then(),
            None,
        );
        let unsure = unsure.unwrap();
        assert_eq!(
            (unsure.same, unsure.not_kept.as_slice()),
            (Some(false), &["protocol.arguments.amount".to_owned()][..])
        );
    }

    #[test]
    fn sealed_facts_are_opened_by_the_auditor_alone() {
        let without = json!({"request": {"method": "POST"}});
        let mut decision = decision(without, &["protocol.arguments.amount"], "deny", "large");
        let (private, public) = seal::generate();
        let sensitive = json!({"protocol": {"arguments": {"amount": 500}}});
        let sealed = seal::seal(&public, &decision.id.to_string(), &sensitive).unwrap();
        decision.facts = record::Facts {
            sealed: Some(sealed),
            ..decision.facts
        };
        assert!(open(&decision, Some(&seal::generate().0)).is_err());
        assert_eq!(open(&decision, None).unwrap(), None);
        let opened = open(&decision, Some(&private)).unwrap();
        let replayed = replay(&decision, &then(), opened).unwrap();
        assert!(
            replayed.same == Some(true) && replayed.opened && replayed.not_kept.is_empty(),
            "{replayed:?}"
        );
    }

    #[test]
    fn what_policy_never_saw_is_not_replayed() {
        let mut decision = decision(json!({}), &[], "deny", "");
        decision.policies.clear();
        assert!(!asked(&decision));
        assert_eq!(unasked(&decision).same, None);
    }
}
