//! What the demo's mesh is made of: the agents' declared files, and the policies that the steps apply.

/// The three agents with the files that they declare.
pub(super) const AGENTS: [(&str, &str); 3] = [
    ("planner", include_str!("../../../../demo/agents/planner.json")),
    ("researcher", include_str!("../../../../demo/agents/researcher.json")),
    ("ledger", include_str!("../../../../demo/agents/ledger.json")),
];

/// The policies that the steps apply, by file name.
pub(super) const POLICIES: [(&str, &str); 5] = [
    (
        "ledger_limits.rego",
        include_str!("../../../../demo/policies/ledger_limits.rego"),
    ),
    (
        "ledger_limits_test.rego",
        include_str!("../../../../demo/policies/ledger_limits_test.rego"),
    ),
    (
        "ledger_limits.data.json",
        include_str!("../../../../demo/policies/ledger_limits.data.json"),
    ),
    (
        "research_hours.rego",
        include_str!("../../../../demo/policies/research_hours.rego"),
    ),
    ("broken.rego", include_str!("../../../../demo/policies/broken.rego")),
];

/// The line of the mistake in the broken policy.
pub(super) fn mistake_line() -> usize {
    let broken = POLICIES
        .iter()
        .find(|(file, _)| *file == "broken.rego")
        .map_or("", |(_, text)| text);
    broken
        .lines()
        .position(|l| l.contains("no_such_function"))
        .map_or(0, |i| i + 1)
}
