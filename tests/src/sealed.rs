//! A connection whose handshake is over, and whose records are from then on the test's own to write.

use std::net::SocketAddr;
use std::sync::Arc;

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::hello::{content, sized};
use crate::pki::Leaf;
use crate::wait::DEADLINE;
use crate::wire;

pub struct Sealed {
    pub tcp: TcpStream,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Sealed {
    /// A connection to `address` that was accepted.
    pub async fn connect(address: SocketAddr, identity: Option<&Leaf>) -> Self {
        let mut config = (*wire::client(identity, &[b"h2"])).clone();
        config.enable_secret_extraction = true;
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("aip.invalid").unwrap();
        let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        // An accepted client hears the server's SETTINGS.
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .unwrap();
        tls.flush().await.unwrap();
        tls.read_exact(&mut [0; 9]).await.expect("it is accepted");
        let (tcp, connection) = tls.into_inner();
        let (sequence, secrets) = connection.dangerous_extract_secrets().unwrap().tx;
        let (key, iv) = key_of(&secrets);
        Self { tcp, key, iv, sequence }
    }

    /// The next record, of this inner type, with so many zeros after it (RFC 8446 section 5.2).
    pub fn record(&mut self, kind: u8, bytes: &[u8], padding: usize) -> Vec<u8> {
        self.inner([bytes, &[kind], &vec![0; padding]].concat())
    }

    /// The next record, of this whole inner plaintext, type included or not.
    pub fn inner(&mut self, mut inner: Vec<u8>) -> Vec<u8> {
        let length = (inner.len() + AES_128_GCM.tag_len()) as u16;
        let head = [&[content::APPLICATION_DATA, 3, 3][..], &length.to_be_bytes()].concat();
        let mut nonce = self.iv;
        for (byte, own) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= own;
        }
        self.sequence += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_in_place_append_tag(nonce, Aad::from(&head), &mut inner)
            .unwrap();
        [&head[..3], &sized(&inner)].concat()
    }

    /// Says it, and holds that the other end ends the connection then.
    pub async fn is_ended_by(self, what: &str, bytes: &[u8]) {
        let (mut read, mut write) = self.tcp.into_split();
        let mut rest = Vec::new();
        // What is not taken any more is an end, too.
        let both = async { tokio::join!(write.write_all(bytes), read.read_to_end(&mut rest)) };
        let ended = tokio::time::timeout(DEADLINE, both).await;
        let _ = ended.unwrap_or_else(|_| panic!("{what}: the connection goes on"));
    }
}

fn key_of(secrets: &ConnectionTrafficSecrets) -> (LessSafeKey, [u8; 12]) {
    let of = |algorithm: &'static Algorithm, key: &[u8], iv: &[u8]| {
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap());
        (key, iv.try_into().unwrap())
    };
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => of(&AES_128_GCM, key.as_ref(), iv.as_ref()),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => of(&AES_256_GCM, key.as_ref(), iv.as_ref()),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => of(&CHACHA20_POLY1305, key.as_ref(), iv.as_ref()),
        _ => unreachable!("the suites of TLS 1.3"),
    }
}
