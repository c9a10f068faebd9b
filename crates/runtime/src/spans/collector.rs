//! The collector's side: batches, over gRPC, in the open or over TLS.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use metrics::{Counter, counter};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::{DROPPED, EXPORTED, Kind, Settings, Span, SpansError, Value};
use crate::tls;

/// Spans in one message, as OpenTelemetry's own default: some hundred kilobytes, below any collector's limit (4 MiB).
const MAX_BATCH: usize = 512;
/// How long spans are gathered: few messages, and still there when somebody looks.
const LINGER: Duration = Duration::from_secs(1);
/// How long a connection may take, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// OTLP over gRPC (IANA).
const PORT: u16 = 4_317;
const HTTPS_PORT: u16 = 443;

/// Sends what waits in the queue.
pub(super) struct Collector {
    exporter: SpanExporter,
    endpoint: String,
    timeout: Duration,
    scope: InstrumentationScope,
    exported: Counter,
    lost: Counter,
}

impl Collector {
    /// # Errors
    /// The certificates to trust can't be read.
    pub(super) fn new(settings: &Settings) -> Result<Self, SpansError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_channel(channel(settings)?)
            .with_timeout(settings.timeout())
            .build();
        let mut exporter = exporter.map_err(|e| SpansError::Exporter {
            endpoint: settings.endpoint.clone(),
            why: e.to_string(),
        })?;
        exporter.set_resource(&Resource::builder().with_service_name(settings.service.clone()).build());
        Ok(Self {
            exporter,
            endpoint: settings.endpoint.clone(),
            timeout: settings.timeout(),
            scope: InstrumentationScope::builder("aip-sidecar")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
            exported: counter!(EXPORTED),
            lost: counter!(DROPPED, "reason" => "collector"),
        })
    }

    /// Sends until the queue is closed and empty.
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Span>, mut closing: watch::Receiver<bool>) {
        // Said when it changes, not for every batch.
        let mut reached = true;
        loop {
            let batch = gather(&mut queue, &mut closing).await;
            if batch.is_empty() {
                return;
            }
            let count = batch.len() as u64;
            let batch = batch.into_iter().map(|span| data(span, &self.scope)).collect();
            let why = match tokio::time::timeout(self.timeout, self.exporter.export(batch)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {} ms", self.timeout.as_millis())),
            };
            match why {
                None => self.exported.increment(count),
                Some(why) => {
                    self.lost.increment(count);
                    if reached {
                        tracing::warn!(endpoint = self.endpoint, error = why, "spans can't be sent");
                    }
                    reached = false;
                    continue;
                }
            }
            if !reached {
                tracing::info!(endpoint = self.endpoint, "spans can be sent again");
            }
            reached = true;
        }
    }
}

/// The next batch: as many as fit, or what came within [`LINGER`] of the first; nothing at the end.
async fn gather(queue: &mut mpsc::Receiver<Span>, closing: &mut watch::Receiver<bool>) -> Vec<Span> {
    let (mut batch, mut until) = (Vec::new(), None);
    loop {
        let room = MAX_BATCH - batch.len();
        tokio::select! {
            biased;
            count = queue.recv_many(&mut batch, room) => {
                if count == 0 || batch.len() == MAX_BATCH {
                    return batch;
                }
                until.get_or_insert_with(|| Instant::now() + LINGER);
            }
            () = at(until) => return batch,
            () = told(closing), if !queue.is_closed() => queue.close(),
        }
    }
}

async fn at(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

async fn told(closing: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could send a span.
    let _ = closing.wait_for(|closing| *closing).await;
}

fn data(span: Span, scope: &InstrumentationScope) -> SpanData {
    let context = SpanContext::new(
        TraceId::from_bytes(span.trace),
        SpanId::from_bytes(span.id),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    );
    let value = |(name, value): (&'static str, Value)| match value {
        Value::Word(word) => KeyValue::new(name, word),
        Value::Text(text) => KeyValue::new(name, text),
        Value::Number(number) => KeyValue::new(name, i64::try_from(number).unwrap_or(i64::MAX)),
        Value::Flag(flag) => KeyValue::new(name, flag),
    };
    SpanData {
        span_context: context,
        parent_span_id: span.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: span.parent.is_some(),
        span_kind: match span.kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
        },
        name: span.name.into(),
        start_time: span.start,
        end_time: span.start + span.took,
        attributes: span.attributes.into_iter().map(value).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        // What went wrong stands in `error.type`.
        status: match span.failed {
            true => Status::error(""),
            false => Status::Unset,
        },
        instrumentation_scope: scope.clone(),
    }
}

/// A channel that connects when something is to be sent, and again whenever it has to.
fn channel(settings: &Settings) -> Result<Channel, SpansError> {
    let invalid = |why: String| SpansError::Exporter {
        endpoint: settings.endpoint.clone(),
        why,
    };
    let url: Uri = settings.endpoint.parse().map_err(|e| invalid(format!("{e}")))?;
    let host = url.host().unwrap_or_default().to_owned();
    let Some(file) = &settings.ca_file else {
        let authority = format!("http://{host}:{}", url.port_u16().unwrap_or(PORT));
        let endpoint = Endpoint::from_shared(authority).map_err(|e| invalid(e.to_string()))?;
        return Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy());
    };
    let config = Arc::new(trusting(file)?);
    let named = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(named.clone()).map_err(|e| invalid(e.to_string()))?;
    let port = url.port_u16().unwrap_or(HTTPS_PORT);
    // tonic leaves a connection of ours alone where its own address says http; requests say https all the same.
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|e| invalid(e.to_string()))?;
    let endpoint = endpoint.origin(url).connect_timeout(CONNECT_TIMEOUT);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (connector, name, named) = (TlsConnector::from(config.clone()), name.clone(), named.clone());
        async move {
            let tcp = TcpStream::connect((named.as_str(), port)).await?;
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    })))
}

/// TLS to whoever shows a certificate of one of the authorities in `file` (PEM).
fn trusting(file: &std::path::Path) -> Result<ClientConfig, SpansError> {
    let unusable = |why: String| SpansError::Roots {
        file: file.display().to_string(),
        why,
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file).map_err(|e| unusable(e.to_string()))?;
    // A list of a system holds some that no library reads.
    let (taken, _) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    if taken == 0 {
        return Err(unusable("it holds no certificate".into()));
    }
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(e.to_string()))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = tls::ALPN_H2.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}
