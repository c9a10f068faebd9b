//! The control plane in one process, on loopback, with real clients over its TLS.

// Clippy knows only functions marked as tests; here every function is one, or serves one.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod support;

mod admin;
mod attacks;
mod audit;
mod bounds;
mod clocks;
mod drift;
mod durability;
mod endings;
mod forged;
mod identity;
mod kills;
mod lines;
mod matrix;
mod memory;
mod orders;
mod policies;
mod prod;
mod reputation;
mod revoked;
mod stream;
mod tls;
mod unreachable;
mod wild;
