//! Metrics of real processes, scraped while what they measure happens: decisions, kills, drift, reputation, the audit. And
//! everything that is on the pages is documented, and nothing is there that `promtool` would not have.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::{http as wire, wait};
use http::{Method, Request};
use serde_json::{Value, json};

const URL: &str = "http://callee.aip.internal/work";
const POLICY: &str = "package aip.policy.no_posts

rules contains {\"rule\": \"no-posts/post\", \"verdict\": \"deny\", \"reason\": \"nobody posts\"} if {
	input.request.method == \"POST\"
	input.direction == \"inbound\"
}
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A metrics page.
struct Page(String);

impl Page {
    async fn of(sidecar: &Sidecar) -> Self {
        Self(sidecar.look("/metrics").await.text())
    }

    async fn of_control_plane(mesh: &Mesh) -> Self {
        let answer = wire::get(mesh.admin().address, "/metrics").await;
        Self(answer.expect("the control plane's metrics").text())
    }

    /// The sum of the samples of this name whose labels have all of these.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let of = |line: &&str| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label))
        };
        let samples = self.0.lines().filter(of);
        samples
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The metrics on it.
    fn names(&self) -> BTreeSet<String> {
        let types = self.0.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types
            .filter_map(|rest| Some(rest.split_once(' ')?.0.to_owned()))
            .collect()
    }
}

