//! Phase 3, admit: no order stops it, and both ends are what the mesh requires, before policy is asked. Never only
//! observed.

use aip_api::AgentName;
use aip_api::attestation::AttestationResult;
use aip_api::resource::Require;
use aip_api::resource::reputation::Score;

use super::classify::Classified;
use super::refusal::{Refusal, Refused};
use super::told::End;
use crate::proxy::{Proxy, egress};
use crate::snapshot::Snapshot;

/// Checks both ends, as far as they have shown themselves: a callee that we are not connected to is checked when we
/// are, before anything is sent to it.
pub(crate) fn admit(proxy: &Proxy, classified: &Classified) -> Result<(), Refused> {
    let (snapshot, end, told) = (&classified.pair.snapshot, &classified.end, &classified.told);
    proxy
        .settings
        .kill
        .admit(snapshot, classified.own.result(), end, told)?;
    admitted(&classified.pair.snapshot, classified.own.result(), &classified.end)
}

/// The same for a request that is already open, in another version of the world.
pub(crate) fn admitted(snapshot: &Snapshot, own: &AttestationResult, end: &End) -> Result<(), Refused> {
    let mesh = &snapshot.mesh;
    if let End::Outside(host, port) = end
        && egress::listed(mesh, host, *port).is_none()
    {
        return Err(Refusal::EgressNotListed.because(format!("{host}:{port}")));
    }
    reputable(snapshot, &snapshot.id.agent)?;
    if let Some(agent) = end.agent() {
        reputable(snapshot, agent)?;
    }
    let require = &mesh.require;
    if *require == Require::default() {
        return Ok(());
    }
    check(own, require)?;
    match end {
        End::Caller(live) | End::Callee(_, Some(live)) => check(&live.peer.result, require),
        End::Callee(_, None) | End::Outside(..) => Ok(()),
    }
}

/// Whether an agent's score reaches the mesh's floor. Where none is held there is no telling: refused.
fn reputable(snapshot: &Snapshot, agent: &AgentName) -> Result<(), Refused> {
    let floor = snapshot.mesh.reputation.floor;
    if floor == Score::default() {
        return Ok(());
    }
    let Some(held) = snapshot.reputation(agent) else {
        return Err(Refusal::ReputationUnknown.because(agent));
    };
    if held.score < floor {
        let (score, level) = (held.score, held.level.as_str());
        return Err(Refusal::ReputationTooLow.because(format!("{agent} has {score} ({level}), the floor is {floor}")));
    }
    Ok(())
}

/// Whether an attestation is what the mesh requires.
pub(crate) fn check(result: &AttestationResult, require: &Require) -> Result<(), Refused> {
    if result.assurance < require.assurance {
        let (has, wants) = (result.assurance.as_str(), require.assurance.as_str());
        return Err(Refusal::AssuranceTooLow.because(format!("{} is {has}, required is {wants}", result.sub)));
    }
    if result.enforcement < require.enforcement {
        let (has, wants) = (result.enforcement.as_str(), require.enforcement.as_str());
        return Err(Refusal::EnforcementTooLow.because(format!("{} is {has}, required is {wants}", result.sub)));
    }
    Ok(())
}
