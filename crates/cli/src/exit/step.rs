//! What helps, for each reason that the mesh gives.

const AGENTS: &str = "list the agents with `aip agent list`";
const TOKEN: &str = "pass the admin token's file with --token-file, or set AIP_TOKEN_FILE; it expires";
const AGAIN: &str = "try again in a moment";
const RUNS: &str = "does the agent run? `aip status` shows the sidecars";
/// What the mesh says of it is all that can be said.
const SAID: &str = "";

/// Every reason of the control plane and of a sidecar, with the next step.
const STEPS: &[(&str, &str)] = &[
    (
        "proxy_auth_required",
        "call from behind `aip run`, or pass --proxy with the secret in its URL",
    ),
    ("not_loopback", SAID),
    ("not_the_agent", SAID),
    ("rate_limited", AGAIN),
    ("certificate_expired", SAID),
    ("revoked_serial", SAID),
    ("revoked_generation", SAID),
    ("no_identity", SAID),
    ("invalid_host", SAID),
    ("host_mismatch", SAID),
    ("wrong_agent", SAID),
    ("unsupported_target", SAID),
    ("ambiguous_path", SAID),
    ("transfer_coding", SAID),
    ("invalid_content", SAID),
    ("override_header", SAID),
    ("invalid_hop", SAID),
    ("hop_replayed", SAID),
    ("invalid_json", SAID),
    ("body_timeout", AGAIN),
    ("body_broken", SAID),
    ("unknown_agent", AGENTS),
    ("unknown_source", AGENTS),
    ("registry_unreachable", "is the control plane up? `aip status` asks it"),
    ("too_many_peers", SAID),
    ("tls_inside_tunnel", SAID),
    ("assurance_too_low", SAID),
    ("enforcement_too_low", SAID),
    (
        "reputation_too_low",
        "`aip reputation show AGENT` says what its score rests on",
    ),
    ("reputation_unknown", AGAIN),
    (
        "killed",
        "`aip kill list` shows the orders, `aip resume` takes one back",
    ),
    (
        "paused",
        "`aip kill list` shows the orders, `aip resume` takes one back",
    ),
    ("kill_state_unknown", SAID),
    ("lease_lost", SAID),
    ("drifted", "approve what it runs now, and restart it: `aip attest list`"),
    (
        "policy_denied",
        "`aip policy list` shows the policies, the rule names the one that decided",
    ),
    ("unsupported_verdict", SAID),
    ("unsupported_obligation", SAID),
    ("policy_unusable", SAID),
    ("audit_copy_failed", SAID),
    ("audit_log_limit", SAID),
    ("audit_quota", SAID),
    ("chain_broken", SAID),
    ("checkpoint_behind", SAID),
    ("checkpoint_fork", SAID),
    ("checkpoint_invalid", SAID),
    ("checkpoint_missing", SAID),
    ("checkpoint_time", SAID),
    ("log_broken", SAID),
    ("log_in_use", SAID),
    ("log_of_another", SAID),
    ("log_truncated", SAID),
    ("root_mismatch", SAID),
    ("search_too_large", SAID),
    (
        "audit_unavailable",
        "the log of the sidecar that refused says why: is its disk full?",
    ),
    ("share_used_up", SAID),
    ("overloaded", AGAIN),
    ("no_endpoint", RUNS),
    ("peer_unreachable", RUNS),
    ("peer_not_verified", SAID),
    ("agent_unreachable", RUNS),
    (
        "serves_nothing",
        "if it is meant to be called, start it again without --no-serve",
    ),
    ("connection_broken", SAID),
    ("response_timeout", SAID),
    ("interrupted", SAID),
    ("upgrade_failed", SAID),
    (
        "egress_not_listed",
        "if agents are meant to reach it, list it in `egress` of the mesh's settings: GET /v1/mesh-config, add \
         its host and port, PUT it back",
    ),
    ("egress_address_forbidden", SAID),
    ("egress_unresolved", SAID),
    ("egress_unreachable", SAID),
    ("sni_mismatch", SAID),
    ("agent_unknown", AGENTS),
    ("agent_exists", "choose another name, or delete the old one first"),
    ("name_invalid", SAID),
    ("credential_missing", TOKEN),
    ("credential_unsupported", SAID),
    (
        "token_malformed",
        "make a fresh one with `aip token create NAME`, and hand over all of it, as it was printed",
    ),
    ("token_unknown", SAID),
    ("token_expired", SAID),
    ("token_wrong_agent", SAID),
    ("token_other_key", SAID),
    ("token_reused", SAID),
    ("nonce_unknown", SAID),
    ("nonce_expired", SAID),
    ("nonce_reused", SAID),
    ("evidence_malformed", SAID),
    ("evidence_too_large", SAID),
    ("evidence_stale", SAID),
    ("evidence_other_key", SAID),
    ("evidence_other_agent", SAID),
    ("evidence_digest_mismatch", SAID),
    ("csr_invalid", SAID),
    (
        "agent_drifted",
        "approve what it runs now, and restart it: `aip attest list`",
    ),
    ("drift_malformed", SAID),
    ("drift_other_agent", SAID),
    ("drift_other_key", SAID),
    ("drift_stale", SAID),
    ("self_report", SAID),
    (
        "hop_unknown",
        "`aip audit query` shows what is there; a hop of this moment is there in a moment",
    ),
    ("hop_of_others", SAID),
    ("statement_invalid", SAID),
    (
        "measurement_pending",
        "a second look is due: `aip attest list --pending`, then `aip attest approve`",
    ),
    (
        "measurement_unknown",
        "`aip attest list` shows what may run, and what waits",
    ),
    ("measurement_revoked", "`aip attest approve` lets it run again"),
    (
        "measurement_limit",
        "take back the ones that nobody runs with `aip attest revoke`",
    ),
    ("svid_expired", SAID),
    ("svid_revoked", SAID),
    ("svid_other_agent", SAID),
    ("generation_mismatch", SAID),
    (
        "restored_store",
        "`aip status` says what sidecars have seen, `aip admin lift` lifts the store above it",
    ),
    ("instance_invalid", SAID),
    ("protocol_violation", SAID),
    ("endpoint_refused", SAID),
    ("subscription_limit", SAID),
    ("session_limit", SAID),
    ("rate_exceeded", AGAIN),
    ("ack_timeout", SAID),
    ("superseded", SAID),
    ("stream_renewed", SAID),
    ("draining", AGAIN),
    (
        "not_found",
        "check the name: the `list` verb beside this one shows what exists",
    ),
    ("method_not_allowed", SAID),
    ("conflict", "read it again, and repeat the change on what is there now"),
    ("invalid", SAID),
    ("malformed", SAID),
    ("too_large", SAID),
    ("immutable", SAID),
    ("limit_reached", SAID),
    ("policy_refused", SAID),
    ("admission_failed", SAID),
    ("admission_unavailable", AGAIN),
    ("baseline_required", SAID),
    ("baseline_replacement", SAID),
    ("admin_token_invalid", TOKEN),
    ("admin_token_expired", TOKEN),
    ("admin_token_revoked", TOKEN),
    (
        "role_forbidden",
        "ask somebody whose role may do this; docs/admin-api.md shows what each role may",
    ),
    ("second_person_required", "ask a second person with the approver role"),
    ("origin_refused", SAID),
    ("host_refused", SAID),
    (
        "socket_required",
        "use the socket on the control plane's machine: --admin unix:PATH, or AIP_ADMIN",
    ),
    ("proposal_lapsed", "propose the change anew"),
    ("idempotency_mismatch", SAID),
    ("idempotency_in_progress", AGAIN),
    ("watch_compacted", SAID),
    (
        "audit_unavailable",
        "make room on the disk of that sidecar, or look into its log; a durability of `buffered` would not wait for it",
    ),
    (
        "store_full",
        "make room on the control plane's disk; it goes on by itself",
    ),
    ("store_failed", SAID),
    ("internal", SAID),
];

/// What to do about a reason, where there is more to say than its detail does.
pub(super) fn next(reason: &str) -> Option<&'static str> {
    let (_, step) = STEPS.iter().find(|(known, _)| *known == reason)?;
    Some(*step).filter(|step| *step != SAID)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The tables of docs/errors.md are held against the programs' own by their tests.
    #[test]
    fn every_reason_of_the_mesh_is_known_and_no_other() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
        let text = std::fs::read_to_string(path).unwrap();
        let row = |line: &str| -> Option<String> {
            let mut cells = line.strip_prefix("| `")?.split('|');
            let reason = cells.next()?.trim().strip_suffix('`')?;
            cells.next()?.trim().parse::<u16>().ok()?;
            Some(reason.to_owned())
        };
        let said: BTreeSet<String> = text.lines().filter_map(row).collect();
        let known: BTreeSet<String> = STEPS.iter().map(|(reason, _)| (*reason).to_owned()).collect();
        assert!(said.len() > 90, "{said:?}");
        assert_eq!(known, said);
    }
}
