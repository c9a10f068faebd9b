//! The `Audit` stream: checkpoints go up at once, and segments follow, one chunk outstanding. What earlier lives of this
//! sidecar left goes up, too. What the control plane has is asked at each greeting.
//!
//! | file | what |
//! |---|---|
//! | `session` | what is said on one stream, and what is answered |
//! | `files` | what of a log's files is to be sent next |
//! | `sent` | what the control plane has |

pub(super) mod files;
mod sent;
mod session;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aip_api::wire::audit_request;
use aip_runtime::backoff::Backoff;
use aip_runtime::grpc::{self, ChannelError, audit_client::AuditClient};
use aip_runtime::svid::SvidSource;
use aip_runtime::tls::{self, TlsError};
use aip_runtime::trust::Trust;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::{Audit, Shared};
pub(super) use sent::Sent;
use session::{Session, hello, say};

/// First and last bound of the wait between attempts, as of the configuration stream.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// A stream that lasted this long was a good one: the next attempt starts over with short waits.
const HEALTHY: Duration = Duration::from_secs(10);
/// How long what was refused for now waits for the next stream.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What the stream needs.
#[derive(Debug)]
pub struct Client {
    /// Where the control plane listens.
    pub control_plane: SocketAddr,
    /// What this sidecar presents.
    pub svid: SvidSource,
    /// What it trusts.
    pub trust: Trust,
    /// This process.
    pub instance: String,
    /// What is sent.
    pub audit: Audit,
    /// Raised once the log is closed: then the stream ends when everything was sent.
    pub closing: watch::Receiver<bool>,
}

#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("no connection to the control plane: {0}")]
    Connect(#[from] ChannelError),
    #[error("the control plane ended the stream ({}): {}", grpc::reason(.0).unwrap_or("no reason given"), .0.message())]
    Status(#[from] tonic::Status),
    #[error("the control plane ended the stream, or did not answer")]
    Closed,
    #[error("the control plane answered of another audit log than it was told of")]
    OtherLog,
    #[error("the control plane does not take it now ({0})")]
    Refused(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Log(#[from] std::io::Error),
}

/// Keeps the stream up until the log is closed and was sent.
pub async fn run(client: Client) {
    let Some(shared) = client.audit.shared().cloned() else {
        return;
    };
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut closing = client.closing.clone();
    loop {
        let began = tokio::time::Instant::now();
        let end = stream(&client, &shared).await;
        shared.sent().connected = false;
        match end {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "the audit stream ended; records stay here meanwhile"),
        }
        if began.elapsed() > HEALTHY {
            backoff.reset();
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            // One more attempt at once, and whoever closes waits no longer than it may.
            changed = closing.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

async fn stream(client: &Client, shared: &Arc<Shared>) -> Result<(), StreamEnd> {
    let mut session = greeted(client, shared).await?;
    let began = tokio::time::Instant::now();
    let (mut kept, mut closing) = (shared.kept.subscribe(), client.closing.clone());
    loop {
        kept.borrow_and_update();
        let closed = *closing.borrow_and_update();
        session.send_all().await?;
        if closed {
            return session.close().await;
        }
        let refused = shared.sent().asks_again.clone();
        tokio::select! {
            () = tokio::time::sleep_until(began + ASK_AGAIN), if refused.is_some() => {
                return Err(StreamEnd::Refused(refused.unwrap_or_default()));
            }
            _ = kept.changed() => {}
            _ = closing.changed() => {}
            end = session.ended() => return Err(end),
        }
    }
}

/// Opens the stream, says which logs are here, and hears what the control plane has of them.
async fn greeted(client: &Client, shared: &Arc<Shared>) -> Result<Session, StreamEnd> {
    let tls = tls::control_plane_client(Some(client.svid.slot()), &client.trust)?;
    let channel = grpc::channel(client.control_plane, tls).await?;
    let (send, outgoing) = mpsc::channel(1);
    let hello = hello(shared, &client.instance).await?;
    let logs: Vec<String> = hello.logs.iter().map(|held| held.log.clone()).collect();
    say(&send, audit_request::Message::Hello(hello)).await?;
    let mut stub = AuditClient::new(channel).max_decoding_message_size(grpc::MAX_MESSAGE_BYTES);
    let answers = stub.stream(ReceiverStream::new(outgoing)).await?.into_inner();
    Session::greeted(shared, send, answers, &logs).await
}
