//! From a change to the last sidecar's ACK.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};

use crate::Globals;
use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::output::{self, cell};

/// Beyond the wait that was asked for: the answer's way back.
const MARGIN: Duration = Duration::from_secs(5);

/// Longest wait that the control plane grants at once.
const LONGEST_POLL: Duration = Duration::from_secs(50);

/// What became of a change.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Done, in this revision.
    Done(u64),
    /// Waits for a second person.
    Proposed(String),
}

impl Outcome {
    pub(crate) fn of(answer: &Value, what: &str) -> Result<Self, Failure> {
        match (answer["revision"].as_u64(), answer["proposal"].as_str()) {
            (_, Some(id)) => Ok(Self::Proposed(id.to_owned())),
            (Some(revision), None) => Ok(Self::Done(revision)),
            (None, None) => Err(Failure::new(Exit::Failed, what).why(format!("unexpected answer: {answer}"))),
        }
    }

    pub(crate) fn sentence(&self, done: &str) -> String {
        match self {
            Self::Done(_) => done.to_owned(),
            Self::Proposed(id) => {
                format!("proposed: a second person must approve it with `aip approvals approve {id}`")
            }
        }
    }
}

/// Who has taken a revision.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    pub(crate) acked: Vec<String>,
    pub(crate) nacked: Vec<String>,
    pub(crate) missing: Vec<String>,
    /// From the transaction to the last ACK, as the control plane saw it.
    pub(crate) last_ms: Option<f64>,
}

impl Acks {
    pub(crate) fn read(answer: &Value) -> Self {
        let list = |key: &str| -> Vec<String> { answer[key].as_array().into_iter().flatten().map(cell).collect() };
        Self {
            acked: list("acked"),
            nacked: list("nacked"),
            missing: list("missing"),
            last_ms: answer["ms"].as_f64(),
        }
    }
}

/// Waits until every sidecar that a revision concerns has answered it.
pub(crate) async fn acks(admin: &Admin, revision: u64, wait: Duration) -> Result<Value, Failure> {
    let what = format!("who has acknowledged revision {revision} can't be read");
    let started = Instant::now();
    loop {
        let left = wait.saturating_sub(started.elapsed()).min(LONGEST_POLL);
        let path = format!("/v1/revisions/{revision}/acks?wait_ms={}", left.as_millis());
        let answer = admin
            .send_within(left + MARGIN, Method::GET, &path, None, &what)
            .await?;
        if Acks::read(&answer).missing.is_empty() || started.elapsed() >= wait {
            return Ok(answer);
        }
    }
}

/// Reports a change, and with `wait` the rollout.
pub(crate) async fn report(
    globals: &Globals,
    admin: &Admin,
    outcome: &Outcome,
    sentence: &str,
    started: Instant,
    wait: Option<u64>,
) -> anyhow::Result<ExitCode> {
    let revision = match outcome {
        Outcome::Done(revision) => *revision,
        Outcome::Proposed(id) if globals.json() => {
            output::json(&json!({ "proposal": id }));
            return Ok(ExitCode::SUCCESS);
        }
        Outcome::Proposed(_) => {
            output::line(outcome.sentence(sentence));
            return Ok(ExitCode::SUCCESS);
        }
    };
    let stored = started.elapsed();
    let Some(wait) = wait else {
        if globals.json() {
            output::json(&json!({ "revision": revision }));
        } else {
            output::line(format!("{sentence} (revision {revision})"));
        }
        return Ok(ExitCode::SUCCESS);
    };
    let answer = output::waiting(
        "waiting for the sidecars",
        acks(admin, revision, Duration::from_secs(wait)),
    )
    .await?;
    let (acks, total) = (Acks::read(&answer), started.elapsed());
    let millis = |d: Duration| (d.as_secs_f64() * 10_000.0).round() / 10.0;
    if globals.json() {
        output::json(&json!({
            "revision": revision, "stored_ms": millis(stored), "total_ms": millis(total), "acks": answer,
        }));
    } else {
        output::line(format!("{sentence} (revision {revision})"));
        output::line(format!("  checked and stored in {} ms", millis(stored)));
        let last = acks
            .last_ms
            .map(|ms| format!(", the last one {ms:.1} ms after it was stored"))
            .unwrap_or_default();
        let acked = output::counted(acks.acked.len() as u64, "sidecar");
        output::line(format!("  {acked} acknowledged it{last}"));
    }
    held_everywhere(revision, &acks)?;
    Ok(ExitCode::SUCCESS)
}

/// A failure that names who refused the revision or has not answered.
fn held_everywhere(revision: u64, acks: &Acks) -> Result<(), Failure> {
    if acks.nacked.is_empty() && acks.missing.is_empty() {
        return Ok(());
    }
    let exit = if acks.nacked.is_empty() {
        Exit::TimedOut
    } else {
        Exit::Failed
    };
    let mut failure = Failure::new(exit, format!("revision {revision} is stored, but not held everywhere"));
    for sidecar in &acks.nacked {
        failure = failure.why(format!("refused by {sidecar}"));
    }
    for sidecar in &acks.missing {
        failure = failure.why(format!("no answer from {sidecar}"));
    }
    Err(failure.next("`aip status` shows what each sidecar holds"))
}
