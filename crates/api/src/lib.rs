//! The contract of the AIP mesh: the names, resources, statements and wire messages that every part agrees on.
//!
//! Nothing here does I/O or knows a runtime. Bytes from outside become these types at the edge, and nowhere else:
//! each type is built only by a checked constructor.
//!
//! In the order in which a sidecar meets them:
//!
//! | module | what |
//! |---|---|
//! | [`name`] | trust domain, agent name, SPIFFE ID |
//! | [`token`] | the join token that bootstraps a sidecar |
//! | [`digest`], [`evidence`] | what the sidecar measured, and the statement it makes of it |
//! | [`generation`] | what a report of drift does to an agent's generation |
//! | [`attestation`] | the signed result that an SVID carries |
//! | [`resource`] | the kinds of configuration, and the signed envelope they travel in |
//! | [`kill`] | orders to stop, and the heartbeat |
//! | [`id`] | hop and decision ids |
//! | [`json`] | JSON, quickly, for what is written with every request |
//! | [`problem`] | RFC 9457 problem documents and the stable reasons in them |
//! | [`wire`] | the protobuf messages of `aip.mesh.v1` (generated, checked in) |
//!
//! Not here: cryptography beyond SHA-256 and key digests, transport (see `aip-runtime`), Rego (see `aip-policy`).

pub mod attestation;
pub mod digest;
pub mod evidence;
pub mod generation;
pub mod id;
pub mod json;
pub mod kill;
pub mod name;
pub mod problem;
pub mod resource;
pub mod token;

/// The protobuf messages of `aip.mesh.v1`, generated from `crates/api/proto` and checked in.
#[allow(missing_docs, clippy::all, unreachable_pub)]
#[rustfmt::skip]
pub mod wire {
    include!("gen/aip.mesh.v1.rs");
}

pub use digest::Digest;
pub use name::{AgentName, SpiffeId, TrustDomain};
