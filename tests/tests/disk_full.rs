//! A sidecar whose disk is full: what must be recorded is refused, the rest goes on and is counted; an order to stop is
//! enforced and not acknowledged, and a drift suspends and is reported; and everything goes on by itself when there is room.
//! The disk is a real one, of two MiB, that only the sidecar's process sees.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use aip_audit::record::Event;
use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Process, Sidecar};
use aip_tests::{trail, wait};
use http::Method;
use serde_json::{Value, json};

const URL: &str = "http://callee.aip.internal/work";
/// Calls while nothing can be recorded.
const CALLS: usize = 500;
/// Bytes by which a process may grow over them: what it holds for each would be more.
const GROWTH: u64 = 64 * 1024 * 1024;

/// Mounts a small file system at its first argument, in a namespace of its own, and becomes the rest.
const ON_A_SMALL_DISK: &str = r#"mount -t tmpfs -o size=2m,mode=700 tmpfs "$1" && shift && exec "$@""#;

/// The command, with `at` on a small disk of its own.
fn on_a_small_disk(command: &Command, at: &str) -> Command {
    let mut small = Command::new("unshare");
    small.args([
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        ON_A_SMALL_DISK,
        "sh",
        at,
    ]);
    small.arg(command.get_program()).args(command.get_args());
    small.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    small
}

/// Where a path of this process lies for us.
fn seen_by(process: &Process, path: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{}/root", process.pid().as_raw_nonzero()));
    root.join(path.strip_prefix("/").unwrap())
}

struct Rig {
    mesh: Mesh,
    agent: Agent,
    caller: Sidecar,
    callee: Sidecar,
    /// What of the callee is on the small disk.
    small: PathBuf,
}

impl Rig {
    async fn start(durability: &str) -> Self {
        Self::with_small("data/audit", durability).await
    }

    /// With this directory of the callee on the small disk.
    async fn with_small(small: &str, durability: &str) -> Self {
        needs_namespaces();
        let mesh = Mesh::start().await;
        let agent = Agent::start();
        let caller = mesh.sidecar("caller", agent.address).await;
        let spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
        let dir = mesh.dir("callee");
        let small = dir.join(small);
        fs::create_dir_all(&small).unwrap();
        let command = on_a_small_disk(&Sidecar::command(&spec, &dir), small.to_str().unwrap());
        let seen = |process: &Process, path: PathBuf| seen_by(process, &path);
        let callee = Sidecar::start_seeing(spec, &dir, &command, seen).await;
        callee.ready().await;
        let mut config = mesh.admin().get("/v1/mesh-config").await;
        let config = &mut config["resource"];
        config["audit"]["durability"] = durability.into();
        let put = mesh.admin().ok(Method::PUT, "/v1/mesh-config", Some(config)).await;
        mesh.admin().acknowledged(put["revision"].as_u64().unwrap()).await;
        let rig = Self {
            mesh,
            agent,
            caller,
            callee,
            small,
        };
        rig.goes_through().await;
        rig
    }

    /// A file below the callee's directory, as its process sees it.
    fn file(&self, path: &str) -> PathBuf {
        seen_by(&self.callee.process, &self.callee.dir.join(path))
    }

    fn audit(&self) -> PathBuf {
        self.file("data/audit")
    }

    fn filler(&self) -> PathBuf {
        seen_by(&self.callee.process, &self.small.join("filler"))
    }

