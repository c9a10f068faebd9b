//! Proposals that wait for a second person, and the audit of changes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::page;
use crate::admin::Api;
use crate::admin::answer::{Answer, Changed, Name, Page, PageQuery, Params, number};
use crate::admin::auth::Caller;
use crate::refusal::{Reason, Refusal};
use crate::registry::records::{AuditEntry, Proposal};
use crate::registry::{decode, keys};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(approve))
        .routes(routes!(refuse))
        .routes(routes!(audit))
}

/// A proposal.
#[derive(Serialize, ToSchema)]
struct ProposalShown {
    /// Its id.
    id: String,
    /// In one line.
    summary: String,
    /// The change itself.
    #[schema(value_type = Object)]
    action: crate::registry::records::Action,
    /// Who proposed it; somebody else must approve it.
    proposed_by: String,
    /// Unix seconds.
    proposed_at: u64,
    /// Unix seconds.
    expires_at: u64,
}

/// What waits for a second person.
#[utoipa::path(get, path = "/v1/approvals", tag = "approvals", params(PageQuery), responses((status = 200, body = Page<ProposalShown>)))]
async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<ProposalShown>>> {
    let now = api.registry.clock.now();
    let shown = page(&api, keys::PROPOSALS, &query, |_, entry| {
        let Proposal {
            id,
            action,
            proposed_by,
            proposed_at,
            expires_at,
        } = decode::<Proposal>(entry)?.value;
        let summary = action.summary();
        Ok((expires_at > now).then_some(ProposalShown {
            id,
            summary,
            action,
            proposed_by,
            proposed_at,
            expires_at,
        }))
    });
    Ok(Json(shown.await?))
}

/// Approves a proposal, and does it.
#[utoipa::path(post, path = "/v1/approvals/{id}/approve", tag = "approvals", params(("id" = String, Path)), responses((status = 200, body = Changed)))]
async fn approve(State(api): State<Arc<Api>>, caller: Caller, Name(id): Name<String>) -> Answer<Json<Changed>> {
    Ok(Changed::at(api.registry.approve_proposal(&caller.sub, &id).await?))
}

/// Refuses a proposal.
#[utoipa::path(post, path = "/v1/approvals/{id}/refuse", tag = "approvals", params(("id" = String, Path)), responses((status = 200, body = Changed)))]
async fn refuse(State(api): State<Arc<Api>>, caller: Caller, Name(id): Name<String>) -> Answer<Json<Changed>> {
    Ok(Changed::at(api.registry.refuse_proposal(&caller.sub, &id).await?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Before {
    /// Entries of revisions before this one; the newest if absent.
    #[serde(default, deserialize_with = "number")]
    #[param(maximum = 9_223_372_036_854_775_807_i64)]
    before: Option<u64>,
    /// 1 to 500, 100 if absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
}

/// One change.
#[derive(Serialize, ToSchema)]
struct AuditRow {
    /// By which revision.
    revision: u64,
    /// Who, what, when.
    #[serde(flatten)]
    entry: AuditEntry,
}

/// A part of the audit, newest first.
#[derive(Serialize, ToSchema)]
struct AuditPage {
    items: Vec<AuditRow>,
    /// `before` of the next page, where there may be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
}

/// Who changed what, when: one entry a revision, newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(Before), responses((status = 200, body = AuditPage)))]
async fn audit(State(api): State<Arc<Api>>, Params(query): Params<Before>) -> Answer<Json<AuditPage>> {
    let limit = PageQuery {
        limit: query.limit,
        cursor: None,
    }
    .limit()?;
    let rows = api
        .registry
        .store
        .audit(query.before.unwrap_or(u64::MAX), limit)
        .await?;
    let next = rows
        .last()
        .filter(|_| rows.len() == limit)
        .map(|(revision, _)| *revision);
    let read = rows.into_iter().map(|(revision, value)| {
        let entry = serde_json::from_slice(&value).map_err(|e| Refusal::new(Reason::StoreFailed, e.to_string()))?;
        Ok(AuditRow { revision, entry })
    });
    Ok(Json(AuditPage {
        items: read.collect::<Result<_, Refusal>>()?,
        next,
    }))
}
