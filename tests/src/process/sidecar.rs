//! A sidecar process, and what it says of itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use ::http::Request;
use ::http::request::Builder;
use bytes::Bytes;
use http_body_util::Full;
use serde_json::Value;

use super::child::Process;
use super::{Records, binary};
use crate::http::{self, Answer};
use crate::wait;

/// How to start a sidecar.
#[derive(Debug, Clone)]
pub struct SidecarSpec {
    pub name: String,
    pub control_plane: SocketAddr,
    pub token: String,
    /// Where its agent serves.
    pub agent: SocketAddr,
    /// Where it listens, in the order of [`Sidecar`]'s fields; port 0 takes a free one.
    pub ports: [SocketAddr; 4],
    /// More flags.
    pub flags: Vec<String>,
}

/// Lets whoever reaches the outbound port speak as the agent.
pub const OPEN: &str = "--proxy-open";
/// Flags that say who may, instead.
const ACCESS: [&str; 2] = ["--proxy-secret-file", "--agent-uid"];

/// Free ports on loopback.
pub const FREE: [SocketAddr; 4] = [SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0); 4];

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    pub spec: SidecarSpec,
    pub process: Process,
    pub dir: PathBuf,
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    pub admin: SocketAddr,
    pub probes: SocketAddr,
}

impl Sidecar {
    /// The command line, with its files under `dir`.
    pub fn command(spec: &SidecarSpec, dir: &Path) -> Command {
        for sub in ["data", "run", "code"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let code = dir.join("code/agent.txt");
        if !code.exists() {
            std::fs::write(code, &spec.name).unwrap();
        }
        let mut command = Command::new(binary("aip-sidecar"));
        command.args(["--name", &spec.name]);
        command.args(["--control-plane", &spec.control_plane.to_string()]);
        command.args(["--agent", &spec.agent.to_string()]);
        for (flag, address) in ["--inbound", "--outbound", "--admin", "--probes"]
            .iter()
            .zip(spec.ports)
        {
            command.arg(flag).arg(address.to_string());
        }
        command.arg("--data").arg(dir.join("data"));
        command.arg("--runtime-dir").arg(dir.join("run"));
        command.arg("--root").arg(dir.join("code"));
        command.args(["--code", "**"]);
        command.args(&spec.flags);
        // Most tests call as the agent would, and are about something else than how it shows who it is.
        if !spec.flags.iter().any(|flag| ACCESS.contains(&flag.as_str())) {
            command.arg(OPEN);
        }
        command.env("AIP_JOIN_TOKEN", &spec.token);
        command
    }

    /// Starts it, with its files under `dir`, and waits until it is ready.
    pub async fn start(spec: SidecarSpec, dir: &Path) -> Self {
        let sidecar = Self::start_unready(spec, dir).await;
        sidecar.ready().await;
        sidecar
    }

    /// Starts it and waits until it listens.
    pub async fn start_unready(spec: SidecarSpec, dir: &Path) -> Self {
        let command = Self::command(&spec, dir);
        Self::start_as(spec, dir, &command).await
    }

    /// Starts it by this command, made from [`Self::command`], and waits until it listens.
    pub async fn start_as(spec: SidecarSpec, dir: &Path, command: &Command) -> Self {
        Self::start_seeing(spec, dir, command, |_, path| path).await
    }

    /// As [`Self::start_as`], of one that sees other file systems: `here` says where a path of its is for this process.
    pub async fn start_seeing(
        spec: SidecarSpec,
        dir: &Path,
        command: &Command,
        here: impl Fn(&Process, PathBuf) -> PathBuf,
    ) -> Self {
        let run = dir.join("data/run.json");
        let _ = std::fs::remove_file(&run);
        let mut process = Process::start(&format!("sidecar-{}", spec.name), command, dir);
        let ports = read_run(&here(&process, run), &mut process).await;
        let port = |field: &str| {
            ports[field]
                .as_str()
                .and_then(|p| p.parse().ok())
                .unwrap_or_else(|| panic!("{field} in {ports}"))
        };
        Self {
            inbound: port("inbound"),
            outbound: port("outbound"),
            admin: port("admin"),
            probes: port("probes"),
            spec,
            process,
            dir: dir.to_owned(),
        }
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        let what = format!("the sidecar of {} is ready", self.spec.name);
        wait::until_ok(&what, async || match http::get(self.probes, "/readyz").await {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) => Err(format!("{} {}", answer.status, answer.text())),
            Err(e) => Err(e),
        })
        .await;
    }

    /// SIGKILL and start again where it was, from what is on its disk.
    pub async fn restart(&mut self) {
        self.process.kill();
        let (mut spec, dir) = (self.spec.clone(), self.dir.clone());
        spec.ports = [self.inbound, self.outbound, self.admin, self.probes];
        *self = Self::start(spec, &dir).await;
    }

    /// A GET of its admin port.
    pub async fn look(&self, path: &str) -> Answer {
        http::get(self.admin, path)
            .await
            .expect("the sidecar's admin port answers")
    }

    /// The value of a metric's sample whose labels contain all of `labels`; 0 where there is none.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        sample(&self.look("/metrics").await.text(), name, labels)
    }

    /// Its access log so far.
    pub fn records(&self) -> Records {
        Records::parse(&self.process.stdout())
    }

    /// Calls `url` as its agent would: absolute-form through the outbound port.
    pub async fn call(&self, request: Builder, body: impl Into<Bytes>) -> Answer {
        let mut request = request.body(Full::new(body.into())).unwrap();
        if let Some(authority) = request.uri().authority().cloned() {
            request
                .headers_mut()
                .entry("host")
                .or_insert(authority.as_str().parse().unwrap());
        }
        http::send(self.outbound, request)
            .await
            .expect("the outbound port answers")
    }

    /// A GET of `url` through the outbound port.
    pub async fn get(&self, url: &str) -> Answer {
        self.call(Request::get(url), "").await
    }

    /// The revisions and names it holds, as its snapshot says.
    pub async fn snapshot(&self) -> Value {
        self.look("/snapshot").await.json()
    }
}

/// A sample of a Prometheus text page.
pub(crate) fn sample(page: &str, name: &str, labels: &[&str]) -> f64 {
    page.lines()
        .filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Waits for the file in which a process says where it listens.
pub(crate) async fn read_run(path: &Path, process: &mut Process) -> Value {
    let what = format!("{} listens", process.name);
    wait::until(&what, async || {
        process.assert_alive();
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    })
    .await
}
