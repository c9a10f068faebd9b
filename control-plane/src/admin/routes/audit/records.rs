//! Records: found, and as they come.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aip_api::AgentName;
use aip_audit::Record;
use aip_audit::index::{Bounds, Cursor, Filter, Hit, find};
use aip_audit::log::LogError;
use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::page_of;
use crate::admin::Api;
use crate::admin::answer::{Answer, Page, PageQuery, Params, cursor, number};
use crate::admin::auth::{self, Caller};
use crate::audit::feed::{Missed, Seen, Watcher};
use crate::quota::Place;
use crate::refusal::{Reason, Refusal};

/// Comments between events: below what proxies cut.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Records whose rows one search looks through: more than one agent's logs have at the default retention, and some GB. Of several
/// agents that have more, each has a share of it.
const MAX_ROWS: u64 = 100_000_000;
/// How often a watch looks whether its token is still good.
const TOKEN_CHECK: Duration = Duration::from_secs(5);

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(records)).routes(routes!(watch))
}

/// What is asked for.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Query {
    /// Recorded by this agent's sidecars.
    #[param(value_type = Option<String>, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    agent: Option<AgentName>,
    /// Decisions with this verdict.
    verdict: Option<String>,
    /// Decisions about calls of this tool.
    tool: Option<String>,
    /// Unix milliseconds: this one and later ones.
    #[serde(default, deserialize_with = "number")]
    #[param(maximum = 9_223_372_036_854_775_807_i64)]
    since: Option<u64>,
    /// Unix milliseconds: before this one.
    #[serde(default, deserialize_with = "number")]
    #[param(maximum = 9_223_372_036_854_775_807_i64)]
    until: Option<u64>,
    /// Of this hop.
    hop: Option<String>,
    /// Decisions under this trace id.
    trace: Option<String>,
    /// This decision, and the end that belongs to it.
    decision: Option<String>,
    /// Rows to answer: 1 to 500, 100 if absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

impl Query {
    fn filter(&self) -> Filter {
        Filter {
            verdict: self.verdict.clone(),
            tool: self.tool.clone(),
            hop: self.hop.clone(),
            trace: self.trace.clone(),
            decision: self.decision.clone(),
            since: self.since,
            until: self.until,
        }
    }
}

/// A record, and where it stands.
#[derive(Serialize, ToSchema)]
struct Found {
    /// Whose sidecar recorded it.
    agent: String,
    /// The log.
    log: String,
    /// The segment.
    segment: u64,
    /// Where its line begins in the segment.
    offset: u64,
    /// The record, as its line says it.
    #[schema(value_type = Object)]
    record: Record,
}

impl From<Hit> for Found {
    fn from(hit: Hit) -> Self {
        Self {
            agent: hit.agent,
            log: hit.place.log,
            segment: hit.place.segment,
            offset: hit.place.offset,
            record: hit.record,
        }
    }
}

/// A page of records.
#[derive(Serialize, ToSchema)]
struct FoundPage {
    #[serde(flatten)]
    page: Page<Found>,
    /// Agents whose older records were not looked through, since all together have more than one search may look through: ask
    /// for one of them, or for a shorter time up to now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<String>,
}

fn written(place: &Cursor) -> String {
    format!("{}/{}/{}/{}", place.at, place.log, place.segment, place.offset)
}

fn read(text: &str) -> Option<Cursor> {
    let mut parts = text.split('/');
    let mut next = || parts.next();
    Some(Cursor {
        at: next()?.parse().ok()?,
        log: next()?.to_owned(),
        segment: next()?.parse().ok()?,
        offset: next()?.parse().ok()?,
    })
}

