//! What sidecars recorded: logs, checkpoints, and proofs that they stand in the control plane's log. The changes that
//! people made are `GET /v1/audit`, among the approvals.

mod proofs;
mod records;

use std::sync::Arc;

use aip_api::AgentName;
use aip_audit::log::{Manifest, RETIRED_FILE, segment_path, segments};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admin::Api;
use crate::admin::answer::{Answer, Page, PageQuery, Params, Parts, cursor};
use crate::audit::ledger::rows::Newest;
use crate::audit::ledger::{Broken, Finding, LogRow, Mismatch};
use crate::refusal::{Reason, Refusal};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(logs))
        .routes(routes!(manifest))
        .routes(routes!(segment))
        .routes(routes!(checkpoints))
        .routes(routes!(mismatches))
        .routes(routes!(findings))
        .merge(records::routes())
        .merge(proofs::routes())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LogsQuery {
    /// Of this agent alone.
    #[param(value_type = Option<String>, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    agent: Option<AgentName>,
    /// Rows to answer: 1 to 500, 100 if absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// A log of a sidecar.
#[derive(Serialize, ToSchema)]
struct LogShown {
    /// Its name.
    log: String,
    /// Whose it is.
    #[schema(value_type = String)]
    agent: AgentName,
    /// Unix seconds.
    opened_at: u64,
    /// The newest checkpoint that was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    checkpoint: Option<Newest>,
    /// Segments that are here: the first and the last; absent where none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    segments: Option<Segments>,
    /// Bytes of them.
    bytes: u64,
    /// What retention took of it: JWS by the mesh's audit key, `typ` `aip-retired+jwt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    retired: Option<String>,
    /// Why nothing more of it is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    broken: Option<Broken>,
}

/// Which segments are here.
#[derive(Serialize, ToSchema)]
struct Segments {
    first: u64,
    last: u64,
    /// Records up to the end of the last one that is closed.
    closed_records: u64,
}

/// The logs of sidecars, and how far each has come.
#[utoipa::path(get, path = "/v1/audit/logs", tag = "audit", params(LogsQuery), responses((status = 200, body = Page<LogShown>)))]
async fn logs(State(api): State<Arc<Api>>, Params(query): Params<LogsQuery>) -> Answer<Json<Page<LogShown>>> {
    let page = PageQuery {
        limit: query.limit,
        cursor: query.cursor,
    };
    let (limit, mut after, mut items) = (page.limit()?, page.after()?, Vec::new());
    loop {
        let rows = api.audit.ledger.logs(&after, limit + 1).await?;
        let (count, last) = (rows.len(), rows.last().map(|(log, _)| log.clone()));
        for (log, row) in rows {
            if query.agent.as_ref().is_some_and(|agent| *agent != row.agent) {
                continue;
            }
            if items.len() == limit {
                let next = items.last().map(|shown: &LogShown| cursor(&shown.log));
                return Ok(Json(page_of(&api, items, next)));
            }
            items.push(shown(&api, log, row).await?);
        }
        match last {
            Some(last) if count > limit => after = last,
            _ => return Ok(Json(page_of(&api, items, None))),
        }
    }
}

fn page_of<T>(api: &Api, items: Vec<T>, next: Option<String>) -> Page<T> {
    Page {
        items,
        next,
        revision: api.registry.store.revision(),
    }
}

async fn shown(api: &Api, log: String, row: LogRow) -> Result<LogShown, Refusal> {
    let dir = api.audit.dir_of(&row.agent, &log);
    let here = tokio::task::spawn_blocking(move || {
        let manifest = Manifest::read(&dir).unwrap_or_default();
        let mut present = segments(&dir).unwrap_or_default();
        present.retain(|segment| *segment >= manifest.begins());
        let sizes = present
            .iter()
            .filter_map(|segment| std::fs::metadata(segment_path(&dir, *segment)).ok());
        let bytes = sizes.map(|file| file.len()).sum();
        let range = present.first().zip(present.last());
        let here = range.map(|(first, last)| Segments {
            first: *first,
            last: *last,
            closed_records: manifest.closed.last().map_or(0, aip_audit::log::Closed::end),
        });
        (here, bytes, std::fs::read_to_string(dir.join(RETIRED_FILE)).ok())
    });
    let (segments, bytes, retired) = here.await.map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?;
    Ok(LogShown {
        log,
        agent: row.agent,
        opened_at: row.opened_at,
        checkpoint: row.taken,
        segments,
        bytes,
        retired,
        broken: row.broken,
    })
}

/// The row of a log, or a refusal that says it is not there.
async fn row(api: &Api, log: &str) -> Result<LogRow, Refusal> {
    let absent = || {
        Refusal::new(
            Reason::NotFound,
            format!("there is no audit log {:?}", log.chars().take(36).collect::<String>()),
        )
    };
    api.audit.ledger.log(log).await?.ok_or_else(absent)
}

/// A file as it lies here, from `offset` on.
async fn file(path: std::path::PathBuf, offset: u64) -> Result<Response, Refusal> {
    let gone = |_| Refusal::new(Reason::NotFound, "it is not here: never sent, or older than is kept");
    let mut file = tokio::fs::File::open(path).await.map_err(gone)?;
    let length = file.metadata().await.map_err(gone)?.len();
    file.seek(std::io::SeekFrom::Start(offset)).await.map_err(gone)?;
    // What is added meanwhile is left out: a length was promised.
    let body = Body::from_stream(ReaderStream::new(file.take(length.saturating_sub(offset))));
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], body).into_response())
}

