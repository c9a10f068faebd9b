//! The control plane, ended at the commits of what sidecars ask of it: an SVID, a report of drift, and a checkpoint of their
//! audit. It is one mesh that goes through all of them; at each, one such thing was acknowledged just before, another is
//! under way, and everything that was ever acknowledged is looked for afterwards.

use std::path::PathBuf;
use std::time::Duration;

use aip_tests::agent::Agent;
use aip_tests::process::{ControlPlane, DEV, Mesh, Sidecar, SidecarSpec};
use aip_tests::{trail, wait};
use serde_json::{Value, json};

use crate::{AFTER, FAULT, SEEN, is_killed, points};

/// How long it may take until it goes on: a sidecar waits up to 15 s between two attempts, and signs every 4 s.
const GOES_ON: Duration = Duration::from_secs(120);

/// What a commit is part of, and how its points begin and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Issuance,
    Drift,
    Ledger,
}

impl Work {
    fn point(self, step: &str) -> String {
        match self {
            Self::Issuance => format!("store:{step}:svid.issue#1"),
            Self::Drift => format!("store:{step}:agent.drift#1"),
            Self::Ledger => format!("checkpoints:{step}#1"),
        }
    }
}

/// Something that was acknowledged.
#[derive(Debug)]
enum Kept {
    /// To this agent, with this serial number.
    Svid(String, String),
    /// Of this agent.
    Drift(String),
    /// The first checkpoints of the ledger.
    Checkpoints(Vec<Value>),
}

struct Rig {
    mesh: Mesh,
    agent: Agent,
    caller: Sidecar,
    /// Those that joined for the sake of it.
    joined: Vec<Sidecar>,
    kept: Vec<Kept>,
    after: PathBuf,
}

/// An agent whose sidecar does the work: it joins, or runs already.
enum Ready {
    ToJoin(Box<SidecarSpec>),
    Runs(Box<Sidecar>),
    Nobody,
}

impl Rig {
    async fn start() -> Self {
        let mesh = Mesh::start().await;
        let agent = Agent::start();
        let caller = mesh.sidecar("caller", agent.address).await;
        let mut rig = Self {
            after: mesh.dir("points").join("after"),
            mesh,
            agent,
            caller,
            joined: Vec::new(),
            kept: Vec::new(),
        };
        assert!(rig.signs().await);
        // What is looked at in the end, whoever is ended before it.
        wait::until("a log comes up", async || trail::report_of_copies(&rig.mesh).await.ok()).await;
        rig
    }

    async fn ready(&self, work: Work, name: &str) -> Ready {
        if work == Work::Ledger {
            return Ready::Nobody;
        }
        let spec = self.mesh.spec(json!({"name": name}), self.agent.address).await;
        match work {
            Work::Drift => Ready::Runs(Box::new(Sidecar::start(spec, &self.mesh.dir(name)).await)),
            _ => Ready::ToJoin(Box::new(spec)),
        }
    }

    /// Starts the control plane where it was, as one that notes its points or ends at one.
    async fn start_again(&mut self, variable: &str, value: &str) {
        let (mesh, admin) = (self.mesh.control_plane.mesh, self.mesh.control_plane.admin.address);
        let dir = self.mesh.control_plane.dir.clone();
        let mut command = ControlPlane::command(&ControlPlane::data(&dir), mesh, admin, DEV);
        command.env(variable, value).env(AFTER, &self.after);
        let _ = std::fs::remove_file(&self.after);
        self.mesh.control_plane.kill();
        self.mesh.control_plane.revive_as(&command).await;
    }

    fn ended(&mut self) -> bool {
        self.mesh.control_plane.process.ended().is_some()
    }

    /// Does it, until it is acknowledged or the control plane has ended: whether it was acknowledged.
    async fn work(&mut self, ready: Ready) -> bool {
        match ready {
            Ready::ToJoin(spec) => self.joins(*spec).await,
            Ready::Runs(sidecar) => self.drifts(*sidecar).await,
            Ready::Nobody => self.signs().await,
        }
    }

    async fn joins(&mut self, spec: SidecarSpec) -> bool {
        let (name, dir) = (spec.name.clone(), self.mesh.dir(&spec.name));
        let command = Sidecar::command(&spec, &dir);
        let sidecar = Sidecar::start_as(spec, &dir, &command).await;
        let has_one = wait::until("it has an SVID, or the control plane has ended", async || {
            let ready = aip_tests::http::get(sidecar.probes, "/readyz").await;
            if ready.is_ok_and(|ready| !ready.text().contains("identity")) {
                return Some(true);
            }
            self.ended().then_some(false)
        })
        .await;
        if has_one {
            let own = sidecar.look("/identity").await.json();
            self.kept
                .push(Kept::Svid(name, own["serial"].as_str().unwrap().to_owned()));
        }
        self.joined.push(sidecar);
        has_one
    }

    async fn drifts(&mut self, sidecar: Sidecar) -> bool {
        std::fs::write(sidecar.dir.join("code/agent.txt"), "edited").unwrap();
        let marker = sidecar.dir.join("data/drift.json");
        let reported = wait::until("it is reported, or the control plane has ended", async || {
            let marker: Option<Value> = std::fs::read(&marker)
                .ok()
                .and_then(|m| serde_json::from_slice(&m).ok());
            if marker.is_some_and(|marker| marker["reported"] == true) {
                return Some(true);
            }
            self.ended().then_some(false)
        })
        .await;
        let name = sidecar.spec.name.clone();
        self.joined.push(sidecar);
        self.kept.extend(reported.then_some(Kept::Drift(name)));
        reported
    }

