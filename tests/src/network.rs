//! Hosts of their own on one machine: network namespaces, joined by links that a test slows, thins out, narrows and cuts.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::process::repository;

/// The case of a test that runs where it may make namespaces.
const INSIDE: &str = "AIP_TEST_IN_NAMESPACES";
/// A place for the namespaces' names that only this test sees.
const OWN_NAMES: &str = r#"mount -t tmpfs tmpfs /run && mkdir /run/netns && exec "$@""#;

/// What a test does there.
pub type Case = Pin<Box<dyn Future<Output = ()>>>;

/// Runs each case of the test `name` as the root of a user namespace of its own, away from the machine's network; all at
/// once, since most of their time they wait.
///
/// # Panics
/// One failed there, or there are no namespaces: a skipped test would say that this was looked at.
pub fn isolated<const N: usize>(name: &str, cases: [(&str, Case); N]) {
    if let Ok(inside) = std::env::var(INSIDE) {
        let case = cases.into_iter().find(|(case, _)| *case == inside);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        return runtime.unwrap().block_on(case.expect("a case of this test").1);
    }
    std::thread::scope(|scope| {
        let ended = cases.map(|(case, _)| (case, scope.spawn(move || ends_well(name, case))));
        let failed: Vec<_> = ended
            .into_iter()
            .filter_map(|(case, ended)| Some(format!("{case}: {}", ended.join().unwrap().err()?)))
            .collect();
        assert!(failed.is_empty(), "{name} failed for {}", failed.join("\n\n"));
    });
}

fn ends_well(name: &str, case: &str) -> Result<(), String> {
    let mut test = Command::new("unshare");
    test.args(["--user", "--map-root-user", "--net", "--mount", "--"]);
    test.args(["sh", "-c", OWN_NAMES, "sh"]);
    test.arg(std::env::current_exe().unwrap());
    test.args(["--exact", name, "--nocapture"]).env(INSIDE, case);
    let ended = test.output().expect("unshare (util-linux) runs");
    let [out, err] = [ended.stdout, ended.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    if ended.status.success() && out.contains("1 passed") {
        return Ok(());
    }
    Err(format!(
        "{out}\n{err}\nit needs unshare, ip (iproute2), python3, /dev/net/tun and user namespaces (sysctl \
         kernel.unprivileged_userns_clone=1, user.max_user_namespaces > 0)"
    ))
}

/// Something to do on a host's own thread.
type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// One machine of a [`Network`]: a thread in a network namespace. What it starts is in that namespace, too.
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    /// By which the others know it.
    pub address: Ipv4Addr,
    jobs: mpsc::Sender<Job>,
}

impl Host {
    fn start(name: &str, address: Ipv4Addr) -> Self {
        let (jobs, mut todo) = mpsc::channel::<Job>(1);
        let namespace = File::open(format!("/run/netns/{name}")).unwrap();
        let serve = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async {
                while let Some(job) = todo.recv().await {
                    tokio::task::spawn_local(job());
                }
            });
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(serve).unwrap();
        let name = name.to_owned();
        Self { name, address, jobs }
    }

    /// Does `job` on this host, beside what else is done there.
    ///
    /// # Panics
    /// The job did.
    pub async fn run<T: Send + 'static>(&self, job: impl AsyncFnOnce() -> T + Send + 'static) -> T {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            Box::pin(async move {
                let _ = done.send(job().await);
            })
        });
        assert!(self.jobs.send(job).await.is_ok(), "{} has ended", self.name);
        result
            .await
            .unwrap_or_else(|_| panic!("what ran on {} failed", self.name))
    }
}

/// What happens to packets in one direction of a link. By default nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    pub delay_ms: u32,
    /// The part that is lost, of 1.
    pub loss: f64,
    /// None arrives, and nobody is told.
    pub cut: bool,
    /// The largest packet in bytes; 0 for any.
    pub mtu: u32,
    /// Whether the sender of a larger one is told.
    pub icmp: bool,
}

impl Link {
    pub const CUT: Self = Self {
        delay_ms: 0,
        loss: 0.0,
        cut: true,
        mtu: 0,
        icmp: false,
    };
}

/// Hosts, and the process that forwards packets between them.
#[derive(Debug)]
pub struct Network {
    process: Child,
    control: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Network {
    /// Hosts of these names; all links are whole.
    pub fn start<const N: usize>(names: [&str; N]) -> (Self, [Host; N]) {
        let mut last = 0;
        let hosts = names.map(|name| {
            last += 1;
            (name, Ipv4Addr::new(10, 9, 0, last))
        });
        let mut command = Command::new("python3");
        command.arg(repository().join("tests/network/links.py"));
        command.args(hosts.map(|(name, address)| format!("{name}={address}")));
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let control = (
            process.stdin.take().unwrap(),
            BufReader::new(process.stdout.take().unwrap()),
        );
        let network = Self {
            process,
            control: Mutex::new(control),
        };
        network.answers("ready");
        (network, hosts.map(|(name, address)| Host::start(name, address)))
    }

    /// From now on, packets between the two meet this, in both directions.
    pub fn between(&self, one: &Host, other: &Host, link: Link) {
        self.from(one, other, link);
        self.from(other, one, link);
    }

    /// From now on, packets from one host to another meet this.
    pub fn from(&self, from: &Host, to: &Host, link: Link) {
        let Link {
            delay_ms,
            loss,
            cut,
            mtu,
            icmp,
        } = link;
        let line = json!({"from": from.address, "to": to.address, "delay_ms": delay_ms, "loss": loss, "cut": cut,
            "mtu": mtu, "icmp": icmp});
        writeln!(self.control.lock().unwrap().0, "{line}").unwrap();
        self.answers("ok");
    }

    fn answers(&self, expected: &str) {
        let mut said = String::new();
        self.control.lock().unwrap().1.read_line(&mut said).unwrap();
        assert_eq!(said.trim(), expected, "the links' process says why");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
