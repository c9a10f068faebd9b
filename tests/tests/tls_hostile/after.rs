//! What a peer with a good certificate can say once the handshake is over: the connection is ended, and nothing else.

use aip_tests::hello::{Hello, MAX_RECORD, content, handshake, record};
use aip_tests::sealed::Sealed;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;

/// Kinds of handshake messages (RFC 8446 section 4).
const NEW_SESSION_TICKET: u8 = 4;
const END_OF_EARLY_DATA: u8 = 5;
const CERTIFICATE: u8 = 11;
const FINISHED: u8 = 20;
const KEY_UPDATE: u8 = 24;
/// Bytes of memory by which the process may have grown over all of it.
const GROWTH: u64 = 64 << 20;

/// What is wrong, and the bytes.
type Said = fn(&mut Sealed) -> Vec<u8>;

fn message(sealed: &mut Sealed, kind: u8, body: &[u8]) -> Vec<u8> {
    sealed.record(content::HANDSHAKE, &handshake(kind, body), 0)
}

/// Messages of a handshake, which is over.
const MESSAGES: [(&str, Said); 9] = [
    ("a renegotiation", |sealed| {
        sealed.record(content::HANDSHAKE, &Hello::good().message(), 0)
    }),
    ("a HelloRequest", |sealed| message(sealed, 0, b"")),
    ("a ticket, from a client", |sealed| {
        message(sealed, NEW_SESSION_TICKET, &[0; 60])
    }),
    ("an end of early data", |sealed| message(sealed, END_OF_EARLY_DATA, b"")),
    ("another certificate", |sealed| message(sealed, CERTIFICATE, &[0; 4])),
    ("another Finished", |sealed| message(sealed, FINISHED, &[7; 32])),
    ("a KeyUpdate that says nothing", |sealed| {
        message(sealed, KEY_UPDATE, &[2])
    }),
    ("a KeyUpdate with another behind it", |sealed| {
        let update = handshake(KEY_UPDATE, &[1]);
        sealed.record(content::HANDSHAKE, &update.repeat(2), 0)
    }),
    ("a message of 16 MiB", |sealed| {
        let begin = sealed.record(content::HANDSHAKE, &[FINISHED, 0xff, 0xff, 0xff], 0);
        let more = (0..64).flat_map(|_| sealed.record(content::HANDSHAKE, &[0; MAX_RECORD], 0));
        [begin, more.collect()].concat()
    }),
];

/// Records that are none, or too many.
const RECORDS: [(&str, Said); 13] = [
    ("a heartbeat", |sealed| {
        sealed.record(content::HEARTBEAT, b"\x01\x40\x00bleed", 0)
    }),
    ("a record without a type", |sealed| sealed.inner(vec![0; 100])),
    ("an empty record", |sealed| sealed.inner(Vec::new())),
    ("a record of too many bytes", |sealed| {
        sealed.record(content::APPLICATION_DATA, &[0; MAX_RECORD + 1], 0)
    }),
    ("records of nothing without end", |sealed| {
        (0..1_000)
            .flat_map(|_| sealed.record(content::APPLICATION_DATA, b"", 0))
            .collect()
    }),
    ("16 KiB of nothing without end", |sealed| {
        (0..200)
            .flat_map(|_| sealed.record(content::APPLICATION_DATA, b"", MAX_RECORD - 1))
            .collect()
    }),
    ("pieces of no message without end", |sealed| {
        (0..1_000)
            .flat_map(|_| sealed.record(content::HANDSHAKE, b"", 0))
            .collect()
    }),
    ("warnings without end", |sealed| {
        (0..1_000)
            .flat_map(|_| sealed.record(content::ALERT, &[1, 90], 0))
            .collect()
    }),
    ("a record that was said before", |sealed| {
        sealed
            .record(content::APPLICATION_DATA, b"\0\0\0\x04\0\0\0\0\0", 0)
            .repeat(2)
    }),
    ("a record that was changed", |sealed| {
        let mut changed = sealed.record(content::APPLICATION_DATA, b"\0\0\0\x04\0\0\0\0\0", 0);
        changed[9] ^= 1;
        changed
    }),
    ("ChangeCipherSpec in plain text", |_| {
        record(content::CHANGE_CIPHER_SPEC, &[1])
    }),
    ("an alert in plain text", |_| record(content::ALERT, &[2, 40])),
    ("data in plain text", |_| record(content::APPLICATION_DATA, &[7; 100])),
];

impl Port {
    /// Every attack on it, each on a connection of its own.
    async fn ends_what_is_no_data(&self) {
        for (what, said) in MESSAGES.into_iter().chain(RECORDS) {
            let mut sealed = Sealed::connect(self.address, self.good.as_ref()).await;
            let bytes = said(&mut sealed);
            sealed.is_ended_by(what, &bytes).await;
            self.serves(what).await;
        }
        self.ends_key_updates().await;
        self.serves("key updates").await;
    }

    /// Each makes the other end derive keys and answer.
    async fn ends_key_updates(&self) {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("aip.invalid").unwrap();
        let config = wire::client(self.good.as_ref(), &[b"h2"]);
        let mut tls = TlsConnector::from(config).connect(name, tcp).await.unwrap();
        let updating = async {
            // Far more than it may be asked for without any data (32); once it is ended, writing fails.
            for _ in 0..10_000 {
                tls.get_mut().1.refresh_traffic_keys().unwrap();
                tls.flush().await?;
            }
            tls.read_to_end(&mut Vec::new()).await
        };
        let ended = tokio::time::timeout(wait::DEADLINE, updating).await;
        assert!(
            ended.expect("it is ended").is_err(),
            "key updates are answered without end"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_ends_what_is_no_data_after_a_handshake() {
    let (scripted, agent, dir) = (Scripted::start(), Agent::start(), TempDir::new().unwrap());
    let mut sidecar: Sidecar = scripted.sidecar("callee", agent.address, dir.path()).await;
    let port = Port {
        address: sidecar.inbound,
        page: sidecar.admin,
        good: Some(scripted.with_pki(|pki| pki.leaf(&LeafSpec::good("caller")))),
    };
    port.serves("its start").await;
    let before = sidecar.process.resident();
    port.ends_what_is_no_data().await;
    let grown = sidecar.process.resident().saturating_sub(before);
    assert!(grown < GROWTH, "{grown}");
    assert!(agent.seen("").is_empty());
    sidecar.process.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_ends_what_is_no_data_after_a_handshake() {
    let mut mesh = Mesh::start().await;
    let port = Port {
        address: mesh.control_plane.mesh,
        page: mesh.admin().address,
        good: None,
    };
    port.serves("its start").await;
    let before = mesh.control_plane.process.resident();
    port.ends_what_is_no_data().await;
    let grown = mesh.control_plane.process.resident().saturating_sub(before);
    assert!(grown < GROWTH, "{grown}");
    mesh.control_plane.process.assert_alive();
}
