//! Who this sidecar is: measuring what it stands beside, joining with it, renewing, and what is kept for a restart.

pub mod join;
pub mod keeper;
pub mod measure;
pub mod pending;
pub mod revoked;
pub mod sealed;

pub use join::{JoinError, Joined, Joiner};
pub use measure::{MeasureError, Measurement, measure};
pub use sealed::{SealedIdentity, Vault};
