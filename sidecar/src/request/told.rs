//! A request as policy sees it, kept as long as the request lasts: an open stream is decided again when the world
//! changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aip_api::AgentName;
use aip_policy::{
    ContentFacts, Decision, Direction, Fact, Facts, INPUT_VERSION, Kept, RequestFacts, TraceFacts, with_evaluator,
};
use aip_runtime::svid::Svid;
use aip_runtime::unix_now;
use http::{HeaderMap, Method, Uri};

use super::classify::held::Held;
use super::classify::protocol::{self, Content};
use super::classify::{content, headers, path};
use super::decide::refusal;
use super::record::Said;
use super::refusal::{Cut, Refusal, Refused};
use crate::proxy::Proxy;
use crate::proxy::connections::Live;
use crate::proxy::pair::{NOT_IN_THIS_VERSION, Needs, Other, Pair, Pairs};
use crate::proxy::streams::Exchange;
use crate::snapshot::Snapshot;

/// What was said, before anything is rewritten.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) size: Fact<u64>,
    /// What carries the call: `http`, `grpc`, `websocket` or `tunnel`.
    pub(crate) carrier: &'static str,
    pub(crate) body: content::Kept,
    pub(crate) trace: TraceFacts,
    /// What the body takes of what may be held.
    pub(crate) held: Option<Held>,
}

impl Told {
    /// What is left where it was moved on.
    pub(crate) fn nothing() -> Self {
        Self {
            method: Method::GET,
            uri: Uri::default(),
            headers: HeaderMap::new(),
            size: Fact::Known(0),
            carrier: "http",
            body: content::Kept::Nothing,
            trace: TraceFacts::default(),
            held: None,
        }
    }

    /// The facts of this request between the ends of `pair`; what the policies can't read is left out.
    pub(crate) fn facts(&self, direction: Direction, pair: &Pair, content: Content, now: u64) -> Facts {
        Facts {
            direction,
            source: pair.source.clone(),
            destination: pair.destination.clone(),
            request: self.request(&pair.needs),
            protocol: protocol::facts(self.carrier, &self.headers, content),
            // All are named here, so that a fact that is added can't be forgotten.
            v: INPUT_VERSION,
            content: ContentFacts {
                findings: Fact::Unestablished(NOT_IN_THIS_VERSION),
            },
            delegation: Fact::Unestablished(NOT_IN_THIS_VERSION),
            budget: Fact::Unestablished(NOT_IN_THIS_VERSION),
            trace: self.trace.clone(),
            time: now,
            unestablished: Vec::new(),
        }
    }

    fn request(&self, needs: &Needs) -> RequestFacts {
        let raw_path = self.uri.path();
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (
                name.as_str().to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        };
        RequestFacts {
            method: if needs.method {
                self.method.to_string()
            } else {
                String::new()
            },
            path: if needs.path {
                path::segments(raw_path)
            } else {
                Vec::new()
            },
            raw_path: if needs.raw_path {
                raw_path.to_owned()
            } else {
                String::new()
            },
            query: if needs.query {
                self.uri.query().map(path::query).unwrap_or_default()
            } else {
                Vec::new()
            },
            headers: if needs.headers {
                self.headers
                    .iter()
                    .filter(|(name, _)| !headers::is_ours(name))
                    .map(header)
                    .collect()
            } else {
                Vec::new()
            },
            size: self.size.clone(),
        }
    }
}

/// The other end, for as long as the request lasts.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// The caller, inbound.
    Caller(Arc<Live>),
    /// The callee, outbound, and the connection to it where there is one by now.
    Callee(AgentName, Option<Arc<Live>>),
    /// An outside host.
    Outside(Arc<str>, u16),
}

