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
use crate::output::{self, brief, cell};

/// How it came out the second time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Replayed {
    pub(super) decision: String,
    /// Whose sidecar recorded it.
    pub(super) agent: String,
    /// The log with the record.
    pub(super) log: String,
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
    let recorded = find(&admin, verb).await?;
    let decision = &recorded.decision;
    let key = verb.auditor_key.as_deref().map(keygen::read).transpose()?;
    let opened = open(decision, key.as_deref())?;
    let replayed = match asked(decision) {
        false => unasked(&recorded),
        true => replay(&recorded, &then(&admin, decision).await?, opened)?,
    };
    if globals.json() {
        output::json(&replayed);
    } else {
        print(&replayed, decision);
    }
    Ok(match replayed.same {
        Some(false) => ExitCode::from(Exit::Failed as u8),
        Some(true) | None => ExitCode::SUCCESS,
    })
}

/// Records that one decision's id finds: itself and its end. More are of others who use the id, and the first few show that.
const MOST_FOUND: usize = 10;

/// The record of a decision, and where it stands.
struct Recorded {
    agent: String,
    log: String,
    seq: u64,
    decision: Decision,
}

impl Recorded {
    fn of(mut item: Value) -> Option<Self> {
        let record: Record = serde_json::from_value(item["record"].take()).ok()?;
        let Event::Decision(decision) = record.event else {
            return None;
        };
        Some(Self {
            agent: cell(&item["agent"]),
            log: cell(&item["log"]),
            seq: record.seq,
            decision: *decision,
        })
    }

    /// Where it stands and what it says, in a line.
    fn line(&self) -> String {
        let (agent, decision) = (brief(&self.agent), &self.decision);
        let outcome = words(&recorded(decision));
        format!("log {}, record {}, of {agent}: {outcome}", brief(&self.log), self.seq)
    }
}

/// The record of the decision: the only one, or the one that was chosen.
async fn find(admin: &Admin, verb: &Replay) -> Result<Recorded, Failure> {
    let wanted = Wanted {
        decision: Some(verb.decision.to_string()),
        ..Wanted::default()
    };
    let mut items = Vec::new();
    match &verb.dir {
        Some(dir) => items = files::found(dir, &wanted, MOST_FOUND)?,
        None => {
            let searched = records::found(admin, &wanted, MOST_FOUND, |item| items.push(item.clone()));
            searched.await?.note();
        }
    }
    chosen(items.into_iter().filter_map(Recorded::of).collect(), verb)
}

