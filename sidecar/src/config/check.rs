//! Settings from what was said. Nothing stops at the first mistake.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aip_api::AgentName;
use aip_api::evidence::{Enforcement, MAX_RUN_BYTES};
use aip_api::problem::FieldError;
use aip_runtime::settings::{Text, parsed};
use aip_runtime::spans;
use aip_runtime::telemetry::{self, LogFormat};

use super::{Access, Config, Flags, Measured};

/// The sidecar's own work is bounded by the agent's, so more than this only costs memory.
const DEFAULT_WORKERS: usize = 2;
/// Kubernetes gives 30 s between SIGTERM and SIGKILL; this leaves time to flush.
const DEFAULT_DRAIN_SECONDS: u64 = 20;
/// More threads than any machine gives one sidecar of many.
const MAX_WORKERS: usize = 64;
/// A sidecar is one of many on a machine.
const DEFAULT_AUDIT_MIB: u64 = aip_audit::log::TOTAL_BYTES / (1024 * 1024);
/// A TiB: more than anybody keeps beside an agent.
const MAX_AUDIT_MIB: u64 = 1024 * 1024;
/// Past an hour, whatever waits for the end has long ended it.
const MAX_DRAIN_SECONDS: u64 = 3_600;

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

impl Flags {
    /// The settings; `None` where one that has no default can't be had. What is wrong goes to `errors`.
    pub(super) fn check(self, errors: &mut Vec<FieldError>) -> Option<Config> {
        let name = required(errors, "name", self.name.as_ref());
        let name = parsed(errors, "name", name, AGENT_NAME, |text| text.parse::<AgentName>().ok());
        let control_plane = required(errors, "control_plane", self.control_plane.as_ref());
        let control_plane = address(errors, "control_plane", control_plane);
        let serves = self.serves(errors);
        let measured = self.measured(errors);
        let agent = match serves {
            true => self.agent.as_ref().and_then(|text| text.as_str().parse().ok()),
            // Nobody can serve at port 0.
            false => Some(loopback(0)),
        };
        let inbound = address(errors, "inbound", self.inbound.as_ref()).unwrap_or(loopback(15006));
        let advertise = address(errors, "advertise", self.advertise.as_ref());
        let outbound = local(errors, "outbound", self.outbound.as_ref(), 15001);
        let admin = local(errors, "admin", self.admin.as_ref(), 15000);
        let probes = address(errors, "probes", self.probes.as_ref()).unwrap_or(loopback(15021));
        let keys = parsed(errors, "keys", self.keys.as_ref(), "sealed or memory", read);
        let (workers, drain_seconds, audit_mib) = self.limits(errors);
        let (log_format, log) = self.logging(errors);
        let run = self.run(errors);
        let data = required(errors, "data", self.data.clone());
        let runtime_dir = self.runtime_dir.clone();
        let runtime_dir = runtime_dir.or_else(|| data.as_ref().map(|data| data.join("runtime")));
        let access = self.access(runtime_dir.as_deref(), errors);
        let service = name.as_ref().map_or("aip-sidecar", AgentName::as_str);
        let otlp = spans::Settings::check(self.spans(), service, &|name| std::env::var(name).ok(), errors);
        Some(Config {
            name: name?,
            control_plane: control_plane?,
            join_token_file: self.join_token_file,
            agent: agent?,
            serves,
            inbound,
            advertise,
            outbound,
            admin,
            probes,
            runtime_dir: runtime_dir?,
            data: data?,
            keys: keys.unwrap_or_default(),
            key_file: self.key_file,
            measured,
            run,
            access,
            workers,
            drain_seconds,
            audit_mib,
            log_format,
            log,
            otlp,
        })
    }

    /// Whether the agent serves anything; where it does, it must be said where.
    fn serves(&self, errors: &mut Vec<FieldError>) -> bool {
        let silent = parsed(errors, "no_serve", self.no_serve.as_ref(), "true or false", read);
        if silent != Some(true) {
            required(errors, "agent", self.agent.as_ref());
            return true;
        }
        if self.agent.is_some() {
            errors.push(FieldError::new("no_serve", "contradicts agent: leave one of them out"));
        }
        false
    }

    /// Threads, seconds of a drain, and MiB of the audit.
    fn limits(&self, errors: &mut Vec<FieldError>) -> (usize, u64, u64) {
        let workers = self.workers.as_ref();
        let workers = bounded(errors, "workers", workers, DEFAULT_WORKERS, 1..=MAX_WORKERS);
        let seconds = self.drain_seconds.as_ref();
        let bounds = 0..=MAX_DRAIN_SECONDS;
        let seconds = bounded(errors, "drain_seconds", seconds, DEFAULT_DRAIN_SECONDS, bounds);
        let audit = self.audit_mib.as_ref();
        let audit = bounded(errors, "audit_mib", audit, DEFAULT_AUDIT_MIB, 1..=MAX_AUDIT_MIB);
        (workers, seconds, audit)
    }

