//! The programs of `tests/clients`: official SDKs, used as their documentation says.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::process::binary;
use crate::wait::DEADLINE;

/// Installed clients.
#[derive(Debug, Clone)]
pub struct Clients {
    scripts: PathBuf,
    out: PathBuf,
}

/// Installs them where that was not done; a second call is instant.
pub fn clients() -> &'static Clients {
    static CLIENTS: OnceLock<Clients> = OnceLock::new();
    CLIENTS.get_or_init(|| {
        let scripts = crate::process::repository().join("tests/clients");
        let status = Command::new(scripts.join("setup.sh")).status().expect("setup.sh runs");
        assert!(status.success(), "tests/clients/setup.sh failed");
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let out = target
            .unwrap_or_else(|| crate::process::repository().join("target"))
            .join("clients");
        Clients { scripts, out }
    })
}

impl Clients {
    /// The command of a script: Python or Node, by its name's end.
    pub fn script(&self, name: &str, args: &[&str]) -> Command {
        let mut command = if name.ends_with(".mjs") {
            self.node()
        } else {
            Command::new(self.out.join("venv/bin/python"))
        };
        command.arg(self.scripts.join(name)).args(args);
        command
            .env("NODE_CLIENTS", self.out.join("node"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// The everything server of the MCP project.
    pub fn everything(&self) -> Command {
        let mut command = self.node();
        command
            .arg(self.out.join("node/node_modules/.bin/mcp-server-everything"))
            .arg("streamableHttp");
        command
    }

    /// The program on reqwest. Built where that was not done; a second call is instant.
    pub fn reqwest(&self, args: &[&str]) -> Command {
        static BUILT: OnceLock<()> = OnceLock::new();
        BUILT.get_or_init(|| {
            let setup = self.scripts.join("reqwest/setup.sh");
            let status = Command::new(setup).status().expect("setup.sh runs");
            assert!(status.success(), "tests/clients/reqwest/setup.sh failed");
        });
        let mut command = Command::new(self.out.join("reqwest/debug/aip-reqwest-client"));
        command.args(args);
        command
    }

    fn node(&self) -> Command {
        Command::new(self.out.join("node/node_modules/.bin/node"))
    }

    /// The path of a script: what `aip run` measures.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scripts.join(name)
    }
}

/// What a client printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The JSON line of a client that succeeded.
    pub fn observed(&self) -> Value {
        assert!(self.success, "the client failed: {self:#?}");
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|e| panic!("one JSON line ({e}): {self:#?}"))
    }
}

/// Runs `command` in exactly the environment `env` (and PATH), to its end.
pub async fn run(mut command: Command, env: &BTreeMap<String, String>) -> Ran {
    let own: Vec<_> = command
        .get_envs()
        .map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned)))
        .collect();
    command.env_clear().envs(env);
    for (key, value) in own {
        if let Some(value) = value {
            command.env(key, value);
        }
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let child = command.spawn().expect("the client starts");
    let output = tokio::time::timeout(DEADLINE * 2, child.wait_with_output()).await;
    let output = output.expect("the client ends in time").unwrap();
    Ran {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `aip` with these arguments.
pub fn aip(args: &[&str]) -> Command {
    let mut command = Command::new(binary("aip"));
    command.args(args);
    command
}