impl End {
    pub(crate) fn other(&self) -> Other<'_> {
        match self {
            Self::Caller(live) => Other::Caller(&live.peer),
            Self::Callee(name, live) => Other::Callee(name, live.as_ref().map(|l| &l.peer)),
            Self::Outside(host, port) => Other::Outside(host, *port),
        }
    }

    /// The agent at the other end, if one is there.
    pub(crate) fn agent(&self) -> Option<&AgentName> {
        match self {
            Self::Caller(live) => Some(&live.peer.id.agent),
            Self::Callee(name, _) => Some(name),
            Self::Outside(..) => None,
        }
    }
}

/// What an open request was decided on.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) direction: Direction,
    pub(crate) end: End,
    pub(crate) told: Told,
    /// Silence after which it is cut; none where the other end watches.
    pub(crate) idle: Option<Duration>,
}

impl Decided {
    pub(crate) fn idle_limit(&self) -> Option<Duration> {
        self.idle
    }
}

/// Asks policy about what was said and about `content`, which ends here. What policy could read of it comes back where it
/// is recorded.
pub(crate) fn decision(
    proxy: &Proxy,
    direction: Direction,
    pair: &Pair,
    told: &Told,
    content: Content,
    now: u64,
    recorded: bool,
) -> Result<(Decision, Said, Option<Arc<Kept>>), Refused> {
    let set = pair
        .set
        .as_ref()
        .map_err(|error| Refusal::PolicyUnusable.because(error))?;
    let facts = told.facts(direction, pair, content, now);
    let begun = Instant::now();
    let (decision, kept) = with_evaluator(|evaluator| match recorded && proxy.settings.audit.records() {
        true => {
            let (decision, kept) = evaluator.decide_and_keep(set, &facts);
            (decision, Some(kept))
        }
        false => (evaluator.decide(set, &facts), None),
    });
    proxy
        .metrics
        .decision(direction, &decision, begun.elapsed().as_secs_f64());
    Ok((decision, Said::of(facts.protocol), kept))
}

/// Why an open request must not go on in this version of the world, if it must not.
pub(crate) fn recheck(proxy: &Proxy, snapshot: &Arc<Snapshot>, exchange: &Exchange) -> Option<Cut> {
    let decided = exchange.decided()?;
    let own = match identified(proxy, exchange) {
        Ok(own) => own,
        Err(cut) => return Some(cut),
    };
    if decided
        .end
        .agent()
        .is_some_and(|agent| *agent != snapshot.id.agent && snapshot.agent(agent).is_none())
    {
        return Some(Cut::Deregistered);
    }
    // Orders, and what the mesh requires, are never only observed.
    if let Some(cut) = proxy.settings.kill.cut(snapshot, own.result(), decided) {
        return Some(cut);
    }
    if let Err(refused) = super::admit::admitted(snapshot, own.result(), &decided.end) {
        return Some(Cut::of_admission(refused.refusal));
    }
    let now = unix_now();
    if !snapshot.me.mode.enforces(now) {
        return None;
    }
    let pair = Pairs::of(proxy, snapshot, &own, decided.end.other(), now);
    let reads_body = pair.needs.body;
    let content = if reads_body {
        decided.told.body.content()
    } else {
        Content::Other
    };
    let asked = decision(proxy, decided.direction, &pair, &decided.told, content, now, false);
    let goes_on = asked.is_ok_and(|(decision, ..)| refusal(&decision).is_none());
    (!goes_on).then_some(Cut::PolicyDenied)
}

/// Whether both ends are still who they were, as far as that shows without policy: the SVID of this one, as it is now.
pub(crate) fn identified(proxy: &Proxy, exchange: &Exchange) -> Result<Arc<Svid>, Cut> {
    // What was revoked is cut in a moment; until then nothing goes on.
    let revoked = |live: &Live| proxy.trust.load().revoked(&live.peer).map(Cut::of_revocation);
    if let Some(cut) = exchange
        .live()
        .and_then(|live| live.is_cut().or_else(|| revoked(&live)))
    {
        return Err(cut);
    }
    let own = proxy.svid.current().ok_or(Cut::Suspended)?;
    // Also in the moment before an expired one is taken away.
    if own.identity.not_after <= unix_now() {
        return Err(Cut::Suspended);
    }
    Ok(own)
}
