//! `/openapi.json`: generated from the handlers, compared with `docs/openapi.json` by a test.

use std::sync::OnceLock;

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use super::routes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "AIP admin API",
        description = "Everything that `aip` does. Errors are RFC 9457 problem documents with a stable `reason`; \
                       see docs/admin-api.md."
    ),
    modifiers(&Bearer),
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

/// The document, as it is served.
pub fn openapi() -> String {
    let all = OpenApiRouter::with_openapi(Description::openapi()).merge(routes::all());
    let mut text = all.into_openapi().to_pretty_json().unwrap_or_default();
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
