//! `aip up`: a control plane on this machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use aip_api::problem::FieldError;
use aip_runtime::files::{FilesError, lock_dir};
use clap::Args;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::Instant;

use crate::Globals;
use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::home::{Context, Home, private_dir, read_json};
use crate::output;
use crate::process::{self, Child, Output, Signals};

/// How long the control plane may take until it listens: a first start makes keys, a large store is opened.
const START: Duration = Duration::from_secs(60);
/// Between two looks at whether it listens.
const LOOK: Duration = Duration::from_millis(25);

/// The control plane's database, in its data directory.
const STORE: &str = "store.redb";

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Where sidecars reach it; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15012")]
    mesh_listen: String,
    /// Where the admin API listens; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15014")]
    admin_listen: String,
    /// The mesh's name, fixed at its creation
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// `dev` approves measurements as they come, `prod` waits for people; fixed at its creation
    #[arg(long)]
    mode: Option<String>,
    /// The key that seals the control plane's secrets at rest, made where there is no mesh yet; with `--mode prod` it
    /// must be named, and lie outside of AIP_HOME [default: control-plane.key in AIP_HOME]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// A control plane that listens.
pub(crate) struct ControlPlane {
    pub(crate) child: Child,
    pub(crate) context: Context,
}

/// What starts one.
pub(crate) struct Options {
    pub(crate) mesh_listen: SocketAddr,
    pub(crate) admin_listen: SocketAddr,
    pub(crate) trust_domain: Option<String>,
    pub(crate) mode: Option<String>,
    pub(crate) key_file: Option<PathBuf>,
}

/// Starts a control plane over `<home>/control-plane`, waits until it listens, writes `<home>/context.json`.
pub(crate) async fn start(home: &Home, options: &Options) -> Result<ControlPlane, Failure> {
    let data = home.control_plane();
    private_dir(home.path())?;
    private_dir(&data)?;
    let key = key_file(home, options);
    make_key(&key, &data)?;
    let log = home.path().join("control-plane.log");
    // What an earlier run left, or one that runs now, would look like an answer of this one. It is not ours to remove.
    let run_file = data.join("run.json");
    let before = written(&run_file);
    let mut child = Child::spawn(command(&data, &key, options)?, Output::Log(&log))?;
    let own = |child: &Child| {
        let run = read_json(&run_file).filter(|r| r["pid"].as_u64() == Some(child.pid().into()))?;
        (written(&run_file) != before).then_some(run)
    };
    let deadline = Instant::now() + START;
    let run = loop {
        if let Some(run) = own(&child) {
            break run;
        }
        if let Some(status) = child.ended()? {
            return Err(already_runs(home, &run_file).unwrap_or_else(|| did_not_start(&child, status, &log)));
        }
        if Instant::now() > deadline {
            child.stop(Duration::ZERO).await;
            let what = format!("the control plane does not listen after {} s", START.as_secs());
            return Err(Failure::new(Exit::TimedOut, what).next(format!("its log is {}", log.display())));
        }
        tokio::time::sleep(LOOK).await;
    };
    let context = context_of(&run, &data);
    let failed = |e: std::io::Error| Failure::new(Exit::Failed, "context.json can't be written").why(e.to_string());
    home.write_context(&context).map_err(failed)?;
    Ok(ControlPlane { child, context })
}

fn command(data: &Path, key: &Path, options: &Options) -> Result<Command, Failure> {
    let mut command = process::sibling("aip-control-plane")?;
    command.arg(process::LIFELINE).arg("--data").arg(data);
    command.arg("--key-file").arg(key);
    command.args(["--mesh-listen", &options.mesh_listen.to_string()]);
    command.args(["--admin-listen", &options.admin_listen.to_string()]);
    for (flag, value) in [("--trust-domain", &options.trust_domain), ("--mode", &options.mode)] {
        if let Some(value) = value {
            command.args([flag, value]);
        }
    }
    Ok(command)
}

