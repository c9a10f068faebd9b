//! Measurements: which wait, which are approved.

use std::sync::Arc;

use aip_api::resource::{Kind, Measurement};
use aip_api::{AgentName, Digest};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::page;
use crate::admin::Api;
use crate::admin::answer::{Answer, Body, Changed, Page, PageQuery, Params, Parts};
use crate::admin::auth::Caller;
use crate::admin::documents;
use crate::refusal::{Reason, Refusal};
use crate::registry::records::PendingMeasurement;
use crate::registry::{Actor, decode, keys};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list, put))
        .routes(routes!(approve))
        .routes(routes!(remove))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Which {
    /// `pending` or `approved`; `approved` if absent.
    #[param(pattern = "^(pending|approved)$")]
    state: Option<String>,
    /// Of this agent only.
    #[param(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    agent: Option<String>,
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
    cursor: Option<String>,
}

/// A measurement.
#[derive(Serialize, ToSchema)]
struct MeasurementShown {
    /// `pending` or `approved`.
    state: &'static str,
    /// What is approved: the second half of its name.
    #[schema(value_type = String)]
    fingerprint: Digest,
    /// The revision that wrote it.
    revision: u64,
    /// The document.
    #[schema(value_type = Object)]
    measurement: Measurement,
    /// What a person needs to decide; absent once it is approved.
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<Seen>,
}

/// What was seen of a measurement that waits.
#[derive(Serialize, ToSchema)]
struct Seen {
    /// `declared`, `observed` or `hardware`.
    assurance: &'static str,
    /// `cooperative` or `captured`.
    enforcement: &'static str,
    /// How many files were measured.
    files: usize,
    /// The command line, cut.
    argv: Vec<String>,
    /// Unix seconds.
    first_seen: u64,
    /// Unix seconds.
    last_seen: u64,
}

fn pending(entry: &crate::store::Entry) -> Result<MeasurementShown, Refusal> {
    let held = decode::<PendingMeasurement>(entry)?;
    let PendingMeasurement {
        measurement,
        assurance,
        enforcement,
        files,
        argv,
        first_seen,
        last_seen,
    } = held.value;
    let seen = Seen {
        assurance: assurance.as_str(),
        enforcement: enforcement.as_str(),
        files,
        argv,
        first_seen,
        last_seen,
    };
    let fingerprint = measurement.fingerprint();
    Ok(MeasurementShown {
        state: "pending",
        fingerprint,
        revision: held.revision,
        measurement,
        seen: Some(seen),
    })
}

fn approved(entry: &crate::store::Entry) -> Result<MeasurementShown, Refusal> {
    let held = decode::<Measurement>(entry)?;
    let fingerprint = held.value.fingerprint();
    Ok(MeasurementShown {
        state: "approved",
        fingerprint,
        revision: held.revision,
        measurement: held.value,
        seen: None,
    })
}

/// The measurements that wait for a person, or those that are approved.
#[utoipa::path(get, path = "/v1/measurements", tag = "measurements", params(Which), responses((status = 200, body = Page<MeasurementShown>)))]
async fn list(State(api): State<Arc<Api>>, Params(which): Params<Which>) -> Answer<Json<Page<MeasurementShown>>> {
    let query = PageQuery {
        limit: which.limit,
        cursor: which.cursor,
    };
    let agent = which.agent.map(|a| a.parse::<AgentName>()).transpose();
    let agent = agent.map_err(|e| Refusal::new(Reason::NameInvalid, e.to_string()))?;
    let below = agent.map(|a| format!("{a}/")).unwrap_or_default();
    let shown = match which.state.as_deref().unwrap_or("approved") {
        "pending" => {
            page(&api, &format!("{}{below}", keys::PENDING), &query, |_, e| {
                Ok(Some(pending(e)?))
            })
            .await?
        }
        "approved" => {
            page(&api, &keys::resource(Kind::Measurement, &below), &query, |_, e| {
                Ok(Some(approved(e)?))
            })
            .await?
        }
        other => {
            let mistake = aip_api::problem::FieldError::new("state", format!("{other:?} is not pending or approved"));
            return Err(Refusal::invalid(vec![mistake]).into());
        }
    };
    Ok(Json(shown))
}

/// Approves a measurement that was taken elsewhere (`aip attest measure`). In a `prod` mesh: proposes to (202).
#[utoipa::path(post, path = "/v1/measurements", tag = "measurements", request_body = documents::Measurement,
    responses((status = 200, body = Changed), (status = 202, body = Changed)))]
async fn put(State(api): State<Arc<Api>>, caller: Caller, Body(measurement): Body<Measurement>) -> Answer<Response> {
    Ok(api
        .registry
        .approve_measurement(&caller.sub, measurement)
        .await?
        .into_response())
}

fn name((agent, print): (String, String)) -> Result<(AgentName, Digest), Refusal> {
    let bad = |text: String| Refusal::new(Reason::NameInvalid, text);
    Ok((
        agent
            .parse()
            .map_err(|e: aip_api::name::NameError| bad(e.to_string()))?,
        print
            .parse()
            .map_err(|e: aip_api::digest::DigestError| bad(e.to_string()))?,
    ))
}

/// Approves a measurement that waits, or one that was approved before and that an agent which drifted is to run again. In a
/// `prod` mesh: proposes to (202); somebody else approves the proposal.
#[utoipa::path(post, path = "/v1/measurements/{agent}/{fingerprint}/approve", tag = "measurements",
    params(("agent" = String, Path), ("fingerprint" = String, Path)),
    responses((status = 200, body = Changed), (status = 202, body = Changed)))]
async fn approve(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Parts(path): Parts<(String, String)>,
) -> Answer<Response> {
    let (agent, print) = name(path)?;
    let measurement = api.registry.approvable(&agent, &print).await?;
    let outcome = api.registry.approve_measurement(&caller.sub, measurement).await?;
    Ok(outcome.into_response())
}

/// Refuses a measurement that waits, or takes an approval back. SVIDs that were issued for it stay good until they
/// expire, unless the agent is revoked.
#[utoipa::path(delete, path = "/v1/measurements/{agent}/{fingerprint}", tag = "measurements",
    params(("agent" = String, Path), ("fingerprint" = String, Path)), responses((status = 200, body = Changed)))]
async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Parts(path): Parts<(String, String)>,
) -> Answer<Json<Changed>> {
    let (agent, print) = name(path)?;
    let actor = Actor::admin(&caller.sub);
    let done = match api.registry.withdraw_measurement(&actor, &agent, &print).await {
        Err(refusal) if refusal.reason == Reason::NotFound => {
            api.registry.refuse_pending(&actor, &agent, &print).await?
        }
        other => other?,
    };
    Ok(Changed::at(done))
}
