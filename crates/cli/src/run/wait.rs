//! Waiting: for the sidecar to hold an identity and a configuration, for a person's approval, for the command to listen.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::plan::Plan;
use super::state::{Phase, StateFile};
use super::{Run, sidecar};
use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::process::Child;
use crate::{Globals, attest, http, output};

/// How long a sidecar may take to become ready where nobody has to approve anything.
const READY: Duration = Duration::from_secs(60);
/// Between two looks at the sidecar and the command.
const LOOK: Duration = Duration::from_millis(25);
/// Between two looks at whether something waits for approval.
const APPROVAL_LOOK: Duration = Duration::from_secs(1);
/// How long a probe may take.
const PROBE: Duration = Duration::from_secs(2);

/// Whether the sidecar says that it is ready.
pub(super) async fn is_ready(probes: SocketAddr) -> bool {
    let request = Request::get("/readyz")
        .header("host", probes.to_string())
        .body(Full::<Bytes>::default());
    match request {
        Ok(request) => http::send(probes, request, PROBE)
            .await
            .is_ok_and(|a| a.status() == StatusCode::OK),
        Err(_) => false,
    }
}

/// Waits until the sidecar is ready. Where a person must approve, without a deadline and saying so.
pub(super) async fn for_sidecar(
    globals: &Globals,
    run: &Run,
    plan: &Plan,
    dev: bool,
    child: &mut Child,
    probes: SocketAddr,
    state: &mut StateFile,
) -> Result<(), Failure> {
    let deadline = Instant::now() + READY;
    let mut next_look = Instant::now() + APPROVAL_LOOK;
    let mut waits = false;
    if let Some((changed, _)) = plan.drifted(&run.name) {
        output::note(format!(
            "aip: {} drifted in an earlier run ({changed}); it serves again once what lies there now is approved",
            run.name
        ));
    }
    while !is_ready(probes).await {
        if let Some(status) = child.ended()? {
            return Err(sidecar::died(
                plan,
                child,
                &format!("the sidecar ended before it was ready ({status})"),
            ));
        }
        let asks = !dev || plan.drifted(&run.name).is_some();
        if asks && Instant::now() > next_look {
            next_look = Instant::now() + APPROVAL_LOOK;
            if !waits && let Some(fingerprint) = pending(globals, run).await {
                waits = true;
                state.update(|s| s.phase = Phase::WaitingForApproval);
                output::note(format!(
                    "aip: {0} waits for approval of its measurement\n  next: aip attest approve {0} {1}",
                    run.name,
                    output::short(&fingerprint)
                ));
            }
        }
        if !waits && Instant::now() > deadline {
            let what = format!("the sidecar is not ready after {} s", READY.as_secs());
            return Err(Failure {
                exit: Exit::TimedOut,
                ..sidecar::died(plan, child, &what)
            });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// The newest measurement of this agent that waits, where this user may see it.
async fn pending(globals: &Globals, run: &Run) -> Option<String> {
    let admin = Admin::open(globals).ok()?;
    let waiting = attest::measurements(&admin, "pending", Some(&run.name)).await.ok()?;
    let newest = waiting.into_iter().max_by_key(|m| m["seen"]["last_seen"].as_u64())?;
    newest["fingerprint"].as_str().map(str::to_owned)
}

/// Resolves when something listens there.
pub(super) async fn listens(address: SocketAddr) {
    while !matches!(
        tokio::time::timeout(PROBE, TcpStream::connect(address)).await,
        Ok(Ok(_))
    ) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the command listens on its port.
pub(super) async fn for_command(run: &Run, child: &mut Child, address: SocketAddr) -> Result<Option<u8>, Failure> {
    let deadline = Instant::now() + Duration::from_secs(run.wait);
    loop {
        if let Ok(Ok(_)) = tokio::time::timeout(PROBE, TcpStream::connect(address)).await {
            return Ok(None);
        }
        if let Some(status) = child.ended()? {
            return Ok(Some(super::supervise::exit_code(status)));
        }
        if Instant::now() > deadline {
            return Err(Failure::new(
                Exit::TimedOut,
                format!(
                    "{} does not listen on port {} after {} s",
                    run.command[0],
                    address.port(),
                    run.wait
                ),
            )
            .next(
                "let it listen on the port in PORT, or say with --port which one it uses; if it only calls and never \
                 listens, run it with --no-serve",
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}
