//! One host that opens connections and does nothing with them takes nothing from the others.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{IpAddr, Ipv4Addr};

use aip_api::token::JoinToken;
use aip_api::wire::DriftReport;
use aip_runtime::grpc::identity_client::IdentityClient;
use aip_runtime::{grpc, tls};
use aip_tests::agent::Agent;
use aip_tests::pki::LeafSpec;
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::scripted::Scripted;
use aip_tests::wait;
use aip_tests::wire::{self, Outcome, connect_from};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const FLOODER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
/// What all may have in their handshake (`MAX_HANDSHAKES`), and more than that.
const STRANGERS: usize = 512;
const FLOOD: usize = 600;

struct Flood {
    scripted: Scripted,
    sidecar: Sidecar,
    _dir: TempDir,
}

impl Flood {
    async fn start() -> Self {
        let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
        let sidecar = scripted.sidecar("callee", Agent::start().address, dir.path()).await;
        Self {
            scripted,
            sidecar,
            _dir: dir,
        }
    }

    /// Opens connections from one address, and says `first` on each.
    async fn open(&self, first: &[u8]) -> Vec<TcpStream> {
        let mut all = Vec::new();
        for _ in 0..FLOOD {
            let mut tcp = connect_from(FLOODER, self.sidecar.inbound).await.unwrap();
            // One that gave way may be closed already.
            let _ = tcp.write_all(first).await;
            all.push(tcp);
        }
        let too_many = (FLOOD - STRANGERS) as f64;
        wait::until_ok("what is too much gives way", async || {
            let labels = ["reason=\"strangers\""];
            let counted = self.sidecar.metric("aip_connections_refused_total", &labels).await;
            if counted >= too_many {
                Ok(())
            } else {
                Err(format!("{counted} of {too_many}"))
            }
        })
        .await;
        all
    }

    async fn failures(&self, reason: &str) -> f64 {
        let label = format!("reason=\"{reason}\"");
        self.sidecar.metric("aip_tls_handshake_failures_total", &[&label]).await
    }

    /// A good peer, of the same source, is served while the flood is there, which is given up for `given_up` at last.
    async fn serves_others(&self, given_up: &str) {
        let good = self.scripted.with_pki(|pki| pki.leaf(&LeafSpec::good("caller")));
        let elsewhere = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 10));
        let outcome = wire::attempt_from(elsewhere, self.sidecar.inbound, Some(&good)).await;
        assert_eq!(outcome, Outcome::Served);
        // The flood lasts for as long as not all of it is given up.
        let given_up = self.failures(given_up).await;
        assert!(given_up < STRANGERS as f64, "it waited until the flood was over");
    }
}

/// The port ends it, and says nothing but good-bye.
async fn is_ended(tcp: &mut TcpStream) {
    let mut said = Vec::new();
    let read = tokio::time::timeout(wait::DEADLINE, tcp.read_to_end(&mut said)).await;
    // A reset is an end, too. An alert is five bytes of head and two of what it is about.
    let _ = read.expect("the port ends it");
    assert!(said.len() <= 7, "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_says_nothing_starves_nobody() {
    let flood = Flood::start().await;
    let mut connections = flood.open(b"").await;
    flood.serves_others("first_byte_timeout").await;
    // And is not waited for.
    wait::until_ok("all of it is given up", async || {
        let given_up = flood.failures("first_byte_timeout").await;
        if given_up >= STRANGERS as f64 - 1.0 {
            Ok(())
        } else {
            Err(format!("{given_up} given up"))
        }
    })
    .await;
    for tcp in &mut connections {
        is_ended(tcp).await;
    }
    // Its places are free again.
    let good = flood.scripted.with_pki(|pki| pki.leaf(&LeafSpec::good("caller")));
    let outcome = wire::attempt_from(FLOODER, flood.sidecar.inbound, Some(&good)).await;
    assert_eq!(outcome, Outcome::Served);
}

/// The head of a TLS record, and no more: such a handshake takes as long as it may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_begins_handshakes_and_stalls_starves_nobody() {
    let flood = Flood::start().await;
    let mut connections = flood.open(&[0x16, 3, 1]).await;
    flood.serves_others("handshake_timeout").await;
    is_ended(&mut connections[0]).await;
}

/// Lines of a kind that a process writes at once, and in some minutes after that.
const LINES: usize = 100 + 4 * 60;

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_is_refused_without_end_fills_no_disk() {
    const REPORTS: usize = 2_000;
    let mesh = Mesh::start().await;
    mesh.admin().agent(serde_json::json!({"name": "one"})).await;
    let token: JoinToken = mesh.admin().token("one").await.parse().unwrap();
    let pinned = tls::pinned_client(token.root).unwrap();
    let channel = grpc::channel(mesh.control_plane.mesh, pinned).await.unwrap();
    let mut stranger = IdentityClient::new(channel);
    for _ in 0..REPORTS {
        let refused = stranger.report_drift(DriftReport::default()).await.unwrap_err();
        assert_eq!(grpc::reason(&refused), Some("credential_missing"));
    }
    let said = mesh.control_plane.process.stderr();
    let lines = said
        .lines()
        .filter(|line| line.contains("a drift report was not taken"));
    let lines = lines.count();
    assert!((100..LINES).contains(&lines), "{lines}");
    let page = aip_tests::http::get(mesh.admin().address, "/metrics")
        .await
        .unwrap()
        .text();
    let left_out = page
        .lines()
        .find_map(|line| line.strip_prefix("aip_log_lines_left_out_total "));
    assert_eq!(left_out.unwrap().parse::<usize>().unwrap() + lines, REPORTS);
}
