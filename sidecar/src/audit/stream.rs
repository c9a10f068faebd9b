//! The `Audit` stream: checkpoints go up at once, and segments follow, one chunk outstanding. What earlier lives of this
//! sidecar left goes up, too. What the control plane has is asked at each greeting.

pub(super) mod files;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aip_api::wire::{AuditHello, AuditRequest, AuditResponse, HeldLog};
use aip_api::wire::{audit_request, audit_response};
use aip_audit::log::Statements;
use aip_runtime::backoff::Backoff;
use aip_runtime::grpc::{self, ChannelError, audit_client::AuditClient};
use aip_runtime::svid::SvidSource;
use aip_runtime::tls::{self, TlsError};
use aip_runtime::trust::Trust;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::book::logs;
use super::{Audit, Shared};
use files::{Held, Next};

/// First and last bound of the wait between attempts, as of the configuration stream.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// A stream that lasted this long was a good one: the next attempt starts over with short waits.
const HEALTHY: Duration = Duration::from_secs(10);
/// How long the control plane may take to answer one message: it brings a chunk to its disk first.
const ANSWER: Duration = Duration::from_secs(30);
/// How long what was refused for now waits for the next stream.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Logs that one stream speaks of: as many as the control plane takes. Of those that are not all sent the oldest ones, and the
/// one that is being written; the others come when there is room.
const MAX_LOGS: usize = 64;

/// The control plane had records that it lacks now, and they are not here any more.
const GONE: &str = "records_gone";

/// A file of the log can't be read, or holds what can't be there.
const UNREADABLE: &str = "log_unreadable";

/// Refusals that trying again can't mend: what came contradicts what was signed.
const FOR_GOOD: [&str; 6] = [
    "log_of_another",
    "log_broken",
    "checkpoint_fork",
    "chain_broken",
    "root_mismatch",
    "log_truncated",
];

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

/// What the control plane has, by log.
#[derive(Debug, Clone, Default)]
pub(super) struct Sent {
    connected: bool,
    /// Something was refused that may be taken later, and why.
    asks_again: Option<String>,
    logs: BTreeMap<String, Held>,
}

impl Sent {
    /// The segment from which on the control plane does not have this log, by its word on the stream of now: what it had
    /// before, it may have lost since.
    pub(super) fn segment_of(&self, dir: &Path) -> u64 {
        if !self.connected {
            return 0;
        }
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.logs.get(name).map_or(0, |held| held.segment)
    }

    /// Whether the control plane said, on the stream of now, that it has all of a log.
    pub(super) fn has_all(&self, log: &str) -> bool {
        self.connected && self.logs.get(log).is_some_and(|held| held.has_all)
    }

    /// Logs beside these of which the control plane was asked, and of which it did not say that it has all.
    fn again(&self, beside: &[(String, PathBuf)], root: &Path) -> Vec<(String, PathBuf)> {
        let greeted = self
            .logs
            .iter()
            .filter(|(_, held)| !held.has_all && held.refused.is_none());
        let others = greeted.filter(|(log, _)| !beside.iter().any(|(known, _)| known == *log));
        others.map(|(log, _)| (log.clone(), root.join(log))).collect()
    }

    #[cfg(test)]
    pub(super) fn says_it_has_all(&mut self, log: &str) {
        self.connected = true;
        self.logs.entry(log.to_owned()).or_default().has_all = true;
    }

    /// A log is gone.
    pub(super) fn forget(&mut self, log: &str) {
        self.logs.remove(log);
    }

    pub(super) fn page(&self) -> Value {
        let logs: serde_json::Map<_, _> = self.logs.iter().map(|(log, held)| (log.clone(), held.page())).collect();
        json!({ "connected": self.connected, "logs": logs })
    }
}

