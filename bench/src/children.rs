//! Processes that are started, waited for and ended.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Longest time until a server we started listens.
const START: Duration = Duration::from_secs(20);
/// How long a process has to end after SIGTERM before it is killed.
const STOP: Duration = Duration::from_secs(5);
/// How often a condition is looked at: short beside a start, long beside the look.
const POLL: Duration = Duration::from_millis(20);

/// A process that ends when this is dropped: SIGTERM, so that it takes its workers along, and SIGKILL if it must be.
pub(crate) struct Child {
    name: String,
    process: Process,
    log: PathBuf,
}

impl Child {
    /// Starts `command` in `dir`; what it prints goes to `<dir>/<name>.out`.
    pub(crate) fn start(name: &str, command: &mut Command, dir: &Path) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.out"));
        let out = File::create(&log)?;
        let process = command
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("start {name}: {}", command.get_program().display()))?;
        Ok(Self {
            name: name.to_owned(),
            process,
            log,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until `addr` accepts connections.
    pub(crate) async fn listening(&mut self, addr: SocketAddr) -> anyhow::Result<()> {
        self.until(&format!("listen on {addr}"), || {
            std::net::TcpStream::connect(addr).is_ok().then_some(())
        })
        .await
    }

    /// Waits until `found` finds something; an error when the process ends before, or when it takes too long.
    pub(crate) async fn until<T>(&mut self, what: &str, mut found: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(found) = found() {
                return Ok(found);
            }
            if let Some(status) = self.process.try_wait()? {
                bail!(
                    "{} ended ({status}) before it could {what}:\n{}",
                    self.name,
                    self.last_words()
                );
            }
            if Instant::now() > deadline {
                bail!("{} did not {what} within {START:?}:\n{}", self.name, self.last_words());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends it in order, so that what it writes at its end is there; an error when it ends badly, or not within `within`.
    pub(crate) async fn end(mut self, within: Duration) -> anyhow::Result<()> {
        self.terminate();
        let deadline = Instant::now() + within;
        loop {
            match self.process.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("{} ended badly ({status}):\n{}", self.name, self.last_words()),
                None if Instant::now() > deadline => bail!("{} did not end within {within:?}", self.name),
                None => tokio::time::sleep(POLL).await,
            }
        }
    }

    fn terminate(&self) {
        if let Some(pid) = Pid::from_raw(self.process.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Of one that has ended, the id may be another's by now.
        if !matches!(self.process.try_wait(), Ok(None)) {
            return;
        }
        self.terminate();
        let deadline = Instant::now() + STOP;
        while Instant::now() < deadline {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Loopback ports that nobody listens on now.
pub(crate) fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        // All are held until the last is found, so that none is handed out twice.
        held.push(listener);
    }
    Ok(ports)
}

/// A command that ends by itself; an error with what it said unless it succeeds.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
