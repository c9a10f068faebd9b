//! Flags and file, and how settings come of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use aip_api::problem::FieldError;
use aip_runtime::settings::{self, SettingsError};
use aip_runtime::telemetry::LogFormat;
use clap::Parser;
use serde::Deserialize;

use super::{Access, Config, Keys, Measured};

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// The AIP data plane: one sidecar beside each agent.
#[derive(Debug, Clone, Default, Parser, Deserialize)]
#[command(name = "aip-sidecar", version)]
#[serde(deny_unknown_fields, default)]
pub struct Flags {
    /// YAML file with these settings, by the same names with '_' for '-'
    #[arg(long)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print what --root, --code, --config-file and --executable measure as JSON, and end
    #[arg(long)]
    #[serde(skip)]
    pub measure: bool,
    /// End, as at SIGTERM, when standard input ends: whoever supervises this process holds its other end
    #[arg(long)]
    #[serde(skip)]
    pub lifeline: bool,
    /// The agent's name: a DNS label
    #[arg(long)]
    pub name: Option<String>,
    /// The control plane's mesh port
    #[arg(long, value_name = "IP:PORT")]
    pub control_plane: Option<SocketAddr>,
    /// File that holds the join token (or the variable AIP_JOIN_TOKEN)
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// Where the agent itself serves
    #[arg(long, value_name = "IP:PORT")]
    pub agent: Option<SocketAddr>,
    /// Where peers' sidecars reach this one (mTLS)
    #[arg(long, value_name = "IP:PORT")]
    pub inbound: Option<SocketAddr>,
    /// The address that is told to peers, where it differs from --inbound
    #[arg(long, value_name = "IP:PORT")]
    pub advertise: Option<SocketAddr>,
    /// Where the agent sends its own calls (loopback)
    #[arg(long, value_name = "IP:PORT")]
    pub outbound: Option<SocketAddr>,
    /// Read-only admin and metrics (loopback)
    #[arg(long, value_name = "IP:PORT")]
    pub admin: Option<SocketAddr>,
    /// Liveness and readiness
    #[arg(long, value_name = "IP:PORT")]
    pub probes: Option<SocketAddr>,
    /// Directory for the signed cache
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Directory for the sealed key; a tmpfs where there is one
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// `sealed` (restart without a control plane works) or `memory`
    #[arg(long, value_name = "sealed|memory")]
    pub keys: Option<Keys>,
    /// File with the sealing key (or the variable AIP_DATA_KEY); made in the runtime directory if neither is given
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Directory below which declared files lie
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Declared code: globs below the root; repeatable
    #[arg(long, value_name = "GLOB")]
    pub code: Vec<String>,
    /// Declared configuration: files below the root; repeatable
    #[arg(long = "config-file", value_name = "FILE")]
    pub config_file: Vec<String>,
    /// The agent's executable, where a supervisor started it
    #[arg(long, value_name = "FILE")]
    pub executable: Option<PathBuf>,
    /// The agent's command line as a JSON array, where a supervisor started it
    #[arg(long, value_name = "JSON")]
    #[serde(default)]
    pub argv: Option<String>,
    /// File with the secret that the agent must show at the outbound port [default: proxy-secret in the runtime
    /// directory, made if it is absent]
    #[arg(long, value_name = "FILE")]
    pub proxy_secret_file: Option<PathBuf>,
    /// The user that the agent runs as, by number: the outbound port then takes its connections only
    #[arg(long, value_name = "UID")]
    pub agent_uid: Option<u32>,
    /// Let every process that reaches the outbound port speak as the agent, with neither a secret nor a user
    #[arg(long)]
    pub proxy_open: bool,
    /// Whether the agent can go around: `cooperative` or `captured`
    #[arg(long, value_name = "cooperative|captured")]
    pub enforcement: Option<String>,
    /// Worker threads of the data path
    #[arg(long)]
    pub workers: Option<usize>,
    /// Seconds that a drain may take
    #[arg(long)]
    pub drain_seconds: Option<u64>,
    /// `json` or `text`
    #[arg(long)]
    pub log_format: Option<LogFormat>,
    /// Log filter, as in RUST_LOG
    #[arg(long)]
    pub log: Option<String>,
}

/// The sidecar's own work is bounded by the agent's, so more than this only costs memory.
const DEFAULT_WORKERS: usize = 2;
/// Kubernetes gives 30 s between SIGTERM and SIGKILL; this leaves time to flush.
const DEFAULT_DRAIN_SECONDS: u64 = 20;

/// More threads than any machine gives one sidecar of many.
const MAX_WORKERS: usize = 64;
/// Past an hour, whatever waits for the end has long ended it.
const MAX_DRAIN_SECONDS: u64 = 3_600;

