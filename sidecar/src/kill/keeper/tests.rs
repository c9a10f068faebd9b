//! What a sidecar does with sets and leases, on a real disk that takes them or does not, and after its end.

mod schedules;

use std::path::PathBuf;

use aip_api::kill::{Heartbeat, OnLost};
use aip_runtime::boottime;
use aip_runtime::svid::SvidSource;

use super::*;
use crate::kill::orders::Named;
use crate::mesh::Mesh;
use crate::mesh::world::World;
use crate::proxy::ProxySettings;
use crate::request::refusal::Refusal;
use crate::testing::{Keys, kill_set};
use crate::wellknown::WellKnown;

const CONTINUE: Lease = Lease {
    seconds: 60,
    on_lost: OnLost::Continue,
};

/// A sidecar's kill state, and the data directory that outlives it.
pub(crate) struct Rig {
    pub(crate) keys: Arc<Keys>,
    pub(crate) keeper: Keeper,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) ready: Readiness,
    pub(crate) dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::of(Arc::new(Keys::new()))
    }

    pub(crate) fn of(keys: Arc<Keys>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let (keeper, proxy, ready) = begin(&keys, dir.path().join("data"));
        Self {
            keys,
            keeper,
            proxy,
            ready,
            dir,
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// From now on nothing can be written.
    fn break_disk(&self) {
        std::fs::rename(self.data(), self.dir.path().join("away")).unwrap();
    }

    fn mend_disk(&self) {
        std::fs::rename(self.dir.path().join("away"), self.data()).unwrap();
    }

    /// Ends without a word, and begins again from the disk.
    fn restart(&mut self) {
        (self.keeper, self.proxy, self.ready) = begin(&self.keys, self.data());
    }

    async fn take(&mut self, set: &KillSet) -> KillAck {
        self.keeper.take(&self.proxy, self.keys.set(set)).await
    }

    async fn grant(&mut self, lease: Lease) -> Taken {
        let heartbeat = Heartbeat {
            v: 1,
            trust_domain: "aip.internal".parse().unwrap(),
            term: 1,
            epoch: 0,
            at: 1,
            instance: "one".into(),
            sequence: 1,
            lease,
        };
        let signed = self.keys.heartbeat(&heartbeat);
        self.keeper.grant(lease, &signed, boottime()).await
    }

    /// Why a request of this agent is refused, if it is.
    fn refusal(&self, agent: &str) -> Option<Refusal> {
        let name = agent.parse().unwrap();
        let named = Named {
            name: &name,
            registered: None,
            certified: None,
        };
        let answer = self.proxy.settings.kill.accept(named, None);
        answer.err().map(|refused| refused.refusal)
    }

    fn on_disk(&self) -> Option<KillSet> {
        let trust = self.keys.trust();
        let mut places = [self.data(), self.dir.path().join("away")].into_iter();
        places.find_map(|data| Some(Disk::new(&data).load(&trust).ok()?.0.set))
    }
}

fn begin(keys: &Keys, data: PathBuf) -> (Keeper, Arc<Proxy>, Readiness) {
    let trust = keys.trust().shared();
    let ready = Readiness::new(&[READY]);
    let keeper = Keeper::restore(Disk::new(&data), trust.clone(), ready.clone(), Supervisor::default());
    let svid = SvidSource::default();
    let (mesh, _) = Mesh::new(World::new(keys.origin.clone(), trust.clone()).snapshot());
    let settings = ProxySettings::new("127.0.0.1:9".parse().unwrap(), None).stopped_by(keeper.gate());
    let proxy = Proxy::new(mesh, svid.clone(), trust, settings, WellKnown::new(svid));
    (keeper, proxy, ready)
}

/// A sidecar that holds (2, 5), with `ann` killed, and may go on.
async fn holding() -> Rig {
    let mut rig = Rig::new();
    assert_eq!(
        rig.refusal("bob"),
        Some(Refusal::KillStateUnknown),
        "nothing was received yet"
    );
    assert_eq!(rig.take(&kill_set(2, 5, &["ann"])).await.rejected, "");
    assert_eq!(rig.refusal("bob"), Some(Refusal::LeaseLost), "nobody was heard yet");
    assert_eq!(rig.grant(CONTINUE).await, Taken::Changed);
    assert!(rig.ready.is_ready());
    assert_eq!((rig.refusal("ann"), rig.refusal("bob")), (Some(Refusal::Killed), None));
    rig
}

#[tokio::test]
async fn what_is_acknowledged_holds_after_the_end_of_the_process() {
    let mut rig = holding().await;
    rig.restart();
    assert_eq!((rig.refusal("ann"), rig.refusal("bob")), (Some(Refusal::Killed), None));
    let deny = Lease {
        seconds: 60,
        on_lost: OnLost::Deny,
    };
    assert_eq!(rig.grant(deny).await, Taken::Changed);
    assert_eq!(rig.grant(deny).await, Taken::Same);
    rig.restart();
    assert_eq!(
        rig.refusal("bob"),
        Some(Refusal::LeaseLost),
        "a lease ends with its process"
    );
    assert!(!rig.ready.is_ready());
}

#[tokio::test]
async fn a_set_that_is_not_taken_changes_nothing_and_the_answer_says_why() {
    let mut rig = holding().await;
    let before = std::fs::read(rig.data().join("kill.json")).unwrap();
    let held = rig.keys.set(&kill_set(2, 5, &["ann"]));
    let forged = Keys::new().set(&kill_set(9, 9, &[]));
    for (signed, reason, shown) in [
        (forged, "unknown_key", None),
        (rig.keys.set(&kill_set(2, 4, &[])), "stale", Some(held.clone())),
        (rig.keys.set(&kill_set(1, 99, &[])), "stale", Some(held.clone())),
        (rig.keys.set(&kill_set(2, 5, &[])), "fork", Some(held)),
    ] {
        let ack = rig.keeper.take(&rig.proxy, signed).await;
        assert_eq!((ack.rejected.as_str(), ack.held), (reason, shown));
        assert_eq!((ack.term, ack.epoch), (2, 5), "{reason}: what is held");
        assert!(!ack.detail.is_empty());
        assert_eq!((rig.refusal("ann"), rig.refusal("bob")), (Some(Refusal::Killed), None));
    }
    assert_eq!(std::fs::read(rig.data().join("kill.json")).unwrap(), before);
}

#[tokio::test]
async fn what_cant_be_written_is_enforced_and_not_acknowledged() {
    let mut rig = holding().await;
    rig.break_disk();
    let next = kill_set(2, 6, &["ann", "bob"]);
    let ack = rig.take(&next).await;
    assert_eq!((ack.rejected.as_str(), ack.term, ack.epoch), ("not_persisted", 2, 6));
    assert_eq!(rig.refusal("bob"), Some(Refusal::Killed), "enforced all the same");
    let unwritten = rig.keeper.unwritten().map(|held| held.set.clone());
    assert_eq!(unwritten, Some(next.clone()), "a greeting shows it");
    assert_eq!(rig.keeper.held().unwrap().set.version(), (2, 5), "and what is written");

    let again = rig.keeper.retry(&rig.proxy).await.unwrap();
    assert_eq!(again.rejected, "not_persisted");
    rig.mend_disk();
    let again = rig.keeper.retry(&rig.proxy).await.unwrap();
    assert_eq!((again.rejected.as_str(), again.term, again.epoch), ("", 2, 6));
    assert!(rig.keeper.unwritten().is_none() && rig.keeper.retry(&rig.proxy).await.is_none());
    assert_eq!(rig.on_disk(), Some(next));
    rig.restart();
    assert_eq!(rig.refusal("bob"), Some(Refusal::Killed));
}

/// A process that ends before it could write goes on from what it wrote: nobody was told otherwise.
#[tokio::test]
async fn what_was_never_written_was_never_acknowledged_and_ends_with_the_process() {
    let mut rig = holding().await;
    rig.break_disk();
    assert_eq!(
        rig.take(&kill_set(2, 6, &["ann", "bob"])).await.rejected,
        "not_persisted"
    );
    rig.mend_disk();
    rig.restart();
    assert_eq!(rig.keeper.held().unwrap().set.version(), (2, 5));
    assert_eq!((rig.refusal("ann"), rig.refusal("bob")), (Some(Refusal::Killed), None));
}

/// An order that a set lifts holds until that set is on disk: a crash would bring it back.
#[tokio::test]
async fn what_is_lifted_holds_until_that_is_on_disk() {
    let mut rig = holding().await;
    rig.break_disk();
    assert_eq!(rig.take(&kill_set(2, 6, &[])).await.rejected, "not_persisted");
    assert_eq!(rig.refusal("ann"), Some(Refusal::Killed));
    // Neither does the next forget what the one before it added.
    let mut bob = kill_set(2, 7, &["bob"]);
    bob.orders[0].id = uuid::Uuid::now_v7().to_string();
    assert_eq!(rig.take(&bob).await.rejected, "not_persisted");
    assert_eq!(rig.take(&kill_set(2, 8, &[])).await.rejected, "not_persisted");
    for agent in ["ann", "bob"] {
        assert_eq!(rig.refusal(agent), Some(Refusal::Killed), "{agent}");
    }
    rig.mend_disk();
    assert_eq!(rig.keeper.retry(&rig.proxy).await.unwrap().rejected, "");
    assert_eq!((rig.refusal("ann"), rig.refusal("bob")), (None, None));
}

#[tokio::test]
async fn a_lease_that_is_not_on_disk_is_not_taken() {
    let mut rig = Rig::new();
    assert_eq!(
        rig.grant(CONTINUE).await,
        Taken::Not,
        "nothing is held that it could be about"
    );
    rig.take(&kill_set(2, 5, &[])).await;
    rig.break_disk();
    assert_eq!(rig.grant(CONTINUE).await, Taken::Not);
    assert_eq!(rig.refusal("bob"), Some(Refusal::LeaseLost));
    rig.mend_disk();
    assert_eq!(rig.grant(CONTINUE).await, Taken::Changed);
    assert_eq!(rig.refusal("bob"), None);
}

/// Changed, cut or taken away: then nobody knows what was ordered, and nothing goes on until the control plane says it.
#[tokio::test]
async fn a_file_that_cant_be_believed_stops_everything_until_a_set_comes() {
    for damage in ["lifted", "", "{", "absent"] {
        let mut rig = holding().await;
        let file = rig.data().join("kill.json");
        let text = std::fs::read_to_string(&file).unwrap();
        match damage {
            "absent" => std::fs::remove_file(&file).unwrap(),
            "lifted" => std::fs::write(&file, text.replacen("ann", "zoe", 1)).unwrap(),
            other => std::fs::write(&file, other).unwrap(),
        }
        rig.restart();
        for agent in ["ann", "bob"] {
            assert_eq!(rig.refusal(agent), Some(Refusal::KillStateUnknown), "{damage:?}");
        }
        assert!(rig.keeper.held().is_none() && !rig.ready.is_ready());
        assert_eq!(rig.take(&kill_set(2, 6, &["ann"])).await.rejected, "");
        rig.grant(CONTINUE).await;
        assert_eq!((rig.refusal("ann"), rig.refusal("bob")), (Some(Refusal::Killed), None));
    }
}
