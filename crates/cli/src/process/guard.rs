//! The guard of a command: ends its process group when the process that started both is gone, however that ended. The
//! command holds nothing of ours and could not do it, and nobody else knows its group.

use std::io::{BufRead as _, PipeWriter, Write as _};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;

use super::{Child, LOOK, alive};
use crate::exit::{Exit, Failure};

/// The hidden verb that is a guard.
pub(crate) const GUARD: &str = "guard";

/// The guard's process, and the pipe at whose end it acts. Dropped, it is ended without acting.
#[derive(Debug)]
pub(crate) struct Guard {
    process: tokio::process::Child,
    pipe: PipeWriter,
}

impl Guard {
    /// Starts a guard; what it guards gets `grace` after SIGTERM. It stands in a group of its own, so that what is sent
    /// to ours does not end it too.
    pub(crate) fn start(grace: Duration) -> Result<Self, Failure> {
        let (watched, pipe) = std::io::pipe().map_err(|e| failed(&e))?;
        let mut command = Command::new(std::env::current_exe().map_err(|e| failed(&e))?);
        command.arg(GUARD).arg(grace.as_secs().to_string()).current_dir("/");
        command.stdin(watched).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.process_group(0).kill_on_drop(true).spawn();
        let process = process.map_err(|e| failed(&e))?;
        Ok(Self { process, pipe })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Guards nobody from now on: another group may come to have the number.
    pub(crate) fn unwatch(&mut self) -> Result<(), Failure> {
        writeln!(self.pipe, "0").map_err(|e| failed(&e))
    }

    /// Guards this child's group from now on.
    pub(crate) fn watch(&mut self, child: &Child) -> Result<(), Failure> {
        writeln!(self.pipe, "{}", child.pid()).map_err(|e| failed(&e))
    }
}

fn failed(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, "the command can't be guarded").why(error.to_string())
}

/// The body of a guard: reads which group to guard, waits for the end of standard input, and ends the group.
pub(crate) fn guard(grace: Duration) -> ExitCode {
    let lines = std::io::stdin().lock().lines().map_while(Result::ok);
    // What was said last counts: 0 is nobody.
    let Some(group) = lines
        .filter_map(|line| line.parse().ok())
        .last()
        .and_then(Pid::from_raw)
    else {
        return ExitCode::SUCCESS;
    };
    let _ = kill_process_group(group, Signal::TERM);
    let asked = Instant::now();
    while asked.elapsed() < grace && alive(group) {
        std::thread::sleep(LOOK);
    }
    let _ = kill_process_group(group, Signal::KILL);
    ExitCode::SUCCESS
}
