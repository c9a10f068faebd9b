//! Both ends of a hop as policy sees them, and the policies between them. Built once per peer and version of the world,
//! so that a request only takes a reference.

use std::sync::Arc;

use aip_api::AgentName;
use aip_api::resource::{Agent, Reputation};
use aip_audit::record::PolicyRef;
use aip_policy::{
    Assurance, AttestationFacts, AttestationStatus, Direction, Enforcement, Fact, PeerFacts, PeerKind, PolicySet,
    ReputationFacts, ReputationStatus,
};
use aip_runtime::svid::Svid;
use aip_runtime::x509::PeerIdentity;
use dashmap::DashMap;
use http::HeaderValue;

use super::Proxy;
use crate::mesh::MAX_PEERS;
use crate::snapshot::{SetError, Snapshot};

/// Seconds for which `attestation.age` stays as it is: what policy rounds it down to.
const AGE_STEP: u64 = aip_policy::limits::AGE_STEP_SECONDS;

/// Why a fact is not established that the policy input has and this version never learns: a rule that reads it must not
/// take its neutral value for the truth.
pub(crate) const NOT_IN_THIS_VERSION: &str = "not_in_this_version";

/// Which parts of a request the policies between two ends can read; what they can't is not built.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Needs {
    pub(crate) method: bool,
    pub(crate) path: bool,
    pub(crate) raw_path: bool,
    pub(crate) query: bool,
    pub(crate) headers: bool,
    pub(crate) body: bool,
    /// The callee's attestation, for which an outbound call connects before it decides.
    pub(crate) destination_attestation: bool,
}

impl Needs {
    fn of(set: &PolicySet) -> Self {
        let reads = set.reads();
        let parsed = [
            "name",
            "method",
            "tool",
            "arguments",
            "resource",
            "prompt",
            "skill",
            "task",
            "context",
        ];
        Self {
            method: reads.needs("request.method"),
            path: reads.needs("request.path"),
            raw_path: reads.needs("request.raw_path"),
            query: reads.needs("request.query"),
            headers: reads.needs("request.headers"),
            body: parsed.iter().any(|part| reads.needs(&format!("protocol.{part}"))),
            destination_attestation: reads.needs("destination.attestation"),
        }
    }
}

/// Two ends and the policies between them, in one version of the world.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) snapshot: Arc<Snapshot>,
    own: Arc<Svid>,
    /// The certificate that the other end showed, where it did.
    serial: Option<String>,
    direction: Direction,
    step: u64,
    pub(crate) source: Arc<PeerFacts>,
    /// The source's id as a header.
    pub(crate) source_id: HeaderValue,
    pub(crate) destination: Arc<PeerFacts>,
    pub(crate) set: Result<Arc<PolicySet>, SetError>,
    pub(crate) needs: Needs,
    /// Those that take part, for the record.
    pub(crate) policies: Arc<[PolicyRef]>,
}

/// The other end of a hop.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Other<'a> {
    /// The caller, by its certificate.
    Caller(&'a PeerIdentity),
    /// The callee; its certificate, where we are connected.
    Callee(&'a AgentName, Option<&'a PeerIdentity>),
    /// A host outside the mesh.
    Outside(&'a str, u16),
}

/// Pairs that were built.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    /// By the caller's serial.
    inbound: DashMap<String, Arc<Pair>>,
    /// By the callee's name.
    outbound: DashMap<AgentName, Arc<Pair>>,
}

impl Pairs {
    /// The pair of this sidecar's agent and `other`, in `snapshot`, as of `now`.
    pub(crate) fn of(
        proxy: &Proxy,
        snapshot: &Arc<Snapshot>,
        own: &Arc<Svid>,
        other: Other<'_>,
        now: u64,
    ) -> Arc<Pair> {
        let pairs = &proxy.pairs;
        let fits = |pair: &Pair, serial: Option<&str>| {
            Arc::ptr_eq(&pair.snapshot, snapshot)
                && Arc::ptr_eq(&pair.own, own)
                && pair.step == now / AGE_STEP
                && (serial.is_none() || pair.serial.as_deref() == serial)
        };
        match other {
            Other::Caller(peer) => {
                if let Some(known) = pairs.inbound.get(&peer.serial).filter(|p| fits(p, Some(&peer.serial))) {
                    return known.clone();
                }
                // Serials of renewed certificates would stay for good.
                if pairs.inbound.len() >= MAX_PEERS {
                    pairs.inbound.clear();
                }
                let built = Arc::new(Pair::build(snapshot, own, other, now));
                pairs.inbound.insert(peer.serial.clone(), built.clone());
                built
            }
            Other::Callee(name, identity) => {
                let serial = identity.map(|i| i.serial.as_str());
                if let Some(known) = pairs.outbound.get(name).filter(|p| fits(p, serial)) {
                    return known.clone();
                }
                let built = Arc::new(Pair::build(snapshot, own, other, now));
                pairs.outbound.insert(name.clone(), built.clone());
                built
            }
            Other::Outside(..) => Arc::new(Pair::build(snapshot, own, other, now)),
        }
    }

