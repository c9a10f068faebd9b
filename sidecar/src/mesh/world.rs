//! Everything that the control plane has sent and this sidecar has taken: verified, read, kept by revision. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use aip_api::resource::{
    self, Agent, Attach, Endpoint, Kind, MeshConfig, MeshMode, Policy, Rejected, Reputation, ResourceId, Revocation,
    SigningKey, Traffic, TrustBundle,
};
use aip_api::{AgentName, SpiffeId, wire};
use aip_policy::PolicySet;
use aip_runtime::signed;
use aip_runtime::trust::{Trust, TrustState};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::snapshot::{AttachedPolicy, PolicySets, Snapshot, source_of};

/// Most resources that a sidecar holds: its peers, their endpoints and policies, and room for revocations.
const MAX_RESOURCES: usize = 100_000;
/// Most tombstones that a sidecar remembers, so that what was deleted does not come back by an older push. Only the
/// control plane itself could send one, and from a restored store it pushes nothing (what is newest is shown to it); so this many
/// of the latest will do, and a mesh in which agents come and go does not fill a sidecar that lives long.
const MAX_TOMBSTONES: usize = 4_096;

/// A resource that was taken.
#[derive(Debug, Clone)]
struct Held {
    /// Shared with whoever writes all of them to the disk, which is after every push.
    resource: Arc<wire::Resource>,
    document: Document,
}

#[derive(Debug, Clone)]
enum Document {
    MeshConfig(Arc<MeshConfig>),
    Agent(Arc<Agent>),
    Endpoint(Endpoint),
    Policy(Arc<Policy>),
    TrustBundle(TrustBundle),
    SigningKey(SigningKey),
    Revocation(Revocation),
    Traffic(Arc<Traffic>),
    Reputation(Arc<Reputation>),
    /// A policy that this version can't use, of which no good version is held: what it would have denied is not known,
    /// so every hop that it covers is denied.
    Unusable(Attach),
    /// A measurement is the control plane's business; a tombstone is nobody's.
    Nothing,
}

/// What every process begins with: who it is, and the roots and keys that came with its SVID.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Who this sidecar is.
    pub id: SpiffeId,
    /// DER roots.
    pub roots: Vec<Vec<u8>>,
    /// DER certificates of purpose keys.
    pub signing_keys: Vec<Vec<u8>>,
}

impl Origin {
    /// Trust in nothing but what came with the SVID.
    pub fn trust(&self) -> TrustState {
        let mut state = TrustState::new(self.id.trust_domain.clone(), self.roots.clone());
        for certificate in &self.signing_keys {
            if let Err(error) = state.add_key(certificate) {
                tracing::warn!(%error, "a signing key that came with the SVID is not certified");
            }
        }
        state
    }
}

/// What this sidecar holds.
#[derive(Debug)]
pub struct World {
    origin: Origin,
    trust: Trust,
    held: BTreeMap<ResourceId, Held>,
    revision: u64,
    // Of all that was ever taken, what has the highest revision, as it was signed: it may be let go of.
    newest: Option<Arc<wire::Resource>>,
    synced: BTreeSet<Kind>,
    sets: Arc<PolicySets>,
}

impl World {
    /// Holds nothing. `trust` is kept up to date from then on.
    pub fn new(origin: Origin, trust: Trust) -> Self {
        trust.store(Arc::new(origin.trust()));
        Self {
            origin,
            trust,
            held: BTreeMap::new(),
            revision: 0,
            newest: None,
            synced: BTreeSet::new(),
            sets: Arc::default(),
        }
    }

    /// Takes the roots and keys that came with a renewed SVID.
    pub fn renew(&mut self, origin: Origin) {
        self.origin = origin;
        self.rebuild_trust();
    }

