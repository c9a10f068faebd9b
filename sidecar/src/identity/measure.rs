//! The `files` and `process` attestors: what this sidecar can see of its agent, as digests.

mod covered;
mod digest;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use aip_api::Digest;
use aip_api::evidence::{
    Assurance, Enforcement, FilesError, MAX_FILES, MAX_TOTAL_BYTES, MeasuredFile, argv_digest, code_digest,
    measured_argv,
};
use globset::GlobBuilder;

use crate::config::Measured;
pub use covered::Covered;
pub use covered::{paths, relative_paths};

/// Directory entries that one glob may look at: ten for each file that it may find.
const MAX_ENTRIES: usize = 10 * MAX_FILES;
/// How deep a walk goes below the root.
const MAX_DEPTH: usize = 64;

/// Why something can't be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A file can't be read.
    #[error("{path} can't be measured: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Leads outside the root.
    #[error("{0} leads outside the measured root; declare a root that holds it")]
    Outside(PathBuf),
    /// Too much is declared, as of this file.
    #[error("the declared files have more than {MAX_TOTAL_BYTES} bytes together, {0} among them; narrow the globs")]
    TooLarge(PathBuf),
    /// An executable that is too large.
    #[error("the executable {0} is larger than {MAX_TOTAL_BYTES} bytes, the most that is measured of one file")]
    ProgramTooLarge(PathBuf),
    /// Too many, or badly named.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A glob finds too much to look through.
    #[error("the glob {0:?} looks at more than {MAX_ENTRIES} entries; narrow it")]
    TooWide(String),
    /// Not a glob.
    #[error("{0}")]
    Glob(String),
    /// Finds nothing: a typing error would else measure as "no code".
    #[error("{0:?} matches no file below the root")]
    Empty(String),
    /// A path that is not UTF-8 has no place in evidence.
    #[error("{0} is not UTF-8")]
    NotUtf8(PathBuf),
}

impl MeasureError {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "measure_unreadable",
            Self::Outside(_) => "measure_outside_root",
            Self::TooLarge(_) | Self::ProgramTooLarge(_) | Self::TooWide(_) => "measure_too_large",
            Self::Files(_) => "measure_files",
            Self::Glob(_) | Self::Empty(_) => "measure_glob",
            Self::NotUtf8(_) => "measure_not_utf8",
        }
    }

    /// Whether the machine or this process was short of files or memory: that says nothing of what is there.
    pub fn is_shortage(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        let short = [
            rustix::io::Errno::MFILE,
            rustix::io::Errno::NFILE,
            rustix::io::Errno::NOMEM,
        ];
        rustix::io::Errno::from_io_error(source).is_some_and(|errno| short.contains(&errno))
    }
}

/// What was measured, short of nonce and key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Measurement {
    /// `process` where a supervisor named the executable, else `files`.
    pub attestor: &'static str,
    /// This process measured, beside the agent and as the same kind of user: declared.
    pub assurance: Assurance,
    /// Merkle digest of `files`.
    pub code: Digest,
    /// Declared code.
    pub files: Vec<MeasuredFile>,
    /// Merkle digest of declared configuration.
    pub config: Option<Digest>,
    /// Digest of the executable.
    pub executable: Option<Digest>,
    /// Command line, the agent's port aside.
    pub argv: Option<Vec<String>>,
    /// Digest of this sidecar's own executable.
    pub sidecar: Digest,
    /// Can the agent go around?
    pub enforcement: Enforcement,
}

impl Measurement {
    /// Whether nothing that was measured decides what runs: then an approval says nothing about the agent.
    pub fn is_of_nothing(&self) -> bool {
        self.files.is_empty() && self.executable.is_none()
    }

