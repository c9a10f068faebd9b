//! `aip up`: a control plane on this machine.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
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

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Where sidecars reach it; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15012")]
    mesh_listen: SocketAddr,
    /// Where the admin API listens; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15014")]
    admin_listen: SocketAddr,
    /// The mesh's name, fixed at its creation
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<aip_api::TrustDomain>,
    /// `dev` approves measurements as they come, `prod` waits for people; fixed at its creation
    #[arg(long, value_parser = ["dev", "prod"])]
    mode: Option<String>,
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
}

/// Starts a control plane over `<home>/control-plane`, waits until it listens, writes `<home>/context.json`.
pub(crate) async fn start(home: &Home, options: &Options) -> Result<ControlPlane, Failure> {
    let data = home.control_plane();
    private_dir(home.path())?;
    private_dir(&data)?;
    let log = home.path().join("control-plane.log");
    let key = home.path().join("control-plane.key");
    make_key(&key)?;
    // What an earlier run left would look like an answer of this one.
    let run_file = data.join("run.json");
    let _ = std::fs::remove_file(&run_file);
    let mut command = process::sibling("aip-control-plane")?;
    command
        .arg(process::LIFELINE)
        .arg("--data")
        .arg(&data)
        .arg("--key-file")
        .arg(&key);
    command.args(["--mesh-listen", &options.mesh_listen.to_string()]);
    command.args(["--admin-listen", &options.admin_listen.to_string()]);
    for (flag, value) in [("--trust-domain", &options.trust_domain), ("--mode", &options.mode)] {
        if let Some(value) = value {
            command.args([flag, value]);
        }
    }
    let mut child = Child::spawn(command, Output::Log(&log))?;
    let deadline = Instant::now() + START;
    let run = loop {
        if let Some(run) = read_json(&run_file).filter(|r| r["pid"].as_u64() == Some(child.pid().into())) {
            break run;
        }
        if let Some(status) = child.ended()? {
            let why = child.last_words().replace("aip-control-plane: ", "");
            let next = if why.contains("data directory") {
                "does it run already (`aip status`)? Another mesh needs another --home".into()
            } else {
                format!("its log is {}", log.display())
            };
            return Err(
                Failure::new(Exit::Failed, format!("the control plane did not start ({status})"))
                    .why(why)
                    .next(next),
            );
        }
        if Instant::now() > deadline {
            child.stop(Duration::ZERO).await;
            let what = format!("the control plane does not listen after {} s", START.as_secs());
            return Err(Failure::new(Exit::TimedOut, what).next(format!("its log is {}", log.display())));
        }
        tokio::time::sleep(LOOK).await;
    };
    let text = |key: &str| run[key].as_str().unwrap_or_default().to_owned();
    let admin = text("admin");
    // The control plane speaks TLS wherever others could listen.
    let local = admin.parse::<SocketAddr>().is_ok_and(|a| a.ip().is_loopback());
    let scheme = if local { "http" } else { "https" };
    let context = Context {
        admin: format!("{scheme}://{admin}"),
        socket: run["socket"].as_str().map(Into::into),
        mesh: text("mesh"),
        token_file: data.join("admin.jwt"),
        root: text("root"),
    };
    let failed = |e: std::io::Error| Failure::new(Exit::Failed, "context.json can't be written").why(e.to_string());
    home.write_context(&context).map_err(failed)?;
    Ok(ControlPlane { child, context })
}

/// The key that seals the control plane's secrets at rest; made once.
fn make_key(path: &std::path::Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let failed = |e: String| Failure::new(Exit::Failed, format!("{} can't be made", path.display())).why(e);
    let key = aip_runtime::sealing::SealingKey::generate().map_err(|e| failed(e.to_string()))?;
    aip_runtime::files::write_private(path, key.to_hex().as_bytes()).map_err(|e| failed(e.to_string()))
}

impl Up {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let home = globals.home()?;
        let options = Options {
            mesh_listen: self.mesh_listen,
            admin_listen: self.admin_listen,
            trust_domain: self.trust_domain.map(|t| t.to_string()),
            mode: self.mode,
        };
        let mut signals = Signals::catch()?;
        let mut running = tokio::select! {
            running = output::waiting("starting the control plane", start(&home, &options)) => running?,
            // What was started is killed as it is dropped.
            _ = signals.next() => return Ok(ExitCode::from(130)),
        };
        announce(globals, &home, &running, is_prod(globals).await);
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

fn announce(globals: &Globals, home: &Home, running: &ControlPlane, prod: bool) {
    let context = &running.context;
    if globals.json() {
        let mut document: Value = json!({ "pid": running.child.pid(), "home": home.path() });
        for (key, value) in json!(context).as_object().into_iter().flatten() {
            document[key] = value.clone();
        }
        output::line(document.to_string());
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
        (
            "sealing key",
            home.path().join("control-plane.key").display().to_string(),
        ),
        ("root", context.root.clone()),
        ("log", home.path().join("control-plane.log").display().to_string()),
    ] {
        output::line(format!("  {what:<14}{value}"));
    }
    output::line("The sealing key stands beside the data: keep a copy elsewhere, and neither in the same backup.");
    if prod {
        output::line("Changes take two people: the second begins with `aip admin secret`.");
    }
    output::line("Next: aip run --name NAME -- CMD…    Ctrl-C stops it.");
}