/// Records of sidecars, newest first. A page is cut short where its records are large, and may be empty; whether there are more,
/// `next` says.
#[utoipa::path(get, path = "/v1/audit/records", tag = "audit", params(Query), responses((status = 200, body = FoundPage)))]
async fn records(State(api): State<Arc<Api>>, caller: Caller, Params(query): Params<Query>) -> Answer<Json<FoundPage>> {
    let page = PageQuery {
        limit: query.limit,
        cursor: query.cursor.clone(),
    };
    let (limit, after) = (page.limit()?, page.after()?);
    let malformed = || Refusal::new(Reason::Malformed, "cursor: not one of ours");
    let after = match after.as_str() {
        "" => None,
        text => Some(read(text).ok_or_else(malformed)?),
    };
    // A search reads the rows of many segments: as many at once as there may be watches.
    let place = api.watchers.try_take(&caller.sub);
    let place = place.ok_or_else(|| Refusal::new(Reason::Overloaded, "too many searches; ask again"))?;
    let (audit, filter, agent) = (api.audit.clone(), query.filter(), query.agent.clone());
    let found = tokio::task::spawn_blocking(move || {
        let _place = place;
        let bounds = Bounds {
            limit,
            bytes: super::super::MAX_PAGE_BYTES,
            rows: MAX_ROWS,
            after: after.as_ref(),
        };
        find(&audit.copies(agent.as_ref()), &filter, &bounds)
    });
    let found = found.await.map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?;
    let found = found.map_err(|error| {
        let reason = match error {
            LogError::Search => Reason::SearchTooLarge,
            _ => Reason::AuditCopyFailed,
        };
        Refusal::new(reason, error.to_string())
    })?;
    let next = found.next.map(|place| cursor(&written(&place)));
    Ok(Json(FoundPage {
        page: page_of(&api, found.hits.into_iter().map(Found::from).collect(), next),
        left_out: found.left_out.into_iter().collect(),
    }))
}

/// Records as they come (`text/event-stream`): events `record`; `missed` with how many, for a reader who falls behind;
/// `end` when the watch can't go on.
#[utoipa::path(get, path = "/v1/audit/records/watch", tag = "audit", params(Query),
    responses((status = 200, content_type = "text/event-stream", body = Found)))]
async fn watch(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Params(query): Params<Query>,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let place = api.watchers.try_take(&caller.sub);
    let place = place.ok_or_else(|| Refusal::new(Reason::Overloaded, "too many watchers"))?;
    let watching = Watching {
        seen: api.audit.watch(),
        filter: query.filter(),
        agent: query.agent,
        checked: tokio::time::Instant::now(),
        over: false,
        caller,
        api,
        _place: place,
    };
    let events = stream::unfold(watching, async |mut watching| {
        let event = watching.next().await?;
        Some((Ok(event), watching))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// One watcher.
struct Watching {
    seen: Watcher,
    filter: Filter,
    agent: Option<AgentName>,
    checked: tokio::time::Instant,
    over: bool,
    caller: Caller,
    api: Arc<Api>,
    _place: Place,
}

impl Watching {
    async fn next(&mut self) -> Option<Event> {
        while !self.over {
            let stopping = self.api.stopping.clone();
            let check = self.checked + TOKEN_CHECK;
            tokio::select! {
                () = stopping.cancelled() => return None,
                () = tokio::time::sleep_until(check) => {
                    // A token that is not good any more sees nothing of what happened since.
                    if let Err(refusal) = auth::still_good(&self.api.registry, &self.caller.jti, self.caller.exp).await {
                        self.over = true;
                        return Event::default().event("end").json_data(refusal.problem()).ok();
                    }
                    self.checked = tokio::time::Instant::now();
                }
                seen = self.seen.next() => match seen {
                    Ok(seen) => match self.shown(&seen) {
                        Some(event) => return Some(event),
                        // What comes without a wait would else be looked through without a pause.
                        None => tokio::task::consume_budget().await,
                    },
                    Err(Missed(missed)) => return Event::default().event("missed").json_data(missed).ok(),
                },
            }
        }
        None
    }

    fn shown(&self, seen: &Seen) -> Option<Event> {
        if self.agent.as_ref().is_some_and(|agent| *agent != seen.agent) {
            return None;
        }
        let record = Record::from_bytes(&seen.line).ok()?;
        if !self.filter.matches(&record) {
            return None;
        }
        let found = Found {
            agent: seen.agent.to_string(),
            log: seen.log.to_string(),
            segment: seen.segment,
            offset: seen.offset,
            record,
        };
        Event::default().event("record").json_data(found).ok()
    }
}
