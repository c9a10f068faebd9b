//! What a name leads to: each alias to one agent; and a name that was removed, in a `prod` mesh, to what two people had
//! made of it.

use std::collections::BTreeSet;

use aip_api::AgentName;
use aip_api::problem::FieldError;
use aip_api::resource::{Agent, Mode};
use serde::{Deserialize, Serialize};

use super::{Draft, Registry, keys};
use crate::refusal::Refusal;
use crate::store::Expect;

/// Whose an alias is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct AliasRecord {
    agent: AgentName,
}

fn rows(aliases: &[String]) -> BTreeSet<String> {
    aliases.iter().map(|alias| keys::alias(alias)).collect()
}

/// What one person may register: nothing by which policies or people tell it from others.
fn is_bare(agent: &Agent) -> bool {
    let bare = Agent {
        generation: agent.generation,
        ..Agent::new(agent.name.clone())
    };
    *agent == bare
}

/// The fields that two people change, each with whether the two agents differ in it.
fn told_apart(one: &Agent, other: &Agent) -> [(&'static str, bool); 8] {
    // Every field is named, so that none that comes is forgotten here. How its server is spoken to is one person's to say;
    // the generation is the control plane's.
    let Agent {
        name: _,
        protocol: _,
        host: _,
        generation: _,
        mode,
        allow_ambiguous_paths,
        labels,
        owner,
        capabilities,
        aliases,
        lease,
        manifest,
    } = other;
    [
        ("mode", one.mode != *mode),
        (
            "allow_ambiguous_paths",
            one.allow_ambiguous_paths != *allow_ambiguous_paths,
        ),
        ("labels", one.labels != *labels),
        ("owner", one.owner != *owner),
        ("capabilities", one.capabilities != *capabilities),
        ("aliases", one.aliases != *aliases),
        ("lease", one.lease != *lease),
        ("manifest", one.manifest != *manifest),
    ]
}

impl Registry {
    /// Adds the rows by which no two agents have one alias, from those of `before` to those of `after`.
    ///
    /// # Errors
    /// One of them is another agent's.
    pub(super) async fn alias_ops(
        &self,
        mut draft: Draft,
        agent: &AgentName,
        before: &[String],
        after: &[String],
    ) -> Result<Draft, Refusal> {
        self.aliases_free(agent, after).await?;
        let (before, after) = (rows(before), rows(after));
        for key in before.union(&after) {
            let wanted = after.contains(key);
            let held = self.record::<AliasRecord>(key.clone()).await?;
            draft = match held {
                // Taken since it was free: the transaction fails, and its next try says whose it is.
                Some(held) if held.value.agent != *agent && wanted => draft.check(key, Expect::Absent),
                Some(held) if held.value.agent != *agent => draft,
                Some(held) if wanted => draft.check(key, Expect::At(held.revision)),
                Some(held) => draft.delete(key, Expect::At(held.revision)),
                None if wanted => draft.put(key, &AliasRecord { agent: agent.clone() }, Expect::Absent),
                None => draft,
            };
        }
        Ok(draft)
    }

    /// Whether each alias is nobody else's.
    ///
    /// # Errors
    /// One is.
    pub(super) async fn aliases_free(&self, agent: &AgentName, aliases: &[String]) -> Result<(), Refusal> {
        let mut mistakes = Vec::new();
        for (i, alias) in aliases.iter().enumerate() {
            let held = self.record::<AliasRecord>(keys::alias(alias)).await?;
            if let Some(other) = held.map(|h| h.value.agent).filter(|other| other != agent) {
                let message = format!("{alias} leads to agent {other}, and can't lead to two");
                mistakes.push(FieldError::new(format!("aliases[{i}]"), message));
            }
        }
        if mistakes.is_empty() {
            return Ok(());
        }
        Err(Refusal::invalid(mistakes))
    }

    /// What is registered where one person asks for `agent` in a `prod` mesh: a new name with nothing that policy or
    /// people go by; a name that was removed as it was.
    ///
    /// # Errors
    /// It asks for more, or for something else.
    pub(super) async fn as_one_may(&self, agent: Agent) -> Result<Agent, Refusal> {
        if !self.needs_second_person() {
            return Ok(agent);
        }
        let held = self.record::<Agent>(keys::former(&agent.name)).await?;
        let former = held.map_or_else(|| Agent::new(agent.name.clone()), |held| held.value);
        let asked = Agent {
            generation: former.generation,
            ..agent
        };
        if is_bare(&asked) || asked == former {
            return Ok(former);
        }
        let message = "one person registers an agent of a prod mesh with no more than its name, or as it was when it \
                       was removed; change it afterwards, which a second person approves";
        let other = told_apart(&asked, &former);
        let mistakes = other.iter().filter(|(_, other)| *other);
        let mistakes: Vec<_> = mistakes.map(|(field, _)| FieldError::new(*field, message)).collect();
        if mistakes.is_empty() {
            // How its server is spoken to is one person's to say.
            return Ok(asked);
        }
        Err(Refusal::invalid(mistakes))
    }

    /// Adds what is remembered of an agent that is removed.
    pub(super) fn remember(&self, draft: Draft, agent: &Agent) -> Draft {
        // What loosened it does not come back by one person.
        let strict = Agent {
            mode: Mode::Enforce,
            allow_ambiguous_paths: false,
            ..agent.clone()
        };
        if !self.needs_second_person() || is_bare(&strict) {
            return draft;
        }
        draft.put(keys::former(&agent.name), &strict, Expect::Any)
    }
}