#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("no connection to the control plane: {0}")]
    Connect(#[from] ChannelError),
    #[error("the control plane ended the stream ({}): {}", grpc::reason(.0).unwrap_or("no reason given"), .0.message())]
    Status(#[from] tonic::Status),
    #[error("the control plane ended the stream, or did not answer")]
    Closed,
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

/// One stream, up to the end of the process or of the stream.
struct Session {
    shared: Arc<Shared>,
    send: mpsc::Sender<AuditRequest>,
    answers: Streaming<AuditResponse>,
    /// Where each log's checkpoints are read.
    statements: HashMap<String, Statements>,
}

/// Runs what reads files: not in a thread that requests wait for.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StreamEnd> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|failed| StreamEnd::Log(std::io::Error::other(failed)))
}

async fn stream(client: &Client, shared: &Arc<Shared>) -> Result<(), StreamEnd> {
    let tls = tls::control_plane_client(Some(client.svid.slot()), &client.trust)?;
    let channel = grpc::channel(client.control_plane, tls).await?;
    let (send, outgoing) = mpsc::channel(1);
    let ours = shared.clone();
    let logs: Vec<HeldLog> = blocking(move || {
        let all = found(&ours, Wanted::All);
        all.iter().filter_map(|(log, dir)| held(&ours, log, dir)).collect()
    })
    .await?;
    let greeted: Vec<String> = logs.iter().map(|held| held.log.clone()).collect();
    let instance = client.instance.clone();
    let hello = AuditHello { instance, logs };
    say(&send, audit_request::Message::Hello(hello)).await?;
    let mut stub = AuditClient::new(channel).max_decoding_message_size(grpc::MAX_MESSAGE_BYTES);
    let answers = stub.stream(ReceiverStream::new(outgoing)).await?.into_inner();
    let mut session = Session {
        shared: shared.clone(),
        send,
        answers,
        statements: HashMap::new(),
    };
    {
        let mut sent = shared.sent();
        sent.asks_again = None;
        // What it had before it was restored, it may not have now.
        sent.logs.retain(|log, _| greeted.contains(log));
        sent.logs.values_mut().for_each(|held| held.has_all = false);
    }
    for _ in &greeted {
        session.answer(None).await?;
    }
    shared.sent().connected = true;
    let began = tokio::time::Instant::now();
    let (mut kept, mut closing) = (shared.kept.subscribe(), client.closing.clone());
    loop {
        kept.borrow_and_update();
        let closed = *closing.borrow_and_update();
        session.send_all().await?;
        if closed {
            break;
        }
        let refused = shared.sent().asks_again.clone();
        tokio::select! {
            () = tokio::time::sleep_until(began + ASK_AGAIN), if refused.is_some() => {
                return Err(StreamEnd::Refused(refused.unwrap_or_default()));
            }
            _ = kept.changed() => {}
            _ = closing.changed() => {}
            // Nothing was asked: what comes is the end.
            ended = session.answers.message() => {
                ended?;
                return Err(StreamEnd::Closed);
            }
        }
    }
    // Closed, and not cut: the control plane has all of it.
    drop(session.send);
    while session.answers.message().await?.is_some() {}
    Ok(())
}

/// Which logs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Those of which the control plane does not have everything.
    Unsent,
    /// And those that it had: it may have been restored since, and a quota takes none that it does not say it has.
    All,
}

/// The logs of this sidecar, at most as many as a stream speaks of; the live one last.
fn found(shared: &Shared, wanted: Wanted) -> Vec<(String, PathBuf)> {
    let (root, live) = {
        let book = shared.book();
        (book.root().to_owned(), book.dir().map(ToOwned::to_owned))
    };
    let (mut all, mut last) = (logs(&root), None);
    if let Some(live) = live {
        all.retain(|dir| *dir != live);
        last = Some(live);
    }
    let name = |dir: PathBuf| Some((dir.file_name()?.to_str()?.to_owned(), dir));
    let (done, mut unsent): (Vec<_>, Vec<_>) = all.into_iter().partition(|dir| files::is_done(dir));
    if wanted == Wanted::All {
        // The oldest of them are the next that a quota asks for.
        unsent.extend(done);
    }
    let unsent = unsent.into_iter().take(MAX_LOGS - 1);
    unsent.chain(last).filter_map(name).collect()
}

/// What is said of a log: nothing where its checkpoints can't be read, since it would be taken for one that was cut.
fn held(shared: &Shared, log: &str, dir: &Path) -> Option<HeldLog> {
    let live = {
        let book = shared.book();
        (book.dir() == Some(dir)).then(|| book.size())
    };
    let size = live.or_else(|| files::signed(dir));
    if size.is_none() {
        tracing::error!(
            log,
            reason = UNREADABLE,
            "this audit log's checkpoints can't be read: it stays here"
        );
        shared.metrics.refused(UNREADABLE);
    }
    Some(HeldLog {
        log: log.to_owned(),
        size: size?,
    })
}

impl Session {
    /// Sends what is there of all logs: checkpoints first, and a log after the other.
    async fn send_all(&mut self) -> Result<(), StreamEnd> {
        let shared = self.shared.clone();
        let mut all = blocking(move || found(&shared, Wanted::Unsent)).await?;
        // One that was done and that the control plane does not have any more.
        let root = self.shared.book().root().to_owned();
        let greeted = self.shared.sent().again(&all, &root);
        all.splice(..0, greeted);
        let mut unsent = 0;
        for (log, dir) in all {
            while let Some((message, next)) = self.next(&log, &dir).await? {
                say(&self.send, message).await?;
                self.answer(Some((&log, next))).await?;
            }
            let held = self.shared.sent().logs.get(&log).cloned();
            unsent += blocking(move || files::unsent(&dir, held.as_ref())).await?;
        }
        self.shared.metrics.unsent(unsent);
        Ok(())
    }

