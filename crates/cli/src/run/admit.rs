//! Into the registry, and a join token: what a sidecar needs before it can become the agent.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use aip_api::token::JoinToken;
use serde_json::{Value, json};

use super::Run;
use super::plan::Plan;
use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::{Globals, agent, bounded, output, secret, token};

/// How the sidecar gets in.
#[derive(Debug)]
pub(super) struct Admitted {
    /// The control plane's mesh port.
    pub(super) control_plane: SocketAddr,
    /// The agent's generation when this run had its first join token made; none where it has had none made.
    generation: OnceLock<u64>,
}

impl Admitted {
    fn at(control_plane: SocketAddr) -> Self {
        let generation = OnceLock::new();
        Self {
            control_plane,
            generation,
        }
    }
}

/// Largest file of a join token that is read: some hundred bytes, generously.
const MAX_TOKEN_FILE: u64 = 16 * 1024;
/// Between two attempts to give a sidecar another.
const ANOTHER: Duration = Duration::from_secs(10);
/// Of an agent that was just registered.
const FIRST_GENERATION: u64 = 1;

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
        return Ok(Admitted::at(control_plane));
    }
    let admitted = Admitted::at(control_plane);
    match register(globals, run, plan).await {
        Ok(generation) => {
            let _ = admitted.generation.set(generation);
            Ok(admitted)
        }
        Err(failure) if failure.exit == Exit::NotReachable && kept(plan) => {
            output::note("aip: the control plane is not reachable; starting from what the sidecar kept");
            Ok(admitted)
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
pub(super) async fn admit_again(globals: &Globals, run: &Run, plan: &Plan, admitted: &Admitted, used: &str) {
    let mut said = None;
    loop {
        if has_another(plan, used) {
            // The sidecar said so before it looked again.
            return;
        }
        let failure = match another(globals, run, plan, admitted, used).await {
            Ok(()) => {
                output::note(format!(
                    "aip: the sidecar of {} needed another join token, and has it",
                    run.name
                ));
                return;
            }
            Err(failure) => failure.to_string(),
        };
        if said.as_ref() != Some(&failure) {
            output::note(format!(
                "aip: {} serves nothing, since its sidecar needs another join token: {failure}",
                run.name
            ));
            said = Some(failure);
        }
        tokio::time::sleep(ANOTHER).await;
    }
}

/// Whether the sidecar will find another token than this one.
fn has_another(plan: &Plan, used: &str) -> bool {
    bounded::read(&plan.join_token(), MAX_TOKEN_FILE).is_ok_and(|held| is_another(&held, used))
}

fn is_another(text: &[u8], used: &str) -> bool {
    let token = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<JoinToken>().ok());
    token.is_some_and(|token| token.id_text() != used)
}

async fn another(globals: &Globals, run: &Run, plan: &Plan, admitted: &Admitted, used: &str) -> Result<(), Failure> {
    let Some(file) = &run.join_token_file else {
        let admin = Admin::open(globals)?;
        not_revoked(&admin, run, plan, admitted).await?;
        let token = made(&admin, run).await?;
        // Between the two; what is revoked from now on takes the token with it.
        let generation = not_revoked(&admin, run, plan, admitted).await?;
        secret::write(&plan.join_token(), token.as_bytes())?;
        let _ = admitted.generation.set(generation);
        return Ok(());
    };
    let text = given(file)?;
    if is_another(&text, used) {
        return secret::write(&plan.join_token(), &text);
    }
    let name = &run.name;
    Err(Failure::new(Exit::Failed, "the one in its file was used").next(format!(
        "aip token create {name}, and put what it prints into {}",
        file.display()
    )))
}

/// Whoever revoked what this run had wants a person to say that it runs on: starting it again says so, and we alone do not. A run
/// that began without the control plane had what an earlier one left: any revocation of the agent may be of that. Answers the
/// agent's generation.
async fn not_revoked(admin: &Admin, run: &Run, plan: &Plan, admitted: &Admitted) -> Result<u64, Failure> {
    let agent = admin.get(&format!("/v1/agents/{}", run.name)).await?;
    let generation = agent::inner(&agent)["generation"].as_u64().unwrap_or_default();
    let revocations = admin.list("/v1/revocations").await?;
    let mut revoked = revocations.iter().map(|held| &held["resource"]);
    let same = match admitted.generation.get() {
        Some(began) => *began == generation,
        None => !revoked.clone().any(|of| of["generation"]["agent"] == run.name.as_str()),
    };
    let svids = admin.list(&format!("/v1/agents/{}/svids", run.name)).await?;
    let own = |svid: &&Value| admitted.generation.get().is_none() || svid["run"] == plan.id;
    let own: Vec<&Value> = svids.iter().filter(own).map(|svid| &svid["serial"]).collect();
    if same && !revoked.any(|of| own.contains(&&of["serial"]["serial"])) {
        return Ok(generation);
    }
    Err(Failure::new(Exit::Failed, "its identity was revoked while it ran")
        .next("if it is to run, end this `aip run` and start it again"))
}

/// A join token.
async fn made(admin: &Admin, run: &Run) -> Result<String, Failure> {
    let answer = token::create(admin, &run.name, None).await?;
    Ok(token::secret(&answer)?.to_owned())
}

/// Answers the agent's generation before its token was made: a revocation in this moment counts.
async fn register(globals: &Globals, run: &Run, plan: &Plan) -> Result<u64, Failure> {
    let admin = Admin::open(globals)?;
    let mesh = admin.get("/v1/mesh").await?;
    let dev = mesh["mode"].as_str() == Some("dev");
    let found = admin.find(&format!("/v1/agents/{}", run.name)).await?;
    let generation = match found {
        Some(agent) => agent::inner(&agent)["generation"].as_u64(),
        None if !dev => {
            return Err(
                Failure::new(Exit::NotFound, format!("agent {} is not registered", run.name))
                    .why("a prod mesh registers no agent by itself")
                    .next(format!("aip agent create {}", run.name)),
            );
        }
        None => {
            create(&admin, run).await?;
            output::note(format!("aip: agent {} is registered", run.name));
            None
        }
    };
    secret::write(&plan.join_token(), made(&admin, run).await?.as_bytes())?;
    Ok(generation.unwrap_or(FIRST_GENERATION))
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