impl Flags {
    /// Flags over file over defaults, checked.
    ///
    /// # Errors
    /// The file can't be read, or any setting can't be used: all of them.
    pub fn resolve(self) -> Result<Config, SettingsError> {
        let mut mistakes = Vec::new();
        let file: Self = match &self.config {
            Some(path) => settings::load(path, &mut mistakes)?,
            None => Self::default(),
        };
        let mut found = Vec::new();
        let config = self.over(file).check(&mut found);
        settings::add_mistakes(&mut mistakes, found);
        match config {
            Some(config) if mistakes.is_empty() => Ok(config),
            _ => Err(SettingsError::Invalid(mistakes)),
        }
    }

    fn over(self, file: Self) -> Self {
        let list = |mine: Vec<String>, theirs: Vec<String>| if mine.is_empty() { theirs } else { mine };
        Self {
            config: self.config,
            measure: self.measure,
            lifeline: self.lifeline,
            name: self.name.or(file.name),
            control_plane: self.control_plane.or(file.control_plane),
            join_token_file: self.join_token_file.or(file.join_token_file),
            agent: self.agent.or(file.agent),
            inbound: self.inbound.or(file.inbound),
            advertise: self.advertise.or(file.advertise),
            outbound: self.outbound.or(file.outbound),
            admin: self.admin.or(file.admin),
            probes: self.probes.or(file.probes),
            data: self.data.or(file.data),
            runtime_dir: self.runtime_dir.or(file.runtime_dir),
            keys: self.keys.or(file.keys),
            key_file: self.key_file.or(file.key_file),
            root: self.root.or(file.root),
            code: list(self.code, file.code),
            config_file: list(self.config_file, file.config_file),
            executable: self.executable.or(file.executable),
            argv: self.argv.or(file.argv),
            proxy_secret_file: self.proxy_secret_file.or(file.proxy_secret_file),
            agent_uid: self.agent_uid.or(file.agent_uid),
            proxy_open: self.proxy_open || file.proxy_open,
            enforcement: self.enforcement.or(file.enforcement),
            workers: self.workers.or(file.workers),
            drain_seconds: self.drain_seconds.or(file.drain_seconds),
            log_format: self.log_format.or(file.log_format),
            log: self.log.or(file.log),
        }
    }

    fn check(self, errors: &mut Vec<FieldError>) -> Option<Config> {
        let measured = self.measured(errors);
        let mut local = |field: &str, address: Option<SocketAddr>, port: u16| {
            let address = address.unwrap_or(loopback(port));
            if !address.ip().is_loopback() {
                errors.push(FieldError::new(
                    field,
                    format!("{address} is not a loopback address: it is for this machine only"),
                ));
            }
            address
        };
        let outbound = local("outbound", self.outbound, 15001);
        let admin = local("admin", self.admin, 15000);
        let name = required(errors, "name", self.name.as_deref());
        let name = name.and_then(|name| {
            let refused = |e: aip_api::name::NameError| errors.push(FieldError::new("name", e.to_string()));
            name.parse().map_err(refused).ok()
        });
        let control_plane = required(errors, "control_plane", self.control_plane);
        let agent = required(errors, "agent", self.agent);
        let data = required(errors, "data", self.data.clone());
        let workers = bounded(
            errors,
            "workers",
            self.workers.unwrap_or(DEFAULT_WORKERS),
            1..=MAX_WORKERS,
        );
        let drain_seconds = self.drain_seconds.unwrap_or(DEFAULT_DRAIN_SECONDS);
        let drain_seconds = bounded(errors, "drain_seconds", drain_seconds, 0..=MAX_DRAIN_SECONDS);
        let runtime_dir = self.runtime_dir.clone();
        let runtime_dir = runtime_dir.or_else(|| data.as_ref().map(|data| data.join("runtime")));
        let access = self.access(runtime_dir.as_deref(), errors);
        let (data, runtime_dir) = (data?, runtime_dir?);
        Some(Config {
            name: name?,
            control_plane: control_plane?,
            join_token_file: self.join_token_file,
            agent: agent?,
            inbound: self.inbound.unwrap_or(loopback(15006)),
            advertise: self.advertise,
            outbound,
            admin,
            probes: self.probes.unwrap_or(loopback(15021)),
            runtime_dir,
            data,
            keys: self.keys.unwrap_or_default(),
            key_file: self.key_file,
            measured,
            access,
            workers,
            drain_seconds,
            log_format: self.log_format.unwrap_or_default(),
            log: self.log.unwrap_or_else(|| "info".into()),
        })
    }

