//! What a stranger can say instead of a handshake, to a sidecar's port and to the control plane's: each is ended, counted
//! by its reason, and a good peer is served after it. The bytes are our own, record by
//! record, since no TLS library would send them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod after;
mod certificates;
mod first_words;
mod many;
mod resumption;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use aip_tests::agent::Agent;
use aip_tests::hello::content;
use aip_tests::pki::{Leaf, LeafSpec};
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::scripted::Scripted;
use aip_tests::wire::{self, Outcome};
use aip_tests::{http, wait};
use tempfile::TempDir;

use first_words::{Attack, Due, attacks};

const FAILURES: &str = "aip_tls_handshake_failures_total";

/// A port that is attacked, and what shows how its process is.
struct Port {
    address: SocketAddr,
    page: SocketAddr,
    good: Option<Leaf>,
}

impl Port {
    /// Failed handshakes by their reason.
    async fn failures(&self) -> BTreeMap<String, f64> {
        let page = http::get(self.page, "/metrics").await.unwrap().text();
        let lines = page.lines().filter_map(|line| line.strip_prefix(FAILURES));
        let counts = lines.filter_map(|line| {
            let (labels, count) = line.rsplit_once(' ')?;
            let reason = labels.split('"').nth(1)?;
            Some((reason.to_owned(), count.parse().ok()?))
        });
        counts.collect()
    }

    /// Why the next handshake failed, of which there was one since `before`.
    async fn counted_since(&self, what: &str, before: &BTreeMap<String, f64>) -> String {
        wait::until(&format!("{what} is counted"), async || {
            let now = self.failures().await;
            assert!(
                now.values().sum::<f64>() <= before.values().sum::<f64>() + 1.0,
                "{what}: {before:?}, {now:?}"
            );
            let grown = now
                .into_iter()
                .find(|(reason, count)| before.get(reason).is_none_or(|before| count > before));
            grown.map(|(reason, _)| reason)
        })
        .await
    }

    /// What of it is not as it is due.
    async fn refuses(&self, (what, said, due): Attack) -> Option<String> {
        let before = self.failures().await;
        let answer = wire::exchange(self.address, &said).await;
        let counted = self.counted_since(what, &before).await;
        self.serves(what).await;
        // A fatal alert, or a ServerHello, which is the last that is said in plain text.
        let says = match answer.as_slice() {
            [] => "nothing",
            [content::ALERT, _, _, 0, 2, 2, ..] => "an alert",
            [content::HANDSHAKE, _, _, _, _, 2, ..] => "ServerHello",
            _ => "something else",
        };
        let right = match (due, counted.as_str()) {
            (Due::Malformed, "not_tls" | "tls_protocol") | (Due::Version, "tls_version") => {
                matches!(says, "nothing" | "an alert")
            }
            (Due::Cut, "connection_broken") => says == "nothing",
            (Due::GoesOn, "connection_broken") => says == "ServerHello",
            (Due::Alpn, "alpn") => says != "something else",
            (Due::Ignored, "connection_broken" | "tls_protocol" | "not_tls" | "tls_version") => {
                says != "something else"
            }
            _ => false,
        };
        (!right).then(|| format!("{what}: due is {due:?}; counted as {counted}, answered with {says}"))
    }

    async fn refuses_all(&self, attacks: Vec<Attack>) {
        let mut wrong = Vec::new();
        for attack in attacks {
            wrong.extend(self.refuses(attack).await);
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    async fn serves(&self, after: &str) {
        let outcome = wire::attempt(self.address, self.good.as_ref()).await;
        assert_eq!(outcome, Outcome::Served, "after {after}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_ends_hostile_handshakes_and_counts_them() {
    let (scripted, agent, dir) = (Scripted::start(), Agent::start(), TempDir::new().unwrap());
    let mut sidecar: Sidecar = scripted.sidecar("callee", agent.address, dir.path()).await;
    let port = Port {
        address: sidecar.inbound,
        page: sidecar.admin,
        good: Some(scripted.with_pki(|pki| pki.leaf(&LeafSpec::good("caller")))),
    };
    port.refuses_all(attacks()).await;
    assert!(agent.seen("").is_empty(), "the agent heard of a stranger");
    sidecar.process.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_ends_hostile_handshakes_and_counts_them() {
    let mut mesh = Mesh::start().await;
    let port = Port {
        address: mesh.control_plane.mesh,
        page: mesh.admin().address,
        good: None,
    };
    port.refuses_all(attacks()).await;
    mesh.control_plane.process.assert_alive();
}
