//! From the first process to the last: start in order, forward signals, keep the sidecar, end everything.

mod running;

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::Pin;
use std::process::ExitStatus;
use std::time::Duration;

use aip_api::AgentName;
use aip_runtime::backoff::Backoff;
use rustix::process::Signal;
use tokio::time::Instant;

use super::admit::{Admitted, admit, admit_again};
use super::orders::{self, Wish};
use super::plan::Plan;
use super::sidecar::{self, Ports};
use super::state::{Phase, State, StateFile};
use super::{Run, listen, wait};
use crate::Globals;
use crate::exit::{Exit, Failure};
use crate::output::{self, note};
use crate::process::{Child, Children, Descendants, Event, Guard, Signals};
use running::Running;

/// First and last bound of the wait before a sidecar that died is started again: at once in practice, and no busy loop
/// where it can't start at all.
const RESTART: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A sidecar that lived this long was well; the wait begins anew.
const WELL: Duration = Duration::from_secs(30);
/// Between two looks at whether the sidecar has suspended itself.
const DRIFT_LOOK: Duration = Duration::from_millis(250);
/// How long a suspended sidecar may take to measure what lies there now.
const MEASURED: Duration = Duration::from_secs(5);
/// Between two attempts to end what would not end.
const UNFINISHED: Duration = Duration::from_secs(1);

/// Runs the plan to its end; the exit code is the command's.
pub(super) async fn supervise(globals: &Globals, run: &Run, plan: Plan, signals: &mut Signals) -> Result<u8, Failure> {
    let mut state = first_state(run, &plan);
    let secret = sidecar::make_secret(&plan)?;
    let admitted = tokio::select! {
        admitted = output::waiting("asking the control plane", admit(globals, run, &plan)) => admitted?,
        signal = signals.next() => return Ok(interrupted(signal)),
    };
    let descendants = Descendants::adopt()?;
    let (sidecar, ports) = sidecar::start(run, &plan, &admitted, None).await?;
    let mut running = Running {
        sidecar,
        started: Instant::now(),
        ports,
        secret,
        command: None,
        guard: None,
        descendants,
        unfinished: false,
    };
    state.update(|s| running.describe(s));
    let begun = tokio::select! {
        begun = Box::pin(begin(globals, run, &plan, &admitted, &mut running, &mut state)) => begun,
        signal = signals.next() => Ok(Some(interrupted(signal))),
    };
    let ended = match begun {
        Ok(None) => Box::pin(keep(globals, run, &plan, &admitted, &mut running, &mut state, signals)).await,
        Ok(Some(code)) => Ok(code),
        Err(failure) => Err(failure),
    };
    tokio::select! {
        () = running.end(Duration::from_secs(run.grace), Signal::TERM) => {}
        _ = signals.next() => running.end(Duration::ZERO, Signal::KILL).await,
    }
    ended
}

fn first_state(run: &Run, plan: &Plan) -> StateFile {
    let state = State {
        name: run.name.clone(),
        phase: Phase::Starting,
        supervisor: std::process::id(),
        sidecar: None,
        agent: None,
        address: plan.agent,
        inbound: None,
        outbound: None,
        admin: None,
        probes: None,
        proxy_secret_file: plan.proxy_secret(),
        sidecar_log: plan.log(),
        sidecar_restarts: 0,
    };
    StateFile::new(state, plan.dir.join("state.json"), run.state_file.as_deref())
}

/// Resolves when the sidecar asks for the end of the agent's processes.
async fn stop_asked(sidecar: &mut Child) -> Wish {
    loop {
        // It says what holds at each change: what it says last, while nothing is stopped, is to run.
        let line = sidecar.heard().await;
        if let Some(wish @ Wish::Stop { .. }) = orders::read(&line) {
            return wish;
        }
    }
}

