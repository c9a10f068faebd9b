//! What strangers and peers can do to TLS: bytes that are our own, record by record, since no TLS library would send them;
//! and sessions that somebody would resume.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod after;
mod resumption;

use std::net::SocketAddr;

use aip_tests::agent::Agent;
use aip_tests::pki::{Leaf, LeafSpec};
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::scripted::Scripted;
use aip_tests::wait;
use aip_tests::wire::{self, Outcome};
use tempfile::TempDir;

/// A port that is attacked, and who is good there.
struct Port {
    address: SocketAddr,
    good: Option<Leaf>,
}

impl Port {
    async fn serves(&self, after: &str) {
        let outcome = wire::attempt(self.address, self.good.as_ref()).await;
        assert_eq!(outcome, Outcome::Served, "after {after}");
    }
}
