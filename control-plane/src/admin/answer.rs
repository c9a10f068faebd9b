//! How the API speaks: problem documents, pages, bodies.

mod body;

use std::any::Any;

use aip_api::problem::{CONTENT_TYPE, FieldError};
use axum::Json;
use axum::extract::{FromRequestParts, Request};
use axum::http::request as http;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

pub(super) use self::body::BODY_DEADLINE;
pub use self::body::Body;
use crate::refusal::{Reason, Refusal};
use crate::registry::{Outcome, Versioned};

/// Rows of a page, unless asked otherwise, and at most.
pub const DEFAULT_LIMIT: usize = 100;
/// Most rows of a page.
pub const MAX_LIMIT: usize = 500;
/// Longest cursor: a resource's name in base64.
const MAX_CURSOR: usize = 700;

/// A refusal on its way out, as problem document.
#[derive(Debug)]
pub struct ApiError(pub Refusal);

/// What a handler answers.
pub type Answer<T> = Result<T, ApiError>;

impl<T: Into<Refusal>> From<T> for ApiError {
    fn from(refusal: T) -> Self {
        Self(refusal.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let row = self.0.reason.row();
        metrics::counter!("aip_admin_refusals_total", "reason" => row.reason).increment(1);
        let status = StatusCode::from_u16(row.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0.problem())).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// No such path.
pub(super) async fn not_found(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(200).collect();
    ApiError(Refusal::new(
        Reason::NotFound,
        format!("{} {path} does not exist; see /openapi.json", request.method()),
    ))
}

/// There is such a path, and not with this method; the router says in `Allow` with which.
pub(super) async fn not_allowed(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(200).collect();
    let method: String = request.method().as_str().chars().take(20).collect();
    ApiError(Refusal::new(
        Reason::MethodNotAllowed,
        format!("{path} does not take {method}; see /openapi.json"),
    ))
}

/// A mistake of ours costs one request.
pub(super) fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a request handler panicked");
    ApiError(Reason::Internal.into()).into_response()
}

/// Query parameters.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut http::Parts, _: &S) -> Result<Self, ApiError> {
        let read = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        Ok(Self(
            read.map_err(|e| Refusal::new(Reason::Malformed, e.body_text()))?.0,
        ))
    }
}

/// The largest number that a query takes: more than a revision or a time ever is, and what the languages of most clients can hold.
pub const MAX_NUMBER: u64 = i64::MAX.unsigned_abs();

/// Reads a number of a query that is at most [`MAX_NUMBER`].
///
/// # Errors
/// No number, or a larger one.
pub fn number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let number = Option::<u64>::deserialize(from)?;
    match number {
        Some(number) if number > MAX_NUMBER => Err(D::Error::custom(format!("{number} is more than {MAX_NUMBER}"))),
        fits => Ok(fits),
    }
}

/// One part of the path, as its type.
#[derive(Debug)]
pub struct Name<T>(pub T);

impl<T, E, S> FromRequestParts<S> for Name<T>
where
    T: TryFrom<String, Error = E>,
    E: std::fmt::Display,
    S: Send + Sync,
{
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut http::Parts, state: &S) -> Result<Self, ApiError> {
        let bad = |text: String| Refusal::new(Reason::NameInvalid, text);
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let text = path.map_err(|e| bad(e.body_text()))?.0;
        Ok(Self(T::try_from(text).map_err(|e| bad(e.to_string()))?))
    }
}

/// Several parts of the path, as their types.
#[derive(Debug)]
pub struct Parts<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Parts<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut http::Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        Ok(Self(
            path.map_err(|e| Refusal::new(Reason::NameInvalid, e.body_text()))?.0,
        ))
    }
}

