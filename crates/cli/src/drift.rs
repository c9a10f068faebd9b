//! Drift as people read it: which agents run something else than was approved, since when, and what to do.

use aip_api::AgentName;
use serde_json::Value;

use crate::client::Admin;
use crate::exit::Failure;
use crate::output::{cell, counted, timestamp};

/// The agents that drifted and get no SVID.
pub(crate) async fn blocked(admin: &Admin) -> Result<Vec<Value>, Failure> {
    let mut all = admin.list("/v1/drift").await?;
    all.retain(|drift| drift["recovered_at"].is_null());
    Ok(all)
}

/// What changed, in a sentence's part.
pub(crate) fn changed(drift: &Value) -> String {
    let paths: Vec<String> = drift["paths"].as_array().into_iter().flatten().map(cell).collect();
    let more = drift["changed"]
        .as_u64()
        .unwrap_or_default()
        .saturating_sub(paths.len() as u64);
    match (paths.is_empty(), more) {
        (true, _) => "its sidecar did not say what".into(),
        (false, 0) => paths.join(", "),
        (false, more) => format!("{} and {}", paths.join(", "), counted(more, "more file")),
    }
}

/// One drift with the next step.
pub(crate) fn line(drift: &Value) -> String {
    let agent = cell(&drift["agent"]);
    let since = drift["at"].as_u64().map_or("-".into(), timestamp);
    let next = match drift["cleared"]["fingerprint"].as_str() {
        Some(_) => format!(
            "what it is to run is approved by {}; restart it",
            cell(&drift["cleared"]["by"])
        ),
        None => format!("aip attest list --agent {agent}, approve what it is to run, and restart it"),
    };
    format!("{agent} drifted at {since}: {}\n    next: {next}", changed(drift))
}

/// What an agent's sidecar wrote when it suspended itself: what changed, and what would have to be approved.
pub(crate) fn marker(data: &std::path::Path, agent: &AgentName) -> Option<(String, Option<String>)> {
    let marker = crate::home::read_json(&data.join("drift.json"))?;
    let found: Option<aip_api::resource::Measurement> = serde_json::from_value(marker["measurement"].clone()).ok();
    let found = found.filter(|m| m.agent == *agent).map(|m| m.fingerprint().to_string());
    Some((changed(&marker), found))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_drift_says_what_changed_and_what_to_do() {
        let drift = json!({ "agent": "ledger", "at": 0, "paths": ["a", "b"], "changed": 3, "cleared": null });
        let said = line(&drift);
        assert!(
            said.contains("a, b and 1 more file") && said.contains("aip attest list --agent ledger"),
            "{said}"
        );
        let cleared = json!({ "agent": "ledger", "at": 0, "paths": [], "changed": 0,
            "cleared": { "fingerprint": "00", "by": "admin:a", "at": 1 } });
        assert!(line(&cleared).contains("admin:a; restart it"));
    }
}
