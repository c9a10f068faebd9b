//! The span of a request, in OpenTelemetry's conventions for HTTP (1.23 and later): what the access log line says of it,
//! for whoever looks at a whole trace. Never a query, a header, a body or an argument.

use std::time::Duration;

use aip_policy::{Direction, PeerFacts};
use aip_runtime::spans::{Kind, Span, Value};
use http::{Method, StatusCode};

use super::{Ends, Record, host_of};
use crate::request::trace::{SpanId, Trace};

/// Longest name of a call or tool in a span's name: what traces are found by has few different words.
const MAX_NAME: usize = 128;
/// What a mesh name's port stands for: it is ignored, and plain HTTP has this one.
const HTTP_PORT: u64 = 80;

/// What the end of a request shows.
pub(super) struct Seen<'a> {
    pub(super) source: &'a str,
    pub(super) destination: &'a str,
    pub(super) end: &'static str,
    pub(super) took: Duration,
    /// Of the request's body and the response's.
    pub(super) bytes: (u64, u64),
}

impl Record {
    pub(super) fn span(&self, id: SpanId, seen: &Seen<'_>) -> Span {
        let kind = match self.direction {
            Direction::Inbound => Kind::Server,
            Direction::Outbound => Kind::Client,
        };
        let error = self.error(kind, seen.end);
        let mut attributes = self.of_http(kind, seen);
        attributes.extend(self.of_mesh(seen));
        attributes.extend(error.clone().map(|error| ("error.type", error)));
        Span {
            trace: Trace::bytes(&self.trace),
            id: id.bytes(),
            parent: self.parent.map(|parent| parent.bytes()),
            kind,
            name: self.span_name(),
            start: self.began,
            took: seen.took,
            failed: error.is_some(),
            attributes,
        }
    }

    /// The method, or the call and its tool where the protocol has some.
    fn span_name(&self) -> String {
        let (call, tool) = (clipped(&self.protocol.method), clipped(&self.protocol.tool));
        match (call, tool) {
            ("", _) => known(&self.method).unwrap_or("HTTP").to_owned(),
            (call, "") => call.to_owned(),
            (call, tool) => format!("{call} {tool}"),
        }
    }

    /// What went wrong: a refusal, an end before its time, or a status that is an error at this end.
    fn error(&self, kind: Kind, end: &'static str) -> Option<Value> {
        let least = match kind {
            Kind::Server => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Client => StatusCode::BAD_REQUEST,
        };
        let is_error = self.status >= least.as_u16();
        match self.refusal {
            Some(refusal) if is_error => Some(Value::Word(refusal.reason())),
            _ if end != "complete" => Some(Value::Word(end)),
            _ => is_error.then(|| Value::Text(self.status.to_string())),
        }
    }

    fn of_http(&self, kind: Kind, seen: &Seen<'_>) -> Vec<(&'static str, Value)> {
        let (host, port) = match &self.ends {
            Ends::Pair(pair) => address(&pair.destination, pair.snapshot.id.trust_domain.as_str()),
            _ => (seen.destination.to_owned(), HTTP_PORT),
        };
        let path = match kind {
            Kind::Server => ("url.path", Value::Text(self.path.clone())),
            Kind::Client if port == HTTP_PORT => ("url.full", Value::Text(format!("http://{host}{}", self.path))),
            Kind::Client => ("url.full", Value::Text(format!("http://{host}:{port}{}", self.path))),
        };
        vec![
            (
                "http.request.method",
                Value::Word(known(&self.method).unwrap_or("_OTHER")),
            ),
            ("url.scheme", Value::Word("http")),
            path,
            ("server.address", Value::Text(host)),
            ("server.port", Value::Number(port)),
            ("http.response.status_code", Value::Number(self.status.into())),
            ("http.request.body.size", Value::Number(seen.bytes.0)),
            ("http.response.body.size", Value::Number(seen.bytes.1)),
        ]
    }

    fn of_mesh(&self, seen: &Seen<'_>) -> Vec<(&'static str, Value)> {
        let mut known = vec![
            ("aip.direction", Value::Word(self.direction.as_str())),
            ("aip.decision", Value::Text(self.decision.to_string())),
            ("aip.source", Value::Text(seen.source.to_owned())),
            ("aip.destination", Value::Text(seen.destination.to_owned())),
            ("aip.verdict", Value::Word(self.verdict)),
            ("aip.end", Value::Word(seen.end)),
            ("aip.protocol", Value::Text(self.protocol.name.clone())),
        ];
        let texts = [
            ("aip.rule", &self.rule),
            ("aip.reason", &self.reason),
            ("aip.call", &self.protocol.method),
            ("aip.tool", &self.protocol.tool),
        ];
        let said = texts.into_iter().filter(|(_, text)| !text.is_empty());
        known.extend(said.map(|(name, text)| (name, Value::Text(clipped(text).to_owned()))));
        known.extend(self.hop.map(|hop| ("aip.hop", Value::Text(hop.to_string()))));
        known.extend(self.observed.then_some(("aip.observed", Value::Flag(true))));
        known
    }
}

fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_NAME)]
}

/// Host and port as the caller means them.
fn address(facts: &PeerFacts, trust_domain: &str) -> (String, u64) {
    match facts.port {
        0 => (format!("{}.{trust_domain}", facts.name), HTTP_PORT),
        port => (host_of(&facts.name).to_owned(), port),
    }
}

/// The methods that conventions name; any other could be any text.
fn known(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}
