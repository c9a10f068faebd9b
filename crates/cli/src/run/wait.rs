//! Waiting: for the sidecar to hold an identity and a configuration, for a person's approval, for the command to listen.

use std::net::SocketAddr;
use std::time::Duration;

use aip_api::{AgentName, Digest};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::orders::{self, Wish};
use super::plan::Plan;
use super::state::{Phase, StateFile};
use super::{Run, sidecar};
use crate::exit::{Exit, Failure};
use crate::process::Child;
use crate::{http, output};

/// How long a sidecar may take to become ready where nobody has to approve anything.
const READY: Duration = Duration::from_secs(60);
/// Between two looks at the sidecar and the command.
const LOOK: Duration = Duration::from_millis(25);
/// How often it is said again that an approval is waited for.
const SAY_AGAIN: Duration = Duration::from_secs(60);
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

/// A person's approval that is waited for.
struct Approval<'a> {
    name: &'a AgentName,
    /// Which measurement, and since when it is waited for.
    of: Option<(Digest, Instant)>,
    /// When it was said last.
    said: Instant,
}

impl<'a> Approval<'a> {
    fn of(name: &'a AgentName) -> Self {
        Self {
            name,
            of: None,
            said: Instant::now(),
        }
    }

    /// The sidecar waits for this one; what there is to say about it.
    fn waits(&mut self, print: Digest, now: Instant) -> Option<String> {
        let before = self.of.replace((print, now));
        let what = match before {
            Some((known, since)) if known == print => {
                self.of = before;
                return self.still(now, since);
            }
            Some(_) => "changed while its approval was waited for, and was measured again",
            None => "waits for approval of its measurement",
        };
        self.said = now;
        Some(self.line(what, print))
    }

    /// What there is to say by now.
    fn due(&mut self, now: Instant) -> Option<String> {
        let (_, since) = self.of?;
        self.still(now, since)
    }

    fn still(&mut self, now: Instant, since: Instant) -> Option<String> {
        let (print, _) = self.of.filter(|_| now.duration_since(self.said) >= SAY_AGAIN)?;
        self.said = now;
        let minutes = now.duration_since(since).as_secs() / 60;
        Some(self.line(&format!("still waits for approval, {minutes} min by now"), print))
    }

    fn line(&self, what: &str, print: Digest) -> String {
        let (name, print) = (self.name, print.to_string());
        format!(
            "aip: {name} {what}\n  next: aip attest approve {name} {}",
            output::short(&print)
        )
    }
}

/// Waits until the sidecar is ready; answers what it wished meanwhile. Where a person must approve, without a deadline and saying
/// so. Where it needs another join token than this one, `token` gets it one.
pub(super) async fn for_sidecar(
    run: &Run,
    plan: &Plan,
    child: &mut Child,
    probes: SocketAddr,
    state: &mut StateFile,
    token: impl AsyncFn(String),
) -> Result<Option<Wish>, Failure> {
    let deadline = Instant::now() + READY;
    let (mut approval, mut wish) = (Approval::of(&run.name), None);
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
        let mut news = approval.due(Instant::now());
        while let Some(line) = child.said().await {
            wish = orders::read(&line).or(wish);
            if let Some(used) = orders::needs_token(&line) {
                // Where none can be had, what the sidecar says last is what is told.
                let _ = tokio::time::timeout_at(deadline, token(used)).await;
            }
            if let Some(print) = orders::waits(&line) {
                state.update(|s| s.phase = Phase::WaitingForApproval);
                news = approval.waits(print, Instant::now()).or(news);
            }
        }
        if let Some(news) = news {
            output::note(news);
        }
        if approval.of.is_none() && Instant::now() > deadline {
            let what = format!("the sidecar is not ready after {} s", READY.as_secs());
            return Err(Failure {
                exit: Exit::TimedOut,
                ..sidecar::died(plan, child, &what)
            });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(wish)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_approval_is_said_at_once_when_it_changes_and_each_minute() {
        let (name, begun) = ("planner".parse().unwrap(), Instant::now());
        let mut approval = Approval::of(&name);
        let (first, second) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(approval.due(after(600)), None, "nothing waits");
        let mut says = |print: Digest, at, what: &str| {
            let said = approval.waits(print, after(at)).unwrap_or_default();
            let next = format!("next: aip attest approve planner {}", output::short(&print.to_string()));
            assert!(said.contains(what) && said.ends_with(&next), "{said}");
        };
        says(first, 0, "waits for approval");
        says(second, 10, "measured again");
        assert_eq!(approval.waits(second, after(20)), None);
        assert_eq!(approval.due(after(69)), None);
        assert!(
            approval
                .due(after(70))
                .unwrap()
                .contains("still waits for approval, 1 min")
        );
        assert_eq!(approval.due(after(129)), None);
        assert!(approval.waits(second, after(131)).unwrap().contains("2 min"));
    }
}
