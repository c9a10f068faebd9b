//! An OTLP receiver in this process: what a sidecar sends to a collector of traces, as it came.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A span as it came, with what its sender calls itself.
#[derive(Debug, Clone)]
pub struct Received {
    pub service: String,
    pub span: Span,
    /// The metadata of the call that brought it.
    pub authorization: String,
}

impl Received {
    pub fn trace(&self) -> String {
        hex::encode(&self.span.trace_id)
    }
    pub fn id(&self) -> String {
        hex::encode(&self.span.span_id)
    }
    /// Empty where the trace begins with it.
    pub fn parent(&self) -> String {
        hex::encode(&self.span.parent_span_id)
    }
    /// An attribute as text; empty where it is absent.
    pub fn text(&self, name: &str) -> String {
        text(&self.span.attributes, name)
    }
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.clone()) {
        Some(AnyValue {
            value: Some(Value::StringValue(text)),
        }) => text,
        Some(AnyValue {
            value: Some(Value::IntValue(number)),
        }) => number.to_string(),
        Some(other) => panic!("{name} is {other:?}"),
        None => String::new(),
    }
}

/// The receiver. It ends with the runtime of its test.
#[derive(Debug, Clone)]
pub struct Collector {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Collector {
    /// Serves on a free port.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            received: Arc::default(),
        };
        let server = Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        collector
    }

    /// All that came so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let authorization = request.metadata().get("authorization");
        let authorization = authorization
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        for resource in request.into_inner().resource_spans {
            let of = resource.resource.map(|of| of.attributes).unwrap_or_default();
            let service = text(&of, "service.name");
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.received.lock().unwrap().extend(spans.map(|span| Received {
                service: service.clone(),
                span,
                authorization: authorization.clone(),
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
