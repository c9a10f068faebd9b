//! What is said on one stream: checkpoints first, then chunks, each answered before the next one goes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aip_api::wire::{AuditHello, AuditRefused, AuditRequest, AuditResponse, HeldLog};
use aip_api::wire::{audit_request, audit_response};
use aip_audit::log::Statements;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::StreamEnd;
use super::files::{self, Next};
use crate::audit::Shared;
use crate::audit::book::logs;

/// How long the control plane may take to answer one message: it brings a chunk to its disk first.
const ANSWER: Duration = Duration::from_secs(30);
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

/// Refusals that trying again may mend.
const FOR_NOW: [&str; 9] = [
    "checkpoint_invalid",
    "checkpoint_time",
    "checkpoint_behind",
    "checkpoint_missing",
    "audit_quota",
    "audit_log_limit",
    "audit_copy_failed",
    "store_failed",
    "store_full",
];
/// How all others are counted: what they say is the control plane's choice, and would be kept for good.
const OTHER: &str = "other";
/// Characters of a reason and of a detail that are kept and written.
const MAX_REASON: usize = 64;
const MAX_DETAIL: usize = 512;

/// As it is counted.
fn counted(reason: &str) -> &'static str {
    let mut known = FOR_GOOD.into_iter().chain(FOR_NOW);
    known.find(|known| *known == reason).unwrap_or(OTHER)
}

/// Of which log an answer is.
fn log_of(answer: &audit_response::Message) -> &str {
    match answer {
        audit_response::Message::Resume(resume) => &resume.log,
        audit_response::Message::Checkpoint(taken) => &taken.log,
        audit_response::Message::Refused(refused) => &refused.log,
    }
}

/// One stream, up to the end of the process or of the stream.
pub(super) struct Session {
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
    let size = live.or_else(|| files::signed(dir).ok());
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

/// What is said first: the logs that are here.
pub(super) async fn hello(shared: &Arc<Shared>, instance: &str) -> Result<AuditHello, StreamEnd> {
    let ours = shared.clone();
    let logs: Vec<HeldLog> = blocking(move || {
        let all = found(&ours, Wanted::All);
        all.iter().filter_map(|(log, dir)| held(&ours, log, dir)).collect()
    })
    .await?;
    let instance = instance.to_owned();
    Ok(AuditHello { instance, logs })
}

impl Session {
    /// A stream on which these logs were greeted with; the control plane says of each what it has.
    pub(super) async fn greeted(
        shared: &Arc<Shared>,
        send: mpsc::Sender<AuditRequest>,
        answers: Streaming<AuditResponse>,
        logs: &[String],
    ) -> Result<Self, StreamEnd> {
        let mut session = Self {
            shared: shared.clone(),
            send,
            answers,
            statements: HashMap::new(),
        };
        {
            let mut sent = shared.sent();
            sent.asks_again = None;
            // What it had before it was restored, it may not have now.
            sent.logs.retain(|log, _| logs.contains(log));
            sent.logs.values_mut().for_each(|held| held.has_all = false);
        }
        // Each once, and no other: its name would be a path here.
        let mut awaited: HashSet<&str> = logs.iter().map(String::as_str).collect();
        while !awaited.is_empty() {
            let answer = session.heard().await?;
            if !awaited.remove(log_of(&answer)) {
                return Err(StreamEnd::OtherLog);
            }
            session.note(None, answer)?;
        }
        shared.sent().connected = true;
        Ok(session)
    }

    /// Nothing was asked: what comes is the end.
    pub(super) async fn ended(&mut self) -> StreamEnd {
        match self.answers.message().await {
            Ok(_) => StreamEnd::Closed,
            Err(status) => status.into(),
        }
    }

    /// Closed, and not cut: the control plane has all of it.
    pub(super) async fn close(mut self) -> Result<(), StreamEnd> {
        drop(self.send);
        while self.answers.message().await?.is_some() {}
        Ok(())
    }

    /// Sends what is there of all logs: checkpoints first, and a log after the other.
    pub(super) async fn send_all(&mut self) -> Result<(), StreamEnd> {
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
                let answer = self.heard().await?;
                self.note(Some((&log, next)), answer)?;
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

    /// The next answer.
    async fn heard(&mut self) -> Result<audit_response::Message, StreamEnd> {
        let answer = tokio::time::timeout(ANSWER, self.answers.message()).await;
        let answer = answer.map_err(|_| StreamEnd::Closed)??.ok_or(StreamEnd::Closed)?;
        answer.message.ok_or(StreamEnd::Closed)
    }

    /// Notes an answer: to what was sent last, or to the greeting, of a log that was greeted with.
    fn note(&self, asked: Option<(&str, Next)>, answer: audit_response::Message) -> Result<(), StreamEnd> {
        let root = self.shared.book().root().to_owned();
        let mut sent = self.shared.sent();
        match answer {
            audit_response::Message::Resume(resume) if asked.is_some_and(|(log, _)| log != resume.log) => {
                return Err(StreamEnd::OtherLog);
            }
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
                drop(sent);
                self.refused(asked, refused, &root);
            }
        }
        Ok(())
    }

    /// What becomes of a log of which something was refused.
    fn refused(&self, asked: Option<(&str, Next)>, refused: AuditRefused, root: &Path) {
        let clip = |text: String, most| text.chars().take(most).collect::<String>();
        let (reason, detail) = (clip(refused.reason, MAX_REASON), clip(refused.detail, MAX_DETAIL));
        self.shared.metrics.refused(counted(&reason));
        let log = asked.map_or(refused.log.as_str(), |(log, _)| log);
        let mut sent = self.shared.sent();
        let held = sent.logs.entry(log.to_owned()).or_default();
        if FOR_GOOD.contains(&reason.as_str()) {
            tracing::error!(
                log,
                reason,
                detail,
                "the control plane does not take this audit log any more"
            );
            held.refused = Some(reason);
            // It had all of it, and its own retention took it: a quota may take it here, too.
            held.has_all = files::is_done(&root.join(log));
        } else if let (Some((_, Next::Chunk)), "checkpoint_missing") = (asked, reason.as_str())
            && held.retell()
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
            held.skip(at);
            drop(sent);
            self.shared.book().sign_again();
        } else {
            tracing::warn!(
                log,
                reason,
                detail,
                "the control plane does not take this audit log now"
            );
            held.refused = Some(reason.clone());
            sent.asks_again = Some(reason);
        }
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
        if book.is_left(dir) {
            return Ok(None);
        }
        (book.dir() == Some(dir)).then(|| book.covers())
    };
    let mut held = shared.sent().logs.entry(log.to_owned()).or_default().clone();
    if held.refused.is_some() {
        return Ok(None);
    }
    let covers = match live {
        Some(covers) => covers,
        None => held.covered(dir).map_err(std::io::Error::other)?,
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

pub(super) async fn say(send: &mpsc::Sender<AuditRequest>, message: audit_request::Message) -> Result<(), StreamEnd> {
    let request = AuditRequest { message: Some(message) };
    send.send(request).await.map_err(|_| StreamEnd::Closed)
}
