//! What the sidecar answers for its agent: the manifest and the attestation. Signed with the SVID's key: a signature
//! proves origin; the manifest's fields stay the agent's claims and never feed a decision.

use aip_api::attestation::AttestationResult;
use aip_api::resource::Manifest;
use aip_runtime::jws;
use aip_runtime::svid::{Svid, SvidSource};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde::Serialize;

use crate::snapshot::Snapshot;

/// Path of the manifest.
pub const MANIFEST: &str = "/.well-known/agent-manifest";
/// Path of the attestation.
pub const ATTESTATION: &str = "/.well-known/agent-attestation";
/// The `typ` of a signed manifest.
const MANIFEST_TYP: &str = "aip-manifest+jwt";
/// The header that carries the signed form of the manifest's body.
const SIGNATURE: &str = "aip-manifest-signature";

/// Answers well-known requests for this sidecar's agent.
#[derive(Debug, Clone)]
pub struct WellKnown {
    svid: SvidSource,
}

/// The manifest as it is served: the flat form, nulls included, with the verified statement beside the claims.
#[derive(Serialize)]
struct ServedManifest<'a> {
    agent_id: &'a str,
    #[serde(flatten)]
    claims: &'a Manifest,
    attestation: Attestation<'a>,
}

/// The attestation as it is served: the statement, what it says, and the certificates to check it by.
#[derive(Serialize)]
struct Attestation<'a> {
    agent_id: &'a str,
    spiffe_id: String,
    /// The statement: verify this, not the fields beside it.
    result: &'a str,
    claims: &'a AttestationResult,
    /// Leaf and intermediate, DER, base64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    chain: Vec<String>,
}

impl WellKnown {
    /// Answers with the SVID of `svid`.
    pub fn new(svid: SvidSource) -> Self {
        Self { svid }
    }

    /// Whether the sidecar answers this path itself.
    pub fn owns(path: &str) -> bool {
        matches!(path, MANIFEST | ATTESTATION)
    }

    /// The answer to a GET of `path`, or `None` where the path is the agent's.
    pub async fn answer(&self, path: &str, snapshot: &Snapshot) -> Option<Response<Bytes>> {
        if !Self::owns(path) {
            return None;
        }
        let Some(svid) = self.svid.current() else {
            return Some(plain(
                StatusCode::SERVICE_UNAVAILABLE,
                Bytes::from_static(b"no SVID yet\n"),
            ));
        };
        Some(if path == MANIFEST {
            manifest(&svid, snapshot)
        } else {
            attestation(&svid)
        })
    }
}

fn manifest(svid: &Svid, snapshot: &Snapshot) -> Response<Bytes> {
    let served = ServedManifest {
        agent_id: svid.id().agent.as_str(),
        claims: &snapshot.me.manifest,
        attestation: statement(svid, false),
    };
    let mut response = json(&served);
    // The signed form holds the same members; a reader needs no canonical form to check it.
    let signed = jws::sign_es256(svid.pkcs8(), MANIFEST_TYP, &served).ok();
    if let Some(value) = signed.and_then(|token| http::HeaderValue::from_str(&token).ok()) {
        response.headers_mut().insert(SIGNATURE, value);
    }
    response
}

fn attestation(svid: &Svid) -> Response<Bytes> {
    json(&statement(svid, true))
}

fn statement(svid: &Svid, with_chain: bool) -> Attestation<'_> {
    let chain = if with_chain {
        svid.chain.iter().map(|der| STANDARD.encode(der)).collect()
    } else {
        Vec::new()
    };
    Attestation {
        agent_id: svid.id().agent.as_str(),
        spiffe_id: svid.id().to_string(),
        result: &svid.identity.result_jws,
        claims: svid.result(),
        chain,
    }
}

fn json<T: Serialize>(value: &T) -> Response<Bytes> {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let mut response = plain(StatusCode::OK, body.into());
            let json = http::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            // Generation and expiry move: a cache must ask again.
            response
                .headers_mut()
                .insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache"));
            response
        }
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
    }
}

fn plain(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