/// Waits for the sidecar, starts the command and waits until it serves; `Some` where the command ended already.
async fn begin(
    globals: &Globals,
    run: &Run,
    plan: &Plan,
    admitted: &Admitted,
    running: &mut Running,
    state: &mut StateFile,
) -> Result<Option<u8>, Failure> {
    let probes = running.ports.probes;
    let again = |used: String| async move { admit_again(globals, run, plan, admitted, &used).await };
    let ready = wait::for_sidecar(run, plan, &mut running.sidecar, probes, state, again);
    // Of an agent that is stopped, its sidecar has said so before it was ready.
    let mut stopped = output::waiting("the sidecar measures and joins", Box::pin(ready)).await?;
    running.guard = Some(Guard::start(Duration::from_secs(run.grace))?);
    while let Some(line) = running.sidecar.said().await {
        stopped = orders::read(&line).or(stopped);
    }
    if let Some(wish @ Wish::Stop { .. }) = stopped {
        running.obey(run, plan, state, wish).await?;
        return Ok(None);
    }
    running.launch(run, plan, state)?;
    let Some(agent) = plan.agent else {
        calls_only(run, plan);
        return Ok(None);
    };
    let Some(child) = running.command.as_mut() else {
        return Ok(Some(Exit::Failed as u8));
    };
    // An order may come while the command starts.
    let waited = tokio::select! {
        biased;
        wish = stop_asked(&mut running.sidecar) => Err(wish),
        waited = wait::for_command(run, child, agent) => Ok(waited?),
    };
    let waited = match waited {
        Ok(waited) => waited,
        Err(wish) => {
            running.obey(run, plan, state, wish).await?;
            return Ok(None);
        }
    };
    if let Some(code) = waited {
        note(format!(
            "aip: the command ended before it listened on port {}; one that only calls is run with --no-serve",
            agent.port()
        ));
        return Ok(Some(code));
    }
    state.update(|s| s.phase = Phase::Ready);
    serves(run, plan, agent, running.ports);
    Ok(None)
}

/// Says that it serves nothing, and what the user may not have meant.
fn calls_only(run: &Run, plan: &Plan) {
    says_unmeasured(run, plan);
    note(format!(
        "aip: {} runs behind its sidecar and serves nothing; calls to it are refused",
        run.name
    ));
}

/// Says where it serves, and what the user may not have meant.
fn serves(run: &Run, plan: &Plan, agent: SocketAddr, ports: Ports) {
    let wide = listen::beyond_loopback(agent.port());
    if !wide.is_empty() {
        let list: Vec<String> = wide.iter().map(ToString::to_string).collect();
        note(format!(
            "aip: {} also listens on {}: whoever reaches that port goes around the sidecar; let it listen on 127.0.0.1",
            run.name,
            list.join(", ")
        ));
    }
    says_unmeasured(run, plan);
    note(format!(
        "aip: {} serves behind its sidecar; others reach it at {}",
        run.name, ports.inbound
    ));
}

fn says_unmeasured(run: &Run, plan: &Plan) {
    if plan.measures_no_code() {
        note(format!(
            "aip: no file of {} is measured, only {} and its arguments: name its code with --code",
            run.name,
            plan.executable.display()
        ));
    }
}

/// Until the agent listens; one that only calls never does.
async fn listens(plan: &Plan) {
    match plan.agent {
        Some(address) => wait::listens(address).await,
        None => std::future::pending().await,
    }
}

/// Until the command ends or a signal comes. A sidecar that dies is started again, on the same ports.
async fn keep(
    globals: &Globals,
    run: &Run,
    plan: &Plan,
    admitted: &Admitted,
    running: &mut Running,
    state: &mut StateFile,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let mut backoff = Backoff::new(RESTART.0, RESTART.1);
    let (mut drifted, mut told) = (Box::pin(drifted(run, plan)), false);
    let mut children = Children::catch().map_err(unheard)?;
    let (mut token, mut asked) = (no_token(), None);
    loop {
        let launching = state.state.phase == Phase::Launching;
        tokio::select! {
            status = ended(&mut running.command) => return Ok(exit_code(status?)),
            () = listens(plan), if launching => {
                state.update(|s| s.phase = Phase::Ready);
                continue;
            }
            signal = signals.next() => {
                running.end(Duration::from_secs(run.grace), signal).await;
                return Ok(running.command_status());
            }
            () = children.ended() => {
                running.reap();
                continue;
            }
            () = tokio::time::sleep(UNFINISHED), if running.unfinished => {
                running.finish(run).await;
                continue;
            }
            () = &mut drifted, if !told => {
                told = true;
                state.update(|s| s.phase = Phase::Drifted);
                continue;
            }
            () = &mut token => { (token, asked) = (no_token(), None); continue; }
            event = running.sidecar.next() => match event? {
                Event::Ended(status) => {
                    note(format!("aip: the sidecar of {} ended ({status}); starting it again", run.name));
                }
                Event::Said(line) => {
                    let used = orders::needs_token(&line);
                    if let Some(used) = used.filter(|used| asked.as_ref() != Some(used)) {
                        asked = Some(used.clone());
                        token = Box::pin(async move { admit_again(globals, run, plan, admitted, &used).await });
                    } else if let Some(wish) = orders::read(&line) {
                        running.obey(run, plan, state, wish).await?;
                    }
                    continue;
                }
            },
        }
        if let Some(code) = replace(run, plan, admitted, running, state, signals, &mut backoff).await {
            return Ok(code);
        }
    }
}

