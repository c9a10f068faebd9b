//! Drift and a control plane that is ended, cut off, started again and restored from older copies of its data: what it has
//! lost it hears from the sidecars that are suspended.

use std::path::{Path, PathBuf};
use std::process::Command;

use aip_api::evidence::Drift;
use aip_runtime::grpc::identity_client::IdentityClient;
use serde_json::json;

use super::{Dice, Join, approve, blocked, drift, issued_while_blocked, join, record, report, waiting};
use crate::support::sidecar::hello;
use crate::support::{Mesh, Sidecar, settings};

/// A control plane's data, a copy of it, and who is suspended.
struct Rig {
    dir: tempfile::TempDir,
    mesh: Mesh,
    /// The highest revision that there ever was.
    highest: u64,
    suspended: Vec<(Sidecar, Drift)>,
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

impl Rig {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mesh = Mesh::start(settings(&dir.path().join("data"))).await;
        Self {
            dir,
            mesh,
            highest: 0,
            suspended: Vec::new(),
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn copied(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    async fn generation(&self) -> u64 {
        let agent = self.mesh.admin.get("/v1/agents/planner").await;
        agent["resource"]["generation"].as_u64().unwrap()
    }

    /// Ends the control plane, does this to its data, and starts it again.
    async fn between(self, change: impl FnOnce(&Path, &Path)) -> Self {
        let revision = self.mesh.admin.get("/v1/mesh").await["revision"].as_u64().unwrap();
        let (data, copied) = (self.data(), self.copied());
        self.mesh.plane.kill().await;
        change(&data, &copied);
        Self {
            mesh: Mesh::start(settings(&data)).await,
            highest: self.highest.max(revision),
            ..self
        }
    }

    async fn restored(self) -> Self {
        let rig = self.between(|data, copied| copy(copied, data)).await;
        let lift = json!({ "above": rig.highest });
        rig.mesh.admin.ok("POST", "/v1/mesh/lift", lift).await;
        rig
    }

    /// The sidecar as it is to this control plane, which may listen elsewhere by now.
    async fn again(&self, sidecar: &Sidecar) -> Sidecar {
        let (run, tls) = (&self.mesh.plane.run, aip_runtime::tls::pinned_client);
        let channel = aip_runtime::grpc::channel(run.mesh, tls(run.root).unwrap()).await;
        Sidecar {
            mesh: run.mesh,
            agent: sidecar.agent.clone(),
            identity: IdentityClient::new(channel.unwrap()),
            svid: sidecar.svid.clone(),
            trust: sidecar.trust.clone(),
        }
    }

    /// What a suspended sidecar does once it is let in: it reports, or hears that its SVID is revoked.
    async fn hears(&self, sidecar: &Sidecar, drift: &Drift) -> bool {
        let sidecar = self.again(sidecar).await;
        sidecar.connected().await.is_ok() && report(&sidecar, drift).await.is_ok()
    }

    async fn joins(&self, run: &str, code: &[u8]) -> Result<Sidecar, String> {
        let with = Join {
            run,
            code,
            drifted: None,
            of: None,
        };
        join(&self.mesh, "planner", with).await
    }
}

#[tokio::test]
async fn a_generation_that_the_store_lost_is_raised_above_and_blocks() {
    let rig = Rig::start().await;
    let first = rig.mesh.joined("planner").await;
    let rig = rig.between(copy).await;
    rig.mesh.admin.ok("POST", "/v1/agents/planner/revoke", json!({})).await;
    let later = rig.joins("later", b"code").await.unwrap();
    assert_eq!(later.svid.current().unwrap().result().generation, 2);
    let drift = Drift {
        run: "later".into(),
        ..drift(&later, b"edited")
    };
    // One that never reported: the copy is of before its SVID, too.
    let rig = rig.restored().await;
    assert_eq!(rig.generation().await, 1);
    assert!(
        rig.again(&first).await.open(hello()).await.is_ok(),
        "it knows no better yet"
    );
    assert!(rig.hears(&later, &drift).await);
    assert_eq!(rig.generation().await, 3);
    assert_eq!(record(&rig.mesh).await["generation"], 3);
    blocked(rig.joins("another", b"edited").await);
    approve(&rig.mesh, &waiting(&rig.mesh).await[0]).await;
    let back = rig.joins("another", b"edited").await.unwrap();
    assert_eq!(back.svid.current().unwrap().result().generation, 3);
}

/// By the evidence alone, where the sidecar has no SVID to report with any more. What it says is bounded.
#[tokio::test]
async fn evidence_of_a_generation_that_the_store_lost_raises_above_it_within_reason() {
    for (of, raised) in [(7, 8), (u64::MAX, 2), (1, 2)] {
        let mesh = Mesh::dev().await;
        let _before = mesh.joined("planner").await;
        let with = Join {
            run: "another",
            code: b"edited",
            drifted: Some("lost"),
            of: Some(of),
        };
        blocked(join(&mesh, "planner", with).await);
        let agent = mesh.admin.get("/v1/agents/planner").await;
        assert_eq!(agent["resource"]["generation"], raised, "of {of}");
    }
}

/// Reports, joins, approvals, restarts, copies and restores in random order, connections lost with each: after a restore
/// the sidecars that are suspended are heard, whichever comes first, and the agent is past the generations of all of them.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_restored_every_drift_is_learnt_again() {
    for seed in 0..3 {
        let mut dice = Dice(seed);
        let mut rig = Rig::start().await;
        let mut last = rig.mesh.joined("planner").await;
        let (mut run, mut restores, mut reports) = (0, 0, 0);
        rig = rig.between(copy).await;
        for step in 0..20 {
            let (name, code) = (format!("run {run}"), [b"a".as_slice(), b"b"][dice.roll(2) as usize]);
            match dice.roll(8) {
                0..=2 => {
                    let drift = Drift {
                        run: name,
                        ..drift(&last, code)
                    };
                    // Its answer may be lost: it is suspended all the same.
                    reports += usize::from(rig.hears(&last, &drift).await);
                    let suspended = rig.again(&last).await;
                    rig.suspended.push((suspended, drift));
                }
                3 | 4 => {
                    run += 1;
                    for print in waiting(&rig.mesh).await {
                        let path = format!("/v1/measurements/planner/{print}/approve");
                        let _ = rig.mesh.admin.call("POST", &path, json!({})).await;
                    }
                    if let Ok(joined) = rig.joins(&format!("run {run}"), code).await {
                        last = joined;
                    }
                }
                5 => rig = rig.between(|_, _| ()).await,
                6 => rig = rig.between(copy).await,
                _ => {
                    rig = rig.restored().await;
                    restores += 1;
                    all_are_heard(&rig, &mut dice, &format!("seed {seed}, step {step}")).await;
                }
            }
            let issued = issued_while_blocked(&rig.mesh).await;
            assert_eq!(issued, 0, "seed {seed}, step {step}: SVIDs while a drift blocks");
        }
        rig = rig.restored().await;
        all_are_heard(&rig, &mut dice, &format!("seed {seed}, at the end")).await;
        println!("seed {seed}: {reports} reports, {restores} restores in between");
        assert!(reports > 0, "seed {seed} reported nothing");
    }
}

/// All that are suspended say so again, from anyone on: then no SVID of theirs is worth anything, and saying it once more
/// changes nothing.
async fn all_are_heard(rig: &Rig, dice: &mut Dice, when: &str) {
    let all = rig.suspended.len();
    if all == 0 {
        return;
    }
    let from = dice.roll(all as u64) as usize;
    for round in 0..2 {
        let before = rig.generation().await;
        for n in 0..all {
            let (sidecar, drift) = &rig.suspended[(from + n) % all];
            rig.hears(sidecar, drift).await;
        }
        let after = rig.generation().await;
        assert!(
            round == 0 || after == before,
            "{when}: {before}, and {after} when it is said again"
        );
    }
    let generation = rig.generation().await;
    for (sidecar, drift) in &rig.suspended {
        assert!(
            generation > drift.generation,
            "{when}: {drift:?} is not past {generation}"
        );
        super::eventually(&format!("{when}: the SVID of {drift:?} to be refused"), async || {
            rig.again(sidecar).await.open(hello()).await.err()
        })
        .await;
    }
}