    fn logging(&self, errors: &mut Vec<FieldError>) -> (LogFormat, String) {
        let format = parsed(errors, "log_format", self.log_format.as_ref(), "json or text", read);
        let filter = |text: &str| telemetry::is_filter(text).then(|| text.to_owned());
        let log = parsed(errors, "log", self.log.as_ref(), telemetry::A_FILTER, filter);
        (format.unwrap_or_default(), log.unwrap_or_else(|| "info".into()))
    }

    /// The run of the agent that this is; one of its own where nobody named it.
    fn run(&self, errors: &mut Vec<FieldError>) -> String {
        let allowed = "1 to 64 printable characters";
        let run = parsed(errors, "run", self.run.as_ref(), allowed, |text| {
            let fits = (1..=MAX_RUN_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
            fits.then(|| text.to_owned())
        });
        run.unwrap_or_else(|| uuid::Uuid::now_v7().to_string())
    }

    /// What was said of spans.
    fn spans(&self) -> spans::Asked<'_> {
        spans::Asked {
            endpoint: self.otlp_endpoint.as_ref(),
            ca_file: self.otlp_ca_file.as_deref(),
            insecure: self.otlp_insecure.as_ref(),
            sampler: self.otlp_sampler.as_ref(),
            sampler_arg: self.otlp_sampler_arg.as_ref(),
        }
    }

    /// Closed, unless it is said in so many words that it is to be open.
    fn access(&self, runtime_dir: Option<&Path>, errors: &mut Vec<FieldError>) -> Access {
        let open = parsed(errors, "proxy_open", self.proxy_open.as_ref(), "true or false", read);
        let open = open.unwrap_or(false);
        let given = self.proxy_secret_file.is_some() || self.agent_uid.is_some();
        if open && given {
            let message = "contradicts proxy_secret_file and agent_uid: leave it out, or them";
            errors.push(FieldError::new("proxy_open", message));
        }
        let makes_secret = !open && !given;
        let made = runtime_dir.filter(|_| makes_secret).map(|dir| dir.join("proxy-secret"));
        Access {
            proxy_secret_file: self.proxy_secret_file.clone().or(made),
            makes_secret,
            agent_uid: parsed(
                errors,
                "agent_uid",
                self.agent_uid.as_ref(),
                "the number of a user",
                read,
            ),
        }
    }

    /// What is declared for measuring.
    pub fn measured(&self, errors: &mut Vec<FieldError>) -> Measured {
        let either = "cooperative or captured";
        let enforcement = parsed(
            errors,
            "enforcement",
            self.enforcement.as_ref(),
            either,
            |text| match text {
                "cooperative" => Some(Enforcement::Cooperative),
                "captured" => Some(Enforcement::Captured),
                _ => None,
            },
        );
        let argv = parsed(errors, "argv", self.argv.as_ref(), "a JSON array of strings", |text| {
            serde_json::from_str(text).ok()
        });
        let agent = address(errors, "agent", self.agent.as_ref());
        Measured {
            root: self.root.clone().unwrap_or_else(|| PathBuf::from(".")),
            code: self.code.clone(),
            config: self.config_file.clone(),
            executable: self.executable.clone(),
            argv,
            port: agent.map(|agent| agent.port()),
            enforcement: enforcement.unwrap_or(Enforcement::Cooperative),
        }
    }
}

const AGENT_NAME: &str = "an agent name: 1 to 63 of a-z, 0-9 and '-', with no '-' at either end";

fn read<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn address(errors: &mut Vec<FieldError>, field: &str, text: Option<&Text>) -> Option<SocketAddr> {
    parsed(errors, field, text, "IP:PORT", read)
}

/// An address that only this machine may reach.
fn local(errors: &mut Vec<FieldError>, field: &str, text: Option<&Text>, port: u16) -> SocketAddr {
    let address = address(errors, field, text).unwrap_or(loopback(port));
    if !address.ip().is_loopback() {
        let message = format!("{address} is not a loopback address: it is for this machine only");
        errors.push(FieldError::new(field, message));
    }
    address
}

fn bounded<T: Copy + PartialOrd + Display + FromStr>(
    errors: &mut Vec<FieldError>,
    field: &str,
    text: Option<&Text>,
    default: T,
    bounds: RangeInclusive<T>,
) -> T {
    let allowed = format!("a whole number from {} to {}", bounds.start(), bounds.end());
    let read = |text: &str| text.parse().ok().filter(|value| bounds.contains(value));
    parsed(errors, field, text, &allowed, read).unwrap_or(default)
}

fn required<T>(errors: &mut Vec<FieldError>, field: &str, value: Option<T>) -> Option<T> {
    if value.is_none() {
        let (flag, variable) = (field.replace('_', "-"), field.to_uppercase());
        let message = format!("is missing: give --{flag}, AIP_SIDECAR_{variable}, or {field} in the file");
        errors.push(FieldError::new(field, message));
    }
    value
}
