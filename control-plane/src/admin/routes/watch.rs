//! Watching changes as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admin::Api;
use crate::admin::answer::{Answer, Params};
use crate::refusal::{Reason, Refusal};
use crate::registry::keys;
use crate::store::{Change, Watch};

/// Comments between events: below what proxies cut.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(watch))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct From {
    /// Changes after this revision; from now on if absent. `Last-Event-ID` wins.
    from: Option<u64>,
}

/// One change. Where it is not a resource, only the kind is told (`token`, `pending`, `approval`).
#[derive(Serialize, ToSchema)]
struct Seen {
    revision: u64,
    kind: String,
    name: String,
    deleted: bool,
}

fn seen(change: &Change) -> Option<Seen> {
    let (revision, deleted) = (change.revision, change.deleted);
    if let Some(id) = keys::resource_id(&change.key) {
        return Some(Seen {
            revision,
            kind: id.kind.to_string(),
            name: id.name,
            deleted,
        });
    }
    let named = [
        (keys::PENDING, "pending"),
        (keys::PROPOSALS, "approval"),
        (keys::TOKENS, "token"),
    ];
    named.iter().find_map(|(prefix, kind)| {
        let name = change.key.strip_prefix(prefix)?.to_owned();
        Some(Seen {
            revision,
            kind: (*kind).to_owned(),
            name,
            deleted,
        })
    })
}

/// Changes as they happen (`text/event-stream`): events `change`, with the revision as id; `end` when the watch can't go on.
#[utoipa::path(get, path = "/v1/watch", tag = "status", params(From),
    responses((status = 200, content_type = "text/event-stream", body = Seen)))]
async fn watch(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    Params(from): Params<From>,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let permit = api.watchers.clone().try_acquire_owned();
    let permit = permit.map_err(|_| Refusal::new(Reason::Overloaded, "too many watchers"))?;
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse().ok());
    let from = last.or(from.from).unwrap_or_else(|| api.registry.store.revision());
    let start = (api.registry.store.watch(from), std::collections::VecDeque::new(), false);
    let stopping = api.stopping.clone();
    let events = stream::unfold((start, permit), move |((mut watch, mut ready, mut over), permit)| {
        let stopping = stopping.clone();
        async move {
            while ready.is_empty() {
                if over {
                    return None;
                }
                over = stopping
                    .run_until_cancelled(fill(&mut watch, &mut ready))
                    .await
                    .unwrap_or(true);
            }
            let event = ready.pop_front()?;
            Some((Ok(event), ((watch, ready, over), permit)))
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Takes the next changes; true: that was the end.
async fn fill(watch: &mut Watch, ready: &mut std::collections::VecDeque<Event>) -> bool {
    match watch.next().await {
        Ok(changes) => {
            for change in changes.iter().filter_map(seen) {
                let event = Event::default().event("change").id(change.revision.to_string());
                ready.extend(event.json_data(&change));
            }
            false
        }
        Err(error) => {
            let refusal = Refusal::from(error);
            ready.extend(Event::default().event("end").json_data(refusal.problem()));
            true
        }
    }
}
