//! Into the registry, and a join token: what a sidecar needs before it can become the agent.

use std::net::SocketAddr;

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
        let token = bounded::read(file, MAX_TOKEN_FILE).map_err(|e| {
            Failure::new(
                Exit::Usage,
                format!("--join-token-file {} can't be read", file.display()),
            )
            .why(e.to_string())
        })?;
        secret::write(&plan.join_token(), &token)?;
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
