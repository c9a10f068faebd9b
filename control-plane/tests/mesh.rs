//! The control plane in one process, on loopback, with real clients over its TLS.

// Clippy knows only functions marked as tests; here every function is one, or serves one.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

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
