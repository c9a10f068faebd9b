//! What the file system says of each measured file beside its content. The change time can't be set by a program, so a
//! file that was written and restored has another one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use crate::config::Measured;
use crate::identity::measure::{self, MeasureError};

/// One file's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Those of everything that is measured, by path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamps(BTreeMap<PathBuf, Stamp>);

impl Stamps {
    /// As they are now. Blocks.
    ///
    /// # Errors
    /// What is declared can't be looked at.
    pub fn take(declared: &Measured) -> Result<Self, MeasureError> {
        let mut all = BTreeMap::new();
        for path in measure::paths(declared)? {
            let stamp = of(&path).map_err(|source| MeasureError::Io {
                path: path.clone(),
                source,
            })?;
            all.insert(path, stamp);
        }
        Ok(Self(all))
    }

    /// Which are other than in `before`, or are in one of both only.
    pub fn differing(&self, before: &Self) -> Vec<String> {
        let all = self
            .0
            .keys()
            .chain(before.0.keys().filter(|path| !self.0.contains_key(*path)));
        let other = all.filter(|path| self.0.get(*path) != before.0.get(*path));
        other.map(|path| path.display().to_string()).collect()
    }
}

/// Of a file itself, or of a link itself; of a program, whatever links lead to it, `measure::paths` names the file.
fn of(path: &std::path::Path) -> io::Result<Stamp> {
    let said = fs::symlink_metadata(path)?;
    Ok(Stamp {
        device: said.dev(),
        inode: said.ino(),
        size: said.size(),
        modified: (said.mtime(), said.mtime_nsec()),
        changed: (said.ctime(), said.ctime_nsec()),
    })
}
