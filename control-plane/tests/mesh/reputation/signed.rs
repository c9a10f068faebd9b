//! Reports that a verifier signs by a key of its own.

use aip_api::resource::reputation::{REPORT_TYP, SignedReport};
use aip_runtime::jws;
use aip_runtime::svid::PendingKey;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{REPORTS, report, score, with_planner};
use crate::support::{Admin, Mesh};

fn text_of(key: &PendingKey) -> String {
    STANDARD.encode(&key.key.point)
}

async fn with_key(mesh: &Mesh, key: &PendingKey) -> Admin {
    let wanted = json!({"sub": "checker", "role": "verifier", "key": text_of(key)});
    let made = mesh.admin.ok("POST", "/v1/admin-tokens", wanted).await;
    mesh.admin.with(made["token"].as_str().unwrap())
}

fn claims(report: &Value) -> SignedReport {
    let mut claims = report.clone();
    claims["aud"] = "spiffe://aip.internal/control-plane".into();
    claims["sub"] = "spiffe://aip.internal/agent/planner".into();
    claims["iat"] = aip_runtime::unix_now().into();
    serde_json::from_value(claims).unwrap()
}

fn signed(report: &Value, key: &PendingKey, typ: &str, claims: &SignedReport) -> Value {
    let mut signed = report.clone();
    signed["statement"] = jws::sign_es256(&key.pkcs8, typ, claims).unwrap().into();
    signed
}

#[tokio::test]
async fn a_signed_report_is_kept_as_it_was_signed_and_can_be_checked_by_anybody() {
    let mesh = with_planner().await;
    let key = PendingKey::generate().unwrap();
    let checker = with_key(&mesh, &key).await;
    let report = report("critical", 1);
    let claims = claims(&report);
    let taken = checker
        .ok("POST", REPORTS, signed(&report, &key, REPORT_TYP, &claims))
        .await;
    assert_eq!(taken["points"], 2.0);
    let kept = mesh.admin.get(REPORTS).await["items"][0].clone();
    assert_eq!((&kept["id"], &kept["reporter"]), (&taken["id"], &json!("checker")));
    assert_eq!(kept["signed"]["key"], text_of(&key));
    let statement = kept["signed"]["statement"].as_str().unwrap();
    let read: SignedReport = jws::verify_es256(statement, REPORT_TYP, &key.key.point).unwrap();
    assert_eq!(read, claims);
    let shown = mesh.admin.get("/v1/reputation/planner").await;
    assert!(shown["history"][0]["signed_by"].is_string(), "{shown}");
    let audit = mesh.admin.get("/v1/audit?limit=20").await.to_string();
    assert!(
        audit.contains(&text_of(&key)),
        "who enrolled which key stands in the audit"
    );

    // One without a key reports by its token, and it is recorded as that.
    mesh.admin.ok("POST", REPORTS, super::report("low", 2)).await;
    let shown = mesh.admin.get("/v1/reputation/planner").await;
    assert!(shown["history"][0]["signed_by"].is_null(), "{shown}");
}

/// A token that was stolen, without its key.
#[tokio::test]
async fn where_a_key_is_enrolled_nothing_else_than_what_it_signed_is_taken() {
    let mesh = with_planner().await;
    let (key, other) = (PendingKey::generate().unwrap(), PendingKey::generate().unwrap());
    let checker = with_key(&mesh, &key).await;
    let report = report("critical", 1);
    let good = claims(&report);
    let changed = |change: &dyn Fn(&mut SignedReport)| {
        let mut claims = good.clone();
        change(&mut claims);
        signed(&report, &key, REPORT_TYP, &claims)
    };
    let mut garbage = report.clone();
    garbage["statement"] = "x".repeat(20_000).into();
    for forged in [
        report.clone(),
        signed(&report, &other, REPORT_TYP, &good),
        signed(&report, &key, "aip-rep+jwt", &good),
        changed(&|c| c.sub = "spiffe://aip.internal/agent/ledger".parse().unwrap()),
        changed(&|c| c.aud = "spiffe://other.mesh/control-plane".into()),
        changed(&|c| c.iat -= 301),
        changed(&|c| c.severity = aip_api::resource::reputation::Severity::Low),
        changed(&|c| c.claim = "something else".into()),
        garbage,
    ] {
        let refused = checker.refused("POST", REPORTS, forged).await;
        assert_eq!(refused, (422, "statement_invalid".into()));
    }
    let by_token = signed(&report, &key, REPORT_TYP, &good);
    let refused = mesh.admin.refused("POST", REPORTS, by_token).await;
    assert_eq!(refused, (422, "statement_invalid".into()), "no key was enrolled");
    assert_eq!(score(&mesh).await, 5.0, "nothing was counted");
    for bad in ["", "AAAA", "no base64"] {
        let wanted = json!({"sub": "checker", "role": "verifier", "key": bad});
        assert_eq!(mesh.admin.refused("POST", "/v1/admin-tokens", wanted).await.0, 422);
    }
}
