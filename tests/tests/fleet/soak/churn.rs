//! Agents that come and go, and policies that change.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use aip_tests::agent::Agent;
use aip_tests::http::send;
use aip_tests::process::{ControlPlane, Mesh, Sidecar};
use aip_tests::{trail, wait};
use bytes::Bytes;
use http::Method;
use rustix::process::Signal;

use super::lanes::{Tally, call, request};
use super::{name, policy};

/// Calls of one that comes, to each that stands and back.
const CALLS: usize = 5;

/// What comes and goes.
pub(super) struct Churn<'a> {
    mesh: &'a Mesh,
    agent: &'a Agent,
    standing: &'a [Sidecar],
    rounds: u64,
    /// Logs that had not all come up when their sidecar ended, which waits two seconds for that: what is missing would come with its
    /// next start.
    pub(super) left: BTreeSet<String>,
}

impl fmt::Display for Churn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} agents came and went, and {} policies",
            self.rounds,
            self.rounds + 1
        )
    }
}

impl<'a> Churn<'a> {
    /// With a first policy that all hold, and every way tried once.
    pub(super) async fn begin(mesh: &'a Mesh, agent: &'a Agent, standing: &'a [Sidecar]) -> Self {
        mesh.admin().apply(&policy(0)).await;
        for (from, sidecar) in standing.iter().enumerate() {
            for to in (0..standing.len()).filter(|to| *to != from) {
                comes_through(sidecar.outbound, &name(to)).await;
            }
        }
        Self {
            mesh,
            agent,
            standing,
            rounds: 0,
            left: BTreeSet::new(),
        }
    }

    /// One agent comes, calls, is called and goes, and one policy.
    pub(super) async fn round(&mut self, tally: &Tally) {
        self.rounds += 1;
        let (admin, guest) = (self.mesh.admin(), format!("guest{}", self.rounds));
        let dir = self.mesh.dir(&guest);
        let mut sidecar = self.mesh.sidecar(&guest, self.agent.address).await;
        let version = policy(self.rounds);
        admin.ok(Method::PUT, "/v1/policies/soak", Some(&version)).await;
        for (number, peer) in self.standing.iter().enumerate() {
            // Its peers learn of it in a moment.
            comes_through(peer.outbound, &guest).await;
            comes_through(sidecar.outbound, &name(number)).await;
            for _ in 0..CALLS {
                call(peer.outbound, &guest, "/soak", 100, tally).await;
                call(sidecar.outbound, &name(number), "/soak", 100, tally).await;
            }
            call(sidecar.outbound, &name(number), "/denied", 100, tally).await;
        }
        sidecar.process.signal(Signal::TERM);
        let status = sidecar.process.end().await;
        if !status.success() {
            tally.failed(format!("{guest} ended with {status}"));
        }
        let copies = ControlPlane::data(&self.mesh.control_plane.dir)
            .join("audit")
            .join(&guest);
        for log in trail::logs(&dir.join("data/audit")) {
            if !trail::lacking(&log, &copies).is_empty() {
                self.left
                    .insert(log.file_name().unwrap().to_string_lossy().into_owned());
            }
        }
        admin.ok(Method::DELETE, &format!("/v1/agents/{guest}"), None).await;
        drop(sidecar);
        // Only what stands is measured; an hour of these would fill a disk.
        std::fs::remove_dir_all(dir).unwrap();
    }
}

async fn comes_through(from: SocketAddr, to: &str) {
    wait::until_ok(&format!("a call to {to} comes through"), async || {
        let answer = send(from, request(to, "/soak", Bytes::new())).await?;
        match answer.status.as_u16() {
            200 => Ok(()),
            status => Err(format!("{status} {}", answer.text())),
        }
    })
    .await;
}
