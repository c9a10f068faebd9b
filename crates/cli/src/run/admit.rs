//! Into the registry, and a join token: what a sidecar needs before it can become the agent.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aip_api::token::JoinToken;
use serde_json::{Value, json};

use super::Run;
use super::plan::Plan;
use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::{Globals, agent, bounded, output, secret, token};

/// How the sidecar gets in.
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    /// The control plane's mesh port.
    pub(super) control_plane: SocketAddr,
}

/// Largest file of a join token that is read: some hundred bytes, generously.
const MAX_TOKEN_FILE: u64 = 16 * 1024;
/// Between two attempts to give a sidecar another.
const ANOTHER: Duration = Duration::from_secs(10);

/// Registers the agent where a dev mesh lacks it, and has a join token made. Without a control plane, an agent that
/// ran here before starts from what its sidecar kept.
pub(super) async fn admit(globals: &Globals, run: &Run, plan: &Plan) -> Result<Admitted, Failure> {
    let context = globals.home()?.context();
    let known = run
        .control_plane
        .or_else(|| context.as_ref().and_then(|c| c.mesh.parse().ok()));
    let control_plane = known.ok_or_else(|| {
        Failure::new(Exit::NotReachable, "no control plane is known here")
            .next("start one with `aip up`, or pass --control-plane and --join-token-file")
    })?;
    if let Some(file) = &run.join_token_file {
        secret::write(&plan.join_token(), &given(file)?)?;
        return Ok(Admitted { control_plane });
    }
    match register(globals, run, plan).await {
        Ok(()) => Ok(Admitted { control_plane }),
        Err(failure) if failure.exit == Exit::NotReachable && kept(plan) => {
            output::note("aip: the control plane is not reachable; starting from what the sidecar kept");
            Ok(Admitted { control_plane })
        }
        Err(failure) => Err(failure),
    }
}

/// The token that the user gave.
fn given(file: &Path) -> Result<Vec<u8>, Failure> {
    bounded::read(file, MAX_TOKEN_FILE).map_err(|e| {
        Failure::new(
            Exit::Usage,
            format!("--join-token-file {} can't be read", file.display()),
        )
        .why(e.to_string())
    })
}

/// Gives the sidecar another join token than the one of this id, as [`admit`] gave it the first. Tries until it can, and says once
/// what keeps it from that.
pub(super) async fn admit_again(globals: &Globals, run: &Run, plan: &Plan, used: String) {
    let mut said = None;
    loop {
        let failure = match another(globals, run, plan, &used).await {
            Ok(()) => {
                output::note(format!(
                    "aip: the identity of {} had ended (its SVID was not renewed in time); its sidecar has another join token",
                    run.name
                ));
                return;
            }
            Err(failure) => failure.to_string(),
        };
        if said.as_ref() != Some(&failure) {
            output::note(format!(
                "aip: the identity of {} has ended, and it serves nothing: {failure}",
                run.name
            ));
            said = Some(failure);
        }
        tokio::time::sleep(ANOTHER).await;
    }
}

async fn another(globals: &Globals, run: &Run, plan: &Plan, used: &str) -> Result<(), Failure> {
    let is_another = |text: &[u8]| {
        let token = std::str::from_utf8(text).ok()?.parse::<JoinToken>().ok()?;
        Some(token.id_text() != used)
    };
    if bounded::read(&plan.join_token(), MAX_TOKEN_FILE).is_ok_and(|held| is_another(&held) == Some(true)) {
        // The sidecar said so before it looked again.
        return Ok(());
    }
    let Some(file) = &run.join_token_file else {
        let answer = token::create(&Admin::open(globals)?, &run.name, None).await?;
        return secret::write(&plan.join_token(), token::secret(&answer)?.as_bytes());
    };
    let text = given(file)?;
    if is_another(&text) == Some(true) {
        return secret::write(&plan.join_token(), &text);
    }
    let name = &run.name;
    Err(Failure::new(Exit::Failed, "its join token was used").next(format!(
        "aip token create {name}, and put what it prints into {}",
        file.display()
    )))
}

async fn register(globals: &Globals, run: &Run, plan: &Plan) -> Result<(), Failure> {
    let admin = Admin::open(globals)?;
    let mesh = admin.get("/v1/mesh").await?;
    let dev = mesh["mode"].as_str() == Some("dev");
    if admin.find(&format!("/v1/agents/{}", run.name)).await?.is_none() {
        if !dev {
            return Err(
                Failure::new(Exit::NotFound, format!("agent {} is not registered", run.name))
                    .why("a prod mesh registers no agent by itself")
                    .next(format!("aip agent create {}", run.name)),
            );
        }
        create(&admin, run).await?;
        output::note(format!("aip: agent {} is registered", run.name));
    }
    let answer = token::create(&admin, &run.name, None).await?;
    secret::write(&plan.join_token(), token::secret(&answer)?.as_bytes())
}

async fn create(admin: &Admin, run: &Run) -> Result<Value, Failure> {
    let labels: serde_json::Map<_, _> = run.labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    let document = json!({ "name": run.name, "owner": run.owner, "labels": labels, "capabilities": run.capabilities });
    agent::create(admin, &document).await
}

/// Whether an earlier run left an identity that a sidecar can start from.
fn kept(plan: &Plan) -> bool {
    std::fs::read_dir(plan.dir.join("runtime")).is_ok_and(|mut entries| entries.next().is_some())
}
