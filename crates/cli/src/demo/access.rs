//! The access logs of the sidecars: what each end of a hop recorded.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::look::until;

/// How long a line may take from the answer to the file.
const WAIT: Duration = Duration::from_secs(5);
/// Bytes at the end of a log that are searched: the demo's own requests are the latest.
const SEARCHED: u64 = 1024 * 1024;

/// The access-log line of a decision.
pub(super) async fn line(log: &Path, decision: &str) -> anyhow::Result<Value> {
    let what = format!("the access log has no line for decision {decision}");
    until(&what, WAIT, async || {
        lines(log)
            .into_iter()
            .rev()
            .find(|l| l["decision"].as_str() == Some(decision))
    })
    .await
}

/// The latest access-log lines.
pub(super) fn lines(log: &Path) -> Vec<Value> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(SEARCHED)))?;
        let mut bytes = Vec::new();
        file.take(SEARCHED).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let parsed = bytes
        .split(|b| *b == b'\n')
        .filter_map(|l| serde_json::from_slice::<Value>(l).ok());
    parsed.filter(|l| l["kind"] == "access").collect()
}
