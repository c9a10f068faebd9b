//! `aip token`: join tokens.

use std::path::PathBuf;
use std::process::ExitCode;

use aip_api::AgentName;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use crate::Globals;
use crate::agent::report;
use crate::client::{Admin, encoded};
use crate::exit::{Exit, Failure};
use crate::output::{self, Table, cell, timestamp};

#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Make a join token for one agent: single use, shown once
    Create(Create),
    /// List the join tokens, without their secrets
    List,
    /// Make a join token useless
    Revoke(Revoke),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The agent that may join with it
    #[arg(value_name = "AGENT")]
    agent: AgentName,
    /// How long it can be used, in seconds [default: the control plane's, 10 minutes]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    /// Write it to this file (0600) instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Its id, as `aip token list` shows it
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
}

/// Makes a join token. The answer holds the secret.
pub(crate) async fn create(admin: &Admin, agent: &AgentName, ttl: Option<u64>) -> Result<Value, Failure> {
    let mut request = json!({ "agent": agent });
    if let Some(ttl) = ttl {
        request["ttl_seconds"] = ttl.into();
    }
    admin
        .send(
            Method::POST,
            "/v1/tokens",
            Some(&request),
            &format!("no join token for {agent} was made"),
        )
        .await
}

/// The token in the answer of [`create`].
pub(crate) fn secret(answer: &Value) -> Result<&str, Failure> {
    answer["token"]
        .as_str()
        .ok_or_else(|| Failure::new(Exit::Failed, "the control plane answered without a token"))
}

impl TokenVerb {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let admin = Admin::open(globals)?;
        match self {
            Self::Create(verb) => {
                let answer = create(&admin, &verb.agent, verb.ttl).await?;
                if let Some(file) = &verb.out {
                    crate::secret::write(file, secret(&answer)?.as_bytes())?;
                    output::note(format!("join token for {} written to {}", verb.agent, file.display()));
                } else if globals.json() {
                    output::json(&answer);
                } else {
                    output::line(secret(&answer)?);
                    let until = answer["expires_at"].as_u64().map(timestamp).unwrap_or_default();
                    output::note(format!(
                        "lets {} join once, until {until}; it is not shown again",
                        verb.agent
                    ));
                }
            }
            Self::List => list(globals, &admin).await?,
            Self::Revoke(Revoke { id }) => {
                let what = format!("token {id} was not revoked");
                let answer = admin
                    .send(Method::DELETE, &format!("/v1/tokens/{}", encoded(&id)), None, &what)
                    .await?;
                report(globals, &answer, &format!("token {id} is useless now"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(globals: &Globals, admin: &Admin) -> anyhow::Result<()> {
    let tokens = admin.list("/v1/tokens").await?;
    if globals.json() {
        output::json(&tokens);
        return Ok(());
    }
    let mut table = Table::new(["ID", "AGENT", "EXPIRES", "BY", "SPENT"]);
    for token in &tokens {
        table.row([
            cell(&token["id"]),
            cell(&token["agent"]),
            token["expires_at"].as_u64().map_or("-".into(), timestamp),
            cell(&token["created_by"]),
            token["spent_at"]
                .as_u64()
                .or_else(|| token["spent"]["at"].as_u64())
                .map_or("-".into(), timestamp),
        ]);
    }
    table.print("no join tokens; `aip token create AGENT` makes one");
    Ok(())
}
