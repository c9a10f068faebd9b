//! Orders to stop: the signed kill set, pushed on a stream of its own, and who has taken it.
//!
//! In the order of an order: `crate::registry::kills` (one transaction: the next set and its audit entry), [`publish`]
//! (signs it, wakes the streams), [`service`] and [`session`] (one stream of each sidecar), [`board`] (who has enforced
//! it, and by when who has not has certainly stopped: [`bound`]). [`merge`] is what happens when a sidecar shows a set
//! that this store never issued: it was restored from a copy.

pub mod board;
pub mod bound;
pub mod merge;
pub mod publish;
pub mod service;
mod session;
mod shown;

pub use board::Board;
pub use publish::Publisher;
pub use service::KillService;
pub use shown::{Away, Enforced, Missing, Progress};
