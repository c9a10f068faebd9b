//! Further copies of a log: an export's beside the sidecar's own, the control plane's beside both. Each is held to what was
//! signed, and to the other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aip_api::Digest;

use super::fault::Found;
use super::pair::Pairing;
use super::signed::Signed;
use super::walk::{self, Of};
use super::{CopyReport, LogReport, Source};

/// Where copies end, by their records: the root over these, and of which copy.
pub(super) type Ends = BTreeMap<u64, Vec<(Digest, PathBuf)>>;

/// The copies of one log.
#[derive(Debug, Default)]
pub(super) struct Copies {
    read: Vec<LogReport>,
    pub(super) ends: Ends,
}

/// Walks through the further copies of a log.
pub(super) fn walk(source: &Source, signed: &Signed, found: &mut Found, progress: &mut dyn FnMut(u64)) -> Copies {
    let mut copies = Copies::default();
    for dir in &source.copies {
        let mut end = None;
        // Its hops are those of the log.
        let mut pairing = Pairing::default();
        let (report, _) = walk::walk(dir, source, signed, Of::Copy(&mut end), found, &mut pairing, progress);
        copies.read.push(report);
        if let Some((size, root)) = end {
            copies.ends.entry(size).or_default().push((root, dir.clone()));
        }
    }
    copies
}

impl Copies {
    /// What they are worth; `records` are the log's.
    pub(super) fn reports(self, records: u64) -> impl Iterator<Item = CopyReport> {
        self.read.into_iter().map(move |read| CopyReport {
            ahead: read.records.saturating_sub(records),
            log: read.log,
            dir: read.dir,
            records: read.records,
            signed: read.signed,
        })
    }
}
