//! Who may do what: every role on every route, and every token that is not one.

use aip_control_plane::admin::roles::{MATRIX, Role, may};
use aip_control_plane::admin::{ROUTES, auth, openapi};
use aip_control_plane::refusal::Reason;
use aip_runtime::jws;
use aip_runtime::signing::Signer;
use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::support::{Admin, Mesh};

/// A path with its parameters filled in by names that nobody has.
fn concrete(path: &str) -> String {
    path.replace("{revision}", "0")
        .replace("{fingerprint}", &"0".repeat(64))
        .replace("{name}", "nobody")
        .replace("{agent}", "nobody")
        .replace("{id}", "none")
        .replace("{jti}", "none")
}

#[tokio::test]
async fn every_role_may_call_exactly_the_routes_of_the_matrix() {
    let mesh = Mesh::dev().await;
    for role in Role::ALL {
        let made = mesh
            .admin
            .ok("POST", "/v1/admin-tokens", json!({"sub": "x", "role": role}))
            .await;
        let client = mesh.admin.with(made["token"].as_str().unwrap());
        // The watch never ends; the body is not read here.
        for route in ROUTES {
            let builder = client.request(route.method, &concrete(route.path), &Value::Null);
            let response = client.raw(builder.body(Body::empty()).unwrap()).await;
            let refused = response.status().as_u16() == 403;
            let allowed = may(role, route.permission);
            assert_eq!(
                !refused,
                allowed,
                "{} {} as {}: {}",
                route.method,
                route.path,
                role.as_str(),
                response.status()
            );
        }
    }
}

#[test]
fn every_documented_operation_is_in_the_table_of_routes_and_the_other_way_round() {
    let document: Value = serde_json::from_str(&openapi()).unwrap();
    let mut documented: Vec<(String, String)> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item
            .as_object()
            .unwrap()
            .keys()
            .filter(|m| ["get", "put", "post", "delete"].contains(&m.as_str()))
        {
            documented.push((path.clone(), method.to_uppercase()));
        }
    }
    let mut table: Vec<_> = ROUTES
        .iter()
        .map(|r| (r.path.to_owned(), r.method.to_owned()))
        .collect();
    documented.sort();
    table.sort();
    assert_eq!(documented, table);
    assert!(ROUTES.iter().all(|r| MATRIX.iter().any(|(p, _)| *p == r.permission)));
}

#[tokio::test]
async fn tokens_that_are_not_ours_or_not_now_are_refused() {
    let mesh = Mesh::dev().await;
    let (api, good) = (&mesh.plane.api, mesh.admin.token.clone());
    let part = |i: usize| good.split('.').nth(i).unwrap().to_owned();
    let claims: auth::Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part(1)).unwrap()).unwrap();
    let signer = api.ca.signer(aip_api::resource::KeyPurpose::Admin);
    let sign = |claims: &auth::Claims| jws::sign_eddsa(&signer, auth::TYP, claims).unwrap();
    let head = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let kid = signer.kid();
    let none = format!(
        "{}.{}.",
        head(json!({"alg": "none", "typ": auth::TYP, "kid": kid})),
        part(1)
    );
    // HS256 with the public key as secret: what a confused verifier would take.
    let message = format!(
        "{}.{}",
        head(json!({"alg": "HS256", "typ": auth::TYP, "kid": kid})),
        part(1)
    );
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, signer.public_key().as_bytes());
    let confused = format!(
        "{message}.{}",
        URL_SAFE_NO_PAD.encode(ring::hmac::sign(&secret, message.as_bytes()))
    );
    let stranger = Signer::generate(aip_api::resource::KeyPurpose::Admin).unwrap().0;
    let config = api.ca.signer(aip_api::resource::KeyPurpose::Config);
    let refused = async |token: &str| mesh.admin.with(token).refused("GET", "/v1/mesh", Value::Null).await;
    for (token, expected) in [
        (none, "admin_token_invalid"),
        (confused, "admin_token_invalid"),
        (
            jws::sign_eddsa(&stranger, auth::TYP, &claims).unwrap(),
            "admin_token_invalid",
        ),
        (
            jws::sign_eddsa(&config, auth::TYP, &claims).unwrap(),
            "admin_token_invalid",
        ),
        (
            jws::sign_eddsa(&signer, "aip-ar+jwt", &claims).unwrap(),
            "admin_token_invalid",
        ),
        (
            sign(&auth::Claims {
                aud: "other".into(),
                ..claims.clone()
            }),
            "admin_token_invalid",
        ),
        (
            sign(&auth::Claims {
                iss: "other".into(),
                ..claims.clone()
            }),
            "admin_token_invalid",
        ),
        (
            sign(&auth::Claims {
                exp: 1,
                ..claims.clone()
            }),
            "admin_token_expired",
        ),
        (
            sign(&auth::Claims {
                jti: "other".into(),
                ..claims.clone()
            }),
            "admin_token_revoked",
        ),
        (format!("{good}x"), "admin_token_invalid"),
        ("x".repeat(3_000), "admin_token_invalid"),
        ("x".into(), "admin_token_invalid"),
        (String::new(), "credential_missing"),
    ] {
        assert_eq!(refused(&token).await, (401, expected.to_owned()), "{token}");
    }
    let viewer = mesh
        .admin
        .ok("POST", "/v1/admin-tokens", json!({"sub": "v", "role": "viewer"}))
        .await;
    let viewer_claims = auth::Claims {
        jti: viewer["jti"].as_str().unwrap().into(),
        role: Role::Admin,
        ..claims.clone()
    };
    let raised = mesh.admin.with(sign(&viewer_claims));
    assert_eq!(
        raised.refused("GET", "/v1/admin-tokens", Value::Null).await.1,
        "role_forbidden",
        "the record counts"
    );
    let path = format!("/v1/admin-tokens/{}", viewer["jti"].as_str().unwrap());
    mesh.admin.ok("DELETE", &path, Value::Null).await;
    assert_eq!(
        refused(viewer["token"].as_str().unwrap()).await.1,
        "admin_token_revoked"
    );
    mesh.plane.clock.advance(31 * 86_400);
    assert_eq!(refused(&good).await.1, "admin_token_expired");
}

