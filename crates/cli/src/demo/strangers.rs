//! Step 4: a process without an SVID, one with another mesh's certificate, and one with an approved digest but no
//! credential.

use std::net::SocketAddr;

use aip_api::token::JoinToken;
use aip_api::{AgentName, Digest, SpiffeId};
use aip_runtime::tls::IdentitySlot;
use aip_runtime::trust::Trust;
use anyhow::Context as _;
use serde_json::Value;

use super::board::{Board, Promise};
use super::files::AGENTS;
use super::identity::declared_files;
use super::look::metrics;
use super::mesh::{Mesh, beside};
use super::stranger::{self, Asked, Facts};
use crate::client::Admin;
use crate::home::Context;
use crate::process;
use crate::up::{self, ControlPlane};
use crate::{attest, token};

pub(super) const PROMISES: [Promise; 4] = [
    Promise {
        id: "none",
        text: "without an SVID: refused",
    },
    Promise {
        id: "foreign",
        text: "with another mesh's certificate: refused",
    },
    Promise {
        id: "digest",
        text: "with an approved digest alone: no SVID",
    },
    Promise {
        id: "unseen",
        text: "the agent never saw a stranger",
    },
];

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    let ledger = mesh.state("ledger")?;
    let inbound = ledger.inbound.context("the ledger's sidecar has no inbound port")?;
    let facts = approved(mesh, "planner").await?;
    let (own, trust) = visitor(mesh, &facts).await?;
    let callee = SpiffeId::new(trust.load().trust_domain().clone(), "ledger".parse()?);
    let before = (mesh.counted_all("ledger").await?, refusals(&metrics(&ledger).await?));

    let control = stranger::knock(inbound, &own, &trust, callee.clone()).await?;
    board.fact("own SVID", format!("for comparison: {}", control.describe()));
    anyhow::ensure!(
        !control.refused(),
        "an SVID of this mesh is refused too, so the rest would show nothing"
    );
    let plain = stranger::knock_plain(inbound).await?;
    board.fact("plain HTTP", plain.describe());
    let naked = stranger::knock(inbound, &IdentitySlot::default(), &trust, callee.clone()).await?;
    board.fact("no SVID", naked.describe());
    board.decide("none", plain.refused() && naked.refused(), naked.describe());
    let foreign = foreign_identity(mesh, board, &facts).await?;
    let knocked = stranger::knock(inbound, &foreign, &trust, callee).await?;
    board.fact("foreign SVID", knocked.describe());
    board.decide("foreign", knocked.refused(), knocked.describe());
    without_credential(mesh, board, &facts).await?;

    let after = (mesh.counted_all("ledger").await?, refusals(&metrics(&ledger).await?));
    for (line, count) in after.1.iter().filter(|counter| !before.1.contains(counter)) {
        board.fact("metrics", format!("{line} {count}"));
    }
    let text = format!("access count {} before, {} after", before.0, after.0);
    board.fact("ledger", format!("its own {text}"));
    board.decide("unseen", before.0 == after.0, text);
    let left = mesh.aip(&["agent", "delete", "visitor"]).await?;
    anyhow::ensure!(left.code == Some(0), "the visitor was not removed: {}", left.stderr);
    Ok(())
}

/// Counters of refused handshakes, with their labels.
fn refusals(text: &str) -> Vec<(String, u64)> {
    let lines = text
        .lines()
        .filter(|l| !l.starts_with('#') && (l.contains("tls") || l.contains("refus")));
    lines
        .filter_map(|l| l.rsplit_once(' '))
        .filter_map(|(name, n)| Some((name.to_owned(), n.parse().ok()?)))
        .collect()
}

/// The facts that are approved for an agent: what somebody who copied it could show.
async fn approved(mesh: &Mesh, name: &str) -> anyhow::Result<Facts> {
    let agent: AgentName = name.parse()?;
    let list = attest::measurements(&mesh.admin()?, "approved", Some(&agent)).await?;
    let entry = list.first().context("the agent has no approved measurement")?;
    let measurement = &entry["measurement"];
    let digest = |key: &str| measurement[key].as_str().and_then(|d| d.parse::<Digest>().ok());
    let declared = AGENTS
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, text)| *text)
        .unwrap_or_default();
    Ok(Facts {
        files: declared_files(name, declared),
        executable: digest("executable"),
        sidecar: digest("sidecar").context("the measurement names no sidecar")?,
        attestor: measurement["attestor"].as_str().unwrap_or_default().to_owned(),
    })
}

