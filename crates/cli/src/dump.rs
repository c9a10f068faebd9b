//! `aip dump`: everything that is not secret, as one JSON document for a bug report.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::{Globals, http, output};

/// How long one of the sidecars here may take: a dump is made when something is wrong.
const DEADLINE: Duration = Duration::from_secs(3);
/// What the control plane is asked for.
const PARTS: [&str; 3] = ["mesh", "mesh-config", "status"];
/// The lists that it is asked for, each read to its end.
const LISTS: [&str; 9] = [
    "agents",
    "endpoints",
    "policies",
    "measurements?state=approved",
    "measurements?state=pending",
    "traffic",
    "revocations",
    "tokens",
    "approvals",
];
/// What each sidecar here is asked for.
const SIDECAR_PARTS: [&str; 5] = ["config", "snapshot", "identity", "connections", "policies"];
/// Words in the name of a member whose value is withheld, whoever sent it.
const SECRET_WORDS: [&str; 6] = ["secret", "password", "private", "pkcs8", "authorization", "bearer"];
/// Members whose names carry such a word and whose values are no secrets: a path, a flag.
const NO_SECRETS: [&str; 2] = ["proxy_secret_file", "makes_secret"];

#[derive(Debug, Args)]
pub(crate) struct Dump {
    /// Write it to this file instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Dump {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let gather = Box::pin(gather(globals));
        let document = output::waiting("gathering", gather).await?;
        let Some(path) = self.out else {
            output::json(&document);
            return Ok(ExitCode::SUCCESS);
        };
        let text = serde_json::to_vec_pretty(&document)?;
        aip_runtime::files::write_private(&path, &text).map_err(|e| {
            Failure::new(Exit::Failed, format!("{} can't be written", path.display())).why(e.to_string())
        })?;
        output::note(format!("written to {}: read it before you send it", path.display()));
        Ok(ExitCode::SUCCESS)
    }
}

/// A part that can't be had is in the document too: as what went wrong.
async fn gather(globals: &Globals) -> Result<Value, Failure> {
    let mut control_plane = Map::new();
    match Admin::open(globals) {
        Ok(admin) => {
            for part in PARTS {
                let read = admin.get(&format!("/v1/{part}")).await;
                control_plane.insert(
                    part.to_owned(),
                    read.unwrap_or_else(|e| json!({ "error": e.to_string() })),
                );
            }
            for list in LISTS {
                let read = admin.list(&format!("/v1/{list}")).await.map(Value::Array);
                control_plane.insert(
                    list.to_owned(),
                    read.unwrap_or_else(|e| json!({ "error": e.to_string() })),
                );
            }
        }
        Err(failure) => {
            control_plane.insert("error".into(), failure.to_string().into());
        }
    }
    let mut agents = Vec::new();
    for state in globals.home()?.agent_states() {
        let address = state["admin"].as_str().and_then(|a| a.parse().ok());
        let sidecar = match address.filter(|_| state["phase"] != "ended") {
            Some(address) => sidecar(address).await,
            None => Value::Null,
        };
        agents.push(json!({ "run": state, "sidecar": sidecar }));
    }
    let mut document = json!({
        "aip": env!("CARGO_PKG_VERSION"),
        "platform": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "time": output::timestamp(aip_runtime::unix_now()),
        "control_plane": control_plane,
        "agents": agents,
    });
    withhold(&mut document);
    Ok(document)
}

async fn sidecar(address: SocketAddr) -> Value {
    let mut parts = Map::new();
    for part in SIDECAR_PARTS {
        let read = http::get_json(address, &format!("/{part}"), DEADLINE).await;
        parts.insert(
            part.to_owned(),
            read.unwrap_or_else(|e| json!({ "error": e.to_string() })),
        );
    }
    parts.into()
}

/// Nothing here should be secret; if something is after all, it does not leave.
fn withhold(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(withhold),
        Value::Object(members) => {
            for (key, value) in members {
                let name = key.to_ascii_lowercase();
                if SECRET_WORDS.iter().any(|w| name.contains(w)) && !NO_SECRETS.contains(&name.as_str()) {
                    *value = "withheld".into();
                } else {
                    withhold(value);
                }
            }
        }
        Value::String(text) if is_credential(text) => *value = "withheld".into(),
        _ => {}
    }
}

/// A join token, or a signed token that opens something. Attestation results are signed too, and public: they are
/// what a peer sees in every handshake.
fn is_credential(text: &str) -> bool {
    text.starts_with("aip1.") || text.starts_with("Bearer ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_stays_here() {
        let mut document = json!({
            "proxy_secret_file": "/x/secret", "proxy_secret": "s3", "nested": [{ "Private_Key": "k" }],
            "note": "aip1.id.secret.root", "name": "planner",
        });
        withhold(&mut document);
        assert_eq!(
            document,
            json!({
                "proxy_secret_file": "/x/secret", "proxy_secret": "withheld",
                "nested": [{ "Private_Key": "withheld" }], "note": "withheld", "name": "planner",
            })
        );
    }
}
