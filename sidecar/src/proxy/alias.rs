//! Authorities that signed agent cards advertise. A signed card can't be rewritten without breaking its signature; so
//! what it says is taken as another name of the agent that it came from.

use aip_api::AgentName;
use aip_api::resource::MeshConfig;
use dashmap::DashMap;

use super::egress;
use super::limits::MAX_ALIASES;

/// Who is meant by an authority.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Claim {
    Agent(AgentName),
    /// Two agents say it is theirs: nobody's.
    Disputed,
}

/// What signed cards said, by lower-case authority.
#[derive(Debug, Default)]
pub(crate) struct Aliases(DashMap<String, Claim>);

impl Aliases {
    /// Notes that a signed card of `agent` advertises `authority`. Not for names of the mesh, nor for hosts that the
    /// mesh lets agents reach: a card must not divert calls that go elsewhere.
    pub(crate) fn learn(&self, authority: &str, agent: &AgentName, mesh: &MeshConfig) {
        let authority = authority.to_ascii_lowercase();
        let (host, port) = split(&authority);
        let elsewhere = mesh.trust_domain.owns_host(host) || egress::listed(mesh, host, port.unwrap_or(80)).is_some();
        if elsewhere || host.is_empty() {
            return;
        }
        if let Some(mut claim) = self.0.get_mut(&authority) {
            if *claim != Claim::Agent(agent.clone()) && *claim != Claim::Disputed {
                tracing::warn!(authority, agent = %agent, "two signed cards advertise one authority; it is nobody's now");
                *claim = Claim::Disputed;
            }
            return;
        }
        if self.0.len() < MAX_ALIASES {
            self.0.insert(authority, Claim::Agent(agent.clone()));
        }
    }

    /// The agent that this authority stands for.
    pub(crate) fn of(&self, authority: &str) -> Option<AgentName> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.get(&authority.to_ascii_lowercase()).as_deref() {
            Some(Claim::Agent(agent)) => Some(agent.clone()),
            Some(Claim::Disputed) | None => None,
        }
    }

    pub(crate) fn list(&self) -> serde_json::Value {
        let pair = |authority: &str, claim: &Claim| {
            let agent = match claim {
                Claim::Agent(agent) => agent.to_string(),
                Claim::Disputed => "disputed".to_owned(),
            };
            (authority.to_owned(), serde_json::Value::from(agent))
        };
        let all: serde_json::Map<_, _> = self.0.iter().map(|e| pair(e.key(), e.value())).collect();
        all.into()
    }
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
    use aip_api::resource::{EgressRule, MeshMode};

    #[test]
    fn a_card_names_its_own_agent_only() {
        let mut mesh = MeshConfig::new("aip.internal".parse().unwrap(), MeshMode::Dev);
        mesh.egress.push(EgressRule {
            host: "api.example.com".into(),
            port: 80,
            allow_private: false,
        });
        let (one, two): (AgentName, AgentName) = ("one".parse().unwrap(), "two".parse().unwrap());
        let aliases = Aliases::default();
        for forbidden in [
            "two.aip.internal",
            "two.aip.internal:80",
            "api.example.com",
            "API.example.com:80",
        ] {
            aliases.learn(forbidden, &one, &mesh);
            assert_eq!(aliases.of(forbidden), None, "{forbidden}");
        }
        aliases.learn("10.0.0.7:9000", &one, &mesh);
        assert_eq!(aliases.of("10.0.0.7:9000"), Some(one.clone()));
        aliases.learn("10.0.0.7:9000", &two, &mesh);
        assert_eq!(aliases.of("10.0.0.7:9000"), None, "disputed");
        aliases.learn("10.0.0.7:9000", &one, &mesh);
        assert_eq!(aliases.of("10.0.0.7:9000"), None, "and so it stays");
    }

    #[test]
    fn authorities_split() {
        assert_eq!(split("a:1"), ("a", Some(1)));
        assert_eq!(split("a"), ("a", None));
        assert_eq!(split("[::1]:80"), ("::1", Some(80)));
        assert_eq!(split("[::1]"), ("::1", None));
    }
}
