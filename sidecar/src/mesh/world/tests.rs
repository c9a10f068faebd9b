mod any_order;

use prost::Message as _;

use super::*;
use crate::testing::Keys;

const NOW: u64 = 1_800_000_000;

impl Keys {
    fn world(&self) -> World {
        World::new(self.origin.clone(), self.origin.trust().shared())
    }

    fn agent(&self, name: &str, revision: u64) -> wire::Resource {
        let agent = serde_json::to_vec(&Agent::new(name.parse().unwrap())).unwrap();
        self.resource(Kind::Agent, name, revision, agent)
    }

    fn endpoint(&self, agent: &str, revision: u64) -> wire::Resource {
        let endpoint = Endpoint {
            agent: agent.parse().unwrap(),
            instance: "019a0000-0000-7000-8000-000000000000".into(),
            address: "192.0.2.1:15006".parse().unwrap(),
        };
        let name = resource::Resource::name(&endpoint);
        let payload = serde_json::to_vec(&endpoint).unwrap();
        self.resource(Kind::Endpoint, &name, revision, payload)
    }
}

fn push(resources: Vec<wire::Resource>) -> wire::ConfigResponse {
    let revision = resources.iter().map(|r| r.revision).max().unwrap_or_default();
    wire::ConfigResponse {
        resources,
        revision,
        ..Default::default()
    }
}

/// A mesh in which agents come and go, for as long as one likes.
#[test]
fn what_was_deleted_is_remembered_for_a_while_and_not_for_ever() {
    let (keys, mut revision) = (Keys::new(), 0);
    let mut world = keys.world();
    for round in 0..4 {
        let mut resources = Vec::new();
        for n in 0..MAX_TOMBSTONES / 2 {
            revision += 1;
            resources.push(keys.gone(Kind::Agent, &format!("guest-{round}-{n}"), revision));
        }
        assert!(world.apply(&push(resources), NOW).is_empty());
        assert!(world.held.len() <= MAX_TOMBSTONES, "{} are held", world.held.len());
    }
    // The latest are remembered: an older push does not bring them back.
    let last = format!("guest-3-{}", MAX_TOMBSTONES / 2 - 1);
    let rejected = world.apply(&push(vec![keys.agent(&last, 1)]), NOW);
    assert_eq!(rejected.first().map(|r| r.reason), Some("stale"));
    // One that is registered anew is taken.
    assert!(
        world
            .apply(&push(vec![keys.agent(&last, revision + 1)]), NOW)
            .is_empty()
    );
    assert!(world.snapshot().agent(&last.parse().unwrap()).is_some());
}

/// A policy that is changed again and again leaves no program of an earlier version behind.
#[test]
fn what_was_compiled_goes_with_what_it_was_compiled_from() {
    let keys = Keys::new();
    let mut world = keys.world();
    let policy = |name: &str, revision: u64| {
        let rego = format!(
            "package aip.policy.{name}\n\nrules contains {{\"rule\": \"r{revision}\", \"verdict\": \"allow\", \"reason\": \"x\"}} if true\n"
        );
        let policy = serde_json::json!({"name": name, "rego": rego, "attach": "mesh"});
        keys.resource(Kind::Policy, name, revision, policy.to_string().into_bytes())
    };
    assert!(world.apply(&push(vec![policy("kept", 1)]), NOW).is_empty());
    for revision in 2..6 {
        assert!(world.apply(&push(vec![policy("changed", revision)]), NOW).is_empty());
        let snapshot = world.snapshot();
        assert_eq!(snapshot.sets.len(), 0, "of the version before");
        let compiled = snapshot.policies_for(None, None).unwrap();
        // Another snapshot in which no policy changed compiles nothing anew.
        let again = world.snapshot().policies_for(None, None).unwrap();
        assert!(Arc::ptr_eq(&compiled, &again));
        assert_eq!(snapshot.sets.len(), 1);
    }
}

