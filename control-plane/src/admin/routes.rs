//! The routes, and what each needs. A route that is missing from [`ROUTES`] is refused to everybody; a test holds the
//! table against the OpenAPI document.

mod admins;
mod agents;
mod approvals;
mod audit;
mod drift;
mod kills;
mod measurements;
mod mesh;
mod policies;
mod reputation;
mod status;
mod tokens;
mod trust;
mod watch;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use super::Api;
use super::answer::{Held, Page, PageQuery, cursor};
use super::roles::Permission::{
    self, ApproveMeasurements, CheckPolicies, Decide, IssueTokens, ManageAdmins, Read, ReadAudit, Recover,
    ReportReputation, ResetReputation, Resume, Revoke, Stop, WriteAgents, WriteMesh, WritePolicies, WriteTraffic,
};
use crate::refusal::Refusal;
use crate::registry::{decode, keys};

/// One route.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// HTTP method.
    pub method: &'static str,
    /// Path, with its parameters in braces.
    pub path: &'static str,
    /// What the caller must be allowed.
    pub permission: Permission,
}

const fn route(method: &'static str, path: &'static str, permission: Permission) -> Route {
    Route {
        method,
        path,
        permission,
    }
}

/// All routes that need a token.
pub const ROUTES: &[Route] = &[
    route("GET", "/v1/mesh", Read),
    route("POST", "/v1/mesh/lift", Recover),
    route("POST", "/v1/mesh/rotate-ca", Recover),
    route("GET", "/v1/trust", Read),
    route("GET", "/v1/mesh-config", Read),
    route("PUT", "/v1/mesh-config", WriteMesh),
    route("GET", "/v1/mesh-config/revisions/{revision}", Read),
    route("GET", "/v1/agents", Read),
    route("POST", "/v1/agents", WriteAgents),
    route("GET", "/v1/agents/{name}", Read),
    route("PUT", "/v1/agents/{name}", WriteAgents),
    route("DELETE", "/v1/agents/{name}", WriteAgents),
    route("GET", "/v1/agents/{name}/svids", Read),
    route("POST", "/v1/agents/{name}/revoke", Revoke),
    route("GET", "/v1/tokens", Read),
    route("POST", "/v1/tokens", IssueTokens),
    route("DELETE", "/v1/tokens/{id}", IssueTokens),
    route("GET", "/v1/measurements", Read),
    route("POST", "/v1/measurements", ApproveMeasurements),
    route(
        "POST",
        "/v1/measurements/{agent}/{fingerprint}/approve",
        ApproveMeasurements,
    ),
    route("DELETE", "/v1/measurements/{agent}/{fingerprint}", ApproveMeasurements),
    route("GET", "/v1/drift", Read),
    route("GET", "/v1/policies", Read),
    route("POST", "/v1/policies/check", CheckPolicies),
    route("GET", "/v1/policies/{name}", Read),
    route("PUT", "/v1/policies/{name}", WritePolicies),
    route("DELETE", "/v1/policies/{name}", WritePolicies),
    route("GET", "/v1/policies/{name}/revisions", Read),
    route("GET", "/v1/policies/{name}/revisions/{revision}", Read),
    route("POST", "/v1/policies/{name}/rollback", WritePolicies),
    route("GET", "/v1/traffic", Read),
    route("GET", "/v1/traffic/{agent}", Read),
    route("PUT", "/v1/traffic/{agent}", WriteTraffic),
    route("DELETE", "/v1/traffic/{agent}", WriteTraffic),
    route("GET", "/v1/reputation", Read),
    route("GET", "/v1/reputation/{agent}", Read),
    route("GET", "/v1/reputation/{agent}/reports", Read),
    route("POST", "/v1/reputation/{agent}/reports", ReportReputation),
    route("POST", "/v1/reputation/{agent}/import", ReportReputation),
    route("POST", "/v1/reputation/{agent}/reset", ResetReputation),
    route("GET", "/v1/revocations", Read),
    route("GET", "/v1/endpoints", Read),
    route("GET", "/v1/sidecars", Read),
    route("GET", "/v1/status", Read),
    route("GET", "/v1/revisions/{revision}/acks", Read),
    route("GET", "/v1/kills", Read),
    route("POST", "/v1/kills", Stop),
    route("POST", "/v1/kills/resume", Resume),
    route("GET", "/v1/kills/progress", Read),
    route("GET", "/v1/kills/sidecars", Read),
    route("GET", "/v1/watch", Read),
    route("GET", "/v1/approvals", Read),
    route("POST", "/v1/approvals/{id}/approve", Decide),
    route("POST", "/v1/approvals/{id}/refuse", Decide),
    route("GET", "/v1/audit", ReadAudit),
    route("GET", "/v1/audit/logs", ReadAudit),
    route("GET", "/v1/audit/logs/{log}/segments", ReadAudit),
    route("GET", "/v1/audit/logs/{log}/segments/{number}", ReadAudit),
    route("GET", "/v1/audit/logs/{log}/checkpoints", ReadAudit),
    route("GET", "/v1/audit/records", ReadAudit),
    route("GET", "/v1/audit/records/watch", ReadAudit),
    route("GET", "/v1/audit/mismatches", ReadAudit),
    route("GET", "/v1/audit/findings", ReadAudit),
    route("GET", "/v1/audit/tree-head", ReadAudit),
    route("GET", "/v1/audit/checkpoints", ReadAudit),
    route("GET", "/v1/audit/chains/{chain}", ReadAudit),
    route("GET", "/v1/audit/inclusion", ReadAudit),
    route("GET", "/v1/audit/consistency", ReadAudit),
    route("GET", "/v1/admin-tokens", ManageAdmins),
    route("POST", "/v1/admin-tokens", ManageAdmins),
    route("DELETE", "/v1/admin-tokens/{jti}", ManageAdmins),
    route("GET", "/v1/roles", Read),
];

