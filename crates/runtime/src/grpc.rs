//! gRPC over our TLS: the generated stubs, a client channel, and the connections of a server.

mod incoming;

/// The stubs, generated from `crates/api/proto` and checked in.
#[allow(missing_docs, clippy::all, unreachable_pub, rust_2018_idioms)]
#[rustfmt::skip]
mod stubs {
    include!("gen/aip.mesh.v1.rs");
}

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

pub use incoming::{Incoming, PeerInfo, incoming};
pub use stubs::{
    audit_client, audit_server, config_client, config_server, identity_client, identity_server, kill_client,
    kill_server,
};

use crate::tls::{self, Heard, TlsError};

/// The metadata key of the stable reason of a failure.
pub const REASON: &str = "aip-reason";
/// Largest message either side decodes: a snapshot of policies, never a bulk transfer.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// How long dialling the control plane may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 pings find a control plane that vanished without a word; below a minute, above what bothers a NAT.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A status with its stable reason in the metadata.
pub fn status(code: tonic::Code, reason: &'static str, detail: impl Into<String>) -> tonic::Status {
    let mut status = tonic::Status::new(code, detail);
    status
        .metadata_mut()
        .insert(REASON, tonic::metadata::MetadataValue::from_static(reason));
    status
}

/// The stable reason of a status, if it carries one.
pub fn reason(status: &tonic::Status) -> Option<&str> {
    status.metadata().get(REASON).and_then(|v| v.to_str().ok())
}

/// Why there is no channel to the control plane.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Something answers, and it is not the control plane, or does not take us.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nothing answers.
    #[error("{}", crate::why(.0))]
    Unreachable(tonic::transport::Error),
}

impl ChannelError {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Tls(error) => error.reason(),
            Self::Unreachable(_) => "control_plane_unreachable",
        }
    }
}

/// A channel to the control plane at `address`.
///
/// # Errors
/// Not reachable, or the handshake failed, and why.
pub async fn channel(address: SocketAddr, tls: Arc<ClientConfig>) -> Result<Channel, ChannelError> {
    channel_hearing(address, tls, &Heard::default()).await
}

/// As [`channel`], and notes how the control plane refuses our certificate.
///
/// # Errors
/// As [`channel`].
pub async fn channel_hearing(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    heard: &Heard,
) -> Result<Channel, ChannelError> {
    let endpoint = Endpoint::from_static("http://control-plane.aip.invalid")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    // tonic has one error for all that can go wrong while connecting: what TLS says is kept beside it.
    let failure = Arc::new(Mutex::new(None));
    let failed = failure.clone();
    let heard = heard.clone();
    let connect = tower::service_fn(move |_: Uri| {
        let (tls, failed, heard) = (tls.clone(), failed.clone(), heard.clone());
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            match tls::handshake(&tls, tcp).await {
                Ok(stream) => Ok(TokioIo::new(heard.on(stream))),
                Err(error) => {
                    let text = error.to_string();
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    Err(std::io::Error::other(text))
                }
            }
        }
    });
    let channel = endpoint.connect_with_connector(connect).await;
    channel.map_err(
        |error| match failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(tls) => ChannelError::Tls(tls),
            None => ChannelError::Unreachable(error),
        },
    )
}
