//! TLS 1.3, both sides, always. Streams come out with a verified peer; nothing outside this crate sees rustls.
//!
//! No session resumption: a resumed session would skip the check of the peer's certificate, and with it revocation.

mod heard;
mod identity;
mod mesh;
mod verifier;
pub mod web;

use std::sync::Arc;
use std::time::Duration;

use aip_api::{Digest, SpiffeId};
use rustls::crypto::CryptoProvider;
use rustls::server::Acceptor;
pub use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsConnector};

use crate::trust::{Trust, TrustState};
use crate::x509::{IdentityError, PeerIdentity, peer_identity, peer_or_revoked};

pub use heard::{Heard, Hearing};
pub use identity::IdentitySlot;
pub(crate) use mesh::Answered;
pub use mesh::MeshTls;
use verifier::{AgentVerifier, Expected, reason_of};

/// How long a handshake may take: two round trips on a bad line, and no more for a peer that stalls.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A server's side of a connection.
pub type ServerTls<IO> = tokio_rustls::server::TlsStream<IO>;
/// A client's side of a connection.
pub type ClientTls<IO> = tokio_rustls::client::TlsStream<IO>;

/// HTTP/2, and nothing else.
pub const ALPN_H2: &[&[u8]] = &[b"h2"];
/// HTTP/2 with the control plane, for orders to stop and nothing else: the one connection that a revoked SVID gets.
pub const ALPN_ORDERS: &[&[u8]] = &[b"aip-orders"];

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer is not who it must be.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The peer does not speak TLS 1.3.
    #[error("the peer does not speak TLS 1.3")]
    Version,
    /// The peer does not speak TLS at all.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// No HTTP/2 in ALPN.
    #[error("the peer does not offer HTTP/2 (ALPN h2)")]
    Alpn,
    /// The other end ended the handshake; its alert says why.
    #[error("the other end refused the handshake: {0}")]
    Refused(String),
    /// Nothing came within [`crate::door::FIRST_BYTE`].
    #[error("the peer said nothing for {} s", crate::door::FIRST_BYTE.as_secs())]
    Silent,
    /// Others needed its place before it was known who is there.
    #[error("it gave way to newer connections, since as many are in their handshake as may be")]
    GaveWay,
    /// Took longer than [`HANDSHAKE_TIMEOUT`].
    #[error("the handshake took longer than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    /// Anything else in the protocol.
    #[error("the handshake failed: {0}")]
    Protocol(String),
    /// The connection broke.
    #[error("the connection broke during the handshake: {0}")]
    Io(std::io::Error),
    /// Our own key can't be used.
    #[error("this process's own key or certificate can't be used: {0}")]
    OwnKey(String),
}

impl TlsError {
    /// The stable reason, as in metrics and logs.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Identity(e) => e.reason(),
            Self::NoCertificate => "no_certificate",
            Self::Version => "tls_version",
            Self::NotTls => "not_tls",
            Self::Alpn => "alpn",
            Self::Refused(_) => "refused_by_peer",
            Self::Silent => "first_byte_timeout",
            Self::GaveWay => "gave_way",
            Self::Timeout => "handshake_timeout",
            Self::Protocol(_) => "tls_protocol",
            Self::Io(_) => "connection_broken",
            Self::OwnKey(_) => "own_key",
        }
    }
}

/// Whether a client must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Sidecars to sidecars.
    Required,
    /// The control plane's port: a sidecar that joins has none yet. One that is shown is verified.
    Optional,
    /// The control plane's port, for orders to stop: it must be good, and may be revoked.
    OrRevoked,
}

/// How who is at the other end is read from a leaf and its issuer.
type Identify = fn(&[u8], &[u8], &TrustState, u64) -> Result<PeerIdentity, IdentityError>;

impl Clients {
    fn identify(self) -> Identify {
        match self {
            Self::Required | Self::Optional => peer_identity,
            Self::OrRevoked => peer_or_revoked,
        }
    }
}

