//! A control plane that is restored from a copy of before an order lifts nothing: who holds the order shows it.

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::{http as wire, wait};
use http::Method;
use serde_json::{Value, json};

use crate::{kill, progress};

const URL: &str = "http://callee.aip.internal/work";

/// The version of the set that a sidecar holds, and its orders.
async fn held(sidecar: &Sidecar) -> ((u64, u64), usize) {
    let page = sidecar.look("/kill").await.json();
    let number = |field: &str| page[field].as_u64().unwrap_or_default();
    let orders = page["orders"].as_array().map_or(0, Vec::len);
    ((number("term"), number("epoch")), orders)
}

async fn enforced_by_both(mesh: &Mesh, order: &Value) {
    wait::until_ok("both have enforced it", async || {
        let shown = progress(mesh, order, 1_000).await;
        let enforced = shown["enforced"].as_array().is_some_and(|all| all.len() == 2);
        enforced.then_some(()).ok_or_else(|| shown.to_string())
    })
    .await;
}

/// Calls are refused, by an order, and reach no agent.
async fn is_stopped(callers: [&Sidecar; 2], agent: &Agent, heard: usize) {
    for (caller, url) in callers.iter().zip([URL, "http://caller.aip.internal/work"]) {
        let refused = caller.get(url).await;
        let said = (refused.status.as_u16(), refused.reason());
        assert_eq!(said, (503, "killed".to_owned()), "{}", refused.text());
    }
    assert_eq!(agent.seen("/work").len(), heard);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_restored_from_before_an_order_takes_it_up_from_who_holds_it() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let callee = mesh.sidecar("callee", agent.address).await;
    wait::until("a call gets through", async || {
        (caller.get(URL).await.status == 200).then_some(())
    })
    .await;
    let copy = mesh.dir("copy");
    mesh.control_plane.kill();
    mesh.control_plane.copy_to(&copy);
    mesh.revive().await;
    let order = kill(&mesh, "callee").await;
    enforced_by_both(&mesh, &order).await;
    let (heard, both) = (agent.seen("/work").len(), [&caller, &callee]);
    let before = held(&caller).await;
    assert_eq!(before.1, 1);
    let lost = mesh.admin().get("/v1/mesh").await["revision"].as_u64().unwrap();

    mesh.control_plane.kill();
    mesh.control_plane.restore_from(&copy);
    is_stopped(both, &agent, heard).await;
    mesh.revive().await;
    let kills = wait::until_ok("it is shown the order that it lost", async || {
        is_stopped(both, &agent, heard).await;
        let kills = mesh.admin().get("/v1/kills").await;
        let has = kills["items"].as_array().is_some_and(|orders| orders.len() == 1);
        has.then(|| kills.clone()).ok_or_else(|| kills.to_string())
    })
    .await;
    assert_eq!(kills["items"][0]["id"], order["order"], "{kills}");
    assert!(kills["term"].as_u64() > order["term"].as_u64(), "{kills} after {order}");
    enforced_by_both(&mesh, &kills).await;
    for sidecar in both {
        let now = held(sidecar).await;
        assert!(now.0 > before.0 && now.1 == 1, "{now:?} after {before:?}");
    }
    is_stopped(both, &agent, heard).await;
    let page = wire::get(mesh.admin().address, "/metrics").await.unwrap().text();
    assert!(page.contains("\naip_kill_restored_store_total 1\n"), "{page}");

    // A person lifts it, and nobody else: also once the store is above what the sidecars have seen.
    let lift = ["admin", "lift", "--above", &lost.to_string(), "--no-wait"];
    let lifted = mesh.aip(&lift);
    assert!(lifted.status.success(), "{lifted:?}");
    is_stopped(both, &agent, heard).await;
    let resume = json!({"orders": [order["order"]]});
    mesh.admin().ok(Method::POST, "/v1/kills/resume", Some(&resume)).await;
    wait::until_ok("a call gets through again", async || {
        let answer = caller.get(URL).await;
        (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
    })
    .await;
}
