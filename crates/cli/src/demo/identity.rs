//! Step 1: each agent attested and issued an SVID.

use aip_api::Digest;
use aip_api::evidence::{MeasuredFile, code_digest};
use aip_runtime::unix_now;
use anyhow::Context as _;

use super::board::{Board, Promise};
use super::files::AGENTS;
use super::look::page;
use super::mesh::Mesh;
use crate::output::{cell, short, span};

pub(super) const PROMISES: [Promise; 3] = [
    Promise {
        id: "issued",
        text: "every agent holds an SVID for what it runs",
    },
    Promise {
        id: "measured",
        text: "the attested digest is that of its files",
    },
    Promise {
        id: "stated",
        text: "assurance and enforcement are stated",
    },
];

/// What a sidecar measures of a demo agent: its one declared file.
pub(super) fn declared_files(name: &str, text: &str) -> Vec<MeasuredFile> {
    vec![MeasuredFile {
        path: format!("{name}.json"),
        exec: false,
        sha256: Digest::sha256(text.as_bytes()),
    }]
}

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    mesh.start_control_plane().await?;
    let context = mesh.home.context().context("the control plane left no context")?;
    board.fact(
        "control plane",
        format!("admin {}, sidecars {}", context.admin, context.mesh),
    );
    board.fact("root", &context.root);
    for (name, declared) in AGENTS {
        mesh.start_agent(name, declared)?;
    }
    let mut seen = Vec::new();
    for (name, declared) in AGENTS {
        seen.push(one(mesh, board, name, declared).await?);
    }
    let all = seen.len();
    let issued = seen.iter().filter(|s| s.issued).count();
    let names: Vec<&str> = AGENTS.iter().map(|(name, _)| *name).collect();
    board.decide(
        "issued",
        issued == all,
        format!("{issued} of {all}: {}", names.join(", ")),
    );
    let measured = seen.iter().filter(|s| s.measured).count();
    let text = format!("{measured} of {all}, computed again here from the files");
    board.decide("measured", measured == all, text);
    let stated: std::collections::BTreeSet<&str> = seen.iter().filter_map(|s| s.stated.as_deref()).collect();
    let words: Vec<&str> = stated.into_iter().collect();
    board.decide("stated", seen.iter().all(|s| s.stated.is_some()), words.join("; "));
    Ok(())
}

/// What one agent's sidecar shows of its identity.
struct Seen {
    issued: bool,
    measured: bool,
    stated: Option<String>,
}

async fn one(mesh: &mut Mesh, board: &mut Board, name: &str, declared: &str) -> anyhow::Result<Seen> {
    let state = mesh.ready(name).await?;
    let identity = page(&state, "/identity").await?;
    let result = &identity["attestation"];
    let pids = format!("agent pid {}, sidecar pid {}", shown(state.agent), shown(state.sidecar));
    board.fact(name, pids);
    board.fact("", cell(&identity["id"]));
    let not_after = identity["not_after"].as_u64().unwrap_or_default();
    let left = not_after.saturating_sub(unix_now());
    let (serial, generation) = (cell(&identity["serial"]), cell(&result["generation"]));
    let text = format!(
        "serial {}, generation {generation}, {} left",
        short(&serial),
        span(left)
    );
    board.fact("", text);
    let code = cell(&result["code"]);
    board.fact("", format!("code {code}"));
    let (assurance, enforcement) = (cell(&result["assurance"]), cell(&result["enforcement"]));
    let stated = format!("assurance {assurance}, enforcement {enforcement}");
    board.fact("", format!("attestor {}, {stated}", cell(&result["attestor"])));
    Ok(Seen {
        issued: result["sub"].is_string() && result["sub"] == identity["id"] && left > 0,
        measured: code == code_digest(&declared_files(name, declared))?.to_string(),
        stated: (assurance != "-" && enforcement != "-").then(|| format!("{assurance}, {enforcement}")),
    })
}

fn shown(pid: Option<u32>) -> String {
    pid.map_or("-".into(), |p| p.to_string())
}
