//! The control plane, ended at the commit of what it saw of hops: an observation is there once, or not at all.

use std::time::{Duration, Instant};

use aip_tests::agent::Agent;
use aip_tests::process::{ControlPlane, DEV, Mesh};
use aip_tests::wait;

use crate::{AFTER, FAULT, is_killed};

const FAILS: &str = "http://callee.aip.internal/fail";
/// What hops say is gathered for 15 seconds and then written, once both sidecars are heard again: one that was refused asks again
/// after a minute; and the machine may be busy.
const WRITTEN: Duration = Duration::from_secs(240);
/// After how long another call is made, where the first did not lead there: longer than it takes to be written.
const AGAIN: Duration = Duration::from_secs(30);

/// How many failures of the callee were counted.
async fn counted(mesh: &Mesh) -> u64 {
    let held = mesh.admin().get("/v1/reputation/callee").await;
    let events = held["history"].as_array().unwrap().iter();
    let observed = events.filter(|event| event["kind"] == "observed");
    let by = observed.flat_map(|event| event["by"].as_array().cloned().unwrap_or_default());
    by.map(|one| one["bad"]["reliability"].as_u64().unwrap_or_default())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_of_a_hop_counts_once_or_not_at_all() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let _callee = mesh.sidecar("callee", agent.address).await;
    wait::until("a call gets through", async || {
        (caller.get("http://callee.aip.internal/work").await.status == 200).then_some(())
    })
    .await;
    let after = mesh.dir("points").join("after");
    let mut made = 0;
    for step in ["changed", "committed"] {
        let point = format!("store:{step}:reputation.observe#1");
        let _ = std::fs::remove_file(&after);
        mesh.control_plane.kill();
        let control_plane = &mut mesh.control_plane;
        let data = ControlPlane::data(&control_plane.dir);
        let mut command = ControlPlane::command(&data, control_plane.mesh, control_plane.admin.address, DEV);
        command.env(FAULT, &point).env(AFTER, &after);
        control_plane.revive_as(&command).await;
        std::fs::write(&after, "").unwrap();
        let mut next = Instant::now();
        wait::until_within(WRITTEN, &format!("it comes to {point}"), async || {
            // What is heard of while streams open anew may be left to the verifier.
            if Instant::now() >= next {
                assert_eq!(caller.get(FAILS).await.status, 500);
                (made, next) = (made + 1, Instant::now() + AGAIN);
            }
            mesh.control_plane.process.ended()
        })
        .await;
        is_killed(&mut mesh.control_plane.process, &point).await;
        mesh.revive().await;
        let counted = counted(&mesh).await;
        match step {
            "changed" => assert_eq!(counted, 0, "at {point}"),
            _ => assert!((1..=made).contains(&counted), "at {point}: {counted} of {made}"),
        }
    }
}
