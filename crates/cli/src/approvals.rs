//! `aip approvals`: changes of a prod mesh that wait for a second person.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::json;

use crate::Globals;
use crate::agent::report;
use crate::client::{Admin, encoded};
use crate::output::{self, Table, cell, timestamp};

#[derive(Debug, Subcommand)]
pub(crate) enum ApprovalsVerb {
    /// List what waits
    List,
    /// Approve a change, and do it; whoever proposed it can't
    Approve(Which),
    /// Refuse a change
    Refuse(Which),
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Its id, as `aip approvals list` shows it
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
}

impl ApprovalsVerb {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let admin = Admin::open(globals)?;
        let (id, verb, done) = match self {
            Self::List => {
                list(globals, &admin).await?;
                return Ok(ExitCode::SUCCESS);
            }
            Self::Approve(Which { id }) => (id, "approve", "approved and done"),
            Self::Refuse(Which { id }) => (id, "refuse", "refused"),
        };
        let path = format!("/v1/approvals/{}/{verb}", encoded(&id));
        let answer = admin
            .send(Method::POST, &path, Some(&json!({})), &format!("could not {verb} {id}"))
            .await?;
        report(globals, &answer, &format!("{id} is {done}"));
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(globals: &Globals, admin: &Admin) -> anyhow::Result<()> {
    let waiting = admin.list("/v1/approvals").await?;
    if globals.json() {
        output::json(&waiting);
        return Ok(());
    }
    let mut table = Table::new(["ID", "CHANGE", "PROPOSED BY", "EXPIRES"]);
    for entry in &waiting {
        table.row([
            cell(&entry["id"]),
            cell(&entry["summary"]),
            cell(&entry["proposed_by"]),
            entry["expires_at"].as_u64().map_or("-".into(), timestamp),
        ]);
    }
    table.print("nothing waits");
    Ok(())
}