/// The one crypto provider of the process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A server of this mesh: presents `identity`, verifies clients as agents.
///
/// # Errors
/// The provider lacks TLS 1.3.
pub fn server_config(
    identity: &IdentitySlot,
    trust: &Trust,
    clients: Clients,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = AgentVerifier::for_clients(trust.clone(), clients);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| TlsError::OwnKey(e.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn client_config(
    identity: Option<&IdentitySlot>,
    verifier: AgentVerifier,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| TlsError::OwnKey(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(identity.clone())),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    // SPIFFE IDs are checked, not host names, and names of the mesh are nobody else's business.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// A client that calls the agent `expected`, and nobody else.
///
/// # Errors
/// The provider lacks TLS 1.3.
pub fn agent_client(
    identity: &IdentitySlot,
    trust: &Trust,
    expected: SpiffeId,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    client_config(
        Some(identity),
        AgentVerifier::for_server(trust.clone(), Expected::Agent(expected)),
        alpn,
    )
}

/// A client of the control plane, whose root is known.
///
/// # Errors
/// The provider lacks TLS 1.3.
pub fn control_plane_client(identity: Option<&IdentitySlot>, trust: &Trust) -> Result<Arc<ClientConfig>, TlsError> {
    client_config(
        identity,
        AgentVerifier::for_server(trust.clone(), Expected::ControlPlane),
        ALPN_H2,
    )
}

/// The same, to be told of orders to stop and nothing else, whether the SVID is revoked or not.
///
/// # Errors
/// The provider lacks TLS 1.3.
pub fn orders_client(identity: &IdentitySlot, trust: &Trust) -> Result<Arc<ClientConfig>, TlsError> {
    client_config(
        Some(identity),
        AgentVerifier::for_server(trust.clone(), Expected::ControlPlane),
        ALPN_ORDERS,
    )
}

/// A client of a control plane of which only the digest of the root is known, from a join token.
///
/// # Errors
/// The provider lacks TLS 1.3.
pub fn pinned_client(root: Digest) -> Result<Arc<ClientConfig>, TlsError> {
    client_config(None, AgentVerifier::pinned(root), ALPN_H2)
}

/// Accepts a connection: the stream, and the peer where it showed a certificate.
///
/// # Errors
/// As [`TlsError`] lists; the peer got an alert.
pub async fn accept<IO>(
    config: &Arc<ServerConfig>,
    trust: &Trust,
    io: IO,
) -> Result<(ServerTls<IO>, Option<PeerIdentity>), TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    answer(hello(io, deadline).await?, (config, Clients::Required), trust, deadline).await
}

/// The first half of [`accept`]: reads the peer's first flight, and computes nothing.
pub(crate) async fn hello<IO>(io: IO, deadline: Instant) -> Result<StartHandshake<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let hello = LazyConfigAcceptor::new(Acceptor::default(), io);
    tokio::time::timeout_at(deadline, hello)
        .await
        .map_err(|_| TlsError::Timeout)?
        .map_err(reason_of)
}

/// The second half of [`accept`].
pub(crate) async fn answer<IO>(
    hello: StartHandshake<IO>,
    (config, clients): Answered<'_>,
    trust: &Trust,
    deadline: Instant,
) -> Result<(ServerTls<IO>, Option<PeerIdentity>), TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let stream = tokio::time::timeout_at(deadline, hello.into_stream(config.clone()))
        .await
        .map_err(|_| TlsError::Timeout)?
        .map_err(reason_of)?;
    let peer = peer_of(stream.get_ref().1.peer_certificates(), trust, clients.identify())?;
    Ok((stream, peer))
}

/// Connects to an agent: the stream, and who answered.
///
/// # Errors
/// As [`TlsError`] lists.
pub async fn connect<IO>(
    config: &Arc<ClientConfig>,
    trust: &Trust,
    io: IO,
) -> Result<(ClientTls<IO>, PeerIdentity), TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let stream = handshake(config, io).await?;
    let peer = peer_of(stream.get_ref().1.peer_certificates(), trust, peer_identity)?.ok_or(TlsError::NoCertificate)?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(TlsError::Alpn);
    }
    Ok((stream, peer))
}

/// Connects to a control plane of which only the digest of the root is known: its admin API, from a command line.
///
/// # Errors
/// As [`TlsError`] lists; another root than the one that is known.
pub async fn connect_pinned<IO>(root: Digest, alpn: &[&[u8]], io: IO) -> Result<ClientTls<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    handshake(&client_config(None, AgentVerifier::pinned(root), alpn)?, io).await
}

/// The client's handshake alone; who answered was checked by the configuration's verifier.
pub(crate) async fn handshake<IO>(config: &Arc<ClientConfig>, io: IO) -> Result<ClientTls<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    // Never sent (SNI is off) and never checked: the verifier looks at the SPIFFE ID.
    let name = ServerName::try_from("aip.invalid").map_err(|e| TlsError::Protocol(e.to_string()))?;
    let handshake = TlsConnector::from(config.clone()).connect(name, io);
    tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| TlsError::Timeout)?
        .map_err(reason_of)
}

fn peer_of(
    chain: Option<&[CertificateDer<'_>]>,
    trust: &Trust,
    identify: Identify,
) -> Result<Option<PeerIdentity>, TlsError> {
    match chain {
        Some([leaf, issuer, ..]) => {
            let state = trust.load();
            Ok(Some(identify(leaf, issuer, &state, crate::unix_now())?))
        }
        Some([_]) => Err(IdentityError::Malformed("the issuing certificate was not sent".into()).into()),
        Some([]) | None => Ok(None),
    }
}
