//! One sidecar's view: what it is to hold, what it holds, and the next push between the two. Pure but for the world
//! that it reads.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aip_api::AgentName;
use aip_api::resource::{Kind, ResourceId, Traffic};
use aip_api::wire;
use prost::Message as _;

use super::world::{News, World};

/// Resources of one push, and their bytes: well below what either side decodes, and small enough to be acknowledged
/// before a deadline on a bad line.
const PUSH_RESOURCES: usize = 512;
const PUSH_BYTES: usize = 2 * 1024 * 1024;
/// Names that one sidecar may subscribe to, over all kinds: more peers than any agent talks to.
pub(super) const MAX_SUBSCRIPTIONS: usize = 13_000;

/// A push on its way.
#[derive(Debug)]
pub(super) struct Push {
    /// As sent.
    pub(super) response: wire::ConfigResponse,
    // What will be held once it is acknowledged; `None`: a tombstone.
    sent: Vec<(ResourceId, Option<u64>)>,
}

impl Push {
    /// Whether it is in it.
    pub(super) fn has(&self, id: &ResourceId) -> bool {
        self.sent.iter().any(|(sent, _)| sent == id)
    }

    /// What of it was taken, when these were rejected.
    pub(super) fn taken(&self, rejected: &[ResourceId]) -> Vec<(ResourceId, u64)> {
        let taken = self.sent.iter().filter(|(id, _)| !rejected.contains(id));
        taken
            .map(|(id, revision)| (id.clone(), revision.unwrap_or(0)))
            .collect()
    }
}

#[derive(Debug)]
pub(super) struct View {
    agent: AgentName,
    subscribed: BTreeMap<Kind, BTreeSet<AgentName>>,
    held: BTreeMap<ResourceId, u64>,
    rejected: HashMap<ResourceId, u64>,
    // What has to be looked at, in the order in which sidecars need it.
    queue: BTreeSet<(usize, ResourceId)>,
    missing: BTreeSet<ResourceId>,
    synced: BTreeSet<Kind>,
    // The world's revision that everything in the queue brings us to.
    seen: u64,
    nonce: u64,
}

fn order(id: ResourceId) -> (usize, ResourceId) {
    (Kind::ALL.iter().position(|k| *k == id.kind).unwrap_or(usize::MAX), id)
}

/// The agent that an endpoint's name begins with.
fn agent_of(name: &str) -> &str {
    name.split_once('/').map_or(name, |(agent, _)| agent)
}

impl View {
    /// The view of a sidecar that holds this.
    pub(super) fn new(agent: AgentName, held: HashMap<ResourceId, u64>, world: &World, revision: u64) -> Self {
        let mut view = Self {
            agent,
            subscribed: BTreeMap::new(),
            held: held.into_iter().collect(),
            rejected: HashMap::new(),
            queue: BTreeSet::new(),
            missing: BTreeSet::new(),
            synced: Kind::ALL.into_iter().filter(|k| *k != Kind::Measurement).collect(),
            seen: revision,
            nonce: 0,
        };
        view.look_at_everything(world);
        view
    }

    fn subscribes(&self, kind: Kind, agent: &str) -> bool {
        self.subscribed.get(&kind).is_some_and(|names| names.contains(agent))
    }

    fn policies(&self, world: &World) -> Vec<ResourceId> {
        let of = self.subscribed.get(&Kind::Policy).into_iter().flatten();
        world.policies_of(of.chain([&self.agent]))
    }

    fn look_at_everything(&mut self, world: &World) {
        let mut ids: Vec<ResourceId> = Kind::MESH_WIDE
            .into_iter()
            .flat_map(|kind| world.names(kind, ""))
            .collect();
        ids.push(ResourceId::new(Kind::Agent, self.agent.as_str()));
        ids.push(ResourceId::new(Kind::Reputation, self.agent.as_str()));
        ids.push(ResourceId::new(Kind::Traffic, self.agent.as_str()));
        ids.push(ResourceId::new(Kind::Traffic, Traffic::DEFAULT));
        ids.extend(self.policies(world));
        for (kind, names) in &self.subscribed {
            ids.extend(names.iter().flat_map(|name| of_agent(world, *kind, name)));
        }
        ids.extend(self.held.keys().cloned());
        self.queue.extend(ids.into_iter().map(order));
    }

