//! Orders to stop. A kill set that is validly signed and higher than the one that is held is enforced at once, kept on
//! disk, and then acknowledged.
//!
//! In the order of a set: [`client`] (the `Kill` stream: hello, sets, beats; `shown`: as what it is opened), [`hold`] (is it higher?), [`keeper`]
//! (enforce, persist, acknowledge), [`gate`] (what requests and streams are asked against), [`orders`] (whom an order
//! means), [`cuts`] (what is open is cut), [`supervisor`] (the agent's process is ended). [`lease`] and [`beats`] are
//! what is left of an order where the control plane can't be heard; [`disk`] is what is left of it after a crash.
//!
//! Nothing held is not the same as no order: until the first set has come, everything is refused.

pub mod beats;
pub mod client;
mod cuts;
pub mod disk;
pub mod gate;
pub mod hold;
pub mod keeper;
pub mod lease;
pub mod orders;
mod shown;
pub mod supervisor;

pub use gate::Gate;
