//! Process plumbing that all of AIP's binaries share. It knows how to be a process of the mesh, and nothing about
//! what the mesh decides.
//!
//! | for | modules |
//! |---|---|
//! | being a process | [`settings`], [`telemetry`], [`shutdown`], [`drain`], [`ready`], [`admin`], [`backoff`], [`files`] |
//! | keys and statements | [`signing`], [`jws`], [`signed`], [`sealing`] |
//! | identity | [`x509`], [`trust`], [`svid`] |
//! | the wire | [`tls`], [`grpc`] |
//! | policy admission in a child that may die | [`admission`] |
//!
//! This is the only crate that names rustls: everything else sees TLS as streams with a verified peer.
//!
//! Not here: the request pipeline (`aip-sidecar`), the CA and the store (`aip-control-plane`), Rego (`aip-policy`).

pub mod admin;
pub mod admission;
pub mod backoff;
pub mod drain;
pub mod files;
pub mod grpc;
pub mod jws;
pub mod ready;
pub mod sealing;
pub mod settings;
pub mod shutdown;
pub mod signed;
pub mod signing;
pub mod svid;
pub mod telemetry;
pub mod tls;
pub mod trust;
pub mod x509;

/// Seconds since the Unix epoch; 0 on a clock set before it.
pub fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