/// The buffer of a message is as large as all that came with it.
#[test]
fn what_is_held_keeps_no_message_alive() {
    let keys = Keys::new();
    let mut world = keys.world();
    let message = Bytes::from(push(vec![keys.agent("peer", 1), keys.endpoint("peer", 2)]).encode_to_vec());
    let read = wire::ConfigResponse::decode(message.clone()).unwrap();
    let is_of_message = |payload: &Bytes| message.as_ptr_range().contains(&payload.as_ptr());
    assert!(read.resources.iter().all(|r| is_of_message(&r.payload)));
    assert!(world.apply(&read, NOW).is_empty());
    let held: Vec<_> = world.resources().map(AsRef::as_ref).chain(world.newest()).collect();
    assert_eq!(held.len(), 3);
    assert!(held.iter().all(|r| !r.payload.is_empty() && !is_of_message(&r.payload)));
}

/// What is held is not forgotten for tombstones' sake.
#[test]
fn tombstones_push_nothing_out() {
    let keys = Keys::new();
    let mut world = keys.world();
    assert!(world.apply(&push(vec![keys.agent("peer", 1)]), NOW).is_empty());
    let gone = (0..=MAX_TOMBSTONES).map(|n| keys.gone(Kind::Agent, &format!("guest-{n}"), 2 + n as u64));
    assert!(world.apply(&push(gone.collect()), NOW).is_empty());
    assert!(world.snapshot().agent(&"peer".parse().unwrap()).is_some());
    assert!(world.held.len() <= MAX_TOMBSTONES);
}

#[test]
fn the_endpoints_of_an_agent_that_is_let_go_are_forgotten() {
    let keys = Keys::new();
    let mut world = keys.world();
    let all = vec![keys.endpoint("peer", 1), keys.endpoint("other", 2)];
    assert!(world.apply(&push(all), NOW).is_empty());
    let (peer, other): (AgentName, AgentName) = ("peer".parse().unwrap(), "other".parse().unwrap());
    world.forget_endpoints(&HashSet::from([peer.clone()]));
    let snapshot = world.snapshot();
    assert_eq!(
        (snapshot.endpoints(&peer).len(), snapshot.endpoints(&other).len()),
        (0, 1)
    );
}

#[test]
fn what_denies_finds_room_however_much_peers_have_filled() {
    let keys = Keys::new();
    let mut world = keys.world();
    let filler = keys.endpoint("peer", 1);
    for n in 0..MAX_RESOURCES {
        let id = ResourceId::new(Kind::Endpoint, format!("peer/{n}"));
        world.hold(id, &filler, Document::Nothing);
    }
    let rego = "package aip.policy.stop\n\nrules contains {\"rule\": \"r\", \"verdict\": \"deny\", \"reason\": \"no\"} if {\n\
                \tinput.request.method == \"TRACE\"\n}\n";
    let policy = serde_json::json!({"name": "stop", "rego": rego});
    let policy = keys.resource(Kind::Policy, "stop", 2, serde_json::to_vec(&policy).unwrap());
    world.take(&policy, NOW).unwrap();
    assert!(world.snapshot().policies.contains_key("stop"));
    world.take(&keys.agent("me", 3), NOW).unwrap();
    let refused = world.take(&keys.agent("another", 4), NOW).unwrap_err();
    assert_eq!(refused.reason, "too_many", "of what only peers are, there is no more");
}

#[test]
fn the_newest_of_all_that_was_taken_is_shown_also_once_it_was_let_go() {
    let keys = Keys::new();
    let mut world = keys.world();
    assert!(world.newest().is_none());
    let (agent, endpoint) = (keys.agent("peer", 7), keys.endpoint("peer", 9));
    for resource in [&endpoint, &agent] {
        world.take(resource, NOW).unwrap();
        assert_eq!(world.newest(), Some(&endpoint));
    }
    world.forget_endpoints(&HashSet::from(["peer".parse().unwrap()]));
    assert_eq!(world.newest(), Some(&endpoint));
    let mut forged = keys.agent("peer", 10);
    forged.revision = 11;
    world.take(&forged, NOW).unwrap_err();
    assert_eq!(world.newest(), Some(&endpoint), "what nobody signed is not shown");
    let gone = keys.gone(Kind::Agent, "peer", 12);
    world.take(&gone, NOW).unwrap();
    assert_eq!(world.newest(), Some(&gone));
}
