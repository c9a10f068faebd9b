//! What signatures of this mesh are checked against, for whoever checks them outside of it.

use std::sync::Arc;

use aip_api::TrustDomain;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admin::Api;

/// A line of a PEM block (RFC 7468 section 2).
const PEM_LINE: usize = 64;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(trust))
}

/// The roots and the keys that they certify. Nothing in it is secret.
#[derive(Serialize, ToSchema)]
struct Trust {
    /// Whose they are.
    #[schema(value_type = String)]
    trust_domain: TrustDomain,
    /// Certificates, PEM. SVIDs and keys chain to one of them.
    roots: Vec<String>,
    /// The control plane's keys, one for each purpose.
    keys: Vec<Key>,
}

/// A key of the control plane.
#[derive(Serialize, ToSchema)]
struct Key {
    /// As in the header of what it signs.
    kid: String,
    /// What it may sign: `config`, `kill`, `attestation`, `audit` or `admin`.
    purpose: &'static str,
    /// Its certificate, PEM: an Ed25519 key under a root, for `spiffe://<trust-domain>/key/<purpose>`.
    certificate: String,
}

/// The roots and keys.
#[utoipa::path(get, path = "/v1/trust", tag = "mesh", responses((status = 200, body = Trust)))]
async fn trust(State(api): State<Arc<Api>>) -> Json<Trust> {
    let (bundle, keys) = api.ca.resources();
    Json(Trust {
        trust_domain: bundle.trust_domain,
        roots: bundle.roots.iter().map(|root| pem(root)).collect(),
        keys: keys
            .into_iter()
            .map(|key| Key {
                purpose: key.purpose.as_str(),
                certificate: pem(&key.certificate),
                kid: key.kid,
            })
            .collect(),
    })
}

/// A certificate that is base64 already.
fn pem(base64: &str) -> String {
    let lines = base64.as_bytes().chunks(PEM_LINE).map(String::from_utf8_lossy);
    let body: String = lines.map(|line| format!("{line}\n")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
}
