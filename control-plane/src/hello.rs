//! How a sidecar's stream begins, whichever it is: with a Hello, in time, from a process that names itself as all do.

use std::error::Error as _;
use std::time::Duration;

use aip_api::AgentName;
use tonic::{Code, Status, Streaming};

use crate::quota::Quota;
use crate::rate::{Rate, Rates};
use crate::refusal::{Reason, Refusal};

/// How long a stream may take to say Hello.
const DEADLINE: Duration = Duration::from_secs(10);
/// Hellos that are read at once, each of up to 8 MiB, and of one agent. A fleet that comes back at once says short ones, within
/// milliseconds each.
const READING: usize = 64;
const READING_EACH: usize = 4;
/// How long a stream waits for its turn; until then it holds what its windows let it send.
const TURN: Duration = Duration::from_secs(5);
/// Streams that one agent's sidecars may open at once, and in a second: each of 256 has three, and all of them come back within
/// a minute after they were refused for that. Each says in the log that it begins and ends.
const OPENED: Rate = Rate {
    burst: 1_024.0,
    per_second: 16.0,
};

/// Reads Hellos, so many at once.
#[derive(Debug)]
pub(crate) struct Hellos {
    reading: Quota,
    opened: Rates,
}

impl Default for Hellos {
    fn default() -> Self {
        Self {
            reading: Quota::new(READING, READING_EACH),
            opened: Rates::new(OPENED),
        }
    }
}

impl Hellos {
    /// The first message of a stream of `agent`, if that is its Hello.
    ///
    /// # Errors
    /// It is none, or does not come in time; the agent opens more streams than it may, or too many begin now.
    pub(crate) async fn first<M, H>(
        &self,
        agent: &AgentName,
        inbound: &mut Streaming<M>,
        hello: impl FnOnce(M) -> Option<H>,
    ) -> Result<H, Refusal> {
        let violation = |what: &str| Refusal::new(Reason::ProtocolViolation, what.to_owned());
        self.opened.spend(agent.as_str())?;
        let turn = tokio::time::timeout(TURN, self.reading.take(agent.as_str())).await;
        let _turn = turn.map_err(|_| Refusal::new(Reason::Overloaded, "too many streams begin at once; try again"))?;
        let message = tokio::time::timeout(DEADLINE, inbound.message())
            .await
            .map_err(|_| violation("no Hello came in time"))?
            .map_err(|status| violation(status.message()))?;
        message
            .and_then(hello)
            .ok_or_else(|| violation("the first message must be Hello"))
    }
}

/// An instance is a UUID in its usual form: one process has one name, whoever spells it.
pub(crate) fn instance(text: &str) -> Result<(), Refusal> {
    let parsed = uuid::Uuid::try_parse(text).ok();
    match parsed.filter(|uuid| uuid.hyphenated().to_string() == text) {
        Some(_) => Ok(()),
        None => Err(Reason::InstanceInvalid.into()),
    }
}

/// How a stream ended that could not be read on: by what the sidecar sent, which is no message or too long a one, or by the
/// sidecar or the network, which took it away.
pub(crate) fn unread(status: &Status) -> Result<(), Refusal> {
    let ours = aip_runtime::grpc::reason(status) == Some(Reason::ProtocolViolation.row().reason);
    // What the network did has its error behind it; what can't be decoded has none.
    let undecoded = matches!(status.code(), Code::Internal | Code::OutOfRange) && status.source().is_none();
    if ours || undecoded {
        return Err(Refusal::new(Reason::ProtocolViolation, status.message()));
    }
    Ok(())
}

/// What a stream that is not opened is told; `which` is its name, for the log.
pub(crate) fn refused(which: &'static str, refusal: &Refusal) -> Status {
    let (reason, detail) = (refusal.reason(), &refusal.detail);
    tracing::info!(stream = which, reason, %detail, "stream refused");
    refusal.status()
}
