//! Orders to stop: the signed kill set, pushed on a stream of its own, and who has taken it.
//!
//! In the order of an order: `crate::registry::kills` (one transaction: the next set and its audit entry), [`publish`]
//! (signs it, wakes the streams), [`service`] and [`session`] (one stream of each sidecar), [`board`] (who has enforced
//! it, and by when who has not has certainly stopped: [`bound`], [`grants`]; `line` says which process an SVID stands for). Whose SVID is
//! revoked is told of orders all the same, on a connection that is for nothing else (`only`). [`webhook`] tells a receiver outside. What happens when a sidecar shows a set that this store
//! never issued, since it was restored from a copy, is [`aip_api::kill::sets::above`].

pub mod board;
pub mod bound;
pub mod grants;
mod line;
mod only;
pub mod publish;
pub mod service;
mod session;
mod shown;
pub mod webhook;

pub use board::Board;
pub(crate) use only::OrdersOnly;
pub use publish::Publisher;
pub(crate) use service::Causes;
pub use service::KillService;
pub use shown::{Away, Enforced, Missing, Progress, Standing};
