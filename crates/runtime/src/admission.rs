//! Runs work that may hang or die in a child process: policy admission. Bounded in time, memory and output: the parent
//! ends it at a deadline ([`in_child`]), and the child confines itself before it reads a byte ([`confine`]).

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// Most bytes of an answer: diagnostics of one policy.
const MAX_ANSWER: u64 = 1024 * 1024;

/// Memory of a child: the largest policy with its data and tests takes a tenth of it, in two engines.
const MAX_MEMORY: u64 = 512 * 1024 * 1024;

/// Confines this process to what checking a policy needs: bounded memory, no file that grows, no dump of what it was
/// given. An allocation past the bound ends it.
///
/// # Errors
/// The system does not let it.
pub fn confine() -> io::Result<()> {
    let limits = [(Resource::Data, MAX_MEMORY), (Resource::Fsize, 0), (Resource::Core, 0)];
    for (resource, most) in limits {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit)?;
    }
    Ok(())
}

/// Why the child gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// Can't be started.
    #[error("can't start {program} to check the policy: {source}")]
    Start {
        /// Which program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// Past its deadline; it was killed.
    #[error("the check took longer than {} s and was ended: the policy is too expensive to compile", .0.as_secs())]
    Deadline(Duration),
    /// Ended by a signal or with a failure.
    #[error("the check ended with {0}: the policy makes the compiler fail, or takes more memory than a check has")]
    Died(String),
    /// The pipes broke.
    #[error("the check's pipes broke: {0}")]
    Io(#[from] std::io::Error),
}

impl ChildError {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Start { .. } => "admission_unavailable",
            Self::Deadline(_) => "admission_deadline",
            Self::Died(_) => "admission_died",
            Self::Io(_) => "admission_broken",
        }
    }
}

/// Runs `program` with `args`, gives it `request` on standard input and answers its standard output.
///
/// # Errors
/// It can't start, passes `deadline`, or dies.
pub async fn in_child(
    program: &Path,
    args: &[&str],
    request: Vec<u8>,
    deadline: Duration,
) -> Result<Vec<u8>, ChildError> {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ChildError::Start {
            program: program.display().to_string(),
            source,
        })?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(ChildError::Died("no pipes".into()));
    };
    let work = async {
        let write = async {
            // A child that dies early breaks the pipe; its exit status says more.
            let _ = stdin.write_all(&request).await;
            drop(stdin);
        };
        let mut answer = Vec::new();
        let mut bounded = stdout.take(MAX_ANSWER);
        let read = bounded.read_to_end(&mut answer);
        let ((), read) = tokio::join!(write, read);
        read?;
        Ok::<_, std::io::Error>((answer, child.wait().await?))
    };
    match tokio::time::timeout(deadline, work).await {
        Err(_) => Err(ChildError::Deadline(deadline)),
        Ok(Ok((answer, status))) if status.success() => Ok(answer),
        Ok(Ok((_, status))) => Err(ChildError::Died(status.to_string())),
        Ok(Err(error)) => Err(ChildError::Io(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_that_hangs_or_dies_is_an_error_and_not_our_end() {
        let sh = Path::new("/bin/sh");
        let run = async |script: &str| in_child(sh, &["-c", script], b"in".to_vec(), Duration::from_secs(20)).await;
        assert_eq!(run("/bin/cat").await.unwrap(), b"in");
        assert_eq!(run("kill -SEGV $$").await.unwrap_err().reason(), "admission_died");
        assert_eq!(run("exit 3").await.unwrap_err().reason(), "admission_died");
        let hang = in_child(sh, &["-c", "exec /bin/sleep 60"], vec![], Duration::from_millis(100)).await;
        assert_eq!(hang.unwrap_err().reason(), "admission_deadline");
        let absent = in_child(Path::new("/nonexistent"), &[], vec![], Duration::from_secs(1)).await;
        assert_eq!(absent.unwrap_err().reason(), "admission_unavailable");
    }
}
