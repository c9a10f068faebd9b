//! What is measured. Names and help; `docs/metrics.md` lists them.

use aip_api::resource::reputation::{Finding, Severity};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram};

/// Name, type, help.
pub const TABLE: &[(&str, &str, &str)] = &[
    (
        "aip_reputation_reports_total",
        "counter",
        "Verifiers' reports that were counted, by finding and severity.",
    ),
    (
        "aip_reputation_dropped_total",
        "counter",
        "Hops whose observations were lost: too many at once, or not written.",
    ),
    (
        "aip_reputation_below_floor",
        "gauge",
        "Agents that sidecars refuse for their score, when all were looked at last.",
    ),
    (
        "aip_reputation_unreadable",
        "gauge",
        "Agents whose reputation could not be read then.",
    ),
    (
        "aip_clock_ahead_seconds",
        "gauge",
        "By how much the clock stepped ahead of what has passed.",
    ),
    ("aip_store_revision", "gauge", "The store's revision."),
    (
        "aip_store_txn_seconds",
        "histogram",
        "One transaction, from the call to the flush.",
    ),
    (
        "aip_store_txn_failures_total",
        "counter",
        "Transactions that did not happen, by reason.",
    ),
    ("aip_svids_issued_total", "counter", "SVIDs issued."),
    ("aip_issue_seconds", "histogram", "One issuance that succeeded."),
    ("aip_issue_refusals_total", "counter", "Issuances refused, by reason."),
    ("aip_agents_drifted", "gauge", "Agents that drifted and get no SVID."),
    ("aip_drift_reports_total", "counter", "Drifts that sidecars reported."),
    (
        "aip_drift_refusals_total",
        "counter",
        "Drift reports refused, by reason.",
    ),
    (
        "aip_log_lines_left_out_total",
        "counter",
        "Lines of the log that were left out, since more of their kind came than are written in a time.",
    ),
    (
        "aip_tls_handshake_failures_total",
        "counter",
        "Handshakes refused on the mesh port, by reason.",
    ),
    (
        "aip_admin_handshake_failures_total",
        "counter",
        "Handshakes refused on the admin port, by reason.",
    ),
    (
        "aip_connections_refused_total",
        "counter",
        "Connections closed before their handshake, since their source has as many as it may, by reason.",
    ),
    ("aip_config_sessions", "gauge", "Open config streams."),
    ("aip_config_pushes_total", "counter", "Pushes sent."),
    ("aip_config_resources_pushed_total", "counter", "Resources in them."),
    (
        "aip_config_ack_seconds",
        "histogram",
        "From a push to its acknowledgement.",
    ),
    (
        "aip_config_nacks_total",
        "counter",
        "Resources that sidecars rejected, by kind.",
    ),
    (
        "aip_config_sessions_lagged_total",
        "counter",
        "Sessions that missed news and looked at everything again.",
    ),
    (
        "aip_config_streams_ended_total",
        "counter",
        "Config streams that we ended, by reason.",
    ),
    (
        "aip_config_streams_refused_total",
        "counter",
        "Config streams refused, by reason.",
    ),
    (
        "aip_config_restored_store_total",
        "counter",
        "Sidecars that have seen a later revision than the store's.",
    ),
    ("aip_kill_streams", "gauge", "Open kill streams."),
    (
        "aip_kill_webhooks_total",
        "counter",
        "Events that the webhook's receiver took, or that were given up.",
    ),
    (
        "aip_kill_webhook_attempts_failed_total",
        "counter",
        "Attempts to deliver one that failed, by reason.",
    ),
    (
        "aip_kill_orders_in_force",
        "gauge",
        "Orders to stop in the set that was published last.",
    ),
    (
        "aip_kill_ack_seconds",
        "histogram",
        "From the push of a kill set to its acknowledgement.",
    ),
    (
        "aip_kill_sets_not_taken_total",
        "counter",
        "Kill sets that a sidecar answered with a rejection.",
    ),
    (
        "aip_kill_streams_ended_total",
        "counter",
        "Kill streams that we ended, by reason.",
    ),
    (
        "aip_kill_streams_refused_total",
        "counter",
        "Kill streams refused, by reason.",
    ),
    (
        "aip_kill_restored_store_total",
        "counter",
        "Kill sets that sidecars held and this store never issued.",
    ),
    (
        "aip_policy_admission_seconds",
        "histogram",
        "One policy check in its child process.",
    ),
    ("aip_audit_streams", "gauge", "Open audit streams."),
    (
        "aip_audit_streams_refused_total",
        "counter",
        "Audit streams refused, by reason.",
    ),
    (
        "aip_audit_streams_ended_total",
        "counter",
        "Audit streams that we ended, by reason.",
    ),
    (
        "aip_audit_checkpoints_total",
        "counter",
        "Checkpoints of sidecars: taken, or sent again.",
    ),
    (
        "aip_audit_segments_delayed_total",
        "counter",
        "Ends of segments whose answer was held back, since more came than are taken in a time.",
    ),
    (
        "aip_audit_checkpoints_delayed_total",
        "counter",
        "Checkpoints whose answer was held back, since more came than are taken in a time.",
    ),
    (
        "aip_audit_checkpoint_lag_seconds",
        "histogram",
        "From a checkpoint's signature until it was taken.",
    ),
    (
        "aip_audit_ledger_commit_seconds",
        "histogram",
        "One transaction of the log of checkpoints.",
    ),
    ("aip_audit_received_records_total", "counter", "Records received."),
    (
        "aip_audit_received_bytes_total",
        "counter",
        "Bytes of records received.",
    ),
    (
        "aip_audit_record_lag_seconds",
        "histogram",
        "From the newest record of a chunk until it was received.",
    ),
    (
        "aip_audit_rejected_total",
        "counter",
        "Checkpoints and chunks refused, by reason.",
    ),
    (
        "aip_audit_findings_total",
        "counter",
        "Logs in which something was found that can't be, by reason.",
    ),
    (
        "aip_audit_hops_total",
        "counter",
        "Hops whose both ends were heard, by result.",
    ),
    (
        "aip_audit_hops_waiting",
        "gauge",
        "Ends of hops whose other end was not heard yet.",
    ),
    (
        "aip_audit_hops_unmatched_total",
        "counter",
        "Ends of hops that were left to the verifier, by reason.",
    ),
    (
        "aip_admin_refusals_total",
        "counter",
        "Admin requests refused, by reason.",
    ),
];