/// No join token is looked for.
fn no_token<'a>() -> Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(std::future::pending())
}

fn unheard(error: std::io::Error) -> Failure {
    Failure::new(Exit::Failed, "the end of children can't be heard of").why(error.to_string())
}

/// Starts another sidecar in place of the one that has ended; `Some`: a signal came first.
async fn replace(
    run: &Run,
    plan: &Plan,
    admitted: &Admitted,
    running: &mut Running,
    state: &mut StateFile,
    signals: &mut Signals,
    backoff: &mut Backoff,
) -> Option<u8> {
    running.sidecar.clear().await;
    if running.started.elapsed() > WELL {
        backoff.reset();
    }
    tokio::select! {
        restarted = restart(run, plan, admitted, running.ports, backoff) => {
            (running.sidecar, running.started) = (restarted, Instant::now());
        }
        signal = signals.next() => {
            running.end(Duration::from_secs(run.grace), signal).await;
            return Some(running.command_status());
        }
    }
    state.update(|s| {
        running.describe(s);
        s.sidecar_restarts += 1;
    });
    None
}

/// Resolves when the sidecar has suspended itself, and has told the user so.
async fn drifted(run: &Run, plan: &Plan) {
    let mut found_by = None;
    let (changed, found) = loop {
        tokio::time::sleep(DRIFT_LOOK).await;
        match plan.drifted(&run.name) {
            Some((changed, Some(found))) => break (changed, Some(found)),
            // What is there now is measured after everything was cut; where it can't be, that is said, too.
            Some((changed, None)) if found_by.is_some_and(|by| Instant::now() > by) => break (changed, None),
            Some(_) => found_by = found_by.or(Some(Instant::now() + MEASURED)),
            None => {}
        }
    };
    note(ways_back(&run.name, &changed, found.as_deref()));
}

/// What changed, and the two ways back: to what runs now, and to what ran before.
fn ways_back(name: &AgentName, changed: &str, found: Option<&str>) -> String {
    let mean = match found {
        Some(found) => format!("aip attest approve {name} {}", output::short(found)),
        None => format!("approve what lies there now (`aip attest list --agent {name}` shows it)"),
    };
    format!(
        "aip: {name} drifted: {changed} changed while it ran; its sidecar refuses all calls to it and of it, and stays so\n  \
         next: {mean}\n        \
         or undo the change, and approve what it ran before (`aip attest list --agent {name}` shows it)\n        \
         then end this `aip run` and start it again"
    )
}

/// Resolves when the command ends; never, where there is none.
async fn ended(command: &mut Option<Child>) -> Result<ExitStatus, Failure> {
    match command {
        Some(command) => command.wait().await,
        None => std::future::pending().await,
    }
}

/// Tries until a sidecar listens: without one the command is cut off, which is safe, and nobody else would mend it.
async fn restart(run: &Run, plan: &Plan, admitted: &Admitted, ports: Ports, backoff: &mut Backoff) -> Child {
    loop {
        tokio::time::sleep(backoff.next()).await;
        match sidecar::start(run, plan, admitted, Some(ports)).await {
            Ok((child, _)) => return child,
            Err(failure) => note(format!("aip: {failure}")),
        }
    }
}

/// The status that the command ended with; by a signal, 128 and its number, as shells say it.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn interrupted(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX)
}
