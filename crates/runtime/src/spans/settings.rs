//! Where spans go and which: our own settings first, then the variables that OpenTelemetry gives to every program.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
#[cfg(feature = "otlp")]
use std::time::Duration;

use aip_api::problem::FieldError;
use http::Uri;
use serde::Serialize;

use super::{BUILT, Sampler, SpansError};
use crate::settings::{Text, parsed};

/// The collector's address.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// What the address above speaks, where it is said.
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
/// The authorities that the collector's certificate may be of.
const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
/// Whether plain text may leave this machine.
const INSECURE: &str = "OTEL_EXPORTER_OTLP_INSECURE";
/// How long one export may take, milliseconds.
const TIMEOUT: &str = "OTEL_EXPORTER_OTLP_TIMEOUT";
/// What the process is called.
const SERVICE: &str = "OTEL_SERVICE_NAME";
/// Which traces.
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
/// How many of them.
const SAMPLER_ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

/// As OpenTelemetry's default: a collector that takes longer is not one to wait for.
const DEFAULT_TIMEOUT_MS: u64 = 10_000;
/// A minute; past it a hung collector would hold a batch for longer than anybody looks back.
const MAX_TIMEOUT_MS: u64 = 60_000;
/// Longest name of a service: it goes with every batch.
const MAX_SERVICE_BYTES: usize = 255;
/// Where systems keep the authorities that they trust: Debian, Alpine; Fedora, RHEL; SUSE.
const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// Where spans go. Holds no secret: `OTEL_EXPORTER_OTLP_HEADERS` is read where they are sent, and shown nowhere.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// The collector (OTLP over gRPC).
    pub(super) endpoint: String,
    /// The authorities that its certificate may be of, where it has one.
    pub(super) ca_file: Option<PathBuf>,
    /// Which traces.
    pub(super) sampler: Sampler,
    /// What this process is called.
    pub(super) service: String,
    /// Milliseconds that one export may take.
    pub(super) timeout_ms: u64,
}

/// What the process was told by its own settings.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// `otlp_endpoint`.
    pub endpoint: Option<&'a Text>,
    /// `otlp_ca_file`.
    pub ca_file: Option<&'a Path>,
    /// `otlp_insecure`.
    pub insecure: Option<&'a Text>,
    /// `otlp_sampler`.
    pub sampler: Option<&'a Text>,
    /// `otlp_sampler_arg`.
    pub sampler_arg: Option<&'a Text>,
}

/// One setting: its name, and what was said.
type Given = (&'static str, Text);

fn given(own: &'static str, asked: Option<&Text>, variable: &'static str, env: Env<'_>) -> Option<Given> {
    let own = asked.map(|text| (own, text.clone()));
    // An empty variable is one that is not set, as OpenTelemetry has it.
    let theirs = || env(variable).filter(|text| !text.is_empty());
    own.or_else(|| theirs().map(|text| (variable, text.as_str().into())))
}

/// Looks a variable up.
type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Settings {
    /// What was asked for; `None` where nobody names a collector. `service` is what the process is called unless
    /// `OTEL_SERVICE_NAME` says otherwise. What is wrong goes to `errors`.
    pub fn check(asked: Asked<'_>, service: &str, env: Env<'_>, errors: &mut Vec<FieldError>) -> Option<Self> {
        let endpoint = given("otlp_endpoint", asked.endpoint, ENDPOINT, env)?;
        if endpoint.0 == ENDPOINT && !is_for_us(env) {
            return None;
        }
        if !BUILT {
            errors.push(FieldError::new(endpoint.0, SpansError::NotBuilt.to_string()));
            return None;
        }
        let insecure = given("otlp_insecure", asked.insecure, INSECURE, env);
        let insecure = insecure.and_then(|(name, text)| {
            parsed(errors, name, Some(&text), "true or false", |text| {
                text.to_ascii_lowercase().parse::<bool>().ok()
            })
        });
        let ca_file = asked
            .ca_file
            .map(Path::to_owned)
            .or_else(|| Some(env(CERTIFICATE)?.into()));
        let target = target(&endpoint, insecure.unwrap_or(false), ca_file, errors);
        let sampler = sampler(asked, env, errors);
        let timeout = env(TIMEOUT)
            .filter(|text| !text.is_empty())
            .map(|text| Text::from(text.as_str()));
        let allowed = format!("milliseconds from 1 to {MAX_TIMEOUT_MS}");
        let timeout_ms = parsed(errors, TIMEOUT, timeout.as_ref(), &allowed, |text| {
            text.parse().ok().filter(|ms| (1..=MAX_TIMEOUT_MS).contains(ms))
        });
        let named = env(SERVICE).filter(|name| !name.is_empty());
        let mut service = named.unwrap_or_else(|| service.to_owned());
        service.truncate(service.floor_char_boundary(MAX_SERVICE_BYTES));
        let (endpoint, ca_file) = target?;
        Some(Self {
            endpoint,
            ca_file,
            sampler: sampler?,
            service,
            timeout_ms: timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS),
        })
    }

    /// The collector.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    #[cfg(feature = "otlp")]
    pub(super) const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// Whether the variable of all programs means us: an agent beside us may speak OTLP over HTTP to another port, and a
/// build that can't send does not fail for what was said to somebody else.
fn is_for_us(env: Env<'_>) -> bool {
    let protocol = env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| env(PROTOCOL));
    let speaks = protocol.is_none_or(|protocol| protocol.is_empty() || protocol == "grpc");
    let off = |variable: &str, word: &str| env(variable).is_some_and(|text| text.eq_ignore_ascii_case(word));
    BUILT && speaks && !off("OTEL_SDK_DISABLED", "true") && !off("OTEL_TRACES_EXPORTER", "none")
}

