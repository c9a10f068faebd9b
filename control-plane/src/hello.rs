//! How a sidecar's stream begins, whichever it is: with a Hello, in time, from a process that names itself as all do.

use std::time::Duration;

use tonic::Streaming;

use crate::refusal::{Reason, Refusal};

/// How long a stream may take to say Hello.
const DEADLINE: Duration = Duration::from_secs(10);

/// The first message of a stream, if that is its Hello.
pub(crate) async fn first<M, H>(inbound: &mut Streaming<M>, hello: impl FnOnce(M) -> Option<H>) -> Result<H, Refusal> {
    let violation = |what: &str| Refusal::new(Reason::ProtocolViolation, what.to_owned());
    let message = tokio::time::timeout(DEADLINE, inbound.message())
        .await
        .map_err(|_| violation("no Hello came in time"))?
        .map_err(|status| violation(status.message()))?;
    message
        .and_then(hello)
        .ok_or_else(|| violation("the first message must be Hello"))
}

/// An instance is a UUID in its usual form: one process has one name, whoever spells it.
pub(crate) fn instance(text: &str) -> Result<(), Refusal> {
    let parsed = uuid::Uuid::try_parse(text).ok();
    match parsed.filter(|uuid| uuid.hyphenated().to_string() == text) {
        Some(_) => Ok(()),
        None => Err(Reason::InstanceInvalid.into()),
    }
}