    /// Whether all that was measured of what runs is a program from elsewhere, which an interpreter is: then an approval
    /// says nothing about what it interprets, but for what stands in the command line itself.
    pub fn is_of_foreign_program(&self, declared: &Measured) -> bool {
        let below_root = |path: &PathBuf| {
            let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            real(path).starts_with(real(&declared.root))
        };
        self.files.is_empty() && declared.executable.as_ref().is_some_and(|path| !below_root(path))
    }

    /// What would have to be approved for this.
    pub fn approvable(&self, agent: &aip_api::AgentName) -> aip_api::resource::Measurement {
        aip_api::resource::Measurement {
            agent: agent.clone(),
            attestor: self.attestor.to_owned(),
            code: self.code,
            config: self.config,
            executable: self.executable,
            argv: self.argv.as_deref().map(argv_digest),
            sidecar: Some(self.sidecar),
            approved_by: String::new(),
            approved_at: 0,
        }
    }

    /// One digest over everything that an approval can name: equal exactly when the same approval fits.
    pub fn fingerprint(&self, agent: &aip_api::AgentName) -> Digest {
        self.approvable(agent).fingerprint()
    }
}

/// Measures what is declared, now. Reads files: call it off the async path.
///
/// # Errors
/// Unreadable, outside the root, or too much.
pub fn measure(declared: &Measured) -> Result<Measurement, MeasureError> {
    let root = fs::canonicalize(&declared.root).map_err(|source| io_error(&declared.root, source))?;
    let mut budget = MAX_TOTAL_BYTES;
    let files = measure_files(&root, &declared.code, &mut budget)?;
    let config = match declared.config.as_slice() {
        [] => None,
        globs => Some(code_digest(&measure_files(&root, globs, &mut budget)?)?),
    };
    let executable = match &declared.executable {
        Some(path) => Some(digest::of_program(path)?),
        None => None,
    };
    Ok(Measurement {
        attestor: if executable.is_some() { "process" } else { "files" },
        assurance: Assurance::Declared,
        code: code_digest(&files)?,
        files,
        config,
        executable,
        argv: declared.argv.as_deref().map(|argv| match declared.port {
            Some(port) => measured_argv(argv, port),
            None => argv.to_vec(),
        }),
        sidecar: digest::of_this_program()?,
        enforcement: declared.enforcement,
    })
}

fn io_error(path: &Path, source: io::Error) -> MeasureError {
    MeasureError::Io {
        path: path.to_owned(),
        source,
    }
}

fn measure_files(root: &Path, globs: &[String], budget: &mut u64) -> Result<Vec<MeasuredFile>, MeasureError> {
    let mut paths = BTreeSet::new();
    for glob in globs {
        find(root, glob, &mut paths)?;
        if paths.len() > MAX_FILES {
            return Err(FilesError::TooMany(paths.len()).into());
        }
    }
    paths.iter().map(|path| measure_file(root, path, budget)).collect()
}

/// Adds the relative paths that a glob names. A path without a wildcard is itself.
fn find(root: &Path, glob: &str, found: &mut BTreeSet<String>) -> Result<(), MeasureError> {
    let relative = inside(root, Path::new(glob))?;
    let text = relative
        .to_str()
        .ok_or_else(|| MeasureError::NotUtf8(relative.clone()))?;
    if !text.contains(['*', '?', '[', '{']) {
        let path = root.join(&relative);
        let metadata = fs::symlink_metadata(&path).map_err(|e| io_error(&path, e))?;
        if metadata.is_dir() {
            return find(root, &format!("{text}/**"), found);
        }
        found.insert(text.to_owned());
        return Ok(());
    }
    let matcher = GlobBuilder::new(text).literal_separator(true).build();
    let matcher = matcher
        .map_err(|e| MeasureError::Glob(e.to_string()))?
        .compile_matcher();
    let before = found.len();
    let fixed: PathBuf = relative.components().take_while(|c| !is_wild(c)).collect();
    let mut entries = 0;
    let mut walk = vec![(fixed, 0usize)];
    while let Some((dir, depth)) = walk.pop() {
        let full = root.join(&dir);
        for entry in fs::read_dir(&full).map_err(|e| io_error(&full, e))? {
            let entry = entry.map_err(|e| io_error(&full, e))?;
            entries += 1;
            if entries > MAX_ENTRIES || depth > MAX_DEPTH {
                return Err(MeasureError::TooWide(glob.to_owned()));
            }
            let path = dir.join(entry.file_name());
            if entry.file_type().map_err(|e| io_error(&full, e))?.is_dir() {
                walk.push((path, depth + 1));
            } else if matcher.is_match(&path) {
                let text = path.to_str().ok_or_else(|| MeasureError::NotUtf8(path.clone()))?;
                found.insert(text.to_owned());
            }
        }
    }
    if found.len() == before && !found.iter().any(|path| matcher.is_match(path)) {
        return Err(MeasureError::Empty(glob.to_owned()));
    }
    Ok(())
}

