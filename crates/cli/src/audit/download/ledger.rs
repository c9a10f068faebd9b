//! The control plane's log of checkpoints, with its head: whole, or the export fails and says why. A log with a gap proves
//! nothing, and an export without it would hide that.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use aip_audit::log::CheckpointLines;
use aip_audit::verify::LEDGER_DIR;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

use super::{CHECKPOINTS, failed, make, write};
use crate::client::{Admin, encoded};
use crate::exit::{Exit, Failure};

/// Checkpoints of a page: the most that there may be.
const PAGE: usize = 500;

/// Where the export is.
struct Export<'a> {
    admin: &'a Admin,
    ledger: PathBuf,
    folders: &'a HashMap<String, PathBuf>,
    /// Checkpoints that the head covers.
    covered: u64,
    /// The next that must come.
    next: u64,
    chains: HashMap<String, Vec<Vec<u8>>>,
    /// What each file has of chains.
    of_all: CheckpointLines,
    of_log: HashMap<String, CheckpointLines>,
    signed: HashMap<String, u64>,
}

/// Writes the log and its head, and each log's own checkpoints; up to where each log is signed.
pub(super) async fn fetch(
    admin: &Admin,
    dir: &Path,
    head: &Value,
    folders: &HashMap<String, PathBuf>,
    count: &mut u64,
) -> Result<HashMap<String, u64>, Failure> {
    let ledger = dir.join(LEDGER_DIR);
    make(&ledger)?;
    let begins = head["begins"].as_str();
    let mut export = Export {
        admin,
        ledger,
        folders,
        covered: head["head"]["size"].as_u64().unwrap_or_default(),
        next: begins.map_or(0, begins_at),
        chains: HashMap::new(),
        of_all: CheckpointLines::default(),
        of_log: HashMap::new(),
        signed: HashMap::new(),
    };
    let statement = head["statement"].as_str().unwrap_or_default();
    write(&export.ledger.join("heads.jsonl"), format!("{statement}\n").as_bytes())?;
    write(&export.ledger.join(CHECKPOINTS), b"")?;
    if let Some(begins) = begins {
        write(&export.ledger.join("begins.jws"), begins.as_bytes())?;
    }
    let mut cursor = None::<String>;
    loop {
        let after = cursor.as_deref().map(|cursor| format!("&cursor={}", encoded(cursor)));
        let path = format!("/v1/audit/checkpoints?limit={PAGE}{}", after.unwrap_or_default());
        let page = admin.get(&path).await?;
        let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        *count += items.len() as u64;
        export.take(items).await?;
        match page["next"].as_str() {
            Some(next) if !items.is_empty() => cursor = Some(next.to_owned()),
            _ => break,
        }
    }
    if export.next < export.covered {
        return Err(export.gap(export.covered));
    }
    Ok(export.signed)
}

/// The first checkpoint that is kept, as the statement about the others says; whether it was signed is the verifier's to see.
fn begins_at(statement: &str) -> u64 {
    let claims = statement.split('.').nth(1);
    let claims = claims.and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
    let claims = claims.and_then(|claims| serde_json::from_slice::<Value>(&claims).ok());
    claims.and_then(|claims| claims["from"].as_u64()).unwrap_or_default()
}

impl Export<'_> {
    fn gap(&self, to: u64) -> Failure {
        let what = format!(
            "the control plane does not give checkpoints {} to {}",
            self.next,
            to.saturating_sub(1)
        );
        Failure::new(Exit::Failed, what)
            .why("its signed tree head covers them; without them it proves nothing")
            .next("export again: it may have let go of old ones meanwhile. If that fails too, look into its data directory")
    }

    /// Takes a page: what the head covers into the log, and everything beside the segments that it speaks of.
    async fn take(&mut self, items: &[Value]) -> Result<(), Failure> {
        let mut lines: BTreeMap<&Path, Vec<u8>> = BTreeMap::new();
        let mut of_all = Vec::new();
        for item in items {
            let index = item["index"].as_u64().unwrap_or(u64::MAX);
            if index != self.next {
                return Err(self.gap(index.min(self.covered)));
            }
            self.next = self.next.saturating_add(1);
            let chain = self.chain(item["chain"].as_str().unwrap_or_default()).await?;
            let statement = item["statement"].as_str().unwrap_or_default();
            let log = item["log"].as_str().unwrap_or_default();
            if let Some(folder) = self.folders.get(log) {
                let written = self.of_log.entry(log.to_owned()).or_default();
                lines.entry(folder).or_default().extend(written.add(statement, &chain));
                let signed = self.signed.entry(log.to_owned()).or_default();
                *signed = item["size"].as_u64().unwrap_or_default().max(*signed);
            }
            // What came after the head is covered by the next one.
            if index < self.covered {
                of_all.extend(self.of_all.add(statement, &chain));
            }
        }
        for (folder, text) in lines {
            append(&folder.join(CHECKPOINTS), &text)?;
        }
        append(&self.ledger.join(CHECKPOINTS), &of_all)
    }

    async fn chain(&mut self, digest: &str) -> Result<Vec<Vec<u8>>, Failure> {
        if let Some(chain) = self.chains.get(digest) {
            return Ok(chain.clone());
        }
        let path = format!("/v1/audit/chains/{}", encoded(digest));
        let shown = self.admin.get(&path).await?;
        let certificates = shown["certificates"].as_array().into_iter().flatten();
        let chain: Vec<_> = certificates
            .filter_map(|der| STANDARD.decode(der.as_str()?).ok())
            .collect();
        self.chains.insert(digest.to_owned(), chain.clone());
        Ok(chain)
    }
}

fn append(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(|e| failed(path, &e))
}
