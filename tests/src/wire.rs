//! TLS as a stranger would speak it: any certificate or none, any version.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::pki::Leaf;
use crate::wait::DEADLINE;

/// What a port did with a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It spoke HTTP/2 with us: the handshake was accepted.
    Served,
    /// It ended the handshake; how, as far as we are told.
    Refused(String),
}

impl Outcome {
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("only 1.3 is offered")
    }
    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn chain_of(leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = leaf.chain.iter().map(|c| CertificateDer::from(c.clone())).collect();
    (chain, PrivatePkcs8KeyDer::from(leaf.pkcs8.clone()).into())
}

/// A client that trusts anybody and presents `identity`, speaking `alpn`.
pub fn client(identity: Option<&Leaf>, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match identity {
        Some(leaf) => {
            let (chain, key) = chain_of(leaf);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.enable_sni = false;
    Arc::new(config)
}

/// Connects to `address` with TLS 1.3 and HTTP/2, and reports what happened.
pub async fn attempt(address: SocketAddr, identity: Option<&Leaf>) -> Outcome {
    attempt_as(address, client(identity, &[b"h2"])).await
}

/// As [`attempt`], with a client of one's own.
pub async fn attempt_as(address: SocketAddr, config: Arc<ClientConfig>) -> Outcome {
    attempt_over(async || TcpStream::connect(address).await, config).await
}

/// A connection to `address` from this address of this machine: all of 127.0.0.0/8 are.
pub async fn connect_from(source: IpAddr, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source, 0))?;
    socket.connect(address).await
}

/// As [`attempt`], from another address of this machine.
pub async fn attempt_from(source: IpAddr, address: SocketAddr, identity: Option<&Leaf>) -> Outcome {
    let config = client(identity, &[b"h2"]);
    attempt_over(async || connect_from(source, address).await, config).await
}

async fn attempt_over(connect: impl AsyncFnOnce() -> std::io::Result<TcpStream>, config: Arc<ClientConfig>) -> Outcome {
    let handshake = async {
        let tcp = connect().await?;
        let name = ServerName::try_from("aip.invalid").unwrap();
        let mut tls = TlsConnector::from(config).connect(name, tcp).await?;
        // In TLS 1.3 a client learns of the refusal of its certificate only when it reads. An accepted one gets
        // the server's HTTP/2 SETTINGS (frame type 4 in the fourth byte).
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await?;
        let mut head = [0; 9];
        tls.read_exact(&mut head).await?;
        assert_eq!(head[3], 4, "the first frame is SETTINGS");
        Ok::<_, std::io::Error>(())
    };
    match tokio::time::timeout(DEADLINE, handshake)
        .await
        .expect("an answer in time")
    {
        Ok(()) => Outcome::Served,
        Err(e) => Outcome::Refused(e.to_string()),
    }
}

/// Sends bytes that are not a TLS 1.3 hello, and returns what came back until the port closed.
pub async fn say(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is an end too.
    let _ = tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut answer))
        .await
        .expect("the port closes in time");
    answer
}

/// Says all of it, however much of it is still taken, and nothing after it; returns what came back until the end, which a
/// reset is, too.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let mut answer = Vec::new();
    let both = async {
        let _ = tokio::join!(
            async {
                write.write_all(bytes).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut answer)
        );
    };
    tokio::time::timeout(DEADLINE, both)
        .await
        .expect("the port closes in time");
    answer
}

/// The ClientHello of a client that knows nothing newer than TLS 1.2 (RFC 5246): it has no supported_versions.
pub fn tls12_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([0x42; 32]);
    body.push(0);
    // ECDHE_ECDSA and ECDHE_RSA with AES_128_GCM_SHA256.
    body.extend([0, 4, 0xc0, 0x2b, 0xc0, 0x2f]);
    body.extend([1, 0]);
    // supported_groups: secp256r1; ec_point_formats: uncompressed; signature_algorithms: ecdsa_secp256r1_sha256.
    let extensions = [
        0, 10, 0, 4, 0, 2, 0, 23, // groups
        0, 11, 0, 2, 1, 0, // formats
        0, 13, 0, 4, 0, 2, 4, 3, // signatures
    ];
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let mut hello = vec![1, 0, 0, body.len() as u8];
    hello.extend(body);
    let mut record = vec![22, 3, 1, 0, hello.len() as u8];
    record.extend(hello);
    record
}

fn acceptor(leaf: &Leaf, alpn: &[&[u8]]) -> TlsAcceptor {
    let (chain, key) = chain_of(leaf);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// Presents `leaf` to whoever connects, and writes down how each handshake ended and what was said after it.
#[derive(Clone)]
pub struct Listener {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// What was said after a handshake, or how that failed.
pub type Heard = Result<Vec<u8>, String>;

impl Listener {
    pub async fn start(leaf: &Leaf, alpn: &[&[u8]]) -> Self {
        let acceptor = acceptor(leaf, alpn);
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = Self {
            address: tcp.local_addr().unwrap(),
            heard: Arc::default(),
        };
        let heard = listener.heard.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = tcp.accept().await {
                let (acceptor, heard) = (acceptor.clone(), heard.clone());
                tokio::spawn(async move {
                    // A client that refuses us in TLS 1.3 has finished our side of the handshake before: its alert is
                    // what we read.
                    let mut said = Vec::new();
                    let outcome = match acceptor.accept(tcp).await {
                        Ok(mut tls) => tls.read_to_end(&mut said).await.map(|_| ()),
                        Err(error) => Err(error),
                    };
                    let refused = outcome.map_err(|e| e.to_string()).and(Ok(said));
                    heard.lock().unwrap().push(refused);
                });
            }
        });
        listener
    }

    /// How handshakes ended so far: what was said, or the error.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

/// Answers every HTTP/2 request on TLS with 200, presenting `leaf`: an endpoint that isn't who it should be.
pub async fn impostor(leaf: &Leaf) -> SocketAddr {
    let acceptor = acceptor(leaf, &[b"h2"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let service = hyper::service::service_fn(|_| async {
                    Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(Bytes::from_static(b"impostor"))))
                });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(tls), service)
                    .await;
            });
        }
    });
    address
}
