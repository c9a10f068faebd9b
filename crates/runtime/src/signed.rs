//! Resources signed by the config key: how the control plane makes them, and how a sidecar takes them, from the
//! stream and from its cache alike.

use aip_api::resource::{KeyPurpose, Kind, MAX_NAME_BYTES, MAX_PAYLOAD_BYTES, Rejected, ResourceId, signing_bytes};
use aip_api::wire;

use crate::signing::Signer;
use crate::trust::TrustState;

/// A signed resource; `payload` is empty when `deleted`.
pub fn sign(
    signer: &Signer,
    kind: Kind,
    name: &str,
    revision: u64,
    deleted: bool,
    payload: impl Into<Vec<u8>>,
) -> wire::Resource {
    let payload: Vec<u8> = payload.into();
    let signature = signer
        .sign(&signing_bytes(kind, name, revision, deleted, &payload))
        .to_vec();
    wire::Resource {
        kind: kind.to_wire() as i32,
        name: name.to_owned(),
        revision,
        deleted,
        payload: payload.into(),
        kid: signer.kid().to_owned(),
        signature,
    }
}

/// Checks size and signature. What the payload says is read afterwards, by [`aip_api::resource::read`].
///
/// # Errors
/// An unknown kind, too large, or not signed by a known config key.
pub fn verify(state: &TrustState, resource: &wire::Resource) -> Result<Kind, Rejected> {
    let kind = Kind::from_wire(resource.kind);
    let clipped: String = resource.name.chars().take(MAX_NAME_BYTES).collect();
    // A kind that we don't know still needs an id to be refused under.
    let id = ResourceId::new(kind.unwrap_or(Kind::MeshConfig), clipped);
    let refuse = |reason, detail: String| {
        Err(Rejected {
            id: id.clone(),
            revision: resource.revision,
            reason,
            detail,
        })
    };
    let Some(kind) = kind else {
        let detail = format!(
            "kind {} is not known to this version; update the sidecar",
            resource.kind
        );
        return refuse("unknown_kind", detail);
    };
    if resource.payload.len() > MAX_PAYLOAD_BYTES || resource.name.len() > MAX_NAME_BYTES {
        return refuse(
            "oversized",
            format!("{} bytes; at most {MAX_PAYLOAD_BYTES}", resource.payload.len()),
        );
    }
    let Some(key) = state.key(KeyPurpose::Config, &resource.kid) else {
        return refuse(
            "unknown_key",
            format!("{:?} is not a config key of this mesh", clip(&resource.kid)),
        );
    };
    let message = signing_bytes(
        kind,
        &resource.name,
        resource.revision,
        resource.deleted,
        &resource.payload,
    );
    if !key.verify(&message, &resource.signature) {
        return refuse("bad_signature", "the config key did not sign this".into());
    }
    if resource.deleted && !resource.payload.is_empty() {
        return refuse("malformed", "a tombstone carries no payload".into());
    }
    Ok(kind)
}

fn clip(s: &str) -> String {
    s.chars().take(64).collect()
}
