//! Who may do what: every role on every route, and every token that is not one.

use aip_api::resource::KeyPurpose;
use aip_control_plane::admin::roles::{MATRIX, Role, may};
use aip_control_plane::admin::{OPEN, ROUTES, auth, openapi};
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
    let open = OPEN
        .iter()
        .map(|(method, path)| ((*path).to_owned(), (*method).to_owned()));
    table.extend(open);
    documented.sort();
    table.sort();
    assert_eq!(documented, table);
    assert!(ROUTES.iter().all(|r| MATRIX.iter().any(|(p, _)| *p == r.permission)));
}

/// An admin token that others are made from.
struct Forge {
    token: String,
    claims: auth::Claims,
    signer: std::sync::Arc<Signer>,
}

impl Forge {
    fn new(mesh: &Mesh) -> Self {
        let token = mesh.admin.token.clone();
        let claims = token.split('.').nth(1).unwrap();
        Self {
            claims: serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap(),
            signer: mesh.plane.api.ca.signer(KeyPurpose::Admin),
            token,
        }
    }

    fn with(&self, change: impl FnOnce(&mut auth::Claims)) -> String {
        let mut claims = self.claims.clone();
        change(&mut claims);
        jws::sign_eddsa(&self.signer, auth::TYP, &claims).unwrap()
    }

    fn by(&self, signer: &Signer, typ: &str) -> String {
        jws::sign_eddsa(signer, typ, &self.claims).unwrap()
    }

    /// Signed with an algorithm that nobody should take, by `sign`.
    fn under(&self, alg: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
        let head = json!({"alg": alg, "typ": auth::TYP, "kid": self.signer.kid()});
        let claims = self.token.split('.').nth(1).unwrap();
        let message = format!("{}.{claims}", URL_SAFE_NO_PAD.encode(head.to_string()));
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(sign(message.as_bytes())))
    }
}

#[tokio::test]
async fn tokens_that_are_not_ours_or_not_now_are_refused() {
    let mesh = Mesh::dev().await;
    let forge = Forge::new(&mesh);
    let stranger = Signer::generate(KeyPurpose::Admin).unwrap().0;
    let config = mesh.plane.api.ca.signer(KeyPurpose::Config);
    // With the public key as secret: what a confused verifier would take.
    let confused = |message: &[u8]| {
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, forge.signer.public_key().as_bytes());
        ring::hmac::sign(&secret, message).as_ref().to_vec()
    };
    for (token, expected) in [
        (forge.under("none", |_| vec![]), "admin_token_invalid"),
        (forge.under("HS256", confused), "admin_token_invalid"),
        (forge.by(&stranger, auth::TYP), "admin_token_invalid"),
        (forge.by(&config, auth::TYP), "admin_token_invalid"),
        (forge.by(&forge.signer, "aip-ar+jwt"), "admin_token_invalid"),
        (forge.with(|c| c.aud = "other".into()), "admin_token_invalid"),
        (forge.with(|c| c.iss = "other".into()), "admin_token_invalid"),
        (forge.with(|c| c.exp = 1), "admin_token_expired"),
        (forge.with(|c| c.jti = "other".into()), "admin_token_revoked"),
        (format!("{}x", forge.token), "admin_token_invalid"),
        ("x".repeat(3_000), "admin_token_invalid"),
        ("x".into(), "admin_token_invalid"),
        (String::new(), "credential_missing"),
    ] {
        let refused = mesh.admin.with(&token).refused("GET", "/v1/mesh", Value::Null).await;
        assert_eq!(refused, (401, expected.to_owned()), "{token}");
    }
}

#[tokio::test]
async fn the_record_of_a_token_counts_and_not_what_it_says() {
    let mesh = Mesh::dev().await;
    let forge = Forge::new(&mesh);
    let made = mesh
        .admin
        .ok("POST", "/v1/admin-tokens", json!({"sub": "v", "role": "viewer"}))
        .await;
    let jti = made["jti"].as_str().unwrap();
    let raised = forge.with(|c| {
        c.jti = jti.into();
        c.role = Role::Admin;
    });
    let raised = mesh.admin.with(raised);
    let refused = raised.refused("GET", "/v1/admin-tokens", Value::Null).await;
    assert_eq!(refused.1, "role_forbidden");
    let viewer = mesh.admin.with(made["token"].as_str().unwrap());
    viewer.get("/v1/mesh").await;
    mesh.admin
        .ok("DELETE", &format!("/v1/admin-tokens/{jti}"), Value::Null)
        .await;
    assert_eq!(
        viewer.refused("GET", "/v1/mesh", Value::Null).await.1,
        "admin_token_revoked"
    );
    mesh.plane.clock.advance(31 * 86_400);
    let late = mesh.admin.refused("GET", "/v1/mesh", Value::Null).await;
    assert_eq!(late.1, "admin_token_expired");
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
