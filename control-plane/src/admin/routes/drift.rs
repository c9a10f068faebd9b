//! Agents that ran something else than was approved.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::page;
use crate::admin::Api;
use crate::admin::answer::{Answer, Page, PageQuery, Params};
use crate::registry::drift::DriftRecord;
use crate::registry::{decode, keys};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list))
}

/// The last drift of each agent that had one. Without `recovered_at` it still gets no SVID.
#[utoipa::path(get, path = "/v1/drift", tag = "measurements", params(PageQuery), responses((status = 200, body = Page<DriftRecord>)))]
async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<DriftRecord>>> {
    Ok(Json(
        page(&api, keys::DRIFTS, &query, |_, e| Ok(Some(decode(e)?.value))).await?,
    ))
}
