//! An SVID that is not renewed: what goes on under it is cut when it ends, and nothing new begins.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_tests::agent::Agent;
use aip_tests::pki::LeafSpec;
use aip_tests::process::Sidecar;
use aip_tests::scripted::Scripted;
use aip_tests::{http as client, wait};
use tempfile::TempDir;

/// Long enough for a stream to begin on it.
const SECONDS: i64 = 8;

/// Nobody lets the agent go on: what ends the stream is not its own end.
async fn a_stream_is_cut(agent: &Agent, caller: &Sidecar, callee: &Sidecar) {
    let outbound = caller.outbound;
    let stream = tokio::spawn(async move {
        let url = "http://callee.aip.internal/events?stream=expiry&steps=2";
        let request = format!("GET {url} HTTP/1.1\r\nHost: callee.aip.internal\r\n\r\n");
        client::raw(outbound, request.as_bytes(), |_| false).await
    });
    wait::until("the stream begins", async || {
        (!agent.seen("stream=expiry").is_empty()).then_some(())
    })
    .await;
    let ended = tokio::time::timeout(wait::DEADLINE, stream)
        .await
        .expect("it ends")
        .unwrap();
    assert!(ended.starts_with("HTTP/1.1 200 "), "{ended}");
    assert!(
        !ended.ends_with("0\r\n\r\n"),
        "cut, and not as if it were whole: {ended}"
    );
    // Both ends cut at the same second; who comes second sees the other one hang up.
    let ends = wait::until("both ends recorded it", async || {
        let of = |sidecar: &Sidecar| {
            let records = sidecar.records().0.into_iter();
            records
                .filter(|r| r.path().contains("/events"))
                .map(|r| r.text("end").to_owned())
                .next()
        };
        Some([of(caller)?, of(callee)?])
    })
    .await;
    assert!(ends.iter().any(|end| end == "certificate_expired"), "{ends:?}");
    assert!(!ends.iter().any(|end| end == "complete"), "{ends:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_connection_ends_with_the_svid_under_it() {
    let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
    let agent = Agent::start();
    scripted.issue_as(LeafSpec {
        from: 0,
        until: SECONDS,
        ..LeafSpec::good("callee")
    });
    let caller = scripted.sidecar("caller", agent.address, dir.path()).await;
    let callee = scripted.sidecar("callee", agent.address, dir.path()).await;
    scripted.issue_nothing();
    a_stream_is_cut(&agent, &caller, &callee).await;
    wait::until_ok("the callee is not ready any more", async || {
        let answer = client::get(callee.probes, "/readyz").await?;
        if answer.text().contains("identity") {
            Ok(())
        } else {
            Err(answer.text())
        }
    })
    .await;
    let answer = caller.get("http://callee.aip.internal/after").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(
        agent.seen("/after").is_empty(),
        "nothing reaches an agent whose sidecar has no identity"
    );
    let answer = callee.get("http://caller.aip.internal/after").await;
    assert_eq!(answer.reason(), "no_identity", "nor does it reach anybody");
    assert!(agent.seen("/after").is_empty());
    assert!(callee.metric("aip_svid_renewal_failures_total", &[]).await > 0.0);
}
