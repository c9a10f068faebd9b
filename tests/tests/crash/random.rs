//! Processes that are killed at random moments under load, by a seed that is printed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::seeded::{Seeded, number, seed};
use aip_tests::{trail, wait};
use http::Method;
use serde_json::json;

use crate::audit::nothing_is_lost;

/// Kills in a run, unless `AIP_CRASHES` says otherwise.
const CRASHES: usize = 30;
/// Calls at once.
const LANES: usize = 4;
const HOST: &str = "callee.aip.internal";
const URL: &str = "http://callee.aip.internal/work";
/// Longest time under load before a process is killed, in microseconds.
const LONGEST: u64 = 30_000;

async fn reaches(caller: &Sidecar) {
    wait::until_ok("a call gets through", async || {
        let answer = caller.get(URL).await;
        (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_survives_kills_at_random_moments() {
    let seed = seed(std::process::id().into());
    let crashes = number("AIP_CRASHES").map_or(CRASHES, |n| usize::try_from(n).unwrap());
    let mut random = Seeded::new(seed);
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let mut sidecars = [
        mesh.sidecar("caller", agent.address).await,
        mesh.sidecar("callee", agent.address).await,
    ];
    durability(&mesh, seed).await;
    reaches(&sidecars[0]).await;
    let (mut registered, mut answered) = (Vec::new(), Vec::new());
    for crash in 0..crashes {
        let (stop, noted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let calls: Vec<_> = (0..LANES)
            .map(|lane| {
                let (outbound, lane) = (sidecars[0].outbound, crash * LANES + lane);
                tokio::spawn(trail::load(outbound, HOST, lane, stop.clone(), noted.clone()))
            })
            .collect();
        let admin = mesh.admin().clone();
        let name = format!("new{crash}");
        let change = tokio::spawn(async move {
            let agent = json!({"name": name});
            let answer = admin.attempt(Method::POST, "/v1/agents", Some(&agent)).await;
            answer.is_ok_and(|answer| answer.status == 201).then_some(name)
        });
        tokio::time::sleep(Duration::from_micros(random.below(LONGEST))).await;
        match random.below(3) {
            0 => {
                mesh.control_plane.kill();
                registered.extend(change.await.unwrap());
                mesh.revive().await;
            }
            victim => {
                let victim = &mut sidecars[victim as usize - 1];
                victim.restart().await;
                registered.extend(change.await.unwrap());
            }
        }
        reaches(&sidecars[0]).await;
        stop.store(true, Ordering::Release);
        for call in calls {
            call.await.unwrap();
        }
        answered.append(&mut noted.lock().unwrap());
        for name in &registered {
            mesh.admin().get(&format!("/v1/agents/{name}")).await;
        }
    }
    holds(&mesh, &sidecars, &answered, seed).await;
    nobody_was_asked_undecided(&agent, &sidecars[1]);
}

/// Whoever was answered is in both logs, through all of it, and the logs hold.
async fn holds(mesh: &Mesh, sidecars: &[Sidecar], answered: &Vec<String>, seed: u64) {
    for sidecar in sidecars {
        let audit = sidecar.dir.join("data/audit");
        nothing_is_lost(&audit, std::slice::from_ref(answered), &format!("seed {seed}"));
        wait::until_ok("the log verifies", async || trail::verifies(mesh, &audit).await).await;
    }
}

/// Whatever reached the agent was decided and recorded before, also where its answer was lost in a crash.
fn nobody_was_asked_undecided(agent: &Agent, callee: &Sidecar) {
    let recorded = trail::requests(&callee.dir.join("data/audit"));
    let heard = agent.seen("/work/");
    assert!(!heard.is_empty());
    for request in heard {
        let decision = recorded
            .get(&request.target)
            .map(|(decision, _)| decision.verdict.as_str());
        assert_eq!(decision, Some("allow"), "{}", request.target);
    }
}

/// What waits for the disk: one or the other, by the seed.
async fn durability(mesh: &Mesh, seed: u64) {
    let mut config = mesh.admin().get("/v1/mesh-config").await;
    let config = &mut config["resource"];
    config["audit"]["durability"] = ["grouped", "required"][usize::from(seed % 2 == 1)].into();
    let put = mesh.admin().ok(Method::PUT, "/v1/mesh-config", Some(config)).await;
    mesh.admin().acknowledged(put["revision"].as_u64().unwrap()).await;
}
