//! In whatever order pushes come, cut wherever, repeated or late: what is held in the end is what the control plane said
//! last of each resource, and what it said is never forgotten on the way.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// One thing that the control plane says: of which resource, whether it is gone, and else what it says of it.
#[derive(Debug, Clone)]
struct Said {
    which: usize,
    gone: bool,
    what: u8,
}

/// What things are said of. The sidecar's own agent is `me`.
const RESOURCES: [(Kind, &str); 14] = [
    (Kind::MeshConfig, MeshConfig::NAME),
    (Kind::Agent, "me"),
    (Kind::Agent, "ann"),
    (Kind::Agent, "bob"),
    (Kind::Endpoint, "ann/one"),
    (Kind::Endpoint, "ann/two"),
    (Kind::Endpoint, "bob/one"),
    (Kind::Policy, "first"),
    (Kind::Policy, "second"),
    (Kind::Traffic, Traffic::DEFAULT),
    (Kind::Traffic, "me"),
    (Kind::Reputation, "ann"),
    (Kind::Revocation, "generation/ann"),
    // This one has expired.
    (Kind::Revocation, "generation/bob"),
];

fn payload(kind: Kind, name: &str, what: u8) -> Vec<u8> {
    let named = match kind {
        Kind::Revocation => name.rsplit('/').next(),
        Kind::MeshConfig | Kind::Traffic => Some("me"),
        _ => name.split('/').next(),
    };
    let agent: AgentName = named.unwrap().parse().unwrap();
    let document = match kind {
        Kind::MeshConfig => {
            let mut config = MeshConfig::new("aip.internal".parse().unwrap(), MeshMode::Dev);
            config.kill.second_approver = what.is_multiple_of(2);
            json!(config)
        }
        Kind::Agent => {
            let mut document = Agent::new(agent);
            document.owner = format!("owner {what}");
            json!(document)
        }
        Kind::Endpoint => json!(Endpoint {
            agent,
            instance: name.split_once('/').unwrap().1.into(),
            address: format!("192.0.2.1:{}", 1_000 + u16::from(what)).parse().unwrap(),
        }),
        Kind::Policy => {
            let rego = format!(
                "package aip.policy.{name}\n\nrules contains {{\"rule\": \"r{what}\", \"verdict\": \"allow\", \"reason\": \"t\"}}\n"
            );
            json!({"name": name, "rego": rego, "attach": "mesh"})
        }
        Kind::Traffic => {
            let mut document = Traffic::defaults();
            document.agent = name.into();
            document.max_concurrency = 1 + u32::from(what);
            json!(document)
        }
        Kind::Reputation => json!(Reputation::new(
            agent,
            aip_api::resource::reputation::Score::clamped(f64::from(what % 10)),
            0
        )),
        _ => json!(Revocation::Generation {
            below: 2 + u64::from(what),
            expires: if name.ends_with("bob") { NOW - 1 } else { NOW + 1 },
            agent,
        }),
    };
    serde_json::to_vec(&document).unwrap()
}

/// What was said, signed; the place of each in the list is its revision, beginning with 1.
fn signed(keys: &Keys, said: &[Said]) -> Vec<wire::Resource> {
    let one = |(said, revision): (&Said, u64)| {
        let (kind, name) = RESOURCES[said.which];
        match said.gone {
            true => keys.gone(kind, name, revision),
            false => keys.resource(kind, name, revision, payload(kind, name, said.what)),
        }
    };
    said.iter().zip(1..).map(one).collect()
}

/// The revision of each resource that is to be held in the end: the last; of a revocation that is in force the last that
/// revokes, since a tombstone came too early.
fn last(said: &[Said]) -> BTreeMap<ResourceId, (u64, bool)> {
    let mut last = BTreeMap::new();
    for (said, revision) in said.iter().zip(1..) {
        let (kind, name) = RESOURCES[said.which];
        let id = ResourceId::new(kind, name);
        let in_force = (kind, name) == (Kind::Revocation, "generation/ann");
        let revoked = last.get(&id).is_some_and(|(_, gone)| !gone);
        if !(in_force && said.gone && revoked) {
            last.insert(id, (revision, said.gone));
        }
    }
    last
}

fn held(world: &World) -> BTreeMap<ResourceId, (u64, bool)> {
    let one = |r: &wire::Resource| {
        let id = ResourceId::new(Kind::from_wire(r.kind).unwrap(), r.name.clone());
        (id, (r.revision, r.deleted))
    };
    world.resources().map(|resource| one(resource)).collect()
}

