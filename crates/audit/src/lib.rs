//! The audit trail of a sidecar: what it decided and how each request ended, in files that show every later change.
//!
//! | module | what |
//! |---|---|
//! | [`record`] | what one line says |
//! | [`log`] | the files that lines are appended to, read from, and dropped by quota |
//! | [`index`] | finding records by time, verdict, tool, hop, trace or decision |
//! | [`merkle`] | tree heads over lines, inclusion and consistency proofs |
//! | [`checkpoint`] | what a sidecar signs: so many records, with this root, at this time |
//! | [`hop`] | what the two ends of a hop say of it, compared |
//! | [`seal`] | facts that only an auditor can read |
//! | [`verify`] | all of it checked from the files alone, and the ends of hops against each other |
//!
//! Standard I/O only: no runtime, no network. Signatures are the caller's, who has the keys.

pub mod checkpoint;
pub mod hop;
pub mod index;
pub mod log;
pub mod merkle;
pub mod record;
pub mod seal;
pub mod verify;

pub use checkpoint::{Checkpoint, Closing};
pub use record::{Record, RecordError};