/// `If-Match: "<revision>"`: do it only if the thing is still at this revision (0: only if there is none).
#[derive(Debug)]
pub struct IfMatch(pub Option<u64>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut http::Parts, _: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else {
            return Ok(Self(None));
        };
        let revision = value
            .to_str()
            .ok()
            .and_then(|v| v.trim().trim_matches('"').parse().ok());
        let bad = || Refusal::new(Reason::Malformed, "If-Match takes one revision in quotes");
        Ok(Self(Some(revision.ok_or_else(bad)?)))
    }
}

/// A part of a list.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Rows to answer: 1 to 500, 100 if absent.
    #[param(minimum = 1, maximum = 500)]
    pub limit: Option<usize>,
    /// `next` of the page before.
    pub cursor: Option<String>,
}

impl PageQuery {
    /// The limit.
    ///
    /// # Errors
    /// Out of bounds.
    pub fn limit(&self) -> Result<usize, Refusal> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if (1..=MAX_LIMIT).contains(&limit) {
            return Ok(limit);
        }
        Err(Refusal::invalid(vec![FieldError::new(
            "limit",
            format!("{limit} is out of bounds: 1 to {MAX_LIMIT}"),
        )]))
    }

    /// The last name of the page before; empty at the beginning.
    ///
    /// # Errors
    /// Not a cursor of ours.
    pub fn after(&self) -> Result<String, Refusal> {
        let Some(cursor) = &self.cursor else {
            return Ok(String::new());
        };
        let bytes = (cursor.len() <= MAX_CURSOR)
            .then(|| URL_SAFE_NO_PAD.decode(cursor).ok())
            .flatten();
        let text = bytes.and_then(|b| String::from_utf8(b).ok());
        text.ok_or_else(|| Refusal::invalid(vec![FieldError::new("cursor", "not one of ours")]))
    }
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// The cursor of the next page, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The store's revision when the list was read.
    pub revision: u64,
}

/// The cursor after `name`.
pub fn cursor(name: &str) -> String {
    URL_SAFE_NO_PAD.encode(name)
}

/// A resource with its revision.
#[derive(Debug, Serialize, ToSchema)]
pub struct Held {
    /// The revision that wrote it.
    pub revision: u64,
    /// The document, as sidecars get it.
    #[schema(value_type = Object)]
    pub resource: serde_json::Value,
    /// True where it was to be written, and says the same already; absent otherwise.
    #[serde(skip_serializing_if = "is_false")]
    #[schema(required = false)]
    pub unchanged: bool,
}

/// For flags that are left out where they say nothing.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Held {
    /// A resource with its revision.
    ///
    /// # Errors
    /// Can't be written as JSON.
    pub fn of<T: Serialize>(held: &Versioned<T>) -> Result<Self, Refusal> {
        let resource = serde_json::to_value(&held.value).map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?;
        Ok(Self {
            revision: held.revision,
            resource,
            unchanged: false,
        })
    }
}

/// What a change answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Changed {
    /// The store's revision with this change; of what stands there, where nothing changed.
    pub revision: u64,
    /// The proposal that waits for a second person (status 202); absent when it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proposal: Option<String>,
    /// True where what stands there says the same already: nothing was written. Absent otherwise.
    #[serde(skip_serializing_if = "is_false")]
    #[schema(required = false)]
    pub unchanged: bool,
}

impl Changed {
    /// Done at this revision.
    pub const fn at(revision: u64) -> Json<Self> {
        Json(Self {
            revision,
            proposal: None,
            unchanged: false,
        })
    }
}

impl IntoResponse for Outcome {
    fn into_response(self) -> Response {
        match self {
            Self::Done { revision } => Changed::at(revision).into_response(),
            Self::Unchanged { revision } => {
                let changed = Changed {
                    revision,
                    proposal: None,
                    unchanged: true,
                };
                Json(changed).into_response()
            }
            Self::Proposed { id, revision } => {
                let changed = Changed {
                    revision,
                    proposal: Some(id),
                    unchanged: false,
                };
                (StatusCode::ACCEPTED, Json(changed)).into_response()
            }
        }
    }
}
