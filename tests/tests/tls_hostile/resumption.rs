//! Nobody resumes, and nobody is heard before its handshake: a ticket, wherever it is from, is worth nothing, and early
//! data reaches nobody. A resumed session would skip the check of the peer's certificate, and with it revocation.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aip_tests::pki::Pki;
use rustls::client::{ClientConnection, ClientSessionStore, Resumption, Tls12ClientSessionValue};
use rustls::client::{ClientSessionMemoryCache, Tls13ClientSessionValue};
use rustls::{HandshakeKind, NamedGroup, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};

use super::*;

/// A request of HTTP/2 as far as it needs no table: the preface, settings, and a head (GET, https, `/`).
const EARLY: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x03\x01\x05\0\0\0\x01\x82\x87\x84";

/// Keeps tickets, and counts how many it was given.
#[derive(Debug)]
struct Kept {
    cache: ClientSessionMemoryCache,
    given: AtomicUsize,
}

impl ClientSessionStore for Kept {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.cache.set_kx_hint(name, group);
    }
    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.cache.kx_hint(name)
    }
    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.cache.set_tls12_session(name, value);
    }
    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.cache.tls12_session(name)
    }
    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.cache.remove_tls12_session(name);
    }
    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.given.fetch_add(1, Ordering::SeqCst);
        self.cache.insert_tls13_ticket(name, value);
    }
    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.cache.take_tls13_ticket(name)
    }
}

/// A client that resumes where it can, and sends early data then.
struct Client {
    config: Arc<rustls::ClientConfig>,
    kept: Arc<Kept>,
}

/// How a connection was made.
#[derive(Debug, PartialEq)]
struct Made {
    kind: HandshakeKind,
    offered_early: bool,
    took_early: bool,
}

impl Client {
    fn new(identity: Option<&Leaf>) -> Self {
        let kept = Arc::new(Kept {
            cache: ClientSessionMemoryCache::new(16),
            given: AtomicUsize::new(0),
        });
        let mut config = (*wire::client(identity, &[b"h2"])).clone();
        config.resumption = Resumption::store(kept.clone());
        config.enable_early_data = true;
        Self {
            config: Arc::new(config),
            kept,
        }
    }

    /// A connection; reads until something came after the handshake.
    async fn connect(&self, address: SocketAddr) -> Made {
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || connect(config, address))
            .await
            .unwrap()
    }

    fn tickets(&self) -> usize {
        self.kept.given.load(Ordering::SeqCst)
    }
}

fn connect(config: Arc<rustls::ClientConfig>, address: SocketAddr) -> Made {
    let mut tcp = std::net::TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(wait::DEADLINE)).unwrap();
    let name = ServerName::try_from("aip.invalid").unwrap();
    let mut connection = ClientConnection::new(config, name).unwrap();
    let offered_early = match connection.early_data() {
        Some(mut early) => early.write(EARLY).unwrap() > 0,
        None => false,
    };
    connection.complete_io(&mut tcp).unwrap();
    let made = Made {
        kind: connection.handshake_kind().unwrap(),
        offered_early,
        took_early: connection.is_early_data_accepted(),
    };
    let mut tls = rustls::Stream::new(&mut connection, &mut tcp);
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    tls.read_exact(&mut [0; 9]).unwrap();
    made
}

/// Another server of TLS, which lets itself be resumed and takes early data.
fn lenient() -> SocketAddr {
    let leaf = Pki::new("elsewhere.internal").leaf(&LeafSpec::good("server"));
    let chain = leaf.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivatePkcs8KeyDer::from(leaf.pkcs8).into())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.max_early_data_size = 1_000;
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut tcp, _)) = listener.accept() {
            let mut connection = ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::Stream::new(&mut connection, &mut tcp);
            // Whoever speaks is answered nine bytes, behind the tickets.
            let _ = tls.write_all(b"\0\0\0\x04\0\0\0\0\0").and_then(|()| tls.flush());
            let _ = tls.read(&mut [0; 100]);
        }
    });
    address
}

const FULL: Made = Made {
    kind: HandshakeKind::Full,
    offered_early: false,
    took_early: false,
};

/// Twice to the port, which gives no ticket; then with one of another server, which would have taken it.
async fn nobody_resumes(address: SocketAddr, identity: Option<&Leaf>) {
    let client = Client::new(identity);
    for _ in 0..2 {
        assert_eq!(client.connect(address).await, FULL);
    }
    assert_eq!(client.tickets(), 0, "it gave a ticket");

    let (client, elsewhere) = (Client::new(identity), lenient());
    assert_eq!(client.connect(elsewhere).await.kind, HandshakeKind::Full);
    assert!(client.tickets() >= 2, "it gave none");
    let resumed = client.connect(elsewhere).await;
    let taken = Made {
        kind: HandshakeKind::Resumed,
        offered_early: true,
        took_early: true,
    };
    assert_eq!(resumed, taken, "the client can do it");
    let refused = Made {
        offered_early: true,
        ..FULL
    };
    assert_eq!(client.connect(address).await, refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_resumes_at_a_sidecar_or_is_heard_early() {
    let (scripted, agent, dir) = (Scripted::start(), Agent::start(), TempDir::new().unwrap());
    let sidecar: Sidecar = scripted.sidecar("callee", agent.address, dir.path()).await;
    let good = scripted.with_pki(|pki| pki.leaf(&LeafSpec::good("caller")));
    nobody_resumes(sidecar.inbound, Some(&good)).await;
    assert!(agent.seen("").is_empty() && sidecar.records().of("inbound").0.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_resumes_at_a_control_plane_or_is_heard_early() {
    let mesh = Mesh::start().await;
    nobody_resumes(mesh.control_plane.mesh, None).await;
}
