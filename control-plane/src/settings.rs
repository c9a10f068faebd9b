//! How the control plane is started: flags, or one YAML file whose fields have the flags' names.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aip_api::TrustDomain;
use aip_api::name::DEFAULT_TRUST_DOMAIN;
use aip_api::problem::FieldError;
use aip_api::resource::MeshMode;
use aip_runtime::settings::{self, Said, SettingsError, Text, parsed};
use aip_runtime::telemetry::{self, LogFormat};
use clap::Parser;
use serde::Deserialize;

use crate::config::Limits;

/// Where sidecars connect, unless told otherwise.
pub const MESH_LISTEN: &str = "127.0.0.1:15012";
/// Where the admin API is, unless told otherwise.
pub const ADMIN_LISTEN: &str = "127.0.0.1:15014";
/// How long an endpoint outlives its stream: a reconnect with its first backoff, no more.
const LEASE_GRACE: Duration = Duration::from_secs(5);

/// The AIP control plane: identity, policy, registry and push.
#[derive(Debug, Clone, Default, Parser, Deserialize)]
#[command(name = "aip-control-plane", version)]
#[serde(deny_unknown_fields, default)]
pub struct Flags {
    /// A YAML file with these settings; flags win over it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// End, as at SIGTERM, when standard input ends: whoever supervises this process holds its other end
    #[arg(long)]
    #[serde(skip)]
    pub lifeline: bool,
    /// The data directory; made if it is absent
    #[arg(long, value_name = "DIR", env = "AIP_DATA")]
    pub data: Option<PathBuf>,
    /// dev or prod; from the mesh's creation [default: dev]
    #[arg(long, env = "AIP_MODE")]
    pub mode: Option<Text>,
    /// The trust domain; from the mesh's creation [default: aip.internal]
    #[arg(long, env = "AIP_TRUST_DOMAIN")]
    pub trust_domain: Option<Text>,
    /// Where sidecars connect, gRPC over TLS [default: 127.0.0.1:15012]
    #[arg(long, value_name = "IP:PORT", env = "AIP_MESH_LISTEN")]
    pub mesh_listen: Option<Text>,
    /// The admin API and metrics; TLS beyond loopback [default: 127.0.0.1:15014]
    #[arg(long, value_name = "IP:PORT", env = "AIP_ADMIN_LISTEN")]
    pub admin_listen: Option<Text>,
    /// The admin API's Unix socket [default: admin.sock in the data directory]
    #[arg(long, value_name = "PATH", env = "AIP_ADMIN_SOCKET")]
    pub admin_socket: Option<PathBuf>,
    /// The key that seals secrets at rest (64 hex digits); AIP_DATA_KEY holds the key itself
    #[arg(long, value_name = "FILE", env = "AIP_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// Where secrets lie that settings name, a file each: what signs webhooks [default: secrets in the data directory]
    #[arg(long, value_name = "DIR", env = "AIP_SECRETS")]
    pub secrets: Option<PathBuf>,
    /// json or text [default: json]
    #[arg(long, env = "AIP_LOG_FORMAT")]
    pub log_format: Option<Text>,
    /// What is logged, as `tracing` filter [default: info]
    #[arg(long, value_name = "FILTER", env = "AIP_LOG")]
    pub log: Option<Text>,
}

/// Settings that were checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The data directory.
    pub data: PathBuf,
    /// Asked for; `None`: as the mesh is, or `dev` for a new one.
    pub mode: Option<MeshMode>,
    /// Asked for; `None`: as the mesh is, or the default for a new one.
    pub trust_domain: Option<TrustDomain>,
    /// Where sidecars connect.
    pub mesh_listen: SocketAddr,
    /// Where the admin API is.
    pub admin_listen: SocketAddr,
    /// Its Unix socket; `None`: in the data directory.
    pub admin_socket: Option<PathBuf>,
    /// The sealing key's file.
    pub key_file: Option<PathBuf>,
    /// Where secrets lie that settings name; `None`: in the data directory.
    pub secrets: Option<PathBuf>,
    /// How logs look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log: String,
    /// The program that checks policies; this one.
    pub program: PathBuf,
    /// How long an endpoint outlives its stream.
    pub lease_grace: Duration,
    /// How many config streams there may be.
    pub limits: Limits,
}

impl Settings {
    /// The settings of a control plane on free loopback ports.
    pub fn on_loopback(data: &Path, program: PathBuf) -> Self {
        Self {
            data: data.to_owned(),
            mode: None,
            trust_domain: None,
            mesh_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin_socket: None,
            key_file: None,
            secrets: None,
            log_format: LogFormat::Text,
            log: "info".into(),
            program,
            lease_grace: LEASE_GRACE,
            limits: Limits::default(),
        }
    }
}

