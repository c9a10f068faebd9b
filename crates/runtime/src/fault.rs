//! Places at which a test ends the process: before and after each step that makes something durable. Not in release
//! builds, where [`point`] is nothing.
//!
//! `AIP_FAULT=<point>` or `AIP_FAULT=<point>#<n>` kills the process, as SIGKILL does, when it comes to that point for the
//! first or the n-th time. `AIP_FAULT_SEEN=<file>` writes down each point that the process comes to, as `<point>#<n>`, the
//! first [`NOTED`] times: a test learns from that which there are.
//!
//! With `AIP_FAULT_AFTER=<file>` only what is passed while that file exists counts, for both: a test makes it once its
//! work has begun, and something was acknowledged already.

/// Passages of one point that are written down.
pub const NOTED: u32 = 2;

/// Comes to a point named `<what>:<where>`. The name is only made where somebody asks for it.
#[cfg(debug_assertions)]
pub fn point(name: impl FnOnce() -> String) {
    armed::point(name);
}

/// Comes to a point: nothing, in a release build.
#[cfg(not(debug_assertions))]
pub fn point(_: impl FnOnce() -> String) {}

#[cfg(debug_assertions)]
mod armed {
    use std::collections::HashMap;
    use std::fs::OpenOptions;
    use std::io::Write as _;
    use std::path::PathBuf;
    use std::sync::{Mutex, OnceLock, PoisonError};

    use rustix::process::{Signal, getpid, kill_process};

    #[derive(Debug, Default)]
    struct Armed {
        at: Option<String>,
        /// Passages that are still let through.
        left: Mutex<u32>,
        seen: Option<PathBuf>,
        /// Nothing counts before there is this file.
        after: Option<PathBuf>,
        passed: Mutex<HashMap<String, u32>>,
    }

    impl Armed {
        fn of(fault: Option<String>, seen: Option<PathBuf>, after: Option<PathBuf>) -> Option<Self> {
            if fault.is_none() && seen.is_none() {
                return None;
            }
            let (at, nth) = match &fault {
                Some(fault) => match fault.split_once('#') {
                    Some((at, nth)) => (Some(at.to_owned()), nth.parse().unwrap_or(1)),
                    None => (Some(fault.clone()), 1),
                },
                None => (None, 1),
            };
            Some(Self {
                at,
                left: Mutex::new(nth),
                seen,
                after,
                ..Self::default()
            })
        }

        /// Passes the point; whether the process ends here.
        fn pass(&self, name: &str) -> bool {
            // Looked for each time: few points are passed, and a process that is not tested does not come here.
            if self.after.as_ref().is_some_and(|after| !after.exists()) {
                return false;
            }
            self.note(name);
            self.is_due(name)
        }

        fn note(&self, name: &str) {
            let Some(path) = &self.seen else { return };
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            let times = passed.entry(name.to_owned()).or_default();
            *times += 1;
            if *times <= super::NOTED {
                let file = OpenOptions::new().create(true).append(true).open(path);
                // A test that reads it finds the line missing.
                let _ = file.and_then(|mut file| writeln!(file, "{name}#{times}"));
            }
        }

        /// Whether this is the passage at which the process ends.
        fn is_due(&self, name: &str) -> bool {
            if self.at.as_deref() != Some(name) {
                return false;
            }
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            let last = *left == 1;
            *left = left.saturating_sub(1);
            last
        }
    }

    pub(super) fn point(name: impl FnOnce() -> String) {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let armed = ARMED.get_or_init(|| {
            let file = |name| std::env::var_os(name).map(PathBuf::from);
            let fault = std::env::var("AIP_FAULT").ok();
            Armed::of(fault, file("AIP_FAULT_SEEN"), file("AIP_FAULT_AFTER"))
        });
        let Some(armed) = armed else { return };
        if armed.pass(&name()) {
            let _ = kill_process(getpid(), Signal::KILL);
            // The signal may take a moment; nothing more is to happen meanwhile.
            loop {
                std::thread::park();
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_passage_that_was_asked_for_is_the_last() {
            let dir = tempfile::tempdir().unwrap();
            let seen = dir.path().join("seen");
            let armed = Armed::of(Some("file:renamed#2".into()), Some(seen.clone()), None).unwrap();
            for (name, due) in [
                ("file:synced", false),
                ("file:renamed", false),
                ("file:renamed", true),
                ("file:renamed", false),
            ] {
                assert_eq!(armed.pass(name), due, "{name}");
            }
            assert_eq!(
                std::fs::read_to_string(seen).unwrap(),
                "file:synced#1\nfile:renamed#1\nfile:renamed#2\n"
            );
            assert!(Armed::of(None, None, Some("after".into())).is_none());
        }

        #[test]
        fn what_is_passed_before_the_file_is_there_does_not_count() {
            let dir = tempfile::tempdir().unwrap();
            let (seen, after) = (dir.path().join("seen"), dir.path().join("after"));
            let armed = Armed::of(Some("commit".into()), Some(seen.clone()), Some(after.clone())).unwrap();
            assert!(!armed.pass("commit") && !seen.exists());
            std::fs::write(after, "").unwrap();
            assert!(armed.pass("commit"));
            assert_eq!(std::fs::read_to_string(seen).unwrap(), "commit#1\n");
        }
    }
}
