//! The Config stream: what sidecars hold, pushed as it changes.
//!
//! In the order of a push: a commit in the store wakes the [`world`] (all resources in memory, each signed once), which
//! tells every [`session`] what changed; the session's [`view`] works out what this sidecar is to be sent, one push at
//! a time; its answer is recorded in [`sessions`], where status and acknowledgements are read. [`leases`] keeps the
//! endpoints that streams hold. What may be as large as a Hello, and what may not, is looked at in `later` and `entries`, before it is read.

mod entries;
pub(crate) mod later;
pub mod leases;
mod service;
mod session;
pub mod sessions;
mod view;
#[cfg(test)]
mod view_tests;
pub mod world;

pub(crate) use service::ASKED;
pub use service::{ConfigService, Limits};
pub(crate) use session::{admitted, held, names};
