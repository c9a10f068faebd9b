//! The Identity service: how a sidecar becomes an agent. Evidence yields facts, never a name; an SVID needs a
//! credential for the name *and* an approved measurement of the facts.
//!
//! The order of one `Issue`: a place ([`places`]), bounds ([`service`]), credential ([`credential`]), CSR, evidence and nonce
//! ([`evidence`], [`nonces`]), measurement, and one transaction that spends the token and records the SVID ([`issue`]),
//! in the line that it goes on ([`mod@line`]).

mod credential;
pub(crate) mod drift;
pub(crate) mod evidence;
mod issue;
mod line;
pub mod nonces;
mod places;
mod service;

pub use places::Places;
pub use service::IdentityService;
