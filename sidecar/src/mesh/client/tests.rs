use aip_api::resource::ResourceId;
use prost::Message as _;

use super::*;
use crate::testing::Keys;

/// A session as it is while its stream is up.
fn session(keys: &Keys) -> Session {
    let trust = keys.origin.trust().shared();
    let world = World::new(keys.origin.clone(), trust.clone());
    let (mesh, asked) = Mesh::new(world.snapshot());
    let client = Client {
        control_plane: "127.0.0.1:1".parse().unwrap(),
        svid: SvidSource::default(),
        revoked: Revoked::default(),
        trust,
        ready: Readiness::new(&["config"]),
        instance: String::new(),
        cache: None,
        lease: watch::channel(None).1,
        origins: mpsc::channel(1).1,
        asked,
        answered: watch::channel(0).0,
    };
    Session {
        client,
        mesh,
        world,
        peers: HashSet::new(),
    }
}

fn said(outgoing: &mut mpsc::Receiver<wire::ConfigRequest>) -> Vec<Message> {
    std::iter::from_fn(|| outgoing.try_recv().ok())
        .filter_map(|request| request.message)
        .collect()
}

#[tokio::test]
async fn a_name_that_does_not_exist_stays_no_subscription() {
    let mut session = session(&Keys::new());
    let (send, mut outgoing) = mpsc::channel(OUTGOING);
    let name: AgentName = "nobody".parse().unwrap();
    session.ask(name.clone(), &send).await.unwrap();
    let subscribed = said(&mut outgoing);
    let missing = PEER_KINDS.map(|kind| wire::Missing {
        kind: kind.to_wire() as i32,
        name: name.to_string(),
    });
    let push = wire::ConfigResponse {
        nonce: 1,
        missing: missing.to_vec(),
        ..wire::ConfigResponse::default()
    };
    session.take(push, &send).await.unwrap();
    assert!(session.mesh.is_absent(&name));
    let answered = said(&mut outgoing);
    let kinds = |said: &[Message], wanted: fn(&Message) -> Option<&wire::Subscribe>| -> Vec<i32> {
        let wanted = said.iter().filter_map(wanted);
        wanted.filter(|s| s.names == ["nobody"]).map(|s| s.kind).collect()
    };
    let taken = kinds(&subscribed, |said| match said {
        Message::Subscribe(subscribe) => Some(subscribe),
        _ => None,
    });
    let given_up = kinds(&answered, |said| match said {
        Message::Unsubscribe(subscribe) => Some(subscribe),
        _ => None,
    });
    assert_eq!(taken, PEER_KINDS.map(|kind| kind.to_wire() as i32));
    assert_eq!(given_up, taken, "each subscription is given up");
    assert!(matches!(answered.last(), Some(Message::Ack(_))), "{answered:?}");
}

#[test]
fn what_is_said_of_rejected_resources_is_a_message_that_is_read() {
    let refused = |n: usize| Rejected {
        id: ResourceId::new(Kind::Policy, "x".repeat(200)),
        revision: n as u64,
        reason: "policy_compile",
        detail: "é".repeat(50_000),
    };
    for count in [1, 7, 512] {
        let rejected = rejections((0..count).map(refused).collect());
        assert_eq!(rejected.len(), count);
        let ack = wire::Ack { nonce: 1, rejected };
        assert!(ack.encoded_len() < 256 * 1024 - 64, "{count}: {}", ack.encoded_len());
    }
}
