//! What decides what is measured: the measured files, the names by which they are reached, and the directories in which a
//! new file would be measured, too.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::config::Measured;
use crate::identity::measure::{self, Covered, MeasureError};

/// Symbolic links on the way to one file, as the kernel counts them (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Everything whose change can change what is measured.
#[derive(Debug, Default)]
pub(super) struct Interest {
    /// By directory: the names in it on which something measured depends, and what that is.
    pub(super) names: HashMap<PathBuf, BTreeMap<OsString, String>>,
    /// Directories that a glob looks through, by where they really are: as the glob sees them.
    pub(super) walked: HashMap<PathBuf, PathBuf>,
    /// The files themselves: a write may come by another name (a hard link).
    pub(super) files: BTreeMap<PathBuf, String>,
    /// Directories above the root, whose move would bring others in their place.
    pub(super) above: BTreeSet<PathBuf>,
    /// What the globs find.
    pub(super) covered: Covered,
}

impl Interest {
    /// Of what is declared, as it lies now. Blocks.
    ///
    /// # Errors
    /// It can't be looked at, or is more than is measured.
    pub(super) fn of(declared: &Measured) -> Result<Self, MeasureError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| MeasureError::Io { path, source }
        };
        let declared_root = std::path::absolute(&declared.root).map_err(failed(&declared.root))?;
        let root = fs::canonicalize(&declared_root).map_err(failed(&declared.root))?;
        let mut interest = Self {
            covered: Covered::of(&root, declared)?,
            ..Self::default()
        };
        interest
            .follow(&declared_root, &root, true, ".")
            .map_err(failed(&declared_root))?;
        for path in measure::relative_paths(&root, declared)? {
            let full = root.join(&path);
            interest.follow(&full, &root, false, &path).map_err(failed(&full))?;
            interest.file(&full, &path);
        }
        if let Some(program) = &declared.executable {
            let full = std::path::absolute(program).map_err(failed(program))?;
            let shown = program.display().to_string();
            interest.follow(&full, &root, true, &shown).map_err(failed(&full))?;
            interest.file(&fs::canonicalize(&full).map_err(failed(&full))?, &shown);
        }
        for (real, seen) in interest.covered.directories(&root)? {
            interest.walked.insert(real, seen);
        }
        Ok(interest)
    }

    /// The directories of which every change is heard.
    pub(super) fn directories(&self) -> BTreeSet<&Path> {
        let all = self.names.keys().chain(self.walked.keys());
        all.map(PathBuf::as_path).collect()
    }

    /// A link counts as its text: its own name is watched, and nothing behind it is measured by it.
    fn file(&mut self, path: &Path, shown: &str) {
        if fs::symlink_metadata(path).is_ok_and(|said| said.is_file()) {
            self.files.insert(path.to_owned(), shown.to_owned());
        }
    }

    /// Notes every name on the way from `/` to `path` whose change would make it lead elsewhere.
    fn follow(&mut self, path: &Path, root: &Path, last_too: bool, shown: &str) -> io::Result<()> {
        let mut ahead: VecDeque<OsString> = parts(path);
        let (mut at, mut links) = (PathBuf::from("/"), 0);
        while let Some(part) = ahead.pop_front() {
            if part == ".." {
                at.pop();
                continue;
            }
            let (next, last) = (at.join(&part), ahead.is_empty());
            if is_link(&next) {
                self.name(&at, &part, shown);
                if last && !last_too {
                    return Ok(());
                }
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::other("too many symbolic links"));
                }
                let target = fs::read_link(&next)?;
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                for part in parts(&target).into_iter().rev() {
                    ahead.push_front(part);
                }
                continue;
            }
            let is_root = next == *root;
            if (at.starts_with(root) || last) && !is_root {
                self.name(&at, &part, shown);
            } else {
                self.above.insert(next.clone());
            }
            at = next;
        }
        Ok(())
    }

    fn name(&mut self, directory: &Path, name: &OsStr, shown: &str) {
        let names = self.names.entry(directory.to_owned()).or_default();
        names.entry(name.to_owned()).or_insert_with(|| shown.to_owned());
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|said| said.file_type().is_symlink())
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.collect()
}
