//! What a control plane, or whoever stands in its place, could say to get a lease that nobody granted.

use aip_api::kill::{Heartbeat, Lease, MAX_HEARTBEAT_BYTES, OnLost, set_signing_bytes};
use aip_api::resource::KeyPurpose;
use aip_api::wire::SignedHeartbeat;
use aip_runtime::kill::sign_heartbeat;

use super::*;
use crate::kill::keeper::tests::Rig;
use crate::testing::{Keys, kill_set};

/// Changes an answer that is good.
type Change = fn(&mut Heartbeat);

const ENDLESS: Lease = Lease {
    seconds: 60,
    on_lost: OnLost::Continue,
};

/// A session that holds (2, 5) and has been granted nothing.
async fn session() -> (Session, Arc<Keys>, tempfile::TempDir) {
    let keys = Arc::new(Keys::new());
    let Rig {
        mut keeper, proxy, dir, ..
    } = Rig::of(keys.clone());
    let ack = keeper.take(&proxy, keys.set(&kill_set(2, 5, &[]))).await;
    assert_eq!(ack.rejected, "");
    let client = Client {
        control_plane: "127.0.0.1:9".parse().unwrap(),
        trust: keys.trust().shared(),
        instance: "me".into(),
        proxy,
        revoked: Revoked::default(),
        drained: watch::channel(None).1,
    };
    let session = Session {
        shown: shown(&client),
        left: None,
        beats: Beats::new(client.instance.clone()),
        client,
        keeper,
        granted: 0,
    };
    (session, keys, dir)
}

impl Session {
    /// A good answer to a beat that is asked now.
    fn answer(&mut self) -> Heartbeat {
        Heartbeat {
            v: 1,
            trust_domain: "aip.internal".parse().unwrap(),
            term: 2,
            epoch: 5,
            at: 1,
            instance: "me".into(),
            sequence: self.beats.ask(boottime()),
            lease: ENDLESS,
        }
    }

    async fn ignores(&mut self, signed: &SignedHeartbeat, what: &str) {
        assert_eq!(self.heard(signed).await, Taken::Not, "{what}");
        assert!(self.keeper.gate.lease().is_lost(), "{what}");
        assert_eq!((self.keeper.granted(), self.granted), (None, 0), "{what}");
    }
}

#[tokio::test]
async fn a_heartbeat_that_no_kill_key_of_this_mesh_signed_as_one_grants_nothing() {
    let (mut session, keys, _dir) = session().await;
    let (kill, config) = (keys.signer(KeyPurpose::Kill), keys.signer(KeyPurpose::Config));
    let other = Keys::new();
    let answer = session.answer();
    let payload = serde_json::to_vec(&answer).unwrap();
    let good = keys.heartbeat(&answer);
    let with = |signature: Vec<u8>, kid: &str| SignedHeartbeat {
        signature,
        kid: kid.into(),
        payload: payload.clone(),
    };
    let poorer = Heartbeat {
        lease: Lease {
            seconds: 5,
            on_lost: OnLost::Deny,
        },
        ..answer.clone()
    };
    let raised = with(keys.heartbeat(&poorer).signature, kill.kid());
    let as_a_set = with(kill.sign(&set_signing_bytes(&payload)).to_vec(), kill.kid());
    for (what, signed) in [
        ("a better lease than was signed", raised),
        ("no signature", with(Vec::new(), kill.kid())),
        ("a signature of these bytes for a set", as_a_set),
        (
            "a signature without a label",
            with(kill.sign(&payload).to_vec(), kill.kid()),
        ),
        ("the kill key of another mesh", other.heartbeat(&answer)),
        (
            "the same, under our key's name",
            with(other.heartbeat(&answer).signature, kill.kid()),
        ),
        ("the config key", sign_heartbeat(config, payload.clone())),
        (
            "more than one can have",
            sign_heartbeat(kill, vec![b' '; MAX_HEARTBEAT_BYTES + 1]),
        ),
    ] {
        session.ignores(&signed, what).await;
    }
    // None of that has used up the question.
    assert_eq!(session.heard(&good).await, Taken::Changed);
    assert!(!session.keeper.gate.lease().is_lost());
    assert_eq!(session.granted, answer.sequence);
}

#[tokio::test]
async fn a_heartbeat_that_is_signed_and_says_something_else_grants_nothing() {
    let (mut session, keys, _dir) = session().await;
    let changes: [(&str, Change); 9] = [
        ("of another mesh", |h| {
            h.trust_domain = "other.internal".parse().unwrap()
        }),
        ("of another version", |h| h.v = 2),
        ("to another process", |h| h.instance = "another".into()),
        ("to a beat that was never sent", |h| h.sequence += 1),
        ("of an earlier set", |h| h.epoch = 4),
        ("of a later set", |h| h.epoch = 6),
        ("of another term", |h| h.term = 1),
        ("of no lease", |h| h.lease.seconds = 0),
        ("of a lease without bounds", |h| h.lease.seconds = u64::MAX),
    ];
    for (what, change) in changes {
        let mut answer = session.answer();
        change(&mut answer);
        session.ignores(&keys.heartbeat(&answer), what).await;
    }
}

/// One that was kept grants nothing a second time, to this process or to the next.
#[tokio::test]
async fn a_heartbeat_that_is_said_again_grants_nothing() {
    let (mut session, keys, _dir) = session().await;
    let deny = Lease {
        seconds: 5,
        on_lost: OnLost::Deny,
    };
    let answer = Heartbeat {
        lease: deny,
        ..session.answer()
    };
    let signed = keys.heartbeat(&answer);
    assert_eq!(session.heard(&signed).await, Taken::Changed);
    // Its time is over.
    let lease = session.keeper.gate.lease().clone();
    lease.grant(deny, boottime().saturating_sub(Duration::from_secs(6)));
    assert!(lease.is_lost());
    session.answer();
    assert_eq!(session.heard(&signed).await, Taken::Not);
    assert!(lease.is_lost(), "the same answer to the same question");
    session.beats = Beats::new("the next process".into());
    session.answer();
    assert_eq!(session.heard(&signed).await, Taken::Not);
    assert!(lease.is_lost(), "the first question of another process");
}
