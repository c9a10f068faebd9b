//! Making a mesh: its keys, its first documents, and its first credential.

use std::net::IpAddr;
use std::sync::Arc;

use aip_api::resource::{Attach, MeshConfig, MeshMode, Policy, PolicyName, Traffic};
use aip_runtime::files::DirLock;
use aip_runtime::sealing::SealingKey;

use super::{ADMIN_TOKEN_FILE, Mesh, StartError, write};
use crate::admin::auth;
use crate::admin::roles::Role;
use crate::ca::material::Material;
use crate::ca::{Ca, CaError};
use crate::refusal::Refusal;
use crate::registry::records::{AdminTokenRecord, MeshRecord, PolicyVersion};
use crate::registry::{Actor, Draft, Registry, keys, policies};
use crate::settings::{Settings, default_trust_domain};
use crate::store::Expect;

/// Whose the first token is.
const FIRST_SUB: &str = "admin";

/// What a new mesh's baseline policy is.
///
/// # Errors
/// Never: the constants are good, which a test holds.
pub fn baseline() -> Result<Policy, Refusal> {
    let name = PolicyName::try_from(policies::BASELINE.to_owned()).map_err(|e| Refusal::invalid(vec![e]))?;
    let rego = policies::BASELINE_REGO.to_owned();
    Ok(Policy {
        name,
        rego,
        data: serde_json::Value::Null,
        tests: None,
        attach: Attach::Mesh,
    })
}

/// The first credential: as long as trying things out takes in a `dev` mesh, and issuing the real ones in a `prod` mesh.
pub(super) fn first_admin(mode: MeshMode, now: u64) -> AdminTokenRecord {
    let ttl = match mode {
        MeshMode::Dev => auth::FIRST_TTL_DEV,
        MeshMode::Prod => auth::FIRST_TTL_PROD,
    };
    AdminTokenRecord {
        jti: uuid::Uuid::now_v7().hyphenated().to_string(),
        sub: FIRST_SUB.into(),
        role: Role::Admin,
        issued_at: now,
        expires_at: now + ttl,
        issued_by: Actor::control_plane().0,
        claim: None,
        key: None,
        revoked_at: None,
    }
}

fn documents(draft: Draft, record: &MeshRecord, ca: &Ca) -> Result<Draft, Refusal> {
    let baseline = baseline()?;
    let version = PolicyVersion {
        version: 1,
        policy: Some(baseline.clone()),
        by: Actor::control_plane().0,
        at: record.created_at,
    };
    let (bundle, signing) = ca.resources();
    let config = MeshConfig::new(record.trust_domain.clone(), record.mode);
    let draft = draft
        .resource(&config, Expect::Absent)
        .resource(&Traffic::defaults(), Expect::Absent)
        .resource(&bundle, Expect::Absent)
        .resource(&baseline, Expect::Absent)
        .put(keys::policy_version(policies::BASELINE, 1), &version, Expect::Absent);
    let with_key = |draft: Draft, key| draft.resource(key, Expect::Absent);
    Ok(signing.iter().fold(draft, with_key))
}

/// Makes the mesh.
pub(super) async fn create(
    settings: &Settings,
    registry: Registry,
    sealing: SealingKey,
    addresses: Vec<IpAddr>,
    lock: DirLock,
) -> Result<Mesh, StartError> {
    let trust_domain = match &settings.trust_domain {
        Some(trust_domain) => trust_domain.clone(),
        None => default_trust_domain().map_err(|e| CaError::Damaged(e.to_string()))?,
    };
    let (mode, now) = (registry.mode, registry.clock.now());
    let material = Material::generate(&trust_domain)?;
    let plain = material.to_bytes()?;
    let ca = Ca::new(trust_domain.clone(), sealing, material, addresses)?;
    let sealed = hex::encode(ca.seal(keys::CA, &plain)?);
    let record = MeshRecord {
        trust_domain,
        mode,
        created_at: now,
    };
    let admin = first_admin(mode, now);
    // The file first: a mesh whose only credential was never written would have to be thrown away.
    let token = auth::token(&ca, &admin)?;
    write(&settings.data.join(ADMIN_TOKEN_FILE), token.as_bytes())?;
    let draft = registry
        .change(&Actor::control_plane(), "mesh.create", record.trust_domain.as_str())
        .put(keys::MESH, &record, Expect::Absent)
        .put(keys::CA, &sealed, Expect::Absent)
        .put(keys::admin_token(&admin.jti), &admin, Expect::Absent);
    documents(draft, &record, &ca)?.commit().await?;
    tracing::info!(trust_domain = %record.trust_domain, ?mode, root = %ca.root_digest(), "mesh created");
    Ok(Mesh {
        registry,
        ca: Arc::new(ca),
        record,
        lock,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_is_a_valid_document() {
        use aip_api::resource::Resource as _;
        assert_eq!(baseline().unwrap().validate(), []);
    }
}
