//! Where each thing stands in the store. Names never contain what would let one key pass for another: kinds are
//! fixed words, agent names are DNS labels, the rest is made by us.

use aip_api::resource::{Kind, ResourceId};
use aip_api::{AgentName, Digest};

/// All resources.
pub const RESOURCES: &str = "resource/";
/// The mesh itself: mode, trust domain, when it was made.
pub const MESH: &str = "mesh";
/// The CA's keys, sealed.
pub const CA: &str = "secret/ca";
/// All join tokens.
pub const TOKENS: &str = "token/";
/// All measurements that wait for a person.
pub const PENDING: &str = "pending/";
/// All approvals that were taken back.
pub const WITHDRAWN: &str = "withdrawn/";
/// All agents' last drifts.
pub const DRIFTS: &str = "drift/";
/// All SVIDs that were issued and have not expired.
pub const SVIDS: &str = "svid/";
/// All proposals.
pub const PROPOSALS: &str = "proposal/";
/// All admin tokens.
pub const ADMIN_TOKENS: &str = "admin-token/";
/// All admin tokens' claims: what waits to be handed out for a secret.
pub const CLAIMS: &str = "claim/";
/// Who became the second person of a `prod` mesh; there is one such event in its life.
pub const SECOND_PERSON: &str = "second-person";
/// All policies' earlier versions.
pub const POLICY_VERSIONS: &str = "policy-version/";

/// Where each agent's reputation stood before the events that are kept of it.
pub const REPUTATION_BASES: &str = "reputation/base/";
/// All reports that were counted.
pub const REPUTATION_REPORTS: &str = "reputation/report/";
/// What all reports of one hop came to.
pub const REPUTATION_HOPS: &str = "reputation/hop/";
/// What each reporter reported lately.
pub const REPUTATION_REPORTERS: &str = "reputation/reporter/";
/// The kill set in force.
pub const KILL_SET: &str = "kill/set";
/// All kill sets that were issued here.
pub const ISSUED_SETS: &str = "kill/issued/";
/// All orders that ended.
pub const ENDED_ORDERS: &str = "kill/ended/";
/// All leases that were granted.
pub const GRANTED_LEASES: &str = "kill/granted/";

/// That the store was restored from a copy.
pub const RESTORED: &str = "restored";

/// All aliases, and whose each is.
pub const ALIASES: &str = "alias/";
/// All agents of a `prod` mesh that were removed and were more than a name, as they come back.
pub const FORMER: &str = "former/";

/// All policies and settings that were replaced or removed, by what they were.
pub const FORMER_RESOURCES: &str = "former-resource/";
/// The same by when that was.
pub const FORMER_UNTIL: &str = "former-until/";

/// A resource as it was; zero-padded, so that keys sort as numbers do.
pub fn former_resource(kind: Kind, name: &str, revision: u64) -> String {
    format!("{FORMER_RESOURCES}{kind}/{name}/{revision:020}")
}

/// Since when a resource is a former one.
pub fn former_until(until: u64, key: &str) -> String {
    format!("{FORMER_UNTIL}{until:020}/{key}")
}

/// An alias; without a port it is at 80.
pub fn alias(alias: &str) -> String {
    match alias.contains(':') {
        true => format!("{ALIASES}{alias}"),
        false => format!("{ALIASES}{alias}:80"),
    }
}

/// An agent that was removed.
pub fn former(agent: &AgentName) -> String {
    format!("{FORMER}{agent}")
}

/// A kill set, by the digest of what was signed.
pub fn issued_set(digest: &Digest) -> String {
    format!("{ISSUED_SETS}{digest}")
}

/// An order that ended.
pub fn ended_order(id: &str) -> String {
    format!("{ENDED_ORDERS}{id}")
}

/// What a process was granted.
pub fn granted_lease(agent: &AgentName, instance: &str) -> String {
    format!("{GRANTED_LEASES}{agent}/{instance}")
}

/// A resource.
pub fn resource(kind: Kind, name: &str) -> String {
    format!("{RESOURCES}{kind}/{name}")
}

/// All resources of a kind.
pub fn of_kind(kind: Kind) -> String {
    resource(kind, "")
}

/// The resource that a key is of, if it is one.
pub fn resource_id(key: &str) -> Option<ResourceId> {
    let (kind, name) = key.strip_prefix(RESOURCES)?.split_once('/')?;
    Some(ResourceId::new(kind.parse().ok()?, name))
}

/// A join token.
pub fn token(id: &str) -> String {
    format!("{TOKENS}{id}")
}

/// A measurement that waits.
pub fn pending(agent: &AgentName, fingerprint: &Digest) -> String {
    format!("{PENDING}{agent}/{fingerprint}")
}

/// An approval that was taken back.
pub fn withdrawn(agent: &AgentName, fingerprint: &Digest) -> String {
    format!("{WITHDRAWN}{agent}/{fingerprint}")
}

/// The last drift of an agent.
pub fn drift(agent: &AgentName) -> String {
    format!("{DRIFTS}{agent}")
}

/// An issued SVID.
pub fn svid(agent: &AgentName, serial: &str) -> String {
    format!("{SVIDS}{agent}/{serial}")
}

/// A proposal.
pub fn proposal(id: &str) -> String {
    format!("{PROPOSALS}{id}")
}

/// An admin token.
pub fn admin_token(jti: &str) -> String {
    format!("{ADMIN_TOKENS}{jti}")
}

/// A claim, by the digest of its secret.
pub fn claim(digest: &Digest) -> String {
    format!("{CLAIMS}{digest}")
}

/// One version of a policy; zero-padded, so that keys sort as numbers do.
pub fn policy_version(name: &str, version: u64) -> String {
    format!("{POLICY_VERSIONS}{name}/{version:010}")
}

/// Where an agent's reputation stood before the events that are kept.
pub fn reputation_base(agent: &AgentName) -> String {
    format!("{REPUTATION_BASES}{agent}")
}

/// All events that are kept of an agent's reputation.
pub fn reputation_events(agent: &AgentName) -> String {
    format!("reputation/event/{agent}/")
}

/// One of them; zero-padded, so that keys sort as numbers do.
pub fn reputation_event(agent: &AgentName, seq: u64) -> String {
    format!("{}{seq:016}", reputation_events(agent))
}

/// All reports about an agent that were counted.
pub fn reputation_reports(agent: &AgentName) -> String {
    format!("{REPUTATION_REPORTS}{agent}/")
}

/// A report that was counted, by its reporter and the hop.
pub fn reputation_report(agent: &AgentName, reporter: &str, hop: &str) -> String {
    let digest = Digest::of_parts(&[reporter.as_bytes(), b"\0", hop.as_bytes()]);
    format!("{}{digest}", reputation_reports(agent))
}

/// What all reports of one hop came to.
pub fn reputation_hop(agent: &AgentName, hop: &str) -> String {
    format!("{REPUTATION_HOPS}{agent}/{hop}")
}

/// What one reporter reported lately.
pub fn reputation_reporter(sub: &str) -> String {
    format!("{REPUTATION_REPORTERS}{}", Digest::sha256(sub.as_bytes()))
}
