//! Phase 9, record: when a request is over, however it ended, its record drops: metrics, one access log line, a span, and the end
//! in the audit where that was not written before its caller learnt of it.

mod audit;
mod span;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use aip_api::id::{DecisionId, HopId};
use aip_audit::record::Passed;
use aip_policy::{Direction, Fact, ProtocolFacts};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use audit::Audited;
pub(crate) use audit::Wait;

use super::refusal::{Cut, Refusal, Refused};
use super::trace::{SpanId, Trace};
use crate::proxy::connections::Live;
use crate::proxy::limits::{MAX_LOGGED_DETAIL, MAX_LOGGED_HOST, MAX_LOGGED_PATH};
use crate::proxy::pair::Pair;
use crate::proxy::streams::Exchange;
use crate::proxy::{Proxy, metrics};

/// What is known of one request. Written when it drops.
pub(crate) struct Record {
    proxy: Arc<Proxy>,
    pub(crate) exchange: Arc<Exchange>,
    began: SystemTime,
    pub(crate) direction: Direction,
    pub(crate) decision: DecisionId,
    pub(super) hop: Option<HopId>,
    pub(crate) trace: String,
    /// The span that the request comes from.
    parent: Option<SpanId>,
    /// Whether a span of it is sent.
    sampled: bool,
    pub(crate) ends: Ends,
    pub(crate) method: http::Method,
    pub(crate) path: String,
    pub(crate) protocol: Said,
    pub(crate) status: u16,
    pub(crate) verdict: &'static str,
    pub(crate) rule: String,
    pub(crate) reason: String,
    /// What is known beside the reason.
    detail: Option<String>,
    pub(crate) cached: bool,
    /// Words that policy put on the record.
    pub(crate) tags: BTreeSet<String>,
    /// Whether a refusal of policy was only recorded.
    pub(crate) observed: bool,
    pub(crate) connect: bool,
    /// The other end's `x-aip-decision`.
    pub(crate) callee: Option<String>,
    pub(crate) endpoint: Option<std::net::SocketAddr>,
    /// Its place among the requests in flight.
    stream: Option<u64>,
    /// Its place among the traces of calls that came in.
    open_trace: Option<u128>,
    refusal: Option<Refusal>,
    completed: bool,
    /// Who sent it, from the first moment on.
    pub(crate) caller: Option<Arc<Live>>,
    /// This sidecar answers for its agent.
    pub(crate) own: bool,
    /// TLS that nobody reads here: digests of it would say nothing.
    pub(crate) blind: bool,
    /// What a switched connection's callee said.
    pub(crate) tunnelled: Option<Passed>,
    audit: Audited,
}

/// Who talks to whom, as far as is known.
#[derive(Debug, Default)]
pub(crate) enum Ends {
    /// Not yet known.
    #[default]
    Unknown,
    /// A peer, by its connection.
    Caller(Arc<Live>),
    /// What our own agent asked for, by [`Ends::asked`].
    Asked(String),
    /// As policy sees them.
    Pair(Arc<Pair>),
}

impl Ends {
    /// What our own agent asked for, as it may be written down: what stands before an `@` is a user's name and password,
    /// and nobody's to read; and a host may be as long as a request's head, where a name that can be resolved may not.
    pub(crate) fn asked(authority: &str) -> Self {
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        Self::Asked(host_of(host).to_owned())
    }
}

/// What was said, by protocol.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) name: String,
    pub(crate) method: String,
    pub(crate) tool: String,
}

impl Said {
    /// What stays of the facts; the arguments do not.
    pub(crate) fn of(facts: ProtocolFacts) -> Self {
        let known = |fact| match fact {
            Fact::Known(text) => text,
            Fact::Unestablished(_) => String::new(),
        };
        Self {
            name: facts.name,
            method: known(facts.method),
            tool: known(facts.tool),
        }
    }
}

impl Default for Said {
    fn default() -> Self {
        Self {
            name: "http".into(),
            method: String::new(),
            tool: String::new(),
        }
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({})", self.decision)
    }
}

