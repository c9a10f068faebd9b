//! Large bodies through a pair: whole, both ways, and in the memory that the windows allow.

use std::process::Command;

use aip_tests::clients::{clients, run};
use aip_tests::process::{Mesh, RunAgent};

const MIB: u64 = 1 << 20;
/// What both directions may add to a sidecar: the windows of its connections (4 MiB each), its send buffers, and what
/// an allocator keeps. A body that is held is much more.
const GROWTH: u64 = 24 * MIB;

/// Both ends of a pair of its own: what other tests made it hold does not count.
struct Ends {
    caller: RunAgent,
    callee: RunAgent,
    _mesh: Mesh,
}

impl Ends {
    async fn start() -> Self {
        let mesh = Mesh::start().await;
        let caller = RunAgent::start(&mesh, "caller", &clients().script("http_server.py", &[]), &[]).await;
        let callee = RunAgent::start(&mesh, "callee", &clients().script("web_aiohttp.py", &[]), &[]).await;
        Self {
            caller,
            callee,
            _mesh: mesh,
        }
    }

    async fn shell(&self, script: &str, bytes: u64) -> String {
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh", &bytes.to_string()]);
        let ran = run(shell, &self.caller.environment()).await;
        assert!(ran.success, "{ran:?}");
        ran.stdout
    }

    /// This many bytes down and the same up: both ends say the same of them.
    async fn move_bytes(&self, bytes: u64) {
        let down = r#"curl -sS --fail "http://callee.aip.internal/bytes?n=$1" | sha256sum"#;
        let down = self.shell(down, bytes).await;
        let up = r#"python3 -c 'import sys
block = bytes(range(256)) * 4096
for _ in range(int(sys.argv[1]) // len(block)): sys.stdout.buffer.write(block)' "$1" |
            curl -sS --fail -T - http://callee.aip.internal/sink"#;
        let up: serde_json::Value = serde_json::from_str(&self.shell(up, bytes).await).unwrap();
        assert_eq!(up["count"], bytes);
        assert_eq!(
            Some(up["sha256"].as_str().unwrap()),
            down.split_whitespace().next(),
            "the same bytes both ways"
        );
    }

    /// The most that each sidecar has held so far, in bytes.
    fn peaks(&self) -> [u64; 2] {
        [&self.caller, &self.callee].map(|end| {
            let pid = end.state["sidecar"].as_u64().unwrap();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
        })
    }
}

async fn moved_in_flat_memory(bytes: u64) {
    let ends = Ends::start().await;
    ends.move_bytes(MIB).await;
    let before = ends.peaks();
    ends.move_bytes(bytes).await;
    let after = ends.peaks();
    for (before, after) in before.into_iter().zip(after) {
        assert!(after < before + GROWTH, "it grew from {before} to {after} bytes");
    }
    println!("{} MiB both ways: from {before:?} to {after:?} bytes", bytes / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarter_of_a_gibibyte_each_way_in_flat_memory() {
    moved_in_flat_memory(256 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "moves 4 GiB: `make soak`"]
async fn two_gibibytes_each_way_in_flat_memory() {
    moved_in_flat_memory(2048 * MIB).await;
}
