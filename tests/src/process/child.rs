//! One process: in a group of its own, logging to files, ended with the test whatever happens to the test.

use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::wait;

/// Starts the program in its arguments, and beside it, in the same process group, one that waits for our end of a
/// pipe to close: a test that is killed, or a mesh in a `static`, which is never dropped, leaves nothing behind.
/// The group is first asked to end, because an `aip run` in it has an agent of its own to end.
const LEASHED: &str = r#"exec 3<&0 </dev/null
(trap '' TERM; cat <&3 >/dev/null; kill -s TERM -- -$$; sleep 8; kill -s KILL -- -$$) >/dev/null 2>&1 &
exec 3<&-
exec "$@""#;

/// How long a supervisor may take to end what it started.
const GRACE: Duration = Duration::from_secs(10);
/// Between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// A process that ends when this is dropped.
#[derive(Debug)]
pub struct Process {
    pub name: String,
    child: Child,
    leash: Option<ChildStdin>,
    /// It has children of its own to end, in groups of their own.
    supervisor: bool,
    out: PathBuf,
    err: PathBuf,
}

impl Process {
    /// Starts `command`; its output goes to `<dir>/<name>.out` and `.err`.
    pub fn start(name: &str, command: &Command, dir: &Path) -> Self {
        let (out, err) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let log = |path: &Path| File::options().create(true).append(true).open(path).unwrap();
        let mut leashed = Command::new("sh");
        leashed
            .arg("-c")
            .arg(LEASHED)
            .arg("sh")
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => leashed.env(key, value),
                None => leashed.env_remove(key),
            };
        }
        leashed.current_dir(command.get_current_dir().unwrap_or(dir));
        leashed
            .stdin(Stdio::piped())
            .stdout(log(&out))
            .stderr(log(&err))
            .process_group(0);
        let mut child = leashed.spawn().unwrap_or_else(|e| panic!("{name} starts: {e}"));
        let leash = child.stdin.take();
        Self {
            name: name.to_owned(),
            child,
            leash,
            supervisor: false,
            out,
            err,
        }
    }

    /// As [`Self::start`], of a program that must be asked to end, because it ends others.
    pub fn start_supervisor(name: &str, command: &Command, dir: &Path) -> Self {
        let mut process = Self::start(name, command, dir);
        process.supervisor = true;
        process
    }

    /// SIGTERM, and waits a while for its end.
    fn ask_to_end(&mut self) {
        let _ = rustix::process::kill_process(self.pid(), Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < GRACE && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(LOOK);
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Bytes of memory that it has.
    pub fn resident(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid().as_raw_nonzero())).unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.out)
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.err)
    }

    /// Sends a signal to the process itself.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap_or_else(|e| panic!("{} is there: {e}", self.name));
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub async fn end(&mut self) -> ExitStatus {
        let what = format!("{} ends", self.name);
        wait::until(&what, async || self.ended()).await
    }

    /// Panics with its last words if it has ended.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} ended with {status}:\n{}", self.name, self.last_words());
        }
    }

    /// The end of its logs.
    pub fn last_words(&self) -> String {
        let tail = |text: String| {
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(60)..].join("\n")
        };
        format!(
            "--- {} stdout\n{}\n--- {} stderr\n{}",
            self.name,
            tail(self.stdout()),
            self.name,
            tail(self.stderr())
        )
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_words());
        }
        if self.supervisor {
            self.ask_to_end();
        }
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // What is left of the group ends with the leash.
        drop(self.leash.take());
    }
}

/// Runs a command that must end by itself, with a failure.
pub async fn fails(command: Command) -> String {
    ended_badly(command).await.0
}

/// What a command that must fail said, and its exit code.
pub async fn ended_badly(mut command: Command) -> (String, Option<i32>) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    let child = command.kill_on_drop(true).spawn().unwrap();
    let ended = tokio::time::timeout(wait::DEADLINE, child.wait_with_output()).await;
    let output: Output = ended.unwrap_or_else(|_| panic!("{command:?} did not end")).unwrap();
    assert!(!output.status.success(), "{command:?} succeeded");
    (
        String::from_utf8_lossy(&output.stderr).into_owned(),
        output.status.code(),
    )
}

/// A port that was free a moment ago, and that no outgoing connection takes meanwhile: below the kernel's own (ip(7)).
pub fn free_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first: u64 = range
        .split_whitespace()
        .next()
        .map_or(0, |first| first.parse().unwrap());
    let lowest = 20_000;
    let start = RandomState::new().build_hasher().finish();
    let ports = (0..first.saturating_sub(lowest)).map(|i| lowest + start.wrapping_add(i) % (first - lowest));
    // Any, where there are none below.
    let ports = ports.map(|port| u16::try_from(port).unwrap()).chain([0]);
    let mut free = ports.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    free.next().unwrap().local_addr().unwrap().port()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens when the test process is gone: its end of the pipe closes.
    #[tokio::test]
    async fn a_process_ends_with_its_leash() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo started; wait"]);
        let mut process = Process::start("leashed", &command, dir.path());
        wait::until("it runs", async || process.stdout().contains("started").then_some(())).await;
        process.assert_alive();
        drop(process.leash.take());
        assert!(!process.end().await.success());
        let group = process.pid();
        wait::until("what it started ends too", async || {
            let members = std::fs::read_dir("/proc").unwrap().filter_map(|e| {
                let stat = std::fs::read_to_string(e.ok()?.path().join("stat")).ok()?;
                let rest: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
                // State and process group: proc(5).
                (rest[0] != "Z" && rest[2].parse() == Ok(group.as_raw_nonzero().get()) && !stat.contains("(sh)"))
                    .then_some(())
            });
            (members.count() == 0).then_some(())
        })
        .await;
    }
}
