//! Logs and metrics.

mod rated;

use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

use rated::Rated;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    #[default]
    Json,
    /// For people at a terminal.
    Text,
}

impl std::str::FromStr for LogFormat {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            other => Err(format!("{other:?} is not a log format: json or text")),
        }
    }
}

/// Whether `text` is a filter that [`init_logs`] takes.
pub fn is_filter(text: &str) -> bool {
    EnvFilter::try_new(text).is_ok()
}

/// What a filter is, for who wrote none.
pub const A_FILTER: &str = "a log filter: a level, or levels by module as in info,aip_sidecar=debug";

/// Sends log lines to standard error, so many in a time of each kind. `filter` is a `tracing` filter such as `info` or
/// `aip_sidecar=debug,info`. A second call in one process changes nothing (tests run several meshes in one).
pub fn init_logs(format: LogFormat, filter: &str) {
    // An error only says that somebody was first.
    let _ = subscriber(format, filter, std::io::stderr).try_init();
}

fn subscriber<W>(format: LogFormat, filter: &str, writer: W) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Json => {
            let json = builder.json().flatten_event(true).with_current_span(true);
            Box::new(json.map_event_format(|lines| Rated::new(lines, format)).finish())
        }
        LogFormat::Text => {
            let text = builder.with_target(false);
            Box::new(text.map_event_format(|lines| Rated::new(lines, format)).finish())
        }
    }
}

/// Says once why the process ends: in plain words to a person at a terminal, and where there is no log yet; else as the
/// last line of the log, so that who collects it gets one error, in the format of all others.
pub fn last_words(program: &str, why: &str) {
    if std::io::stderr().is_terminal() || !tracing::enabled!(tracing::Level::ERROR) {
        eprintln!("{program}: {why}");
    } else {
        tracing::error!(error = why, "{program} ended");
    }
}

/// The process's metrics.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

/// Seconds, from what a decision takes to what an agent may think: every histogram of ours is a duration.
const BUCKETS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0,
];

/// How often histograms are folded; without it they grow by every sample.
const UPKEEP: Duration = Duration::from_secs(5);

/// The process's recorder, installed at the first call.
pub fn init_metrics() -> Metrics {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    let handle = HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        let builder = builder.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS);
        let recorder = builder.unwrap_or_else(|_| PrometheusBuilder::new()).build_recorder();
        let handle = recorder.handle();
        // An error only says that the process already has a recorder.
        let _ = metrics::set_global_recorder(recorder);
        let upkeep = handle.clone();
        let thread = std::thread::Builder::new().name("metrics-upkeep".into());
        // Without the thread, scrapes fold the histograms instead.
        let _ = thread.spawn(move || {
            loop {
                std::thread::sleep(UPKEEP);
                upkeep.run_upkeep();
            }
        });
        handle
    });
    Metrics(handle.clone())
}

impl Metrics {
    /// The Prometheus text exposition.
    pub fn render(&self) -> String {
        self.0.render()
    }
}
