//! One version of the world. Built off to the side, swapped in whole; a request takes one `Arc` and sees nothing else.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use aip_api::resource::{Agent, Attach, Endpoint, MeshConfig, Policy, Reputation, Traffic};
use aip_api::{AgentName, SpiffeId};
use aip_policy::{PolicySet, PolicySource};

/// Compiled sets that are kept: one per pair of attachments, and an agent has few. Past it the memo starts over.
const MAX_SETS: usize = 256;

/// A policy and the revision that it was pushed at.
#[derive(Debug, Clone)]
pub struct AttachedPolicy {
    /// The store revision.
    pub revision: u64,
    /// The policy.
    pub policy: Arc<Policy>,
}

/// One version of everything that decides about a request.
#[derive(Debug)]
pub struct Snapshot {
    /// The store revision that it reflects.
    pub revision: u64,
    /// Who this sidecar is.
    pub id: SpiffeId,
    /// Mesh-wide settings, and their revision.
    pub mesh: Arc<MeshConfig>,
    /// The revision of `mesh`: policies read it as data.
    pub mesh_revision: u64,
    /// This sidecar's agent.
    pub me: Arc<Agent>,
    /// The limits of this sidecar's agent.
    pub traffic: Arc<Traffic>,
    /// Agents that this sidecar talks to, itself among them.
    pub agents: HashMap<AgentName, Arc<Agent>>,
    /// How they behaved so far: those of them whose reputation is held.
    pub reputations: HashMap<AgentName, Arc<Reputation>>,
    /// Where their sidecars serve.
    pub endpoints: HashMap<AgentName, Arc<[Endpoint]>>,
    /// The policies that may take part, by name.
    pub policies: BTreeMap<String, AttachedPolicy>,
    /// Policies that were pushed and can't be used here, and where they are attached: hops that they cover are denied.
    pub unusable: Vec<(String, Attach)>,
    /// Compiled sets; handed on from snapshot to snapshot.
    pub sets: Arc<PolicySets>,
}

/// Which policies, at which revisions, over which mesh data.
type SetKey = (u64, Vec<(String, u64)>);

/// Policies that can't be compiled together; every hop that needs them is denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the attached policies can't be compiled together: {0}")]
pub struct SetError(pub String);

/// Compiled policy sets, by what they were compiled from.
#[derive(Debug, Default)]
pub struct PolicySets(Mutex<HashMap<SetKey, Result<Arc<PolicySet>, SetError>>>);

impl PolicySets {
    /// Lets go of what no request will ask for again, now that the world is this: a policy that changes every minute would
    /// otherwise leave a program behind each time. Who decides by the world before has what it needs, or compiles it again.
    pub fn let_go(&self, now: &Snapshot) {
        let stands = |(name, revision): &(String, u64)| now.policies.get(name).is_some_and(|p| p.revision == *revision);
        let mut sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sets.retain(|(mesh, policies), _| *mesh == now.mesh_revision && policies.iter().all(stands));
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl Snapshot {
    /// The agent of this name, where it is held.
    pub fn agent(&self, name: &AgentName) -> Option<&Arc<Agent>> {
        self.agents.get(name)
    }

    /// How this agent behaved so far, where that is held.
    pub fn reputation(&self, name: &AgentName) -> Option<&Arc<Reputation>> {
        self.reputations.get(name)
    }

    /// Where the sidecars of this agent serve.
    pub fn endpoints(&self, name: &AgentName) -> &[Endpoint] {
        self.endpoints.get(name).map_or(&[], |e| e)
    }

    /// Where one of them serves, by address.
    pub fn addresses(&self, name: &AgentName) -> impl Iterator<Item = SocketAddr> {
        self.endpoints(name).iter().map(|e| e.address)
    }

    /// The policies of a hop between `source` and `destination`, by name: the mesh's, and those attached to either.
    pub fn attached<'a>(
        &'a self,
        source: Option<&'a Agent>,
        destination: Option<&'a Agent>,
    ) -> impl Iterator<Item = &'a AttachedPolicy> {
        let hop = move |attach: &Attach| is_attached(attach, source) || is_attached(attach, destination);
        self.policies.values().filter(move |p| hop(&p.policy.attach))
    }

    /// The compiled policies of a hop between `source` and `destination`: the mesh's, and those attached to either.
    /// `None` stands for a party outside the mesh.
    ///
    /// # Errors
    /// They can't be compiled together: deny.
    pub fn policies_for(
        &self,
        source: Option<&Agent>,
        destination: Option<&Agent>,
    ) -> Result<Arc<PolicySet>, SetError> {
        let hop = |attach: &Attach| is_attached(attach, source) || is_attached(attach, destination);
        if let Some((name, _)) = self.unusable.iter().find(|(_, attach)| hop(attach)) {
            return Err(SetError(format!(
                "{name} is attached and can't be used by this sidecar"
            )));
        }
        let taking_part = || self.attached(source, destination);
        let names = taking_part().map(|p| (p.policy.name.to_string(), p.revision)).collect();
        let key: SetKey = (self.mesh_revision, names);
        let mut sets = self.sets.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = sets.get(&key) {
            return known.clone();
        }
        if sets.len() >= MAX_SETS {
            sets.clear();
        }
        let sources: Vec<PolicySource> = taking_part().map(|p| source_of(&p.policy)).collect();
        let compiled = self.compile(&sources);
        sets.insert(key, compiled.clone());
        compiled
    }

    fn compile(&self, sources: &[PolicySource]) -> Result<Arc<PolicySet>, SetError> {
        if sources.is_empty() {
            return Ok(Arc::new(PolicySet::empty()));
        }
        let data = serde_json::to_value(&*self.mesh).map_err(|e| SetError(e.to_string()))?;
        PolicySet::compile(sources, &data).map(Arc::new).map_err(|diagnostics| {
            let all: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
            SetError(all.join("; "))
        })
    }
}

fn is_attached(attach: &Attach, agent: Option<&Agent>) -> bool {
    match agent {
        Some(agent) => attach.covers(agent),
        None => *attach == Attach::Mesh,
    }
}

/// The policy as the compiler takes it. Tests ran at admission and don't travel into programs.
pub fn source_of(policy: &Policy) -> PolicySource {
    PolicySource {
        name: policy.name.to_string(),
        rego: policy.rego.clone(),
        data: policy.data.clone(),
        tests: None,
    }
}