/// All that requests are decided by.
fn seen(world: &World) -> Value {
    let snapshot = world.snapshot();
    let by_name = |agents: &HashMap<AgentName, Arc<Agent>>| {
        let all = agents.iter().map(|(name, agent)| (name.to_string(), json!(**agent)));
        all.collect::<BTreeMap<_, _>>()
    };
    let endpoints = snapshot
        .endpoints
        .iter()
        .map(|(name, all)| (name.to_string(), json!(**all)));
    let reputations = snapshot
        .reputations
        .iter()
        .map(|(name, one)| (name.to_string(), json!(**one)));
    let policies = snapshot
        .policies
        .iter()
        .map(|(name, one)| (name.clone(), json!([one.revision, one.policy.rego])));
    json!({
        "revision": snapshot.revision,
        "mesh": *snapshot.mesh,
        "mesh_revision": snapshot.mesh_revision,
        "me": *snapshot.me,
        "agents": by_name(&snapshot.agents),
        "endpoints": endpoints.collect::<BTreeMap<_, _>>(),
        "reputations": reputations.collect::<BTreeMap<_, _>>(),
        "policies": policies.collect::<BTreeMap<_, _>>(),
        "unusable": snapshot.unusable.len(),
        "traffic": *snapshot.traffic,
    })
}

/// Pushes these in this order, cut into pushes where `cuts` says so.
fn apply(world: &mut World, all: &[wire::Resource], order: &[usize], cuts: &[bool]) {
    let mut batch = Vec::new();
    for (n, which) in order.iter().enumerate() {
        batch.push(all[*which].clone());
        let more = n + 1 < order.len();
        if more && !cuts[n % cuts.len()] {
            continue;
        }
        let (before, push) = (world.revision(), push(std::mem::take(&mut batch)));
        let trusted_less = |r: &Rejected| ["stale", "revocation_in_force"].contains(&r.reason);
        let rejected = world.apply(&push, NOW);
        assert!(rejected.iter().all(trusted_less), "{rejected:?}");
        assert_eq!(world.revision(), before.max(push.revision), "the floor never falls");
    }
}

type Case = (Vec<Said>, [Vec<usize>; 2], Vec<bool>, u8);

fn cases() -> impl Strategy<Value = Case> {
    let said = (0..RESOURCES.len(), prop::bool::weighted(0.3), any::<u8>());
    let said = said.prop_map(|(which, gone, what)| Said { which, gone, what });
    prop::collection::vec(said, 1..40).prop_flat_map(|said| {
        let indices: Vec<usize> = (0..said.len()).collect();
        // Some are said twice.
        let again = prop::collection::vec(0..said.len(), 0..6);
        let late = again.prop_flat_map(move |again| {
            let all: Vec<usize> = indices.iter().copied().chain(again).collect();
            [Just(all).prop_shuffle(), Just(indices.clone()).prop_shuffle()]
        });
        (
            Just(said),
            late,
            prop::collection::vec(any::<bool>(), 1..8),
            any::<u8>(),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_pushes_ends_the_same((said, [first, second], cuts, forgets) in cases()) {
        let keys = Keys::new();
        let all = signed(&keys, &said);
        let in_order: Vec<usize> = (0..said.len()).collect();
        let mut straight = keys.world();
        apply(&mut straight, &all, &in_order, &[true]);
        prop_assert_eq!(held(&straight), last(&said), "as the control plane says them");

        let mut shuffled = keys.world();
        apply(&mut shuffled, &all, &first, &cuts);
        prop_assert_eq!(held(&shuffled), last(&said));
        prop_assert_eq!(seen(&shuffled), seen(&straight));
        prop_assert_eq!(shuffled.revision(), said.len() as u64);

        // A peer that is let go, and everything said again.
        let agents = ["ann", "bob"].into_iter().zip([1, 2]).filter(|(_, bit)| forgets & bit != 0);
        shuffled.forget_endpoints(&agents.map(|(name, _)| name.parse().unwrap()).collect());
        apply(&mut shuffled, &all, &second, &cuts);
        prop_assert_eq!(held(&shuffled), last(&said));
        prop_assert_eq!(seen(&shuffled), seen(&straight));
    }
}