#[tokio::test]
async fn pages_of_browsers_get_nothing() {
    let mesh = Mesh::dev().await;
    let send = async |name: &str, value: &str| {
        let builder = mesh.admin.request("GET", "/v1/mesh", &Value::Null);
        let mut request = builder.body(Body::empty()).unwrap();
        request
            .headers_mut()
            .insert(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        let (status, problem) = mesh.admin.send(request).await;
        (
            status.as_u16(),
            problem["reason"].as_str().unwrap_or_default().to_owned(),
        )
    };
    assert_eq!(send("origin", "http://evil.com").await, (403, "origin_refused".into()));
    assert_eq!(send("host", "evil.com").await, (421, "host_refused".into()));
    assert_eq!(send("accept", "*/*").await.0, 200);
}

/// The program writes what it knows into the page; people write around it.
#[test]
fn the_admin_api_page_and_the_openapi_document_say_what_the_program_does() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    same(&docs.join("openapi.json"), openapi());
    let page = docs.join("admin-api.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let text = between(&text, "roles", &roles_table());
    let text = between(&text, "reasons", &reasons_table());
    same(&page, text);
}

fn same(path: &std::path::Path, expected: String) {
    if std::env::var_os("AIP_REGENERATE").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == expected,
        "{} is stale: run this test with AIP_REGENERATE=1",
        path.display()
    );
}

fn between(text: &str, name: &str, table: &str) -> String {
    let (begin, end) = (
        format!("<!-- {name}: begin, generated -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let (head, rest) = text.split_once(&begin).expect("the marker");
    let (_, tail) = rest.split_once(&end).expect("the marker");
    format!("{head}{begin}\n{table}\n{end}{tail}")
}

fn roles_table() -> String {
    let names: Vec<_> = Role::ALL.iter().map(|r| r.as_str()).collect();
    let mut out = format!(
        "| permission | routes | {} |\n|---|---|{}\n",
        names.join(" | "),
        "---|".repeat(names.len())
    );
    for (permission, roles) in MATRIX {
        let routes: Vec<_> = ROUTES
            .iter()
            .filter(|r| r.permission == *permission)
            .map(|r| format!("`{} {}`", r.method, r.path.trim_start_matches("/v1")))
            .collect();
        let marks: Vec<_> = Role::ALL
            .iter()
            .map(|r| if roles.contains(r) { "yes" } else { "" })
            .collect();
        out += &format!(
            "| {} | {} | {} |\n",
            permission.as_str(),
            routes.join("<br>"),
            marks.join(" | ")
        );
    }
    out
}

fn reasons_table() -> String {
    let mut out = String::from("| reason | HTTP | gRPC | fault | again? | |\n|---|---|---|---|---|---|\n");
    for reason in Reason::ALL {
        let row = reason.row();
        let again = if row.retryable { "yes" } else { "no" };
        let (status, code, fault) = (row.status, row.code, row.fault.as_str());
        out += &format!(
            "| `{}` | {status} | {code:?} | {fault} | {again} | {} |\n",
            row.reason, row.about
        );
    }
    out
}

#[tokio::test]
async fn the_matrix_is_served() {
    let mesh = Mesh::dev().await;
    let roles = mesh.admin.get("/v1/roles").await;
    assert_eq!(roles["items"].as_array().unwrap().len(), MATRIX.len());
    let open = Admin::new(mesh.plane.run.admin, "");
    for path in ["/livez", "/readyz", "/metrics", "/openapi.json"] {
        open.ok("GET", path, Value::Null).await;
    }
}