/// The routes that need none: their caller shows a secret instead.
pub const OPEN: &[(&str, &str)] = &[("POST", "/v1/admin-tokens/claim")];

/// The handlers of [`OPEN`].
pub(super) fn open() -> OpenApiRouter<Arc<Api>> {
    admins::open()
}

/// The handlers of [`ROUTES`].
pub(super) fn all() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(mesh::routes())
        .merge(trust::routes())
        .merge(agents::routes())
        .merge(tokens::routes())
        .merge(admins::routes())
        .merge(measurements::routes())
        .merge(drift::routes())
        .merge(policies::routes())
        .merge(reputation::routes())
        .merge(status::routes())
        .merge(watch::routes())
        .merge(approvals::routes())
        .merge(kills::routes())
        .merge(audit::routes())
}

/// Bytes of a page's rows, as stored: some hundred policies. A page that is cut has a `next` as any other.
const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Rows that are read at a time, so that a page of large ones is not read whole to be cut.
const ROWS_AT_ONCE: usize = 8;

/// A page of what stands below `prefix`, each row read by `row`.
async fn page<T>(
    api: &Api,
    prefix: &str,
    query: &PageQuery,
    row: impl Fn(&str, &crate::store::Entry) -> Result<Option<T>, Refusal>,
) -> Result<Page<T>, Refusal> {
    let (limit, cursor_at) = (query.limit()?, query.after()?);
    let mut after = match cursor_at.is_empty() {
        true => String::new(),
        false => format!("{prefix}{cursor_at}"),
    };
    let store = &api.registry.store;
    let name = |key: &str| key.strip_prefix(prefix).unwrap_or_default().to_owned();
    let (revision, mut items, mut rows, mut bytes) = (store.revision(), Vec::new(), 0, 0);
    let mut at_once = ROWS_AT_ONCE.min(limit + 1);
    loop {
        let entries = store.scan(prefix, after.clone(), at_once).await?;
        for entry in &entries {
            // A row past the page's end tells that there is a next one.
            if rows == limit || rows > 0 && bytes + entry.value.len() > MAX_PAGE_BYTES {
                let next = Some(cursor(&name(&after)));
                return Ok(Page { items, next, revision });
            }
            items.extend(row(&name(&entry.key), entry)?);
            after.clone_from(&entry.key);
            (rows, bytes) = (rows + 1, bytes + entry.value.len());
        }
        if entries.len() < at_once {
            let next = None;
            return Ok(Page { items, next, revision });
        }
        // Small rows come in larger steps.
        let fit = MAX_PAGE_BYTES.saturating_sub(bytes) / (bytes / rows).max(1);
        at_once = fit.max(ROWS_AT_ONCE).min(limit + 1);
    }
}

/// A page of the resources of one kind.
async fn resources(api: &Api, kind: aip_api::resource::Kind, query: &PageQuery) -> Result<Page<Held>, Refusal> {
    page(api, &keys::of_kind(kind), query, |_, entry| {
        Ok(Some(Held {
            revision: entry.revision,
            resource: decode(entry)?.value,
            unchanged: false,
        }))
    })
    .await
}
