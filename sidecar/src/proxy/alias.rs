//! Other authorities of agents: what the registry lists for them (`aliases`), and nothing else. A signed agent card can't
//! be rewritten without breaking its signature; so what it advertises must lead to its agent as it stands. That a card
//! says so proves nothing: whoever has the card's key may name any host, and calls there would go to the agent.

use aip_api::AgentName;

use crate::snapshot::Snapshot;

/// The agent to which the registry gives this host and port. Where two agents have it, it is nobody's.
pub(crate) fn of(snapshot: &Snapshot, host: &str, port: u16) -> Option<AgentName> {
    let is = |alias: &String| {
        let (own, own_port) = split(alias);
        own_port.unwrap_or(80) == port && own.eq_ignore_ascii_case(host)
    };
    let mut agents = snapshot.agents.values().filter(|agent| agent.aliases.iter().any(is));
    let agent = agents.next()?;
    agents.next().is_none().then(|| agent.name.clone())
}

/// Host and port of an authority; brackets stay off an IPv6 address.
pub(crate) fn split(authority: &str) -> (&str, Option<u16>) {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').unwrap_or((rest, ""));
        return (host, after.strip_prefix(':').and_then(|p| p.parse().ok()));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_split() {
        assert_eq!(split("a:1"), ("a", Some(1)));
        assert_eq!(split("a"), ("a", None));
        assert_eq!(split("[::1]:80"), ("::1", Some(80)));
        assert_eq!(split("[::1]"), ("::1", None));
    }
}
