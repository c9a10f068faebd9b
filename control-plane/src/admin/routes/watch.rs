//! Watching changes as server-sent events.

use std::collections::VecDeque;
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
use crate::admin::auth::{self, Caller};
use crate::quota::Place;
use crate::refusal::{Reason, Refusal};
use crate::registry::keys;
use crate::store::{Change, Watch};

/// Comments between events: below what proxies cut.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a quiet watch looks whether its token is still good; a busy one looks before each batch of changes.
const TOKEN_CHECK: Duration = Duration::from_secs(5);

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

/// Changes as they happen (`text/event-stream`): events `change`, with the revision as id; `end` when the watch can't go
/// on, also when the token has expired or was revoked.
#[utoipa::path(get, path = "/v1/watch", tag = "status", params(From),
    responses((status = 200, content_type = "text/event-stream", body = Seen)))]
async fn watch(
    State(api): State<Arc<Api>>,
    caller: Caller,
    headers: HeaderMap,
    Params(from): Params<From>,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let place = api.watchers.try_take(&caller.sub);
    let place = place.ok_or_else(|| Refusal::new(Reason::Overloaded, "too many watchers"))?;
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse().ok());
    let from = last.or(from.from).unwrap_or_else(|| api.registry.store.revision());
    let watching = Watching {
        changes: api.registry.store.watch(from),
        ready: VecDeque::new(),
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
    changes: Watch,
    ready: VecDeque<Event>,
    over: bool,
    caller: Caller,
    api: Arc<Api>,
    _place: Place,
}

impl Watching {
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() && !self.over {
            let stopping = self.api.stopping.clone();
            tokio::select! {
                () = stopping.cancelled() => self.over = true,
                changes = self.changes.next() => match changes {
                    Ok(changes) => self.show(&changes).await,
                    Err(error) => self.end(&error.into()),
                },
                () = tokio::time::sleep(TOKEN_CHECK) => self.check().await,
            }
        }
        self.ready.pop_front()
    }

    /// A token that is not good any more sees nothing of what happened since.
    async fn check(&mut self) {
        let Caller { jti, exp, .. } = &self.caller;
        if let Err(refusal) = auth::still_good(&self.api.registry, jti, *exp).await {
            self.end(&refusal);
        }
    }

    async fn show(&mut self, changes: &[Change]) {
        self.check().await;
        if self.over {
            return;
        }
        for change in changes.iter().filter_map(seen) {
            let event = Event::default().event("change").id(change.revision.to_string());
            self.ready.extend(event.json_data(&change));
        }
    }

    fn end(&mut self, refusal: &Refusal) {
        self.over = true;
        self.ready
            .extend(Event::default().event("end").json_data(refusal.problem()));
    }
}