    /// Takes news in; what does not concern this sidecar leaves no trace but the revision.
    pub(super) fn hear(&mut self, news: &News, world: &World) {
        let (News::Some(revision, _) | News::All(revision)) = news;
        self.seen = (*revision).max(self.seen);
        match news {
            News::All(_) => self.look_at_everything(world),
            News::Some(_, ids) => {
                // Labels decide which policies cover: another labelling can change every one of them.
                let relabelled = ids.iter().any(|id| {
                    id.kind == Kind::Agent
                        && (id.name == self.agent.as_str() || self.subscribes(Kind::Policy, &id.name))
                });
                let policies = if relabelled || ids.iter().any(|id| id.kind == Kind::Policy) {
                    self.policies(world)
                } else {
                    Vec::new()
                };
                let concerns = ids
                    .iter()
                    .filter(|id| self.concerns(id, &policies))
                    .cloned()
                    .collect::<Vec<_>>();
                self.queue.extend(concerns.into_iter().map(order));
                if relabelled {
                    self.queue.extend(policies.into_iter().map(order));
                }
            }
        }
    }

    fn concerns(&self, id: &ResourceId, policies: &[ResourceId]) -> bool {
        if Kind::MESH_WIDE.contains(&id.kind) || self.held.contains_key(id) {
            return true;
        }
        match id.kind {
            Kind::Agent | Kind::Reputation => id.name == self.agent.as_str() || self.subscribes(id.kind, &id.name),
            Kind::Traffic => {
                id.name == self.agent.as_str() || id.name == Traffic::DEFAULT || self.subscribes(id.kind, &id.name)
            }
            Kind::Endpoint => self.subscribes(Kind::Endpoint, agent_of(&id.name)),
            Kind::Policy => policies.contains(id),
            _ => false,
        }
    }

    /// Subscribes to agents; the next push says what is there, what is missing, and that this was all.
    /// False: that would be too many.
    pub(super) fn subscribe(&mut self, kind: Kind, names: Vec<AgentName>, world: &World) -> bool {
        let total: usize = self.subscribed.values().map(BTreeSet::len).sum();
        if total + names.len() > MAX_SUBSCRIPTIONS {
            return false;
        }
        for name in &names {
            let ids = of_agent(world, kind, name);
            let nothing = ids.iter().all(|id| world.get(id).is_none());
            if nothing && kind != Kind::Policy {
                self.missing.insert(ResourceId::new(kind, name.as_str()));
            }
            self.queue.extend(ids.into_iter().map(order));
        }
        if kind == Kind::Policy {
            self.queue.extend(world.policies_of(&names).into_iter().map(order));
        }
        self.subscribed.entry(kind).or_default().extend(names);
        self.synced.insert(kind);
        true
    }

    /// Forgets subscriptions, and that the sidecar holds what came by them: it drops that by itself.
    pub(super) fn unsubscribe(&mut self, kind: Kind, names: &[AgentName], world: &World) {
        if let Some(subscribed) = self.subscribed.get_mut(&kind) {
            names.iter().for_each(|name| {
                subscribed.remove(name);
            });
        }
        for id in self.came_by(kind, names, world) {
            self.held.remove(&id);
            self.rejected.remove(&id);
        }
        for name in names {
            self.missing.remove(&ResourceId::new(kind, name.as_str()));
        }
    }

    /// What is held because of these subscriptions alone. It is looked up by the names: a sidecar may list as held what it likes, and
    /// then ask again and again.
    fn came_by(&self, kind: Kind, names: &[AgentName], world: &World) -> Vec<ResourceId> {
        let from = |prefix: &str| {
            let held = self.held.range(ResourceId::new(kind, prefix)..);
            held.map(|(id, _)| id).take_while(move |id| id.kind == kind)
        };
        let others = names.iter().filter(|name| **name != self.agent);
        match kind {
            Kind::Policy => {
                let covering: BTreeSet<_> = self.policies(world).into_iter().collect();
                from("").filter(|id| !covering.contains(*id)).cloned().collect()
            }
            Kind::Endpoint => {
                let of = |name: &AgentName| {
                    let prefix = format!("{name}/");
                    let held = from(&prefix).take_while(|id| id.name.starts_with(&prefix));
                    held.cloned().collect::<Vec<_>>()
                };
                others.flat_map(of).collect()
            }
            _ => others.map(|name| ResourceId::new(kind, name.as_str())).collect(),
        }
    }

