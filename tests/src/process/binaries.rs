//! The binaries under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// How the variables begin that cargo sets for the package whose test runs.
const OWN_PACKAGE: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];

/// The path of a binary of this workspace, built from the current source.
///
/// Cargo builds a package's binaries for its own tests only. So the first call builds what is not fresh (nothing, after
/// `make build`), under cargo's own lock against other test processes. With `AIP_BIN_DIR` set they are taken from there
/// as they are.
pub fn binary(name: &str) -> PathBuf {
    // A failed build is remembered too: it would fail again for each test.
    static DIR: OnceLock<Result<PathBuf, &str>> = OnceLock::new();
    let path = DIR
        .get_or_init(dir)
        .as_ref()
        .unwrap_or_else(|e| panic!("{e}"))
        .join(name);
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

fn dir() -> Result<PathBuf, &'static str> {
    if let Some(dir) = std::env::var_os("AIP_BIN_DIR") {
        return Ok(dir.into());
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--workspace", "--bins"]);
    // What cargo tells this test of its own package, build scripts would take for a change of theirs: ring's does, and all
    // that stands on it was built anew.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if OWN_PACKAGE.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    let status = cargo.current_dir(repository()).status().expect("cargo runs");
    if !status.success() {
        return Err("the binaries under test don't build");
    }
    // This test lies in <target>/<profile>/deps.
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent);
    profile
        .map(Path::to_owned)
        .ok_or("a test binary lies in target/<profile>/deps")
}

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
