//! Policies: checked in a child process, written with their history.

use std::sync::Arc;

use aip_api::resource::{Policy, PolicyName};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::agents::named;
use super::{MAX_PAGE_BYTES, resources};
use crate::admin::Api;
use crate::admin::admission::admit;
use crate::admin::answer::{Answer, Body, Changed, Held, IfMatch, Name, Page, PageQuery, Params, Parts};
use crate::admin::auth::Caller;
use crate::admin::documents;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(check))
        .routes(routes!(show, put, remove))
        .routes(routes!(revisions))
        .routes(routes!(revision))
        .routes(routes!(rollback))
}

/// The policies.
#[utoipa::path(get, path = "/v1/policies", tag = "policies", params(PageQuery), responses((status = 200, body = Page<Held>)))]
async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<Held>>> {
    Ok(Json(resources(&api, aip_api::resource::Kind::Policy, &query).await?))
}

/// Checks a policy and writes nothing: what it reads, whether its decisions can be cached, its tests.
#[utoipa::path(post, path = "/v1/policies/check", tag = "policies", request_body = documents::Policy,
    responses((status = 200, body = Object), (status = 422, description = "Diagnostics, with file and line, in `errors`.")))]
async fn check(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(policy): Body<Policy>,
) -> Answer<Json<aip_policy::Admission>> {
    Ok(Json(admit(&api, &caller.sub, &policy).await?))
}

/// One policy.
#[utoipa::path(get, path = "/v1/policies/{name}", tag = "policies", params(("name" = String, Path)), responses((status = 200, body = Held)))]
async fn show(State(api): State<Arc<Api>>, Name(name): Name<PolicyName>) -> Answer<Json<Held>> {
    Ok(Json(Held::of(&api.registry.existing::<Policy>(name.as_str()).await?)?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Put {
    /// Must be `true` where the policy is the baseline and differs from the one that is there.
    #[serde(default)]
    replace_baseline: bool,
}

/// Checks a policy and writes it. In a `prod` mesh: proposes to (202).
#[utoipa::path(put, path = "/v1/policies/{name}", tag = "policies", params(("name" = String, Path), Put), request_body = documents::Policy,
    responses((status = 200, body = Changed), (status = 202, body = Changed), (status = 422, description = "Diagnostics, with file and line, in `errors`.")))]
async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(name): Name<PolicyName>,
    Params(query): Params<Put>,
    IfMatch(expected): IfMatch,
    Body(policy): Body<Policy>,
) -> Answer<Response> {
    named(name.as_str(), policy.name.as_str())?;
    if !query.replace_baseline {
        api.registry.keeps_baseline(&policy).await?;
    }
    admit(&api, &caller.sub, &policy).await?;
    Ok(api
        .registry
        .put_policy(&caller.sub, policy, expected)
        .await?
        .into_response())
}

/// Removes a policy; not the baseline. In a `prod` mesh: proposes to (202).
#[utoipa::path(delete, path = "/v1/policies/{name}", tag = "policies", params(("name" = String, Path)),
    responses((status = 200, body = Changed), (status = 202, body = Changed)))]
async fn remove(State(api): State<Arc<Api>>, caller: Caller, Name(name): Name<PolicyName>) -> Answer<Response> {
    Ok(api.registry.delete_policy(&caller.sub, &name).await?.into_response())
}

/// One version of a policy.
#[derive(Serialize, ToSchema)]
struct Version {
    /// The revision that wrote it: what `rollback` takes.
    revision: u64,
    /// Counts from 1.
    version: u64,
    /// Who.
    by: String,
    /// Unix seconds.
    at: u64,
    /// What it was; absent: it was removed, or is left out.
    #[schema(value_type = Option<Object>)]
    policy: Option<Policy>,
    /// True where it is left out: the newer ones fill the answer. It can be rolled back to all the same.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    left_out: bool,
}

/// All versions of a policy that are kept, newest first (at most 50).
#[derive(Serialize, ToSchema)]
struct Versions {
    items: Vec<Version>,
}

/// The versions of a policy, newest first.
#[utoipa::path(get, path = "/v1/policies/{name}/revisions", tag = "policies", params(("name" = String, Path)), responses((status = 200, body = Versions)))]
async fn revisions(State(api): State<Arc<Api>>, Name(name): Name<PolicyName>) -> Answer<Json<Versions>> {
    let mut bytes = 0;
    let versions = api.registry.policy_versions(&name).await?.into_iter().map(|v| {
        let policy = v.value.policy;
        bytes += policy.as_ref().map_or(0, size);
        let left_out = policy.is_some() && bytes > MAX_PAGE_BYTES;
        Version {
            revision: v.revision,
            version: v.value.version,
            by: v.value.by,
            at: v.value.at,
            policy: policy.filter(|_| !left_out),
            left_out,
        }
    });
    Ok(Json(Versions {
        items: versions.collect(),
    }))
}

/// A policy as one of its revisions was: kept as long as records may name it (`audit.retention.days`), also after it was
/// removed.
#[utoipa::path(get, path = "/v1/policies/{name}/revisions/{revision}", tag = "policies", params(("name" = String, Path), ("revision" = u64, Path)),
    responses((status = 200, body = Held)))]
async fn revision(
    State(api): State<Arc<Api>>,
    Parts((name, revision)): Parts<(PolicyName, u64)>,
) -> Answer<Json<Held>> {
    Ok(Json(Held::of(
        &api.registry.resource_at::<Policy>(name.as_str(), revision).await?,
    )?))
}

fn size(policy: &Policy) -> usize {
    policy.rego.len() + policy.tests.as_ref().map_or(0, String::len) + policy.data.to_string().len()
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Rollback {
    /// The revision whose version is written again.
    revision: u64,
}

/// Writes an earlier version again, as a new one. It is checked anew: the compiler may have changed since.
#[utoipa::path(post, path = "/v1/policies/{name}/rollback", tag = "policies", params(("name" = String, Path)), request_body = Rollback,
    responses((status = 200, body = Changed), (status = 202, body = Changed)))]
async fn rollback(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(name): Name<PolicyName>,
    Body(to): Body<Rollback>,
) -> Answer<Response> {
    let policy = api.registry.policy_at(&name, to.revision).await?;
    admit(&api, &caller.sub, &policy).await?;
    Ok(api
        .registry
        .put_policy(&caller.sub, policy, None)
        .await?
        .into_response())
}