/// Tells one writing of a file from the next: it is replaced, never written over.
fn written(path: &Path) -> Option<(u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

fn did_not_start(child: &Child, status: ExitStatus, log: &Path) -> Failure {
    Failure::new(Exit::Failed, format!("the control plane did not start ({status})"))
        .why(child.last_words().replace("aip-control-plane: ", ""))
        .next(format!("its log is {}", log.display()))
}

/// Says so where another process holds this home's mesh: whatever else was in the way, a taken port for one, is then that
/// process's.
fn already_runs(home: &Home, run_file: &Path) -> Option<Failure> {
    match lock_dir(&home.control_plane()) {
        Err(FilesError::InUse(_)) => {}
        _ => return None,
    }
    // A number that nobody has any more is of an earlier run.
    let run = read_json(run_file).filter(|run| Path::new(&format!("/proc/{}", run["pid"])).exists());
    let who = match run {
        Some(run) => format!(
            "process {} is its control plane: admin API at {}, sidecars at {}",
            run["pid"],
            output::cell(&run["admin"]),
            output::cell(&run["mesh"])
        ),
        None => "another process holds its data directory, and does not say where it listens".into(),
    };
    Some(
        Failure::new(
            Exit::Failed,
            format!("a mesh already runs from this home, {}", home.path().display()),
        )
        .why(who)
        .next("use it (`aip status`), end the one that runs first, or name another --home for another mesh"),
    )
}

/// How to reach the control plane that wrote this `run.json`.
fn context_of(run: &Value, data: &Path) -> Context {
    let text = |key: &str| run[key].as_str().unwrap_or_default().to_owned();
    let admin = text("admin");
    // The control plane speaks TLS wherever others could listen.
    let local = admin.parse::<SocketAddr>().is_ok_and(|a| a.ip().is_loopback());
    let scheme = if local { "http" } else { "https" };
    Context {
        admin: format!("{scheme}://{admin}"),
        socket: run["socket"].as_str().map(Into::into),
        mesh: text("mesh"),
        token_file: data.join("admin.jwt"),
        root: text("root"),
    }
}

/// The key that seals the control plane's secrets at rest.
fn key_file(home: &Home, options: &Options) -> PathBuf {
    let own = || home.path().join("control-plane.key");
    options.key_file.clone().unwrap_or_else(own)
}

/// Makes the key of a mesh that is not there yet. A fresh one would open nothing of a mesh that is, and take the place
/// of the one that does.
fn make_key(path: &Path, data: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let store = data.join(STORE);
    if store.exists() {
        return Err(
            Failure::new(Exit::Failed, format!("the sealing key {} is missing", path.display()))
                .why(format!("{} is sealed with it, and no other opens it", store.display()))
                .next("restore it from your copy, or name where it lies with --key-file; nothing was changed"),
        );
    }
    let failed = |e: String| Failure::new(Exit::Failed, format!("{} can't be made", path.display())).why(e);
    let key = aip_runtime::sealing::SealingKey::generate().map_err(|e| failed(e.to_string()))?;
    aip_runtime::files::write_private(path, key.to_hex().as_bytes()).map_err(|e| failed(e.to_string()))
}

impl Up {
    /// What is asked for, or every mistake in it.
    fn options(self, home: &Home) -> Result<Options, Failure> {
        let mut mistakes = Vec::new();
        let mut wrong = |flag: &str, why: String| mistakes.push(FieldError::new(flag, why));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut address = |flag: &str, text: &str| {
            text.parse().unwrap_or_else(|_| {
                wrong(flag, format!("{text:?}; expected IP:PORT"));
                any
            })
        };
        let mesh_listen = address("--mesh-listen", &self.mesh_listen);
        let admin_listen = address("--admin-listen", &self.admin_listen);
        if let Some(Err(e)) = self.trust_domain.as_ref().map(|t| t.parse::<aip_api::TrustDomain>()) {
            wrong("--trust-domain", e.to_string());
        }
        if let Some(mode) = self
            .mode
            .as_ref()
            .filter(|mode| !["dev", "prod"].contains(&mode.as_str()))
        {
            wrong("--mode", format!("{mode:?}; expected dev or prod"));
        }
        let key_file = self.key_file.map(|path| std::path::absolute(&path).unwrap_or(path));
        if self.mode.as_deref() == Some("prod") && key_file.as_ref().is_none_or(|path| path.starts_with(home.path())) {
            let why = format!(
                "with --mode prod it must be named, and lie outside of {}: who copies the data must not get the key with it",
                home.path().display()
            );
            wrong("--key-file", why);
        }
        if mistakes.is_empty() {
            return Ok(Options {
                mesh_listen,
                admin_listen,
                trust_domain: self.trust_domain,
                mode: self.mode,
                key_file,
            });
        }
        let what = format!("`aip up` has {}", output::counted(mistakes.len() as u64, "mistake"));
        let mut failure = Failure::new(Exit::Usage, what).next("see `aip up --help`");
        failure.errors = mistakes;
        Err(failure)
    }

    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let home = globals.home()?;
        let options = self.options(&home)?;
        let mut signals = Signals::catch()?;
        let mut running = tokio::select! {
            running = output::waiting("starting the control plane", start(&home, &options)) => running?,
            // What was started is killed as it is dropped.
            _ = signals.next() => return Ok(ExitCode::from(130)),
        };
        announce(
            globals,
            &home,
            &running,
            &key_file(&home, &options),
            is_prod(globals).await,
        );
        tokio::select! {
            _ = signals.next() => {
                running.child.stop(process::GRACE).await;
                Ok(ExitCode::SUCCESS)
            }
            status = running.child.wait() => {
                let log = home.path().join("control-plane.log");
                Err(Failure::new(Exit::Failed, format!("the control plane ended by itself ({})", status?))
                    .why(running.child.last_words().replace("aip-control-plane: ", ""))
                    .next(format!("its log is {}", log.display()))
                    .into())
            }
        }
    }
}

