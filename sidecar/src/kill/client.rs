//! The `Kill` stream: a connection of its own, so that nothing delays it. Hello with the set that is held, sets taken
//! and answered, beats asked and their answers taken.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aip_api::wire;
use aip_api::wire::kill_request::Message;
use aip_api::wire::kill_response::Message as Answer;
use aip_runtime::backoff::Backoff;
use aip_runtime::grpc::{self, ChannelError, kill_client::KillClient};
use aip_runtime::kill::open_heartbeat;
use aip_runtime::trust::Trust;
use aip_runtime::{boottime, tls};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::beats::{Beats, interval};
use super::keeper::{Keeper, Taken};
use crate::proxy::Proxy;

/// First and last bound of the wait between attempts (full jitter below it): an order must reach whoever was away as
/// soon as that one is back.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A stream that lasted this long was a good one: the next attempt starts over with short waits.
const HEALTHY: Duration = Duration::from_secs(10);
/// How long an attempt may take until the stream is open: a stopped machine answers nothing, and no attempt may wait
/// for it while another way would be free.
const OPEN: Duration = Duration::from_secs(10);
/// Messages that may wait to be sent: a hello, a beat, and an acknowledgement.
const OUTGOING: usize = 8;
/// Largest message that is taken: a set, and what is around it.
const MAX_MESSAGE: usize = 2 * aip_api::kill::MAX_KILL_SET_BYTES;

