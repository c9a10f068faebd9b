//! The control plane's log of checkpoints: its signed head, and proofs that lead to it.

use std::sync::Arc;

use aip_api::Digest;
use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::page_of;
use crate::admin::Api;
use crate::admin::answer::{Answer, Page, PageQuery, Params, Parts, cursor};
use crate::audit::ledger::Listed;
use crate::refusal::{Reason, Refusal};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(tree_head))
        .routes(routes!(all))
        .routes(routes!(chain))
        .routes(routes!(inclusion))
        .routes(routes!(consistency))
}

/// A signed tree head.
#[derive(Serialize, ToSchema)]
struct Head {
    /// JWS, EdDSA by the mesh's audit key (`GET /v1/trust`), `typ` `aip-tree-head+jwt`.
    statement: String,
    /// Its claims.
    #[schema(value_type = Object)]
    head: serde_json::Value,
    /// Where the first checkpoints are older than is kept: how many, with the subtrees over them. JWS by the same key, `typ`
    /// `aip-ledger-begins+jwt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    begins: Option<String>,
}

/// A chain of certificates.
#[derive(Serialize, ToSchema)]
struct ChainShown {
    /// DER in base64, leaf first.
    certificates: Vec<String>,
}

/// The control plane's log of checkpoints, in its own order: every leaf of its tree that is still kept.
#[utoipa::path(get, path = "/v1/audit/checkpoints", tag = "audit", params(PageQuery), responses((status = 200, body = Page<Listed>)))]
async fn all(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<Listed>>> {
    let (limit, after) = (query.limit()?, query.after()?);
    let mut items = api.audit.ledger.listed(&after, limit + 1).await?;
    let more = items.len() > limit;
    items.truncate(limit);
    let last = items.last().filter(|_| more);
    let next = last.map(|listed| cursor(&format!("{:020}", listed.index)));
    Ok(Json(page_of(&api, items, next)))
}

/// A chain that signed checkpoints, by the digest under which they name it.
#[utoipa::path(get, path = "/v1/audit/chains/{chain}", tag = "audit", params(("chain" = String, Path)), responses((status = 200, body = ChainShown)))]
async fn chain(State(api): State<Arc<Api>>, Parts((chain,)): Parts<(String,)>) -> Answer<Json<ChainShown>> {
    let absent = || Refusal::new(Reason::NotFound, "there is no such chain");
    let digest = chain.parse().map_err(|_| absent())?;
    let certificates = api.audit.ledger.chain(&digest).await?.ok_or_else(absent)?;
    Ok(Json(ChainShown { certificates }))
}

/// The signed head of the control plane's log of checkpoints. Who keeps one can later ask for the proof that the log only
/// grew.
#[utoipa::path(get, path = "/v1/audit/tree-head", tag = "audit", responses((status = 200, body = Head)))]
async fn tree_head(State(api): State<Arc<Api>>) -> Answer<Json<Head>> {
    let empty = || Refusal::new(Reason::NotFound, "no checkpoint was taken yet");
    let statement = api.audit.ledger.head().await?.ok_or_else(empty)?;
    // Ours, and verified when the log was opened.
    let claims = statement
        .split('.')
        .nth(1)
        .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let head = claims
        .and_then(|claims| serde_json::from_slice(&claims).ok())
        .unwrap_or_default();
    let begins = api.audit.ledger.begins().await?;
    Ok(Json(Head {
        statement,
        head,
        begins,
    }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct InclusionQuery {
    /// Place of the checkpoint in the control plane's log.
    index: u64,
    /// Checkpoints of the tree that the proof leads to; the whole log if absent.
    size: Option<u64>,
}

/// A proof that a checkpoint stands in the log (RFC 6962 section 2.1.1).
#[derive(Serialize, ToSchema)]
struct Inclusion {
    index: u64,
    size: u64,
    /// The leaf: the hash of the checkpoint's statement.
    #[schema(value_type = String)]
    leaf: Digest,
    /// The root of the tree of `size`.
    #[schema(value_type = String)]
    root: Digest,
    /// From the leaf up.
    #[schema(value_type = Vec<String>)]
    proof: Vec<Digest>,
}

/// Proves that a checkpoint stands in the log.
#[utoipa::path(get, path = "/v1/audit/inclusion", tag = "audit", params(InclusionQuery), responses((status = 200, body = Inclusion)))]
async fn inclusion(State(api): State<Arc<Api>>, Params(query): Params<InclusionQuery>) -> Answer<Json<Inclusion>> {
    let ledger = &api.audit.ledger;
    let size = match query.size {
        Some(size) => size,
        None => ledger.size().await?,
    };
    let proof = ledger.inclusion(query.index, size).await?;
    let absent = || Refusal::new(Reason::NotFound, "there is no such checkpoint");
    let row = ledger.at(query.index).await?.ok_or_else(absent)?;
    Ok(Json(Inclusion {
        index: query.index,
        size,
        leaf: aip_audit::merkle::leaf(row.statement.as_bytes()),
        root: ledger.root(size).await?,
        proof,
    }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ConsistencyQuery {
    /// Checkpoints of the earlier tree.
    from: u64,
    /// Checkpoints of the later tree; the whole log if absent.
    to: Option<u64>,
}

/// A proof that an earlier tree is a beginning of a later one (RFC 6962 section 2.1.2).
#[derive(Serialize, ToSchema)]
struct Consistency {
    from: u64,
    to: u64,
    #[schema(value_type = Vec<String>)]
    proof: Vec<Digest>,
}

/// Proves that the log only grew between two of its sizes.
#[utoipa::path(get, path = "/v1/audit/consistency", tag = "audit", params(ConsistencyQuery), responses((status = 200, body = Consistency)))]
async fn consistency(
    State(api): State<Arc<Api>>,
    Params(query): Params<ConsistencyQuery>,
) -> Answer<Json<Consistency>> {
    let ledger = &api.audit.ledger;
    let to = match query.to {
        Some(to) => to,
        None => ledger.size().await?,
    };
    Ok(Json(Consistency {
        from: query.from,
        to,
        proof: ledger.consistency(query.from, to).await?,
    }))
}
