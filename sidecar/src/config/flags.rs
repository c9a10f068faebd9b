//! Flags, variables and file: what was said, as it was written. `check` makes settings of it.

use std::path::PathBuf;

use aip_runtime::settings::{self, Said, SettingsError, Text};
use clap::Parser;
use serde::Deserialize;

use super::Config;

/// The AIP data plane: one sidecar beside each agent.
#[derive(Debug, Clone, Default, Parser, Deserialize)]
#[command(name = "aip-sidecar", version)]
#[serde(deny_unknown_fields, default)]
pub struct Flags {
    /// YAML file with these settings, by the same names with '_' for '-'
    #[arg(long, env = "AIP_SIDECAR_CONFIG")]
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
    #[arg(long, env = "AIP_SIDECAR_NAME")]
    pub name: Option<Text>,
    /// The control plane's mesh port
    #[arg(long, value_name = "IP:PORT", env = "AIP_SIDECAR_CONTROL_PLANE")]
    pub control_plane: Option<Text>,
    /// File that holds the join token (or the variable AIP_JOIN_TOKEN)
    #[arg(long, value_name = "FILE", env = "AIP_SIDECAR_JOIN_TOKEN_FILE")]
    pub join_token_file: Option<PathBuf>,
    /// Where the agent itself serves
    #[arg(long, value_name = "IP:PORT", env = "AIP_SIDECAR_AGENT")]
    pub agent: Option<Text>,
    /// The agent serves nothing, it only calls: there is no --agent, and calls to it are refused
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "AIP_SIDECAR_NO_SERVE")]
    pub no_serve: Option<Text>,
    /// Where peers' sidecars reach this one (mTLS)
    #[arg(long, value_name = "IP:PORT", env = "AIP_SIDECAR_INBOUND")]
    pub inbound: Option<Text>,
    /// The address that is told to peers, where it differs from --inbound
    #[arg(long, value_name = "IP:PORT", env = "AIP_SIDECAR_ADVERTISE")]
    pub advertise: Option<Text>,
    /// Where the agent sends its own calls (loopback)
    #[arg(long, value_name = "IP:PORT", env = "AIP_SIDECAR_OUTBOUND")]
    pub outbound: Option<Text>,
    /// Read-only admin and metrics (loopback)
    #[arg(long, value_name = "IP:PORT", env = "AIP_SIDECAR_ADMIN")]
    pub admin: Option<Text>,
    /// Liveness and readiness
    #[arg(long, value_name = "IP:PORT", env = "AIP_SIDECAR_PROBES")]
    pub probes: Option<Text>,
    /// Directory for the signed cache
    #[arg(long, value_name = "DIR", env = "AIP_SIDECAR_DATA")]
    pub data: Option<PathBuf>,
    /// Directory for the sealed key; a tmpfs where there is one
    #[arg(long, value_name = "DIR", env = "AIP_SIDECAR_RUNTIME_DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// `sealed` (restart without a control plane works) or `memory`
    #[arg(long, value_name = "sealed|memory", env = "AIP_SIDECAR_KEYS")]
    pub keys: Option<Text>,
    /// File with the sealing key (or the variable AIP_DATA_KEY); made in the runtime directory if neither is given
    #[arg(long, value_name = "FILE", env = "AIP_SIDECAR_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// Directory below which declared files lie
    #[arg(long, value_name = "DIR", env = "AIP_SIDECAR_ROOT")]
    pub root: Option<PathBuf>,
    /// Declared code: globs below the root; repeatable
    #[arg(long, value_name = "GLOB", env = "AIP_SIDECAR_CODE")]
    pub code: Vec<String>,
    /// Declared configuration: files below the root; repeatable
    #[arg(long = "config-file", value_name = "FILE", env = "AIP_SIDECAR_CONFIG_FILE")]
    pub config_file: Vec<String>,
    /// The agent's executable, where a supervisor started it
    #[arg(long, value_name = "FILE", env = "AIP_SIDECAR_EXECUTABLE")]
    pub executable: Option<PathBuf>,
    /// The agent's command line as a JSON array, where a supervisor started it
    #[arg(long, value_name = "JSON", env = "AIP_SIDECAR_ARGV")]
    pub argv: Option<Text>,
    /// Which run of the agent this is, where a supervisor started it: another name for each start [default: one for each
    /// start of the sidecar]
    #[arg(long, value_name = "ID", env = "AIP_SIDECAR_RUN")]
    pub run: Option<Text>,
    /// File with the secret that the agent must show at the outbound port [default: proxy-secret in the runtime
    /// directory, made if it is absent]
    #[arg(long, value_name = "FILE", env = "AIP_SIDECAR_PROXY_SECRET_FILE")]
    pub proxy_secret_file: Option<PathBuf>,
    /// The user that the agent runs as, by number: the outbound port then takes its connections only
    #[arg(long, value_name = "UID", env = "AIP_SIDECAR_AGENT_UID")]
    pub agent_uid: Option<Text>,
    /// Let every process that reaches the outbound port speak as the agent, with neither a secret nor a user
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "AIP_SIDECAR_PROXY_OPEN")]
    pub proxy_open: Option<Text>,
    /// Whether the agent can go around: `cooperative` or `captured`
    #[arg(long, value_name = "cooperative|captured", env = "AIP_SIDECAR_ENFORCEMENT")]
    pub enforcement: Option<Text>,
    /// Worker threads of the data path
    #[arg(long, env = "AIP_SIDECAR_WORKERS")]
    pub workers: Option<Text>,
    /// Seconds that a drain may take
    #[arg(long, env = "AIP_SIDECAR_DRAIN_SECONDS")]
    pub drain_seconds: Option<Text>,
    /// MiB that the audit's logs may take on disk
    #[arg(long, env = "AIP_SIDECAR_AUDIT_MIB")]
    pub audit_mib: Option<Text>,
    /// `json` or `text`
    #[arg(long, env = "AIP_SIDECAR_LOG_FORMAT")]
    pub log_format: Option<Text>,
    /// Log filter, as in RUST_LOG
    #[arg(long, env = "AIP_SIDECAR_LOG")]
    pub log: Option<Text>,
    /// The collector that spans are sent to, OTLP over gRPC; also OTEL_EXPORTER_OTLP_ENDPOINT [default: none, and no spans]
    #[arg(long, value_name = "URL", env = "AIP_SIDECAR_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<Text>,
    /// File with the authorities, as PEM, that an https collector's certificate may be of; also
    /// OTEL_EXPORTER_OTLP_CERTIFICATE [default: the system's]
    #[arg(long, value_name = "FILE", env = "AIP_SIDECAR_OTLP_CA_FILE")]
    pub otlp_ca_file: Option<PathBuf>,
    /// Send spans in plain text to a collector that is not on this machine; also OTEL_EXPORTER_OTLP_INSECURE
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "AIP_SIDECAR_OTLP_INSECURE")]
    pub otlp_insecure: Option<Text>,
    /// Which traces are sent, by OpenTelemetry's names; also OTEL_TRACES_SAMPLER [default: parentbased_always_on]
    #[arg(long, value_name = "NAME", env = "AIP_SIDECAR_OTLP_SAMPLER")]
    pub otlp_sampler: Option<Text>,
    /// The part of them that a sampler by ratio takes, from 0 to 1; also OTEL_TRACES_SAMPLER_ARG [default: 1]
    #[arg(long, value_name = "RATIO", env = "AIP_SIDECAR_OTLP_SAMPLER_ARG")]
    pub otlp_sampler_arg: Option<Text>,
}

