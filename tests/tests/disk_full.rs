//! A sidecar whose audit lies on a disk that is full: what must be recorded is refused, the rest goes on and is counted, and
//! everything goes on by itself when there is room. The disk is a real one, of two MiB, that only the sidecar's process sees.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use aip_audit::record::Event;
use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::{trail, wait};
use http::Method;

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

struct Rig {
    mesh: Mesh,
    agent: Agent,
    caller: Sidecar,
    callee: Sidecar,
}

impl Rig {
    async fn start(durability: &str) -> Self {
        needs_namespaces();
        let mesh = Mesh::start().await;
        let agent = Agent::start();
        let caller = mesh.sidecar("caller", agent.address).await;
        let spec = mesh.spec(serde_json::json!({"name": "callee"}), agent.address).await;
        let dir = mesh.dir("callee");
        let audit = dir.join("data/audit");
        fs::create_dir_all(&audit).unwrap();
        let command = on_a_small_disk(&Sidecar::command(&spec, &dir), audit.to_str().unwrap());
        let callee = Sidecar::start_as(spec, &dir, &command).await;
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
        };
        rig.goes_through().await;
        rig
    }

    /// The audit, as the sidecar's process sees it.
    fn audit(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.callee.process.pid().as_raw_nonzero()));
        root.join(self.mesh.dir("callee").strip_prefix("/").unwrap())
            .join("data/audit")
    }

    /// Fills the disk to its last byte.
    fn fill(&self) {
        let mut filler = File::create(self.audit().join("filler")).unwrap();
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
        fs::remove_file(self.audit().join("filler")).unwrap();
    }

    async fn goes_through(&self) {
        wait::until_ok("a call gets through", async || {
            let answer = self.caller.get(URL).await;
            (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
        })
        .await;
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
