//! `aip admin`: admin tokens, and the lift of a restored store. In a prod mesh nobody but the person ever holds the
//! person's token: they keep a secret, give its digest to whoever issues the token, and fetch the token with the secret.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use aip_api::Digest;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use crate::Globals;
use crate::agent::report;
use crate::bounded;
use crate::client::{Admin, encoded};
use crate::exit::{Exit, Failure};
use crate::output::{self, Table, cell, timestamp};
use crate::policy::rollout::{self, Outcome};
use crate::secret;

/// Random bytes of the secret with which a token is fetched.
const SECRET_BYTES: usize = 32;
/// Largest file that can hold one.
const MAX_SECRET_FILE: u64 = 1024;

#[derive(Debug, Subcommand)]
pub(crate) enum AdminVerb {
    /// Make the secret that fetches your token, and print the digest to give to whoever issues it
    Secret(Secret),
    /// Issue an admin token
    Issue(Issue),
    /// Fetch the token that was issued for your secret
    Claim(Claim),
    /// List the admin tokens, without their secrets
    List,
    /// Make an admin token useless
    Revoke(Revoke),
    /// Lift a control plane that was restored from an older copy above what sidecars have seen: what stands in the copy then
    /// replaces everything later. In a prod mesh a second person approves it
    Lift(Lift),
}

