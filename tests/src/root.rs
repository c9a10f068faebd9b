//! Tests that take another user, which only root can be: none of them passes without having tested anything.

use std::io::Write as _;

/// Set to 1, it says that tests which only root can run are to be skipped.
pub const SKIP: &str = "AIP_SKIP_ROOT_TESTS";

/// Whether the test can run. Where it can't, and whoever runs it wants it skipped, that is said past the harness, which
/// keeps the output of a test that passes to itself.
///
/// # Panics
/// Not root, and [`SKIP`] is not set.
pub fn needs_root() -> bool {
    let skip = std::env::var(SKIP).is_ok_and(|value| value == "1");
    let runs = runs(rustix::process::geteuid().is_root(), skip).unwrap_or_else(|why| panic!("{why}"));
    if !runs {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let _ = writeln!(std::io::stderr(), "SKIPPED, not tested: {test} needs root ({SKIP}=1)");
    }
    runs
}

fn runs(is_root: bool, skip: bool) -> Result<bool, String> {
    match (is_root, skip) {
        (true, _) => Ok(true),
        (false, true) => Ok(false),
        (false, false) => Err(format!(
            "only root can be another user, which this test takes: run it as root, or set {SKIP}=1 to skip such tests"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_root_skips_nothing_unasked() {
        assert_eq!((runs(true, false), runs(true, true)), (Ok(true), Ok(true)));
        assert_eq!(runs(false, true), Ok(false));
        assert!(runs(false, false).unwrap_err().contains(SKIP));
    }
}
