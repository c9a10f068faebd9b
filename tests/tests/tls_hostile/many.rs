//! Handshakes from a thousand addresses, without end: whoever is good gets in between them, and what is open goes on.
//! The addresses are those of a network namespace that this test makes, and runs in.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use aip_tests::hello::Hello;
use aip_tests::pair::Pair;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;

/// Says that this process is in the namespace.
const INSIDE: &str = "AIP_TEST_IN_NAMESPACE";
/// Makes all of 10.77.0.0/16 this machine's, and becomes the rest.
const WITH_ADDRESSES: &str = r#"ip link set lo up && ip route add local 10.77.0.0/16 dev lo && exec "$@""#;
const ADDRESSES: u16 = 1_000;
/// What all may have in their handshake (`MAX_HANDSHAKES`).
const STRANGERS: usize = 512;
/// Calls, and handshakes of good peers, while the flood is on.
const GOOD: usize = 50;
/// How often one of them tries.
const TRIES: usize = 5;
/// Bytes by which the process may have grown: 64 KiB for each stranger, and as much again.
const GROWTH: u64 = 64 << 20;

/// The same test in a namespace of its own. One user's namespaces take no root.
async fn in_a_namespace() {
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--net", "sh", "-c", WITH_ADDRESSES, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", std::thread::current().name().unwrap(), "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null());
    let ran = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .expect("unshare (util-linux)");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "in a namespace (it takes ip of iproute2, unshare of util-linux, and user and network namespaces): {said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

fn address(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 77, high + 1, low))
}

/// Opens connections in turn from every address, and keeps as many open as there are addresses.
struct Flood {
    opened: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Flood {
    fn on(port: SocketAddr, first: Vec<u8>) -> Self {
        let (opened, ends) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counts, stops) = (opened.clone(), ends.clone());
        let task = tokio::spawn(async move {
            let mut open: Vec<Option<TcpStream>> = (0..ADDRESSES).map(|_| None).collect();
            for n in (0..ADDRESSES).cycle() {
                if stops.load(Ordering::Relaxed) {
                    return;
                }
                let mut tcp = wire::connect_from(address(n), port).await.unwrap();
                // One that gave way may be closed already.
                let _ = tcp.write_all(&first).await;
                open[usize::from(n)] = Some(tcp);
                counts.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { opened, ends, task }
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    async fn end(self) -> usize {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.opened.load(Ordering::Relaxed)
    }
}

async fn displaced(sidecar: &Sidecar) -> f64 {
    sidecar
        .metric("aip_connections_refused_total", &["reason=\"strangers\""])
        .await
}

/// Whoever is slow for a moment may give way as the oldest of all who have not shown who they are, and tries again.
async fn served_within_tries(from: IpAddr, port: SocketAddr, own: &Leaf) -> Result<(), Outcome> {
    let mut last = Outcome::Served;
    for _ in 0..TRIES {
        last = wire::attempt_from(from, port, Some(own)).await;
        if last == Outcome::Served {
            return Ok(());
        }
    }
    Err(last)
}

/// What is served while strangers say `first`, over and over.
async fn serves_others(pair: &Pair, first: Vec<u8>) {
    let good = pair.scripted.with_pki(|pki| pki.leaf(&LeafSpec::good("caller")));
    let (before, gave_way) = (pair.callee.process.resident(), displaced(&pair.callee).await);
    let flood = Flood::on(pair.callee.inbound, first);
    wait::until("strangers give way to strangers", async || {
        (displaced(&pair.callee).await > gave_way).then_some(())
    })
    .await;
    let (begun, enough) = (Instant::now(), flood.opened() + usize::from(ADDRESSES));
    for n in 0.. {
        if n >= GOOD && flood.opened() >= enough {
            break;
        }
        assert!(begun.elapsed() < wait::DEADLINE, "the flood is at its end");
        assert_eq!(pair.get("/work").await.status, 200, "call {n} of who is known");
        let from = address(ADDRESSES + 1);
        let served = served_within_tries(from, pair.callee.inbound, &good).await;
        assert_eq!(served, Ok(()), "handshake {n}");
    }
    let opened = flood.end().await;
    assert!(opened > STRANGERS, "{opened}");
    let grown = pair.callee.process.resident().saturating_sub(before);
    assert!(grown < GROWTH, "{grown}");
    assert_eq!(pair.get("/work").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_hosts_that_begin_handshakes_starve_nobody() {
    if std::env::var_os(INSIDE).is_none() {
        return in_a_namespace().await;
    }
    let pair = Pair::start().await;
    // Nothing; the head of a record; and all of a first flight, which is answered with a signature.
    for first in [Vec::new(), vec![0x16, 3, 1], Hello::good().records()] {
        serves_others(&pair, first).await;
    }
    let strangers = pair
        .agent
        .seen("")
        .iter()
        .filter(|seen| seen.header("x-aip-source").is_empty())
        .count();
    assert_eq!(strangers, 0, "the agent hears of who is known");
}
