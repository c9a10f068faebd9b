//! The control plane's port: whom it lets in for orders alone, and how many.

use std::net::SocketAddr;
use std::sync::Arc;

use aip_api::resource::Revocation;
use aip_runtime::grpc::incoming;
use aip_runtime::grpc::kill_server::KillServer;
use aip_runtime::tls::{IdentitySlot, MeshTls};
use aip_tests::pki::{Leaf, LeafSpec, Pki, Statement};
use aip_tests::scripted::Scripted;
use aip_tests::wire::{Outcome, attempt_as, client};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const H2: &[u8] = b"h2";
const ORDERS: &[u8] = b"aip-orders";
/// The agents whose first generation is revoked.
const REVOKED: [&str; 2] = ["gone", "gone-too"];

/// A port of a control plane of this mesh, which has revoked [`REVOKED`].
async fn port(pki: &Pki) -> SocketAddr {
    let mut trust = pki.trust();
    for agent in REVOKED {
        trust.revoke(&Revocation::Generation {
            agent: agent.parse().unwrap(),
            below: 2,
            expires: u64::MAX,
        });
    }
    let (trust, slot, own) = (trust.shared(), IdentitySlot::default(), pki.control_plane());
    slot.set(&own.chain, &own.pkcs8).unwrap();
    let tls = MeshTls::new(&slot, &trust).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(KillServer::new(Scripted::start()));
    tokio::spawn(server.serve_with_incoming(incoming(listener, tls, trust)));
    address
}

fn leaf(pki: &Pki, agent: &str) -> Leaf {
    pki.leaf(&LeafSpec::good(agent))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_svid_gets_in_by_offering_orders_and_nothing_beside_it() {
    let (pki, other) = (Pki::new("aip.internal"), Pki::new("aip.internal"));
    let address = port(&pki).await;
    let (good, revoked) = (leaf(&pki, "good"), leaf(&pki, "gone"));
    let faulty = |change: fn(&mut LeafSpec)| {
        let mut spec = LeafSpec::good("gone");
        change(&mut spec);
        pki.leaf(&spec)
    };
    let expired = faulty(|spec| (spec.from, spec.until) = (-7_200, -60));
    let future = faulty(|spec| (spec.from, spec.until) = (3_600, 7_200));
    let foreign = faulty(|spec| spec.trust_domain = "other.internal".into());
    let altered = faulty(|spec| spec.statement = Statement::Altered);
    for (what, leaf, offered, gets_in) in [
        ("a good SVID", Some(&good), &[H2][..], true),
        ("a good SVID that asks for orders alone", Some(&good), &[ORDERS], true),
        ("a revoked SVID", Some(&revoked), &[H2], false),
        ("a revoked SVID for orders", Some(&revoked), &[ORDERS], true),
        ("a revoked SVID for both", Some(&revoked), &[ORDERS, H2], false),
        ("the same, the other way round", Some(&revoked), &[H2, ORDERS], false),
        ("an expired SVID", Some(&expired), &[ORDERS], false),
        ("an SVID of later", Some(&future), &[ORDERS], false),
        ("another trust domain's", Some(&foreign), &[ORDERS], false),
        ("an altered attestation", Some(&altered), &[ORDERS], false),
        ("another mesh's", Some(&leaf(&other, "gone")), &[ORDERS], false),
        ("nobody's", None, &[ORDERS], false),
    ] {
        let outcome = attempt_as(address, client(leaf, offered)).await;
        assert_eq!(outcome == Outcome::Served, gets_in, "{what}: {outcome:?}");
    }
}

/// A connection on which the server has spoken.
async fn held(address: SocketAddr, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("aip.invalid").unwrap();
    let mut tls = TlsConnector::from(config).connect(name, tcp).await?;
    tls.read_exact(&mut [0; 9]).await?;
    Ok(tls)
}

/// Connections of one agent for orders alone.
const MOST: usize = 320;

#[tokio::test(flavor = "multi_thread")]
async fn who_was_revoked_takes_no_places_from_the_others() {
    let pki = Pki::new("aip.internal");
    let address = port(&pki).await;
    let orders = client(Some(&leaf(&pki, "gone")), &[ORDERS]);
    let mut tries = JoinSet::new();
    for _ in 0..MOST + 20 {
        tries.spawn(held(address, orders.clone()));
    }
    let tried = tries.join_all().await;
    let open: Vec<_> = tried.into_iter().filter_map(Result::ok).collect();
    assert_eq!(open.len(), MOST);
    let renewed = LeafSpec {
        generation: 2,
        ..LeafSpec::good("gone")
    };
    for (what, leaf, alpn) in [
        ("another agent that was revoked", leaf(&pki, "gone-too"), ORDERS),
        ("the same agent, let back in", pki.leaf(&renewed), H2),
        ("another agent", leaf(&pki, "good"), H2),
    ] {
        let outcome = attempt_as(address, client(Some(&leaf), &[alpn])).await;
        assert_eq!(outcome, Outcome::Served, "{what}");
    }
    drop(open);
}
