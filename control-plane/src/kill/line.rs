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

/// For whom a process speaks by the SVID that it shows.
#[derive(Debug, Clone)]
pub(super) struct Spoken {
    /// The line of SVIDs whose process it is.
    pub(super) line: String,
    /// How many SVIDs of that line were issued before the one that it shows.
    pub(super) nth: u64,
    /// Under another name, it stands in the place of those of its line that are gone.
    pub(super) succeeds: bool,
    /// The store has heard of the SVID.
    pub(super) known: bool,
}

/// For whom the process speaks that shows this SVID. A line goes on where one SVID of it was revoked, as one that was stolen is:
/// who shows that one, after a later one was issued, is no longer who has the line, and speaks for itself. Whoever has the last
/// one goes on to speak for the line; what is said of earlier ones has no part in it.
///
/// A process that is started again has the SVID that the one before it kept, and stands in its place. One that was revoked
/// is not kept, but where the agent drifted, to hear of orders: so nobody else who shows a revoked one is a process started
/// again.
///
/// # Errors
/// The store fails.
pub(super) async fn spoken_for(
    registry: &Registry,
    trust: &TrustState,
    peer: &PeerIdentity,
) -> Result<Spoken, Refusal> {
    let (agent, serial) = (&peer.id.agent, &peer.serial);
    let held = registry.record::<SvidRecord>(keys::svid(agent, serial)).await?;
    let revoked = trust.revoked(peer);
    let Some(svid) = held.map(|held| held.value) else {
        return Ok(Spoken {
            line: serial.clone(),
            nth: 0,
            succeeds: revoked.is_none(),
            known: false,
        });
    };
    let line = svid.line.unwrap_or_else(|| serial.clone());
    let is_last = svid.renewed.is_none();
    let is_shared = svid.shared_until.is_some_and(|until| until > registry.clock.now());
    let succeeds = is_last && !is_shared && may_start_again(registry, agent, &line, revoked).await?;
    Ok(Spoken {
        line: match revoked {
            Some(_) if !is_last => format!("revoked:{serial}"),
            _ => line,
        },
        nth: svid.nth,
        succeeds,
        known: true,
    })
}

/// Whether a process of this line that ended left the SVID to the next.
async fn may_start_again(
    registry: &Registry,
    agent: &AgentName,
    line: &str,
    revoked: Option<&'static str>,
) -> Result<bool, Refusal> {
    match revoked {
        None => Ok(true),
        Some("revoked_generation") => {
            let drifted = registry.drifted_lines().await?;
            Ok(drifted.get(agent).is_some_and(|lines| lines.contains(line)))
        }
        Some(_) => Ok(false),
    }
}
