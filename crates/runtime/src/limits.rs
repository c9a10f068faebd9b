//! How many files a process may have open: a connection each, and some.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a busy process of the mesh needs: connections of strangers, of known peers, and the files of logs.
const WANTED: u64 = 65_536;

/// Lets this process open as many files as its hard limit allows, and says so where that is little. The usual soft limit,
/// 1,024, is for programs that use `select`; at the limit no connection can be accepted, whoever it is from.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let done = setrlimit(Resource::Nofile, raised);
    let open = getrlimit(Resource::Nofile).current;
    if let Err(error) = done {
        tracing::warn!(%error, open_files = open, "the limit of open files can't be raised");
    } else if open.is_some_and(|open| open < WANTED) {
        tracing::warn!(
            open_files = open,
            wanted = WANTED,
            "this process may open few files: raise its hard limit (ulimit -Hn, LimitNOFILE), or many connections keep others out"
        );
    }
}

/// How many files this process may open now.
pub fn open_files() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_may_open_few_files_may_open_more_then() {
        // In a process of its own: limits are the whole process's.
        let own = std::env::current_exe().unwrap();
        let ended = std::process::Command::new("sh")
            .args([
                "-c",
                "ulimit -Sn 300 && exec \"$0\" --exact limits::tests::raised --ignored",
            ])
            .arg(own)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "run by the test above, in a process with a low limit"]
    fn raised() {
        assert_eq!(getrlimit(Resource::Nofile).current, Some(300));
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
