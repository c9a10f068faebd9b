//! Issuing: measurement, signature, and the transaction that makes it count.

use aip_api::Digest;
use aip_api::evidence::Evidence;
use aip_api::resource::{Agent, Kind, Measurement, MeshMode, Resource as _};
use aip_runtime::x509::CsrKey;

use super::credential::Credential;
use super::line::Place;
use crate::ca::Ca;
use crate::ca::leaf::IssuedSvid;
use crate::refusal::{Reason, Refusal};
use crate::registry::measurements::MAX_APPROVED;
use crate::registry::records::SvidRecord;
use crate::registry::{Actor, Draft, Registry, Versioned, keys};
use crate::store::{Expect, Op};

/// How the measurement was found.
enum Approval {
    /// Approved, by this resource at this revision.
    Given { name: String, revision: u64 },
    /// Approved now, because the mesh is a `dev` one; the oldest makes room.
    Now {
        measurement: Box<Measurement>,
        forget: Option<String>,
    },
}

/// Issues an SVID if the measurement is approved; else records that it waits, and refuses.
pub(super) async fn issue(
    registry: &Registry,
    ca: &Ca,
    credential: &Credential,
    key: &CsrKey,
    evidence: &Evidence,
) -> Result<IssuedSvid, Refusal> {
    let agent = registry.resource::<Agent>(evidence.agent.as_str()).await?;
    let agent = agent.ok_or_else(|| {
        Refusal::new(
            Reason::AgentUnknown,
            format!("agent {} is not registered (any more)", evidence.agent),
        )
    })?;
    credential.check_generation(&agent.value)?;
    credential.check_key(key.jkt, registry.clock.now())?;
    let passage = registry.passage(evidence).await?;
    let approval = approval(registry, credential, evidence).await?;
    let ttl = registry.mesh_config().await?.value.svid_ttl_seconds;
    let now = registry.clock.now();
    let actor = Actor::sidecar(&evidence.agent);
    let draft = registry.change(&actor, "svid.issue", evidence.agent.as_str()).routine();
    // The token first: a key that it does not answer costs no signature.
    let draft = credential.spend(draft, key.jkt, now)?;
    let issued = ca.issue(&agent.value, key, evidence, ttl)?;
    let draft = draft.detail(format!("serial {} by {}", issued.serial, credential.word()));
    let (place, draft) = match credential {
        Credential::Svid(peer) => Place::after(registry, draft, peer, &issued, key.jkt).await?,
        Credential::Token { .. } => (Place::first(&issued), draft),
    };
    let record = SvidRecord {
        line: Some(place.line),
        nth: place.nth,
        shared_until: place.shared_until,
        ..record(&issued, &agent, evidence, credential.word(), now)
    };
    let draft = draft
        .put(keys::svid(&evidence.agent, &issued.serial), &record, Expect::Absent)
        // A revocation or a withdrawn approval in this very moment wins.
        .check(
            keys::resource(Kind::Agent, evidence.agent.as_str()),
            Expect::At(agent.revision),
        );
    let draft = passage.ends(draft, now);
    approved_in(draft, evidence, approval).commit().await?;
    Ok(issued)
}

fn record(
    issued: &IssuedSvid,
    agent: &Versioned<Agent>,
    evidence: &Evidence,
    credential: &str,
    now: u64,
) -> SvidRecord {
    SvidRecord {
        agent: evidence.agent.clone(),
        serial: issued.serial.clone(),
        issuer: issued.issuer,
        issued_at: now,
        not_after: issued.not_after,
        generation: agent.value.generation,
        code: evidence.code,
        credential: credential.to_owned(),
        run: evidence.run.clone(),
        line: None,
        nth: 0,
        renewed: None,
        shared_until: None,
    }
}

fn approved_in(draft: Draft, evidence: &Evidence, approval: Approval) -> Draft {
    match approval {
        Approval::Given { name, revision } => {
            draft.check(keys::resource(Kind::Measurement, &name), Expect::At(revision))
        }
        Approval::Now { measurement, forget } => {
            let withdrawn = keys::withdrawn(&evidence.agent, &measurement.fingerprint());
            let forget = forget.map(|key| Op::Delete {
                key,
                expect: Expect::Any,
            });
            draft
                .resource(&*measurement, Expect::Absent)
                .check(withdrawn, Expect::Absent)
                .ops(forget)
        }
    }
}

async fn approval(registry: &Registry, credential: &Credential, evidence: &Evidence) -> Result<Approval, Refusal> {
    let approved = registry.measurements_of(&evidence.agent).await?;
    if let Some((_, held)) = approved.iter().find(|(_, held)| held.value.matches(evidence)) {
        return Ok(Approval::Given {
            name: held.value.name(),
            revision: held.revision,
        });
    }
    let measurement = Measurement::of(evidence);
    let mistakes = measurement.validate();
    if !mistakes.is_empty() {
        return Err(Refusal {
            reason: Reason::EvidenceMalformed,
            ..Refusal::invalid(mistakes)
        });
    }
    let print: Digest = measurement.fingerprint();
    if registry.was_withdrawn(evidence).await? {
        registry.record_pending(evidence).await?;
        return Err(Reason::MeasurementRevoked.into());
    }
    if registry.mode == MeshMode::Prod {
        return Err(registry.record_pending(evidence).await?);
    }
    if !may_run_anew(registry, credential, evidence).await? {
        return Err(registry.record_pending(evidence).await?);
    }
    let approved_at = registry.clock.now();
    let measurement = Measurement {
        approved_by: "dev".into(),
        approved_at,
        ..measurement
    };
    let oldest = approved
        .iter()
        .min_by_key(|(_, held)| held.value.approved_at)
        .map(|(key, _)| key.clone());
    let forget = oldest.filter(|_| approved.len() >= MAX_APPROVED);
    tracing::info!(agent = %evidence.agent, measurement = %print, "approved without a person: the mesh is a dev one");
    Ok(Approval::Now {
        measurement: Box::new(measurement),
        forget,
    })
}

/// Whether somebody outside the agent has started it anew, with what it runs now: a person, who made a join token for it,
/// or its supervisor, which names each run. An SVID alone shows that the same agent has come back; if that were enough,
/// whoever can edit its files and end its sidecar would have any content approved.
async fn may_run_anew(registry: &Registry, credential: &Credential, evidence: &Evidence) -> Result<bool, Refusal> {
    let Credential::Svid(peer) = credential else {
        return Ok(true);
    };
    let supervised = evidence.executable.is_some() && evidence.run.is_some();
    let held = registry
        .record::<SvidRecord>(keys::svid(&evidence.agent, &peer.serial))
        .await?;
    let before = held.and_then(|held| held.value.run);
    Ok(supervised && before.is_some() && before != evidence.run)
}

#[cfg(test)]
mod tests;
