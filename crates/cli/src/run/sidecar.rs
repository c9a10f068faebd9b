//! The sidecar's process: its flags, its ports, and a new one when it dies.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::Instant;

use super::Run;
use super::admit::Admitted;
use super::plan::Plan;
use crate::exit::{Exit, Failure};
use crate::home::read_json;
use crate::process::{self, Child, Output};
use crate::secret;

/// How long a sidecar may take until it listens; it does so before it joins.
const LISTENS: Duration = Duration::from_secs(30);
/// Between two looks at whether it does.
const LOOK: Duration = Duration::from_millis(10);
/// Random bytes of the secret in the proxy URL.
const SECRET_BYTES: usize = 24;

/// Where a sidecar listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) inbound: SocketAddr,
    pub(super) outbound: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) probes: SocketAddr,
}

/// Starts the sidecar and waits until it listens. `again` are the ports of the one before: the command has them in
/// its environment, so a restart must take the same.
pub(super) async fn start(
    run: &Run,
    plan: &Plan,
    admitted: &Admitted,
    again: Option<Ports>,
) -> Result<(Child, Ports), Failure> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let wanted = again.unwrap_or(Ports {
        inbound: run.inbound,
        outbound: run.outbound,
        admin: any,
        probes: any,
    });
    let run_file = plan.dir.join("data/run.json");
    let _ = std::fs::remove_file(&run_file);
    let mut child = Child::spawn(command(run, plan, admitted, wanted)?, Output::Log(&plan.log()))?;
    let deadline = Instant::now() + LISTENS;
    loop {
        let said = read_json(&run_file).filter(|r| r["pid"].as_u64() == Some(child.pid().into()));
        if let Some(ports) = said.as_ref().and_then(ports_of) {
            return Ok((child, ports));
        }
        if let Some(status) = child.ended()? {
            return Err(died(plan, &child, &format!("the sidecar did not start ({status})")));
        }
        if Instant::now() > deadline {
            child.stop(Duration::ZERO).await;
            return Err(died(
                plan,
                &child,
                &format!("the sidecar does not listen after {} s", LISTENS.as_secs()),
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A failure with the end of the sidecar's log.
pub(super) fn died(plan: &Plan, child: &Child, what: &str) -> Failure {
    Failure::new(Exit::Failed, what)
        .why(child.last_words().replace("aip-sidecar: ", ""))
        .next(format!("its log is {}", plan.log().display()))
}

fn ports_of(run: &Value) -> Option<Ports> {
    let port = |key: &str| run[key].as_str().and_then(|text| text.parse().ok());
    Some(Ports {
        inbound: port("inbound")?,
        outbound: port("outbound")?,
        admin: port("admin")?,
        probes: port("probes")?,
    })
}

fn command(run: &Run, plan: &Plan, admitted: &Admitted, ports: Ports) -> Result<Command, Failure> {
    let mut command = process::sibling("aip-sidecar")?;
    let own = rustix::process::getuid().as_raw();
    command.args([process::LIFELINE, "--name", run.name.as_str()]);
    let addresses = [
        ("--control-plane", admitted.control_plane),
        ("--inbound", ports.inbound),
        ("--outbound", ports.outbound),
        ("--admin", ports.admin),
        ("--probes", ports.probes),
    ];
    for (flag, address) in addresses {
        command.args([flag, &address.to_string()]);
    }
    match plan.agent {
        Some(agent) => command.args(["--agent", &agent.to_string()]),
        None => command.arg("--no-serve"),
    };
    if let Some(address) = run.advertise {
        command.args(["--advertise", &address.to_string()]);
    }
    command.arg("--data").arg(plan.dir.join("data"));
    command.arg("--runtime-dir").arg(plan.dir.join("runtime"));
    match run.user {
        Some(user) if run.proxy_by_user => command.args(["--agent-uid", &user.uid.to_string()]),
        _ => command.arg("--proxy-secret-file").arg(plan.proxy_secret()),
    };
    if plan.agent.is_none() && !run.proxy_by_user && run.user.is_none_or(|user| user.uid == own) {
        // Nothing listens that would show it that its agent is its own user, which a prod mesh refuses.
        command.args(["--agent-uid", &own.to_string()]);
    }
    if plan.join_token().is_file() {
        command.arg("--join-token-file").arg(plan.join_token());
    }
    command.arg("--root").arg(&plan.root);
    for glob in &plan.code {
        command.args(["--code", glob]);
    }
    for file in &plan.config {
        command.args(["--config-file", file]);
    }
    command.arg("--executable").arg(&plan.executable);
    command.args(["--run", &plan.id]);
    command.args(["--argv", &serde_json::to_string(&run.command).unwrap_or_default()]);
    Ok(command)
}

/// The secret that the command shows at its sidecar's outbound port; one per `aip run`.
pub(super) fn make_secret(plan: &Plan) -> Result<String, Failure> {
    let secret = secret::fresh::<SECRET_BYTES>()?;
    secret::write(&plan.proxy_secret(), secret.as_bytes())?;
    Ok(secret)
}
