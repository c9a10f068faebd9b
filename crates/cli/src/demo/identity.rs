//! Step 1: each agent attested and issued an SVID.

use aip_api::Digest;
use aip_api::evidence::{MeasuredFile, code_digest};
use aip_runtime::unix_now;
use anyhow::Context as _;
use serde_json::Value;

use super::board::{Board, Promise};
use super::mesh::{AGENTS, Mesh, page};
use crate::output::{cell, short, span};

pub(super) const PROMISES: [Promise; 3] = [
    Promise {
        id: "issued",
        text: "every agent holds an SVID bound to what it runs",
    },
    Promise {
        id: "measured",
        text: "the attested digest is that of the declared files",
    },
    Promise {
        id: "stated",
        text: "assurance and enforcement are stated, not assumed",
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
    let (mut issued, mut measured, mut stated) = (Vec::new(), Vec::new(), Vec::new());
    for (name, declared) in AGENTS {
        let state = mesh.ready(name).await?;
        let identity = page(&state, "/identity").await?;
        let result = attestation(&identity);
        let expected = code_digest(&declared_files(name, declared))?.to_string();
        let code = cell(&result["code"]);
        board.fact(
            name,
            format!("agent pid {}, sidecar pid {}", shown(state.agent), shown(state.sidecar)),
        );
        board.fact("", cell(&identity["id"]));
        let left = identity["not_after"]
            .as_u64()
            .unwrap_or_default()
            .saturating_sub(unix_now());
        let (serial, generation) = (cell(&identity["serial"]), cell(&result["generation"]));
        board.fact(
            "",
            format!(
                "serial {}, generation {generation}, {} left",
                short(&serial),
                span(left)
            ),
        );
        board.fact("", format!("code {code}"));
        let (assurance, enforcement) = (cell(&result["assurance"]), cell(&result["enforcement"]));
        board.fact(
            "",
            format!(
                "attestor {}, assurance {assurance}, enforcement {enforcement}",
                cell(&result["attestor"])
            ),
        );
        if result["sub"] == identity["id"] && left > 0 {
            issued.push(name);
        }
        if code == expected {
            measured.push(name);
        }
        if assurance != "-" && enforcement != "-" {
            stated.push(format!("{name}: {assurance}, {enforcement}"));
        }
    }
    let all = AGENTS.len();
    board.decide(
        "issued",
        issued.len() == all,
        format!("{} of {all}: {}", issued.len(), issued.join(", ")),
    );
    let evidence = format!("{} of {all}, computed again here from the files", measured.len());
    board.decide("measured", measured.len() == all, evidence);
    board.decide("stated", stated.len() == all, stated.join("; "));
    Ok(())
}

/// The attestation result in a sidecar's identity page.
pub(super) fn attestation(identity: &Value) -> &Value {
    identity
        .get("attestation")
        .or_else(|| identity.get("result"))
        .unwrap_or(&Value::Null)
}

fn shown(pid: Option<u32>) -> String {
    pid.map_or("-".into(), |p| p.to_string())
}
