//! The segments of logs, up to where each is signed: checkpoints come up at once, and records after them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use aip_audit::log;
use serde_json::Value;

use super::write;
use crate::client::{Admin, encoded};
use crate::exit::Failure;

/// How long records that are on their way are waited for, before each look at the logs that lack some: once for all of them,
/// however many. A sidecar that is gone sends none.
pub(super) const WAITS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// A log whose segments are fetched.
pub(super) struct Fetching {
    name: String,
    folder: PathBuf,
    /// Records that its checkpoints cover.
    signed: u64,
    /// Records that are here.
    held: u64,
    /// The last segment that is here: it may have grown.
    from: Option<u64>,
}

/// Fetches the segments of logs; answers how many there were.
pub(super) async fn fetch(admin: &Admin, mut logs: Vec<Fetching>, waits: &[Duration]) -> Result<u64, Failure> {
    let mut fetched = 0;
    for wait in waits {
        if logs.is_empty() {
            break;
        }
        tokio::time::sleep(*wait).await;
        // Before the list: it then names every segment that a manifest says is closed.
        for log in &logs {
            log.manifest(admin).await?;
        }
        let rows = admin.list("/v1/audit/logs").await?;
        let rows: HashMap<&str, &Value> = rows
            .iter()
            .filter_map(|row| Some((row["log"].as_str()?, row)))
            .collect();
        let mut behind = Vec::new();
        for mut log in logs {
            let row = rows.get(log.name.as_str());
            if let Some(row) = row
                && !log.segments(admin, row, &mut fetched).await?
            {
                behind.push(log);
            }
        }
        logs = behind;
    }
    Ok(fetched)
}

impl Fetching {
    /// A log of which nothing is here.
    pub(super) const fn new(name: String, folder: PathBuf, signed: u64) -> Self {
        Self {
            name,
            folder,
            signed,
            held: 0,
            from: None,
        }
    }

    fn path(&self) -> String {
        format!("/v1/audit/logs/{}/segments", encoded(&self.name))
    }

    async fn manifest(&self, admin: &Admin) -> Result<(), Failure> {
        match admin.bytes(&self.path()).await? {
            Some(manifest) => write(&self.folder.join("segments.jsonl"), &manifest),
            None => Ok(()),
        }
    }

    /// Fetches what the control plane has now; whether that is all that there will be.
    async fn segments(&mut self, admin: &Admin, row: &Value, fetched: &mut u64) -> Result<bool, Failure> {
        let here = &row["segments"];
        let (Some(first), Some(last)) = (here["first"].as_u64(), here["last"].as_u64()) else {
            // Of one that is broken nothing more comes.
            return Ok(self.signed == 0 || row["broken"].is_object());
        };
        for segment in self.from.unwrap_or(first)..=last {
            // One that a quota took meanwhile; the manifest then says so, or verification does.
            if let Some(bytes) = admin.bytes(&format!("{}/{segment}", self.path())).await? {
                self.held = end_of(&bytes).unwrap_or(self.held);
                write(&log::segment_path(&self.folder, segment), &bytes)?;
            }
        }
        let before = self.from.map_or(first, |from| from.saturating_add(1));
        *fetched = fetched.saturating_add(last.saturating_add(1).saturating_sub(before));
        self.from = Some(last);
        Ok(self.held >= self.signed)
    }
}

/// Records of the log up to the end of these lines.
fn end_of(lines: &[u8]) -> Option<u64> {
    let whole = lines.iter().rposition(|b| *b == b'\n')?;
    let last = lines[..whole].rsplit(|b| *b == b'\n').next()?;
    aip_audit::Record::from_bytes(last)
        .ok()
        .map(|record| record.seq.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A control plane that has these logs and nothing of them; how often it was asked for the list.
    async fn without_records(logs: Vec<Value>) -> (Admin, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, list) = (Arc::new(AtomicUsize::new(0)), json!({ "items": logs }).to_string());
        let counted = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(tcp.read_u8().await.unwrap());
                }
                let is_list = head.starts_with(b"GET /v1/audit/logs ") || head.starts_with(b"GET /v1/audit/logs?");
                let (status, body) = if is_list {
                    counted.fetch_add(1, Ordering::Relaxed);
                    ("200 OK", list.as_str())
                } else {
                    ("404 Not Found", "{}")
                };
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
                tcp.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (Admin::to(&url, None, Some("token")).unwrap(), asked)
    }

    #[tokio::test]
    async fn all_logs_that_lack_records_are_waited_for_together() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..20).map(|n| format!("log-{n}")).collect();
        let rows = names.iter().map(|name| json!({ "log": name }));
        let (admin, asked) = without_records(rows.collect()).await;
        let logs = names
            .iter()
            .map(|name| Fetching::new(name.clone(), folder.path().to_owned(), 5));
        let waits = [Duration::ZERO; 3];
        assert_eq!(fetch(&admin, logs.collect(), &waits).await.unwrap(), 0);
        assert_eq!(asked.load(Ordering::Relaxed), waits.len(), "not once for each log");
        // Of one that is gone, or broken, nothing comes.
        let (admin, asked) = without_records(vec![json!({"log": "log-0", "broken": {"reason": "expired"}})]).await;
        let logs = names
            .iter()
            .map(|name| Fetching::new(name.clone(), folder.path().to_owned(), 5));
        fetch(&admin, logs.collect(), &waits).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