/// The record that is meant. Which of several is true is not for a replay to say: an id is of one decision.
fn chosen(mut all: Vec<Recorded>, verb: &Replay) -> Result<Recorded, Failure> {
    let wanted = |recorded: &Recorded| verb.log.as_ref().is_none_or(|log| *log == recorded.log);
    let all_lines: Vec<String> = all.iter().map(Recorded::line).collect();
    all.retain(wanted);
    match (all.pop(), all.len()) {
        (Some(one), 0) => Ok(one),
        (Some(_), _) => {
            let what = format!("decision {} is recorded more than once", verb.decision);
            let mut failure = Failure::new(Exit::Usage, what);
            failure.why = all_lines;
            Err(failure.next("name one of these logs with --log; `aip audit verify` says what is wrong with them"))
        }
        (None, _) => {
            let what = format!("decision {} is not recorded", verb.decision);
            let failure = Failure::new(Exit::NotFound, what);
            Err(match all_lines.is_empty() {
                true => failure
                    .why("there is no record of it here (yet)")
                    .next("a sidecar's newest records come up within seconds; `aip audit query` lists what is there"),
                false => Failure {
                    why: all_lines,
                    ..failure
                }
                .next("name one of these logs with --log"),
            })
        }
    }
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

fn unasked(of: &Recorded) -> Replayed {
    Replayed {
        decision: of.decision.id.to_string(),
        agent: of.agent.clone(),
        log: of.log.clone(),
        recorded: recorded(&of.decision),
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
fn replay(of: &Recorded, then: &Then, opened: Option<Value>) -> Result<Replayed, Failure> {
    let decision = &of.decision;
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
        agent: of.agent.clone(),
        log: of.log.clone(),
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

/// An outcome in words, which a record may have made as long as it likes.
fn words(outcome: &Outcome) -> String {
    let verdict = brief(&outcome.verdict);
    match outcome.rule.as_str() {
        "" => verdict,
        rule => format!("{verdict} by {}", brief(rule)),
    }
}

fn print(replayed: &Replayed, decision: &Decision) {
    let agent = replayed.agent.rsplit('/').next().unwrap_or_default();
    output::line(format!(
        "record     of {}, in log {}",
        brief(agent),
        brief(&replayed.log)
    ));
    output::line(format!("recorded   {}", words(&replayed.recorded)));
    let Some(again) = &replayed.replayed else {
        output::line(format!(
            "replayed   - (refused before policy was asked: {})",
            brief(&decision.reason)
        ));
        return;
    };
    output::line(format!("replayed   {}", words(again)));
    if replayed.opened {
        output::line("opened     the facts that were sealed");
    }
    if !replayed.not_kept.is_empty() {
        output::line(format!("not kept   {}", brief(&replayed.not_kept.join(", "))));
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

    fn decision(kept: Value, dropped: &[&str], verdict: &str, rule: &str) -> Recorded {
        let id = aip_api::id::DecisionId::fresh();
        let text = json!({
            "id": id, "direction": "inbound", "source": {"id": "a"}, "destination": {"id": "b"}, "method": "POST",
            "path": "/", "protocol": "mcp", "verdict": verdict, "rule": rule, "mesh_revision": 1, "revision": 1,
            "policies": [{"name": "books", "revision": 3}],
            "facts": {"kept": kept, "dropped": dropped},
        });
        Recorded {
            agent: "b".into(),
            log: "first".into(),
            seq: 4,
            decision: serde_json::from_value(text).unwrap(),
        }
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
        let held = &mut decision.decision;
        let sealed = seal::seal(&public, &held.id.to_string(), &sensitive).unwrap();
        held.facts.sealed = Some(sealed);
        assert!(open(held, Some(&seal::generate().0)).is_err());
        assert_eq!(open(held, None).unwrap(), None);
        let opened = open(held, Some(&private)).unwrap();
        let replayed = replay(&decision, &then(), opened).unwrap();
        assert!(
            replayed.same == Some(true) && replayed.opened && replayed.not_kept.is_empty(),
            "{replayed:?}"
        );
    }

    #[test]
    fn what_policy_never_saw_is_not_replayed() {
        let mut decision = decision(json!({}), &[], "deny", "");
        decision.decision.policies.clear();
        assert!(!asked(&decision.decision));
        assert_eq!(unasked(&decision).same, None);
    }

    #[test]
    fn of_several_records_of_one_id_the_reader_chooses() {
        let all = || {
            let other = |log: &str, verdict: &str| Recorded {
                log: log.into(),
                agent: "spiffe://aip.internal/agent/c".into(),
                ..decision(json!({}), &[], verdict, "a\nrecorded   allow")
            };
            vec![decision(json!({}), &[], "deny", "large"), other("second", "allow")]
        };
        let verb = |log: Option<&str>| Replay {
            decision: aip_api::id::DecisionId::fresh(),
            dir: None,
            log: log.map(str::to_owned),
            auditor_key: None,
        };
        let refused = chosen(all(), &verb(None)).err().unwrap();
        assert_eq!(refused.exit, Exit::Usage);
        assert_eq!(refused.why[0], "log first, record 4, of b: deny by large");
        assert!(
            refused.why[1].ends_with("/c: allow by a\\u{a}recorded   allow"),
            "{refused}"
        );
        assert_eq!(chosen(all(), &verb(Some("second"))).unwrap().decision.verdict, "allow");
        let none = chosen(all(), &verb(Some("third"))).err().unwrap();
        assert!(none.exit == Exit::NotFound && none.why.len() == 2, "{none}");
        let twice = [all(), all()].into_iter().flatten().collect();
        assert_eq!(chosen(twice, &verb(Some("first"))).err().unwrap().exit, Exit::Usage);
    }
}
