//! Children: each in a process group of its own, so that ending it ends whatever it started.

use std::io::{PipeReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::Instant;

use crate::exit::{Exit, Failure};

mod descendants;
mod guard;
mod log;
mod signals;

pub(crate) use descendants::{Descendants, Left};
pub(crate) use guard::{GUARD, Guard, guard};
pub(crate) use signals::{Children, Signals};

/// The flag by which our own programs end with whoever started them: with their standard input, which [`Output::Log`]
/// makes a socket whose other end this process holds open.
pub(crate) const LIFELINE: &str = "--lifeline";

/// How long a child may take to end by itself: a sidecar's own drain deadline (20 s) and a little more.
pub(crate) const GRACE: Duration = Duration::from_secs(25);
/// How long what a child left behind may take after it.
const LEFTOVERS: Duration = Duration::from_secs(2);
/// Between two looks at whether a group is empty.
const LOOK: Duration = Duration::from_millis(20);
/// How long the rest of what a child wrote may take to be in its log, once the child has ended: what it started may hold
/// the pipe open for longer.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 6;
/// Bytes of a log that are read for them.
const TAIL_BYTES: u64 = 8 * 1024;

/// Where a child's stdout and stderr go.
pub(crate) enum Output<'a> {
    /// To ours, and its standard input is ours.
    Inherit,
    /// To this file, which is turned over before it grows large. Its standard input says nothing, and ends with us.
    Log(&'a Path),
}

/// A child and its process group. Dropped while it runs, it is killed with its group.
#[derive(Debug)]
pub(crate) struct Child {
    child: tokio::process::Child,
    pid: u32,
    group: Option<Pid>,
    /// Closed by the kernel when this process ends, however it does; what the child writes into its end is for us.
    lifeline: Option<Lines<BufReader<UnixStream>>>,
    log: Option<Logged>,
}

/// Where a child's output goes.
#[derive(Debug)]
struct Logged {
    path: PathBuf,
    /// How long it was before.
    from: u64,
    pump: JoinHandle<()>,
}

/// A command for the program that lies beside this one, or in `PATH`.
pub(crate) fn sibling(name: &str) -> Result<Command, Failure> {
    program(name).map(Command::new)
}

/// The program that lies beside this one, or in `PATH`.
pub(crate) fn program(name: &str) -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(name)));
    beside.filter(|p| p.is_file()).or_else(|| in_path(name)).ok_or_else(|| {
        Failure::new(Exit::Failed, format!("{name} is neither beside aip nor in PATH"))
            .next("build it with `cargo build`, or install it beside aip")
    })
}

/// Where `PATH` finds a program.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let runs =
        |path: &PathBuf| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(runs)
}

