//! Which line of SVIDs one that is issued is of.
//!
//! A line stands for one process. Who shows an SVID a second time, and has another key than who was given the next one, is
//! another process than that: one of the two has a copy. Which one it is nobody can tell, so the second begins a line of its
//! own, and for as long as the other may run, nobody who comes later stands in the place of a process of the first.

use aip_api::Digest;
use aip_runtime::x509::PeerIdentity;

use crate::ca::leaf::IssuedSvid;
use crate::refusal::Refusal;
use crate::registry::records::{Renewed, SvidRecord};
use crate::registry::{Draft, Registry, decode, keys};
use crate::store::Expect;

/// Ends of one line that are marked at once. There is one, and one more for each answer that got lost.
const MAX_ENDS: usize = 64;

/// The place of an SVID in its line.
pub(super) struct Place {
    /// The serial of the first of its line.
    pub(super) line: String,
    /// How many of it were issued before.
    pub(super) nth: u64,
    /// Until when a process may run that had this line.
    pub(super) shared_until: Option<u64>,
}

impl Place {
    /// That of one that begins a line.
    pub(super) fn first(issued: &IssuedSvid) -> Self {
        Self {
            line: issued.serial.clone(),
            nth: 0,
            shared_until: None,
        }
    }

    /// That of one which is issued, for this key, to who shows `peer`; what is to be noted of that one is added to the draft.
    ///
    /// # Errors
    /// The store fails.
    pub(super) async fn after(
        registry: &Registry,
        draft: Draft,
        peer: &PeerIdentity,
        issued: &IssuedSvid,
        jkt: Digest,
    ) -> Result<(Self, Draft), Refusal> {
        let (agent, serial) = (&peer.id.agent, &peer.serial);
        let key = keys::svid(agent, serial);
        let Some(held) = registry.record::<SvidRecord>(key.clone()).await? else {
            // Issued after the copy was made from which the store was restored.
            let place = Self {
                line: serial.clone(),
                nth: 1,
                shared_until: None,
            };
            return Ok((place, draft));
        };
        let (mut svid, revision) = (held.value, held.revision);
        let line = svid.line.clone().unwrap_or_else(|| serial.clone());
        let times = match &svid.renewed {
            None => 1,
            Some(renewed) if renewed.jkt == jkt => renewed.times.saturating_add(1),
            Some(_) => {
                tracing::warn!(
                    %agent, serial, reason = "svid_renewed_twice",
                    "an SVID was renewed by two keys: a process may have a copy of it, or lost what it was given"
                );
                let draft = draft.noting(format!(
                    "{serial} was renewed by another key before: a line of its own begins"
                ));
                return Ok((
                    Self::first(issued),
                    shared(registry, draft, peer, &line, issued.not_after).await?,
                ));
            }
        };
        let place = Self {
            line,
            nth: svid.nth.saturating_add(times),
            shared_until: svid.shared_until,
        };
        svid.renewed = Some(Renewed { jkt, times });
        Ok((place, draft.put(key, &svid, Expect::At(revision))))
    }
}

/// Notes at the ends of a line that until then another process may run which had it.
async fn shared(
    registry: &Registry,
    mut draft: Draft,
    peer: &PeerIdentity,
    line: &str,
    until: u64,
) -> Result<Draft, Refusal> {
    let snapshot = registry.store.snapshot(&keys::svid(&peer.id.agent, "")).await?;
    let mut marked = 0;
    for entry in &snapshot.entries {
        let held = decode::<SvidRecord>(entry)?;
        let mut svid = held.value;
        let is_end = svid.renewed.is_none() && svid.line.as_deref() == Some(line);
        if is_end && marked < MAX_ENDS {
            svid.shared_until = Some(svid.shared_until.map_or(until, |known| known.max(until)));
            draft = draft.put(entry.key.clone(), &svid, Expect::At(held.revision));
            marked += 1;
        }
    }
    Ok(draft)
}
