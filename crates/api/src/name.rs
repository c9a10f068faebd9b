//! Names: trust domains, agents and the SPIFFE IDs made of both.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest DNS label, and so the longest agent name (RFC 1035 section 2.3.4).
pub const MAX_LABEL: usize = 63;
/// Longest trust domain: what SPIFFE allows (SPIFFE ID 2.1, 255 bytes for the authority).
pub const MAX_TRUST_DOMAIN: usize = 255;
/// The trust domain of a mesh that was not told another.
pub const DEFAULT_TRUST_DOMAIN: &str = "aip.internal";

/// A name that is not one of ours, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a DNS label.
    #[error("{0:?} is not an agent name: use 1 to 63 of a-z, 0-9 and '-', with no '-' at either end")]
    Agent(String),
    /// Not dot-separated DNS labels.
    #[error("{0:?} is not a trust domain: use DNS labels of a-z, 0-9 and '-', separated by dots, at most 255 bytes")]
    TrustDomain(String),
    /// Not `spiffe://<trust-domain>/agent/<name>`.
    #[error("{0:?} is not the SPIFFE ID of an agent: expected spiffe://<trust-domain>/agent/<name>")]
    SpiffeId(String),
}

fn is_label(s: &str) -> bool {
    let bytes = s.as_bytes();
    (1..=MAX_LABEL).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                s.parse()
            }
        }
        impl From<$name> for String {
            fn from(n: $name) -> String {
                n.0.as_ref().to_owned()
            }
        }
    };
}

/// An agent's name: one DNS label, 1 to 63 of `a-z`, `0-9` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentName(std::sync::Arc<str>);
text_type!(AgentName);

impl FromStr for AgentName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        if is_label(s) {
            Ok(Self(s.into()))
        } else {
            Err(NameError::Agent(clip(s)))
        }
    }
}

/// A trust domain: DNS labels separated by dots, lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(std::sync::Arc<str>);
text_type!(TrustDomain);

impl FromStr for TrustDomain {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        if s.len() <= MAX_TRUST_DOMAIN && !s.is_empty() && s.split('.').all(is_label) {
            Ok(Self(s.into()))
        } else {
            Err(NameError::TrustDomain(clip(s)))
        }
    }
}

impl TrustDomain {
    /// The agent that `host` names in this trust domain: `<name>.<trust-domain>`, upper case and one trailing dot
    /// allowed (as in DNS). A port must have been taken off before.
    pub fn agent_of_host(&self, host: &str) -> Option<AgentName> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let (name, domain) = host.split_once('.')?;
        if !domain.eq_ignore_ascii_case(self.as_str()) {
            return None;
        }
        name.to_ascii_lowercase().parse().ok()
    }

    /// Whether `host` lies in this trust domain, whether or not it names an agent.
    pub fn owns_host(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let (len, own) = (host.len(), self.as_str().len());
        host.eq_ignore_ascii_case(self.as_str())
            || (len > own
                && host.is_char_boundary(len - own)
                && host[len - own..].eq_ignore_ascii_case(self.as_str())
                && host.as_bytes()[len - own - 1] == b'.')
    }
}

/// The identity of an agent: `spiffe://<trust-domain>/agent/<name>` (SPIFFE ID specification, section 2).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// The agent in it.
    pub agent: AgentName,
}

impl SpiffeId {
    /// The id of `agent` in `trust_domain`.
    pub fn new(trust_domain: TrustDomain, agent: AgentName) -> Self {
        Self { trust_domain, agent }
    }

    /// The authority by which peers address this agent: `<name>.<trust-domain>`.
    pub fn authority(&self) -> String {
        format!("{}.{}", self.agent, self.trust_domain)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/agent/{}", self.trust_domain, self.agent)
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let bad = || NameError::SpiffeId(clip(s));
        let (domain, path) = s
            .strip_prefix("spiffe://")
            .and_then(|r| r.split_once('/'))
            .ok_or_else(bad)?;
        let name = path.strip_prefix("agent/").ok_or_else(bad)?;
        Ok(Self {
            trust_domain: domain.parse().map_err(|_| bad())?,
            agent: name.parse().map_err(|_| bad())?,
        })
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = NameError;
    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> String {
        id.to_string()
    }
}

/// Names in errors come from peers: cut to what a log line can carry.
fn clip(s: &str) -> String {
    s.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn agent_names_are_dns_labels() {
        for good in ["a", "planner", "a-1", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<AgentName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", "a/b", " a", &"x".repeat(64)] {
            assert!(bad.parse::<AgentName>().is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn spiffe_ids_of_other_shapes_are_refused() {
        let good = "spiffe://aip.internal/agent/planner";
        assert_eq!(good.parse::<SpiffeId>().unwrap().to_string(), good);
        for bad in [
            "spiffe://aip.internal/agent/planner/",
            "spiffe://aip.internal/agent/planner/x",
            "spiffe://aip.internal/agent/",
            "spiffe://aip.internal/Agent/planner",
            "spiffe://aip.internal/service/planner",
            "spiffe:///agent/planner",
            "spiffe://AIP.internal/agent/planner",
            "https://aip.internal/agent/planner",
            "spiffe://aip.internal:80/agent/planner",
            "spiffe://u@aip.internal/agent/planner",
            "spiffe://aip.internal/agent/%70lanner",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn hosts_name_agents_of_the_own_trust_domain_only() {
        let td: TrustDomain = DEFAULT_TRUST_DOMAIN.parse().unwrap();
        assert_eq!(td.agent_of_host("Planner.AIP.internal.").unwrap().as_str(), "planner");
        assert_eq!(td.agent_of_host("planner.aip.internal.evil.com"), None);
        assert_eq!(td.agent_of_host("a.planner.aip.internal"), None);
        assert_eq!(td.agent_of_host("planneraip.internal"), None);
        assert!(td.owns_host("x.y.aip.internal") && td.owns_host("aip.internal") && td.owns_host("aip.INTERNAL."));
        assert!(!td.owns_host("evilaip.internal") && !td.owns_host("internal"));
    }

    proptest! {
        #[test]
        fn parsing_any_text_never_panics_and_round_trips(s in "\\PC{0,90}") {
            if let Ok(id) = s.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), s.clone());
            }
            let td: TrustDomain = DEFAULT_TRUST_DOMAIN.parse().unwrap();
            let _ = td.owns_host(&s);
            if let Some(agent) = td.agent_of_host(&s) {
                prop_assert!(td.owns_host(&s));
                prop_assert!(agent.as_str().parse::<AgentName>().is_ok());
            }
        }
    }
}