impl Flags {
    /// Adds what the file says, and checks everything; all mistakes come at once, each with its place.
    ///
    /// # Errors
    /// The file can't be read, or settings can't be used.
    pub fn resolve(self, mut said: Said) -> Result<Settings, SettingsError> {
        let mut mistakes = Vec::new();
        let file = match &self.config {
            Some(path) => settings::load::<Self>(path, &mut said, &mut mistakes)?,
            None => Self::default(),
        };
        let mut found = Vec::new();
        let settings = self.over(file).check(&mut found);
        said.add(&mut mistakes, found);
        if mistakes.is_empty() {
            Ok(settings)
        } else {
            Err(SettingsError::Invalid(mistakes))
        }
    }

    fn over(self, file: Self) -> Self {
        Self {
            config: self.config,
            lifeline: self.lifeline,
            data: self.data.or(file.data),
            mode: self.mode.or(file.mode),
            trust_domain: self.trust_domain.or(file.trust_domain),
            mesh_listen: self.mesh_listen.or(file.mesh_listen),
            admin_listen: self.admin_listen.or(file.admin_listen),
            admin_socket: self.admin_socket.or(file.admin_socket),
            key_file: self.key_file.or(file.key_file),
            secrets: self.secrets.or(file.secrets),
            log_format: self.log_format.or(file.log_format),
            log: self.log.or(file.log),
        }
    }

    /// The settings, which are to be used only where nothing was found.
    fn check(self, found: &mut Vec<FieldError>) -> Settings {
        let mode = parsed(found, "mode", self.mode.as_ref(), "dev or prod", |text| match text {
            "dev" => Some(MeshMode::Dev),
            "prod" => Some(MeshMode::Prod),
            _ => None,
        });
        let domain = "a trust domain: DNS labels of a-z, 0-9 and '-', separated by dots, at most 255 bytes";
        let read = |text: &str| text.parse().ok();
        let trust_domain = parsed(found, "trust_domain", self.trust_domain.as_ref(), domain, read);
        let mesh_listen = address(found, "mesh_listen", self.mesh_listen, MESH_LISTEN);
        let admin_listen = address(found, "admin_listen", self.admin_listen, ADMIN_LISTEN);
        let read = |text: &str| text.parse().ok();
        let log_format = parsed(found, "log_format", self.log_format.as_ref(), "json or text", read);
        let read_filter = |text: &str| telemetry::is_filter(text).then(|| text.to_owned());
        let log = parsed(found, "log", self.log.as_ref(), telemetry::A_FILTER, read_filter);
        if self.data.is_none() {
            let message = "is missing: name the data directory with --data, AIP_DATA or `data` in the file";
            found.push(FieldError::new("data", message));
        }
        Settings {
            data: self.data.unwrap_or_default(),
            mode,
            trust_domain,
            mesh_listen,
            admin_listen,
            admin_socket: self.admin_socket,
            key_file: self.key_file,
            secrets: self.secrets,
            log_format: log_format.unwrap_or_default(),
            log: log.unwrap_or_else(|| "info".into()),
            program: std::env::current_exe().unwrap_or_default(),
            lease_grace: LEASE_GRACE,
            limits: Limits::default(),
        }
    }
}

fn address(found: &mut Vec<FieldError>, field: &str, text: Option<Text>, default: &str) -> SocketAddr {
    let text = text.unwrap_or_else(|| default.into());
    let read = |text: &str| text.parse().ok();
    parsed(found, field, Some(&text), "IP:PORT", read).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// The trust domain of a new mesh that was not told another.
///
/// # Errors
/// Never: the constant is one.
pub fn default_trust_domain() -> Result<TrustDomain, aip_api::name::NameError> {
    DEFAULT_TRUST_DOMAIN.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_come_at_once_and_flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, "data: /from/file\nmode: prod\nmesh_listen: 127.0.0.1:1\n").unwrap();
        let flags = Flags {
            config: Some(path.clone()),
            mode: Some("dev".into()),
            ..Flags::default()
        };
        let settings = flags.resolve(Said::default()).unwrap();
        assert_eq!(settings.data, PathBuf::from("/from/file"));
        assert_eq!(settings.mode, Some(MeshMode::Dev));
        assert_eq!(settings.mesh_listen.port(), 1);
        assert_eq!(settings.admin_listen.to_string(), ADMIN_LISTEN);
        let flags = Flags {
            mode: Some("test".into()),
            admin_listen: Some("here".into()),
            ..Flags::default()
        };
        let text = flags.resolve(Said::default()).unwrap_err().to_string();
        for field in ["data", "mode", "admin_listen"] {
            assert!(text.contains(field), "{field} is missing from: {text}");
        }
        std::fs::write(&path, "dta: /x\n").unwrap();
        let flags = Flags {
            config: Some(path),
            ..Flags::default()
        };
        assert!(
            flags
                .resolve(Said::default())
                .unwrap_err()
                .to_string()
                .contains("dta: line 1: unknown field")
        );
    }
}
