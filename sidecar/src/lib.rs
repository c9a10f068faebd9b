//! The AIP data plane: one sidecar beside each agent. Nothing reaches the agent, and it reaches nothing, without proof
//! of who is talking and a policy decision on what is being said.
//!
//! A request, in the order of its phases (`request/`):
//!
//! ```text
//! inbound 15006 (mTLS, h2) ──┐                                              ┌─> the agent (plain HTTP)
//!                            ├─ accept ─ classify ─ admit ─ decide ─ limit ─┤
//! outbound 15001 (loopback) ─┘            ─ route ─ call ─ relay ─ record   └─> a peer's 15006, or out (egress)
//! ```
//!
//! A configuration push (`mesh/`):
//!
//! ```text
//! control plane ─ Config stream ─ client ─ world (verify, read, keep) ─ Snapshot ─ swap ─ ACK or NACK
//!                                              └─ cache on disk (signed resources, sealed digest)
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`config`] | flags and file, all mistakes at once |
//! | [`identity`] | measuring, joining, renewing, the sealed key |
//! | [`drift`] | watching what was measured, and suspending |
//! | [`mesh`] | the stream to the control plane, and the snapshot it keeps |
//! | [`snapshot`] | one version of the world; a request sees exactly one |
//! | [`kill`] | orders to stop: taken, enforced, kept |
//! | [`proxy`] | what both listeners share, and the accept loops |
//! | [`request`] | the phases |
//! | [`reading`] | what is read of a request, without a request |
//! | [`audit`] | what is recorded of requests, so that every later change shows |
//! | [`metrics`] | every metric's name, kind and meaning |
//! | [`wellknown`] | what the sidecar answers for its agent |
//! | [`admin`] | what an operator sees |
//! | [`app`] | how it all starts and ends |
//!
//! Not here: the CA, the store, and anything that knows Kubernetes.

pub mod admin;
pub mod app;
pub mod audit;
pub mod config;
pub mod drift;
pub mod identity;
pub mod kill;
pub mod mesh;
pub mod metrics;
pub mod proxy;
pub mod reading;
pub mod request;
pub mod snapshot;
#[cfg(test)]
mod testing;
pub mod wellknown;