/// Somebody who was let in, with a token and the planner's facts: it shows that the door opens, and brings the roots,
/// which anyone who ever joined knows.
async fn visitor(mesh: &Mesh, facts: &Facts) -> anyhow::Result<(IdentitySlot, Trust)> {
    let context = mesh.home.context().context("the control plane left no context")?;
    joined(&mesh.admin()?, &context, "visitor", facts).await
}

/// Registers `name` in a dev mesh, joins, and brings its identity and that mesh's trust.
async fn joined(admin: &Admin, mesh: &Context, name: &str, facts: &Facts) -> anyhow::Result<(IdentitySlot, Trust)> {
    let agent: AgentName = name.parse()?;
    crate::agent::create(admin, &serde_json::json!({ "name": name, "owner": "demo" })).await?;
    let answer: Value = token::create(admin, &agent, None).await?;
    let credential: JoinToken = token::secret(&answer)?.parse()?;
    let (address, root) = (mesh.mesh.parse()?, mesh.root.parse()?);
    match stranger::join(address, &agent, root, Some(&credential), facts).await? {
        Asked::Refused { reason, detail } => anyhow::bail!("{name} was not let in: {reason}: {detail}"),
        Asked::Issued { svid, trust } => {
            let slot = IdentitySlot::default();
            slot.set(&svid.chain, svid.pkcs8())?;
            Ok((slot, trust))
        }
    }
}

/// Another mesh of the same name, and an SVID of it in the planner's name: a real certificate, from the wrong root.
async fn foreign_identity(mesh: &Mesh, board: &mut Board, facts: &Facts) -> anyhow::Result<IdentitySlot> {
    let home = beside(&mesh.dir.path().join("foreign"))?;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = up::Options {
        mesh_listen: any,
        admin_listen: any,
        trust_domain: None,
        mode: Some("dev".into()),
        key_file: None,
    };
    let mut foreign = up::start(&home, &options).await?;
    let identity = Box::pin(take_identity(&foreign, board, facts)).await;
    foreign.child.stop(process::GRACE).await;
    identity
}

async fn take_identity(foreign: &ControlPlane, board: &mut Board, facts: &Facts) -> anyhow::Result<IdentitySlot> {
    let context = &foreign.context;
    let token = std::fs::read_to_string(&context.token_file)?;
    let admin = Admin::to(&context.admin, None, Some(token.trim()))?;
    let (slot, trust) = joined(&admin, context, "planner", facts).await?;
    let domain = trust.load().trust_domain().to_string();
    let root = crate::output::short(&context.root);
    let text = format!("same name ({domain}), other root ({root}): issued spiffe://{domain}/agent/planner");
    board.fact("foreign mesh", text);
    Ok(slot)
}

/// The right evidence, with no token and with one that was made up.
async fn without_credential(mesh: &Mesh, board: &mut Board, facts: &Facts) -> anyhow::Result<()> {
    let context = mesh.home.context().context("the control plane left no context")?;
    let (agent, root): (AgentName, Digest) = ("planner".parse()?, context.root.parse()?);
    let code = aip_api::evidence::code_digest(&facts.files)?;
    board.fact(
        "evidence",
        format!("code {}, as approved for the planner", code.short()),
    );
    let forged = JoinToken {
        id: [1; aip_api::token::ID_BYTES],
        secret: [2; aip_api::token::SECRET_BYTES],
        root,
    };
    let mut reasons = Vec::new();
    let mut refused = true;
    for (what, credential) in [("no token", None), ("forged token", Some(&forged))] {
        let asked = stranger::join(context.mesh.parse()?, &agent, root, credential, facts).await?;
        match asked {
            Asked::Refused { reason, detail } => {
                board.fact(what, format!("refused: {reason}: {detail}"));
                reasons.push(format!("{what}: {reason}"));
            }
            Asked::Issued { .. } => {
                board.fact(what, "AN SVID WAS ISSUED");
                refused = false;
            }
        }
    }
    board.decide("digest", refused, reasons.join(", "));
    Ok(())
}
