//! Which process an SVID stands for: the line of SVIDs that it is of, each issued to whoever showed the one before.

use std::collections::BTreeMap;

use aip_api::AgentName;
use aip_runtime::trust::TrustState;
use aip_runtime::x509::PeerIdentity;

use crate::refusal::Refusal;
use crate::registry::records::SvidRecord;
use crate::registry::{Registry, decode, keys};

/// When the last SVID of each line ends.
#[derive(Debug)]
pub(super) struct Svids(BTreeMap<AgentName, BTreeMap<String, u64>>);

impl Svids {
    pub(super) async fn read(registry: &Registry) -> Result<Self, Refusal> {
        let snapshot = registry.store.snapshot(keys::SVIDS).await?;
        let mut last = BTreeMap::<_, BTreeMap<_, _>>::new();
        for entry in &snapshot.entries {
            let svid: SvidRecord = decode(entry)?.value;
            let lines = last.entry(svid.agent).or_default();
            let held = lines.entry(svid.line.unwrap_or(svid.serial)).or_insert(0);
            *held = svid.not_after.max(*held);
        }
        Ok(Self(last))
    }

    /// When the last SVID of each agent ends.
    pub(super) fn agents(&self) -> impl Iterator<Item = (&AgentName, u64)> {
        let last = |lines: &BTreeMap<String, u64>| lines.values().copied().max().unwrap_or_default();
        self.0.iter().map(move |(agent, lines)| (agent, last(lines)))
    }

    /// When the last one of this line ends.
    pub(super) fn end_of(&self, agent: &AgentName, line: &str) -> Option<u64> {
        self.0.get(agent)?.get(line).copied()
    }
}

/// The line for which whoever shows this SVID speaks. A line goes on where one SVID of it alone was revoked, as one that was
/// stolen is: who shows that one is no longer who has the good one, and speaks for itself.
///
/// # Errors
/// The store fails.
pub(super) async fn spoken_for(
    registry: &Registry,
    trust: &TrustState,
    peer: &PeerIdentity,
) -> Result<String, Refusal> {
    let line = registry.line_of(&peer.id.agent, &peer.serial).await?;
    if trust.revoked(peer).is_none() {
        return Ok(line);
    }
    let (agent, now) = (&peer.id.agent, registry.clock.now());
    let snapshot = registry.store.snapshot(&keys::svid(agent, "")).await?;
    for entry in &snapshot.entries {
        let svid: SvidRecord = decode(entry)?.value;
        let is_good = svid.not_after > now && !trust.has_revoked(agent, (&svid.issuer, &svid.serial), svid.generation);
        if is_good && svid.line.as_ref().unwrap_or(&svid.serial) == &line {
            return Ok(format!("revoked:{}", peer.serial));
        }
    }
    Ok(line)
}
