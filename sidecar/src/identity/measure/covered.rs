//! Which paths a measurement covers, without reading what they hold.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use aip_api::evidence::{FilesError, MAX_FILES};
use globset::{GlobBuilder, GlobMatcher};

use super::{MAX_DEPTH, MAX_ENTRIES, MeasureError, find, inside, io_error, is_wild};
use crate::config::Measured;

/// What one glob covers.
#[derive(Debug)]
struct Cover {
    glob: String,
    matcher: GlobMatcher,
    /// The directory where it begins, below the root.
    from: PathBuf,
    /// How many directories below that it can reach into.
    depth: usize,
}

/// What all globs of a declaration cover, so that a name that comes or goes is known for what it is.
#[derive(Debug, Default)]
pub struct Covered(Vec<Cover>);

impl Covered {
    /// Of what is declared below `root`.
    ///
    /// # Errors
    /// A glob is none, or leads outside.
    pub fn of(root: &Path, declared: &Measured) -> Result<Self, MeasureError> {
        let globs = declared.code.iter().chain(&declared.config);
        let covers = globs.map(|glob| Cover::of(root, glob)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(covers.into_iter().flatten().collect()))
    }

    /// Whether a file of this path below the root would be measured.
    pub fn covers(&self, path: &Path) -> bool {
        self.0.iter().any(|cover| cover.matcher.is_match(path))
    }

    /// The directories in which such a file can come to be: where each really is, and as globs see it.
    ///
    /// # Errors
    /// One can't be read, or there are more than are looked through.
    pub fn directories(&self, root: &Path) -> Result<Vec<(PathBuf, PathBuf)>, MeasureError> {
        let mut all = Vec::new();
        for cover in &self.0 {
            cover.directories(root, &mut all)?;
        }
        Ok(all)
    }
}

impl Cover {
    /// None for a plain file: nothing else is covered by its name.
    fn of(root: &Path, glob: &str) -> Result<Option<Self>, MeasureError> {
        let relative = inside(root, Path::new(glob))?;
        let mut text = relative
            .to_str()
            .ok_or_else(|| MeasureError::NotUtf8(relative.clone()))?
            .to_owned();
        if !text.contains(['*', '?', '[', '{']) {
            if !fs::symlink_metadata(root.join(&relative)).is_ok_and(|said| said.is_dir()) {
                return Ok(None);
            }
            text.push_str("/**");
        }
        let built = GlobBuilder::new(&text).literal_separator(true).build();
        let matcher = built.map_err(|e| MeasureError::Glob(e.to_string()))?.compile_matcher();
        let from: PathBuf = Path::new(&text).components().take_while(|c| !is_wild(c)).collect();
        // Without `**` a glob matches as many parts as it has itself; what stands in braces counts as more.
        let depth = match text.contains("**") {
            true => MAX_DEPTH,
            false => text.matches('/').count() - from.components().count().min(text.matches('/').count()),
        };
        Ok(Some(Self {
            glob: text,
            matcher,
            from,
            depth,
        }))
    }

    fn directories(&self, root: &Path, all: &mut Vec<(PathBuf, PathBuf)>) -> Result<(), MeasureError> {
        let (mut walk, mut entries) = (vec![(self.from.clone(), 0)], 0);
        while let Some((directory, depth)) = walk.pop() {
            let full = root.join(&directory);
            let real = fs::canonicalize(&full).map_err(|e| io_error(&full, e))?;
            if depth < self.depth {
                for entry in fs::read_dir(&full).map_err(|e| io_error(&full, e))? {
                    let entry = entry.map_err(|e| io_error(&full, e))?;
                    entries += 1;
                    if entries > MAX_ENTRIES {
                        return Err(MeasureError::TooWide(self.glob.clone()));
                    }
                    if entry.file_type().map_err(|e| io_error(&full, e))?.is_dir() {
                        walk.push((directory.join(entry.file_name()), depth + 1));
                    }
                }
            }
            all.push((real, directory));
        }
        Ok(())
    }
}

/// The paths below `root` that are measured, sorted.
///
/// # Errors
/// As measuring them.
pub fn relative_paths(root: &Path, declared: &Measured) -> Result<BTreeSet<String>, MeasureError> {
    let mut found = BTreeSet::new();
    for glob in declared.code.iter().chain(&declared.config) {
        find(root, glob, &mut found)?;
        // Code and configuration are counted apart where they are measured.
        if found.len() > 2 * MAX_FILES {
            return Err(FilesError::TooMany(found.len()).into());
        }
    }
    Ok(found)
}

/// All that is measured, by where it lies; a program by the file that links lead to.
///
/// # Errors
/// As measuring it.
pub fn paths(declared: &Measured) -> Result<Vec<PathBuf>, MeasureError> {
    let root = fs::canonicalize(&declared.root).map_err(|e| io_error(&declared.root, e))?;
    let relative = relative_paths(&root, declared)?;
    let mut all: Vec<PathBuf> = relative.iter().map(|path| root.join(path)).collect();
    if let Some(program) = &declared.executable {
        all.push(fs::canonicalize(program).map_err(|e| io_error(program, e))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::tests::declared;
    use super::*;

    #[test]
    fn a_glob_covers_what_it_would_find_and_looks_no_deeper_than_it_reaches() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(root.join("src/deep/deeper")).unwrap();
        fs::create_dir_all(root.join("node_modules/x")).unwrap();
        fs::write(root.join("main.py"), "").unwrap();
        let of = |globs: &[&str]| {
            let covered = Covered::of(&root, &declared(&root, globs)).unwrap();
            let mut seen: Vec<_> = covered
                .directories(&root)
                .unwrap()
                .into_iter()
                .map(|(_, seen)| seen.to_str().unwrap().to_owned())
                .collect();
            seen.sort();
            (covered, seen)
        };
        let (all, seen) = of(&["src/**"]);
        assert_eq!(seen, ["src", "src/deep", "src/deep/deeper"]);
        assert!(all.covers(Path::new("src/deep/new.py")) && !all.covers(Path::new("other.py")));
        let (top, seen) = of(&["*.py"]);
        assert_eq!(seen, [""], "nothing below can match");
        assert!(top.covers(Path::new("new.py")) && !top.covers(Path::new("src/new.py")));
        let (two, seen) = of(&["src/*/x.py"]);
        assert_eq!(seen, ["src", "src/deep"]);
        assert!(two.covers(Path::new("src/deep/x.py")));
        let (directory, seen) = of(&["src"]);
        assert_eq!(seen.len(), 3);
        assert!(directory.covers(Path::new("src/new")));
        let (file, seen) = of(&["main.py"]);
        assert!(seen.is_empty() && !file.covers(Path::new("main.py")), "its name alone");
    }
}