/// How the closed segments of a log ended, and which are gone: JSON Lines, as beside the segments.
#[utoipa::path(get, path = "/v1/audit/logs/{log}/segments", tag = "audit", params(("log" = String, Path)),
    responses((status = 200, content_type = "application/jsonl", body = String)))]
async fn manifest(State(api): State<Arc<Api>>, Parts((log,)): Parts<(String,)>) -> Answer<Response> {
    let row = row(&api, &log).await?;
    let path = Manifest::path(&api.audit.dir_of(&row.agent, &log));
    Ok(file(path, 0).await?)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Offset {
    /// Bytes to leave out at the beginning.
    offset: Option<u64>,
}

/// A segment: JSON Lines, the bytes that the sidecar wrote.
#[utoipa::path(get, path = "/v1/audit/logs/{log}/segments/{number}", tag = "audit", params(("log" = String, Path), ("number" = u64, Path), Offset),
    responses((status = 200, content_type = "application/jsonl", body = String)))]
async fn segment(
    State(api): State<Arc<Api>>,
    Parts((log, number)): Parts<(String, u64)>,
    Params(from): Params<Offset>,
) -> Answer<Response> {
    let row = row(&api, &log).await?;
    let path = segment_path(&api.audit.dir_of(&row.agent, &log), number);
    Ok(file(path, from.offset.unwrap_or(0)).await?)
}

/// A checkpoint of a sidecar.
#[derive(Serialize, ToSchema)]
struct CheckpointShown {
    /// Its place in the control plane's log.
    index: u64,
    /// Records that it covers.
    size: u64,
    /// The JWS: the leaf in the control plane's log is the hash of its bytes.
    statement: String,
    /// The chain of the SVID that signed it: DER in base64, leaf first.
    chain: Vec<String>,
}

/// The checkpoints of a log that were taken, by size: the newest for each size.
#[utoipa::path(get, path = "/v1/audit/logs/{log}/checkpoints", tag = "audit", params(("log" = String, Path), PageQuery),
    responses((status = 200, body = Page<CheckpointShown>)))]
async fn checkpoints(
    State(api): State<Arc<Api>>,
    Parts((log,)): Parts<(String,)>,
    Params(query): Params<PageQuery>,
) -> Answer<Json<Page<CheckpointShown>>> {
    row(&api, &log).await?;
    let (limit, after) = (query.limit()?, query.after()?);
    let sizes = api.audit.ledger.sizes_from(&log, &after, limit + 1).await?;
    let mut items = Vec::new();
    for (size, _, index) in sizes.iter().take(limit) {
        if let Some(row) = api.audit.ledger.at(*index).await? {
            items.push(CheckpointShown {
                index: *index,
                size: *size,
                statement: row.statement,
                chain: row.chain,
            });
        }
    }
    let more = sizes.len() > limit;
    let next = items
        .last()
        .filter(|_| more)
        .map(|shown| cursor(&format!("{:020}", shown.size)));
    Ok(Json(page_of(&api, items, next)))
}

/// A page of a numbered list.
fn numbered<T>(api: &Api, mut rows: Vec<(String, T)>, limit: usize) -> Page<T> {
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|(key, _)| cursor(key));
    page_of(api, rows.into_iter().map(|(_, row)| row).collect(), next)
}

/// Hops whose two ends contradict each other, oldest first; the newest 10,000 are kept.
#[utoipa::path(get, path = "/v1/audit/mismatches", tag = "audit", params(PageQuery), responses((status = 200, body = Page<Mismatch>)))]
async fn mismatches(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<Mismatch>>> {
    let limit = query.limit()?;
    let rows = api.audit.ledger.mismatches(&query.after()?, limit + 1).await?;
    Ok(Json(numbered(&api, rows, limit)))
}

/// What was found in logs and can't be, oldest first: forks, broken chains, records that are not those that were signed.
/// Each with what shows it.
#[utoipa::path(get, path = "/v1/audit/findings", tag = "audit", params(PageQuery), responses((status = 200, body = Page<Finding>)))]
async fn findings(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<Finding>>> {
    let limit = query.limit()?;
    let rows = api.audit.ledger.findings(&query.after()?, limit + 1).await?;
    Ok(Json(numbered(&api, rows, limit)))
}
