//! What is measured. Names and help; `docs/metrics.md` lists them.

use metrics::{describe_counter, describe_gauge, describe_histogram};

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
}
