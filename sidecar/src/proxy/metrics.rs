//! The data path's metrics. `docs/metrics.md` lists them; a test compares.
//!
//! Names of agents are no labels: a mesh has a million of them. They are in the access log.

use aip_policy::verdict::builtin;
use aip_policy::{Decision, Direction, Verdict};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::request::refusal::{Cut, Refusal};

/// Requests that ended.
const REQUESTS: &str = "aip_requests_total";
/// Requests that were refused or failed, by reason.
const REFUSALS: &str = "aip_refusals_total";
/// Would-be refusals of policy that `observe` let through.
const OBSERVED: &str = "aip_observed_total";
/// Seconds from a request's head to its response's head.
const RESPONSE_SECONDS: &str = "aip_response_seconds";
/// Seconds of policy.
const DECISION_SECONDS: &str = "aip_decision_seconds";
/// Decisions.
const DECISIONS: &str = "aip_decisions_total";
/// Requests in flight.
const IN_FLIGHT: &str = "aip_requests_in_flight";
/// Body bytes.
const BYTES: &str = "aip_body_bytes_total";
/// Live connections.
const CONNECTIONS: &str = "aip_connections";
/// Handshakes that failed.
const HANDSHAKE_FAILURES: &str = "aip_tls_handshake_failures_total";
/// Connections that were closed before anybody was known on them.
const CONNECTIONS_REFUSED: &str = "aip_connections_refused_total";
/// Connections that were cut before their end.
const CONNECTIONS_CUT: &str = "aip_connections_cut_total";
/// Requests that were cut after they had begun.
const STREAMS_CUT: &str = "aip_streams_cut_total";
/// Connections made to peers and to the agent.
const DIALS: &str = "aip_dials_total";
/// Connections to peers that were not made.
const DIAL_FAILURES: &str = "aip_dial_failures_total";
/// Access log lines that were dropped.
const LOG_DROPPED: &str = "aip_access_log_dropped_total";

/// Classes of status.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

fn direction_index(direction: Direction) -> usize {
    match direction {
        Direction::Inbound => 0,
        Direction::Outbound => 1,
    }
}

/// The reason of a decision that a rule of a policy made. Which rule is in the access log: policies name as many as they
/// like.
const BY_RULE: &str = "rule";
/// The reason of a refusal of our own that has no name here.
const OTHER: &str = "other";
/// Reasons of the refusals that no policy's rule made.
const REASONS: [&str; 9] = [
    builtin::NO_RULE,
    builtin::FACT_UNESTABLISHED,
    builtin::EVALUATION_ERROR,
    builtin::LIMIT_EXCEEDED,
    builtin::INSTRUCTION_LIMIT,
    builtin::MALFORMED_RULE,
    builtin::UNSUPPORTED_VERDICT,
    builtin::TOO_MANY_RULES,
    OTHER,
];

/// Why it was decided so, in one of a few words.
fn reason(decision: &Decision) -> &'static str {
    let Some(rule) = decision.by_builtin() else {
        return BY_RULE;
    };
    REASONS.into_iter().find(|known| *known == rule).unwrap_or(OTHER)
}

/// Handles for decisions: not cached, and cached.
type Decisions = [Counter; 2];

/// Handles for one direction.
struct Way {
    requests: [Counter; 5],
    response: Histogram,
    decision: Histogram,
    /// What rules decided, by verdict.
    by_rule: [Decisions; 6],
    /// What was denied because no rule could, or none did: by reason.
    by_us: [Decisions; REASONS.len()],
    in_flight: Gauge,
    received: Counter,
    sent: Counter,
    connections: Gauge,
    observed: Counter,
}

impl Way {
    fn register(direction: Direction) -> Self {
        let word = direction.as_str();
        let decisions = |verdict: Verdict, reason: &'static str| {
            ["false", "true"].map(|cached| {
                counter!(DECISIONS, "direction" => word, "verdict" => verdict.as_str(), "reason" => reason,
                    "cached" => cached)
            })
        };
        Self {
            requests: CLASSES.map(|class| counter!(REQUESTS, "direction" => word, "class" => class)),
            response: histogram!(RESPONSE_SECONDS, "direction" => word),
            decision: histogram!(DECISION_SECONDS, "direction" => word),
            by_rule: Verdict::ALL.map(|verdict| decisions(verdict, BY_RULE)),
            by_us: REASONS.map(|reason| decisions(Verdict::Deny, reason)),
            in_flight: gauge!(IN_FLIGHT, "direction" => word),
            received: counter!(BYTES, "direction" => word, "way" => "request"),
            sent: counter!(BYTES, "direction" => word, "way" => "response"),
            connections: gauge!(CONNECTIONS, "direction" => word),
            observed: counter!(OBSERVED, "direction" => word),
        }
    }
}