/// What the stream needs.
pub struct Client {
    /// Where the control plane listens.
    pub control_plane: SocketAddr,
    /// What is trusted.
    pub trust: Trust,
    /// This process: as its `Config` stream says it.
    pub instance: String,
    /// What is enforced on.
    pub proxy: Arc<Proxy>,
    /// Its sender is dropped when the process has drained.
    pub drained: watch::Receiver<Option<SocketAddr>>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("no connection to the control plane: {0}")]
    Connect(#[from] ChannelError),
    #[error("the control plane ended the stream ({}): {}", grpc::reason(.0).unwrap_or("no reason given"), .0.message())]
    Status(#[from] tonic::Status),
    #[error("the control plane ended the stream")]
    Closed,
    #[error("the control plane does not open the stream")]
    Silent,
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// What one loop carries from stream to stream.
struct Session {
    client: Client,
    keeper: Keeper,
    beats: Beats,
    /// The beat that was granted the lease by which this process goes; 0: none yet.
    granted: u64,
}

/// Keeps the stream up and the orders enforced, until the process has drained.
pub async fn run(client: Client, keeper: Keeper) {
    keeper.look_again(&client.proxy).await;
    let beats = Beats::new(client.instance.clone());
    let mut session = Session {
        client,
        keeper,
        beats,
        granted: 0,
    };
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut world = session.client.proxy.mesh.subscribe();
    loop {
        // Who has nothing to show need not knock.
        let svid = session.client.proxy.svid.clone();
        session.wait(svid.held(), &mut world).await;
        let began = tokio::time::Instant::now();
        let end = session.stream(&mut world).await;
        metrics::gauge!("aip_kill_stream_connected").set(0.0);
        if session.is_drained() {
            return;
        }
        if let Err(error) = end {
            tracing::warn!(%error, "the kill stream ended; the orders that are held go on");
        }
        if began.elapsed() > HEALTHY {
            backoff.reset();
        }
        session.wait(tokio::time::sleep(backoff.next()), &mut world).await;
    }
}

impl Session {
    fn is_drained(&self) -> bool {
        self.client.drained.has_changed().is_err()
    }

    async fn wait(&mut self, until: impl Future<Output = ()>, world: &mut watch::Receiver<u64>) {
        tokio::pin!(until);
        let mut drained = self.client.drained.clone();
        loop {
            tokio::select! {
                () = &mut until => return,
                () = changed(&self.keeper, world) => { self.keeper.look_again(&self.client.proxy).await; }
                gone = drained.changed() => if gone.is_err() { return },
            }
        }
    }

    async fn stream(&mut self, world: &mut watch::Receiver<u64>) -> Result<(), StreamEnd> {
        let (send, outgoing) = mpsc::channel(OUTGOING);
        let hello = wire::KillHello {
            instance: self.client.instance.clone(),
            held: self.keeper.held().map(|held| held.signed.clone()),
            unwritten: self.keeper.unwritten().map(|held| held.signed.clone()),
        };
        say(&send, Message::Hello(hello)).await?;
        self.beat(&send).await?;
        let mut answers = {
            let opening = tokio::time::timeout(OPEN, open(&self.client, outgoing));
            tokio::pin!(opening);
            loop {
                tokio::select! {
                    opened = &mut opening => break opened.map_err(|_| StreamEnd::Silent)??,
                    () = changed(&self.keeper, world) => { self.keeper.look_again(&self.client.proxy).await; }
                }
            }
        };
        metrics::gauge!("aip_kill_stream_connected").set(1.0);
        tracing::info!(control_plane = %self.client.control_plane, "kill stream up");
        let mut drained = self.client.drained.clone();
        let mut next = tokio::time::Instant::now() + interval(self.keeper.granted());
        loop {
            tokio::select! {
                answer = answers.message() => match answer?.map(|answer| answer.message) {
                    Some(Some(Answer::KillSet(set))) => {
                        let ack = self.keeper.take(&self.client.proxy, set).await;
                        say(&send, Message::Ack(ack)).await?;
                        // The lease counts for the new set from its own beat on.
                        self.beat(&send).await?;
                    }
                    Some(Some(Answer::Heartbeat(heartbeat))) => {
                        if self.heard(&heartbeat).await == Taken::Changed {
                            // The control plane goes by the longer of both leases until it hears of it.
                            self.beat(&send).await?;
                        }
                    }
                    // A message of a later version.
                    Some(None) => {}
                    None => return Err(StreamEnd::Closed),
                },
                () = tokio::time::sleep_until(next) => {
                    if let Some(ack) = self.keeper.retry(&self.client.proxy).await {
                        say(&send, Message::Ack(ack)).await?;
                    }
                    self.beat(&send).await?;
                    next = tokio::time::Instant::now() + interval(self.keeper.granted());
                }
                () = changed(&self.keeper, world) => { self.keeper.look_again(&self.client.proxy).await; }
                gone = drained.changed() => if gone.is_err() { break },
            }
        }
        // The process has drained: a stream that is closed, and not cut, says so.
        drop(send);
        while answers.message().await?.is_some() {}
        Ok(())
    }

    async fn heard(&mut self, signed: &wire::SignedHeartbeat) -> Taken {
        let trust = self.client.trust.load_full();
        let heartbeat = match open_heartbeat(&trust, signed) {
            Ok(heartbeat) => heartbeat,
            Err(error) => return ignored(error.reason(), &error),
        };
        let held = self.keeper.held().map(|held| held.set.version());
        let sent = match self.beats.answered(&heartbeat, held) {
            Ok(sent) => sent,
            Err(void) => return ignored(void.reason(), &void),
        };
        let taken = self.keeper.grant(heartbeat.lease, signed, sent).await;
        if taken != Taken::Not {
            self.granted = heartbeat.sequence;
        }
        taken
    }

    async fn beat(&mut self, send: &mpsc::Sender<wire::KillRequest>) -> Result<(), StreamEnd> {
        let (sequence, granted) = (self.beats.ask(boottime()), self.granted);
        say(send, Message::Beat(wire::Beat { sequence, granted })).await
    }
}

/// Resolves when what is open must be looked at again, also without a stream.
async fn changed(keeper: &Keeper, world: &mut watch::Receiver<u64>) {
    let lease = keeper.gate.lease();
    let was_lost = lease.is_lost();
    tokio::select! {
        // Labels may have changed, and with them whom an order means.
        _ = world.changed() => {}
        () = lease.lost(), if !was_lost => {
            tracing::error!("the lease is lost: everything is refused until the control plane is heard of again");
        }
    }
}

fn ignored(reason: &'static str, error: &dyn std::fmt::Display) -> Taken {
    metrics::counter!("aip_kill_heartbeats_ignored_total", "reason" => reason).increment(1);
    tracing::warn!(reason, %error, "a heartbeat grants nothing");
    Taken::Not
}

async fn open(
    client: &Client,
    outgoing: mpsc::Receiver<wire::KillRequest>,
) -> Result<tonic::Streaming<wire::KillResponse>, StreamEnd> {
    let tls = tls::control_plane_client(Some(client.proxy.svid.slot()), &client.trust)?;
    let channel = grpc::channel(client.control_plane, tls).await?;
    let mut stub = KillClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    Ok(stub.stream(ReceiverStream::new(outgoing)).await?.into_inner())
}

async fn say(send: &mpsc::Sender<wire::KillRequest>, message: Message) -> Result<(), StreamEnd> {
    let request = wire::KillRequest { message: Some(message) };
    send.send(request).await.map_err(|_| StreamEnd::Closed)
}

#[cfg(test)]
mod tests;