/// The endpoint, and whose certificate it must show.
fn target(
    (name, text): &Given,
    insecure: bool,
    ca_file: Option<PathBuf>,
    errors: &mut Vec<FieldError>,
) -> Option<(String, Option<PathBuf>)> {
    let mut wrong = |why: String| {
        errors.push(FieldError::new(*name, why));
        None
    };
    let url = text.as_str().parse::<Uri>().ok().filter(|uri| uri.host().is_some());
    let Some(url) = url.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https"))) else {
        return wrong("is not http://HOST:PORT or https://HOST:PORT".into());
    };
    // It is shown, and it may hold a password: no part of it stands in a message.
    if url
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return wrong("holds a user's name: credentials go into OTEL_EXPORTER_OTLP_HEADERS".into());
    }
    if !matches!(url.path_and_query().map_or("/", |path| path.as_str()), "/" | "") {
        return wrong(
            "holds a path: OTLP over gRPC has none (a path is of OTLP over HTTP, which is not spoken)".into(),
        );
    }
    let host = url.host().unwrap_or_default();
    let endpoint = format!(
        "{}://{}",
        url.scheme_str().unwrap_or_default(),
        url.authority().map_or("", |authority| authority.as_str())
    );
    if url.scheme_str() == Some("http") {
        if !insecure && !is_loopback(host) {
            return wrong(format!(
                "is plain http to {host}, which is not this machine: use https, or say --otlp-insecure"
            ));
        }
        return Some((endpoint, None));
    }
    let system = || SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.is_file());
    match ca_file.or_else(system) {
        Some(file) => Some((endpoint, Some(file))),
        None => wrong("is https, and this system has no list of authorities: give --otlp-ca-file".into()),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn sampler(asked: Asked<'_>, env: Env<'_>, errors: &mut Vec<FieldError>) -> Option<Sampler> {
    let argument = given("otlp_sampler_arg", asked.sampler_arg, SAMPLER_ARGUMENT, env);
    let read = |text: &str| text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    let ratio = argument
        .as_ref()
        .map(|(name, text)| parsed(errors, name, Some(text), "a number from 0 to 1", read));
    let named = given("otlp_sampler", asked.sampler, SAMPLER, env);
    let named = named.map(|(name, text)| {
        parsed(errors, name, Some(&text), Sampler::NAMES, |text| {
            Sampler::named(text, ratio.flatten())
        })
    });
    match (named, ratio) {
        (Some(None), _) | (_, Some(None)) => None,
        (Some(named), _) => named,
        (None, _) => Some(Sampler::default()),
    }
}

#[cfg(test)]
#[cfg(feature = "otlp")]
mod tests {
    use super::*;

    fn check(endpoint: Option<&str>, variables: &[(&str, &str)]) -> (Option<Settings>, String) {
        let env = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let (endpoint, mut errors) = (endpoint.map(Text::from), Vec::new());
        let asked = Asked {
            endpoint: endpoint.as_ref(),
            ..Asked::default()
        };
        let settings = Settings::check(asked, "researcher", &env, &mut errors);
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        (settings, errors.join("\n"))
    }

    #[test]
    fn nothing_is_sent_unless_a_collector_is_named() {
        assert!(check(None, &[(SERVICE, "x"), (SAMPLER, "always_on")]).0.is_none());
        assert!(check(None, &[(ENDPOINT, "")]).0.is_none());
        let (settings, errors) = check(None, &[(ENDPOINT, "http://localhost:4317")]);
        let settings = settings.unwrap_or_else(|| panic!("{errors}"));
        assert_eq!(
            (settings.endpoint(), settings.service.as_str()),
            ("http://localhost:4317", "researcher")
        );
        assert_eq!(
            (settings.sampler, settings.timeout_ms),
            (Sampler::default(), DEFAULT_TIMEOUT_MS)
        );
        // What was said to programs that speak otherwise was not said to us.
        for other in [
            (PROTOCOL, "http/protobuf"),
            ("OTEL_SDK_DISABLED", "true"),
            ("OTEL_TRACES_EXPORTER", "none"),
        ] {
            let said = [(ENDPOINT, "http://localhost:4318"), other];
            assert!(check(None, &said).0.is_none(), "{other:?}");
            assert!(check(Some("http://localhost:1"), &said).0.is_some(), "{other:?}");
        }
    }

    #[test]
    fn our_own_setting_is_taken_before_the_variable_and_others_are_read() {
        let said = [
            (ENDPOINT, "http://localhost:1"),
            (SERVICE, "edge"),
            (SAMPLER, "parentbased_traceidratio"),
            (SAMPLER_ARGUMENT, "0.25"),
            (TIMEOUT, "300"),
        ];
        let settings = check(Some("http://[::1]:2"), &said).0.unwrap();
        assert_eq!(
            (settings.endpoint(), settings.service.as_str()),
            ("http://[::1]:2", "edge")
        );
        assert_eq!(settings.sampler.to_string(), "parentbased_traceidratio=0.25");
        assert_eq!(settings.timeout_ms, 300);
    }

    #[test]
    fn plain_text_leaves_this_machine_only_where_that_is_said() {
        let (settings, errors) = check(Some("http://collector.example:4317"), &[]);
        assert!(settings.is_none() && errors.contains("--otlp-insecure"), "{errors}");
        assert!(
            check(Some("http://collector.example:4317"), &[(INSECURE, "true")])
                .0
                .is_some()
        );
        let (settings, _) = check(Some("https://collector.example"), &[(CERTIFICATE, "/ca.pem")]);
        assert_eq!(settings.unwrap().ca_file.as_deref(), Some(Path::new("/ca.pem")));
    }

    #[test]
    fn what_can_not_be_is_said_with_its_name_and_without_its_secrets() {
        for (bad, holds) in [
            ("collector:4317", "is not http://"),
            ("ftp://collector", "is not http://"),
            ("https://me:hunter2@collector", "holds a user's name"),
            ("http://localhost:4318/v1/traces", "holds a path"),
        ] {
            let (settings, errors) = check(Some(bad), &[]);
            assert!(settings.is_none() && errors.contains(holds), "{bad}: {errors}");
            assert!(
                errors.starts_with("otlp_endpoint: ") && !errors.contains("hunter2"),
                "{errors}"
            );
        }
        let said = [
            (SAMPLER, "sometimes"),
            (SAMPLER_ARGUMENT, "2"),
            (TIMEOUT, "0"),
            (INSECURE, "maybe"),
        ];
        let (settings, errors) = check(Some("http://localhost:1"), &said);
        assert!(settings.is_none());
        for (name, _) in said {
            assert!(errors.contains(name), "{name}: {errors}");
        }
    }
}