#[derive(Debug, Args)]
pub(crate) struct Secret {
    /// Write the secret to this file (0600); it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Issue {
    /// Whose it is; two tokens of one name are one person
    #[arg(value_name = "PERSON", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    sub: String,
    /// What they may; `aip admin list` and docs/admin-api.md show what each role may
    #[arg(long, value_parser = ["admin", "operator", "approver", "auditor", "verifier", "viewer"])]
    role: String,
    /// How long it is good for, in seconds [default: the control plane's, 8 hours]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    /// The digest that `aip admin secret` printed for them; a prod mesh needs it
    #[arg(long, value_name = "DIGEST")]
    claim: Option<Digest>,
    /// Of a verifier: the key that `aip reputation keygen` printed; its reports are then taken where that key signed them
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Without --claim: write the token to this file (0600) instead of printing it
    #[arg(long, value_name = "FILE", conflicts_with = "claim")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Claim {
    /// The file that `aip admin secret` wrote
    #[arg(long, value_name = "FILE")]
    secret_file: PathBuf,
    /// Write the token to this file (0600)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Its id, as `aip admin list` shows it
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Lift {
    /// Above this revision [default: the highest that a refused sidecar has seen, as `aip status` shows it]
    #[arg(long, value_name = "REVISION")]
    above: Option<u64>,
    #[command(flatten)]
    wait: rollout::Wait,
}

impl AdminVerb {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        match self {
            Self::Secret(verb) => verb.perform(globals)?,
            Self::Issue(verb) => return verb.perform(globals, &Admin::open(globals)?).await.map_err(Into::into),
            Self::Claim(verb) => verb.perform(globals).await?,
            Self::Lift(verb) => return verb.perform(globals, &Admin::open(globals)?).await,
            Self::List => list(globals, &Admin::open(globals)?).await?,
            Self::Revoke(Revoke { id }) => {
                let what = format!("admin token {id} was not revoked");
                let path = format!("/v1/admin-tokens/{}", encoded(&id));
                let answer = Admin::open(globals)?.send(Method::DELETE, &path, None, &what).await?;
                report(globals, &answer, &format!("admin token {id} is useless now"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Secret {
    fn perform(&self, globals: &Globals) -> Result<(), Failure> {
        if self.out.exists() {
            let what = format!("{} exists", self.out.display());
            return Err(Failure::new(Exit::Usage, what).next("a token may wait for it; choose another file"));
        }
        let secret = secret::fresh::<SECRET_BYTES>()?;
        secret::write(&self.out, secret.as_bytes())?;
        let digest = Digest::sha256(secret.as_bytes());
        if globals.json() {
            output::json(&json!({ "digest": digest.to_string(), "file": self.out }));
        } else {
            output::line(digest.to_string());
            output::note(format!(
                "an admin issues your token with this digest: aip admin issue PERSON --role ROLE --claim {digest}\n\
                 then fetch it: aip admin claim --secret-file {} --out FILE",
                self.out.display()
            ));
        }
        Ok(())
    }
}

impl Lift {
    async fn perform(&self, globals: &Globals, admin: &Admin) -> anyhow::Result<ExitCode> {
        let what = "the store was not lifted";
        let started = Instant::now();
        let above = match self.above {
            Some(above) => above,
            None => {
                let status = admin.get("/v1/status").await?;
                let seen = status["restored"].as_array().into_iter().flatten();
                let highest = seen.filter_map(|one| one["seen"].as_u64()).max();
                highest.ok_or_else(|| {
                    Failure::new(Exit::NotFound, what)
                        .why("no sidecar says that it has seen a later revision than this control plane has")
                        .next("sidecars say it when they connect; --above REVISION lifts it all the same")
                })?
            }
        };
        let body = json!({ "above": above });
        let answer = admin.send(Method::POST, "/v1/mesh/lift", Some(&body), what).await?;
        let outcome = Outcome::of(&answer, what)?;
        let sentence = format!("the store is lifted above {above}");
        rollout::report(globals, admin, &outcome, &sentence, started, &self.wait).await
    }
}

impl Issue {
    async fn perform(self, globals: &Globals, admin: &Admin) -> Result<ExitCode, Failure> {
        let what = format!("no admin token for {} was issued", self.sub);
        let mut request = json!({ "sub": self.sub, "role": self.role });
        if let Some(ttl) = self.ttl {
            request["ttl_seconds"] = ttl.into();
        }
        if let Some(claim) = &self.claim {
            request["claim"] = claim.to_string().into();
        }
        if let Some(key) = &self.key {
            request["key"] = key.clone().into();
        }
        let answer = admin
            .send(Method::POST, "/v1/admin-tokens", Some(&request), &what)
            .await;
        let answer = answer.map_err(|failure| self.explained(failure))?;
        match (answer["token"].as_str(), &self.out) {
            (Some(token), Some(file)) => {
                secret::write(file, token.as_bytes())?;
                output::note(format!("admin token of {} written to {}", self.sub, file.display()));
            }
            (Some(_), None) if globals.json() => output::json(&answer),
            (Some(token), None) => {
                output::line(token);
                output::note(format!(
                    "lets {} act as {}{}; it is not shown again",
                    self.sub,
                    self.role,
                    until(&answer)
                ));
            }
            (None, _) => {
                let done = format!(
                    "{} may fetch a token as {}{}: aip admin claim --secret-file FILE --out FILE",
                    self.sub,
                    self.role,
                    until(&answer)
                );
                return Ok(report(globals, &answer, &done));
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn explained(&self, failure: Failure) -> Failure {
        if failure.errors.iter().any(|e| e.field == "claim") && self.claim.is_none() {
            let person = &self.sub;
            return failure.next(format!(
                "{person} runs `aip admin secret --out FILE` and tells you the digest for --claim"
            ));
        }
        failure
    }
}

fn until(answer: &Value) -> String {
    let until = answer["expires_at"].as_u64().map(timestamp);
    until.map(|at| format!(", until {at}")).unwrap_or_default()
}

impl Claim {
    async fn perform(&self, globals: &Globals) -> Result<(), Failure> {
        let secret = read_secret(&self.secret_file)?;
        let admin = Admin::without_token(globals)?;
        let what = "no admin token was fetched";
        let body = json!({ "secret": secret });
        let answer = admin
            .send(Method::POST, "/v1/admin-tokens/claim", Some(&body), what)
            .await;
        let answer = answer.map_err(|failure| match failure.exit {
            Exit::NotFound => {
                failure.next("was it issued with this secret's digest, approved, and not fetched before?")
            }
            _ => failure,
        })?;
        let token = answer["token"].as_str();
        let token =
            token.ok_or_else(|| Failure::new(Exit::Failed, what).why("the control plane answered without one"))?;
        secret::write(&self.out, token.as_bytes())?;
        let file = self.out.display();
        output::note(format!(
            "your admin token is in {file}{}; use it with AIP_TOKEN_FILE={file}",
            until(&answer)
        ));
        Ok(())
    }
}

fn read_secret(path: &Path) -> Result<String, Failure> {
    let fail = |why: String| Failure::new(Exit::Usage, format!("{} can't be read", path.display())).why(why);
    let text = bounded::text(path, MAX_SECRET_FILE).map_err(|e| fail(e.to_string()))?;
    Ok(text.trim().to_owned())
}

async fn list(globals: &Globals, admin: &Admin) -> Result<(), Failure> {
    let tokens = admin.list("/v1/admin-tokens").await?;
    if globals.json() {
        output::json(&tokens);
        return Ok(());
    }
    let mut table = Table::new(["ID", "PERSON", "ROLE", "EXPIRES", "BY", "REVOKED"]);
    let at = |value: &Value| value.as_u64().map_or("-".into(), timestamp);
    for token in &tokens {
        table.row([
            cell(&token["jti"]),
            cell(&token["sub"]),
            cell(&token["role"]),
            at(&token["expires_at"]),
            cell(&token["issued_by"]),
            at(&token["revoked_at"]),
        ]);
    }
    table.print("no admin tokens");
    Ok(())
}
