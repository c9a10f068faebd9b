//! Processes that are killed at random moments under load, by a seed that is printed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::wait;
use http::Method;
use serde_json::json;

/// Kills in a run, unless `AIP_CRASHES` says otherwise.
const CRASHES: usize = 30;
const URL: &str = "http://callee.aip.internal/work";
/// Longest time under load before a process is killed, in microseconds.
const LONGEST: u64 = 30_000;

/// A generator whose whole state is its seed: a run can be had again.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self, below: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Calls until told to stop.
async fn load(outbound: std::net::SocketAddr, stop: Arc<AtomicBool>, answered: Arc<AtomicUsize>) {
    while !stop.load(Ordering::Acquire) {
        let request = http::Request::post(URL).header("host", "callee.aip.internal");
        let request = request.body(http_body_util::Full::from("work")).unwrap();
        let answer = aip_tests::http::send(outbound, request).await;
        if answer.is_ok_and(|answer| answer.status == 200) {
            answered.fetch_add(1, Ordering::AcqRel);
        }
    }
}

async fn reaches(caller: &Sidecar) {
    wait::until_ok("a call gets through", async || {
        let answer = caller.get(URL).await;
        (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_survives_kills_at_random_moments() {
    let seed = variable("AIP_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let crashes = variable("AIP_CRASHES").map_or(CRASHES, |n| usize::try_from(n).unwrap());
    eprintln!("AIP_SEED={seed}");
    let mut random = Seeded(seed);
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let mut sidecars = [
        mesh.sidecar("caller", agent.address).await,
        mesh.sidecar("callee", agent.address).await,
    ];
    reaches(&sidecars[0]).await;
    let mut registered = Vec::new();
    for crash in 0..crashes {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let calls: Vec<_> = (0..4)
            .map(|_| tokio::spawn(load(sidecars[0].outbound, stop.clone(), answered.clone())))
            .collect();
        let admin = mesh.admin().clone();
        let name = format!("new{crash}");
        let change = tokio::spawn(async move {
            let agent = json!({"name": name});
            let answer = admin.attempt(Method::POST, "/v1/agents", Some(&agent)).await;
            answer.is_ok_and(|answer| answer.status == 201).then_some(name)
        });
        tokio::time::sleep(Duration::from_micros(random.next(LONGEST))).await;
        match random.next(3) {
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
        for name in &registered {
            mesh.admin().get(&format!("/v1/agents/{name}")).await;
        }
    }
}