impl Flags {
    /// Flags over variables over file over defaults, checked.
    ///
    /// # Errors
    /// The file can't be read, or any setting can't be used: all of them, each with the place where it was said.
    pub fn resolve(self, mut said: Said) -> Result<Config, SettingsError> {
        let mut mistakes = Vec::new();
        let file: Self = match &self.config {
            Some(path) => settings::load(path, &mut said, &mut mistakes)?,
            None => Self::default(),
        };
        let mut found = Vec::new();
        let config = self.over(file).check(&mut found);
        said.add(&mut mistakes, found);
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
            no_serve: self.no_serve.or(file.no_serve),
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
            run: self.run.or(file.run),
            proxy_secret_file: self.proxy_secret_file.or(file.proxy_secret_file),
            agent_uid: self.agent_uid.or(file.agent_uid),
            proxy_open: self.proxy_open.or(file.proxy_open),
            enforcement: self.enforcement.or(file.enforcement),
            workers: self.workers.or(file.workers),
            drain_seconds: self.drain_seconds.or(file.drain_seconds),
            audit_mib: self.audit_mib.or(file.audit_mib),
            log_format: self.log_format.or(file.log_format),
            log: self.log.or(file.log),
            otlp_endpoint: self.otlp_endpoint.or(file.otlp_endpoint),
            otlp_ca_file: self.otlp_ca_file.or(file.otlp_ca_file),
            otlp_insecure: self.otlp_insecure.or(file.otlp_insecure),
            otlp_sampler: self.otlp_sampler.or(file.otlp_sampler),
            otlp_sampler_arg: self.otlp_sampler_arg.or(file.otlp_sampler_arg),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once() {
        let flags = Flags {
            name: Some("Not A Name".into()),
            outbound: Some("0.0.0.0:15001".into()),
            enforcement: Some("strong".into()),
            workers: Some("0".into()),
            ..Flags::default()
        };
        let error = flags.resolve(Said::default()).unwrap_err().to_string();
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
            control_plane: Some("127.0.0.1:1".into()),
            agent: Some("127.0.0.1:2".into()),
            data: Some("here".into()),
            ..Flags::default()
        };
        let access = |flags: Flags| flags.resolve(Said::default()).map(|config| config.access);
        let closed = access(flags()).unwrap();
        assert!(closed.makes_secret);
        assert_eq!(
            closed.proxy_secret_file.as_deref(),
            Some(Path::new("here/runtime/proxy-secret"))
        );
        let by_user = access(Flags {
            agent_uid: Some("7".into()),
            ..flags()
        })
        .unwrap();
        assert_eq!((by_user.proxy_secret_file, by_user.agent_uid), (None, Some(7)));
        let open = access(Flags {
            proxy_open: Some("true".into()),
            ..flags()
        })
        .unwrap();
        assert!(open.proxy_secret_file.is_none() && open.agent_uid.is_none() && !open.makes_secret);
        let both = Flags {
            proxy_open: Some("true".into()),
            agent_uid: Some("7".into()),
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
    fn an_agent_serves_somewhere_or_is_said_to_serve_nothing() {
        let flags = |agent: Option<&str>, no_serve: Option<&str>| Flags {
            name: Some("ledger".into()),
            control_plane: Some("127.0.0.1:1".into()),
            agent: agent.map(Text::from),
            no_serve: no_serve.map(Text::from),
            data: Some("here".into()),
            ..Flags::default()
        };
        let resolve = |agent, no_serve| flags(agent, no_serve).resolve(Said::default());
        let silent = resolve(None, Some("true")).unwrap();
        assert_eq!((silent.serves, silent.measured.port), (false, None));
        for said in [None, Some("false")] {
            assert!(resolve(Some("127.0.0.1:2"), said).unwrap().serves);
            let error = resolve(None, said).unwrap_err().to_string();
            assert!(error.contains("agent: is missing"), "{error}");
        }
        let both = resolve(Some("127.0.0.1:2"), Some("true")).unwrap_err().to_string();
        assert!(both.contains("no_serve: contradicts agent"), "{both}");
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sidecar.yaml");
        let text = "name: ledger\ncontrol_plane: 127.0.0.1:1\nagent: 127.0.0.1:2\ndata: here\nworkers: 3\n";
        std::fs::write(&file, text).unwrap();
        let flags = Flags {
            config: Some(file.clone()),
            workers: Some("1".into()),
            ..Flags::default()
        };
        let config = flags.resolve(Said::default()).unwrap();
        assert_eq!((config.name.as_str(), config.workers), ("ledger", 1));
        std::fs::write(&file, format!("{text}nmae: x\n")).unwrap();
        let error = Flags {
            config: Some(file),
            ..Flags::default()
        }
        .resolve(Said::default())
        .unwrap_err()
        .to_string();
        assert!(error.contains("nmae"), "{error}");
    }
}
