//! The control plane in one process, on loopback, with real clients over its TLS.

mod support;

#[path = "mesh/admin.rs"]
mod admin;
#[path = "mesh/durability.rs"]
mod durability;
#[path = "mesh/identity.rs"]
mod identity;
#[path = "mesh/matrix.rs"]
mod matrix;
#[path = "mesh/prod.rs"]
mod prod;
#[path = "mesh/stream.rs"]
mod stream;
