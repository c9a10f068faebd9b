//! The processes of a run: the sidecar, the command and all that it started; how they are launched, stopped and ended.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use super::super::orders::Wish;
use super::super::plan::Plan;
use super::super::sidecar::Ports;
use super::super::state::{Phase, State, StateFile};
use super::super::{Run, environment};
use super::exit_code;
use crate::exit::Failure;
use crate::output::note;
use crate::process::{self, Child, Descendants, Guard, Left, Output};

/// How long the sidecar may finish what is in flight before the command is told to end.
const DRAIN: Duration = Duration::from_secs(5);
/// Most processes that are named to people.
const NAMED: usize = 8;

/// How long the processes of an agent that was killed have after SIGTERM: whoever must be stopped has no time to argue.
const KILLED: Duration = Duration::from_secs(2);

/// What runs.
pub(super) struct Running {
    pub(super) sidecar: Child,
    pub(super) started: Instant,
    pub(super) ports: Ports,
    /// What the command shows at its sidecar's outbound port.
    pub(super) secret: String,
    pub(super) command: Option<Child>,
    /// After the command: it must outlive it.
    pub(super) guard: Option<Guard>,
    pub(super) descendants: Descendants,
    /// What was stopped has not all ended.
    pub(super) unfinished: bool,
}

impl Running {
    pub(super) fn describe(&self, state: &mut State) {
        state.sidecar = Some(self.sidecar.pid());
        state.inbound = Some(self.ports.inbound);
        state.outbound = Some(self.ports.outbound);
        state.admin = Some(self.ports.admin);
        state.probes = Some(self.ports.probes);
    }

    /// Starts the command under its guard.
    pub(super) fn launch(&mut self, run: &Run, plan: &Plan, state: &mut StateFile) -> Result<(), Failure> {
        let child = self.command.insert(launch(run, plan, self.ports, &self.secret)?);
        if let Some(guard) = &mut self.guard {
            guard.watch(child)?;
        }
        state.update(|s| {
            s.phase = match plan.agent {
                Some(_) => Phase::Launching,
                None => Phase::Ready,
            };
            s.agent = Some(child.pid());
        });
        Ok(())
    }

    /// Does what the sidecar asks: ends the command's processes, or starts it again. The sidecar stays up.
    pub(super) async fn obey(
        &mut self,
        run: &Run,
        plan: &Plan,
        state: &mut StateFile,
        wish: Wish,
    ) -> Result<(), Failure> {
        let stopped = state.state.phase == Phase::Stopped;
        match wish {
            Wish::Stop { order, reason } if !stopped => {
                let ended = self
                    .end_command(KILLED.min(Duration::from_secs(run.grace)), Signal::TERM)
                    .await;
                self.command = None;
                if let Some(guard) = &mut self.guard {
                    guard.unwatch()?;
                }
                state.update(|s| {
                    s.phase = Phase::Stopped;
                    s.agent = None;
                });
                note(format!(
                    "aip: {} was stopped by an operator: {reason}\n  {}; it starts again at `aip resume {order}`",
                    run.name,
                    said(&ended)
                ));
                self.unfinished = ended != Left::Nothing;
            }
            Wish::Run if stopped && plan.drifted(&run.name).is_some() => {
                state.update(|s| s.phase = Phase::Drifted);
                note(format!(
                    "aip: {} was resumed, and not started again: it drifted. Approve what it is to run, then end this \
                     `aip run` and start it again",
                    run.name
                ));
            }
            Wish::Run if stopped => {
                note(format!("aip: {} was resumed; starting it again", run.name));
                self.unfinished = false;
                self.launch(run, plan, state)?;
            }
            Wish::Run | Wish::Stop { .. } => {}
        }
        Ok(())
    }

    /// How the command ended, once it has.
    pub(super) fn command_status(&mut self) -> u8 {
        let ended = self.command.as_mut().and_then(|command| command.ended().ok().flatten());
        ended.map_or(0, exit_code)
    }

    /// The sidecar drains first, so that what is in flight is answered; then the command ends, then both groups.
    pub(super) async fn end(&mut self, grace: Duration, signal: Signal) {
        self.sidecar.signal(Signal::TERM);
        let _ = tokio::time::timeout(DRAIN.min(grace), self.sidecar.wait()).await;
        let left = self.end_command(grace, signal).await;
        if left != Left::Nothing {
            note(format!("aip: {}", said(&left)));
        }
        self.sidecar.stop(grace.min(process::GRACE)).await;
    }

    /// Ends the command and all that it started, in whatever process group; answers what is left of it.
    async fn end_command(&mut self, grace: Duration, signal: Signal) -> Left {
        let (ours, begun) = (self.ours(), Instant::now());
        if let Some(command) = &mut self.command {
            self.descendants.signal(&ours, signal);
            let _ = tokio::time::timeout(grace, command.wait()).await;
            command.clear().await;
        }
        self.descendants.end(&ours, grace.saturating_sub(begun.elapsed())).await
    }

    /// Tries again to end what would not end.
    pub(super) async fn finish(&mut self, run: &Run) {
        if self.descendants.end(&self.ours(), Duration::ZERO).await == Left::Nothing {
            self.unfinished = false;
            note(format!("aip: the processes of {} are ended now", run.name));
        }
    }

    /// The processes that are not the command's.
    fn ours(&self) -> Vec<u32> {
        let guard = self.guard.as_ref().and_then(Guard::pid);
        guard.into_iter().chain([self.sidecar.pid()]).collect()
    }

    pub(super) fn reap(&self) {
        let mut waited = self.ours();
        waited.extend(self.command.as_ref().map(Child::pid));
        self.descendants.reap(&waited);
    }
}

fn launch(run: &Run, plan: &Plan, ports: Ports, secret: &str) -> Result<Child, Failure> {
    let mut command = tokio::process::Command::new(&run.command[0]);
    command.args(&run.command[1..]);
    let java = std::env::var("JAVA_TOOL_OPTIONS").ok();
    let port = plan.agent.map(|agent| agent.port());
    environment::set(&mut command, ports.outbound, secret, port, java.as_deref());
    for ours in [
        "AIP_HOME",
        "AIP_ADMIN",
        "AIP_TOKEN_FILE",
        "AIP_JOIN_TOKEN",
        "AIP_DATA_KEY",
    ] {
        // What opens the control plane is not the agent's.
        command.env_remove(ours);
    }
    if let Some(user) = run.user {
        command.uid(user.uid).gid(user.gid);
    }
    if run.lifeline || std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        // A lifeline is ours to read. And its process group is not the terminal's: reading would stop it.
        command.stdin(std::process::Stdio::null());
    }
    Child::spawn(command, Output::Inherit)
}

/// What became of the processes of a command that was ended, in words.
fn said(left: &Left) -> String {
    match left {
        Left::Nothing => "its processes are ended".to_owned(),
        Left::Processes(pids) => {
            let named: Vec<String> = pids.iter().take(NAMED).map(ToString::to_string).collect();
            let more = if pids.len() > NAMED { ", …" } else { "" };
            format!("{} of its processes RUN ON ({}{more})", pids.len(), named.join(", "))
        }
        Left::Unknown(why) => format!("whether its processes are ended can't be told: {why}"),
    }
}
