//! Every metric of this process: its name, its kind and what it says. `docs/metrics.md` has the same words; a test
//! compares.

use metrics::{counter, describe_counter, describe_gauge, describe_histogram};

/// Name, kind, meaning.
const TABLE: &[(&str, Kind, &str)] = &[
    (
        "aip_requests_total",
        Kind::Counter,
        "requests that are over, by the status that the caller got",
    ),
    (
        "aip_refusals_total",
        Kind::Counter,
        "requests that this sidecar answered itself, because they were refused or failed",
    ),
    (
        "aip_observed_total",
        Kind::Counter,
        "refusals of policy that mode observe let pass",
    ),
    (
        "aip_response_seconds",
        Kind::Histogram,
        "from a request's head to its response's head",
    ),
    (
        "aip_decision_seconds",
        Kind::Histogram,
        "one evaluation of policy, cached or not",
    ),
    (
        "aip_decisions_total",
        Kind::Counter,
        "decisions, those on open streams after a change included",
    ),
    (
        "aip_requests_in_flight",
        Kind::Gauge,
        "requests that are not over: their response or stream is open",
    ),
    (
        "aip_body_bytes_total",
        Kind::Counter,
        "bytes of bodies that were passed on",
    ),
    (
        "aip_streams_cut_total",
        Kind::Counter,
        "requests that were cut after they had begun",
    ),
    (
        "aip_access_log_dropped_total",
        Kind::Counter,
        "access log lines that were dropped, since nobody read standard output",
    ),
    ("aip_spans_exported_total", Kind::Counter, "spans that a collector took"),
    (
        "aip_spans_dropped_total",
        Kind::Counter,
        "spans that were dropped: more came than are sent, or the collector was not there, refused, or did not answer",
    ),
    (
        "aip_connections",
        Kind::Gauge,
        "live connections: from peers (inbound); of the agent, and to peers (outbound)",
    ),
    (
        "aip_connections_cut_total",
        Kind::Counter,
        "connections with peers that were cut",
    ),
    (
        "aip_connections_refused_total",
        Kind::Counter,
        "connections that were closed before anybody was known on them, since there are as many from their source, or of strangers, as may be; the control plane has it, too",
    ),
    (
        "aip_log_lines_left_out_total",
        Kind::Counter,
        "lines of the log that were left out, since more of their kind came than are written in a time; the control plane has it, too",
    ),
    (
        "aip_tls_handshake_failures_total",
        Kind::Counter,
        "handshakes that failed at this process's port; the control plane has it, too",
    ),
    ("aip_dials_total", Kind::Counter, "connections that were made, or not"),
    (
        "aip_dial_failures_total",
        Kind::Counter,
        "connections to peers' sidecars that were not made, by what was wrong",
    ),
    ("aip_audit_records_total", Kind::Counter, "records that were written"),
    ("aip_audit_bytes_total", Kind::Counter, "bytes of these records"),
    (
        "aip_audit_lost_total",
        Kind::Counter,
        "records that could not be written; a record of its own says so once one can be",
    ),
    (
        "aip_audit_flush_seconds",
        Kind::Histogram,
        "one flush of written records to the disk",
    ),
    (
        "aip_audit_log_open",
        Kind::Gauge,
        "1 while there is a log that takes records; at 0 requests that must be recorded surely are refused",
    ),
    (
        "aip_audit_unsigned_records",
        Kind::Gauge,
        "records that no checkpoint covers yet",
    ),
    (
        "aip_audit_unsigned_seconds",
        Kind::Gauge,
        "how long the oldest of them has waited",
    ),
    (
        "aip_audit_unsent_bytes",
        Kind::Gauge,
        "bytes of records that the control plane does not have yet",
    ),
    (
        "aip_audit_thread_failures_total",
        Kind::Counter,
        "times that the thread which brings records to the disk failed; a new log began each time",
    ),
    (
        "aip_audit_refused_total",
        Kind::Counter,
        "logs that the control plane refused to take, or can't be continued there (records_gone), or that can't be read here (log_unreadable)",
    ),
    (
        "aip_svid_not_after_seconds",
        Kind::Gauge,
        "when the SVID ends, Unix seconds",
    ),
    (
        "aip_svid_lifetime_seconds",
        Kind::Gauge,
        "how long the SVID lives in all, seconds: it is renewed at about half of that",
    ),
    (
        "aip_svid_renewal_failures_total",
        Kind::Counter,
        "renewals that failed; the SVID in use goes on until it ends",
    ),
    (
        "aip_drifted",
        Kind::Gauge,
        "1 while this sidecar serves nothing, since what its agent runs is not what was approved",
    ),
    (
        "aip_drifts_total",
        Kind::Counter,
        "suspensions of this process for drift",
    ),
    (
        "aip_drift_report_failures_total",
        Kind::Counter,
        "drift reports that the control plane did not answer; each is said again",
    ),
    (
        "aip_drift_watched",
        Kind::Gauge,
        "1 while the kernel tells of changes to what was measured, 0 where it is looked at over and over",
    ),
    (
        "aip_control_plane_connected",
        Kind::Gauge,
        "1 while the configuration stream is up",
    ),
    (
        "aip_config_revision",
        Kind::Gauge,
        "the store revision that this sidecar runs",
    ),
    (
        "aip_config_rejected_total",
        Kind::Counter,
        "resources that were pushed and not taken; the last good version stays",
    ),
    (
        "aip_cache_write_failures_total",
        Kind::Counter,
        "writes of the signed cache that failed: a restart would begin with an older one",
    ),
    (
        "aip_kill_stream_connected",
        Kind::Gauge,
        "1 while the kill stream is up",
    ),
    ("aip_kill_orders", Kind::Gauge, "orders to stop that this sidecar holds"),
    (
        "aip_kill_lease_lost",
        Kind::Gauge,
        "1 while everything is refused since the control plane was not heard of",
    ),
    (
        "aip_kill_enforcement_seconds",
        Kind::Histogram,
        "from a kill set's arrival until it was enforced and on disk",
    ),
    (
        "aip_kill_sets_rejected_total",
        Kind::Counter,
        "kill sets that were not taken; the one that is held stays",
    ),
    (
        "aip_kill_heartbeats_ignored_total",
        Kind::Counter,
        "heartbeats that granted nothing: forged, replayed, of another process or about another set",
    ),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Gives the exporter what each says.
pub fn describe() {
    for (name, kind, says) in TABLE.iter().copied() {
        match kind {
            Kind::Counter => describe_counter!(name, says),
            Kind::Gauge => describe_gauge!(name, says),
            Kind::Histogram => describe_histogram!(name, says),
        }
    }
    begin();
}

/// Counters without labels that alerts ask the increase of.
const ALERTED: [&str; 3] = [
    "aip_drifts_total",
    "aip_drift_report_failures_total",
    "aip_audit_thread_failures_total",
];
/// The same by reason.
const ALERTED_BY_REASON: [(&str, &[&str]); 4] = [
    (
        "aip_kill_sets_rejected_total",
        &[
            "oversized",
            "unknown_key",
            "bad_signature",
            "malformed",
            "other_mesh",
            "stale",
            "fork",
            "not_persisted",
        ],
    ),
    (
        "aip_kill_heartbeats_ignored_total",
        &[
            "oversized",
            "unknown_key",
            "bad_signature",
            "malformed",
            "other_mesh",
            "heartbeat_other_instance",
            "heartbeat_not_asked",
            "heartbeat_other_set",
        ],
    ),
    ("aip_audit_lost_total", &["disk_full", "quota", "share", "io"]),
    (
        "aip_audit_refused_total",
        &[
            "records_gone",
            "log_unreadable",
            "checkpoint_fork",
            "log_truncated",
            "chain_broken",
            "root_mismatch",
        ],
    ),
];

/// Has what alerts ask the increase of there from the start, at 0: of what begins at 1, nothing has increased.
fn begin() {
    ALERTED.iter().for_each(|name| counter!(*name).increment(0));
    for (name, reasons) in ALERTED_BY_REASON {
        let begin = |reason: &&'static str| counter!(name, "reason" => *reason).increment(0);
        reasons.iter().for_each(begin);
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
    use std::collections::BTreeSet;

    fn word(kind: Kind) -> &'static str {
        match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }

    #[test]
    fn the_documentation_says_the_same_of_each() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (_, sidecar) = text.split_once("## Sidecar: requests").unwrap();
        let (sidecar, _) = sidecar.split_once("## Control plane").unwrap();
        let rows = sidecar.lines().filter(|line| line.starts_with("| `"));
        let documented: BTreeSet<_> = rows
            .map(|row| {
                let cells: Vec<String> = row.split('|').map(|cell| cell.trim().replace('`', "")).collect();
                format!("{} {} {}", cells[1], cells[2], cells[4])
            })
            .collect();
        let actual: BTreeSet<_> = TABLE
            .iter()
            .map(|(name, kind, says)| format!("{name} {} {says}", word(*kind)))
            .collect();
        let differ: Vec<_> = documented.symmetric_difference(&actual).collect();
        assert!(differ.is_empty(), "{differ:#?}");
    }

    #[test]
    fn what_alerts_ask_the_increase_of_is_there_from_the_start() {
        let page = aip_runtime::telemetry::init_metrics();
        describe();
        let page = page.render();
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let ours = |name: &String| TABLE.iter().any(|(known, ..)| known == name);
        let asked = alerted::asked(root.as_ref(), &["kill", "drift", "audit"]);
        let asked: Vec<_> = asked.into_iter().filter(ours).collect();
        assert!(asked.len() > 2, "{asked:?}");
        for name in asked {
            assert!(alerted::is_on(&page, &name), "{name}:\n{page}");
        }
    }

    /// What a scraper reads, of everything that is registered at the start.
    #[test]
    fn each_sample_on_the_page_has_its_help_and_its_type() {
        let page = aip_runtime::telemetry::init_metrics();
        describe();
        let metrics = crate::proxy::metrics::Metrics::register();
        metrics.begin(aip_policy::Direction::Inbound);
        let page = page.render();
        assert!(page.contains("# TYPE aip_requests_in_flight gauge"), "{page}");
        for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE aip_")) {
            let (name, kind) = line.split_once(' ').unwrap();
            let name = format!("aip_{name}");
            let row = TABLE.iter().find(|(known, ..)| *known == name);
            let (_, known, says) = row.unwrap_or_else(|| panic!("{name} is not in the table"));
            assert_eq!(kind, word(*known), "{name}");
            assert!(page.contains(&format!("# HELP {name} {says}\n")), "{name}:\n{page}");
        }
    }
}