/// A line of the access log.
#[derive(Serialize)]
struct Line<'a> {
    ts: String,
    kind: &'static str,
    direction: &'static str,
    hop: String,
    decision: String,
    trace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    span: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a str>,
    source: &'a str,
    destination: &'a str,
    method: &'a str,
    path: &'a str,
    status: u16,
    verdict: &'static str,
    rule: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    protocol: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    call: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    tool: &'a str,
    bytes_in: u64,
    bytes_out: u64,
    ms: f64,
    end: &'static str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cached: bool,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    tags: &'a BTreeSet<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    observed: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    connect: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    blame: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callee: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<std::net::SocketAddr>,
    revision: u64,
}

impl Record {
    pub(crate) fn begin(proxy: &Arc<Proxy>, direction: Direction, method: http::Method, path: &str) -> Self {
        proxy.metrics.begin(direction);
        let mut end = path.len().min(MAX_LOGGED_PATH);
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            proxy: proxy.clone(),
            exchange: Exchange::begin(proxy.settings.audit.records(), proxy.settings.kill.lease()),
            began: SystemTime::now(),
            direction,
            decision: DecisionId::fresh(),
            hop: None,
            trace: String::new(),
            parent: None,
            sampled: false,
            ends: Ends::Unknown,
            method,
            path: path[..end].to_owned(),
            protocol: Said::default(),
            status: 0,
            // Until somebody decided, the answer is no.
            verdict: "deny",
            rule: String::new(),
            reason: String::new(),
            detail: None,
            cached: false,
            tags: BTreeSet::new(),
            observed: false,
            connect: false,
            callee: None,
            endpoint: None,
            stream: None,
            open_trace: None,
            refusal: None,
            completed: false,
            caller: None,
            own: false,
            blind: false,
            tunnelled: None,
            audit: Audited::default(),
        }
    }

    /// Notes which hop it is.
    pub(crate) fn on_hop(&mut self, hop: HopId) {
        self.hop = Some(hop);
        self.exchange.on(hop);
    }

    /// Notes that the request goes on to whoever answers it: it is in flight from now on.
    pub(crate) fn in_flight(&mut self) {
        self.stream = Some(self.proxy.streams.add(self.exchange.clone()));
        // Added first: a suspension in this moment is seen here, or by whoever cuts all of them.
        if self.proxy.settings.suspension.is_on() {
            self.exchange.cut(Cut::Drifted);
        }
    }

    /// Notes the trace that it belongs to.
    pub(crate) fn traced(&mut self, trace: &Trace) {
        self.trace.clone_from(&trace.id);
        self.parent = trace.parent;
        self.sampled = trace.sampled;
    }

    /// Notes that the agent works on it: calls that it makes in this trace are one hop further.
    pub(crate) fn in_trace(&mut self, trace: &Trace, hops: u32) {
        self.open_trace = Some(self.proxy.traces.enter(trace, hops));
    }

    /// Notes that and why it was not answered.
    pub(crate) fn refused(&mut self, refused: &Refused) {
        metrics::refused(self.direction, refused.refusal);
        self.refusal = Some(refused.refusal);
        self.reason = refused.refusal.reason().to_owned();
        self.detail.clone_from(&refused.detail);
        if let Some(rule) = &refused.rule {
            self.rule.clone_from(rule);
        }
        self.audit_refusal(refused);
    }

    /// Notes that the response's head goes out.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = status;
        self.exchange.moved();
        self.proxy
            .metrics
            .response(self.direction, self.exchange.elapsed().as_secs_f64());
    }

    /// Notes that the response was passed on to its end.
    pub(crate) fn completed(&mut self) {
        self.completed = true;
    }

    /// Whether it was.
    pub(super) fn is_completed(&self) -> bool {
        self.completed
    }

    /// The header that names this decision.
    pub(crate) fn header(&self) -> String {
        let end = match self.direction {
            Direction::Inbound => "callee",
            Direction::Outbound => "caller",
        };
        format!("{};{};{end}", self.decision, self.verdict)
    }

    fn write(&self, received: u64, sent: u64) {
        let (source, destination, revision) = self.names();
        let seen = span::Seen {
            source: &source,
            destination: &destination,
            end: self.ending(),
            took: self.exchange.elapsed(),
            bytes: (received, sent),
        };
        let span = SpanId::of(&self.decision);
        let mut out = Vec::with_capacity(768);
        // Text and numbers always serialise.
        if aip_api::json::append(&mut out, &self.line(&seen, &span, revision)).is_ok() {
            out.push(b'\n');
            if !self.proxy.settings.access_log.write(&out) {
                self.proxy.metrics.log_dropped();
            }
        }
        if self.sampled {
            self.proxy.settings.spans.send(self.span(span, &seen));
        }
    }

    /// Who called whom, and in which revision of the world. Most requests get as far as their pair, whose names are there;
    /// only others are worth making text.
    fn names(&self) -> (Cow<'_, str>, Cow<'_, str>, u64) {
        let me = || self.proxy.mesh.snapshot().id.to_string();
        match &self.ends {
            Ends::Unknown => (String::new().into(), String::new().into(), 0),
            Ends::Caller(live) => (live.peer.id.to_string().into(), me().into(), 0),
            Ends::Asked(destination) => (me().into(), Cow::from(destination), 0),
            Ends::Pair(pair) => (
                Cow::from(name(&pair.source)),
                name(&pair.destination).into(),
                pair.snapshot.revision,
            ),
        }
    }

    fn ending(&self) -> &'static str {
        match self.exchange.is_cut() {
            Some(cut) => cut.reason(),
            None if self.completed => "complete",
            None => "aborted",
        }
    }

    fn line<'a>(&'a self, seen: &span::Seen<'a>, span: &'a SpanId, revision: u64) -> Line<'a> {
        Line {
            ts: OffsetDateTime::from(self.began).format(&Rfc3339).unwrap_or_default(),
            kind: "access",
            direction: self.direction.as_str(),
            hop: self.hop.map(|hop| hop.to_string()).unwrap_or_default(),
            decision: self.decision.to_string(),
            trace: &self.trace,
            span: if self.trace.is_empty() { "" } else { span.as_str() },
            parent: self.parent.as_ref().map(SpanId::as_str),
            source: seen.source,
            destination: seen.destination,
            method: clipped(self.method.as_str()),
            path: &self.path,
            status: self.status,
            verdict: self.verdict,
            rule: &self.rule,
            reason: &self.reason,
            detail: self.detail.as_deref().map(clipped),
            protocol: &self.protocol.name,
            call: clipped(&self.protocol.method),
            tool: clipped(&self.protocol.tool),
            bytes_in: seen.bytes.0,
            bytes_out: seen.bytes.1,
            ms: (seen.took.as_secs_f64() * 1e6).round() / 1e3,
            end: seen.end,
            cached: self.cached,
            tags: &self.tags,
            observed: self.observed,
            connect: self.connect,
            blame: self.refusal.map(|r| r.nature().blame.as_str()),
            callee: self.callee.as_deref(),
            endpoint: self.endpoint,
            revision,
        }
    }
}

/// As much of a text as a line holds: a caller chooses the names of calls and tools, and some details quote it.
fn clipped(detail: &str) -> &str {
    &detail[..detail.floor_char_boundary(MAX_LOGGED_DETAIL)]
}

/// As much of a host as is written down.
fn host_of(host: &str) -> &str {
    &host[..host.floor_char_boundary(MAX_LOGGED_HOST)]
}

/// A SPIFFE ID, or an outside host.
fn name(facts: &aip_policy::PeerFacts) -> &str {
    match facts.id.as_str() {
        "" => host_of(&facts.name),
        id => id,
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(stream) = self.stream {
            self.proxy.streams.remove(stream);
        }
        if let Some(trace) = self.open_trace {
            self.proxy.traces.leave(trace);
        }
        if !self.completed && !self.audit.over {
            // Who takes no more of the answer is not heard any further.
            self.exchange.give_up();
        }
        let load = |bytes: &std::sync::atomic::AtomicU64| bytes.load(Ordering::Relaxed);
        let (received, sent) = (load(&self.exchange.received), load(&self.exchange.sent));
        self.audit_end();
        self.proxy.metrics.end(self.direction, self.status, received, sent);
        self.write(received, sent);
    }
}
