//! A record for tests, of which each changes what it is about.

use aip_api::id::DecisionId;

use super::{Decision, Direction, Facts, Party};

/// A call of a tool that was allowed.
pub(crate) fn decision(direction: Direction) -> Decision {
    Decision {
        id: DecisionId::fresh(),
        hop: None,
        trace: String::new(),
        direction,
        source: Party::default(),
        destination: Party::default(),
        method: "POST".into(),
        path: "/mcp".into(),
        protocol: "mcp".into(),
        call: "tools/call".into(),
        tool: "read_books".into(),
        verdict: "allow".into(),
        reason: String::new(),
        rule: String::new(),
        tags: Vec::new(),
        observed: false,
        policies: Vec::new(),
        mesh_revision: 1,
        revision: 1,
        facts: Facts::default(),
    }
}
