//! The AIP control plane: who is in the mesh, which code may speak for whom, what policy says, and who runs what.
//!
//! The map, in the order in which a mesh comes to life:
//!
//! | module | what |
//! |---|---|
//! | [`settings`], [`bootstrap`], [`server`] | the process: flags, the data directory, what is started and stopped |
//! | [`store`] | a versioned key-value store with transactions and watch; redb, and the model it is compared with |
//! | [`registry`] | the mesh's documents over the store, and every change that there is |
//! | [`reputation`] | how agents behaved so far, and the score that is told |
//! | [`ca`] | root, intermediates, purpose keys; SVIDs with their attestation result |
//! | [`identity`] | gRPC `Identity`: nonce, credential, evidence, measurement, SVID |
//! | [`config`] | gRPC `Config`: what each sidecar holds, pushed and acknowledged |
//! | [`audit`] | what sidecars recorded: checkpoints, segments, both ends of each hop |
//! | [`kill`] | gRPC `Kill`: orders to stop, who enforced them, and who can be counted on when |
//! | [`admin`] | REST under `/v1`: roles, approvals, policies, status, watch |
//! | [`reading`] | what sidecars say, read as the streams read it, without a stream |
//! | [`refusal`] | every refusal with its reason and status |
//! | [`metrics`], [`clock`], `hello`, `quota`, `rate` | what is measured; the time; how a stream begins; places, and rates, that are shared fairly |
//!
//! Not here: the request pipeline (`aip-sidecar`), Rego (`aip-policy`, in a child process), TLS (`aip-runtime`).

pub mod admin;
pub mod audit;
pub mod bootstrap;
pub mod ca;
pub mod clock;
pub mod config;
mod hello;
pub mod identity;
pub mod kill;
pub mod metrics;
mod quota;
mod rate;
pub mod reading;
pub mod refusal;
pub mod registry;
pub mod reputation;
pub mod server;
pub mod settings;
pub mod store;

#[cfg(test)]
mod testing;