    /// Drops what was built from earlier snapshots: a pair that nobody asks for again would keep one for good.
    pub(crate) fn forget_all_but(&self, snapshot: &Arc<Snapshot>) {
        self.inbound.retain(|_, pair| Arc::ptr_eq(&pair.snapshot, snapshot));
        self.outbound.retain(|_, pair| Arc::ptr_eq(&pair.snapshot, snapshot));
    }
}

impl Pair {
    fn build(snapshot: &Arc<Snapshot>, own: &Arc<Svid>, other: Other<'_>, now: u64) -> Self {
        let me = Arc::new(agent_facts(&snapshot.me, Some(&own.identity), snapshot, now));
        let (direction, registered, facts) = match other {
            Other::Caller(peer) => {
                let registered = snapshot.agent(&peer.id.agent).cloned();
                let agent = registered
                    .clone()
                    .unwrap_or_else(|| Arc::new(Agent::new(peer.id.agent.clone())));
                (
                    Direction::Inbound,
                    registered,
                    agent_facts(&agent, Some(peer), snapshot, now),
                )
            }
            Other::Callee(name, identity) => {
                let registered = snapshot.agent(name).cloned();
                let agent = registered.clone().unwrap_or_else(|| Arc::new(Agent::new(name.clone())));
                (
                    Direction::Outbound,
                    registered,
                    agent_facts(&agent, identity, snapshot, now),
                )
            }
            Other::Outside(host, port) => (Direction::Outbound, None, outside_facts(host, port)),
        };
        let them = Arc::new(facts);
        let set = snapshot.policies_for(Some(&snapshot.me), registered.as_deref());
        let attached = snapshot.attached(Some(&snapshot.me), registered.as_deref());
        let policies = attached.map(|attached| PolicyRef {
            name: attached.policy.name.to_string(),
            revision: attached.revision,
        });
        let policies = policies.collect();
        let (source, destination) = match direction {
            Direction::Inbound => (them, me),
            Direction::Outbound => (me, them),
        };
        let serial = match other {
            Other::Caller(peer) => Some(peer.serial.clone()),
            Other::Callee(_, identity) => identity.map(|i| i.serial.clone()),
            Other::Outside(..) => None,
        };
        Self {
            snapshot: snapshot.clone(),
            own: own.clone(),
            serial,
            direction,
            step: now / AGE_STEP,
            source_id: HeaderValue::from_str(&source.id).unwrap_or_else(|_| HeaderValue::from_static("")),
            source,
            destination,
            needs: set.as_ref().map(|set| Needs::of(set)).unwrap_or_default(),
            set,
            policies,
        }
    }

    /// The certificates that source and destination showed; empty where one showed none yet.
    pub(crate) fn serials(&self) -> (&str, &str) {
        let (ours, theirs) = (&*self.own.identity.serial, self.serial.as_deref().unwrap_or_default());
        match self.direction {
            Direction::Inbound => (theirs, ours),
            Direction::Outbound => (ours, theirs),
        }
    }
}

fn agent_facts(agent: &Agent, identity: Option<&PeerIdentity>, snapshot: &Snapshot, now: u64) -> PeerFacts {
    let result = identity.map(|i| &i.result);
    let manifest = match serde_json::to_value(&agent.manifest) {
        Ok(serde_json::Value::Object(manifest)) => Fact::Known(manifest),
        _ => Fact::Unestablished("manifest_unreadable"),
    };
    let trust_domain = snapshot.id.trust_domain.to_string();
    PeerFacts {
        kind: PeerKind::Agent,
        id: format!("spiffe://{trust_domain}/agent/{}", agent.name),
        name: agent.name.to_string(),
        port: 0,
        trust_domain,
        owner: result.map_or_else(|| agent.owner.clone(), |r| r.owner.clone()),
        labels: result.map_or_else(|| agent.labels.clone(), |r| r.labels.clone()),
        capabilities: result.map_or_else(|| agent.capabilities.clone(), |r| r.capabilities.clone()),
        // Where a policy reads it, a call connects first; so nothing is decided on this.
        attestation: result.map_or(Fact::Unestablished("not_connected"), |r| {
            Fact::Known(AttestationFacts {
                status: AttestationStatus::Valid,
                code: r.code.to_string(),
                config: r.config.map(|c| c.to_string()).unwrap_or_default(),
                assurance: Assurance::parse(r.assurance.as_str()).unwrap_or_default(),
                enforcement: Enforcement::parse(r.enforcement.as_str()).unwrap_or_default(),
                generation: r.generation,
                age: now.saturating_sub(r.iat),
            })
        }),
        manifest,
        reputation: snapshot
            .reputation(&agent.name)
            .map_or(Fact::Unestablished("reputation_not_held"), |held| {
                Fact::Known(reputation_facts(held))
            }),
    }
}

fn reputation_facts(held: &Reputation) -> ReputationFacts {
    ReputationFacts {
        status: ReputationStatus::Known,
        score: held.score.value(),
        level: held.level.as_str().to_owned(),
        factors: held
            .factors
            .iter()
            .map(|(factor, score)| (factor.as_str().to_owned(), score.value()))
            .collect(),
    }
}

fn outside_facts(host: &str, port: u16) -> PeerFacts {
    PeerFacts {
        kind: PeerKind::External,
        name: host.to_ascii_lowercase(),
        port: port.into(),
        ..PeerFacts::default()
    }
}
