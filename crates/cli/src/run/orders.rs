//! What the sidecar asks of the supervisor: to end the agent's processes, or to let them run; and what it waits for until it
//! may, or that it needs a join token. One JSON object a line, on the socket that is its standard input.

use aip_api::Digest;
use serde::Deserialize;

/// What is to become of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "agent", rename_all = "lowercase")]
pub(super) enum Wish {
    /// It runs.
    Run,
    /// An operator stopped it.
    Stop {
        /// The order's id.
        order: String,
        /// Why.
        reason: String,
    },
}

/// What a line of the sidecar says; one of a later version says nothing.
pub(super) fn read(line: &str) -> Option<Wish> {
    serde_json::from_str(line).ok()
}

/// The measurement that a person must approve before the sidecar gets an SVID, where a line says that it waits for that.
pub(super) fn waits(line: &str) -> Option<Digest> {
    #[derive(Deserialize)]
    struct Waits {
        waits: Digest,
    }
    serde_json::from_str::<Waits>(line).ok().map(|said| said.waits)
}

/// The id of the join token that is worth nothing any more, where a line says that another one is needed; empty where there is
/// none.
pub(super) fn needs_token(line: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Needs {
        token: String,
    }
    serde_json::from_str::<Needs>(line).ok().map(|said| said.token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_sidecar_are_understood() {
        assert_eq!(read(r#"{"agent":"run"}"#), Some(Wish::Run));
        let stop = read(r#"{"agent":"stop","order":"1","reason":"r"}"#);
        assert!(matches!(stop, Some(Wish::Stop { order, .. }) if order == "1"));
        assert_eq!(read(r#"{"agent":"dance"}"#), None);
        let print = Digest::sha256(b"x");
        let line = format!("{{\"waits\":\"{print}\"}}");
        assert_eq!((read(&line), waits(&line)), (None, Some(print)));
        assert_eq!(waits(r#"{"agent":"run"}"#), None);
        let line = r#"{"token":"x"}"#;
        assert_eq!((read(line), needs_token(line)), (None, Some("x".into())));
        assert_eq!(needs_token(r#"{"agent":"run"}"#), None);
    }
}