    async fn next(&mut self, log: &str, dir: &Path) -> Result<Option<(audit_request::Message, Next)>, StreamEnd> {
        let mut statements = self.statements.remove(log);
        let (shared, name, dir) = (self.shared.clone(), log.to_owned(), dir.to_owned());
        let (next, statements) = blocking(move || {
            let next = next(&shared, &name, &dir, &mut statements);
            (next, statements)
        })
        .await?;
        match next {
            Ok(next) => {
                self.statements
                    .extend(statements.map(|statements| (log.to_owned(), statements)));
                Ok(next)
            }
            Err(error) => {
                // The others go on.
                tracing::error!(log, reason = UNREADABLE, %error, "this audit log can't be read: it stays here");
                self.shared.metrics.refused(UNREADABLE);
                let mut sent = self.shared.sent();
                sent.logs.entry(log.to_owned()).or_default().refused = Some(UNREADABLE.to_owned());
                sent.asks_again = Some(UNREADABLE.to_owned());
                Ok(None)
            }
        }
    }

    /// Waits for an answer and notes it: to what was sent last, or to the greeting.
    async fn answer(&mut self, asked: Option<(&str, Next)>) -> Result<(), StreamEnd> {
        let answer = tokio::time::timeout(ANSWER, self.answers.message()).await;
        let answer = answer.map_err(|_| StreamEnd::Closed)??.ok_or(StreamEnd::Closed)?;
        let root = self.shared.book().root().to_owned();
        let mut sent = self.shared.sent();
        match answer.message.ok_or(StreamEnd::Closed)? {
            audit_response::Message::Resume(resume) => {
                let held = sent.logs.entry(resume.log.clone()).or_default();
                if asked.is_none() {
                    held.greet(&root.join(&resume.log), resume.segment, resume.offset);
                } else if !held.resume(resume.segment, resume.offset) {
                    // It would be sent the same for ever.
                    return Err(StreamEnd::Closed);
                }
            }
            audit_response::Message::Checkpoint(taken) => {
                let Some((log, Next::Checkpoint(at))) = asked.filter(|(log, _)| *log == taken.log) else {
                    return Err(StreamEnd::Closed);
                };
                let held = sent.logs.entry(log.to_owned()).or_default();
                held.taken(&root.join(log), at, taken.size);
            }
            audit_response::Message::Refused(refused) => {
                let (log, reason, detail) = (&refused.log, &refused.reason, &refused.detail);
                self.shared.metrics.refused(reason);
                let log = asked.map_or(log.as_str(), |(log, _)| log);
                if FOR_GOOD.contains(&reason.as_str()) {
                    tracing::error!(
                        log,
                        reason,
                        detail,
                        "the control plane does not take this audit log any more"
                    );
                    let held = sent.logs.entry(log.to_owned()).or_default();
                    held.refused = Some(refused.reason);
                    // It had all of it, and its own retention took it: a quota may take it here, too.
                    held.has_all = files::is_done(&root.join(log));
                } else if let (Some((_, Next::Chunk)), "checkpoint_missing") = (asked, reason.as_str())
                    && sent.logs.entry(log.to_owned()).or_default().retell()
                {
                    tracing::info!(
                        log,
                        detail,
                        "the control plane lacks audit checkpoints that it had: they are told again"
                    );
                } else if let (Some((_, Next::Checkpoint(at))), true) = (asked, reason.starts_with("checkpoint_")) {
                    // The next one covers what this one did.
                    tracing::warn!(
                        log,
                        reason,
                        detail,
                        "the control plane does not believe an audit checkpoint"
                    );
                    sent.logs.entry(log.to_owned()).or_default().skip(at);
                    drop(sent);
                    self.shared.book().sign_again();
                } else {
                    tracing::warn!(
                        log,
                        reason,
                        detail,
                        "the control plane does not take this audit log now"
                    );
                    sent.logs.entry(log.to_owned()).or_default().refused = Some(refused.reason.clone());
                    sent.asks_again = Some(refused.reason);
                }
            }
        }
        Ok(())
    }
}

/// What is to be sent next of a log.
fn next(
    shared: &Shared,
    log: &str,
    dir: &Path,
    statements: &mut Option<Statements>,
) -> std::io::Result<Option<(audit_request::Message, Next)>> {
    let live = {
        let book = shared.book();
        (book.dir() == Some(dir)).then(|| book.covers())
    };
    let mut held = shared.sent().logs.entry(log.to_owned()).or_default().clone();
    if held.refused.is_some() {
        return Ok(None);
    }
    let covers = match live {
        Some(covers) => covers,
        None => held.covered(dir),
    };
    let next = held.next(log, dir, covers, statements)?;
    if next.is_none() && held.lacks_what_is_gone(dir) {
        tracing::error!(
            log,
            segment = held.segment,
            "the control plane lacks records that a quota took here: this log can't be continued there"
        );
        shared.metrics.refused(GONE);
        held.refused = Some(GONE.to_owned());
    } else if next.is_none() && live.is_none() {
        held.done(dir);
    }
    shared.sent().logs.insert(log.to_owned(), held);
    Ok(next)
}

async fn say(send: &mpsc::Sender<AuditRequest>, message: audit_request::Message) -> Result<(), StreamEnd> {
    let request = AuditRequest { message: Some(message) };
    send.send(request).await.map_err(|_| StreamEnd::Closed)
}