impl Child {
    pub(crate) fn spawn(mut command: Command, output: Output<'_>) -> Result<Self, Failure> {
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let failed =
            |e: std::io::Error| Failure::new(Exit::Failed, format!("{program} can't be started")).why(e.to_string());
        command.process_group(0);
        let (reader, lifeline) = match output {
            Output::Inherit => (None, None),
            Output::Log(path) => {
                let (reader, writer) = std::io::pipe().map_err(failed)?;
                let (watched, lifeline) = socket_pair().map_err(failed)?;
                command.stdin(watched);
                command.stdout(writer.try_clone().map_err(failed)?).stderr(writer);
                let log = log::Log::open(path).map_err(failed)?;
                (Some((path, reader, log)), Some(lifeline))
            }
        };
        let child = command.spawn().map_err(failed)?;
        // The command holds the writing end: the reader would never see the end of the child's output.
        drop(command);
        let log = reader.map(|(path, reader, log)| Logged {
            path: path.to_owned(),
            from: log.bytes(),
            pump: std::thread::spawn(move || pump(reader, log)),
        });
        let pid = child.id().unwrap_or_default();
        let group = i32::try_from(pid).ok().and_then(Pid::from_raw);
        Ok(Self {
            child,
            pid,
            group,
            lifeline: lifeline.map(|ours| BufReader::new(ours).lines()),
            log,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// What it said last, of all that it logged. To be asked once it has ended.
    pub(crate) fn last_words(&self) -> String {
        let Some(log) = &self.log else { return String::new() };
        let deadline = std::time::Instant::now() + LAST_WORDS;
        while !log.pump.is_finished() && std::time::Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        tail_from(&log.path, log.from)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        self.child
            .try_wait()
            .map_err(|e| Failure::new(Exit::Failed, "a child can't be waited for").why(e.to_string()))
    }

    /// Waits until it ends by itself.
    pub(crate) async fn wait(&mut self) -> Result<ExitStatus, Failure> {
        self.child
            .wait()
            .await
            .map_err(|e| Failure::new(Exit::Failed, "a child can't be waited for").why(e.to_string()))
    }

    /// What happens first: it ends, or it says something on its standard input.
    pub(crate) async fn next(&mut self) -> Result<Event, Failure> {
        let said = line(&mut self.lifeline);
        tokio::select! {
            biased;
            line = said => Ok(Event::Said(line)),
            status = self.child.wait() => status
                .map(Event::Ended)
                .map_err(|e| Failure::new(Exit::Failed, "a child can't be waited for").why(e.to_string())),
        }
    }

    /// What it says next on its standard input; never, of one that says nothing.
    pub(crate) async fn heard(&mut self) -> String {
        line(&mut self.lifeline).await
    }

    /// What it has said already, line by line.
    pub(crate) async fn said(&mut self) -> Option<String> {
        tokio::select! {
            biased;
            line = line(&mut self.lifeline) => Some(line),
            () = std::future::ready(()) => None,
        }
    }

    /// Sends a signal to the whole group; one that is gone already needs none.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// SIGTERM to the group, up to `grace` for it to end, then SIGKILL; nothing of the group is left.
    pub(crate) async fn stop(&mut self, grace: Duration) {
        self.signal(Signal::TERM);
        let _ = tokio::time::timeout(grace, self.child.wait()).await;
        self.clear().await;
    }

    /// Ends what is left of the group.
    pub(crate) async fn clear(&mut self) {
        let Some(group) = self.group else { return };
        let deadline = Instant::now() + LEFTOVERS;
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            self.signal(Signal::TERM);
            while Instant::now() < deadline && alive(group) {
                tokio::time::sleep(LOOK).await;
            }
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait().await;
        self.group = None;
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// What a child does next.
#[derive(Debug)]
pub(crate) enum Event {
    /// It ended.
    Ended(ExitStatus),
    /// It said this.
    Said(String),
}

/// The next line; never, of one that says nothing.
async fn line(lifeline: &mut Option<Lines<BufReader<UnixStream>>>) -> String {
    // Once the other end is closed nothing comes: whether the process has ended is seen elsewhere.
    if let Some(lines) = lifeline
        && let Ok(Some(line)) = lines.next_line().await
    {
        return line;
    }
    std::future::pending().await
}

/// A socket whose first end is a child's standard input.
fn socket_pair() -> std::io::Result<(std::process::Stdio, UnixStream)> {
    let (theirs, ours) = UnixStream::pair()?;
    let theirs = theirs.into_std()?;
    theirs.set_nonblocking(false)?;
    Ok((std::os::fd::OwnedFd::from(theirs).into(), ours))
}

/// Whether a process with this id runs.
pub(crate) fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

fn alive(group: Pid) -> bool {
    rustix::process::test_kill_process_group(group).is_ok()
}

fn pump(mut reader: PipeReader, mut log: log::Log) {
    let mut buffer = vec![0; 16 * 1024];
    // A full disk must not stop the child: its output is read on and lost.
    while let Ok(n @ 1..) = reader.read(&mut buffer) {
        let _ = log.write(&buffer[..n]);
    }
}

/// The last lines of a log.
pub(crate) fn tail(path: &Path) -> String {
    tail_from(path, 0)
}

fn tail_from(path: &Path, from: u64) -> String {
    use std::io::{Seek as _, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        // A log that was turned over begins anew.
        let from = if from > length { 0 } else { from };
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES).max(from)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    last_words(&read().unwrap_or_default())
}

/// What a log ends in. Our programs say at their end why, in plain words or as the error of a log line: then that is all
/// there is to show.
fn last_words(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let logged = lines
        .last()
        .and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    if let Some(why) = logged
        .as_ref()
        .filter(|l| l["level"] == "ERROR")
        .and_then(|l| l["error"].as_str())
    {
        return why.to_owned();
    }
    let said = lines.iter().rev().take_while(|line| !line.starts_with('{')).count();
    let shown = if said == 0 { TAIL_LINES } else { said.min(TAIL_LINES) };
    lines[lines.len().saturating_sub(shown)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn stopping_a_child_ends_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        // The shell ignores SIGTERM, and so does what it starts.
        let mut child = Child::spawn(shell("trap '' TERM; sleep 600 & echo up; wait"), Output::Log(&log)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !tail(&log).contains("up") {
            assert!(Instant::now() < deadline, "the child does not write its log");
            tokio::time::sleep(LOOK).await;
        }
        let group = child.group.unwrap();
        child.stop(Duration::from_millis(50)).await;
        while alive(group) {
            assert!(Instant::now() < deadline, "something of the group is left");
            tokio::time::sleep(LOOK).await;
        }
    }

    #[test]
    fn what_a_program_said_at_its_end_is_not_buried_in_its_log() {
        assert_eq!(
            last_words("{\"level\":\"info\"}\nthe port\nis taken\n"),
            "the port\nis taken"
        );
        assert_eq!(last_words("{\"a\":1}\n{\"b\":2}\n"), "{\"a\":1}\n{\"b\":2}");
        assert_eq!(last_words(""), "");
        let logged = "{\"level\":\"INFO\"}\n{\"level\":\"ERROR\",\"error\":\"the port is taken\"}\n";
        assert_eq!(last_words(logged), "the port is taken");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_a_clear_failure() {
        let failure = sibling("aip-no-such-program").unwrap_err();
        assert!(failure.to_string().contains("neither beside aip nor in PATH"));
        assert!(in_path("sh").is_some());
    }
}
