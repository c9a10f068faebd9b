//! An agent behind `aip run`, as its user starts it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::child::Process;
use super::sidecar::sample;
use super::{Mesh, Records, binary};
use crate::{http, wait};

/// Answers whatever it is asked.
const ANSWERS: &str = r"
import http.server, os
class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('content-length', '0')
        self.end_headers()
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Agent).serve_forever()
";

/// A running `aip run`.
#[derive(Debug)]
pub struct RunAgent {
    pub name: String,
    pub process: Process,
    /// What `aip run` says of itself.
    pub state: Value,
    seen: PathBuf,
    steps: PathBuf,
}

impl RunAgent {
    /// A program that answers every GET with an empty 200.
    pub fn answers() -> Command {
        let mut program = Command::new("python3");
        program.args(["-c", ANSWERS]);
        program
    }

    /// Starts `program` as the agent `name` of `mesh`, and waits until it serves.
    pub async fn start(mesh: &Mesh, name: &str, program: &Command, flags: &[&str]) -> Self {
        let dir = mesh.dir(&format!("run-{name}"));
        let (state, seen, steps) = (dir.join("state.json"), dir.join("seen.jsonl"), mesh.dir("steps"));
        let mut command = Command::new(binary("aip"));
        command.arg("run").arg("--home").arg(mesh.dir("home"));
        command.arg("--admin").arg(format!("http://{}", mesh.admin().address));
        command
            .arg("--token-file")
            .arg(mesh.control_plane.dir.join("data/admin.jwt"));
        command.arg("--control-plane").arg(mesh.control_plane.mesh.to_string());
        command
            .arg("--name")
            .arg(name)
            .arg("--state-file")
            .arg(&state)
            .args(flags);
        command.arg("--").arg(program.get_program()).args(program.get_args());
        for (key, value) in program.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        command.env("SEEN", &seen).env("STEPS", &steps).current_dir(&dir);
        let mut process = Process::start_supervisor(&format!("run-{name}"), &command, &dir);
        let state = wait::until_ok(&format!("the agent {name} serves"), async || {
            process.assert_alive();
            let text = std::fs::read(&state).map_err(|e| e.to_string())?;
            let state: Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
            if state["phase"] == "ready" {
                Ok(state)
            } else {
                Err(state.to_string())
            }
        })
        .await;
        Self {
            name: name.to_owned(),
            process,
            state,
            seen,
            steps,
        }
    }

    fn address(&self, field: &str) -> SocketAddr {
        self.state[field]
            .as_str()
            .and_then(|a| a.parse().ok())
            .unwrap_or_else(|| panic!("{field} in {}", self.state))
    }

    /// The directory that the agent runs in.
    pub fn directory(&self) -> &Path {
        self.seen.parent().unwrap()
    }

    /// Where its sidecar takes the agent's calls.
    pub fn outbound(&self) -> SocketAddr {
        self.address("outbound")
    }

    /// Its sidecar's admin port.
    pub fn admin(&self) -> SocketAddr {
        self.address("admin")
    }

    /// The environment that `aip run` gave the agent: what a client beside it would inherit.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let pid = self.state["agent"].as_u64().unwrap();
        let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let pairs = bytes
            .split(|b| *b == 0)
            .filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='));
        let mut env: BTreeMap<String, String> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        env.insert("STEPS".into(), self.steps.display().to_string());
        env
    }

    /// Its sidecar's access log so far.
    pub fn records(&self) -> Records {
        let log = self.state["sidecar_log"].as_str().unwrap();
        Records::parse(&String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()))
    }

    /// Whether its sidecar has nothing in flight, and every request that ended is on the record: a line is written a
    /// moment after its request.
    ///
    /// # Errors
    /// What is still missing.
    pub async fn is_settled(&self) -> Result<(), String> {
        let page = http::get(self.admin(), "/metrics").await?.text();
        let in_flight = sample(&page, "aip_requests_in_flight", &[]);
        let ended = sample(&page, "aip_requests_total", &[]);
        let lines = self.records().0.len();
        if in_flight == 0.0 && ended == lines as f64 {
            return Ok(());
        }
        Err(format!(
            "{}: {in_flight} in flight, {ended} ended, {lines} on the record",
            self.name
        ))
    }

    /// What the agent itself says it saw.
    pub fn seen(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.seen).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What the agent printed.
    pub fn stdout(&self) -> String {
        self.process.stdout()
    }
}