    /// Takes a push: what could not be taken comes back, and the last good version of it stays.
    pub fn apply(&mut self, push: &wire::ConfigResponse, now: u64) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        // Keys first: what else the push holds may be signed by one of them.
        let trust_first = |r: &&wire::Resource| match Kind::from_wire(r.kind) {
            Some(Kind::TrustBundle) => 0,
            Some(Kind::SigningKey) => 1,
            _ => 2,
        };
        let mut resources: Vec<&wire::Resource> = push.resources.iter().collect();
        resources.sort_by_key(trust_first);
        for resource in resources {
            if let Err(error) = self.take(resource, now) {
                rejected.push(error);
            }
        }
        self.forget_tombstones();
        self.revision = self.revision.max(push.revision);
        self.synced
            .extend(push.synced.iter().filter_map(|k| Kind::from_wire(*k)));
        rejected
    }

    /// Takes one resource.
    ///
    /// # Errors
    /// Not signed, stale, malformed, invalid, or a policy that does not compile.
    pub fn take(&mut self, resource: &wire::Resource, now: u64) -> Result<(), Rejected> {
        let kind = signed::verify(&self.trust.load(), resource)?;
        let id = ResourceId::new(kind, resource.name.clone());
        let refuse = |reason, detail: &str| {
            Err(Rejected {
                id: id.clone(),
                revision: resource.revision,
                reason,
                detail: detail.to_owned(),
            })
        };
        let before = self.held.get(&id);
        let is_late = before.is_some_and(|held| held.resource.revision > resource.revision);
        // What takes trust away counts also after its tombstone: that came too early.
        let revokes = || before.is_some_and(|held| held.resource.deleted) && self.revokes(kind, resource, now);
        if is_late && !revokes() {
            return refuse("stale", "a later revision is held");
        }
        // What takes trust away, or denies, is never what there is no room for, whatever peers have filled it with.
        let trust = matches!(kind, Kind::TrustBundle | Kind::SigningKey | Kind::Revocation);
        let has_room = trust || self.is_indispensable(&id) || self.held.len() < MAX_RESOURCES;
        if before.is_none() && !has_room {
            return refuse("too_many", "this sidecar holds as many resources as it may");
        }
        let early = |held: &Held| matches!(&held.document, Document::Revocation(r) if r.expires() > now);
        if resource.deleted && before.is_some_and(early) {
            return refuse("revocation_in_force", "what it revokes has not expired");
        }
        let replaces_good = before.is_some_and(|held| matches!(held.document, Document::Policy(_)));
        let read = match resource.deleted {
            true => Ok(Document::Nothing),
            false => self.read(kind, resource),
        };
        match read {
            Ok(document) => self.hold(id, resource, document),
            Err(refused) => {
                if kind == Kind::Policy && !replaces_good {
                    self.hold(id, resource, Document::Unusable(attach_of(&resource.payload)));
                }
                return Err(refused);
            }
        }
        if trust {
            self.rebuild_trust();
        }
        Ok(())
    }

    /// Whether it decides what is let through here: a policy, the mesh's settings, the limits of all, and what this sidecar's own
    /// agent is, has and may. How many of these there are, the control plane's operators decide, and no agent.
    fn is_indispensable(&self, id: &ResourceId) -> bool {
        match id.kind {
            Kind::Policy | Kind::MeshConfig => true,
            Kind::Agent | Kind::Traffic | Kind::Reputation => {
                id.name == self.origin.id.agent.as_str() || id.name == Traffic::DEFAULT
            }
            _ => false,
        }
    }

    /// Past [`MAX_TOMBSTONES`] the older half is forgotten: half, so that it is rarely looked for.
    fn forget_tombstones(&mut self) {
        let tombstones = self.held.iter().filter(|(_, held)| held.resource.deleted);
        let mut revisions: Vec<u64> = tombstones.map(|(_, held)| held.resource.revision).collect();
        if revisions.len() <= MAX_TOMBSTONES {
            return;
        }
        revisions.sort_unstable();
        let kept_from = revisions[revisions.len() - MAX_TOMBSTONES / 2];
        self.held
            .retain(|_, held| !held.resource.deleted || held.resource.revision >= kept_from);
    }

    /// Drops where the sidecars of these agents serve.
    pub fn forget_endpoints(&mut self, of: &HashSet<AgentName>) {
        let is = |name: &str| of.contains(name.split_once('/').map_or(name, |(agent, _)| agent));
        self.held
            .retain(|id, held| id.kind != Kind::Endpoint || held.resource.deleted || !is(&id.name));
    }

    /// Whether this revokes something that has not expired.
    fn revokes(&self, kind: Kind, resource: &wire::Resource, now: u64) -> bool {
        kind == Kind::Revocation
            && !resource.deleted
            && matches!(self.read(kind, resource), Ok(Document::Revocation(r)) if r.expires() > now)
    }

    fn hold(&mut self, id: ResourceId, resource: &wire::Resource, document: Document) {
        // In memory of its own: what was read shares the buffer of its message, and would keep all 8 KiB or more of that for as
        // long as it is held. A revocation of 64 bytes is held for a day.
        let resource = Arc::new(wire::Resource {
            payload: Bytes::copy_from_slice(&resource.payload),
            ..resource.clone()
        });
        if self
            .newest
            .as_ref()
            .is_none_or(|newest| newest.revision < resource.revision)
        {
            self.newest = Some(resource.clone());
        }
        self.held.insert(id, Held { resource, document });
    }

    fn read(&self, kind: Kind, resource: &wire::Resource) -> Result<Document, Rejected> {
        let (name, revision, payload) = (resource.name.as_str(), resource.revision, &resource.payload[..]);
        Ok(match kind {
            Kind::MeshConfig => Document::MeshConfig(Arc::new(resource::read(name, revision, payload)?)),
            Kind::Agent => Document::Agent(Arc::new(resource::read(name, revision, payload)?)),
            Kind::Endpoint => Document::Endpoint(resource::read(name, revision, payload)?),
            Kind::Policy => Document::Policy(Arc::new(self.compiled(name, revision, payload)?)),
            Kind::TrustBundle => Document::TrustBundle(resource::read(name, revision, payload)?),
            Kind::SigningKey => Document::SigningKey(self.certified(name, revision, payload)?),
            Kind::Revocation => Document::Revocation(resource::read(name, revision, payload)?),
            Kind::Traffic => Document::Traffic(Arc::new(resource::read(name, revision, payload)?)),
            Kind::Reputation => Document::Reputation(Arc::new(resource::read(name, revision, payload)?)),
            Kind::Measurement => Document::Nothing,
        })
    }

    /// A policy passes the lexical gate and compiles here too: what was admitted elsewhere may be another version.
    fn compiled(&self, name: &str, revision: u64, payload: &[u8]) -> Result<Policy, Rejected> {
        let policy: Policy = resource::read(name, revision, payload)?;
        let id = ResourceId::new(Kind::Policy, name);
        let refuse = |reason, detail: String| Rejected {
            id: id.clone(),
            revision,
            reason,
            detail,
        };
        aip_policy::admission::lexical_gate(name, &policy.rego).map_err(|d| refuse("policy_gate", d.to_string()))?;
        let data = self
            .mesh_config()
            .and_then(|m| serde_json::to_value(&*m).ok())
            .unwrap_or_default();
        PolicySet::compile(&[source_of(&policy)], &data).map_err(|diagnostics| {
            let all: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
            refuse("policy_compile", all.join("; "))
        })?;
        Ok(policy)
    }

    fn certified(&self, name: &str, revision: u64, payload: &[u8]) -> Result<SigningKey, Rejected> {
        let key: SigningKey = resource::read(name, revision, payload)?;
        let id = ResourceId::new(Kind::SigningKey, name);
        let refuse = |detail: String| Rejected {
            id: id.clone(),
            revision,
            reason: "not_certified",
            detail,
        };
        let der = STANDARD.decode(&key.certificate).map_err(|e| refuse(e.to_string()))?;
        let mut scratch = (**self.trust.load()).clone();
        let kid = scratch.add_key(&der).map_err(|e| refuse(e.to_string()))?;
        if kid == key.kid {
            Ok(key)
        } else {
            Err(refuse(format!("the certificate is for {kid}")))
        }
    }

    fn rebuild_trust(&self) {
        let bundle = self.held.values().find_map(|h| match &h.document {
            Document::TrustBundle(bundle) => Some(bundle.roots_der()),
            _ => None,
        });
        let roots = bundle
            .filter(|r| !r.is_empty())
            .unwrap_or_else(|| self.origin.roots.clone());
        let mut state = Origin {
            roots,
            ..self.origin.clone()
        }
        .trust();
        for held in self.held.values() {
            match &held.document {
                Document::SigningKey(key) => {
                    // Certified when it was taken; expired since, perhaps, and then it drops out here.
                    let _ = STANDARD.decode(&key.certificate).map(|der| state.add_key(&der));
                }
                Document::Revocation(revocation) => state.revoke(revocation),
                _ => {}
            }
        }
        self.trust.store(Arc::new(state));
    }

    fn mesh_config(&self) -> Option<Arc<MeshConfig>> {
        self.held.values().find_map(|h| match &h.document {
            Document::MeshConfig(config) => Some(config.clone()),
            _ => None,
        })
    }

    /// The store revision that this world reflects.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Of all resources and tombstones that were taken, the one of the highest revision: a control plane that is below it was
    /// restored from a copy.
    pub fn newest(&self) -> Option<&wire::Resource> {
        self.newest.as_deref()
    }

    /// Raises the revision to one that was persisted.
    pub fn raise_revision(&mut self, floor: u64) {
        self.revision = self.revision.max(floor);
    }

    /// Whether the control plane has said of everything mesh-wide, and of policies, this agent and its reputation, that
    /// it is complete.
    pub fn is_synced(&self) -> bool {
        let needed = Kind::MESH_WIDE
            .into_iter()
            .chain([Kind::Policy, Kind::Agent, Kind::Reputation]);
        needed.into_iter().all(|kind| self.synced.contains(&kind))
    }

    /// Whether the essentials are held: settings, this agent, and a policy.
    pub fn is_usable(&self) -> bool {
        let own = ResourceId::new(Kind::Agent, self.origin.id.agent.as_str());
        self.mesh_config().is_some()
            && matches!(self.held.get(&own).map(|h| &h.document), Some(Document::Agent(_)))
            && self.held.values().any(|h| matches!(h.document, Document::Policy(_)))
    }

    /// What is held, for the control plane at a reconnect. Rejected versions were never taken.
    pub fn held(&self) -> Vec<wire::Held> {
        let wire_held = |(id, held): (&ResourceId, &Held)| wire::Held {
            kind: id.kind.to_wire() as i32,
            name: id.name.clone(),
            revision: held.resource.revision,
        };
        let is_good = |held: &Held| !held.resource.deleted && !matches!(held.document, Document::Unusable(_));
        self.held
            .iter()
            .filter(|(_, held)| is_good(held))
            .map(wire_held)
            .collect()
    }

    /// The signed resources, for the cache.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<wire::Resource>> {
        self.held.values().map(|h| &h.resource)
    }

    /// The next snapshot. What has not come yet is at its strictest: no policy, so everything is denied.
    pub fn snapshot(&self) -> Snapshot {
        let id = self.origin.id.clone();
        let mut agents = HashMap::new();
        let mut endpoints: HashMap<_, Vec<Endpoint>> = HashMap::new();
        let mut policies = BTreeMap::new();
        let mut reputations = HashMap::new();
        let mut traffic: HashMap<&str, Arc<Traffic>> = HashMap::new();
        let mut unusable = Vec::new();
        let mut mesh_revision = 0;
        for held in self.held.values() {
            match &held.document {
                Document::Agent(agent) => {
                    agents.insert(agent.name.clone(), agent.clone());
                }
                Document::Endpoint(endpoint) => {
                    endpoints
                        .entry(endpoint.agent.clone())
                        .or_default()
                        .push(endpoint.clone());
                }
                Document::Policy(policy) => {
                    let attached = AttachedPolicy {
                        revision: held.resource.revision,
                        policy: policy.clone(),
                    };
                    policies.insert(policy.name.to_string(), attached);
                }
                Document::Traffic(limits) => {
                    traffic.insert(limits.agent.as_str(), limits.clone());
                }
                Document::Reputation(reputation) => {
                    reputations.insert(reputation.agent.clone(), reputation.clone());
                }
                Document::MeshConfig(_) => mesh_revision = held.resource.revision,
                Document::Unusable(attach) => unusable.push((held.resource.name.clone(), attach.clone())),
                Document::TrustBundle(_) | Document::SigningKey(_) | Document::Revocation(_) | Document::Nothing => {}
            }
        }
        let strictest = || Arc::new(MeshConfig::new(id.trust_domain.clone(), MeshMode::Prod));
        let snapshot = Snapshot {
            revision: self.revision,
            mesh: self.mesh_config().unwrap_or_else(strictest),
            mesh_revision,
            me: agents
                .get(&id.agent)
                .cloned()
                .unwrap_or_else(|| Arc::new(Agent::new(id.agent.clone()))),
            traffic: limits_of(&id.agent, &traffic),
            agents,
            endpoints: endpoints.into_iter().map(|(name, list)| (name, list.into())).collect(),
            reputations,
            policies,
            unusable,
            sets: self.sets.clone(),
            id,
        };
        self.sets.let_go(&snapshot);
        snapshot
    }
}

/// The limits of an agent: its own, else those of all.
fn limits_of(agent: &AgentName, traffic: &HashMap<&str, Arc<Traffic>>) -> Arc<Traffic> {
    let limits = traffic.get(agent.as_str()).or_else(|| traffic.get(Traffic::DEFAULT));
    limits.cloned().unwrap_or_else(|| Arc::new(Traffic::defaults()))
}

/// Where a policy that can't be read is attached; everywhere, if not even that can be read.
fn attach_of(payload: &[u8]) -> Attach {
    let document = serde_json::from_slice::<serde_json::Value>(payload).ok();
    let attach = document.and_then(|mut d| serde_json::from_value(d.get_mut("attach")?.take()).ok());
    attach.unwrap_or(Attach::Mesh)
}

#[cfg(test)]
mod tests;
