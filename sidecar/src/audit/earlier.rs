//! Logs of earlier lives: sent like the one that is being written, and dropped by the quota once the control plane has them,
//! which it says at the greeting of its stream of now. What it does not have is never dropped: it takes the room of new
//! records instead.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aip_audit::record::Dropped;

use super::book::{Place, logs};
use super::stream::files;
use super::{Shared, millis, unix_millis};

/// Earlier logs whose going was said in the log of now.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    leaving: HashMap<PathBuf, Place>,
}

/// When the last checkpoint of a log was kept.
fn ended(dir: &Path) -> Option<SystemTime> {
    fs::metadata(dir.join("checkpoints.jsonl")).ok()?.modified().ok()
}

impl Earlier {
    /// Drops what the quota asks for, oldest first: what is to go is said in the log of now, and goes once that is signed.
    pub(super) fn tidy(&mut self, shared: &Shared) {
        let (root, live, options, mut total) = {
            let book = shared.book();
            let Some(live) = book.dir().map(Path::to_owned) else {
                return;
            };
            (book.root().to_owned(), live, *book.options(), book.bytes())
        };
        let mut all: Vec<(PathBuf, u64)> = logs(&root)
            .into_iter()
            .map(|dir| (dir.clone(), files::bytes(&dir)))
            .collect();
        all.retain(|(dir, _)| *dir != live);
        total += all.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let mut stays = 0;
        for (dir, bytes) in all {
            let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !shared.sent().has_all(name) {
                stays += bytes;
                continue;
            }
            let age = ended(&dir).and_then(|at| at.elapsed().ok());
            let old = age.is_some_and(|age| age > Duration::from_millis(options.total_millis));
            let full = total + options.segment_bytes > options.total_bytes;
            if !(old || full) {
                continue;
            }
            // Of what can't be read nobody can say how much goes: it stays, for the auditor.
            let Ok(signed) = files::signed(&dir) else {
                stays += bytes;
                continue;
            };
            total = total.saturating_sub(bytes);
            self.drop_one(shared, &dir, signed, if old { "age" } else { "size" });
        }
        shared.book().earlier(stays);
    }

    fn drop_one(&mut self, shared: &Shared, dir: &Path, signed: u64, quota: &str) {
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(place) = self.leaving.get(dir).copied() {
            let (said, life) = {
                let book = shared.book();
                (book.has_signed(place), book.life())
            };
            if said {
                self.leaving.remove(dir);
                tracing::info!(log = name, quota, "an audit log that the control plane has is dropped");
                if let Err(error) = fs::remove_dir_all(dir) {
                    tracing::warn!(log = name, %error, "an audit log can't be taken away");
                }
                shared.sent().forget(name);
                return;
            }
            if place.life == life {
                return;
            }
        }
        let until = ended(dir).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let dropped = Dropped {
            log: Some(name.to_owned()),
            first: 0,
            records: signed,
            until: millis(until.unwrap_or_default()),
            quota: quota.to_owned(),
        };
        if let Some(place) = shared.book().say_dropped(dropped, unix_millis()) {
            self.leaving.insert(dir.to_owned(), place);
        }
    }
}
