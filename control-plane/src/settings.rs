//! How the control plane is started: flags, or one YAML file whose fields have the flags' names.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aip_api::TrustDomain;
use aip_api::name::DEFAULT_TRUST_DOMAIN;
use aip_api::problem::FieldError;
use aip_api::resource::MeshMode;
use aip_runtime::settings::SettingsError;
use aip_runtime::telemetry::LogFormat;
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
    pub mode: Option<String>,
    /// The trust domain; from the mesh's creation [default: aip.internal]
    #[arg(long, env = "AIP_TRUST_DOMAIN")]
    pub trust_domain: Option<String>,
    /// Where sidecars connect, gRPC over TLS [default: 127.0.0.1:15012]
    #[arg(long, value_name = "IP:PORT", env = "AIP_MESH_LISTEN")]
    pub mesh_listen: Option<String>,
    /// The admin API and metrics; TLS beyond loopback [default: 127.0.0.1:15014]
    #[arg(long, value_name = "IP:PORT", env = "AIP_ADMIN_LISTEN")]
    pub admin_listen: Option<String>,
    /// The admin API's Unix socket [default: admin.sock in the data directory]
    #[arg(long, value_name = "PATH", env = "AIP_ADMIN_SOCKET")]
    pub admin_socket: Option<PathBuf>,
    /// The key that seals secrets at rest (64 hex digits); AIP_DATA_KEY holds the key itself
    #[arg(long, value_name = "FILE", env = "AIP_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// json or text [default: json]
    #[arg(long, env = "AIP_LOG_FORMAT")]
    pub log_format: Option<String>,
    /// What is logged, as `tracing` filter [default: info]
    #[arg(long, value_name = "FILTER", env = "AIP_LOG")]
    pub log: Option<String>,
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
            log_format: LogFormat::Text,
            log: "info".into(),
            program,
            lease_grace: LEASE_GRACE,
            limits: Limits::default(),
        }
    }
}

impl Flags {
    /// Adds what the file says, and checks everything; all mistakes come at once.
    ///
    /// # Errors
    /// The file can't be read, or settings can't be used.
    pub fn resolve(self) -> Result<Settings, SettingsError> {
        let mut unread = Vec::new();
        let file = match &self.config {
            Some(path) => aip_runtime::settings::load::<Self>(path, &mut unread)?,
            None => Self::default(),
        };
        let mut mistakes = Vec::new();
        let listen_default = |text: &str| text.to_owned();
        let settings = Settings {
            data: self.data.or(file.data).unwrap_or_else(|| {
                mistakes.push(FieldError::new("data", "name the data directory: --data DIR"));
                PathBuf::new()
            }),
            mode: parsed(&mut mistakes, "mode", self.mode.or(file.mode), |text| match text {
                "dev" => Ok(MeshMode::Dev),
                "prod" => Ok(MeshMode::Prod),
                _ => Err("dev or prod".to_owned()),
            }),
            trust_domain: parsed(
                &mut mistakes,
                "trust_domain",
                self.trust_domain.or(file.trust_domain),
                |text| text.parse().map_err(|e: aip_api::name::NameError| e.to_string()),
            ),
            mesh_listen: address(
                &mut mistakes,
                "mesh_listen",
                self.mesh_listen
                    .or(file.mesh_listen)
                    .unwrap_or_else(|| listen_default(MESH_LISTEN)),
            ),
            admin_listen: address(
                &mut mistakes,
                "admin_listen",
                self.admin_listen
                    .or(file.admin_listen)
                    .unwrap_or_else(|| listen_default(ADMIN_LISTEN)),
            ),
            admin_socket: self.admin_socket.or(file.admin_socket),
            key_file: self.key_file.or(file.key_file),
            log_format: parsed(
                &mut mistakes,
                "log_format",
                self.log_format.or(file.log_format),
                str::parse,
            )
            .unwrap_or_default(),
            log: self.log.or(file.log).unwrap_or_else(|| "info".into()),
            program: std::env::current_exe().unwrap_or_default(),
            lease_grace: LEASE_GRACE,
            limits: Limits::default(),
        };
        aip_runtime::settings::add_mistakes(&mut unread, mistakes);
        if unread.is_empty() {
            Ok(settings)
        } else {
            Err(SettingsError::Invalid(unread))
        }
    }
}

fn parsed<T>(
    mistakes: &mut Vec<FieldError>,
    field: &str,
    text: Option<String>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    match parse(text.as_deref()?) {
        Ok(value) => Some(value),
        Err(message) => {
            mistakes.push(FieldError::new(field, message));
            None
        }
    }
}

fn address(mistakes: &mut Vec<FieldError>, field: &str, text: String) -> SocketAddr {
    let read = |text: &str| text.parse().map_err(|_| format!("{text:?} is not ip:port"));
    parsed(mistakes, field, Some(text), read).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
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
        let settings = flags.resolve().unwrap();
        assert_eq!(settings.data, PathBuf::from("/from/file"));
        assert_eq!(settings.mode, Some(MeshMode::Dev));
        assert_eq!(settings.mesh_listen.port(), 1);
        assert_eq!(settings.admin_listen.to_string(), ADMIN_LISTEN);
        let flags = Flags {
            mode: Some("test".into()),
            admin_listen: Some("here".into()),
            ..Flags::default()
        };
        let text = flags.resolve().unwrap_err().to_string();
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
                .resolve()
                .unwrap_err()
                .to_string()
                .contains("dta: line 1: unknown field")
        );
    }
}
