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
use super::shown::{As, Shown};
use crate::identity::revoked::{Revoked, Said, means_revoked};
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
    /// Where it is said that the control plane takes the SVID no more, and what was given up for that.
    pub revoked: Revoked,
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
    #[error("this sidecar has something else to show than when the stream was opened")]
    ShowsOther,
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// What one loop carries from stream to stream.
struct Session {
    client: Client,
    shown: Shown,
    keeper: Keeper,
    beats: Beats,
    /// The beat that was granted the lease by which this process goes; 0: none yet.
    granted: u64,
    /// The stream that was left for one of another kind, until that has taken its place.
    left: Option<NotEnded>,
}

/// A stream on which nothing more is said, and which is not ended: its end would say that the process has drained.
struct NotEnded {
    _sends: mpsc::Sender<wire::KillRequest>,
}

/// Keeps the stream up and the orders enforced, until the process has drained.
pub async fn run(client: Client, keeper: Keeper) {
    keeper.look_again(&client.proxy).await;
    let beats = Beats::new(client.instance.clone());
    let mut session = Session {
        shown: shown(&client),
        client,
        keeper,
        beats,
        granted: 0,
        left: None,
    };
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut world = session.client.proxy.mesh.subscribe();
    loop {
        // Who has nothing to show need not knock.
        let Some(opened) = session.any(&mut world).await else {
            return;
        };
        let began = tokio::time::Instant::now();
        let (serial, heard) = (session.shown.serial(), tls::Heard::default());
        let end = session.stream(opened, &heard, &mut world).await;
        metrics::gauge!("aip_kill_stream_connected").set(0.0);
        if session.is_drained() {
            return;
        }
        if let Err(error) = end {
            session.says_revoked(opened, serial, &error, &heard);
            tracing::warn!(%error, "the kill stream ended; the orders that are held go on");
        }
        if began.elapsed() > HEALTHY {
            backoff.reset();
        }
        session.wait(tokio::time::sleep(backoff.next()), &mut world).await;
    }
}

fn shown(client: &Client) -> Shown {
    let suspension = client.proxy.settings.suspension.clone();
    Shown::new(client.proxy.svid.clone(), client.revoked.clone(), suspension)
}

impl Session {
    fn is_drained(&self) -> bool {
        self.client.drained.has_changed().is_err()
    }

    async fn wait(&self, until: impl Future<Output = ()>, world: &mut watch::Receiver<u64>) {
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

    /// Says that the control plane takes this SVID no more, where that is why the stream ended: it is given up then, and
    /// the next stream is for orders alone.
    fn says_revoked(&self, opened: As, serial: Option<String>, error: &StreamEnd, heard: &tls::Heard) {
        let told = match error {
            StreamEnd::Status(status) => grpc::reason(status),
            _ => None,
        };
        let reason = heard.revocation().or(told).filter(|reason| means_revoked(reason));
        if let (As::Sidecar, Some(serial), Some(reason)) = (opened, serial, reason) {
            let reason = reason.to_owned();
            self.client.revoked.say(Said { serial, reason });
        }
    }

    /// Waits until there is something to show; `None`: the process has drained.
    async fn any(&self, world: &mut watch::Receiver<u64>) -> Option<As> {
        let mut opened = None;
        self.wait(async { opened = Some(self.shown.any().await) }, world).await;
        opened
    }

    async fn stream(
        &mut self,
        opened: As,
        heard: &tls::Heard,
        world: &mut watch::Receiver<u64>,
    ) -> Result<(), StreamEnd> {
        let (send, mut answers) = self.open(opened, heard, world).await?;
        metrics::gauge!("aip_kill_stream_connected").set(1.0);
        tracing::info!(control_plane = %self.client.control_plane, ?opened, "kill stream up");
        let mut drained = self.client.drained.clone();
        let mut next = tokio::time::Instant::now() + interval(self.keeper.granted());
        loop {
            tokio::select! {
                answer = answers.message() => match answer?.map(|answer| answer.message) {
                    Some(Some(Answer::KillSet(set))) => {
                        let ack = self.keeper.take(&self.client.proxy, set).await;
                        say(&send, Message::Ack(ack)).await?;
                        // The lease counts for the new set from its own beat on.
                        self.beat(opened, &send).await?;
                    }
                    Some(Some(Answer::Heartbeat(heartbeat))) => {
                        if self.heard(&heartbeat).await == Taken::Changed {
                            // The control plane goes by the longer of both leases until it hears of it.
                            self.beat(opened, &send).await?;
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
                    self.beat(opened, &send).await?;
                    next = tokio::time::Instant::now() + interval(self.keeper.granted());
                }
                () = changed(&self.keeper, world) => { self.keeper.look_again(&self.client.proxy).await; }
                () = self.shown.other_than(opened) => match opened {
                    // Let back in: with what it heard of orders by it is no more, and who has that is another process from now on.
                    As::OrdersOnly => break,
                    As::Sidecar => {
                        self.left = Some(NotEnded { _sends: send });
                        return Err(StreamEnd::ShowsOther);
                    }
                },
                gone = drained.changed() => if gone.is_err() { break },
            }
        }
        // It has drained: a stream that is closed, and not cut, says so.
        drop(send);
        let closed = async {
            while answers.message().await?.is_some() {}
            Ok(())
        };
        tokio::time::timeout(OPEN, closed).await.unwrap_or(Ok(()))
    }

    /// A stream that is up, with its hello and first beat said.
    async fn open(
        &mut self,
        opened: As,
        heard: &tls::Heard,
        world: &mut watch::Receiver<u64>,
    ) -> Result<(mpsc::Sender<wire::KillRequest>, tonic::Streaming<wire::KillResponse>), StreamEnd> {
        let (send, outgoing) = mpsc::channel(OUTGOING);
        let hello = wire::KillHello {
            instance: self.client.instance.clone(),
            held: self.keeper.held().map(|held| held.signed.clone()),
            unwritten: self.keeper.unwritten().map(|held| held.signed.clone()),
        };
        say(&send, Message::Hello(hello)).await?;
        self.beat(opened, &send).await?;
        let tls = self.shown.client(opened, &self.client.trust)?;
        let opening = tokio::time::timeout(OPEN, open(&self.client, tls, heard, outgoing));
        tokio::pin!(opening);
        loop {
            tokio::select! {
                answers = &mut opening => {
                    let answers = answers.map_err(|_| StreamEnd::Silent)??;
                    // Whose place it takes is ended by the control plane, and says nothing by that.
                    self.left = None;
                    return Ok((send, answers));
                }
                () = changed(&self.keeper, world) => { self.keeper.look_again(&self.client.proxy).await; }
            }
        }
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

    /// Asks for the lease, where there is one to be had.
    async fn beat(&mut self, opened: As, send: &mpsc::Sender<wire::KillRequest>) -> Result<(), StreamEnd> {
        if opened == As::OrdersOnly {
            return Ok(());
        }
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
    tls: Arc<tls::ClientConfig>,
    heard: &tls::Heard,
    outgoing: mpsc::Receiver<wire::KillRequest>,
) -> Result<tonic::Streaming<wire::KillResponse>, StreamEnd> {
    let channel = grpc::channel_hearing(client.control_plane, tls, heard).await?;
    let mut stub = KillClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    Ok(stub.stream(ReceiverStream::new(outgoing)).await?.into_inner())
}

async fn say(send: &mpsc::Sender<wire::KillRequest>, message: Message) -> Result<(), StreamEnd> {
    let request = wire::KillRequest { message: Some(message) };
    send.send(request).await.map_err(|_| StreamEnd::Closed)
}

#[cfg(test)]
mod tests;