fn is_wild(component: &Component<'_>) -> bool {
    component.as_os_str().as_bytes().iter().any(|b| b"*?[{".contains(b))
}

/// `path` relative to the root, by its text; the file system is asked later, link by link.
fn inside(root: &Path, path: &Path) -> Result<PathBuf, MeasureError> {
    let relative = if path.is_absolute() {
        path.strip_prefix(root)
            .map_err(|_| MeasureError::Outside(path.to_owned()))?
    } else {
        path
    };
    let mut clean = PathBuf::new();
    for component in relative.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(MeasureError::Outside(path.to_owned()));
            }
        }
    }
    Ok(clean)
}

fn measure_file(root: &Path, path: &str, budget: &mut u64) -> Result<MeasuredFile, MeasureError> {
    let full = root.join(path);
    // Its directory may be reached through a link; the file must still lie below the root.
    let parent = full.parent().unwrap_or(root);
    let real = fs::canonicalize(parent).map_err(|e| io_error(parent, e))?;
    if !real.starts_with(root) {
        return Err(MeasureError::Outside(full));
    }
    let metadata = fs::symlink_metadata(&full).map_err(|e| io_error(&full, e))?;
    if metadata.file_type().is_symlink() {
        let target = fs::read_link(&full).map_err(|e| io_error(&full, e))?;
        let leads_to = fs::canonicalize(&full).map_err(|e| io_error(&full, e))?;
        if !leads_to.starts_with(root) {
            return Err(MeasureError::Outside(full));
        }
        let sha256 = Digest::sha256(target.as_os_str().as_bytes());
        return Ok(MeasuredFile {
            path: path.to_owned(),
            exec: false,
            sha256,
        });
    }
    let exec = metadata.permissions().mode() & 0o100 != 0;
    let sha256 = digest::of_file(&full, budget)?.ok_or(MeasureError::TooLarge(full))?;
    Ok(MeasuredFile {
        path: path.to_owned(),
        exec,
        sha256,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    pub(super) fn declared(root: &Path, code: &[&str]) -> Measured {
        Measured {
            root: root.to_owned(),
            code: code.iter().map(|s| (*s).to_owned()).collect(),
            config: vec![],
            executable: None,
            argv: None,
            port: None,
            enforcement: Enforcement::Cooperative,
        }
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("src/deep")).unwrap();
        for (path, text) in [
            ("main.py", "a"),
            ("src/x.py", "b"),
            ("src/deep/y.py", "c"),
            ("notes.txt", "d"),
        ] {
            fs::write(dir.path().join(path), text).unwrap();
        }
        dir
    }

    #[test]
    fn any_change_to_a_declared_file_changes_the_digest_and_no_other_does() {
        let dir = tree();
        let now = || measure(&declared(dir.path(), &["main.py", "src/**"])).unwrap();
        let before = now();
        assert_eq!(before.files.len(), 3);
        fs::write(dir.path().join("notes.txt"), "changed").unwrap();
        assert_eq!(now(), before);
        fs::write(dir.path().join("src/deep/y.py"), "changed").unwrap();
        assert_ne!(now().code, before.code);
        fs::write(dir.path().join("src/deep/y.py"), "c").unwrap();
        assert_eq!(now().code, before.code);
        fs::set_permissions(dir.path().join("main.py"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_ne!(now().code, before.code, "the executable bit counts");
    }

    #[test]
    fn nothing_outside_the_root_is_measured() {
        let dir = tree();
        for bad in ["../x", "/etc/passwd", "src/../../x"] {
            assert!(
                matches!(measure(&declared(dir.path(), &[bad])), Err(MeasureError::Outside(_))),
                "{bad}"
            );
        }
        symlink("/etc/passwd", dir.path().join("out")).unwrap();
        symlink("main.py", dir.path().join("in")).unwrap();
        symlink("/etc", dir.path().join("etc")).unwrap();
        assert!(matches!(
            measure(&declared(dir.path(), &["out"])),
            Err(MeasureError::Outside(_))
        ));
        assert!(matches!(
            measure(&declared(dir.path(), &["etc/passwd"])),
            Err(MeasureError::Outside(_))
        ));
        let linked = measure(&declared(dir.path(), &["in"])).unwrap();
        assert_eq!(
            linked.files[0].sha256,
            Digest::sha256(b"main.py"),
            "a link counts as its target's text"
        );
    }

    #[test]
    fn a_command_line_is_measured_but_for_the_port() {
        let dir = tree();
        let measured = |port: u16, last: &str| {
            let argv = ["serve".to_owned(), format!("--port={port}"), last.to_owned()];
            let declared = Measured {
                argv: Some(argv.to_vec()),
                port: Some(port),
                ..declared(dir.path(), &["main.py"])
            };
            measure(&declared).unwrap().fingerprint(&"planner".parse().unwrap())
        };
        assert_eq!(measured(8000, "x"), measured(9000, "x"));
        assert_ne!(measured(8000, "x"), measured(8000, "y"));
    }

    #[test]
    fn a_measurement_of_nothing_is_known_as_such() {
        let dir = tree();
        let nothing = declared(dir.path(), &[]);
        assert!(measure(&nothing).unwrap().is_of_nothing());
        let program = Measured {
            executable: Some(dir.path().join("main.py")),
            ..nothing
        };
        assert!(!measure(&program).unwrap().is_of_nothing());
        assert!(!measure(&declared(dir.path(), &["main.py"])).unwrap().is_of_nothing());
    }

    #[test]
    fn a_program_from_elsewhere_alone_is_known_as_such() {
        let dir = tree();
        let foreign = |code: &[&str], program: PathBuf| {
            let declared = Measured {
                executable: Some(program),
                ..declared(dir.path(), code)
            };
            measure(&declared).unwrap().is_of_foreign_program(&declared)
        };
        assert!(foreign(&[], "/bin/sh".into()));
        assert!(!foreign(&["main.py"], "/bin/sh".into()), "its script is measured");
        assert!(!foreign(&[], dir.path().join("main.py")), "it is the agent's own");
        let nothing = declared(dir.path(), &[]);
        assert!(!measure(&nothing).unwrap().is_of_foreign_program(&nothing));
    }

    #[test]
    fn a_glob_that_finds_nothing_or_too_much_is_an_error() {
        let dir = tree();
        assert!(matches!(
            measure(&declared(dir.path(), &["*.rs"])),
            Err(MeasureError::Empty(_))
        ));
        assert!(measure(&declared(dir.path(), &["absent.py"])).is_err());
        for i in 0..=MAX_FILES {
            fs::write(dir.path().join(format!("src/f{i}")), "").unwrap();
        }
        let error = measure(&declared(dir.path(), &["src/**"])).unwrap_err();
        assert!(matches!(error, MeasureError::Files(FilesError::TooMany(_))), "{error}");
    }
}