    /// Fills the disk to its last byte.
    fn fill(&self) {
        let mut filler = File::create(self.filler()).unwrap();
        let block = [0; 4096];
        let full = loop {
            if let Err(full) = filler.write_all(&block) {
                break full;
            }
            assert!(
                filler.metadata().unwrap().len() < 4 << 20,
                "the sidecar has no disk of its own"
            );
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    async fn goes_through(&self) {
        wait::until_ok("a call gets through", async || {
            let answer = self.caller.get(URL).await;
            (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
        })
        .await;
    }

    /// Who has enforced a set, and who has not and why, once that is as `done` says.
    async fn progress(&self, of: &Value, what: &str, done: impl Fn(&Value) -> bool) {
        let (term, epoch) = (&of["term"], &of["epoch"]);
        let path = format!("/v1/kills/progress?term={term}&epoch={epoch}&wait_ms=200");
        wait::until_ok(what, async || {
            let shown = self.mesh.admin().get(&path).await;
            done(&shown).then_some(()).ok_or_else(|| shown.to_string())
        })
        .await;
    }

    /// Whether the callee's own calls are refused as those of a killed agent.
    async fn is_killed(&self) -> bool {
        let answer = self.callee.get("http://caller.aip.internal/work").await;
        answer.status == 503 && answer.reason() == "killed"
    }

    async fn lost(&self) -> u64 {
        self.callee.look("/audit").await.json()["log"]["lost"].as_u64().unwrap()
    }

    /// The logs, copied to where everybody sees them: a verifier follows links, and the one to the process' root ends at ours.
    fn copied(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for log in trail::logs(&self.audit()) {
            let to = copy.path().join(log.file_name().unwrap());
            fs::create_dir(&to).unwrap();
            for file in fs::read_dir(&log).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
        copy
    }

    /// The log holds, and says how many records are missing.
    async fn holds_with_a_gap(&self) {
        wait::until_ok("the log verifies", async || {
            let copy = self.copied();
            trail::verifies(&self.mesh, copy.path()).await
        })
        .await;
        let gaps = trail::events(&self.audit())
            .into_iter()
            .filter_map(|event| match event {
                Event::Gap(gap) => Some(gap),
                _ => None,
            });
        let gaps: Vec<_> = gaps.collect();
        assert!(gaps.iter().all(|gap| gap.reason == "disk_full"), "{gaps:?}");
        assert_eq!(gaps.iter().map(|gap| gap.lost).sum::<u64>(), self.lost().await);
        assert!(!gaps.is_empty());
    }
}

/// A skipped test would say that this was looked at.
fn needs_namespaces() {
    let tried = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "true"])
        .output();
    let allowed = tried.as_ref().is_ok_and(|tried| tried.status.success());
    assert!(
        allowed,
        "this test needs unshare (util-linux) and user namespaces (sysctl kernel.unprivileged_userns_clone=1, \
         user.max_user_namespaces > 0; in a container: seccomp that lets unshare and mount through): {tried:?}"
    );
}

fn resident(pid: impl std::fmt::Display) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_what_must_be_recorded_is_refused_and_goes_on_when_there_is_room() {
    for durability in ["grouped", "required"] {
        let rig = Rig::start(durability).await;
        for _ in 0..2 {
            rig.fill();
            // What still fits into the last block is recorded.
            let refused = wait::until("it is refused", async || {
                let answer = rig.caller.get(URL).await;
                (answer.status == 503).then_some(answer)
            })
            .await;
            assert_eq!(refused.reason(), "audit_unavailable");
            assert!(refused.text().contains("disk_full"), "{}", refused.text());
            let heard = rig.agent.seen("/work").len();
            for _ in 0..20 {
                assert_eq!(rig.caller.get(URL).await.reason(), "audit_unavailable");
            }
            assert_eq!(rig.agent.seen("/work").len(), heard, "the agent hears nothing");
            rig.make_room();
            rig.goes_through().await;
        }
        rig.holds_with_a_gap().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_buffered_goes_on_and_counts_what_it_loses() {
    let rig = Rig::start("buffered").await;
    rig.fill();
    wait::until("records are lost", async || {
        assert_eq!(rig.caller.get(URL).await.status, 200);
        (rig.lost().await > 0).then_some(())
    })
    .await;
    let pid = rig.callee.process.pid().as_raw_nonzero();
    let (before, lost) = (resident(pid), rig.lost().await);
    for _ in 0..CALLS {
        assert_eq!(rig.caller.get(URL).await.status, 200);
    }
    let grown = resident(pid).saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes more after {CALLS} calls");
    assert!(rig.lost().await >= lost + CALLS as u64);
    let counted = rig.callee.metric("aip_audit_lost_total", &["disk_full"]).await;
    assert!(counted >= (lost + CALLS as u64) as f64, "{counted}");
    rig.make_room();
    rig.goes_through().await;
    rig.holds_with_a_gap().await;
}

fn refused_by_the_callee(progress: &Value) -> bool {
    let missing = &progress["missing"][0];
    let callee = missing["sidecar"]
        .as_str()
        .is_some_and(|name| name.starts_with("callee/"));
    callee && missing["rejected"] == "not_persisted" && progress["missing"].as_array().unwrap().len() == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_an_order_is_enforced_and_acknowledged_only_when_there_is_room() {
    let rig = Rig::with_small("data", "buffered").await;
    rig.fill();
    let scope = json!({"kind": "agent", "agent": "callee"});
    let order = json!({"scope": scope, "mode": "kill", "reason": "a test"});
    let order = rig.mesh.admin().ok(Method::POST, "/v1/kills", Some(&order)).await;
    rig.progress(&order, "it says that it is not on disk", refused_by_the_callee)
        .await;
    assert!(rig.is_killed().await, "enforced all the same");
    let heard = rig.agent.seen("/work").len();
    assert_ne!(rig.caller.get(URL).await.status, 200);
    assert_eq!(rig.agent.seen("/work").len(), heard);
    rig.make_room();
    let all = |progress: &Value| progress["enforced"].as_array().is_some_and(|all| all.len() == 2);
    rig.progress(&order, "it is acknowledged", all).await;

    // And what lifts it: it would be in force again after a crash.
    rig.fill();
    let orders = json!({"orders": [order["order"]]});
    let lifted = rig
        .mesh
        .admin()
        .ok(Method::POST, "/v1/kills/resume", Some(&orders))
        .await;
    rig.progress(&lifted, "it says that it is not on disk", refused_by_the_callee)
        .await;
    assert!(rig.is_killed().await, "until that is on disk");
    rig.make_room();
    rig.goes_through().await;
    rig.progress(&lifted, "it is acknowledged", all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_a_drift_suspends_and_is_reported_and_is_written_when_there_is_room() {
    let rig = Rig::with_small("data", "buffered").await;
    rig.fill();
    fs::write(rig.callee.dir.join("code/agent.txt"), "edited").unwrap();
    wait::until_ok("it is suspended", async || {
        let answer = rig.callee.get("http://caller.aip.internal/work").await;
        let drifted = answer.status == 503 && answer.reason() == "drifted";
        drifted.then_some(()).ok_or_else(|| answer.text())
    })
    .await;
    wait::until("it is reported", async || {
        let all = rig.mesh.admin().get("/v1/drift").await;
        let mut all = all["items"].as_array()?.iter();
        all.any(|drift| drift["agent"] == "callee").then_some(())
    })
    .await;
    let heard = rig.agent.seen("/work").len();
    assert_ne!(rig.caller.get(URL).await.status, 200);
    assert_eq!(rig.agent.seen("/work").len(), heard);
    let marker = rig.file("data/drift.json");
    assert!(!marker.exists(), "there was no room");
    rig.make_room();
    wait::until("the marker is written", async || marker.exists().then_some(())).await;
    let marker: Value = serde_json::from_slice(&fs::read(marker).unwrap()).unwrap();
    assert_eq!(marker["paths"], json!(["agent.txt"]));
}
