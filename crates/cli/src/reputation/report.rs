//! `aip reputation report`: what a verifier found, signed where it has a key.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aip_api::AgentName;
use aip_api::resource::reputation::{Evidence, REPORT_TYP};
use aip_runtime::jws;
use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use super::path_of;
use crate::Globals;
use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::output::{self, cell};
use crate::policy::rollout::{self, Outcome};

/// How long a record may take from a sidecar to the audit before a report about it is given up: sidecars send theirs within
/// seconds.
const RECORDED: Duration = Duration::from_secs(30);
/// Between two tries.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// The agent
    agent: AgentName,
    /// What was found
    #[arg(long, value_parser = ["hallucination", "contract_breach", "false_claim", "unreliable", "slow", "confirmed"])]
    finding: String,
    /// How bad it was
    #[arg(long, value_parser = ["low", "medium", "high", "critical"], default_value = "medium")]
    severity: String,
    /// What it is about: hop:UUID, or decision:UUID as `aip call` shows it; counted once
    #[arg(long, value_parser = evidence, value_name = "KIND:UUID")]
    evidence: Evidence,
    /// What was wrong, in words
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    claim: String,
    /// Sign it by the key in this file, as `aip reputation keygen` wrote it; required where one was enrolled with the token
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    wait: rollout::Wait,
}

fn evidence(text: &str) -> Result<Evidence, String> {
    Evidence::try_from(text.to_owned()).map_err(str::to_owned)
}

impl Report {
    pub(super) async fn perform(&self, globals: &Globals, admin: &Admin) -> anyhow::Result<ExitCode> {
        let mut body = json!({
            "finding": self.finding, "severity": self.severity, "evidence": self.evidence, "claim": self.claim,
        });
        let what = format!("{} was not reported", self.agent);
        if let Some(file) = &self.key_file {
            body["statement"] = self.signed(admin, file, &body).await?.into();
        }
        let path = format!("{}/reports", path_of(&self.agent));
        let (answer, started) = self.taken(admin, &path, &body, &what).await?;
        if answer["repeated"] == true {
            match globals.json() {
                true => output::json(&answer),
                false => output::line(format!(
                    "reported before as {}: nothing was counted",
                    cell(&answer["id"])
                )),
            }
            return Ok(ExitCode::SUCCESS);
        }
        let (score, level) = (cell(&answer["score"]), cell(&answer["level"]));
        let sentence = format!("{} is at {score} ({level})", self.agent);
        let outcome = Outcome::of(&answer, &what)?;
        rollout::report(globals, admin, &outcome, &sentence, started, &self.wait).await
    }

    /// The answer, and when it was asked for; a hop of this moment is in the audit a moment later.
    async fn taken(&self, admin: &Admin, path: &str, body: &Value, what: &str) -> Result<(Value, Instant), Failure> {
        let started = Instant::now();
        loop {
            let asked = Instant::now();
            match admin.send(Method::POST, path, Some(body), what).await {
                Err(failure)
                    if &*failure.reason == "hop_unknown" && self.is_fresh() && started.elapsed() < RECORDED =>
                {
                    tokio::time::sleep(LOOK).await;
                }
                answer => return answer.map(|answer| (answer, asked)),
            }
        }
    }

    /// The report as a statement by the key in `file`.
    async fn signed(&self, admin: &Admin, file: &Path, body: &Value) -> anyhow::Result<String> {
        let mesh = admin.get("/v1/mesh").await?;
        let domain = cell(&mesh["trust_domain"]);
        let mut claims = body.clone();
        claims["aud"] = format!("spiffe://{domain}/control-plane").into();
        claims["sub"] = format!("spiffe://{domain}/agent/{}", self.agent).into();
        claims["iat"] = aip_runtime::unix_now().into();
        let key = super::key::read(file)?;
        let what = || Failure::new(Exit::Usage, format!("{} can't sign", file.display()));
        Ok(jws::sign_es256(&key, REPORT_TYP, &claims).map_err(|e| what().why(e.to_string()))?)
    }

    /// Whether what it is about was made within the last [`RECORDED`], as its id says.
    fn is_fresh(&self) -> bool {
        let made = self.evidence.made_at();
        made.is_some_and(|made| made + RECORDED.as_secs() > aip_runtime::unix_now())
    }
}