/// Handles, registered once: a lookup by name and labels costs more than the count.
pub(crate) struct Metrics {
    ways: [Way; 2],
    log_dropped: Counter,
}

impl Metrics {
    pub(crate) fn register() -> Self {
        Self {
            ways: [Direction::Inbound, Direction::Outbound].map(Way::register),
            log_dropped: counter!(LOG_DROPPED),
        }
    }

    fn way(&self, direction: Direction) -> &Way {
        &self.ways[direction_index(direction)]
    }

    pub(crate) fn begin(&self, direction: Direction) {
        self.way(direction).in_flight.increment(1.0);
    }

    pub(crate) fn end(&self, direction: Direction, status: u16, received: u64, sent: u64) {
        let way = self.way(direction);
        way.in_flight.decrement(1.0);
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        way.requests[class].increment(1);
        way.received.increment(received);
        way.sent.increment(sent);
    }

    pub(crate) fn response(&self, direction: Direction, seconds: f64) {
        self.way(direction).response.record(seconds);
    }

    pub(crate) fn decision(&self, direction: Direction, decision: &Decision, seconds: f64) {
        let way = self.way(direction);
        way.decision.record(seconds);
        let own = REASONS.iter().position(|known| *known == reason(decision));
        let verdict = Verdict::ALL.iter().position(|v| *v == decision.verdict);
        let counters = match own {
            Some(index) => &way.by_us[index],
            None => &way.by_rule[verdict.unwrap_or(0)],
        };
        counters[usize::from(decision.cached)].increment(1);
    }

    pub(crate) fn observed(&self, direction: Direction) {
        self.way(direction).observed.increment(1);
    }

    pub(crate) fn connections(&self, direction: Direction, change: f64) {
        self.way(direction).connections.increment(change);
    }

    pub(crate) fn log_dropped(&self) {
        self.log_dropped.increment(1);
    }
}

/// Counts a refusal: rare enough for a lookup.
pub(crate) fn refused(direction: Direction, refusal: Refusal) {
    counter!(REFUSALS, "direction" => direction.as_str(), "reason" => refusal.reason()).increment(1);
}

/// Counts a handshake that failed.
pub(crate) fn handshake_failed(reason: &'static str) {
    counter!(HANDSHAKE_FAILURES, "reason" => reason).increment(1);
}

/// Counts a connection that gave way before anybody was known on it.
pub(crate) fn gave_way() {
    counter!(CONNECTIONS_REFUSED, "reason" => "outbound_strangers").increment(1);
}

/// Counts a connection that was cut.
pub(crate) fn connection_cut(cut: Cut) {
    counter!(CONNECTIONS_CUT, "reason" => cut.reason()).increment(1);
}

/// Counts a request that was cut after it had begun.
pub(crate) fn stream_cut(cut: Cut) {
    counter!(STREAMS_CUT, "reason" => cut.reason()).increment(1);
}

/// Counts a connection that was made, or not: to `peer`, `agent` or `egress`.
pub(crate) fn dialled(to: &'static str, result: &'static str) {
    counter!(DIALS, "to" => to, "result" => result).increment(1);
}

/// Counts what was wrong with a connection to a peer that was not made.
pub(crate) fn dial_failed(reason: &'static str) {
    counter!(DIAL_FAILURES, "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aip_policy::{Obligations, Rule};

    use super::*;

    fn decision(policy: &str, rule: &str, verdict: Verdict) -> Decision {
        Decision {
            verdict,
            rules: vec![Rule {
                rule: rule.into(),
                policy: policy.into(),
                verdict,
                reason: "t".into(),
            }],
            obligations: Obligations::default(),
            bundle: Arc::from(""),
            cached: false,
        }
    }

    /// However many rules policies have, reasons are few.
    #[test]
    fn the_reason_of_a_decision_is_one_of_few_words() {
        let of = |policy: &str, rule: &str| reason(&decision(policy, rule, Verdict::Deny));
        for n in 0..100 {
            assert_eq!(of("p", &format!("rule-{n}")), BY_RULE);
        }
        assert_eq!(reason(&decision("p", "r", Verdict::Allow)), BY_RULE);
        for rule in builtin::ALL {
            assert_eq!((of("", rule), of("p", rule)), (rule, rule));
        }
        assert_eq!(of("", "of_a_later_version"), OTHER);
    }
}