    /// The next push, or `None` where there is nothing to say: then the sidecar is at [`Self::revision`].
    pub(super) fn next_push(&mut self, world: &World) -> Option<Push> {
        let (mut resources, mut sent, mut bytes) = (Vec::new(), Vec::new(), 0);
        let asked = self.queue.iter().any(|(_, id)| id.kind == Kind::Policy);
        let covering: BTreeSet<_> = if asked {
            self.policies(world).into_iter().collect()
        } else {
            BTreeSet::new()
        };
        while let Some(entry) = self.queue.pop_first() {
            let (resource, revision) = match self.due(&entry.1, world, &covering) {
                Some(due) => due,
                None => continue,
            };
            bytes += resource.encoded_len();
            sent.push((entry.1, revision));
            resources.push(resource);
            if resources.len() >= PUSH_RESOURCES || bytes >= PUSH_BYTES {
                break;
            }
        }
        let complete = self.queue.is_empty();
        let (synced, missing) = if complete { self.said(world) } else { Default::default() };
        if resources.is_empty() && synced.is_empty() && missing.is_empty() {
            return None;
        }
        self.nonce += 1;
        // A push that is not the last of its batch brings the sidecar to no revision yet.
        let revision = if complete { self.seen } else { 0 };
        let response = wire::ConfigResponse {
            nonce: self.nonce,
            resources,
            synced,
            missing,
            revision,
        };
        Some(Push { response, sent })
    }

    /// What is said besides the resources, once nothing waits: the kinds that are complete, and what is not there.
    fn said(&mut self, world: &World) -> (Vec<i32>, Vec<wire::Missing>) {
        let synced = std::mem::take(&mut self.synced).into_iter();
        let absent = |id: &ResourceId| {
            let candidates = of_agent_text(world, id.kind, &id.name);
            candidates.iter().all(|id| world.get(id).is_none())
        };
        let missing = std::mem::take(&mut self.missing).into_iter().filter(absent);
        let missing = missing.map(|id| wire::Missing {
            kind: id.kind.to_wire() as i32,
            name: id.name,
        });
        (synced.map(|kind| kind.to_wire() as i32).collect(), missing.collect())
    }

    /// What has to be sent for one resource.
    fn due(
        &self,
        id: &ResourceId,
        world: &World,
        covering: &BTreeSet<ResourceId>,
    ) -> Option<(wire::Resource, Option<u64>)> {
        match world.get(id) {
            Some(item) => {
                let known = [self.held.get(id), self.rejected.get(id)];
                if known.contains(&Some(&item.revision)) || !self.wants(id, covering) {
                    return None;
                }
                Some((world.signed(&item), Some(item.revision)))
            }
            None if self.held.contains_key(id) => Some((world.tombstone(id, self.seen), None)),
            None => None,
        }
    }

    fn wants(&self, id: &ResourceId, covering: &BTreeSet<ResourceId>) -> bool {
        let agent = agent_of(&id.name);
        let own = agent == self.agent.as_str();
        match id.kind {
            // A policy that is held is kept up to date even when it covers nobody here any more: the sidecar reads
            // from it that it is not attached.
            Kind::Policy => self.held.contains_key(id) || covering.contains(id),
            Kind::Agent | Kind::Reputation => own || self.subscribes(id.kind, agent),
            Kind::Traffic => own || agent == Traffic::DEFAULT || self.subscribes(id.kind, agent),
            Kind::Endpoint => self.subscribes(id.kind, agent),
            kind => Kind::MESH_WIDE.contains(&kind),
        }
    }

    /// Records the answer to a push: what was rejected is not held.
    pub(super) fn acknowledge(&mut self, push: Push, rejected: &[ResourceId]) {
        for (id, revision) in push.sent {
            match revision {
                Some(revision) if rejected.contains(&id) => {
                    self.rejected.insert(id, revision);
                }
                Some(revision) => {
                    self.rejected.remove(&id);
                    self.held.insert(id, revision);
                }
                None => {
                    self.rejected.remove(&id);
                    self.held.remove(&id);
                }
            }
        }
    }

    /// Whether it is among what the sidecar holds.
    #[cfg(test)]
    pub(super) fn holds(&self, id: &ResourceId) -> bool {
        self.held.contains_key(id)
    }

    /// The revision that the sidecar is at once everything that is due was acknowledged.
    pub(super) fn revision(&self) -> u64 {
        self.seen
    }
}

/// What a subscription to an agent means.
fn of_agent(world: &World, kind: Kind, agent: &AgentName) -> Vec<ResourceId> {
    of_agent_text(world, kind, agent.as_str())
}

fn of_agent_text(world: &World, kind: Kind, agent: &str) -> Vec<ResourceId> {
    match kind {
        Kind::Agent | Kind::Reputation | Kind::Traffic => vec![ResourceId::new(kind, agent)],
        Kind::Endpoint => world.names(kind, &format!("{agent}/")),
        _ => Vec::new(),
    }
}
