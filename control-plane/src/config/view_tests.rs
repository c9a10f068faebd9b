//! Whatever changes, and whatever is rejected meanwhile: a sidecar that takes everything ends with exactly what the
//! store holds for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aip_api::AgentName;
use aip_api::resource::{Agent, Kind, MeshMode, ResourceId, Traffic};
use proptest::prelude::*;

use super::view::View;
use super::world::World;
use crate::registry::{Actor, keys};
use crate::store::Expect;
use crate::testing;

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u32),
    Delete(u8),
    Subscribe(u8),
    Unsubscribe(u8),
    Push(bool),
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..4, 1u32..100).prop_map(|(a, n)| Step::Put(a, n)),
        1 => (0u8..4).prop_map(Step::Delete),
        1 => (0u8..4).prop_map(Step::Subscribe),
        1 => (0u8..4).prop_map(Step::Unsubscribe),
        3 => any::<bool>().prop_map(Step::Push),
        1 => Just(Step::Reconnect),
    ]
}

fn name(agent: u8) -> AgentName {
    format!("a{agent}").parse().unwrap()
}

/// Agent `a0` is the sidecar's own; its Traffic and that of subscribed agents come and go.
async fn run(steps: Vec<Step>) {
    let mesh = testing::mesh(MeshMode::Dev).await;
    let (registry, actor) = (&mesh.registry, Actor::control_plane());
    registry
        .change(&actor, "t", "t")
        .resource(&Agent::new(name(0)), Expect::Any)
        .commit()
        .await
        .unwrap();
    let trust = mesh.ca.trust().unwrap().shared();
    let world = World::new(&registry.store, mesh.ca.clone(), trust).await.unwrap();
    let follow = tokio::spawn(Arc::clone(&world).follow(registry.store.clone()));
    let (mut news, revision) = world.subscribe();
    let mut view = View::new(name(0), HashMap::new(), &world, revision);
    let mut sidecar: BTreeMap<ResourceId, u64> = BTreeMap::new();
    let mut subscribed = std::collections::BTreeSet::new();
    let take = |view: &mut View, sidecar: &mut BTreeMap<ResourceId, u64>, reject: bool| {
        let Some(push) = view.next_push(&world) else {
            return false;
        };
        let mut rejected = Vec::new();
        for resource in &push.response.resources {
            let id = ResourceId::new(Kind::from_wire(resource.kind).unwrap(), resource.name.clone());
            if resource.deleted {
                sidecar.remove(&id);
            } else if reject && id.kind == Kind::Traffic {
                rejected.push(id);
            } else {
                assert!(
                    sidecar.get(&id).is_none_or(|held| *held < resource.revision),
                    "{id} goes back"
                );
                sidecar.insert(id, resource.revision);
            }
        }
        view.acknowledge(push, &rejected);
        true
    };
    for step in steps {
        match step {
            Step::Put(agent, n) => {
                let traffic = Traffic {
                    agent: name(agent).to_string(),
                    max_concurrency: n,
                    ..Traffic::defaults()
                };
                registry
                    .change(&actor, "t", "t")
                    .resource(&traffic, Expect::Any)
                    .commit()
                    .await
                    .unwrap();
            }
            Step::Delete(agent) => {
                let draft = registry.change(&actor, "t", "t");
                draft
                    .delete_resource(Kind::Traffic, name(agent).as_str(), Expect::Any)
                    .commit()
                    .await
                    .unwrap();
            }
            Step::Subscribe(agent) => {
                subscribed.insert(agent);
                assert!(view.subscribe(Kind::Traffic, vec![name(agent)], &world));
            }
            Step::Unsubscribe(agent) => {
                subscribed.remove(&agent);
                view.unsubscribe(Kind::Traffic, &[name(agent)], &world);
                if agent != 0 {
                    sidecar.remove(&ResourceId::new(Kind::Traffic, name(agent).as_str()));
                }
            }
            Step::Push(reject) => {
                take(&mut view, &mut sidecar, reject);
            }
            Step::Reconnect => {
                let (fresh, revision) = world.subscribe();
                news = fresh;
                let held = sidecar.clone().into_iter().collect();
                view = View::new(name(0), held, &world, revision);
                let names = subscribed.iter().map(|a| name(*a)).collect();
                assert!(view.subscribe(Kind::Traffic, names, &world));
            }
        }
        while view.revision() < registry.store.revision() {
            view.hear(&news.recv().await.unwrap(), &world);
        }
    }
    // A reconnect forgets what was rejected: then everything is taken.
    let held = sidecar.clone().into_iter().collect();
    view = View::new(name(0), held, &world, world.revision());
    assert!(view.subscribe(Kind::Traffic, subscribed.iter().map(|a| name(*a)).collect(), &world));
    while take(&mut view, &mut sidecar, false) {}
    let mut expected: BTreeMap<ResourceId, u64> = BTreeMap::new();
    for entry in registry.store.snapshot(keys::RESOURCES).await.unwrap().entries {
        let id = keys::resource_id(&entry.key).unwrap();
        let wanted =
            id.kind != Kind::Traffic || id.name == "a0" || subscribed.iter().any(|a| name(*a).as_str() == id.name);
        if wanted {
            expected.insert(id, entry.revision);
        }
    }
    assert_eq!(sidecar, expected);
    follow.abort();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn a_sidecar_converges_on_what_the_store_holds_for_it(steps in prop::collection::vec(step(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
