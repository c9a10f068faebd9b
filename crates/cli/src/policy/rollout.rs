//! From a change to the last sidecar's ACK.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
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
}

/// What is said of a change that waits.
pub(crate) fn proposed(id: &str) -> String {
    format!("proposed: a second person must approve it with `aip approvals approve {id}`")
}

/// Who has taken a revision.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    pub(crate) acked: Vec<String>,
    pub(crate) nacked: Vec<String>,
    pub(crate) missing: Vec<String>,
    /// Those whose stream broke off, with the time until which they may serve. Who is not among the missing is not waited for.
    pub(crate) vanished: Vec<(String, u64)>,
    /// Those of agents that drifted, which suspended themselves. Nobody waits for them.
    pub(crate) drifted: Vec<String>,
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
            vanished: answer["vanished"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(vanished)
                .collect(),
            drifted: list("drifted"),
            last_ms: answer["ms"].as_f64(),
        }
    }

    /// How many of all hold it.
    fn held(&self) -> String {
        let all = self.acked.len() + self.nacked.len() + self.missing.len();
        format!(
            "held by {} of {}",
            self.acked.len(),
            output::counted(all as u64, "sidecar")
        )
    }

    /// What is said once nobody is missing.
    fn sentence(&self) -> String {
        let mut said = match self.acked.is_empty() {
            true => "no sidecar is connected: each takes it as it joins".to_owned(),
            false => {
                let last = self.last_ms.map(|ms| format!(" after {ms:.1} ms")).unwrap_or_default();
                format!("in force: {}{last}", self.held())
            }
        };
        for line in self.apart() {
            said += "\n  not waited for: ";
            said += &line;
        }
        said
    }

    /// Those who do not hold it and for whom nobody waits, a line each.
    fn apart(&self) -> Vec<String> {
        let gone = self.vanished.iter().filter(|(name, _)| !self.missing.contains(name));
        let gone = gone.map(|(name, until)| {
            let until = output::timestamp(*until);
            format!("{name}, which vanished: it may serve with what it holds until {until}")
        });
        let drifted = self.drifted.iter();
        let drifted = drifted
            .map(|name| format!("{name}, whose agent drifted: it has suspended itself, and its SVID is revoked"));
        gone.chain(drifted).collect()
    }
}

fn vanished(entry: &Value) -> Option<(String, u64)> {
    Some((entry["sidecar"].as_str()?.to_owned(), entry["not_after"].as_u64()?))
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

/// How long a rollout is waited for where nothing is said: a hundred times what it takes where every sidecar is there.
const WAIT_SECONDS: u64 = 10;

/// Whether, and how long, a change waits for the sidecars.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Wait until every sidecar that it concerns holds it, at most this long [default: 10; 30 where no number is given]
    #[arg(long = "wait", value_name = "SECONDS", num_args = 0..=1, default_missing_value = "30", conflicts_with = "no_wait")]
    seconds: Option<u64>,
    /// End once it is stored; sidecars take it meanwhile
    #[arg(long)]
    no_wait: bool,
}

impl Wait {
    fn most(&self) -> Option<Duration> {
        let seconds = self.seconds.unwrap_or(WAIT_SECONDS);
        (!self.no_wait).then(|| Duration::from_secs(seconds))
    }
}

/// Reports a change that is stored, and then who holds it. `what` reads as in `policy p is stored`.
pub(crate) async fn report(
    globals: &Globals,
    admin: &Admin,
    outcome: &Outcome,
    what: &str,
    started: Instant,
    wait: &Wait,
) -> anyhow::Result<ExitCode> {
    let revision = match outcome {
        Outcome::Done(revision) => *revision,
        Outcome::Proposed(id) if globals.json() => {
            output::json(&json!({ "proposal": id }));
            return Ok(Exit::Proposed.into());
        }
        Outcome::Proposed(id) => {
            output::line(proposed(id));
            return Ok(Exit::Proposed.into());
        }
    };
    let stored = started.elapsed();
    if !globals.json() {
        output::line(format!("{what} as revision {revision}"));
    }
    let Some(wait) = wait.most() else {
        if globals.json() {
            output::json(&json!({ "revision": revision }));
        }
        return Ok(ExitCode::SUCCESS);
    };
    let answer = output::waiting("waiting for the sidecars", acks(admin, revision, wait)).await?;
    let (acks, total) = (Acks::read(&answer), started.elapsed());
    let millis = |d: Duration| (d.as_secs_f64() * 10_000.0).round() / 10.0;
    if globals.json() {
        output::json(&json!({
            "revision": revision, "stored_ms": millis(stored), "total_ms": millis(total), "acks": answer,
        }));
    }
    held_everywhere(revision, &acks)?;
    if !globals.json() {
        output::line(acks.sentence());
    }
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
    let what = format!(
        "revision {revision} is stored, but not in force everywhere: {}",
        acks.held()
    );
    let mut failure = Failure::new(exit, what);
    for sidecar in &acks.nacked {
        failure = failure.why(format!("refused by {sidecar}"));
    }
    for sidecar in &acks.missing {
        let vanished = acks.vanished.iter().find(|(name, _)| name == sidecar);
        failure = failure.why(match vanished {
            Some((_, until)) => format!(
                "no answer from {sidecar}, which vanished: it may serve with what it holds until {}",
                output::timestamp(*until)
            ),
            None => format!("no answer from {sidecar}"),
        });
    }
    for line in acks.apart() {
        failure = failure.why(format!("not waited for: {line}"));
    }
    Err(failure.next("it arrives as soon as they can be reached; `aip status` shows what each sidecar holds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(acked: usize, missing: &[&str]) -> Acks {
        let acked: Vec<String> = (0..acked).map(|i| format!("a/{i}")).collect();
        let vanished: Vec<_> = missing.iter().filter(|name| **name == "gone/1").collect();
        let vanished: Vec<_> = vanished
            .iter()
            .map(|name| json!({"sidecar": name, "not_after": 60}))
            .collect();
        Acks::read(&json!({"acked": acked, "missing": missing, "vanished": vanished, "ms": 12.34}))
    }

    #[test]
    fn who_can_not_answer_is_named_and_fails_nothing() {
        let acks = Acks::read(&json!({
            "acked": ["a/1"], "missing": [], "vanished": [{"sidecar": "gone/1", "not_after": 60}], "drifted": ["d/1"],
        }));
        assert!(held_everywhere(7, &acks).is_ok());
        let said = acks.sentence();
        for part in [
            "held by 1 of 1 sidecar",
            "gone/1, which vanished: it may serve with what it holds until 1970-01-01T00:01:00Z",
            "d/1, whose agent drifted",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn in_force_is_said_only_where_every_sidecar_holds_it() {
        assert_eq!(
            answer(3, &[]).sentence(),
            "in force: held by 3 of 3 sidecars after 12.3 ms"
        );
        assert!(held_everywhere(7, &answer(3, &[])).is_ok());
        assert_eq!(
            answer(0, &[]).sentence(),
            "no sidecar is connected: each takes it as it joins"
        );
        let late = held_everywhere(7, &answer(2, &["b/1", "gone/1"])).unwrap_err();
        assert_eq!(late.exit, Exit::TimedOut);
        let said = late.to_string();
        for part in [
            "held by 2 of 4 sidecars",
            "no answer from b/1\n",
            "gone/1, which vanished",
            "until 1970-01-01T00:01:00Z",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }
}