/// Gives the exporter types and help texts.
pub(crate) fn describe() {
    for (name, kind, help) in TABLE.iter().copied() {
        match kind {
            "gauge" => describe_gauge!(name, help),
            "histogram" => describe_histogram!(name, help),
            _ => describe_counter!(name, help),
        }
    }
    begin();
}

/// Counters without labels that alerts ask the increase of.
const ALERTED: [&str; 5] = [
    "aip_kill_sets_not_taken_total",
    "aip_kill_restored_store_total",
    "aip_config_restored_store_total",
    "aip_drift_reports_total",
    "aip_reputation_dropped_total",
];
/// The same by reason.
const ALERTED_BY_REASON: [(&str, &[&str]); 3] = [
    (
        "aip_audit_findings_total",
        &["checkpoint_fork", "log_truncated", "chain_broken", "root_mismatch"],
    ),
    (
        "aip_audit_rejected_total",
        &["audit_quota", "store_full", "audit_copy_failed", "checkpoint_time"],
    ),
    ("aip_drift_refusals_total", &["drift_stale"]),
];

/// Has what alerts ask the increase of there from the start, at 0: of what begins at 1, nothing has increased.
fn begin() {
    ALERTED.iter().for_each(|name| counter!(*name).increment(0));
    for (name, reasons) in ALERTED_BY_REASON {
        let begin = |reason: &&'static str| counter!(name, "reason" => *reason).increment(0);
        reasons.iter().for_each(begin);
    }
    for result in ["sent", "failed"] {
        counter!("aip_kill_webhooks_total", "result" => result).increment(0);
    }
    for result in ["agreed", "differs", "cut"] {
        counter!("aip_audit_hops_total", "result" => result).increment(0);
    }
    for (finding, severity) in Finding::ALL
        .iter()
        .flat_map(|f| Severity::ALL.iter().map(move |s| (f, s)))
    {
        let (finding, severity) = (finding.as_str(), severity.as_str());
        counter!("aip_reputation_reports_total", "finding" => finding, "severity" => severity).increment(0);
    }
}

// What the tests of the mesh share, too.
#[cfg(test)]
#[allow(unreachable_pub)]
#[path = "../../tests/src/alerted.rs"]
mod alerted;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_alerts_ask_the_increase_of_is_there_from_the_start() {
        let page = aip_runtime::telemetry::init_metrics();
        describe();
        let page = page.render();
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let ours = |name: &String| TABLE.iter().any(|(known, ..)| known == name);
        let asked = alerted::asked(root.as_ref(), &["kill", "drift", "audit", "reputation"]);
        let asked: Vec<_> = asked.into_iter().filter(ours).collect();
        assert!(asked.len() > 5, "{asked:?}");
        for name in asked {
            assert!(alerted::is_on(&page, &name), "{name}:\n{page}");
        }
    }
}