/// Waits until a sample is at least this.
async fn reaches(what: &str, least: f64, mut sample: impl AsyncFnMut() -> f64) {
    wait::until_ok(what, async || {
        let now = sample().await;
        if now >= least { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
}

async fn post(mesh: &Mesh, path: &str, body: &Value) -> Value {
    mesh.admin().ok(Method::POST, path, Some(body)).await
}

/// Gives an order, and waits until all have taken it.
async fn ordered(mesh: &Mesh, path: &str, body: &Value) -> Value {
    let given = post(mesh, path, body).await;
    let progress = format!(
        "/v1/kills/progress?term={}&epoch={}&wait_ms=30000",
        given["term"], given["epoch"]
    );
    let progress = mesh.admin().get(&progress).await;
    assert_eq!(progress["enforced"].as_array().unwrap().len(), 2, "{progress}");
    given
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_in_a_mesh_is_on_the_pages_of_its_processes() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let callee = mesh.sidecar("callee", agent.address).await;

    let before = Page::of(&callee).await;
    for verdict in ["allow", "deny"] {
        let labels = ["direction=\"inbound\"", &format!("verdict=\"{verdict}\"")];
        assert_eq!(before.sum("aip_decisions_total", &labels), 0.0);
        assert!(before.0.contains(labels[1]), "a verdict is there before it is given");
    }
    post_and_get(&mesh, &caller).await;
    let page = Page::of(&callee).await;
    for (verdict, least) in [("allow", 1.0), ("deny", 1.0)] {
        let labels = ["direction=\"inbound\"", &format!("verdict=\"{verdict}\"")];
        assert!(page.sum("aip_decisions_total", &labels) >= least, "{}", page.0);
    }
    let by_rule = ["direction=\"inbound\"", "verdict=\"deny\"", "reason=\"rule\""];
    assert!(page.sum("aip_decisions_total", &by_rule) >= 1.0, "{}", page.0);
    let denied = ["direction=\"inbound\"", "reason=\"policy_denied\""];
    assert_eq!(page.sum("aip_refusals_total", &denied), 1.0);

    orders(&mesh, &caller, &callee).await;
    audit(&mesh, &callee).await;
    reputation(&mesh, &caller).await;
    drift(&mesh, &callee).await;

    let mut pages = vec![Page::of(&caller).await, Page::of(&callee).await];
    pages.push(Page::of_control_plane(&mesh).await);
    for page in &pages {
        are_documented(page);
        promtool_has_no_complaint(page);
    }
}

async fn post_and_get(mesh: &Mesh, caller: &Sidecar) {
    mesh.admin()
        .apply(&json!({"name": "no-posts", "rego": POLICY, "attach": "mesh"}))
        .await;
    wait::until_ok("a call gets through", async || {
        let answer = caller.get(URL).await;
        (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
    })
    .await;
    assert_eq!(caller.call(Request::post(URL), "body").await.status, 403);
}

async fn orders(mesh: &Mesh, caller: &Sidecar, callee: &Sidecar) {
    let scope = json!({"kind": "pair", "source": "caller", "destination": "callee"});
    let order = json!({"scope": scope, "mode": "kill", "reason": "a test"});
    let given = ordered(mesh, "/v1/kills", &order).await;
    assert_eq!(caller.get(URL).await.status, 503);
    for sidecar in [caller, callee] {
        let page = Page::of(sidecar).await;
        assert_eq!(page.sum("aip_kill_orders", &[]), 1.0);
        assert!(page.sum("aip_kill_enforcement_seconds_count", &[]) >= 1.0, "{}", page.0);
        assert_eq!(page.sum("aip_kill_stream_connected", &[]), 1.0);
    }
    let page = Page::of_control_plane(mesh).await;
    assert_eq!(page.sum("aip_kill_orders_in_force", &[]), 1.0);
    assert!(page.sum("aip_kill_ack_seconds_count", &[]) >= 2.0);
    ordered(mesh, "/v1/kills/resume", &json!({"orders": [given["order"]]})).await;
    assert_eq!(caller.get(URL).await.status, 200);
}

async fn audit(mesh: &Mesh, callee: &Sidecar) {
    assert!(
        Page::of(callee)
            .await
            .sum("aip_audit_records_total", &["kind=\"decision\""])
            >= 2.0
    );
    reaches(
        "checkpoints of both are taken, and how late they were is known",
        2.0,
        async || {
            Page::of_control_plane(mesh)
                .await
                .sum("aip_audit_checkpoint_lag_seconds_count", &[])
        },
    )
    .await;
    reaches(
        "records are received, and how late they were is known",
        1.0,
        async || {
            Page::of_control_plane(mesh)
                .await
                .sum("aip_audit_record_lag_seconds_count", &[])
        },
    )
    .await;
    reaches("both ends of a hop are compared", 1.0, async || {
        let page = Page::of_control_plane(mesh).await;
        page.sum("aip_audit_hops_total", &["result=\"agreed\""])
    })
    .await;
}

async fn reputation(mesh: &Mesh, caller: &Sidecar) {
    let hop = wait::until("a call is in the access log", async || {
        let answered = caller.records().of("outbound").0;
        let answered = answered.iter().find(|record| record.status() == 200);
        answered.map(|record| record.hop().to_owned())
    })
    .await;
    let report = json!({"finding": "hallucination", "severity": "critical", "claim": "made up",
        "evidence": format!("hop:{hop}")});
    mesh.admin().report("caller", &report).await;
    assert_eq!(caller.get(URL).await.reason(), "reputation_too_low");
    let labels = ["finding=\"hallucination\"", "severity=\"critical\""];
    let page = Page::of_control_plane(mesh).await;
    assert_eq!(page.sum("aip_reputation_reports_total", &labels), 1.0);
    let refused = ["direction=\"outbound\"", "reason=\"reputation_too_low\""];
    assert_eq!(Page::of(caller).await.sum("aip_refusals_total", &refused), 1.0);
}

async fn drift(mesh: &Mesh, callee: &Sidecar) {
    assert_eq!(Page::of(callee).await.sum("aip_drifted", &[]), 0.0);
    std::fs::write(callee.dir.join("code/agent.txt"), "other code").unwrap();
    reaches("the sidecar suspends itself", 1.0, async || {
        Page::of(callee).await.sum("aip_drifted", &[])
    })
    .await;
    assert_eq!(Page::of(callee).await.sum("aip_drifts_total", &[]), 1.0);
    for name in ["aip_drift_reports_total", "aip_agents_drifted"] {
        reaches(name, 1.0, async || Page::of_control_plane(mesh).await.sum(name, &[])).await;
    }
}

fn are_documented(page: &Page) {
    let documented: BTreeSet<String> = std::fs::read_to_string(root().join("docs/metrics.md"))
        .unwrap()
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect();
    let unknown: Vec<_> = page.names().difference(&documented).cloned().collect();
    assert!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
}

fn promtool_has_no_complaint(page: &Page) {
    let found = Command::new("sh")
        .arg(root().join("deploy/prometheus/promtool.sh"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&found.stderr).into_owned();
    assert!(found.status.success(), "promtool can't be had: {said}");
    let mut promtool = Command::new(String::from_utf8(found.stdout).unwrap().trim())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(page.0.as_bytes()).unwrap();
    let ended = promtool.wait_with_output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr),
    );
    assert!(ended.status.success(), "promtool check metrics:\n{out}\n{err}");
}
