//! `/openapi.json`: generated from the handlers, compared with `docs/openapi.json` by a test.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, Required, Schema};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use super::{documents, routes};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "AIP admin API",
        description = "Everything that `aip` does. Errors are RFC 9457 problem documents with a stable `reason`; \
                       see docs/admin-api.md."
    ),
    modifiers(&Bearer),
    components(schemas(documents::Problem)),
    security(("bearer" = []))
)]
pub(super) struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .build();
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// What every operation may answer instead.
fn refused() -> Response {
    let problem = Content::new(Some(RefOr::<utoipa::openapi::Schema>::Ref(Ref::from_schema_name(
        "Problem",
    ))));
    ResponseBuilder::new()
        .description("Refused: a problem document.")
        .content(aip_api::problem::CONTENT_TYPE, problem)
        .build()
}

/// The documents without a field that must be there: an empty body is an empty one of them.
fn all_optional(document: &utoipa::openapi::OpenApi) -> BTreeSet<String> {
    let schemas = document.components.iter().flat_map(|components| &components.schemas);
    let empty = schemas.filter(|(_, schema)| match schema {
        RefOr::T(Schema::Object(object)) => object.required.is_empty() && !object.properties.is_empty(),
        _ => false,
    });
    empty.map(|(name, _)| format!("#/components/schemas/{name}")).collect()
}

/// The document, as it is served.
pub fn openapi() -> String {
    let all = OpenApiRouter::with_openapi(Description::openapi())
        .merge(routes::all())
        .merge(routes::open());
    let mut document = all.into_openapi();
    let optional = all_optional(&document);
    for item in document.paths.paths.values_mut() {
        let methods = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        let operations = methods.into_iter().filter_map(Option::as_mut);
        operations.for_each(|operation: &mut Operation| {
            let answers = &mut operation.responses.responses;
            answers.insert("default".into(), RefOr::T(refused()));
            if let Some(RefOr::T(body)) = &mut operation.request_body {
                let of = body.content.values().find_map(|content| match content {
                    RefOr::T(content) => content.schema.as_ref(),
                    RefOr::Ref(_) => None,
                });
                let may_be_absent = matches!(of, Some(RefOr::Ref(schema)) if optional.contains(&schema.ref_location));
                body.required = Some(if may_be_absent { Required::False } else { Required::True });
            }
        });
    }
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

pub(super) async fn serve() -> impl IntoResponse {
    static TEXT: OnceLock<String> = OnceLock::new();
    (
        [(header::CONTENT_TYPE, "application/json")],
        TEXT.get_or_init(openapi).as_str(),
    )
}

#[cfg(test)]
mod tests;