/// Whether people must approve what happens in this mesh.
async fn is_prod(globals: &Globals) -> bool {
    let mesh = match Admin::open(globals) {
        Ok(admin) => admin.get("/v1/mesh").await,
        Err(failure) => Err(failure),
    };
    mesh.is_ok_and(|mesh| mesh["mode"] == "prod")
}

fn announce(globals: &Globals, home: &Home, running: &ControlPlane, key: &Path, prod: bool) {
    let context = &running.context;
    if globals.json() {
        let mut document: Value = json!({ "pid": running.child.pid(), "home": home.path() });
        for (key, value) in json!(context).as_object().into_iter().flatten() {
            document[key] = value.clone();
        }
        output::json_line(&document);
        return;
    }
    output::line("The control plane is up.");
    for (what, value) in [
        ("admin API", context.admin.clone()),
        (
            "admin socket",
            context.socket.as_ref().map_or("-".into(), |s| s.display().to_string()),
        ),
        ("sidecars", context.mesh.clone()),
        ("admin token", context.token_file.display().to_string()),
        ("sealing key", key.display().to_string()),
        ("root", context.root.clone()),
        ("log", home.path().join("control-plane.log").display().to_string()),
    ] {
        output::line(format!("  {what:<14}{value}"));
    }
    output::line(if key.starts_with(home.path()) {
        "The sealing key stands beside the data: keep a copy elsewhere, and neither in the same backup."
    } else {
        "Keep a copy of the sealing key, and not in a backup of the data: without it nobody opens them."
    });
    if prod {
        output::line("Changes take two people: the second begins with `aip admin secret`.");
    }
    output::line("Next: aip run --name NAME -- CMD…    Ctrl-C stops it.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_key_never_takes_the_place_of_a_missing_one() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        make_key(&key, dir.path()).unwrap();
        let made = std::fs::read(&key).unwrap();
        std::fs::write(dir.path().join(STORE), "a store").unwrap();
        make_key(&key, dir.path()).unwrap();
        assert_eq!(std::fs::read(&key).unwrap(), made);
        std::fs::remove_file(&key).unwrap();
        let refused = make_key(&key, dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains("is missing") && refused.contains("restore it"),
            "{refused}"
        );
        assert!(!key.exists());
    }
}