    /// Closed, unless it is said in so many words that it is to be open.
    fn access(&self, runtime_dir: Option<&Path>, errors: &mut Vec<FieldError>) -> Access {
        let given = self.proxy_secret_file.is_some() || self.agent_uid.is_some();
        if self.proxy_open && given {
            let message = "contradicts proxy_secret_file and agent_uid: leave it out, or them";
            errors.push(FieldError::new("proxy_open", message));
        }
        let makes_secret = !self.proxy_open && !given;
        let made = runtime_dir.filter(|_| makes_secret).map(|dir| dir.join("proxy-secret"));
        Access {
            proxy_secret_file: self.proxy_secret_file.clone().or(made),
            makes_secret,
            agent_uid: self.agent_uid,
        }
    }

    /// What is declared for measuring.
    pub fn measured(&self, errors: &mut Vec<FieldError>) -> Measured {
        use aip_api::evidence::Enforcement;
        let enforcement = match self.enforcement.as_deref() {
            None | Some("cooperative") => Enforcement::Cooperative,
            Some("captured") => Enforcement::Captured,
            Some(other) => {
                let message = format!("{other:?} is neither cooperative nor captured");
                errors.push(FieldError::new("enforcement", message));
                Enforcement::Cooperative
            }
        };
        let argv = self.argv.as_deref().and_then(|text| {
            let parsed = serde_json::from_str(text);
            parsed
                .map_err(|e| errors.push(FieldError::new("argv", format!("not a JSON array of strings: {e}"))))
                .ok()
        });
        Measured {
            root: self.root.clone().unwrap_or_else(|| PathBuf::from(".")),
            code: self.code.clone(),
            config: self.config_file.clone(),
            executable: self.executable.clone(),
            argv,
            port: self.agent.map(|agent| agent.port()),
            enforcement,
        }
    }
}

fn bounded<T: Copy + PartialOrd + std::fmt::Display>(
    errors: &mut Vec<FieldError>,
    field: &str,
    value: T,
    bounds: std::ops::RangeInclusive<T>,
) -> T {
    if !bounds.contains(&value) {
        let message = format!("{value} is out of bounds: {} to {}", bounds.start(), bounds.end());
        errors.push(FieldError::new(field, message));
    }
    value
}

fn required<T>(errors: &mut Vec<FieldError>, field: &str, value: Option<T>) -> Option<T> {
    if value.is_none() {
        errors.push(FieldError::new(
            field,
            format!("is missing: give --{} or set it in the file", field.replace('_', "-")),
        ));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once() {
        let flags = Flags {
            name: Some("Not A Name".into()),
            outbound: Some("0.0.0.0:15001".parse().unwrap()),
            enforcement: Some("strong".into()),
            workers: Some(0),
            ..Flags::default()
        };
        let error = flags.resolve().unwrap_err().to_string();
        for field in [
            "name",
            "control_plane",
            "agent",
            "data",
            "outbound",
            "enforcement",
            "workers",
        ] {
            assert!(
                error.contains(&format!("{field}:")),
                "{field} is missing from:\n{error}"
            );
        }
    }

    #[test]
    fn the_outbound_port_is_closed_unless_it_is_said_to_be_open() {
        let flags = || Flags {
            name: Some("ledger".into()),
            control_plane: Some(loopback(1)),
            agent: Some(loopback(2)),
            data: Some("here".into()),
            ..Flags::default()
        };
        let access = |flags: Flags| flags.resolve().map(|config| config.access);
        let closed = access(flags()).unwrap();
        assert!(closed.makes_secret);
        assert_eq!(
            closed.proxy_secret_file.as_deref(),
            Some(Path::new("here/runtime/proxy-secret"))
        );
        let by_user = access(Flags {
            agent_uid: Some(7),
            ..flags()
        })
        .unwrap();
        assert_eq!((by_user.proxy_secret_file, by_user.agent_uid), (None, Some(7)));
        let open = access(Flags {
            proxy_open: true,
            ..flags()
        })
        .unwrap();
        assert!(open.proxy_secret_file.is_none() && open.agent_uid.is_none() && !open.makes_secret);
        let both = Flags {
            proxy_open: true,
            agent_uid: Some(7),
            ..flags()
        };
        assert!(
            access(both)
                .unwrap_err()
                .to_string()
                .contains("proxy_open: contradicts")
        );
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sidecar.yaml");
        let text = "name: ledger\ncontrol_plane: 127.0.0.1:1\nagent: 127.0.0.1:2\ndata: here\nworkers: 3\n";
        std::fs::write(&file, text).unwrap();
        let flags = Flags {
            config: Some(file.clone()),
            workers: Some(1),
            ..Flags::default()
        };
        let config = flags.resolve().unwrap();
        assert_eq!((config.name.as_str(), config.workers), ("ledger", 1));
        std::fs::write(&file, format!("{text}nmae: x\n")).unwrap();
        let error = Flags {
            config: Some(file),
            ..Flags::default()
        }
        .resolve()
        .unwrap_err()
        .to_string();
        assert!(error.contains("nmae"), "{error}");
    }
}
