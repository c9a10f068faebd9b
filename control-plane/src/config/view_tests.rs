//! Whatever changes, and whatever is rejected meanwhile: a sidecar that takes everything ends with exactly what the
//! store holds for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aip_api::AgentName;
use aip_api::resource::{Agent, Kind, MeshMode, ResourceId, Traffic};
use proptest::prelude::*;
use tokio::sync::broadcast;

use super::view::View;
use super::world::{News, World};
use crate::registry::{Actor, keys};
use crate::store::Expect;
use crate::testing::{self, TestMesh};

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

/// A sidecar and the control plane's view of it. Agent `a0` is the sidecar's own; its Traffic and that of subscribed
/// agents come and go.
struct Pair {
    mesh: TestMesh,
    world: Arc<World>,
    news: broadcast::Receiver<News>,
    view: View,
    sidecar: BTreeMap<ResourceId, u64>,
    subscribed: BTreeSet<u8>,
}

impl Pair {
    async fn new() -> Self {
        let mesh = testing::mesh(MeshMode::Dev).await;
        let draft = mesh.registry.change(&Actor::control_plane(), "t", "t");
        let own = draft.resource(&Agent::new(name(0)), Expect::Any);
        own.commit().await.unwrap();
        let trust = mesh.ca.trust().unwrap().shared();
        let world = World::new(&mesh.registry.store, mesh.ca.clone(), trust).await.unwrap();
        let (news, revision) = world.subscribe();
        Self {
            view: View::new(name(0), HashMap::new(), &world, revision),
            mesh,
            world,
            news,
            sidecar: BTreeMap::new(),
            subscribed: BTreeSet::new(),
        }
    }

    /// Takes a push, all of it or all but its Traffic; false where there is none.
    fn take(&mut self, reject: bool) -> bool {
        let Some(push) = self.view.next_push(&self.world) else {
            return false;
        };
        let mut rejected = Vec::new();
        for resource in &push.response.resources {
            let id = ResourceId::new(Kind::from_wire(resource.kind).unwrap(), resource.name.clone());
            if resource.deleted {
                self.sidecar.remove(&id);
            } else if reject && id.kind == Kind::Traffic {
                rejected.push(id);
            } else {
                let held = self.sidecar.insert(id.clone(), resource.revision);
                assert!(held.is_none_or(|held| held < resource.revision), "{id} goes back");
            }
        }
        self.view.acknowledge(push, &rejected);
        true
    }

    fn reconnect(&mut self) {
        let (fresh, revision) = self.world.subscribe();
        self.news = fresh;
        let held = self.sidecar.clone().into_iter().collect();
        self.view = View::new(name(0), held, &self.world, revision);
        let names = self.subscribed.iter().map(|a| name(*a)).collect();
        assert!(self.view.subscribe(Kind::Traffic, names, &self.world));
    }

    async fn step(&mut self, step: Step) {
        let draft = self.mesh.registry.change(&Actor::control_plane(), "t", "t");
        match step {
            Step::Put(agent, n) => {
                let traffic = Traffic {
                    agent: name(agent).to_string(),
                    max_concurrency: n,
                    ..Traffic::defaults()
                };
                draft.resource(&traffic, Expect::Any).commit().await.unwrap();
            }
            Step::Delete(agent) => {
                let gone = draft.delete_resource(Kind::Traffic, name(agent).as_str(), Expect::Any);
                gone.commit().await.unwrap();
            }
            Step::Subscribe(agent) => {
                self.subscribed.insert(agent);
                assert!(self.view.subscribe(Kind::Traffic, vec![name(agent)], &self.world));
            }
            Step::Unsubscribe(agent) => {
                self.subscribed.remove(&agent);
                self.view.unsubscribe(Kind::Traffic, &[name(agent)], &self.world);
                if agent != 0 {
                    self.sidecar
                        .remove(&ResourceId::new(Kind::Traffic, name(agent).as_str()));
                }
            }
            Step::Push(reject) => {
                self.take(reject);
            }
            Step::Reconnect => self.reconnect(),
        }
        while self.view.revision() < self.mesh.registry.store.revision() {
            self.view.hear(&self.news.recv().await.unwrap(), &self.world);
        }
    }

    /// What the store holds for this sidecar.
    async fn expected(&self) -> BTreeMap<ResourceId, u64> {
        let snapshot = self.mesh.registry.store.snapshot(keys::RESOURCES).await.unwrap();
        let all = snapshot
            .entries
            .iter()
            .map(|e| (keys::resource_id(&e.key).unwrap(), e.revision));
        let wanted = |id: &ResourceId| {
            let subscribed = self.subscribed.iter().any(|a| name(*a).as_str() == id.name);
            id.kind != Kind::Traffic || id.name == "a0" || subscribed
        };
        all.filter(|(id, _)| wanted(id)).collect()
    }
}

async fn run(steps: Vec<Step>) {
    let mut pair = Pair::new().await;
    let follow = tokio::spawn(pair.world.clone().follow(pair.mesh.registry.store.clone()));
    for step in steps {
        pair.step(step).await;
    }
    // A reconnect forgets what was rejected: then everything is taken.
    pair.reconnect();
    while pair.take(false) {}
    assert_eq!(pair.sidecar, pair.expected().await);
    follow.abort();
}

/// A subscription that ends costs what it names, and not what a sidecar lists as held: of the latter there may be much, and of
/// the former one after the other.
#[tokio::test]
async fn what_came_by_a_subscription_is_found_by_its_name() {
    let pair = Pair::new().await;
    let mut held: HashMap<ResourceId, u64> = (0..100_000)
        .map(|n| (ResourceId::new(Kind::Endpoint, format!("none-{n}/x")), 1))
        .collect();
    let own = ["a0/x", "a1/x", "a1/y", "a10/x"].map(|name| ResourceId::new(Kind::Endpoint, name));
    held.extend(own.iter().cloned().map(|id| (id, 1)));
    held.insert(ResourceId::new(Kind::Traffic, "a1"), 1);
    let mut view = View::new(name(0), held, &pair.world, 1);
    for batch in 0..200 {
        let names: Vec<AgentName> = (0..1_000).map(|n| format!("b{batch}-{n}").parse().unwrap()).collect();
        view.unsubscribe(Kind::Endpoint, &names, &pair.world);
    }
    let holds = |view: &View| own.clone().map(|id| view.holds(&id));
    assert_eq!(holds(&view), [true; 4]);
    view.unsubscribe(Kind::Endpoint, &[name(1), name(0)], &pair.world);
    assert_eq!(holds(&view), [true, false, false, true]);
    let traffic = ResourceId::new(Kind::Traffic, "a1");
    assert!(view.holds(&traffic), "of another kind");
    view.unsubscribe(Kind::Traffic, &[name(1)], &pair.world);
    assert!(!view.holds(&traffic));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn a_sidecar_converges_on_what_the_store_holds_for_it(steps in prop::collection::vec(step(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
