//! The binaries under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The path of a binary of this workspace, built from the current source.
///
/// Cargo builds a package's binaries for its own tests only. So the first call builds what is not fresh (nothing, after
/// `make build`), under cargo's own lock against other test processes. With `AIP_BIN_DIR` set they are taken from there
/// as they are.
pub fn binary(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let path = DIR.get_or_init(dir).join(name);
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

fn dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("AIP_BIN_DIR") {
        return dir.into();
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--workspace", "--bins"]);
    let status = cargo.current_dir(repository()).status().expect("cargo runs");
    assert!(status.success(), "the binaries under test don't build");
    // This test lies in <target>/<profile>/deps.
    let test = std::env::current_exe().unwrap();
    test.parent()
        .and_then(Path::parent)
        .expect("a test binary lies in target/<profile>/deps")
        .to_owned()
}

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