    /// A call, which the caller's log has and its next checkpoint covers.
    async fn signs(&mut self) -> bool {
        let before = self.checkpoints().await.unwrap_or_default().len();
        let _ = self.caller.get("http://nobody.aip.internal/").await;
        let taken = wait::until(
            "a checkpoint is taken, or the control plane has ended",
            async || match self.checkpoints().await {
                Some(all) if all.len() > before => Some(Some(all)),
                _ => self.ended().then_some(None),
            },
        )
        .await;
        let is_taken = taken.is_some();
        self.kept.extend(taken.map(Kept::Checkpoints));
        is_taken
    }

    /// The ledger; none where the control plane does not answer.
    async fn checkpoints(&self) -> Option<Vec<Value>> {
        let path = "/v1/audit/checkpoints?limit=500";
        let answer = self.mesh.admin().attempt(http::Method::GET, path, None).await.ok()?;
        let page: Value = serde_json::from_slice(&answer.body).ok()?;
        assert!(page["next"].is_null(), "more checkpoints than a page holds");
        page["items"].as_array().cloned()
    }

    /// Everything that was acknowledged is there.
    async fn holds(&self, point: &str) {
        let admin = self.mesh.admin();
        for kept in &self.kept {
            match kept {
                Kept::Svid(agent, serial) => {
                    let all = admin.get(&format!("/v1/agents/{agent}/svids")).await;
                    let mut all = all["items"].as_array().unwrap().iter();
                    assert!(
                        all.any(|svid| svid["serial"] == **serial),
                        "at {point}: {kept:?} is lost"
                    );
                }
                Kept::Drift(agent) => {
                    assert!(self.has_drifted(agent).await, "at {point}: {kept:?} is lost");
                }
                Kept::Checkpoints(first) => {
                    let all = self.checkpoints().await.unwrap();
                    assert!(all.starts_with(first), "at {point}: of {first:?} there is {all:?}");
                }
            }
        }
    }

    /// The record, the generation and the revocation of it, which are of one transaction.
    async fn has_drifted(&self, agent: &str) -> bool {
        let admin = self.mesh.admin();
        let recorded = async || {
            let drifts = admin.get("/v1/drift?limit=500").await;
            let mut drifts = drifts["items"].as_array().unwrap().iter();
            drifts.any(|drift| drift["agent"] == agent && drift["generation"] == 2)
        };
        let revoked = async || {
            let registered = admin.get(&format!("/v1/agents/{agent}")).await;
            let raised = registered["resource"]["generation"] == 2;
            let revocations = admin.get("/v1/revocations?limit=500").await;
            let mut revocations = revocations["items"].as_array().unwrap().iter();
            let revoked = revocations.any(|held| held["resource"]["generation"]["agent"] == agent);
            (raised, revoked)
        };
        // These are several answers: where it was committed between them they differ, and do so once only.
        let (before, mut rest, after) = (recorded().await, revoked().await, recorded().await);
        if before != after {
            rest = revoked().await;
        }
        assert_eq!(
            rest,
            (after, after),
            "{agent}: its generation and revocation, and whether it is recorded"
        );
        after
    }

    /// What got no answer is asked for again by whoever asked, and is then there once.
    async fn goes_on(&self, work: Work, name: &str, point: &str) {
        let answered = self.kept.iter().rev().find_map(|kept| match kept {
            Kept::Checkpoints(all) => Some(all.len()),
            Kept::Svid(..) | Kept::Drift(_) => None,
        });
        let done = async || match work {
            Work::Issuance => {
                let own = self.joined.iter().find(|sidecar| sidecar.spec.name == name)?;
                let ready = aip_tests::http::get(own.probes, "/readyz").await.ok()?;
                ready.status.is_success().then_some(())
            }
            Work::Drift => self.has_drifted(name).await.then_some(()),
            Work::Ledger => self
                .checkpoints()
                .await
                .filter(|all| Some(all.len()) > answered)
                .map(drop),
        };
        wait::until_within(GOES_ON, &format!("{work:?} goes on after {point}"), done).await;
        let report = trail::report_of_copies(&self.mesh).await.unwrap();
        assert!(report.faults.is_empty(), "after {point}: {:#?}", report.faults);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_sidecar_was_answered_is_lost_at_any_commit() {
    let mut rig = Rig::start().await;
    let works = [Work::Issuance, Work::Drift, Work::Ledger];
    for work in works {
        let seen = rig.mesh.dir("points").join(format!("{work:?}"));
        let first = rig.ready(work, &format!("seen-{work:?}").to_lowercase()).await;
        rig.start_again(SEEN, seen.to_str().unwrap()).await;
        std::fs::write(&rig.after, "").unwrap();
        assert!(rig.work(first).await);
        let points = points(&seen);
        for step in ["changed", "committed"] {
            let point = work.point(step);
            assert!(points.contains(&point), "{point} is not among {points:?}");
            ends_at(&mut rig, work, step).await;
        }
    }
}

async fn ends_at(rig: &mut Rig, work: Work, step: &str) {
    let point = work.point(step);
    let name = format!("{work:?}-{step}").to_lowercase();
    let first = rig.ready(work, &format!("{name}-first")).await;
    let second = rig.ready(work, &name).await;
    rig.start_again(FAULT, &point).await;
    assert!(rig.work(first).await, "nothing counts yet, at {point}");
    std::fs::write(&rig.after, "").unwrap();
    // A ledger is read by others, too: they may see what is committed in the moment before the end.
    let answered = rig.work(second).await;
    assert!(
        !answered || work == Work::Ledger,
        "it ends before it answers, at {point}"
    );
    is_killed(&mut rig.mesh.control_plane.process, &point).await;
    rig.mesh.revive().await;
    rig.holds(&point).await;
    rig.goes_on(work, &name, &point).await;
    rig.holds(&point).await;
}
